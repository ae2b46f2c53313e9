//! The decisions of a seat: those of the controller of its DIDs, within the member's policy.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::json;

use super::{
    approval::{Approvals, Question},
    policy::{Offer, Policy, SignRequest, Verdict},
    tally::Tally,
};
use crate::{
    actors::standing::policy::{
        BoardToSign, Control, MissedBoard, MoveTo, RowWanted, SeatPolicy, SeatView, StandingOffer, UpdatesAsked,
        UpdatesChosen,
    },
    protocol::{
        cohort::standing::{StandingPolicy, seat::KnownVersions},
        did::Did,
        hash::DidIndex,
        identity::Identity,
        invite::InviteToken,
    },
    standing::controller::StandingController,
};

/// The policy of all seats of a seed.
pub(super) struct SeatAgent {
    /// The seed's name.
    pub(super) name: String,
    /// The services of this seed, if all of them are known.
    pub(super) services: Option<Vec<Did>>,
    pub(super) controller: Arc<StandingController>,
    pub(super) policy: Arc<Policy>,
    pub(super) approvals: Approvals,
    pub(super) tally: Arc<Tally>,
}

impl SeatAgent {
    /// How long an approval of an announcement may take: an answer behind the service's deadline has no effect.
    fn timeout(&self, seat: &SeatView) -> Duration {
        let confirm = Duration::from_secs(u64::from(seat.terms.confirm_seconds));
        self.policy.timeout.min(confirm * 3 / 4)
    }

    fn request(&self, seat: &SeatView, board: &BoardToSign) -> SignRequest {
        let change = seat.beacon_address.as_str();
        let outputs = board.transaction.output.iter().filter(|output| {
            let network = seat.terms.network.to_bitcoin();
            let address = bitcoin::Address::from_script(&output.script_pubkey, network);
            !output.script_pubkey.is_op_return() && address.map_or(true, |address| address.to_string() != change)
        });
        let dids = self.controller.indexes();
        let own = board
            .entries
            .iter()
            .filter_map(|entry| Some(json!({ "did": dids.get(&entry.index)?, "update": entry.update.as_ref()? })));
        SignRequest {
            service: seat.service.clone(),
            cohort_id: seat.cohort_id.clone(),
            seat: self.name.clone(),
            number: board.number,
            beacon_address: seat.beacon_address.clone(),
            mode: board.mode.as_str().to_owned(),
            txid: board.transaction.compute_txid().to_string(),
            operator_outputs: outputs.map(|output| output.value.to_sat()).collect(),
            updates: own.collect(),
            signed_today: self.tally.signed_today(&seat.cohort_id),
        }
    }
}

#[async_trait]
impl SeatPolicy for SeatAgent {
    async fn joins(&self, offer: &StandingOffer) -> Result<(), String> {
        if self.services.as_ref().is_some_and(|services| !services.contains(&offer.service)) {
            return Err("another service".to_owned());
        }
        let cohorts = self.tally.others(&self.name, &offer.service, &offer.cohort_id);
        let asked =
            Offer { service: Some(&offer.service), cohort_id: &offer.cohort_id, terms: &offer.terms, cohorts };
        match self.policy.on_offer(&asked) {
            Verdict::Accept => {}
            Verdict::Decline { reasons } => return Err(reasons.join("; ")),
            Verdict::Ask { reasons, held } => {
                let request = json!({
                    "seat": self.name,
                    "service": offer.service,
                    "cohortId": offer.cohort_id,
                    "terms": *offer.terms,
                });
                let question = Question {
                    kind: "join",
                    cohort_id: offer.cohort_id.clone(),
                    number: None,
                    reasons,
                    timeout: (!held).then_some(self.policy.timeout),
                    request,
                };
                self.approvals.ask(question).await?;
            }
        }
        self.tally.joins(&self.name, &offer.service, &offer.cohort_id).await
    }

    fn invite(&self) -> Option<InviteToken> {
        self.controller.invite()
    }

    fn applies_as(&self) -> Option<Identity> {
        self.controller.applies_as()
    }

    fn standing_policy(&self) -> StandingPolicy {
        self.policy.terms.clone()
    }

    async fn registers(&self, seat: &SeatView) -> Vec<RowWanted> {
        self.controller.registers(seat).await
    }

    async fn proves(&self, did: &Did, digest: &[u8; 32]) -> Option<Control> {
        self.controller.proves(did, digest).await
    }

    async fn has_updates(&self, seat: &SeatView, known: &KnownVersions) -> bool {
        self.controller.has_updates(seat, known).await
    }

    async fn chooses(&self, seat: &SeatView, asked: &UpdatesAsked) -> UpdatesChosen {
        self.controller.chooses(seat, asked).await
    }

    async fn leaves_behind(&self, seat: &SeatView, move_to: &MoveTo) -> Vec<DidIndex> {
        self.controller.leaves_behind(seat, move_to).await
    }

    async fn missed(&self, seat: &SeatView, missed: &MissedBoard) -> Result<(), String> {
        self.controller.missed(seat, missed).await
    }

    async fn signs(&self, seat: &SeatView, board: &BoardToSign) -> Result<(), String> {
        let request = self.request(seat, board);
        match self.policy.on_request(&request) {
            Verdict::Accept => {}
            Verdict::Decline { reasons } => return Err(reasons.join("; ")),
            Verdict::Ask { reasons, .. } => {
                let question = Question {
                    kind: "sign",
                    cohort_id: request.cohort_id.clone(),
                    number: Some(request.number),
                    reasons,
                    timeout: Some(self.timeout(seat)),
                    request: json!(request),
                };
                self.approvals.ask(question).await?;
            }
        }
        self.controller.signs(seat, board).await?;
        self.tally.signs(&seat.cohort_id).await
    }
}
