//! The did:btcr2 aggregation cohort protocol, sans-I/O.
//!
//! What is said and decided, and nothing else: no sockets, no clock, no operating-system randomness, no runtime. Time
//! comes in as a [`time::Timestamp`], randomness as a `&mut dyn CryptoRng`, messages as text; effects go out as values.
//!
//! # One round
//!
//! ```text
//!  Aggregation Service                                   Participant                     found in
//!  ───────────────────────────────────────────────────────────────────────────────────────────────────────────
//!  cohort_advert ──────────────────────────────────────▶ should I join?                  cohort::conditions
//!  admit?        ◀────────────────────────────────────── cohort_opt_in                   cohort::service
//!                cohort_opt_in_accept ─────────────────▶
//!  aggregate keys, derive the beacon output                                              output
//!                cohort_ready ─────────────────────────▶ derive it again                 cohort::participant
//!  verify        ◀────────────────────────────────────── submit_update, or               update
//!                                                        submit_nonincluded
//!  aggregate the updates into the signal                                                 beacon
//!                distribute_aggregated_data ───────────▶ recompute the signal
//!                ◀────────────────────────────────────── validation_ack
//!  build the beacon transaction                                                          output
//!                authorization_request ────────────────▶ check it; open a nonce          signing::nonce
//!  aggregate     ◀────────────────────────────────────── nonce_contribution              signing::session
//!                aggregated_nonce ─────────────────────▶ use the nonce, once
//!  aggregate     ◀────────────────────────────────────── signature_authorization
//!  ── or, when someone is missing or sent what is invalid ──
//!                fallback_authorization_request ───────▶ sign on the fallback leaf
//!  assemble k    ◀────────────────────────────────────── fallback_signature
//!  the signed beacon transaction
//! ```
//!
//! Every role is a [`machine::Machine`]: `decide`, `apply`, `effects`. Identifiers and documents are in [`did`],
//! [`document`], [`update`]; the wire format in [`message`]; what carries a
//! message over HTTP in [`envelope`] and [`request_auth`], and over Nostr in [`nostr`] (codecs, no sockets); what a round
//! leaves behind in [`sidecar`] and [`transcript`]; its way into the [`chain`] in [`announcement`]; what becomes of it, a document at a version, in [`resolution`].
//! The actors that carry these machines through a runtime are the crate `btcr2-aggregation-actors`.

pub mod announcement;
pub mod beacon;
pub mod chain;
pub mod cohort;
pub mod did;
pub mod document;
pub mod error;
pub mod hash;
pub mod id;
pub mod identity;
pub mod invite;
pub mod jcs;
pub mod key;
pub mod machine;
pub mod message;
mod names;
pub mod network;
pub mod output;
pub mod patch;
pub mod remembered;
pub mod resolution;
pub mod sidecar;
pub mod signing;
#[cfg(feature = "sim")]
pub mod sim;
pub mod text;
pub mod time;
pub mod transcript;
pub mod update;
#[cfg(any(test, feature = "sim"))]
pub mod work;
#[cfg(not(any(test, feature = "sim")))]
mod work;

pub use self::message::{envelope, nostr, request_auth};
