//! A seat's signed response to an opportunity (docs/standing.md, "Response").

use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};

use super::{
    board::BoardPlace,
    context::{CohortContext, length},
    opportunity::OpportunityKind,
    roster::Roster,
    terms::{StandingBeacon, StandingTerms},
};
use crate::{
    beacon::{smt_index_of, smt_leaf},
    hash::{DidIndex, DocumentHash, SmtHash},
    key::{PublicKey, SecretKey, Signature},
    message::Bytes,
};

const RESPONSE: &str = "btcr2-aggregation/standing/response/1";

/// One DID in a response. A response has entries of one kind, in order, each DID or index once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged, rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Entry {
    /// CAS: an update. DIDs without one are not listed.
    Cas {
        /// The DID.
        did: String,
        /// The hash of its signed update.
        update_hash: DocumentHash,
    },
    /// SMT: a leaf. Every index of the seat is listed.
    Smt {
        /// The index.
        did_index: DidIndex,
        /// Its leaf, always with a nonce (rule M-3): an update and none look alike.
        leaf: SmtHash,
    },
}

impl Entry {
    /// The leaf of an index in a response, with an update or without.
    pub fn leaf(did_index: DidIndex, nonce: &[u8; 32], update: Option<&DocumentHash>) -> Self {
        Self::Smt { did_index, leaf: SmtHash::from_bytes(smt_leaf(Some(nonce), update)) }
    }

    /// The index.
    pub fn index(&self) -> DidIndex {
        match self {
            Self::Cas { did, .. } => DidIndex::from_bytes(smt_index_of(did)),
            Self::Smt { did_index, .. } => *did_index,
        }
    }

    const fn beacon(&self) -> StandingBeacon {
        match self {
            Self::Cas { .. } => StandingBeacon::Cas,
            Self::Smt { .. } => StandingBeacon::Smt,
        }
    }
}

/// A seat's response. It is signed over all of it; the same bytes go on the board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Response {
    /// The seat.
    pub seat: PublicKey,
    /// The number of the opportunity.
    pub number: u64,
    /// The roster that it answers for.
    pub roster_hash: DocumentHash,
    /// Whether there is an update in it: no other party can see that of an SMT response.
    pub has_updates: bool,
    /// The entries.
    pub entries: Vec<Entry>,
    /// A public nonce for each input that the opportunity spends.
    pub nonce_contributions: Vec<Bytes<66>>,
    /// BIP-340, of the seat.
    pub signature: Signature,
}

/// What a seat signs in a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseContent {
    /// The number of the opportunity.
    pub number: u64,
    /// The roster that it answers for.
    pub roster_hash: DocumentHash,
    /// Whether there is an update in it.
    pub has_updates: bool,
    /// The entries, in order.
    pub entries: Vec<Entry>,
    /// A public nonce for each input.
    pub nonce_contributions: Vec<Bytes<66>>,
}

impl ResponseContent {
    /// The signed response.
    pub fn sign(self, context: &CohortContext, key: &SecretKey, rng: &mut dyn CryptoRng) -> Response {
        let Self { number, roster_hash, has_updates, entries, nonce_contributions } = self;
        let mut response = Response {
            seat: key.public_key(),
            number,
            roster_hash,
            has_updates,
            entries,
            nonce_contributions,
            signature: Signature::from_bytes(&[0; 64]),
        };
        response.signature = key.sign(response.hash(context).as_bytes(), rng);
        response
    }
}

/// Why a response does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseProblem {
    /// The key is not that of a seat.
    #[error("{0} is not a seat of this cohort")]
    NotASeat(PublicKey),
    /// It answers another number.
    #[error("it answers number {found}, not {expected}")]
    Number {
        /// The opportunity's.
        expected: u64,
        /// The response's.
        found: u64,
    },
    /// It answers for another roster.
    #[error("it answers for the roster {0}, which is not that of the opportunity")]
    RosterHash(DocumentHash),
    /// An entry is of another beacon type.
    #[error("entry {0} is not one of the cohort's beacon")]
    Kind(usize),
    /// The entries are not in order, or one occurs twice.
    #[error("entry {0} is not above the one before it")]
    Order(usize),
    /// An entry is about an index that the seat does not have.
    #[error("the index {0} is not registered to the seat")]
    NotRegistered(DidIndex),
    /// An SMT response lacks an index of the seat.
    #[error("the leaf of the seat's index {0} is missing")]
    LeafMissing(DidIndex),
    /// A CAS response claims updates and has none, or the other way round.
    #[error("hasUpdates contradicts the entries")]
    HasUpdates,
    /// Not one valid nonce for each input.
    #[error("{expected} valid nonces expected, one for each input")]
    Nonces {
        /// The inputs.
        expected: usize,
    },
    /// The signature is not the seat's over this response.
    #[error("the response is not signed by its seat")]
    Signature,
}

