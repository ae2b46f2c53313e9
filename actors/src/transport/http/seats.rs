//! Limits on waiting for an opt-in: requests for inboxes of EXTERNAL DIDs whose keys are not known yet. Such a
//! requester has not proved anything, so seats are few, and each address has a share.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub(super) struct Seats {
    most: usize,
    most_per_address: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    total: usize,
    by_address: BTreeMap<String, usize>,
}

/// A taken seat, which is freed on drop.
pub(super) struct Seat {
    seats: Arc<Seats>,
    address: String,
}

impl Seats {
    pub(super) fn new(most: usize, most_per_address: usize) -> Self {
        Self { most, most_per_address, taken: Mutex::default() }
    }

    /// A seat for `address`, if one is free.
    pub(super) fn take(self: &Arc<Self>, address: &str) -> Option<Seat> {
        let mut taken = self.lock();
        let of_address = taken.by_address.get(address).copied().unwrap_or(0);
        if taken.total >= self.most || of_address >= self.most_per_address {
            return None;
        }
        taken.total += 1;
        taken.by_address.insert(address.to_owned(), of_address + 1);
        Some(Seat { seats: Arc::clone(self), address: address.to_owned() })
    }

    /// The number of taken seats.
    pub(super) fn taken(&self) -> usize {
        self.lock().total
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // No code panics while the value is partly changed.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        taken.total -= 1;
        match taken.by_address.get_mut(&self.address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.by_address.remove(&self.address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_takes_its_share_of_the_seats_and_gives_it_back() {
        let seats = Arc::new(Seats::new(3, 2));
        let first = seats.take("a");
        let second = seats.take("a");
        assert!(first.is_some() && second.is_some() && seats.take("a").is_none());
        let third = seats.take("b");
        assert!(third.is_some() && seats.take("c").is_none(), "all are taken");
        drop(first);
        assert!(seats.take("c").is_some());
        drop((second, third));
        let taken = seats.lock();
        assert!(taken.total == 0 && taken.by_address.is_empty());
    }
}
