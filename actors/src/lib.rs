//! The actors of did:btcr2 aggregation, on actix.
//!
//! Actors translate and own mailboxes; what may happen in the protocol is decided by the machines of
//! `btcr2-aggregation-protocol`. A host starts a [`supervisor::Supervisor`], asks it for services and participants, answers
//! their questions through the traits of [`policy`], and listens to their [`notice`]s.
//!
//! - [`service`]: an Aggregation Service, its cohorts and their signing sessions.
//! - [`participant`]: a DID controller and its sessions.
//! - [`transport`] and [`journal`]: the two ports.
//! - [`state`]: the state directory, in which the journal and what else must survive the process is kept.
//! - [`bans`]: who did wrong, and is not admitted for a while; [`invites`]: who may come in; [`seats`]: how often; [`subject`]:
//!   who that is.
//! - [`tree`]: which actors there are; [`supervision`]: how they are started, and restarted after a panic.
//! - [`load`]: what a service has to do, counted, for hosts that measure.
//! - `span`: in which log lines are written; docs/operating.md lists them.
//! - `engine`: how an actor drives a machine: decide, apply, journal, and only then perform.
//! - [`runtime`]: time and randomness, injected.

pub mod bans;
mod cool_downs;
mod deliveries;
mod engine;
mod evidence;
pub mod invites;
pub mod journal;
pub mod load;
pub mod notice;
pub mod participant;
pub mod policy;
mod remembered;
pub mod runtime;
pub mod seats;
mod seldom;
pub mod service;
mod settings;
pub mod shared_table;
mod span;
pub mod state;
pub mod subject;
pub mod supervision;
pub mod supervisor;
pub mod transport;
pub mod tree;
