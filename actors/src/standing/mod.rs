//! Standing cohorts as actors (docs/standing.md): a cohort at its service, each of its numbers, and the seats of a member.
//!
//! - `cohort`: the service's side; `number` is one try at an announcement: its opportunity and its signing session in one machine.
//! - `member`: the member's side: one listener for adverts, and an actor for each seat.
//! - `coins`: looks at the chain for both sides.
//! - [`boards`]: the store of boards (port). [`policy`]: the host's decisions. [`notice`]: what a host is notified of.

pub mod boards;
pub(crate) mod cohort;
mod coins;
pub(crate) mod member;
pub mod notice;
pub mod policy;
mod settings;

pub use self::{
    member::{MemberSettings, SeatRequest, SeatSummary},
    settings::{ChainView, StandingSettings},
};
