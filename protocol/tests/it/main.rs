//! Tests of the protocol, as one binary.
#![allow(clippy::unwrap_used, unreachable_pub)]

// Shared by the tests.
mod bitcoin_support;
mod common;
mod sim_support;

mod beacon_address_vectors;
mod beacon_transaction;
mod cas_vectors;
mod cohort_ended;
mod conditions_of_time;
mod crash_properties;
mod custom_beacon;
mod delivery;
mod did_vectors;
mod downtime;
mod envelope;
mod envelope_vectors;
mod explore;
mod fallback_vectors;
mod hostile_participant;
mod hostile_service;
mod hostile_signing;
mod jcs_vectors;
mod membership;
mod message_vectors;
mod musig2_vectors;
mod network_properties;
mod nostr_vectors;
mod phase_rules;
mod presence;
mod recovery_vectors;
mod reformation;
mod request_auth_vectors;
mod resolution;
mod resume;
mod rules;
mod singleton;
mod singleton_coins;
mod smt_vectors;
mod standing;
mod transcript_rounds;
mod transcript_tree;
mod update_vectors;
