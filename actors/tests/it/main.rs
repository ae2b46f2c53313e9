//! Tests of the actors, as one binary.
#![allow(clippy::unwrap_used, unreachable_pub)]

// What the tests share.
mod common;
mod http_support;

mod admission;
mod adverts;
mod bans;
mod clock;
mod connections;
mod downtime;
mod halted;
mod http_acknowledged;
mod http_bytes;
mod http_client;
mod http_gates;
mod http_limits;
mod http_openapi;
mod http_receipts;
mod http_restart;
mod http_sockets;
mod http_streams;
mod http_vectors;
mod invitations;
mod isolation;
mod journal_before_effects;
mod journal_compat;
mod journal_conformance;
mod load;
mod nostr_memory;
mod nostr_transport;
mod panics;
mod relay_quirks;
mod restart_participant;
mod restart_service;
mod rules;
mod soak;
mod state_cohort;
mod state_damage;
mod state_directory;
mod state_stores;
mod state_transfer;
mod strangers;
mod subscribers;
mod transport_conformance;
mod whole_cohort;
