//! What actors take from the world besides messages: time and randomness, both injected.

use std::time::{SystemTime, UNIX_EPOCH};

use btcr2_aggregation_protocol::{hash::sha256_concat, time::Timestamp};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use tokio::time::Instant;

/// The wall clock, driven by tokio's: under a paused tokio clock it stands still and jumps with it, so that tests need
/// not sleep.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    epoch: Timestamp,
    started: Instant,
}

impl Clock {
    /// A clock that shows the system's time now.
    pub fn system() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::starting_at(Timestamp::default() + now)
    }

    /// A clock that shows `epoch` now.
    pub fn starting_at(epoch: Timestamp) -> Self {
        Self { epoch, started: Instant::now() }
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.epoch + self.started.elapsed()
    }
}

/// Where actors get their random number generators from.
#[derive(Clone, Copy, Debug)]
pub enum Randomness {
    /// Each generator is seeded by the operating system. The only choice where real keys or coins are at stake.
    System,
    /// Each generator is seeded from this seed and the actor's name, so that a run can be repeated. Running twice with one
    /// seed and one key uses MuSig2 nonces twice: for demonstrations, tests and simulations with throw-away keys only.
    Seeded([u8; 32]),
}

impl Randomness {
    /// The generator of the actor called `name`.
    pub fn for_actor(&self, name: &str) -> ChaCha20Rng {
        match self {
            Self::System => ChaCha20Rng::from_os_rng(),
            Self::Seeded(seed) => ChaCha20Rng::from_seed(sha256_concat(&[seed, name.as_bytes()])),
        }
    }
}
