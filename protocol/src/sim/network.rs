//! The network between the peers: texts under way, and what happens to them.

use std::{collections::BTreeMap, time::Duration};

use rand_chacha::ChaCha8Rng;
use rand_core::RngCore;

use crate::{did::Did, time::Timestamp};

/// What the network does to texts under way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Faults {
    /// Of a thousand texts, the number that is lost.
    pub drop_per_mille: u32,
    /// The time after which a lost text is sent again, as by a transport that waits for an acknowledgement; `None`
    /// for never.
    pub retry: Option<Duration>,
    /// Of a thousand texts, the number that arrives twice, each copy with its own delay.
    pub repeat_per_mille: u32,
    /// The shortest delay.
    pub min_delay: Duration,
    /// The longest delay. Texts overtake each other when it is not equal to the shortest.
    pub max_delay: Duration,
}

impl Default for Faults {
    /// Every text arrives once, in order, after 10 ms.
    fn default() -> Self {
        let delay = Duration::from_millis(10);
        Self { drop_per_mille: 0, retry: None, repeat_per_mille: 0, min_delay: delay, max_delay: delay }
    }
}

/// A text under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    /// The actual sender, as a transport would have authenticated it.
    pub(super) sender: Did,
    pub(super) recipient: Did,
    pub(super) text: String,
}

/// The texts under way, by arrival; those of one instant in the order in which they were sent.
#[derive(Debug, Default)]
pub(super) struct Network {
    under_way: BTreeMap<(Timestamp, u64), Packet>,
    sent: u64,
    lost: u64,
}

impl Network {
    pub(super) fn send(&mut self, now: Timestamp, packet: Packet, faults: &Faults, rng: &mut ChaCha8Rng) {
        /// A text is lost at most this number of times.
        const MOST_TRIES: usize = 8;
        let mut sent_at = now;
        for _ in 0..MOST_TRIES {
            if !chance(faults.drop_per_mille, rng) {
                break;
            }
            self.lost += 1;
            let Some(retry) = faults.retry else { return };
            sent_at = sent_at + retry;
        }
        if chance(faults.repeat_per_mille, rng) {
            self.put(sent_at + delay(faults, rng), packet.clone());
        }
        self.put(sent_at + delay(faults, rng), packet);
    }

    /// Drops half of the texts that `sender` has under way, which it had not delivered when it crashed.
    pub(super) fn forget_half_of(&mut self, sender: &Did, rng: &mut ChaCha8Rng) {
        self.under_way.retain(|_, packet| packet.sender != *sender || chance(500, rng));
    }

    /// The number of texts that were lost.
    pub(super) const fn lost(&self) -> u64 {
        self.lost
    }

    pub(super) fn put(&mut self, arrival: Timestamp, packet: Packet) {
        self.sent += 1;
        self.under_way.insert((arrival, self.sent), packet);
    }

    pub(super) fn next_arrival(&self) -> Option<Timestamp> {
        self.under_way.first_key_value().map(|((arrival, _), _)| *arrival)
    }

    pub(super) fn take_next(&mut self) -> Option<Packet> {
        self.under_way.pop_first().map(|(_, packet)| packet)
    }
}

pub(super) fn chance(per_mille: u32, rng: &mut ChaCha8Rng) -> bool {
    rng.next_u64() % 1000 < u64::from(per_mille)
}

fn delay(faults: &Faults, rng: &mut ChaCha8Rng) -> Duration {
    let span = faults.max_delay.saturating_sub(faults.min_delay).as_millis() as u64;
    faults.min_delay + Duration::from_millis(rng.next_u64() % (span + 1))
}
