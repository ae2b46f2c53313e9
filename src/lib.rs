//! Aggregation of did:btcr2 updates: many DID controllers share one Bitcoin transaction.
//!
//! This crate is the host: the command line ([`cli`]), the service and the participant as programs ([`serve`], [`join`]),
//! the checks by Bitcoin's own rules ([`bitcoin`]), where announcements are published ([`cas`]), what a member can do without
//! any cohort ([`singleton`]), what it keeps and watches ([`vault`]), and a whole cohort in one process ([`demo`]). What is said and decided is in [`protocol`], who
//! acts is in [`actors`]; a host of your own needs only those two.

// They panic when the disk is full or the reader has left: `out!` and `err!` do not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub use btcr2_aggregation_actors as actors;
pub use btcr2_aggregation_protocol as protocol;

// First: its macros are in scope in the modules below it.
#[macro_use]
mod output;

pub mod bitcoin;
pub mod cas;
pub mod cli;
pub mod config;
pub mod cost;
pub mod demo;
pub mod error;
pub mod events;
mod files;
pub mod inputs;
pub mod join;
mod keep;
pub mod keyfile;
pub mod metrics;
pub mod serve;
pub mod singleton;
mod steps;
pub mod telemetry;
pub mod vault;
