//! Whole rounds of actors in the test's own process ([`round`]) over real transports, with wrappers around journals and
//! transports that watch, change messages or kill the process ([`tap`]).
//!
//! For the crash matrix ([`matrix`]) one role is a separate process that is killed: the test binary, started again
//! ([`child`]). Where it dies is a [`Point`].

pub mod child;
pub mod matrix;
pub mod round;
pub mod tap;
pub mod transcript;

use std::time::Duration;

use btcr2_aggregation::protocol::beacon::BeaconType;
use serde::{Deserialize, Serialize};

/// How long a whole round may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// How many members a cohort has.
pub const MEMBERS: usize = 5;

/// The member that declines to update, so that both kinds of slots are proven.
pub const DECLINES: usize = 1;

/// The member that never sends its nonce, where the fallback is to be taken.
pub const SILENT: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Over {
    Http,
    Nostr,
}

/// A round.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Scenario {
    pub name: &'static str,
    pub smt: bool,
    /// Whether one member stays silent, so that only the fallback is left.
    pub fallback: bool,
    pub over: Over,
}

impl Scenario {
    pub const ALL: [Self; 4] = [
        Self { name: "cas-key", smt: false, fallback: false, over: Over::Http },
        Self { name: "smt-key", smt: true, fallback: false, over: Over::Nostr },
        Self { name: "cas-fallback", smt: false, fallback: true, over: Over::Nostr },
        Self { name: "smt-fallback", smt: true, fallback: true, over: Over::Http },
    ];

    pub fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|scenario| scenario.name == name).unwrap()
    }

    pub fn beacon(&self) -> BeaconType {
        if self.smt { BeaconType::smt() } else { BeaconType::cas() }
    }

    pub fn is_silent(&self, member: usize) -> bool {
        self.fallback && member == SILENT
    }
}

/// Where a process is killed: after so many
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Point {
    /// appends (or archivings) that have become durable,
    Appended(usize),
    /// messages that its transport was given, and that are lost with it,
    Given(usize),
    /// messages that have arrived at their recipients.
    Arrived(usize),
}
