//! The cohort's keys and their BIP-327 aggregate, computed once and shared.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use musig2::{
    KeyAggContext,
    secp::{MaybeScalar, Point},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    hash::sha256_concat,
    key::{PublicKey, XOnlyKey},
};

/// Why a list of keys is not a cohort.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyAggregationError {
    /// The list is empty.
    #[error("a cohort needs at least one key")]
    NoCohortKeys,
    /// A key of the list is not a point of the curve.
    #[error("cohort key {index} is not a compressed point of secp256k1")]
    NotAPoint {
        /// The position of the key in the given list, from 0.
        index: usize,
    },
    /// A key occurs twice. BIP-327 would aggregate it, but then one member would hold two fallback signatures.
    #[error("cohort key {0} occurs twice")]
    DuplicateKey(PublicKey),
    /// Two keys differ only in the sign of y. The fallback leaf holds x-only keys, which would be equal.
    #[error("two cohort keys share the x coordinate {0}")]
    SharedXCoordinate(XOnlyKey),
    /// The keys cancel out to the point at infinity; no member can cause that on purpose.
    #[error("the cohort keys aggregate to the point at infinity")]
    Infinity,
}

impl KeyAggregationError {
    /// The stable name of the error, for logs and messages.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoCohortKeys => "NO_COHORT_KEYS",
            Self::NotAPoint { .. } => "INVALID_COHORT_KEY",
            Self::DuplicateKey(_) => "DUPLICATE_COHORT_KEY",
            Self::SharedXCoordinate(_) => "SHARED_X_COORDINATE",
            Self::Infinity => "KEY_AGGREGATION_INFINITY",
        }
    }
}

/// A cohort's keys in BIP-327 KeySort order (bytewise on the 33 bytes) and their KeyAgg context, without any tweak.
///
/// Aggregation costs one curve multiplication for each key. A clone shares the result. Two aggregations are equal
/// when their key lists are. Serialized as the sorted list of hex keys; deserializing aggregates again and fails on a
/// list that [`Self::new`] refuses.
#[derive(Clone)]
pub struct KeyAggregation {
    keys: Arc<[PublicKey]>,
    internal_key: XOnlyKey,
    context: Arc<KeyAggContext>,
    // The members of a cohort apply the same tweak to the same keys, and a tweaked context is a full copy of the
    // untweaked one (several hundred bytes for each key). Members that share this aggregation share that copy too.
    tweaked: Arc<OnceLock<([u8; 32], Arc<KeyAggContext>)>>,
}

impl KeyAggregation {
    /// Sorts the keys and aggregates them. The order of `keys` does not matter.
    ///
    /// Refuses an empty list, a key that occurs twice, and two keys that differ only in the sign of y.
    pub fn new(keys: impl IntoIterator<Item = PublicKey>) -> Result<Self, KeyAggregationError> {
        let mut keys: Vec<PublicKey> = keys.into_iter().collect();
        if keys.is_empty() {
            return Err(KeyAggregationError::NoCohortKeys);
        }
        keys.sort_unstable();
        if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(KeyAggregationError::DuplicateKey(pair[0]));
        }
        let mut seen = BTreeSet::new();
        if let Some(key) = keys.iter().find(|key| !seen.insert(key.x_only())) {
            return Err(KeyAggregationError::SharedXCoordinate(key.x_only()));
        }
        let context = KeyAggContext::new(keys.iter().map(to_musig2)).map_err(|_| KeyAggregationError::Infinity)?;
        let internal_key = XOnlyKey::from_bytes(&context.aggregated_pubkey::<Point>().serialize_xonly())
            .expect("the x coordinate of a point");
        Ok(Self { keys: keys.into(), internal_key, context: Arc::new(context), tweaked: Arc::default() })
    }

    /// Like [`Self::new`], from compressed keys. The error names the first key that is not a point of the curve.
    pub fn from_bytes(keys: &[[u8; 33]]) -> Result<Self, KeyAggregationError> {
        let keys: Vec<PublicKey> = keys
            .iter()
            .enumerate()
            .map(|(index, key)| PublicKey::from_bytes(key).map_err(|_| KeyAggregationError::NotAPoint { index }))
            .collect::<Result<_, _>>()?;
        Self::new(keys)
    }

    /// The keys in KeySort order.
    pub fn keys(&self) -> &[PublicKey] {
        &self.keys
    }

    /// The aggregate key, x-only: the internal key of the beacon output (BIP-341).
    pub fn internal_key(&self) -> XOnlyKey {
        self.internal_key
    }

    /// The untweaked KeyAgg context. To sign for a beacon output, take that output's own context.
    pub fn context(&self) -> &KeyAggContext {
        &self.context
    }

    /// The index of a key in KeySort order, which is its index in [`Self::context`] and in the fallback leaf.
    pub fn index_of(&self, key: &PublicKey) -> Option<usize> {
        self.keys.binary_search(key).ok()
    }

    pub(super) fn shared_keys(&self) -> Arc<[PublicKey]> {
        Arc::clone(&self.keys)
    }

    /// The context with an x-only tweak; `None` if the tweak is not a scalar or gives the point at infinity.
    pub(super) fn tweaked(&self, tweak: [u8; 32]) -> Option<Arc<KeyAggContext>> {
        if let Some((known, context)) = self.tweaked.get()
            && *known == tweak
        {
            return Some(Arc::clone(context));
        }
        let scalar = MaybeScalar::try_from(tweak).ok()?;
        let context = Arc::new(KeyAggContext::clone(&self.context).with_xonly_tweak(scalar).ok()?);
        // The first tweak is cached, since a cohort has one. A caller with another tweak gets a separate context.
        match self.tweaked.get_or_init(|| (tweak, Arc::clone(&context))) {
            (known, shared) if *known == tweak => Some(Arc::clone(shared)),
            _ => Some(context),
        }
    }
}

