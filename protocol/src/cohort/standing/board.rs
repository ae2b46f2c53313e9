//! The board of an opportunity: the roster and all signed responses, the same bytes for every seat, named by their SHA-256; and the map or
//! the tree that follows from it (docs/standing.md, "Confirmation request").
//!
//! No party has to be trusted for it: every holder of the board rebuilds the signal.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    opportunity::OpportunityKind,
    response::{Entry, Response, ResponseProblem},
    roster::Roster,
    terms::{StandingBeacon, StandingTerms},
};
use crate::{
    beacon::{BeaconData, CasAnnouncement, RawProof, SmtNonce, SmtProof, SparseMerkleTree, smt_leaf, zero_hash},
    hash::{DidIndex, DocumentHash, SignalBytes, SmtHash, sha256},
    id::CohortId,
    key::PublicKey,
};

/// The seats and their indexes at one opportunity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SeatIndexes {
    /// The seat.
    pub seat: PublicKey,
    /// Its indexes, in order.
    pub indexes: Vec<DidIndex>,
}

/// What is written on a board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BoardContent {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The number of the opportunity.
    pub number: u64,
    /// The hash of the roster.
    pub roster_hash: DocumentHash,
    /// The roster, in KeySort order of the seats.
    pub roster: Vec<SeatIndexes>,
    /// The responses, in KeySort order of their seats. A seat without one is absent.
    pub responses: Vec<Response>,
}

impl BoardContent {
    /// What a resolver needs of this announcement for an index without a leaf or an entry: of an absent seat, of a former DID. `None` if it has
    /// one, or if two responses have one index.
    pub fn without_leaf(&self, beacon: StandingBeacon, index: &DidIndex) -> Option<BeaconData> {
        let mut entries = self.responses.iter().flat_map(|response| &response.entries);
        if entries.any(|entry| entry.index() == *index) {
            return None;
        }
        match beacon {
            StandingBeacon::Cas => Some(BeaconData::Cas(self.announcement())),
            StandingBeacon::Smt => {
                let RawProof { collapsed, hashes } = absence(&self.responses, index)?;
                let root = self.signal(beacon)?;
                Some(BeaconData::Smt(SmtProof {
                    id: SmtHash::from_bytes(*root.as_bytes()),
                    collapsed: SmtHash::from_bytes(collapsed),
                    hashes: hashes.into_iter().map(SmtHash::from_bytes).collect(),
                    nonce: None,
                    update_id: None,
                }))
            }
        }
    }

    /// The announcement map of a CAS cohort's responses; an empty one for another cohort.
    pub fn announcement(&self) -> CasAnnouncement {
        announcement(&self.responses)
    }

    /// The Signal Bytes that follow from the responses; `None` if two of them have one index. Nothing is checked but that: for a seat
    /// that was absent, and compares it with what was announced.
    pub fn signal(&self, beacon: StandingBeacon) -> Option<SignalBytes> {
        match beacon {
            StandingBeacon::Cas => Some(self.announcement().signal()),
            StandingBeacon::Smt => {
                let tree = SparseMerkleTree::build(leaves(&self.responses)).ok()?;
                Some(SignalBytes::from_bytes(tree.root))
            }
        }
    }
}

/// A board: the bytes that every seat gets, and what they say. Only bytes that are a board of a cohort's own roster, with responses that count,
/// become one.
#[derive(Clone, Debug)]
pub struct Board {
    bytes: Arc<Vec<u8>>,
    hash: DocumentHash,
    content: BoardContent,
    data: BoardData,
}

/// What follows from the responses.
#[derive(Clone, Debug)]
enum BoardData {
    Cas(CasAnnouncement),
    /// The tree of all registered indexes that have a leaf, and the place of each.
    Smt {
        tree: SparseMerkleTree,
        places: BTreeMap<DidIndex, usize>,
    },
}

