//! The controller of one seat's DIDs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use async_trait::async_trait;
use btcr2_aggregation::{
    actors::{
        runtime::Randomness,
        standing::policy::{
            BoardToSign, Control, RowWanted, SeatPolicy, SeatView, StandingOffer, UpdatesAsked, UpdatesChosen,
        },
    },
    protocol::{
        beacon::did_index,
        cohort::standing::{
            RowAction, StandingPolicy, Updates,
            message::ControlProof,
            seat::{KnownVersions, SeatUpdate},
        },
        did::Did,
        hash::DidIndex,
        identity::Identity,
        key::Signature,
        update::{build_update, sign_update},
    },
};
use serde_json::json;

use super::{super::identity, locked};

struct Held {
    identity: Identity,
    index: DidIndex,
    version: u64,
}

struct Holder {
    held: Vec<Held>,
    /// The places of the DIDs that want an update.
    wanted: BTreeSet<usize>,
    next: usize,
    /// The highest number whose data this seat has checked.
    checked: u64,
}

/// The controller of one seat's DIDs.
pub(super) struct Controller {
    randomness: Randomness,
    holder: Mutex<Holder>,
}

impl Controller {
    pub(super) fn new(seat: usize, dids: usize, randomness: Randomness) -> Self {
        let held = |at: usize| {
            let identity = identity(randomness, &format!("did {seat} {at}"));
            Held { index: did_index(identity.did()), identity, version: 1 }
        };
        let holder = Holder { held: (0..dids).map(held).collect(), wanted: BTreeSet::new(), next: 0, checked: 0 };
        Self { randomness, holder: Mutex::new(holder) }
    }

    pub(super) fn wants(&self, updates: usize) {
        let mut holder = locked(&self.holder);
        let total = holder.held.len();
        for _ in 0..updates {
            let place = holder.next % total;
            holder.wanted.insert(place);
            holder.next += 1;
        }
    }

    /// The highest number whose data this seat has checked.
    pub(super) fn checked(&self) -> u64 {
        locked(&self.holder).checked
    }

    /// What was wanted is final.
    pub(super) fn settled(&self) {
        let holder = &mut *locked(&self.holder);
        for place in std::mem::take(&mut holder.wanted) {
            holder.held[place].version += 1;
        }
    }
}

impl Held {
    /// A signed update. Each of them starts from the initial document: what it costs does not depend on that.
    fn update(&self, full: bool, randomness: Randomness) -> Option<SeatUpdate> {
        let (did, version) = (self.identity.did(), self.version + 1);
        let document = self.identity.initial_document().ok()?;
        let known = format!("https://example.org/{version}");
        let patch = json!([{ "op": "add", "path": "/alsoKnownAs", "value": [known] }]);
        let update = build_update(&document, self.version, patch).ok()?;
        let mut rng = randomness.for_actor(&format!("update {did} {version}"));
        let method = self.identity.verification_method();
        let signed = sign_update(&update, did, method, self.identity.secret_key(), &mut rng).ok()?;
        let full = full.then(|| signed.value().clone());
        Some(SeatUpdate { did: did.clone(), version, hash: *signed.hash(), full })
    }
}

#[async_trait]
impl SeatPolicy for Controller {
    async fn joins(&self, _: &StandingOffer) -> Result<(), String> {
        Ok(())
    }

    fn standing_policy(&self) -> StandingPolicy {
        StandingPolicy { least_threshold: (1, 2), least_seconds_to_answer: 1, ..StandingPolicy::default() }
    }

    async fn registers(&self, _: &SeatView) -> Vec<RowWanted> {
        let held = |held: &Held| RowWanted { did: held.identity.did().clone(), action: RowAction::Register };
        locked(&self.holder).held.iter().map(held).collect()
    }

    async fn proves(&self, _: &Did, _: &[u8; 32]) -> Option<Control> {
        // Registration is not measured; the operator of the example asks for no proof.
        let signature = Signature::from_bytes(&[0; 64]);
        let proof = ControlProof { verification_method: "#initialKey".to_owned(), signature };
        Some(Control { proof, genesis_document: None, sidecar: None })
    }

    async fn has_updates(&self, _: &SeatView, _: &KnownVersions) -> bool {
        // The example claims them itself, so that it knows when a number begins.
        false
    }

    async fn chooses(&self, seat: &SeatView, _: &UpdatesAsked) -> UpdatesChosen {
        let holder = locked(&self.holder);
        let full = seat.terms.updates == Updates::Full;
        let wanted = holder.wanted.iter().map(|place| &holder.held[*place]);
        let updates = wanted.filter_map(|held| held.update(full, self.randomness)).collect();
        UpdatesChosen { resolved: Vec::new(), updates }
    }

    /// Gets what a resolver needs of every DID, and checks it.
    async fn signs(&self, _: &SeatView, board: &BoardToSign) -> Result<(), String> {
        let mut holder = locked(&self.holder);
        if let Some(map) = board.board.announcement() {
            let by_index: BTreeMap<&DidIndex, &Held> = holder.held.iter().map(|held| (&held.index, held)).collect();
            let is_there = board.entries.iter().all(|entry| {
                let held = by_index.get(&entry.index);
                held.is_some_and(|held| map.get(held.identity.did().as_str()) == entry.update.as_ref())
            });
            if !is_there {
                return Err("the map lacks an update".to_owned());
            }
        } else {
            for entry in &board.entries {
                let data = board.board.data(&entry.index, entry.nonce.as_ref(), entry.update.as_ref());
                data.ok_or("a proof is not valid")?;
            }
        }
        holder.checked = board.number;
        Ok(())
    }
}
