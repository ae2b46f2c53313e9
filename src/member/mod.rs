//! `member`: a controller's agent in standing cohorts, which lives for years. It has the seats of several seeds, at several services; a durable
//! [`queue`] of updates; a [`policy`] for what it is offered and asked to sign; a [`control`] socket for its owner; and [`backup`]s.
//!
//! ```text
//!  update --queue ─┐                        ┌─ seats of seed A ─ HTTP, Nostr ─▶ services
//!  member approve ─┼─▶ control ─▶ agent ────┼─ seats of seed B
//!  member status  ─┘      │         │       └─ …
//!                         ▼         ▼
//!                       queue    approvals ─▶ a person, a hook
//! ```
//!
//! Without an agent the same commands work on the state directory.

mod agent;
pub mod approval;
pub mod backup;
mod config;
#[cfg(unix)]
mod console;
pub mod control;
pub mod data;
#[cfg(unix)]
mod desk;
#[cfg(unix)]
mod details;
mod explained;
pub mod health;
mod identities;
pub mod leaving;
mod lives;
#[cfg(unix)]
mod minting;
pub mod notice;
pub mod policy;
pub mod queue;
pub mod report;
#[cfg(unix)]
mod rescue;
pub mod restored;
mod seat;
mod seeds;
mod settling;
pub mod silence;
mod source;
mod tally;

pub use self::explained::Explained;
pub use self::{
    config::{BackupSettings, MINTED, MemberConfig, ROLE, SIDECARS, SeatSettings, ServiceSettings},
    control::{OfflineError, offline},
    lives::run,
};
