//! Tests of the programs and of the host, as one binary: tests of a process start the real program.
#![allow(clippy::unwrap_used, unreachable_pub)]

// Shared by the tests.
#[macro_use]
mod announcement_support;
mod bitcoind_support;
mod cas_support;
#[cfg(unix)]
mod member_support;
mod nostr_support;
mod resolver_support;
mod round_support;
mod support;
mod vault_support;

mod admission;
mod adoption;
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
mod chain_signals;
mod chain_sources;
mod check_cli;
mod confirmations;
#[cfg(unix)]
mod container;
mod control;
mod cost;
mod crash_participant;
mod crash_service;
mod demo;
mod directory;
mod docs;
mod event_docs;
mod examples;
mod fallback_policy;
mod full_disk;
mod funding;
mod hostile_floods;
mod hostile_processes;
mod hostile_text;
mod http_cli;
mod http_processes;
mod input_formats;
mod join_resolved;
mod life;
mod logs;
#[cfg(unix)]
mod member_backup;
#[cfg(unix)]
mod member_console;
mod member_costs;
#[cfg(unix)]
mod member_drills;
#[cfg(target_os = "linux")]
mod member_idle;
#[cfg(unix)]
mod member_policy;
#[cfg(unix)]
mod member_queue;
#[cfg(unix)]
mod member_years;
mod members;
mod metrics;
mod nostr_memory;
mod nostr_processes;
mod nostr_storms;
mod operator_coins;
mod outcomes;
mod proxies;
mod publication;
mod real_carriers;
mod recovery;
mod refused_input;
mod resolve_cli;
mod resolver_limits;
mod resolver_serve;
mod restart_processes;
mod secrets;
mod serve_health;
mod several;
mod sighup;
mod silence;
mod singleton_chain;
mod singleton_cli;
mod standing_crashes;
mod standing_processes;
mod state_cli;
mod story;
#[cfg(unix)]
mod systemd;
mod takeover_processes;
mod tls;
mod unread_output;
mod update_cli;
mod vault_backup;
mod verification;
