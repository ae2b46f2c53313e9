//! Resolving a did:btcr2 identifier, sans-I/O (did:btcr2, "Resolve"; rules R-1 to R-16 and C1 to C8 of the
//! specification's edition of October 2026).
//!
//! A [`Resolver`] reports what it [needs](Next::Needs), and is given it: the signals of beacon addresses, and documents
//! by their hash. Where they come from is the caller's. The order of the answers makes no difference: they are judged
//! when all that was asked for is there, in the order of the rules.
//!
//! ```text
//!  identifier ── genesis document ──▶ initial document ─┐                      state, data
//!      ┌────────────────────────────────────────────────┘
//!      ▼
//!    scan the addresses that the document lists and that are not scanned yet    signal
//!      ▼
//!    read what each signal announces: announcement or proof, update            data, sidecar
//!      ▼
//!    apply the updates by version, until the document lists a new address,     state
//!      │   or none is left
//!      ▼
//!    the document, or the error, with all that happened                        result, error, history
//! ```
//!
//! # Example
//!
//! A KEY identifier that was never updated: its three addresses have no signals.
//!
//! ```
//! use btcr2_aggregation_protocol::{
//!     did::Did,
//!     resolution::{Content, Need, Next, ResolutionError, ResolutionOptions, Resolver, SidecarData},
//! };
//!
//! let did = Did::parse("did:btcr2:k1qgph7nrekhzerkmsktp8l7rdtpxh2mw45xp6e90sjvxszpz6au0grssegjx6z").map_err(ResolutionError::from)?;
//! let mut resolver = Resolver::new(did, ResolutionOptions::default(), SidecarData::default());
//! let resolution = loop {
//!     match resolver.next() {
//!         Next::Done(resolution) => break resolution,
//!         Next::Needs(needs) => {
//!             for need in needs {
//!                 match need {
//!                     // Here the chain is asked.
//!                     Need::Signals { beacon, .. } => resolver.provide_signals(&beacon.address, Vec::new(), "no chain")?,
//!                     // And here a content store.
//!                     Need::Content { hash, .. } => resolver.provide_content(&hash, Content::Absent, "no store")?,
//!                     need => resolver.give_up(&format!("no source for {need:?}")),
//!                 }
//!             }
//!         }
//!     }
//! };
//! let resolved = resolution.outcome.as_ref().map_err(Clone::clone)?;
//! assert_eq!(resolved.metadata.version_id, 1);
//! println!("{}", serde_json::to_string(&resolution.result())?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod data;
mod error;
mod failure;
mod history;
mod need;
mod options;
mod resolver;
mod result;
mod sidecar;
mod signal;
mod state;

pub use self::{
    error::{Missing, MissingData, ProofFault, ResolutionError},
    failure::{ErrorCode, FailureRule},
    history::{Event, Finding, Ignored, IgnoredSignal, Source, Step},
    need::{Content, ContentKind, Need, NotNeeded},
    options::{DEFAULT_MIN_CONF, OptionsError, ResolutionOptions},
    resolver::{Next, Resolver},
    result::{DOCUMENT_MEDIA_TYPE, DocumentMetadata, RESULT_MEDIA_TYPE, Resolution, ResolutionResult, Resolved},
    sidecar::{SidecarData, SidecarError},
    signal::{Beacon, BeaconKind, BeaconSignal, Block, Signal, UnusableBeacon, beacons},
};
