//! The whole Sidecar Data of a DID (did:btcr2, "Sidecar Data"): everything beyond the chain that a resolver needs, from
//! all cohorts.
//!
//! It includes data that was approved but not announced. A resolver looks everything up by hash: it finds what the
//! chain announces, and ignores the rest.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Recovered, RecoveredKind, VaultContents, target};
use crate::{
    actors::state::vault::VaultEntry,
    protocol::{beacon::BeaconData, did::Did, sidecar::plain_data, update::SignedUpdate},
};

/// A DID's Sidecar Data.
#[derive(Clone, Debug, PartialEq)]
pub struct Sidecar {
    /// `@context`, and if present: `genesisDocument`, `updates` by version, `casUpdates`, `smtProofs`.
    pub data: Value,
    /// The versions of the document, below the latest one, to which no update leads. They were announced in another
    /// way, e.g. by a singleton beacon, and their updates must be added.
    pub missing_versions: Vec<u64>,
}

/// The Sidecar Data from `entries`, which must belong to one DID.
pub fn sidecar<'a>(entries: impl IntoIterator<Item = &'a VaultEntry>) -> Sidecar {
    of(entries, &[], [])
}

impl VaultContents {
    /// The Sidecar Data of a DID: of its entries, of the updates that were prepared without a cohort, and of what was recovered.
    pub fn sidecar(&self, did: &Did) -> Sidecar {
        let prepared: Vec<_> =
            self.prepared.iter().filter(|update| target(update).is_none_or(|of| of == *did)).cloned().collect();
        of(self.of(did), &prepared, self.recovered.iter().filter(|recovered| recovered.did == *did))
    }
}

fn of<'a>(
    entries: impl IntoIterator<Item = &'a VaultEntry>,
    prepared: &'a [SignedUpdate],
    recovered: impl IntoIterator<Item = &'a Recovered>,
) -> Sidecar {
    let mut genesis_document = None;
    let mut updates: Vec<&SignedUpdate> = prepared.iter().collect();
    let (mut cas, mut smt, mut other) = (Vec::new(), Vec::new(), Vec::new());
    for entry in entries {
        // Its hash is the DID, so all copies are equal.
        genesis_document = genesis_document.or(entry.genesis_document.as_ref());
        updates.extend(&entry.record.update);
        let list = match &entry.record.data {
            BeaconData::Cas(_) => &mut cas,
            BeaconData::Smt(_) => &mut smt,
            BeaconData::Other(_) => &mut other,
        };
        let data = plain_data(&entry.record.data);
        if !list.contains(&data) {
            list.push(data);
        }
    }
    for Recovered { kind, data, .. } in recovered {
        let list = match kind {
            RecoveredKind::GenesisDocument => {
                genesis_document = genesis_document.or(Some(data));
                continue;
            }
            RecoveredKind::CasUpdate => &mut cas,
            RecoveredKind::SmtProof => &mut smt,
            // It is among the prepared ones too.
            RecoveredKind::Update => continue,
        };
        if !list.contains(data) {
            list.push(data.clone());
        }
    }
    updates.sort_by_key(|update| (version(update), update.hash()));
    updates.dedup_by_key(|update| update.hash());
    let versions: BTreeSet<u64> = updates.iter().filter_map(|update| version(update)).collect();
    let missing_versions = (2..versions.last().copied().unwrap_or(0)).filter(|v| !versions.contains(v)).take(100);
    let missing_versions = missing_versions.collect();

    let mut data = Map::new();
    data.insert("@context".to_owned(), json!("https://btcr2.dev/context/v1"));
    if let Some(document) = genesis_document {
        data.insert("genesisDocument".to_owned(), document.clone());
    }
    let updates = updates.into_iter().map(|update| update.value().clone()).collect();
    for (name, list) in [("updates", updates), ("casUpdates", cas), ("smtProofs", smt), ("beaconData", other)] {
        if !list.is_empty() {
            data.insert(name.to_owned(), Value::Array(list));
        }
    }
    Sidecar { data: Value::Object(data), missing_versions }
}

fn version(update: &SignedUpdate) -> Option<u64> {
    update.value()["targetVersionId"].as_u64()
}
