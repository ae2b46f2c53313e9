//! A cohort, seen from both sides: what the [`service`] and each [`participant`] know, decide and owe the world.
//!
//! [`conditions`] are the terms that both agree on. The signing of the beacon transaction has machines of its own, in
//! [`signing`](crate::signing).

mod advert;
pub mod conditions;
mod ending;
pub mod event;
pub mod participant;
pub mod service;

mod roster;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::{
    advert::Advert,
    roster::{Member, MemberError},
};

/// How long a role waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// From the advert (or from joining) to the start of signing, in all.
    pub cohort_ttl: Duration,
    /// In any one phase before signing.
    pub phase_timeout: Duration,
    /// For nonces, for partial signatures, and for fallback signatures, each.
    pub signing_timeout: Duration,
    /// Between repeats of the advert, while it admits.
    pub advert_repeat: Duration,
}

impl Default for Timing {
    /// A day in all, an hour a phase, ten minutes a signing phase, an advert a minute.
    fn default() -> Self {
        Self {
            cohort_ttl: Duration::from_secs(24 * 3600),
            phase_timeout: Duration::from_secs(3600),
            signing_timeout: Duration::from_secs(600),
            advert_repeat: Duration::from_secs(60),
        }
    }
}
