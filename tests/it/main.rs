//! Tests of the programs and of the host, as one binary: what needs a process starts the real program.
#![allow(clippy::unwrap_used, unreachable_pub)]

// What the tests share.
#[macro_use]
mod announcement_support;
mod bitcoind_support;
mod cas_support;
mod nostr_support;
mod round_support;
mod support;

mod announcement;
mod announcement_coins;
mod announcement_faults;
mod announcement_rules;
mod bans_cli;
mod cas_cli;
mod cas_conformance;
mod chain_cohorts;
mod chain_conformance;
mod chain_operation;
mod chain_processes;
mod confirmations;
mod cost;
mod crash_participant;
mod crash_service;
mod demo;
mod docs;
mod edges;
mod event_docs;
mod examples;
mod fallback_policy;
mod full_disk;
mod funding;
mod hostile_processes;
mod http_cli;
mod http_processes;
mod logs;
mod members;
mod metrics;
mod nostr_memory;
mod nostr_processes;
mod nostr_storms;
mod operator_coins;
mod outcomes;
mod proxies;
mod publication;
mod recovery;
mod restart_processes;
mod secrets;
mod serve_health;
mod silence;
mod singleton_cli;
mod state_cli;
mod takeover_processes;
mod tls;
mod verification;
