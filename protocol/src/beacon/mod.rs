//! Aggregate beacons: how many members' updates become the 32 Signal Bytes of one Bitcoin transaction, and how a member
//! checks that its own update is among them (did:btcr2, "Beacons").
//!
//! A beacon type is a pair of pure functions, [`AggregateBeacon`]. The specification's two aggregate types are built in;
//! a host registers others in a [`BeaconRegistry`], and cohorts then use them like the built-in ones.

mod cas;
mod paths;
mod smt;

use std::{collections::BTreeMap, fmt, sync::Arc};

use rand_core::CryptoRng;
use serde::{Deserialize, Deserializer, Serialize, de};

pub(crate) use self::smt::smt_index_of;
pub use self::{
    cas::{CasAnnouncement, CasBeacon},
    paths::{LeafPath, SmtPaths},
    smt::{
        DuplicateIndex, RawProof, SmtBeacon, SmtNonce, SmtProof, SparseMerkleTree, did_index, smt_index, smt_leaf,
        zero_hash,
    },
};
use crate::{
    did::Did,
    hash::{DocumentHash, SignalBytes, SmtHash},
};

/// The name of a beacon type, as adverts and messages carry it: 1 to 64 visible ASCII characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct BeaconType(Arc<str>);

/// A text that cannot name a beacon type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a beacon type is 1 to 64 visible ASCII characters")]
pub struct BeaconTypeError;

impl BeaconType {
    /// The wire name of the CAS beacon.
    pub const CAS: &'static str = "CASBeacon";
    /// The wire name of the SMT beacon.
    pub const SMT: &'static str = "SMTBeacon";

    /// `CASBeacon`.
    pub fn cas() -> Self {
        Self(Self::CAS.into())
    }

    /// `SMTBeacon`.
    pub fn smt() -> Self {
        Self(Self::SMT.into())
    }

    /// A beacon type of any name. The length is bounded because the name comes from peers and is written to logs and
    /// journals.
    pub fn new(name: &str) -> Result<Self, BeaconTypeError> {
        if (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(name.into()))
        } else {
            Err(BeaconTypeError)
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BeaconType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BeaconType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for BeaconType {
    type Err = BeaconTypeError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

impl<'de> Deserialize<'de> for BeaconType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// What each member contributed to a round: the JSON Document Hash of its signed update, or `None` where it declined.
/// Every member of the cohort has an entry.
pub type Slots = BTreeMap<Did, Option<DocumentHash>>;

/// What a member receives to check its own contribution, and later gives to resolvers as sidecar data. The serialized
/// form is the journal's; a message has a separate field for each kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BeaconData {
    /// The announcement map, the same for every member.
    Cas(CasAnnouncement),
    /// A member's path through the sparse Merkle tree.
    Smt(SmtProof),
    /// The data of a beacon type that the host registered.
    Other(serde_json::Value),
}

/// The data of a whole cohort. It is behind an `Arc` because an announcement grows with the cohort and goes to every
/// member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AggregatedData {
    /// Every member receives the same data.
    Shared(Arc<BeaconData>),
    /// Every member receives its own data.
    PerMember(BTreeMap<Did, Arc<BeaconData>>),
}

impl AggregatedData {
    /// The data that `did` receives; `None` when the data is per member and has no entry for `did`. Shared data is
    /// returned for every `did`: the caller checks membership.
    pub fn for_member(&self, did: &Did) -> Option<&Arc<BeaconData>> {
        match self {
            Self::Shared(data) => Some(data),
            Self::PerMember(data) => data.get(did),
        }
    }
}

/// The outcome of aggregating a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Aggregation {
    /// What the beacon transaction commits to.
    pub signal: SignalBytes,
    /// What the members need to recompute it.
    pub data: AggregatedData,
}

/// Why a round could not be aggregated. These are the service's own faults; no member can cause one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeaconError {
    /// Two members share one leaf of the sparse Merkle tree.
    #[error(transparent)]
    DuplicateIndex(#[from] DuplicateIndex),
    /// A replayed round lacks the nonce of a member.
    #[error("no nonce for {0}")]
    MissingNonce(Did),
    /// An error of a registered beacon type.
    #[error("{0}")]
    Other(String),
}

