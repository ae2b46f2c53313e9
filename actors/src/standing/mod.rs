//! Standing cohorts as actors (docs/standing.md): a cohort at its service, each of its numbers, and the seats of a member.
//!
//! - `cohort`: the service's side; `number` is one try at an announcement: its opportunity and its signing session in one machine.
//! - `member`: the member's side: one listener for adverts, and an actor for each seat.
//! - `coins`: looks at the chain for both sides.
//! - [`boards`]: the store of boards (port). [`history`]: what was announced (port), and what is served of it. [`policy`]: the host's decisions. [`notice`]: what a host is notified of.

pub mod boards;
pub(crate) mod cohort;
mod coins;
pub mod history;
pub(crate) mod member;
pub mod notice;
pub mod policy;
mod settings;

use actix::Context;
use btcr2_aggregation_protocol::machine::Machine;

pub use self::{
    member::{MemberSettings, SeatRequest, SeatSummary},
    settings::{ChainView, StandingSettings},
};
use crate::engine::Driven;

/// The journal of a cohort or a seat is replaced by one event when it has more records than this, and more than one for each
/// [`ROWS_PER_RECORD`] rows: what replaces it has all rows.
const RECORDS: usize = 256;
const ROWS_PER_RECORD: u64 = 64;

/// Replaces the journal of an actor, whose machine has so many rows, by what `saved` gives, if it has become long.
fn compact<A: Driven>(
    actor: &mut A,
    rows: u64,
    saved: fn(&A::Machine) -> Option<<A::Machine as Machine>::Event>,
    ctx: &mut Context<A>,
) {
    let engine = actor.engine();
    let most = RECORDS + usize::try_from(rows / ROWS_PER_RECORD).unwrap_or(usize::MAX);
    if engine.records() > most
        && engine.is_released()
        && let Some(saved) = saved(engine.machine())
    {
        actor.compact_to(Some(saved), ctx);
    }
}
