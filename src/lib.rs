//! Aggregation of did:btcr2 updates: many DID controllers share one Bitcoin transaction.
//!
//! This crate is the host: the command line ([`cli`]), the service and the participant as programs ([`serve`],
//! [`join`]), the checks by Bitcoin's own rules ([`bitcoin`]), the publication of announcements ([`cas`]),
//! announcements without a cohort ([`singleton`]), standing cohorts ([`standing`]) and what they cost ([`costs`]), a member's stored data and its watch ([`vault`]), the health of a DID
//! ([`check`]), the operator's console ([`console`]), what resolvers see ([`resolve`]), what the programs of a DID's controller share ([`controller`]), and a whole
//! cohort in one process ([`demo`]). Messages and state machines are in [`protocol`], the actors that drive them in
//! [`actors`]; another host needs only those two.

// They panic when the disk is full or the reader of the pipe has exited: `out!` and `err!` do not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub use btcr2_aggregation_actors as actors;
pub use btcr2_aggregation_protocol as protocol;

// First: its macros are in scope in the modules below it.
#[macro_use]
mod output;

pub mod bitcoin;
pub mod cas;
pub mod check;
pub mod cli;
pub mod config;
pub mod console;
pub mod control;
pub mod controller;
pub mod cost;
pub mod costs;
pub mod demo;
pub mod error;
pub mod events;
mod files;
mod html;
pub mod inputs;
pub mod join;
pub mod keyfile;
pub mod member;
pub mod metrics;
pub mod passphrase;
pub mod resolve;
pub mod serve;
mod shell;
pub mod singleton;
mod socket;
pub mod standing;
mod storage;
pub mod systemd;
pub mod telemetry;
pub mod vault;
mod words;
