//! Who may use how much at once: a total, and for each network a part of it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::actors::transport::connections::Network;

/// How many each network has.
type Taken = BTreeMap<Option<Network>, u32>;

/// So many of something, of which each network can have a quarter.
#[derive(Clone)]
pub(super) struct Shares {
    total: u32,
    all: Arc<Semaphore>,
    taken: Arc<Mutex<Taken>>,
}

/// One of them, until it is dropped.
pub(super) struct Share {
    network: Option<Network>,
    taken: Arc<Mutex<Taken>>,
    _permit: OwnedSemaphorePermit,
}

impl Shares {
    pub(super) fn new(total: u32) -> Self {
        let permits = usize::try_from(total).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { total, all: Arc::new(Semaphore::new(permits)), taken: Arc::default() }
    }

    /// One more for that network, if it and the total have room.
    pub(super) fn take(&self, network: Option<Network>) -> Option<Share> {
        let permit = Arc::clone(&self.all).try_acquire_owned().ok()?;
        let mut taken = lock(&self.taken);
        let count = taken.get(&network).copied().unwrap_or_default();
        if count >= self.total.div_ceil(4) {
            return None;
        }
        taken.insert(network, count + 1);
        drop(taken);
        Some(Share { network, taken: Arc::clone(&self.taken), _permit: permit })
    }

    /// How many are in use.
    pub(super) fn in_use(&self) -> usize {
        let total = usize::try_from(self.total).unwrap_or(usize::MAX);
        total.saturating_sub(self.all.available_permits())
    }

    /// Waits until none is in use, for `patience` at most.
    pub(super) async fn idle(&self, patience: Duration) {
        // After that time the rest is cut off.
        let _ = tokio::time::timeout(patience, self.all.acquire_many(self.total)).await;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        if let Some(count) = taken.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.network);
            }
        }
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    // No code panics while it holds the lock.
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Option<Network> {
        Some(Network::of_connection(text.parse().unwrap()))
    }

    #[tokio::test]
    async fn one_network_leaves_room_for_others() {
        let shares = Shares::new(8);
        let mut greedy: Vec<_> = (0..8).map_while(|_| shares.take(network("192.0.2.1"))).collect();
        assert_eq!((greedy.len(), shares.in_use()), (2, 2));
        let other = shares.take(network("192.0.2.2"));
        assert!(other.is_some() && shares.take(None).is_some());
        drop(greedy.pop());
        assert!(shares.take(network("192.0.2.1")).is_some(), "a share that was returned");
        drop((greedy, other));
        assert_eq!((shares.in_use(), lock(&shares.taken).len()), (0, 0));
        shares.idle(Duration::from_secs(1)).await;
        let few = Shares::new(1);
        let one = few.take(None);
        assert!(one.is_some() && few.take(None).is_none() && few.take(network("192.0.2.1")).is_none());
    }
}
