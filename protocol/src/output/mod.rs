//! The beacon output: the taproot output that a cohort's keys and terms determine, and the transactions that spend it.
//!
//! Every member derives it itself; no member takes an address from a message. There are three ways to spend it:
//! - key path: all n members by MuSig2 over [`BeaconOutput::musig2_context`], one 64-byte signature;
//! - [`FallbackLeaf`]: k of n members, each with a signature of its own over the same unsigned transaction;
//! - [`RecoveryLeaf`]: one recovery key alone, after a delay.
//!
//! [`SingletonAnnouncement`] is for a member without a cohort: it announces from a beacon of its own.

mod fallback;
mod key_aggregation;
mod recovery;
mod script_tree;
mod sighash;
mod singleton;
mod singleton_beacon;
mod singleton_coins;
mod spend_path;
mod transaction;

use std::{fmt, sync::Arc};

use bitcoin::{
    Address, Script, ScriptBuf, TapLeafHash, TapNodeHash, TapTweakHash,
    hashes::Hash,
    key::TweakedPublicKey,
    taproot::{ControlBlock, LeafVersion},
};
use secp256k1::{Parity, SECP256K1, Scalar};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use fallback::{FallbackError, FallbackLeaf};
pub use key_aggregation::{
    DirectAggregator, KeyAggregation, KeyAggregationError, KeyAggregator, MemoizedAggregator,
};
pub use recovery::{
    RecoveryError, RecoveryLeaf, RecoverySpend, build_recovery_transaction, sign_recovery_transaction,
};
pub use script_tree::{RecoverySequence, ScriptTree};
pub use sighash::{InputCountError, PrevoutCountError};
pub use singleton::{SingletonAnnouncement, SingletonError};
pub use singleton_beacon::SingletonBeacon;
pub use singleton_coins::{MAX_SINGLETON_INPUTS, eligible_coins, select_coins};
pub use spend_path::SpendPath;
pub use transaction::{
    BuildError, Change, Coin, DEFAULT_MAX_FEE_RATE, TransactionFault, build_beacon_transaction,
    check_beacon_transaction, check_fee, check_signed, fallback_vsize, finalize_key_path, key_path_sighash,
    key_path_sighashes, key_path_vsize, unsigned,
};

pub use crate::document::{InitialBeacon, InitialBeaconKind};
use crate::{
    key::{PublicKey, XOnlyKey},
    network::Network,
};

/// The largest cohort whose fallback leaf can be spent.
///
/// A tapscript input may not have more than 1000 stack elements at any time (BIP-342 retains the legacy limit and
/// applies it to the initial stack too). The leaf starts with one element for each member and then pushes the first
/// key.
pub const MAX_FALLBACK_KEYS: usize = 999;

/// Why keys and terms do not give a beacon output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutputError {
    /// The keys are not a cohort.
    #[error(transparent)]
    KeyAggregation(#[from] KeyAggregationError),
    /// The terms have no recovery key.
    #[error("the terms name no recovery key")]
    NoRecoveryParams,
    /// The recovery key is not the x coordinate of a point.
    #[error("the recovery key is not the x coordinate of a point of secp256k1")]
    InvalidRecoveryKey,
    /// The recovery delay is not a relative lock time in blocks.
    #[error("the recovery sequence is not in 1..=65535")]
    InvalidRecoverySequence,
    /// The fallback threshold is not in `1..=n`.
    #[error("the fallback threshold is not between 1 and the number of keys")]
    InvalidFallbackThreshold,
    /// The hash of the tree is not a usable tweak; no member can cause that on purpose.
    #[error("the taproot tweak is out of range")]
    TweakOutOfRange,
}

impl OutputError {
    /// The stable name of the error, for logs and messages.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::KeyAggregation(error) => error.code(),
            Self::NoRecoveryParams => "NO_RECOVERY_PARAMS",
            Self::InvalidRecoveryKey => "INVALID_RECOVERY_KEY",
            Self::InvalidRecoverySequence => "INVALID_RECOVERY_SEQUENCE",
            Self::InvalidFallbackThreshold => "INVALID_FALLBACK_THRESHOLD",
            Self::TweakOutOfRange => "TWEAK_OUT_OF_RANGE",
        }
    }
}

/// A cohort's taproot output with all data that spending it requires.
///
/// A clone shares the data. Serialized by its inputs (keys, network, script tree): deserializing derives the output
/// again, so a stored address can never differ from the stored keys. Two outputs are equal when their inputs are.
#[derive(Clone)]
pub struct BeaconOutput(Arc<Derived>);

