//! What a resolver needs, and what it is given.

use std::{fmt, sync::Arc};

use bitcoin::Address;
use serde_json::Value;

use super::signal::{Beacon, BeaconSignal};
use crate::hash::DocumentHash;

/// Something that a resolver cannot go on without.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Need {
    /// All signals of a beacon's address (rules T-1 to T-3), from its first transaction on: for
    /// [`Resolver::provide_signals`](super::Resolver::provide_signals).
    Signals {
        /// The round of discovery, 1 the first.
        round: u32,
        /// The beacon.
        beacon: Arc<Beacon>,
    },
    /// JSON by its hash, which the Sidecar Data do not have: for
    /// [`Resolver::provide_content`](super::Resolver::provide_content). A content store has it under the CID of
    /// version 1, codec raw and sha2-256 (rule C-5).
    Content {
        /// What it has to be.
        kind: ContentKind,
        /// The SHA-256 of its JCS bytes.
        hash: DocumentHash,
        /// The first signal that commits to it; none for the genesis document.
        signal: Option<Arc<BeaconSignal>>,
    },
}

impl Need {
    pub(super) fn content(kind: ContentKind, hash: DocumentHash, signal: Option<&Arc<BeaconSignal>>) -> Self {
        Self::Content { kind, hash, signal: signal.cloned() }
    }

    pub(super) fn key(&self) -> Key {
        match self {
            Self::Signals { beacon, .. } => Key::Signals(beacon.address.clone()),
            Self::Content { kind, hash, .. } => Key::Content(*kind, *hash),
        }
    }
}

/// What makes two needs the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Signals(Address),
    Content(ContentKind, DocumentHash),
}

/// What is looked up by a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ContentKind {
    /// The genesis document of an EXTERNAL identifier.
    GenesisDocument,
    /// A CAS Announcement.
    Announcement,
    /// A signed update.
    Update,
}

impl ContentKind {
    pub(super) const ALL: [Self; 3] = [Self::GenesisDocument, Self::Announcement, Self::Update];
}

impl fmt::Display for ContentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::GenesisDocument => "genesis document",
            Self::Announcement => "CAS Announcement",
            Self::Update => "update",
        })
    }
}

/// An answer to [`Need::Content`].
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Bytes from somewhere that is asked by hash. They are hashed here before anything else; bytes of another hash
    /// are [`Absent`](Self::Absent) (rule C-5).
    Bytes(Vec<u8>),
    /// JSON that the caller gives as the thing itself. Another hash is then a fault: `INVALID_SIGNAL_DATA`, or
    /// `INVALID_DID` for a genesis document (rules C-6 and I-2).
    Json(Value),
    /// No source has it.
    Absent,
}

/// An answer to a question that was not asked, or was answered already. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the resolver does not need this, or not any more")]
pub struct NotNeeded;
