//! Supervision: how actors are started, leased, restarted and given up. Which actor gets what is in [`tree`](crate::tree).
//!
//! actix drops an actor whose handler panics, silently, and with it its mailbox. Here every actor runs in a [`Running`] task, which
//! catches the panic. An actor that can be restarted in place keeps its address and what waits in its mailbox: its state is replaced
//! by that of a fresh actor, which replays its journal before it looks at the next message. Any other is dropped, and its
//! [`EndGuard`] notifies its owner.
//!
//! - [`start`]: the one way in which an actor of the tree is started.
//! - [`Lease`]: held by the owner; the actor ends when it is dropped.
//! - [`Restarts`]: how often an actor was restarted, the pause before the next time, and when to give up.
//! - [`replay`]: a machine from the events of its journal.

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
