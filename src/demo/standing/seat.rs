//! The controller of one seat's DIDs.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::super::{DemoError, NETWORK, internal};
use crate::{
    actors::{
        runtime::Randomness,
        standing::policy::{
            BoardToSign, Control, RowWanted, SeatPolicy, SeatView, StandingOffer, UpdatesAsked, UpdatesChosen,
        },
    },
    protocol::{
        beacon::{BeaconData, did_index},
        cohort::standing::{
            RowAction, StandingPolicy, Updates,
            message::ControlProof,
            seat::{KnownVersions, SeatUpdate},
        },
        did::Did,
        hash::{DidIndex, SignalBytes},
        identity::Identity,
        key::SecretKey,
        update::{build_update, sign_update},
    },
};

/// A DID of the seat.
struct Controlled {
    identity: Identity,
    index: DidIndex,
    document: Value,
    version: u64,
    /// The update that is wanted, and the document that it leads to.
    next: Option<(SeatUpdate, Value)>,
}

struct State {
    controlled: Vec<Controlled>,
    /// Where the next updates begin.
    place: usize,
    refuses: bool,
    /// By number: how many updates this seat has proofs of, or none if one is missing; and the signal.
    proven: BTreeMap<u64, (Option<usize>, SignalBytes)>,
}

/// A seat's decisions.
pub(super) struct DemoSeat {
    state: Mutex<State>,
    is_silent: watch::Sender<bool>,
    randomness: Randomness,
}

