//! Supervision: how actors are started, leased, restarted and given up. The policy of each kind of actor is in
//! [`tree`](crate::tree).
//!
//! actix silently drops an actor whose handler panics, and its mailbox with it. Here every actor runs in a `Running`
//! task, which catches the panic. An actor that can be restarted in place retains its address and the messages in its
//! mailbox: its state is replaced by that of a fresh actor, which replays its journal before it processes the next
//! message. Any other actor is dropped, and its [`EndGuard`] notifies its owner.
//!
//! - `start`: the only way in which an actor of the tree is started.
//! - `Lease`: held by the owner; the actor ends when it is dropped.
//! - `Restarts`: the number of restarts of an actor, the pause before the next one, and when to give up.
//! - `replay`: restores a machine from the events of its journal.

mod end;
mod lease;
pub(crate) mod replay;
mod restart;
mod running;
#[cfg(test)]
pub(crate) mod sabotage;
mod vitals;

pub use self::{
    end::{End, EndGuard},
    restart::RestartIntensity,
    vitals::{Gone, Vitals},
};
pub(crate) use self::{
    lease::{Lease, Leased},
    restart::{Attempt, Restarts},
    running::{InTree, start, start_leased},
};
