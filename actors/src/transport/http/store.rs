//! What the gate remembers about senders: nonces, and how often they sent. Behind traits, so that several processes that
//! serve one address can share it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use btcr2_aggregation_protocol::{did::Did, time::Timestamp};

/// What became of a nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonceVerdict {
    /// Not seen before; remembered from now on.
    Fresh,
    /// Seen before.
    Replayed,
    /// Not seen before, but no more can be remembered, so it must not be accepted.
    Full,
}

/// Remembers each sender's nonces for as long as their timestamps could still be accepted.
#[async_trait]
pub trait NonceStore: Send + Sync {
    /// Remembers `nonce` of `from` until `until`, unless it is known already.
    async fn remember(&self, from: &Did, nonce: [u8; 16], now: Timestamp, until: Timestamp) -> NonceVerdict;
}

/// A remembered nonce, in the order in which they may be forgotten: until when, whose, and which.
pub(crate) type KnownNonce = (Timestamp, Did, [u8; 16]);

/// The nonces that are known. A DID has room of its own, so that none can push out another's; when all room is taken, new
/// nonces are refused rather than old ones forgotten.
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

    /// Forgets those whose timestamps could no longer be accepted, and returns them.
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

    /// Remembers a nonce, if it is new and there is room.
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

    /// Remembers a nonce that was remembered before.
    pub(crate) fn restore(&mut self, (until, did, nonce): KnownNonce) {
        if self.by_did.entry(did.clone()).or_default().insert(nonce) {
            self.by_end.insert((until, did, nonce));
        }
    }
}

/// How many nonces of each DID are remembered by default: more than the default rate lets it use.
pub(crate) const NONCES_PER_DID: usize = 4_096;
/// How many nonces are remembered in all by default.
pub(crate) const NONCES: usize = 1_000_000;

/// Nonces in memory: after a restart, what was said just before can be said again. [`StateNonces`](crate::state::nonces) keep
/// them.
pub struct MemoryNonces(Mutex<KnownNonces>);

impl MemoryNonces {
    /// Room for `per_did` nonces of each DID and `total` in all. Beyond that, new ones are refused.
    pub fn new(per_did: usize, total: usize) -> Self {
        Self(Mutex::new(KnownNonces::new(per_did, total)))
    }

    /// How many nonces are remembered.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, KnownNonces> {
        // Both maps are changed without anything between that could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryNonces {
    /// 4,096 a DID, more than the default rate lets it use, and a million in all.
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
    /// Tokens that come back each second.
    pub per_second: u32,
    /// Tokens that a full bucket holds.
    pub burst: u32,
}

/// Counts how often each key was used.
#[async_trait]
pub trait RateLimitStore: Send + Sync {
    /// Takes a token of `key`'s bucket; `false` when it is empty.
    async fn take(&self, key: &str, rate: Rate, now: Timestamp) -> bool;
}

/// Buckets in memory. Full buckets say nothing and are forgotten; when too many are in use, unknown keys are refused.
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
    /// Forgets full buckets, now and then, so that it costs next to nothing on average: when there are twice as many as
    /// were left the last time, or, when there is no room for so many, every tenth of a second.
    fn sweep(&mut self, most: usize, now: Timestamp) {
        let len = self.by_key.len();
        let doubled = len >= self.sweep_at.max(1024);
        // Also when the clock was set back since.
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
    /// Its own: the bucket of an address is not full when that of a DID would be.
    rate: Rate,
    /// In thousandths, so that time in milliseconds times tokens a second is exact.
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
        // Requests overlap a little. Beyond that the clock was set back, and nobody knows how long ago this was.
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
    /// Room for `most` buckets that are not full.
    pub fn new(most: usize) -> Self {
        Self { most, buckets: Mutex::default() }
    }

    /// How many buckets are kept.
    pub fn len(&self) -> usize {
        self.lock().by_key.len()
    }

    /// Whether no bucket is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Buckets> {
        // Nothing that could panic happens while a bucket is half changed.
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
