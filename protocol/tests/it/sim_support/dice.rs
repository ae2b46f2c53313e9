//! Random simulations, reproducible from their seeds.

use std::{env, panic::AssertUnwindSafe, time::Duration};

use btcr2_aggregation_protocol::{
    beacon::BeaconType,
    sim::{Faults, Role, SLOTS, Setup, Verdict},
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use super::{TIMEOUT, setup};

/// The seeds below `everyday`, or those of `SIM_SEEDS`: how many, or a range such as `819..820`.
pub fn seeds(everyday: u64) -> std::ops::Range<u64> {
    let Ok(wanted) = env::var("SIM_SEEDS") else { return 0..everyday };
    let (first, end) = wanted.split_once("..").unwrap_or(("0", &wanted));
    first.parse().unwrap()..end.parse().unwrap()
}

pub fn for_each_seed(everyday: u64, property: impl Fn(u64)) {
    for seed in seeds(everyday) {
        std::panic::catch_unwind(AssertUnwindSafe(|| property(seed)))
            .unwrap_or_else(|_| panic!("the property fails for seed {seed}"));
    }
}

pub struct Dice(ChaCha8Rng);

impl Dice {
    /// A random stream other than the simulation's of the same seed.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed ^ 0x5eed_0000_0000))
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound
    }

    pub fn honest(&mut self) -> Role {
        let mut role = if self.below(2) == 0 { Role::default() } else { Role::decliner() };
        role.external = self.below(4) == 0;
        role.separate_key = self.below(4) == 0;
        role
    }

    pub fn any_role(&mut self) -> Role {
        let role = self.honest();
        match self.below(8) {
            0 | 1 => role.silent_from(SLOTS[self.below(6) as usize]),
            2 => role.without(SLOTS[self.below(6) as usize]),
            3 => match self.below(4) {
                0 => Role { joins: false, ..role },
                1 => Role { signs: false, ..role },
                2 => Role { verdict: Verdict::Reject, ..role },
                _ => Role { verdict: Verdict::Approve, ..role },
            },
            _ => role,
        }
    }

    pub fn setup(&mut self, role: impl Fn(&mut Self) -> Role) -> Setup {
        let n = 1 + self.below(8);
        let roles = (0..n).map(|_| role(self)).collect();
        let beacon = if self.below(2) == 0 { BeaconType::cas() } else { BeaconType::smt() };
        setup(roles).with_beacon(beacon)
    }

    pub fn reordering(&mut self) -> Faults {
        Faults {
            repeat_per_mille: self.below(400) as u32,
            min_delay: Duration::from_millis(1),
            max_delay: Duration::from_millis(1 + self.below(TIMEOUT.as_millis() as u64 / 8)),
            ..Faults::default()
        }
    }
}