/// The key in the `musig2` crate's types, which use another version of `secp256k1`. The uncompressed form avoids the
/// square root of decompression.
fn to_musig2(key: &PublicKey) -> Point {
    Point::from_slice(&key.as_inner().serialize_uncompressed()).expect("a point in one library is one in the other")
}

impl PartialEq for KeyAggregation {
    fn eq(&self, other: &Self) -> bool {
        self.keys == other.keys
    }
}

impl Eq for KeyAggregation {}

impl fmt::Debug for KeyAggregation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyAggregation")
            .field("keys", &self.keys.len())
            .field("internal_key", &self.internal_key)
            .finish_non_exhaustive()
    }
}

impl Serialize for KeyAggregation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.keys.iter())
    }
}

impl<'de> Deserialize<'de> for KeyAggregation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Vec::<PublicKey>::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// The source of a cohort's key aggregation. The host decides what is computed and what is shared.
pub trait KeyAggregator: Send + Sync + fmt::Debug {
    /// The aggregation of a list of compressed keys in any order. Fails on the lists that
    /// [`KeyAggregation::from_bytes`] refuses.
    fn aggregate(&self, keys: &[[u8; 33]]) -> Result<Arc<KeyAggregation>, KeyAggregationError>;
}

/// Aggregates the keys on each call: for a process with one member.
#[derive(Clone, Copy, Debug, Default)]
pub struct DirectAggregator;

impl KeyAggregator for DirectAggregator {
    fn aggregate(&self, keys: &[[u8; 33]]) -> Result<Arc<KeyAggregation>, KeyAggregationError> {
        KeyAggregation::from_bytes(keys).map(Arc::new)
    }
}

/// Caches the most recently aggregated lists: for a process with many members of one cohort.
///
/// All members receive the same key list, and each has to check it: without the cache, n members compute n
/// multiplications each. With it, the first member computes and the others wait for the result and share it. The
/// result is a pure function of public data, keyed by the SHA-256 of the whole list, so no member learns or trusts
/// anything that it could not compute itself. Refused lists are not cached.
pub struct MemoizedAggregator {
    capacity: usize,
    memory: Mutex<Memory>,
}

type Slot = Arc<OnceLock<Result<Arc<KeyAggregation>, KeyAggregationError>>>;

#[derive(Default)]
struct Memory {
    slots: BTreeMap<[u8; 32], Slot>,
    /// The cached lists, oldest first; exactly the keys of `slots`.
    order: VecDeque<[u8; 32]>,
}

impl MemoizedAggregator {
    /// The number of lists that [`Self::default`] caches.
    pub const DEFAULT_CAPACITY: usize = 64;

    /// Caches up to `capacity` lists (at least one), and evicts the oldest beyond that.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), memory: Mutex::default() }
    }

    /// The number of cached lists.
    pub fn len(&self) -> usize {
        self.memory().order.len()
    }

    /// Whether no list is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // No code panics between two dependent changes of the cache, so a poisoned one is still consistent.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, list: [u8; 32]) -> Slot {
        let mut memory = self.memory();
        if let Some(slot) = memory.slots.get(&list) {
            return Arc::clone(slot);
        }
        while memory.order.len() >= self.capacity {
            if let Some(oldest) = memory.order.pop_front() {
                memory.slots.remove(&oldest);
            }
        }
        let slot = Slot::default();
        memory.order.push_back(list);
        memory.slots.insert(list, Arc::clone(&slot));
        slot
    }

    fn forget(&self, list: &[u8; 32], slot: &Slot) {
        let mut memory = self.memory();
        if memory.slots.get(list).is_some_and(|known| Arc::ptr_eq(known, slot)) {
            memory.slots.remove(list);
            memory.order.retain(|other| other != list);
        }
    }
}

impl Default for MemoizedAggregator {
    fn default() -> Self {
        Self::with_capacity(Self::DEFAULT_CAPACITY)
    }
}

impl fmt::Debug for MemoizedAggregator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoizedAggregator")
            .field("capacity", &self.capacity)
            .field("remembered", &self.len())
            .finish()
    }
}

impl KeyAggregator for MemoizedAggregator {
    fn aggregate(&self, keys: &[[u8; 33]]) -> Result<Arc<KeyAggregation>, KeyAggregationError> {
        let list = sha256_concat(&[keys.as_flattened()]);
        let slot = self.slot(list);
        // Outside the lock: callers with other lists continue, callers with this list wait for its result.
        let result = slot.get_or_init(|| DirectAggregator.aggregate(keys)).clone();
        if result.is_err() {
            self.forget(&list, &slot);
        }
        result
    }
}
