//! The decisions of a seat: those of the controller of its DIDs, within the member's policy.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::json;

use super::{
    approval::{Approvals, Question},
    explained::Explained,
    leaving::Exits,
    policy::{MoveRequest, Offer, Policy, SignRequest, Verdict},
    report::Reporter,
    tally::Tally,
};
use crate::{
    actors::standing::policy::{
        BoardToSign, Control, MissedBoard, MoveTo, RowWanted, SeatPolicy, SeatView, StandingOffer, UpdatesAsked,
        UpdatesChosen,
    },
    protocol::{
        beacon::did_index,
        cohort::standing::{StandingPolicy, seat::KnownVersions},
        did::Did,
        hash::DidIndex,
        id::CohortId,
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
    pub(super) exits: Arc<Exits>,
    pub(super) reporter: Reporter,
    pub(super) moves: Mutex<Moves>,
}

/// The moves of this run.
#[derive(Default)]
pub(super) struct Moves {
    /// The moves that were approved, from a cohort to its successor: one that fails is tried again.
    approved: BTreeSet<(CohortId, CohortId)>,
    /// The address of the successor, by cohort and number.
    addresses: BTreeMap<(CohortId, u64), String>,
}

impl SeatAgent {
    fn moves(&self) -> MutexGuard<'_, Moves> {
        // Each change is one call.
        self.moves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides whether the DIDs of a seat move in this number. What is not moved stays in the document, and the seat does not sign.
    async fn may_move(&self, seat: &SeatView, asked: &UpdatesAsked, move_to: &MoveTo) -> Result<(), String> {
        let (number, successor) = (asked.opportunity.number, &move_to.successor);
        let address = successor.beacon_address.clone();
        self.moves().addresses.insert((seat.cohort_id.clone(), number), address);
        let dids = self.controller.indexes();
        let moving = move_to.indexes.iter().filter_map(|index| dids.get(index).cloned());
        let request = MoveRequest {
            service: seat.service.clone(),
            cohort_id: seat.cohort_id.clone(),
            seat: self.name.clone(),
            number,
            successor: successor.cohort_id.clone(),
            beacon_address: successor.beacon_address.clone(),
            dids: moving.collect(),
        };
        let key = (seat.cohort_id.clone(), successor.cohort_id.clone());
        match self.policy.on_move(&request) {
            Verdict::Accept => Ok(()),
            Verdict::Decline { reasons } => Err(reasons.join("; ")),
            Verdict::Ask { .. } if self.moves().approved.contains(&key) => Ok(()),
            Verdict::Ask { reasons, .. } => {
                let respond = Duration::from_secs(u64::from(seat.terms.respond_seconds));
                let question = Question {
                    kind: "move",
                    cohort_id: seat.cohort_id.clone(),
                    number: Some(number),
                    reasons,
                    timeout: Some(self.policy.timeout.min(respond * 3 / 4)),
                    request: json!(request),
                };
                self.approvals.ask(question).await?;
                self.moves().approved.insert(key);
                Ok(())
            }
        }
    }
    /// How long an approval of an announcement may take: an answer behind the service's deadline has no effect.
    fn timeout(&self, seat: &SeatView) -> Duration {
        let confirm = Duration::from_secs(u64::from(seat.terms.confirm_seconds));
        self.policy.timeout.min(confirm * 3 / 4)
    }

    fn request(&self, seat: &SeatView, board: &BoardToSign) -> SignRequest {
        let moves_to = self.moves().addresses.get(&(seat.cohort_id.clone(), board.number)).cloned();
        let change = moves_to.as_deref().unwrap_or(&seat.beacon_address);
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
            transaction: Some(Explained::of(board, change, seat.terms.network)),
            moves_to: moves_to.clone(),
        }
    }
}

#[async_trait]
impl SeatPolicy for SeatAgent {
    async fn joins(&self, offer: &StandingOffer) -> Result<(), String> {
        if self.services.as_ref().is_some_and(|services| !services.contains(&offer.service)) {
            return Err("another service".to_owned());
        }
        let old = offer.succeeds.as_ref().map(|succession| &succession.cohort_id);
        let old = old.filter(|old| self.tally.has(&self.name, &offer.service, old));
        let asked = Offer {
            service: Some(&offer.service),
            cohort_id: &offer.cohort_id,
            terms: &offer.terms,
            cohorts: self.tally.others(&self.name, &offer.service, &offer.cohort_id, old),
            succeeds: old.is_some(),
        };
        match self.policy.on_offer(&asked) {
            Verdict::Accept => {}
            Verdict::Decline { reasons } => return Err(reasons.join("; ")),
            Verdict::Ask { reasons, held } => {
                let request = json!({
                    "seat": self.name,
                    "service": offer.service,
                    "cohortId": offer.cohort_id,
                    "terms": *offer.terms,
                    "succeeds": old,
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
        if self.tally.has_successor(&seat.cohort_id) {
            // What is there moves; new DIDs begin at the successor.
            return Vec::new();
        }
        let mut rows = self.controller.registers(seat).await;
        rows.retain(|row| !self.exits.has(&seat.cohort_id, &did_index(&row.did)));
        rows
    }

    async fn proves(&self, did: &Did, digest: &[u8; 32]) -> Option<Control> {
        self.controller.proves(did, digest).await
    }

    async fn has_updates(&self, seat: &SeatView, known: &KnownVersions) -> bool {
        self.controller.has_updates(seat, known).await
    }

    async fn chooses(&self, seat: &SeatView, asked: &UpdatesAsked) -> UpdatesChosen {
        if let Some(move_to) = &asked.move_to
            && let Err(reason) = self.may_move(seat, asked, move_to).await
        {
            let number = asked.opportunity.number;
            self.reporter.printer().warn(&format!("number {number}: the DIDs do not move: {reason}"));
            return UpdatesChosen::default();
        }
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
