//! A cohort on both sides: the state, decisions and effects of the [`service`] and of each [`participant`].
//!
//! [`conditions`] are the terms that both agree on. The state machines for signing the beacon transaction are in
//! [`signing`](crate::signing).

mod advert;
pub mod conditions;
mod delivery;
mod ending;
pub mod event;
pub mod participant;
pub mod service;
pub mod standing;

mod roster;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::{
    advert::Advert,
    delivery::{Undelivered, Unreached},
    roster::{Member, MemberError},
};

/// How long a role waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// From the advert (at a participant: from joining) to the start of signing.
    pub cohort_ttl: Duration,
    /// For each phase before signing.
    pub phase_timeout: Duration,
    /// For nonces, for partial signatures, and for fallback signatures, each.
    pub signing_timeout: Duration,
    /// Between two repeats of the advert while the cohort admits members.
    pub advert_repeat: Duration,
}

impl Default for Timing {
    /// 1 day for the cohort, 1 hour a phase, 10 minutes a signing phase, 1 minute between adverts.
    fn default() -> Self {
        Self {
            cohort_ttl: Duration::from_secs(24 * 3600),
            phase_timeout: Duration::from_secs(3600),
            signing_timeout: Duration::from_secs(600),
            advert_repeat: Duration::from_secs(60),
        }
    }
}
