//! The gate's state about senders: nonces, and rates. Behind traits, so that several processes that serve one address
//! can share it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use btcr2_aggregation_protocol::{did::Did, time::Timestamp};

/// The result of recording a nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonceVerdict {
    /// Not seen before; recorded from now on.
    Fresh,
    /// Seen before.
    Replayed,
    /// Not seen before, but the store is full, so it must not be accepted.
    Full,
}

/// Records each sender's nonces as long as their timestamps could still be accepted.
#[async_trait]
pub trait NonceStore: Send + Sync {
    /// Records `nonce` of `from` until `until`, unless it is recorded already.
    async fn remember(&self, from: &Did, nonce: [u8; 16], now: Timestamp, until: Timestamp) -> NonceVerdict;
}

/// A recorded nonce, ordered by expiry: the expiry, the DID and the nonce.
pub(crate) type KnownNonce = (Timestamp, Did, [u8; 16]);

/// The recorded nonces. Each DID has its own bound, so that none can evict another's; if the store is full, new nonces
/// are refused rather than old ones removed.
pub(crate) struct KnownNonces {
    per_did: usize,
    total: usize,
    by_did: HashMap<Did, BTreeSet<[u8; 16]>>,
    by_end: BTreeSet<KnownNonce>,
}

impl KnownNonces {
    pub(crate) fn new(per_did: usize, total: usize) -> Self {
        Self { per_did, total, by_did: HashMap::new(), by_end: BTreeSet::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_end.len()
    }

    /// Removes the nonces whose timestamps could no longer be accepted, and returns them.
    pub(crate) fn forget_expired(&mut self, now: Timestamp) -> Vec<KnownNonce> {
        let mut expired = Vec::new();
        while self.by_end.first().is_some_and(|(end, ..)| *end < now)
            && let Some(known) = self.by_end.pop_first()
        {
            let (_, did, nonce) = &known;
            if let Some(nonces) = self.by_did.get_mut(did) {
                nonces.remove(nonce);
                if nonces.is_empty() {
                    self.by_did.remove(did);
                }
            }
            expired.push(known);
        }
        expired
    }

    /// Records a nonce, if it is new and there is space.
    pub(crate) fn remember(&mut self, from: &Did, nonce: [u8; 16], until: Timestamp) -> NonceVerdict {
        let used = self.by_did.get(from);
        if used.is_some_and(|used| used.contains(&nonce)) {
            return NonceVerdict::Replayed;
        }
        if used.map_or(0, BTreeSet::len) >= self.per_did || self.by_end.len() >= self.total {
            return NonceVerdict::Full;
        }
        self.restore((until, from.clone(), nonce));
        NonceVerdict::Fresh
    }

    /// Records a nonce from an earlier run.
    pub(crate) fn restore(&mut self, (until, did, nonce): KnownNonce) {
        if self.by_did.entry(did.clone()).or_default().insert(nonce) {
            self.by_end.insert((until, did, nonce));
        }
    }
}

/// The default number of nonces of each DID: more than the default rate lets it use.
pub(crate) const NONCES_PER_DID: usize = 4_096;
/// The default number of all nonces.
pub(crate) const NONCES: usize = 1_000_000;

/// Nonces in memory: after a restart, a message from just before it can be repeated.
/// [`StateNonces`](crate::state::nonces) stores them.
pub struct MemoryNonces(Mutex<KnownNonces>);

impl MemoryNonces {
    /// Space for `per_did` nonces of each DID and `total` in all. Beyond that, new ones are refused.
    pub fn new(per_did: usize, total: usize) -> Self {
        Self(Mutex::new(KnownNonces::new(per_did, total)))
    }

    /// The number of recorded nonces.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether no nonce is recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, KnownNonces> {
        // No code panics between the changes of the two maps.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryNonces {
    /// 4,096 for each DID, more than the default rate lets it use, and a million in all.
    fn default() -> Self {
        Self::new(NONCES_PER_DID, NONCES)
    }
}

#[async_trait]
impl NonceStore for MemoryNonces {
    async fn remember(&self, from: &Did, nonce: [u8; 16], now: Timestamp, until: Timestamp) -> NonceVerdict {
        let mut known = self.lock();
        known.forget_expired(now);
        known.remember(from, nonce, until)
    }
}

/// A token bucket: `burst` at once, `per_second` in the long run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that are added each second.
    pub per_second: u32,
    /// The capacity of the bucket.
    pub burst: u32,
}