impl Response {
    /// What the seat has signed: the tagged hash of number, roster hash, `hasUpdates` as one byte, the entries (DID with its length, or
    /// index; then hash or leaf) and the nonces.
    pub fn hash(&self, context: &CohortContext) -> DocumentHash {
        let mut entries = Vec::with_capacity(self.entries.len() * 64);
        for entry in &self.entries {
            match entry {
                Entry::Cas { did, update_hash } => {
                    entries.extend(length(did.as_bytes()));
                    entries.extend(did.as_bytes());
                    entries.extend(update_hash.as_bytes());
                }
                Entry::Smt { did_index, leaf } => {
                    entries.extend(did_index.as_bytes());
                    entries.extend(leaf.as_bytes());
                }
            }
        }
        let nonces: Vec<u8> = self.nonce_contributions.iter().flat_map(|nonce| nonce.0).collect();
        let number = self.number.to_be_bytes();
        let parts: [&[u8]; 6] = [
            &self.seat.to_bytes(),
            &number,
            self.roster_hash.as_bytes(),
            &[u8::from(self.has_updates)],
            &entries,
            &nonces,
        ];
        DocumentHash::from_bytes(context.digest(RESPONSE, &parts))
    }

    /// Whether the response counts for an opportunity of that number with so many inputs. `roster_hash` is that of `roster`.
    ///
    /// # Errors
    /// The first [`ResponseProblem`].
    pub fn check(
        &self,
        terms: &StandingTerms,
        roster: &Roster,
        roster_hash: &DocumentHash,
        number: u64,
        inputs: usize,
    ) -> Result<(), ResponseProblem> {
        if roster.has_seat(&self.seat) {
            self.check_entries(terms, roster)?;
        }
        self.check_rest(roster, roster_hash, number, inputs)
    }

    fn check_rest(
        &self,
        roster: &Roster,
        roster_hash: &DocumentHash,
        number: u64,
        inputs: usize,
    ) -> Result<(), ResponseProblem> {
        if !roster.has_seat(&self.seat) {
            return Err(ResponseProblem::NotASeat(self.seat));
        }
        if self.number != number {
            return Err(ResponseProblem::Number { expected: number, found: self.number });
        }
        if self.roster_hash != *roster_hash {
            return Err(ResponseProblem::RosterHash(self.roster_hash));
        }
        let valid = |nonce: &Bytes<66>| musig2::PubNonce::from_bytes(&nonce.0).is_ok();
        if self.nonce_contributions.len() != inputs || !self.nonce_contributions.iter().all(valid) {
            return Err(ResponseProblem::Nonces { expected: inputs });
        }
        let digest = self.hash(roster.context());
        if self.seat.x_only().verify(digest.as_bytes(), &self.signature) {
            Ok(())
        } else {
            Err(ResponseProblem::Signature)
        }
    }

    /// Whether it counts in that place: a refresh or a roster announces nothing, and a response to it has no entries.
    ///
    /// # Errors
    /// The first [`ResponseProblem`].
    pub fn check_in(&self, place: BoardPlace<'_>) -> Result<(), ResponseProblem> {
        let BoardPlace { terms, roster, roster_hash, number, inputs, kind } = place;
        match kind {
            OpportunityKind::Announcement | OpportunityKind::Move => {
                self.check(terms, roster, roster_hash, number, inputs)
            }
            OpportunityKind::Refresh | OpportunityKind::Roster if self.entries.is_empty() && !self.has_updates => {
                self.check_rest(roster, roster_hash, number, inputs)
            }
            OpportunityKind::Refresh | OpportunityKind::Roster => Err(ResponseProblem::HasUpdates),
        }
    }

    fn check_entries(&self, terms: &StandingTerms, roster: &Roster) -> Result<(), ResponseProblem> {
        if let Some(at) = self.entries.iter().position(|entry| entry.beacon() != terms.beacon_type) {
            return Err(ResponseProblem::Kind(at));
        }
        // Entries of one kind are ordered by DID, or by index.
        fn key(entry: &Entry) -> &[u8] {
            match entry {
                Entry::Cas { did, .. } => did.as_bytes(),
                Entry::Smt { did_index, .. } => did_index.as_bytes(),
            }
        }
        if let Some(at) = self.entries.windows(2).position(|pair| key(&pair[0]) >= key(&pair[1])) {
            return Err(ResponseProblem::Order(at + 1));
        }
        match terms.beacon_type {
            StandingBeacon::Cas => {
                let foreign =
                    self.entries.iter().map(Entry::index).find(|index| roster.seat_of(index) != Some(&self.seat));
                if let Some(index) = foreign {
                    return Err(ResponseProblem::NotRegistered(index));
                }
                if self.has_updates == self.entries.is_empty() {
                    return Err(ResponseProblem::HasUpdates);
                }
            }
            StandingBeacon::Smt => {
                let mut entries = self.entries.iter().map(Entry::index);
                // Both are in order.
                for expected in roster.indexes(&self.seat) {
                    match entries.next() {
                        Some(found) if found == *expected => {}
                        Some(found) if found < *expected => return Err(ResponseProblem::NotRegistered(found)),
                        _ => return Err(ResponseProblem::LeafMissing(*expected)),
                    }
                }
                if let Some(index) = entries.next() {
                    return Err(ResponseProblem::NotRegistered(index));
                }
            }
        }
        Ok(())
    }
}