struct Derived {
    aggregation: Arc<KeyAggregation>,
    network: Network,
    tree: ScriptTree,
    leaves: Option<Leaves>,
    tap_tweak: [u8; 32],
    output_key: XOnlyKey,
    script_pubkey: ScriptBuf,
    address: String,
    musig2_context: Arc<musig2::KeyAggContext>,
}

struct Leaves {
    merkle_root: [u8; 32],
    fallback: FallbackLeaf,
    recovery: Option<RecoveryLeaf>,
}

/// The scripts of a tree.
struct Scripts {
    threshold: usize,
    fallback: ScriptBuf,
    recovery: Option<(XOnlyKey, RecoverySequence, ScriptBuf)>,
}

impl Scripts {
    fn new(keys: &[PublicKey], tree: &ScriptTree) -> Result<Option<Self>, OutputError> {
        let (threshold, recovery) = match tree {
            ScriptTree::KeyPathOnly => return Ok(None),
            ScriptTree::FallbackOnly { threshold } => (self::threshold(keys.len(), Some(*threshold))?, None),
            ScriptTree::FallbackAndRecovery { recovery_key, recovery_sequence, fallback_threshold } => {
                let script = recovery::script(*recovery_key, *recovery_sequence);
                let threshold = self::threshold(keys.len(), *fallback_threshold)?;
                (threshold, Some((*recovery_key, *recovery_sequence, script)))
            }
        };
        Ok(Some(Self { threshold, fallback: fallback::script(keys, threshold), recovery }))
    }
}

impl BeaconOutput {
    /// Derives the output (BIP-341): `Q = P + H_TapTweak(P || root) G`, where P is the aggregate key and root the branch
    /// of the fallback and the recovery leaf, the fallback leaf alone for [`ScriptTree::FallbackOnly`], or is absent for
    /// [`ScriptTree::KeyPathOnly`].
    pub fn new(aggregation: Arc<KeyAggregation>, network: Network, tree: &ScriptTree) -> Result<Self, OutputError> {
        let scripts = Scripts::new(aggregation.keys(), tree)?;
        // The leaves' hashes, and the root above them.
        let hashes = scripts.as_ref().map(|scripts| {
            let fallback = leaf_hash(&scripts.fallback);
            let recovery = scripts.recovery.as_ref().map(|(.., script)| leaf_hash(script));
            let root = match recovery {
                Some(recovery) => TapNodeHash::from_node_hashes(fallback.into(), recovery.into()),
                None => fallback.into(),
            };
            (fallback, recovery, root)
        });
        let root = hashes.map(|(.., root)| root);

        let internal_key = aggregation.internal_key();
        let tap_tweak = TapTweakHash::from_key_and_tweak(*internal_key.as_inner(), root).to_byte_array();
        let scalar = Scalar::from_be_bytes(tap_tweak).map_err(|_| OutputError::TweakOutOfRange)?;
        let (output_key, parity) =
            internal_key.as_inner().add_tweak(SECP256K1, &scalar).map_err(|_| OutputError::TweakOutOfRange)?;
        let address = Address::p2tr_tweaked(TweakedPublicKey::dangerous_assume_tweaked(output_key), network.hrp());
        let script_pubkey = address.script_pubkey();
        let musig2_context = aggregation.tweaked(tap_tweak).ok_or(OutputError::TweakOutOfRange)?;

        let leaves = scripts.zip(hashes).map(|(scripts, (fallback, recovery, root))| {
            let path = |script, leaf, sibling| {
                ScriptPath::new(script, leaf, sibling, internal_key, parity, &script_pubkey)
            };
            Leaves {
                merkle_root: root.to_byte_array(),
                fallback: FallbackLeaf::new(
                    aggregation.shared_keys(),
                    scripts.threshold,
                    path(scripts.fallback, fallback, recovery),
                ),
                recovery: scripts.recovery.zip(recovery).map(|((key, sequence, script), leaf)| {
                    RecoveryLeaf::new(key, sequence, path(script, leaf, Some(fallback)))
                }),
            }
        });
        Ok(Self(Arc::new(Derived {
            network,
            tree: tree.clone(),
            leaves,
            tap_tweak,
            output_key: XOnlyKey::from_bytes(&output_key.serialize()).expect("an x-only key serializes to itself"),
            script_pubkey,
            address: address.to_string(),
            musig2_context,
            aggregation,
        })))
    }

    /// The network of [`Self::address`].
    pub fn network(&self) -> Network {
        self.0.network
    }

    /// The cohort's keys in KeySort order.
    pub fn keys(&self) -> &[PublicKey] {
        self.0.aggregation.keys()
    }

    /// The keys and their untweaked aggregate.
    pub fn aggregation(&self) -> &Arc<KeyAggregation> {
        &self.0.aggregation
    }