/// Why bytes are not the board that a seat may sign for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoardProblem {
    /// Bytes of another hash.
    #[error("the board has the hash {found}, not {expected}")]
    Hash {
        /// The announced one.
        expected: DocumentHash,
        /// That of the bytes.
        found: DocumentHash,
    },
    /// Not the JSON of a board.
    #[error("not a board: {0}")]
    Json(String),
    /// The board of another cohort or number.
    #[error("the board is of number {0} or of another cohort")]
    Place(u64),
    /// The roster on it is not the one that the reader knows.
    #[error("the roster on the board is not the cohort's")]
    Roster,
    /// Two responses of one seat, or not in order.
    #[error("the responses are not in order, or one seat has two")]
    Order,
    /// A response does not count.
    #[error("the response of seat {seat}: {problem}")]
    Response {
        /// The seat.
        seat: PublicKey,
        /// Why.
        problem: Box<ResponseProblem>,
    },
}

/// The place of a board: what a reader knows of its opportunity.
#[derive(Clone, Copy, Debug)]
pub struct BoardPlace<'a> {
    /// The terms of the cohort.
    pub terms: &'a StandingTerms,
    /// The roster at the opening.
    pub roster: &'a Roster,
    /// Its hash.
    pub roster_hash: &'a DocumentHash,
    /// The number of the opportunity.
    pub number: u64,
    /// How many inputs it spends.
    pub inputs: usize,
    /// What its transaction does.
    pub kind: OpportunityKind,
}

impl Board {
    /// The board of these responses, by a service that has [checked](Response::check) each of them.
    pub fn of(place: BoardPlace<'_>, responses: impl IntoIterator<Item = Response>) -> Self {
        let mut responses: Vec<Response> = responses.into_iter().collect();
        responses.sort_by_key(|response| response.seat);
        let content = BoardContent {
            cohort_id: place.roster.context().cohort_id.clone(),
            number: place.number,
            roster_hash: *place.roster_hash,
            roster: listed(place.roster),
            responses,
        };
        let bytes = serde_json::to_vec(&content).expect("keys, hashes, numbers and texts serialize");
        let hash = DocumentHash::from_bytes(sha256(&bytes));
        let data = BoardData::of(place.terms.beacon_type, &content.responses);
        Self { bytes: Arc::new(bytes), hash, content, data }
    }

    /// Reads the bytes of a board and checks all of it: its hash, the roster, every response.
    ///
    /// # Errors
    /// [`BoardProblem`].
    pub fn read(
        bytes: &Arc<Vec<u8>>,
        expected: &DocumentHash,
        place: BoardPlace<'_>,
    ) -> Result<Self, BoardProblem> {
        let hash = DocumentHash::from_bytes(sha256(bytes));
        if hash != *expected {
            return Err(BoardProblem::Hash { expected: *expected, found: hash });
        }
        let content: BoardContent =
            serde_json::from_slice(bytes).map_err(|error| BoardProblem::Json(error.to_string()))?;
        if content.number != place.number || content.cohort_id != place.roster.context().cohort_id {
            return Err(BoardProblem::Place(content.number));
        }
        if content.roster_hash != *place.roster_hash || content.roster != listed(place.roster) {
            return Err(BoardProblem::Roster);
        }
        if content.responses.windows(2).any(|pair| pair[0].seat >= pair[1].seat) {
            return Err(BoardProblem::Order);
        }
        for response in &content.responses {
            response
                .check_in(place)
                .map_err(|problem| BoardProblem::Response { seat: response.seat, problem: Box::new(problem) })?;
        }
        let data = BoardData::of(place.terms.beacon_type, &content.responses);
        Ok(Self { bytes: Arc::clone(bytes), hash, content, data })
    }

    /// The bytes.
    pub const fn bytes(&self) -> &Arc<Vec<u8>> {
        &self.bytes
    }

    /// SHA-256 of the bytes.
    pub const fn hash(&self) -> &DocumentHash {
        &self.hash
    }

    /// The number of the opportunity.
    pub const fn number(&self) -> u64 {
        self.content.number
    }

    /// The responses, in KeySort order of their seats.
    pub fn responses(&self) -> &[Response] {
        &self.content.responses
    }

    /// The response of a seat.
    pub fn response(&self, seat: &PublicKey) -> Option<&Response> {
        let at = self.content.responses.binary_search_by_key(seat, |response| response.seat);
        at.ok().map(|at| &self.content.responses[at])
    }

    /// Whether every seat has responded.
    pub fn is_complete(&self) -> bool {
        // Every response is that of another seat of the roster.
        self.content.responses.len() == self.content.roster.len()
    }