/// What a member found wrong in the data it received. Any of these is a reason to withhold approval.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeaconMismatch {
    /// The data belongs to another beacon type.
    #[error("the data is not that of a {expected}")]
    WrongKind {
        /// The type of this cohort.
        expected: BeaconType,
    },
    /// The member submitted an update and the data has none for it.
    #[error("the member's own update {expected} is missing")]
    OwnUpdateMissing {
        /// The hash of the update that the member submitted.
        expected: DocumentHash,
    },
    /// The data has another update for the member than the one it submitted.
    #[error("the data has update {found} for the member, which submitted {expected}")]
    OwnUpdateDiffers {
        /// The hash of the update that the member submitted.
        expected: DocumentHash,
        /// The hash in the data.
        found: DocumentHash,
    },
    /// The member declined, but the data has an update for it.
    #[error("the data has update {found} for a member that declined")]
    DeclinerPresent {
        /// The hash in the data.
        found: DocumentHash,
    },
    /// The proof does not have exactly one sibling for each level that it does not mark as empty.
    #[error("the proof has {found} siblings where {expected} levels need one (rule M-7)")]
    SiblingCount {
        /// The number of levels, of 256, whose sibling is not an empty subtree.
        expected: usize,
        /// The number of siblings in the proof.
        found: usize,
    },
    /// The proof lists the sibling of a level whose subtree is empty, which has to be collapsed (rule M-8).
    #[error("the proof lists the empty subtree of level {level}, which has to be collapsed (rule M-8)")]
    ListedZero {
        /// The level, 0 under the root.
        level: usize,
    },
    /// The member's leaf and the proof's siblings lead to another root than the proof names.
    #[error("the proof leads to root {computed}, not to {claimed}")]
    Root {
        /// The root that the proof names.
        claimed: SmtHash,
        /// The root that follows from the member's leaf.
        computed: SmtHash,
    },
    /// The data of a registered beacon type cannot be read.
    #[error("malformed beacon data: {0}")]
    Malformed(String),
    /// A mismatch that a registered beacon type reports.
    #[error("{0}")]
    Other(String),
}

/// A beacon type that commits to many members' updates at once.
///
/// An implementation is a pure function of its arguments: the service journals what `aggregate` returned, and every
/// member's `verify` must come to the same signal on its own.
pub trait AggregateBeacon: Send + Sync + fmt::Debug {
    /// The name under which adverts announce it.
    fn beacon_type(&self) -> BeaconType;

    /// Aggregates a round, as the service does. `rng` is the only source of randomness: the same seed gives the same
    /// result.
    fn aggregate(&self, slots: &Slots, rng: &mut dyn CryptoRng) -> Result<Aggregation, BeaconError>;

    /// Checks, as member `did`, that `data` holds exactly what the member contributed (`slot`: its update's hash, `None`
    /// if it declined), and recomputes the Signal Bytes from `data`. The caller compares them with the transaction: Signal
    /// Bytes that a message claims prove nothing.
    fn verify(
        &self,
        did: &Did,
        slot: Option<&DocumentHash>,
        data: &BeaconData,
    ) -> Result<SignalBytes, BeaconMismatch>;
}

/// The beacon types that a host supports. The default has the specification's two. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BeaconRegistry(Arc<BTreeMap<BeaconType, Arc<dyn AggregateBeacon>>>);

impl Default for BeaconRegistry {
    fn default() -> Self {
        let mut registry = Self(Arc::default());
        registry.register(Arc::new(CasBeacon));
        registry.register(Arc::new(SmtBeacon));
        registry
    }
}

impl BeaconRegistry {
    /// Adds a beacon type under its own name, and returns the one that it replaces.
    pub fn register(&mut self, beacon: Arc<dyn AggregateBeacon>) -> Option<Arc<dyn AggregateBeacon>> {
        Arc::make_mut(&mut self.0).insert(beacon.beacon_type(), beacon)
    }

    /// The beacon type of that name; `None` means that the host cannot take part in such a cohort.
    pub fn get(&self, beacon_type: &BeaconType) -> Option<&Arc<dyn AggregateBeacon>> {
        self.0.get(beacon_type)
    }

    /// The names of all types, sorted.
    pub fn beacon_types(&self) -> impl Iterator<Item = &BeaconType> {
        self.0.keys()
    }
}

/// Compares the update that the data names for a member with what the member contributed. Shared by the built-in types, so
/// that they agree on what is a mismatch.
fn check_slot(slot: Option<&DocumentHash>, found: Option<&DocumentHash>) -> Result<(), BeaconMismatch> {
    match (slot, found) {
        (None, None) => Ok(()),
        (Some(expected), Some(found)) if expected == found => Ok(()),
        (Some(&expected), Some(&found)) => Err(BeaconMismatch::OwnUpdateDiffers { expected, found }),
        (Some(&expected), None) => Err(BeaconMismatch::OwnUpdateMissing { expected }),
        (None, Some(&found)) => Err(BeaconMismatch::DeclinerPresent { found }),
    }
}
