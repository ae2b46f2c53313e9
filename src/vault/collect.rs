//! The data that a resolution used and a vault does not have: what `vault recover` stores. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

use super::{Recovered, RecoveredKind};
use crate::protocol::{
    beacon::{SmtProof, smt_index},
    did::{Did, Genesis},
    hash::{DocumentHash, SmtHash},
    resolution::{BeaconKind, BeaconSignal, Event, Finding},
    update::SignedUpdate,
};

/// Documents by their hash, and proofs by their root, as they are at hand.
pub trait AtHand {
    /// The genesis document, update or CAS Announcement with that hash.
    fn document(&self, kind: Wanted, hash: &DocumentHash) -> Option<Value>;

    /// The SMT proofs with that root.
    fn proofs(&self, root: &SmtHash) -> Vec<Value>;
}

/// What is looked up by a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A genesis document.
    Genesis,
    /// An update.
    Update,
    /// A CAS Announcement.
    Announcement,
}

/// What was found for signals, each document once.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// Updates, by their hash.
    pub updates: BTreeMap<DocumentHash, SignedUpdate>,
    /// The other documents.
    pub documents: Vec<Recovered>,
}

impl Collected {
    /// How many documents there are.
    pub fn len(&self) -> usize {
        self.updates.len() + self.documents.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The data of every signal of `history` whose meaning the resolver could read, and the genesis document, unless their hash is
/// among those that are `held`. The resolver has verified them by their hashes; an SMT proof is verified here again, for files may
/// have those of other members too.
pub fn collect<'a>(
    did: &Did,
    history: impl IntoIterator<Item = &'a Event>,
    held: &BTreeSet<[u8; 32]>,
    at_hand: &impl AtHand,
) -> Collected {
    let mut collected = Collected::default();
    let mut known = held.clone();
    if let Genesis::External(hash) = did.genesis()
        && known.insert(*hash)
        && let Some(data) = at_hand.document(Wanted::Genesis, &DocumentHash::from_bytes(*hash))
    {
        collected.documents.push(Recovered { did: did.clone(), kind: RecoveredKind::GenesisDocument, data });
    }
    for event in history {
        let Event::Signal { signal, finding, .. } = event else { continue };
        let BeaconSignal { beacon, bytes, .. } = &**signal;
        let update = match finding {
            Finding::Update { hash, .. } => Some(hash),
            Finding::NoEntry => None,
            // An announcement that was found is worth having, also where the update is missing.
            Finding::Missing { .. } => None,
            _ => continue,
        };
        if beacon.kind != BeaconKind::Singleton && !known.contains(bytes.as_bytes()) {
            let found = match beacon.kind {
                BeaconKind::Smt => at_hand
                    .proofs(&SmtHash::from_bytes(*bytes.as_bytes()))
                    .into_iter()
                    .find(|proof| is_of(did, proof))
                    .map(|data| (RecoveredKind::SmtProof, data)),
                _ => at_hand
                    .document(Wanted::Announcement, &DocumentHash::from_bytes(*bytes.as_bytes()))
                    .map(|data| (RecoveredKind::CasUpdate, data)),
            };
            if let Some((kind, data)) = found {
                known.insert(*bytes.as_bytes());
                collected.documents.push(Recovered { did: did.clone(), kind, data });
            }
        }
        if let Some(hash) = update
            && known.insert(*hash.as_bytes())
            && let Some(update) =
                at_hand.document(Wanted::Update, hash).and_then(|value| SignedUpdate::from_value(value).ok())
        {
            collected.updates.insert(*hash, update);
        }
    }
    collected
}

/// Whether a proof is the DID's own, and valid.
fn is_of(did: &Did, proof: &Value) -> bool {
    SmtProof::deserialize(proof).is_ok_and(|proof| proof.verify(&smt_index(did)).is_ok())
}