impl DemoSeat {
    /// Seat `number` with so many DIDs.
    pub(super) fn new(number: usize, dids: usize, randomness: Randomness) -> Result<Arc<Self>, DemoError> {
        let controlled = (0..dids)
            .map(|at| {
                let mut rng = randomness.for_actor(&format!("did {number} {at}"));
                let identity = Identity::from_key(SecretKey::generate(&mut rng), NETWORK);
                let document = identity.initial_document().map_err(internal)?;
                let index = did_index(identity.did());
                Ok(Controlled { identity, index, document, version: 1, next: None })
            })
            .collect::<Result<_, DemoError>>()?;
        let state = State { controlled, place: 0, refuses: false, proven: BTreeMap::new() };
        Ok(Arc::new(Self { state: Mutex::new(state), is_silent: watch::Sender::new(false), randomness }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wants updates of the next `updates` DIDs, unless they are wanted already.
    pub(super) fn begin(&self, updates: usize, is_silent: bool, refuses: bool) {
        let mut state = self.lock();
        state.refuses = refuses;
        let total = state.controlled.len();
        if !is_silent {
            for _ in 0..updates {
                let place = state.place % total;
                state.place += 1;
                let controlled = &mut state.controlled[place];
                if controlled.next.is_none() {
                    controlled.next = controlled.update(self.randomness);
                }
            }
        }
        drop(state);
        self.is_silent.send_replace(is_silent);
    }

    /// It does not refuse any more.
    pub(super) fn signs_again(&self) {
        self.lock().refuses = false;
    }

    /// How many updates of a number it has proofs of, against the signal that was announced: `None` if it has not signed the number, and the
    /// inner `None` if a proof is missing.
    pub(super) fn proven(&self, number: u64, signal: Option<&SignalBytes>) -> Option<Option<usize>> {
        let state = self.lock();
        let (proven, of) = state.proven.get(&number)?;
        Some(proven.filter(|_| Some(of) == signal))
    }

    /// What was announced is final.
    pub(super) fn settled(&self) {
        let mut state = self.lock();
        for controlled in &mut state.controlled {
            if let Some((_, document)) = controlled.next.take() {
                controlled.document = document;
                controlled.version += 1;
            }
        }
    }
}

impl Controlled {
    fn update(&self, randomness: Randomness) -> Option<(SeatUpdate, Value)> {
        let did = self.identity.did();
        let version = self.version + 1;
        let patch =
            json!([{ "op": "add", "path": "/alsoKnownAs", "value": [format!("https://example.org/{version}")] }]);
        let update = build_update(&self.document, self.version, patch).ok()?;
        let document = update.target_document().clone();
        let mut rng = randomness.for_actor(&format!("update {did} {version}"));
        let method = self.identity.verification_method();
        let signed = sign_update(&update, did, method, self.identity.secret_key(), &mut rng).ok()?;
        let full = Some(signed.value().clone());
        Some((SeatUpdate { did: did.clone(), version, hash: *signed.hash(), full }, document))
    }
}

#[async_trait]
impl SeatPolicy for DemoSeat {
    async fn joins(&self, _: &StandingOffer) -> Result<(), String> {
        Ok(())
    }

    fn standing_policy(&self) -> StandingPolicy {
        // A demo of two has a fallback of one.
        StandingPolicy { least_threshold: (1, 2), least_seconds_to_answer: 1, ..StandingPolicy::default() }
    }

    async fn registers(&self, _: &SeatView) -> Vec<RowWanted> {
        let row = |controlled: &Controlled| RowWanted {
            did: controlled.identity.did().clone(),
            action: RowAction::Register,
        };
        self.lock().controlled.iter().map(row).collect()
    }

    async fn proves(&self, did: &Did, digest: &[u8; 32]) -> Option<Control> {
        let identity = {
            let state = self.lock();
            state.controlled.iter().find(|controlled| controlled.identity.did() == did)?.identity.clone()
        };
        let signature = identity.secret_key().sign(digest, &mut self.randomness.for_actor(did.as_str()));
        let proof = ControlProof { verification_method: identity.verification_method().to_owned(), signature };
        Some(Control { proof, genesis_document: None, sidecar: None })
    }

    async fn has_updates(&self, _: &SeatView, known: &KnownVersions) -> bool {
        let needs_number = |controlled: &Controlled| {
            let next = controlled.next.as_ref();
            next.is_some_and(|(update, _)| known.needs_number(&controlled.index, update.version))
        };
        !*self.is_silent.borrow() && self.lock().controlled.iter().any(needs_number)
    }

    async fn chooses(&self, seat: &SeatView, asked: &UpdatesAsked) -> UpdatesChosen {
        // Its sender is in `self`.
        let _ = self.is_silent.subscribe().wait_for(|is_silent| !is_silent).await;
        let state = self.lock();
        let announced = |update: &SeatUpdate, index: &DidIndex| asked.announced.contains(&(*index, update.version));
        let updates = state.controlled.iter().filter_map(|controlled| {
            let (update, _) = controlled.next.as_ref()?;
            let full = update.full.clone().filter(|_| seat.terms.updates == Updates::Full);
            (!announced(update, &controlled.index)).then(|| SeatUpdate { full, ..update.clone() })
        });
        let resolved = state.controlled.iter().map(|controlled| (controlled.index, controlled.version));
        UpdatesChosen {
            resolved: resolved.filter(|(_, version)| *version > 1).collect(),
            updates: updates.collect(),
        }
    }

    async fn signs(&self, _: &SeatView, board: &BoardToSign) -> Result<(), String> {
        let mut state = self.lock();
        if state.refuses {
            return Err("this seat refuses once, as the demo was asked".to_owned());
        }
        let signal = board.board.signal();
        let did_of = |index: &DidIndex| {
            state
                .controlled
                .iter()
                .find(|one| one.index == *index)
                .map(|one| one.identity.did().as_str().to_owned())
        };
        let holds = |entry: &crate::protocol::cohort::standing::seat::OwnEntry| {
            let data = board.board.data(&entry.index, entry.nonce.as_ref(), entry.update.as_ref());
            match data {
                Some(BeaconData::Smt(proof)) => proof.id.as_bytes() == signal.as_bytes(),
                Some(BeaconData::Cas(map)) => {
                    let announced = did_of(&entry.index).and_then(|did| map.get(&did).copied());
                    announced.is_some() && announced == entry.update && map.signal() == signal
                }
                _ => false,
            }
        };
        let updated = board.entries.iter().filter(|entry| entry.update.is_some());
        let proven = updated.clone().all(holds).then(|| updated.count());
        state.proven.insert(board.number, (proven, signal));
        Ok(())
    }
}
