//! The actors of did:btcr2 aggregation, on actix.
//!
//! Actors translate messages and own mailboxes; the state machines of `btcr2-aggregation-protocol` decide what may
//! happen in the protocol. A host starts a [`Service`](handle::Service) or a [`Participant`](handle::Participant),
//! answers its questions through the traits of [`policy`], and reads its [`events`].
//!
//! - [`handle`]: what a host holds; [`events`]: what it receives, at least once; [`transports`]: transports by
//!   configuration.
//! - [`service`]: an Aggregation Service, its cohorts and their signing sessions.
//! - `participant`: a DID controller and its sessions.
//! - [`standing`]: standing cohorts, their numbers, and seats in them.
//! - [`announcement`]: the way of a cohort's signal into the chain.
//! - [`transport`], [`journal`] and [`chain`]: the ports.
//! - [`state`]: the state directory, which stores the journal and everything else that must survive the process.
//! - [`bans`]: members that committed an offence and are not admitted for a while; [`invites`]: who may join;
//!   [`seats`]: how often; [`subject`]: whom a ban or a limit is about.
//! - [`tree`]: which actors exist; [`supervision`]: how they are started, and restarted after a panic.
//! - [`backoff`]: the delays between attempts.
//! - [`load`]: counts of a service's messages, for hosts that measure.
//! - `span`: the spans of log lines; docs/operating.md lists them.
//! - `engine`: how an actor drives a machine: decide, apply, journal, and only then perform.
//! - [`runtime`]: time and randomness, injected.

// A transport of the integration tests is used by the tests of `tree` too.
#[cfg(test)]
extern crate self as btcr2_aggregation_actors;

pub mod announcement;
pub mod backoff;
pub mod bans;
pub mod chain;
mod cool_downs;
mod deliveries;
mod engine;
pub mod events;
mod evidence;
pub mod handle;
pub mod invites;
pub mod journal;
pub mod load;
mod log_limiter;
pub mod notice;
mod participant;
pub mod policy;
pub mod runtime;
pub mod seats;
pub mod service;
mod settings;
pub mod shared_table;
mod span;
pub mod standing;
pub mod state;
pub mod subject;
pub mod supervision;
mod supervisor;
pub mod transport;
pub mod transports;
pub mod tree;
