//! A board of an announcement in the past, as its holders serve it: the map to every client, and the path of any index.

use super::{board::BoardContent, response::Entry, terms::StandingBeacon};
use crate::{
    beacon::{CasAnnouncement, LeafPath, SmtPaths, SmtProof},
    hash::{DidIndex, SignalBytes, SmtHash},
    key::PublicKey,
};

/// What an announced board gives. The bytes are trusted as those of a board that was checked when it was announced.
#[derive(Clone, Debug)]
pub struct ArchivedBoard {
    /// The seats in KeySort order.
    seats: Vec<PublicKey>,
    /// The index of every registered DID with the place of its seat, in order.
    indexes: Vec<(DidIndex, u32)>,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    Cas(CasAnnouncement),
    Smt(SmtPaths),
}

/// The path of an index in an SMT cohort's announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedProof {
    /// The proof, without what only the seat has: the nonce of the leaf and the update.
    pub proof: SmtProof,
    /// The leaf; none if the index has none, which the proof then proves to every resolver.
    pub leaf: Option<SmtHash>,
}

impl ArchivedBoard {
    /// Reads the bytes of a board of a cohort with this beacon. `None` if they are none, or if two responses have one index.
    pub fn read(bytes: &[u8], beacon: StandingBeacon) -> Option<Self> {
        let content: BoardContent = serde_json::from_slice(bytes).ok()?;
        let data = match beacon {
            StandingBeacon::Cas => Data::Cas(content.announcement()),
            StandingBeacon::Smt => {
                let entries = content.responses.iter().flat_map(|response| &response.entries);
                let leaf = |entry: &Entry| match entry {
                    Entry::Smt { did_index, leaf } => Some((*did_index.as_bytes(), *leaf.as_bytes())),
                    Entry::Cas { .. } => None,
                };
                Data::Smt(SmtPaths::build(entries.filter_map(leaf).collect()).ok()?)
            }
        };
        let seats: Vec<PublicKey> = content.roster.iter().map(|listed| listed.seat).collect();
        let listed = |(place, indexes): (u32, Vec<DidIndex>)| indexes.into_iter().map(move |index| (index, place));
        let rosters = (0..).zip(content.roster.into_iter().map(|listed| listed.indexes));
        let mut indexes: Vec<(DidIndex, u32)> = rosters.flat_map(listed).collect();
        indexes.sort_unstable();
        Some(Self { seats, indexes, data })
    }

    /// The Signal Bytes that follow.
    pub fn signal(&self) -> SignalBytes {
        match &self.data {
            Data::Cas(announcement) => announcement.signal(),
            Data::Smt(paths) => SignalBytes::from_bytes(*paths.root()),
        }
    }

    /// The announcement map; none of an SMT cohort.
    pub const fn announcement(&self) -> Option<&CasAnnouncement> {
        match &self.data {
            Data::Cas(announcement) => Some(announcement),
            Data::Smt(_) => None,
        }
    }

    /// The seat that had registered an index.
    pub fn seat_of(&self, index: &DidIndex) -> Option<&PublicKey> {
        let place = self.indexes.binary_search_by_key(index, |(listed, _)| *listed).ok()?;
        self.seats.get(usize::try_from(self.indexes[place].1).ok()?)
    }

    /// The path of an index; none of a CAS cohort.
    pub fn proof(&self, index: &DidIndex) -> Option<ArchivedProof> {
        let Data::Smt(paths) = &self.data else { return None };
        let LeafPath { proof, leaf } = paths.path(index.as_bytes());
        let proof = SmtProof {
            id: SmtHash::from_bytes(*paths.root()),
            collapsed: SmtHash::from_bytes(proof.collapsed),
            hashes: proof.hashes.into_iter().map(SmtHash::from_bytes).collect(),
            nonce: None,
            update_id: None,
        };
        Some(ArchivedProof { proof, leaf: leaf.map(SmtHash::from_bytes) })
    }
}
