//! The rules of did:btcr2 (edition of October 2026) that concern a service and a participant: one test for each rule,
//! named after it, and the cases of the public test suite and of the specification.
//!
//! Rules that recorded data covers completely are in `*_vectors.rs`; here each rule is broken by itself.

mod announcements;
mod both_sides;
mod controller;
mod identifiers;
mod suite;
mod transactions;
mod trees;
mod updates;
