//! What happened in a resolution, in its order: for people who want to know why, and for programs that look for what
//! is missing.

use std::{fmt, sync::Arc};

use bitcoin::Txid;
use serde::{Serialize, Serializer};

use super::{
    error::{Missing, MissingData},
    signal::{Beacon, BeaconSignal, UnusableBeacon},
};
use crate::hash::DocumentHash;

/// Where data came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Source {
    /// It follows from the identifier.
    Identifier,
    /// The Sidecar Data.
    Sidecar,
    /// The caller, who names it so.
    Caller(Arc<str>),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Identifier => "identifier",
            Self::Sidecar => "sidecar",
            Self::Caller(name) => name,
        })
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a signal does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Ignored {
    /// It has fewer confirmations than are asked for, or none (rule R-2).
    TooFewConfirmations,
    /// Its block is below that of the update that was last applied when its address was scanned (rule R-4).
    BelowHeight,
}

/// A signal that does not count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct IgnoredSignal {
    /// Its transaction.
    pub txid: Txid,
    /// The height of its block.
    pub height: Option<u32>,
    /// Its confirmations.
    pub confirmations: Option<u32>,
    /// Why it does not count.
    pub reason: Ignored,
}

/// What a signal announces for the DID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Finding {
    /// Nothing: the announcement has no entry of the DID, or its SMT leaf has no update.
    NoEntry,
    /// This update.
    #[serde(rename_all = "camelCase")]
    Update {
        /// Its hash.
        hash: DocumentHash,
        /// The version to which it leads.
        version: u64,
    },
    /// Unknown: data is missing.
    Missing {
        /// What is missing.
        missing: MissingData,
    },
    /// What it announces is invalid.
    Invalid {
        /// Why, in words.
        reason: String,
    },
}

/// Something that happened. The serialized form has the name in `event`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
#[non_exhaustive]
pub enum Event {
    /// The first document was established.
    InitialDocument {
        /// Where the genesis document came from.
        source: Source,
    },
    /// A beacon was left out: its `serviceEndpoint` is not an address of the DID's network.
    Unusable {
        /// The round of discovery whose updates made the document that lists it; 0 for the first document.
        round: u32,
        /// The service.
        beacon: UnusableBeacon,
    },
    /// An address was scanned.
    Scanned {
        /// The round of discovery, 1 the first.
        round: u32,
        /// The beacon.
        beacon: Arc<Beacon>,
        /// Where its signals came from.
        source: Source,
        /// How many signals it has that count.
        signals: usize,
        /// Those that do not.
        ignored: Vec<IgnoredSignal>,
    },
    /// A signal was read.
    Signal {
        /// The round of discovery, 1 the first.
        round: u32,
        /// The signal.
        signal: Arc<BeaconSignal>,
        /// What it announces for the DID.
        finding: Finding,
        /// Where the CAS Announcement or the SMT proof came from, if it needed one and has it.
        #[serde(skip_serializing_if = "Option::is_none")]
        announcement: Option<Source>,
        /// Where the update came from, if it announces one and has it.
        #[serde(skip_serializing_if = "Option::is_none")]
        update: Option<Source>,
    },
    /// An update made the next version.
    Applied(Step),
    /// An update that was applied before was announced again, which changes nothing (rule R-8).
    Duplicate(Step),
    /// An update was dropped, for the document does not list its beacon's address any more (rule R-7).
    Dropped(Step),
    /// An update was not looked at, for the DID is deactivated (rule R-13).
    NotExamined(Step),
}

/// One update, where it was announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Step {
    /// The version to which the update leads.
    pub version: u64,
    /// The update's hash.
    pub update: DocumentHash,
    /// The signal that announces it.
    pub signal: Arc<BeaconSignal>,
}

impl Event {
    /// What is missing for a signal.
    pub fn missing(&self) -> Option<Missing> {
        match self {
            Self::Signal { signal, finding: Finding::Missing { missing }, .. } => {
                Some(Missing { signal: signal.clone(), data: *missing })
            }
            _ => None,
        }
    }
}