    /// P, the aggregate key before the taproot tweak.
    pub fn internal_key(&self) -> XOnlyKey {
        self.0.aggregation.internal_key()
    }

    /// The root of the script tree; `None` if there are no script paths.
    pub fn merkle_root(&self) -> Option<[u8; 32]> {
        self.0.leaves.as_ref().map(|leaves| leaves.merkle_root)
    }

    /// `H_TapTweak(P || root)`, the x-only tweak of [`Self::musig2_context`].
    pub fn tap_tweak(&self) -> [u8; 32] {
        self.0.tap_tweak
    }

    /// Q, the key that key path signatures verify under.
    pub fn output_key(&self) -> XOnlyKey {
        self.0.output_key
    }

    /// `OP_1 <Q>`.
    pub fn script_pubkey(&self) -> &Script {
        &self.0.script_pubkey
    }

    /// The Beacon Address: Bech32m, with the network's prefix.
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// The k-of-n leaf, if there are script paths.
    pub fn fallback(&self) -> Option<&FallbackLeaf> {
        self.0.leaves.as_ref().map(|leaves| &leaves.fallback)
    }

    /// The recovery leaf, if the tree has one.
    pub fn recovery(&self) -> Option<&RecoveryLeaf> {
        self.0.leaves.as_ref()?.recovery.as_ref()
    }

    /// Whether there is a fallback leaf that can be spent by consensus: see [`MAX_FALLBACK_KEYS`]. A larger cohort
    /// still has a valid address, but if one member is missing then only the recovery key can spend.
    pub fn fallback_spendable(&self) -> bool {
        self.fallback().is_some() && self.keys().len() <= MAX_FALLBACK_KEYS
    }

    /// The terms that the output was derived from.
    pub fn script_tree(&self) -> &ScriptTree {
        &self.0.tree
    }

    /// The KeyAgg context for signing for this output (BIP-327, with the taproot tweak as an x-only tweak). Signers
    /// have the indices of [`Self::keys`].
    pub fn musig2_context(&self) -> &musig2::KeyAggContext {
        &self.0.musig2_context
    }
}

/// k for n keys: the advertised threshold or `max(1, n - 1)`.
fn threshold(n: usize, advertised: Option<u16>) -> Result<usize, OutputError> {
    match advertised.map(usize::from) {
        None => Ok(n.saturating_sub(1).max(1)),
        Some(k) if (1..=n).contains(&k) => Ok(k),
        Some(_) => Err(OutputError::InvalidFallbackThreshold),
    }
}

fn leaf_hash(script: &Script) -> TapLeafHash {
    TapLeafHash::from_script(script, LeafVersion::TapScript)
}

/// The data, besides signatures, for spending by one leaf of the tree.
#[derive(Clone)]
struct ScriptPath {
    script: ScriptBuf,
    leaf_hash: [u8; 32],
    control_block: Vec<u8>,
    /// The script of the output that this leaf belongs to.
    script_pubkey: ScriptBuf,
}

impl ScriptPath {
    fn new(
        script: ScriptBuf,
        leaf_hash: TapLeafHash,
        sibling: Option<TapLeafHash>,
        internal_key: XOnlyKey,
        output_key_parity: Parity,
        script_pubkey: &Script,
    ) -> Self {
        let control_block = ControlBlock {
            leaf_version: LeafVersion::TapScript,
            output_key_parity,
            internal_key: *internal_key.as_inner(),
            merkle_branch: sibling.map_or_else(Default::default, |leaf| [TapNodeHash::from(leaf)].into()),
        };
        Self {
            script,
            leaf_hash: leaf_hash.to_byte_array(),
            control_block: control_block.serialize(),
            script_pubkey: script_pubkey.to_owned(),
        }
    }
}

impl PartialEq for BeaconOutput {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || (self.0.network == other.0.network
                && self.0.tree == other.0.tree
                && self.0.aggregation == other.0.aggregation)
    }
}

impl Eq for BeaconOutput {}

impl fmt::Debug for BeaconOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BeaconOutput")
            .field("address", &self.0.address)
            .field("keys", &self.keys().len())
            .field("tree", &self.0.tree)
            .finish_non_exhaustive()
    }
}

impl Serialize for BeaconOutput {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Inputs<'a> {
            keys: &'a KeyAggregation,
            network: Network,
            script_tree: &'a ScriptTree,
        }
        Inputs { keys: &self.0.aggregation, network: self.0.network, script_tree: &self.0.tree }
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for BeaconOutput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Inputs {
            keys: KeyAggregation,
            network: Network,
            script_tree: ScriptTree,
        }
        let inputs = Inputs::deserialize(deserializer)?;
        Self::new(Arc::new(inputs.keys), inputs.network, &inputs.script_tree).map_err(de::Error::custom)
    }
}
