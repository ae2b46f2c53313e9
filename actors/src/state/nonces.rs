//! The nonces that a server must not accept twice, not even after a restart.

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use btcr2_aggregation_protocol::{did::Did, time::Timestamp};

use super::{Edit, State, StateError, Table};
use crate::transport::http::store::{KnownNonce, KnownNonces, NONCES, NONCES_PER_DID, NonceStore, NonceVerdict};

const PAGE: usize = 4_096;

/// Nonces in a state directory, and in memory as well, with the same bounds as
/// [`MemoryNonces`](crate::transport::http::store::MemoryNonces).
///
/// A nonce is recorded in memory at once, and the answer that it is fresh waits for the disk: a nonce that was accepted
/// before a crash is refused after it. If it cannot be written, it is refused as if the store were full.
pub struct StateNonces {
    table: Table,
    known: Mutex<KnownNonces>,
}

impl StateNonces {
    /// Loads the stored nonces that could still be accepted at `now`, with the default bounds of
    /// [`MemoryNonces`](crate::transport::http::store::MemoryNonces).
    ///
    /// # Errors
    /// When the table cannot be read or written.
    pub async fn load(state: &State, now: Timestamp) -> Result<Self, StateError> {
        Self::with_room(state, now, NONCES_PER_DID, NONCES).await
    }

    /// The same with bounds of `per_did` nonces of each DID and `total` nonces.
    ///
    /// # Errors
    /// When the table cannot be read or written.
    pub async fn with_room(
        state: &State,
        now: Timestamp,
        per_did: usize,
        total: usize,
    ) -> Result<Self, StateError> {
        let table = state.table("nonces");
        let mut known = KnownNonces::new(per_did, total);
        let mut after = None;
        loop {
            let page = table.scan(Vec::new(), after, PAGE).await?;
            let mut useless = Vec::new();
            // The key contains the whole nonce. A damaged entry whose key still parses is refused rather than removed.
            for key in page.entries.into_iter().map(|(key, _)| key).chain(page.damaged) {
                match parse(&key) {
                    Some(nonce) if nonce.0 >= now => known.restore(nonce),
                    _ => useless.push(Edit::Remove(key)),
                }
            }
            table.edit(useless).await?;
            after = page.next;
            if after.is_none() {
                return Ok(Self { table, known: Mutex::new(known) });
            }
        }
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
        // No code panics while the value is partly changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ordered by time, so that nonces that expire together are adjacent.
fn key((until, did, nonce): &KnownNonce) -> Vec<u8> {
    [&until.as_millis().to_be_bytes()[..], nonce, did.as_str().as_bytes()].concat()
}

fn parse(key: &[u8]) -> Option<KnownNonce> {
    let (until, rest) = key.split_first_chunk()?;
    let (nonce, did) = rest.split_first_chunk()?;
    let did = Did::parse(std::str::from_utf8(did).ok()?).ok()?;
    Some((Timestamp::from_millis(u64::from_be_bytes(*until)), did, *nonce))
}

#[async_trait]
impl NonceStore for StateNonces {
    async fn remember(&self, from: &Did, nonce: [u8; 16], now: Timestamp, until: Timestamp) -> NonceVerdict {
        let written = {
            let mut known = self.lock();
            let expired = known.forget_expired(now);
            let verdict = known.remember(from, nonce, until);
            let mut edits: Vec<Edit> = expired.iter().map(|expired| Edit::Remove(key(expired))).collect();
            if verdict == NonceVerdict::Fresh {
                edits.push(Edit::Put(key(&(until, from.clone(), nonce)), Vec::new()));
            }
            // Queued under the lock, so that the disk sees the changes in the same order.
            let written = (!edits.is_empty()).then(|| self.table.edit(edits));
            match (verdict, written) {
                (NonceVerdict::Fresh, Some(written)) => written,
                (verdict, _) => return verdict,
            }
        };
        match written.await {
            Ok(()) => NonceVerdict::Fresh,
            Err(error) => {
                tracing::error!(%error, "a nonce cannot be stored, so no request is accepted");
                NonceVerdict::Full
            }
        }
    }
}
