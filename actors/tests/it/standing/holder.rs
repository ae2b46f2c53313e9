//! A controller of DIDs that makes a new update whenever it is asked, and stores what resolvers need.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use btcr2_aggregation_actors::standing::policy::{
    BoardToSign, Control, MissedBoard, RowWanted, SeatPolicy, SeatView, StandingOffer, UpdatesAsked, UpdatesChosen,
};
use btcr2_aggregation_protocol::{
    beacon::{BeaconData, SmtNonce, did_index, smt_leaf},
    cohort::standing::{
        ArchivedProof, CohortContext, Entry, SeatSeed, StandingPolicy, Updates,
        seat::{KnownVersions, OwnEntry, SeatUpdate},
    },
    did::Did,
    hash::{DidIndex, DocumentHash, SignalBytes, sha256},
    identity::Identity,
    jcs::document_hash,
    key::SecretKey,
};
use serde_json::json;

use super::world::{all_of, lenient, unproven};
use crate::common::NETWORK;

/// DIDs of each.
pub(super) const DIDS: usize = 2;

/// The controller of a seat. It makes another update whenever it is asked, unless one of that version may be announced.
pub(super) struct Holder {
    pub(super) dids: Vec<Did>,
    pub(super) state: Mutex<HolderState>,
    pub(super) seed: Arc<SeatSeed>,
}

#[derive(Default)]
pub(super) struct HolderState {
    pub(super) finals: BTreeMap<DidIndex, u64>,
    pub(super) wants: BTreeSet<DidIndex>,
    /// Every update that it has ever made.
    pub(super) made: BTreeMap<DocumentHash, (DidIndex, u64)>,
    /// What resolvers need of each announcement that the seat has signed or missed.
    pub(super) data: BTreeMap<(SignalBytes, DidIndex), BeaconData>,
}

impl Holder {
    pub(super) fn new(place: usize) -> Self {
        let did = |at: usize| {
            let key = SecretKey::from_bytes(&sha256(format!("did {place} {at}").as_bytes())).unwrap();
            Identity::from_key(key, NETWORK).did().clone()
        };
        let seed = Arc::new(SeatSeed::from_bytes(sha256(format!("seat {place}").as_bytes())));
        Self { dids: (0..DIDS).map(did).collect(), state: Mutex::default(), seed }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HolderState> {
        self.state.lock().unwrap()
    }

    pub(super) fn wants(&self, at: usize) {
        let index = did_index(&self.dids[at]);
        self.lock().wants.insert(index);
    }

    fn keep(&self, signal: SignalBytes, index: DidIndex, data: Option<BeaconData>) {
        let data = data.expect("the board proves what the seat has put on it");
        match &data {
            BeaconData::Cas(map) => assert_eq!(map.signal(), signal),
            BeaconData::Smt(proof) => {
                proof.verify(index.as_bytes()).unwrap();
                assert_eq!(proof.id.as_bytes(), signal.as_bytes());
            }
            other => panic!("{other:?}"),
        }
        self.lock().data.insert((signal, index), data);
    }

    /// What resolvers need of a board that the seat has not signed: it may have responded all the same.
    fn data_of(&self, missed: &MissedBoard, index: &DidIndex) -> Option<BeaconData> {
        if let Some(map) = missed.board.announcement() {
            return Some(BeaconData::Cas(map.clone()));
        }
        let ArchivedProof { mut proof, leaf } = missed.board.proof(index)?;
        if let Some(leaf) = leaf {
            let (_, nonce) = missed.nonces.iter().find(|(of, _)| of == index)?;
            let is = |update: Option<&DocumentHash>| smt_leaf(Some(nonce), update) == *leaf.as_bytes();
            proof.update_id = self.lock().made.keys().find(|hash| is(Some(hash))).copied();
            assert!(is(proof.update_id.as_ref()), "a leaf that its controller has made");
            proof.nonce = Some(SmtNonce::from(nonce.as_slice()));
        }
        Some(BeaconData::Smt(proof))
    }

    /// What the seat has put under an index in an announcement: the update, if it has one.
    pub(super) fn announced(
        &self,
        context: &CohortContext,
        number: u64,
        entry: &Entry,
    ) -> Option<(DidIndex, u64, DocumentHash)> {
        let state = self.lock();
        let of = |hash: &DocumentHash| {
            let (index, version) = state.made.get(hash).expect("an update that its controller has made");
            assert_eq!(*index, entry.index(), "an update of another DID");
            (*index, *version, *hash)
        };
        match entry {
            Entry::Cas { update_hash, .. } => Some(of(update_hash)),
            Entry::Smt { did_index, leaf } => {
                let nonce = self.seed.leaf_nonce(&context.service, &context.beacon_address, number, did_index);
                let is = |update: Option<&DocumentHash>| smt_leaf(Some(&nonce), update) == *leaf.as_bytes();
                if is(None) {
                    return None;
                }
                let hash = state.made.keys().find(|hash| is(Some(hash)));
                Some(of(hash.expect("a leaf that its controller has made")))
            }
        }
    }
}

#[async_trait]
impl SeatPolicy for Holder {
    async fn joins(&self, _: &StandingOffer) -> Result<(), String> {
        Ok(())
    }

    fn standing_policy(&self) -> StandingPolicy {
        lenient()
    }

    async fn registers(&self, _: &SeatView) -> Vec<RowWanted> {
        all_of(&self.dids)
    }

    async fn proves(&self, _: &Did, _: &[u8; 32]) -> Option<Control> {
        Some(unproven())
    }

    async fn has_updates(&self, _: &SeatView, _: &KnownVersions) -> bool {
        !self.lock().wants.is_empty()
    }

    async fn chooses(&self, seat: &SeatView, asked: &UpdatesAsked) -> UpdatesChosen {
        let mut state = self.lock();
        let mut chosen = UpdatesChosen::default();
        for did in &self.dids {
            let index = did_index(did);
            let version = state.finals.get(&index).copied().unwrap_or(1) + 1;
            chosen.resolved.push((index, version - 1));
            if !state.wants.contains(&index) || asked.announced.contains(&(index, version)) {
                continue;
            }
            let committed = asked.committed.iter().find(|(of, to, _)| (*of, *to) == (index, version));
            let mut salt = state.made.len();
            let update = |salt: usize| json!({ "did": did, "targetVersionId": version, "salt": salt });
            if let Some((.., hash)) = committed {
                salt = (0..salt).find(|salt| document_hash(&update(*salt)).unwrap() == *hash).unwrap();
            }
            let update = update(salt);
            let hash = document_hash(&update).unwrap();
            state.made.insert(hash, (index, version));
            let full = (seat.terms.updates == Updates::Full).then_some(update);
            chosen.updates.push(SeatUpdate { did: did.clone(), version, hash, full });
        }
        chosen
    }

    async fn signs(&self, _: &SeatView, board: &BoardToSign) -> Result<(), String> {
        for OwnEntry { index, nonce, update } in &board.entries {
            self.keep(board.board.signal(), *index, board.board.data(index, nonce.as_ref(), update.as_ref()));
        }
        Ok(())
    }

    async fn missed(&self, _: &SeatView, missed: &MissedBoard) -> Result<(), String> {
        for did in &self.dids {
            let index = did_index(did);
            self.keep(missed.board.signal(), index, self.data_of(missed, &index));
        }
        Ok(())
    }
}