    /// The seats without a response.
    pub fn absent(&self) -> impl Iterator<Item = &PublicKey> {
        self.content.roster.iter().map(|listed| &listed.seat).filter(|seat| self.response(seat).is_none())
    }

    /// Whether any seat has an update. Without one nothing is announced.
    pub fn has_updates(&self) -> bool {
        self.content.responses.iter().any(|response| response.has_updates)
    }

    /// The Signal Bytes that follow.
    pub fn signal(&self) -> SignalBytes {
        match &self.data {
            BoardData::Cas(announcement) => announcement.signal(),
            BoardData::Smt { tree, .. } => SignalBytes::from_bytes(tree.root),
        }
    }

    /// The CAS Announcement; none of an SMT cohort.
    pub const fn announcement(&self) -> Option<&CasAnnouncement> {
        match &self.data {
            BoardData::Cas(announcement) => Some(announcement),
            BoardData::Smt { .. } => None,
        }
    }

    /// What a resolver needs of this announcement for the DID with `index`. For an SMT cohort `nonce` and `update` are those that
    /// the seat has put into the leaf, both absent for an index without a leaf; `None` if they are not those of the leaf.
    pub fn data(
        &self,
        index: &DidIndex,
        nonce: Option<&[u8; 32]>,
        update: Option<&DocumentHash>,
    ) -> Option<BeaconData> {
        let (tree, places) = match &self.data {
            BoardData::Cas(announcement) => return Some(BeaconData::Cas(announcement.clone())),
            BoardData::Smt { tree, places } => (tree, places),
        };
        let leaf = smt_leaf(nonce.map(<[u8; 32]>::as_slice), update);
        let RawProof { collapsed, hashes } = match places.get(index) {
            Some(place) => tree.proofs.get(*place)?.clone(),
            None => absence(&self.content.responses, index)?,
        };
        let proof = SmtProof {
            id: SmtHash::from_bytes(tree.root),
            collapsed: SmtHash::from_bytes(collapsed),
            hashes: hashes.into_iter().map(SmtHash::from_bytes).collect(),
            nonce: nonce.map(|nonce| SmtNonce::from(nonce.as_slice())),
            update_id: update.copied(),
        };
        (proof.root_for(index.as_bytes(), &leaf) == Ok(proof.id)).then_some(BeaconData::Smt(proof))
    }
}

/// The proof that an index has no leaf: of an absent seat, of a former DID, of any other (rule M-11).
fn absence(responses: &[Response], index: &DidIndex) -> Option<RawProof> {
    let mut leaves = leaves(responses);
    leaves.push((*index.as_bytes(), zero_hash(0)?));
    SparseMerkleTree::build(leaves).ok()?.proofs.pop()
}

fn listed(roster: &Roster) -> Vec<SeatIndexes> {
    roster
        .seats()
        .map(|seat| SeatIndexes { seat: *seat, indexes: roster.indexes(seat).copied().collect() })
        .collect()
}

fn announcement(responses: &[Response]) -> CasAnnouncement {
    let updated = |entry: &Entry| match entry {
        Entry::Cas { did, update_hash } => Some((did.clone(), *update_hash)),
        Entry::Smt { .. } => None,
    };
    responses.iter().flat_map(|response| response.entries.iter().filter_map(updated)).collect()
}

fn leaves(responses: &[Response]) -> Vec<([u8; 32], [u8; 32])> {
    let leaf = |entry: &Entry| match entry {
        Entry::Smt { did_index, leaf } => Some((*did_index.as_bytes(), *leaf.as_bytes())),
        Entry::Cas { .. } => None,
    };
    responses.iter().flat_map(|response| response.entries.iter().filter_map(leaf)).collect()
}

impl BoardData {
    /// Of responses that were checked: an index is in one of them at most.
    fn of(beacon: StandingBeacon, responses: &[Response]) -> Self {
        match beacon {
            StandingBeacon::Cas => Self::Cas(announcement(responses)),
            StandingBeacon::Smt => {
                let leaves = leaves(responses);
                let places = leaves.iter().enumerate().map(|(at, (index, _))| (DidIndex::from_bytes(*index), at));
                let places = places.collect();
                let tree = SparseMerkleTree::build(leaves)
                    .expect("an index is registered to one seat, which lists it once");
                Self::Smt { tree, places }
            }
        }
    }
}