/// Counts how often each key was used.
#[async_trait]
pub trait RateLimitStore: Send + Sync {
    /// Takes a token from the bucket of `key`; `false` if it is empty.
    async fn take(&self, key: &str, rate: Rate, now: Timestamp) -> bool;
}

/// Buckets in memory. Full buckets carry no information and are removed; if there are too many others, unknown keys are
/// refused.
pub struct MemoryRates {
    most: usize,
    buckets: Mutex<Buckets>,
}

#[derive(Default)]
struct Buckets {
    by_key: HashMap<String, Bucket>,
    sweep_at: usize,
    swept: Timestamp,
}

impl Buckets {
    /// Removes full buckets from time to time, at a small average cost: when there are twice as many as after the last
    /// sweep, or, if there is no space for so many, every tenth of a second.
    fn sweep(&mut self, most: usize, now: Timestamp) {
        let len = self.by_key.len();
        let doubled = len >= self.sweep_at.max(1024);
        // Also if the clock was set back since.
        let apart = now.since(self.swept).max(self.swept.since(now));
        let crowded = len >= most && apart >= Duration::from_millis(100);
        if doubled || crowded {
            self.by_key.retain(|_, bucket| !bucket.is_full_at(now));
            self.sweep_at = self.by_key.len() * 2;
            self.swept = now;
        }
    }
}

#[derive(Clone, Copy)]
struct Bucket {
    /// Its own rate: the bucket of an address is not full when that of a DID would be.
    rate: Rate,
    /// In thousandths, so that milliseconds times tokens per second is exact.
    millitokens: u64,
    at: Timestamp,
}

impl Bucket {
    fn full(rate: Rate, now: Timestamp) -> Self {
        Self { rate, millitokens: u64::from(rate.burst) * 1000, at: now }
    }

    fn refilled(self, rate: Rate, now: Timestamp) -> Self {
        let gained = u64::try_from(now.since(self.at).as_millis()).unwrap_or(u64::MAX);
        let gained = gained.saturating_mul(u64::from(rate.per_second));
        // Requests overlap a little. A greater difference means that the clock was set back by an unknown time.
        if self.at.since(now) > Duration::from_secs(1) {
            return Self::full(rate, now);
        }
        let full = Self::full(rate, now.max(self.at));
        Self { millitokens: self.millitokens.saturating_add(gained).min(full.millitokens), ..full }
    }

    fn is_full_at(self, now: Timestamp) -> bool {
        self.refilled(self.rate, now).millitokens >= u64::from(self.rate.burst) * 1000
    }
}

impl MemoryRates {
    /// Space for `most` buckets that are not full.
    pub fn new(most: usize) -> Self {
        Self { most, buckets: Mutex::default() }
    }

    /// The number of buckets.
    pub fn len(&self) -> usize {
        self.lock().by_key.len()
    }

    /// Whether there is no bucket.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Buckets> {
        // No code panics while a bucket is partly changed.
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryRates {
    fn default() -> Self {
        Self::new(100_000)
    }
}

#[async_trait]
impl RateLimitStore for MemoryRates {
    async fn take(&self, key: &str, rate: Rate, now: Timestamp) -> bool {
        let mut buckets = self.lock();
        buckets.sweep(self.most, now);
        let known = buckets.by_key.get(key).copied();
        if known.is_none() && buckets.by_key.len() >= self.most {
            return false;
        }
        let mut bucket = known.unwrap_or(Bucket::full(rate, now)).refilled(rate, now);
        let granted = bucket.millitokens >= 1000;
        if granted {
            bucket.millitokens -= 1000;
        }
        buckets.by_key.insert(key.to_owned(), bucket);
        granted
    }
}
