//! Standing cohorts: one beacon address, any number of announcements, many DIDs for each seat (docs/standing.md).
//!
//! ```text
//!  formation ── keys ──▶ one output, no recovery leaf                                   terms, transaction
//!  between opportunities: seats register indexes, by signed rows                        roster, context
//!  opportunity N:
//!    opportunity ───────▶ response: entries and nonces, signed by the seat              response
//!    board: the roster and all responses, the same bytes for every seat                  board
//!    request ───────────▶ rebuild the signal, check, sign ──▶ confirmation              transaction
//!  the last opportunity moves DIDs and coin to the address of another cohort            successor
//! ```
//!
//! The service is a bulletin board. Every seat gets the same bytes, rebuilds the map or the tree from them, and signs only if that
//! gives the signal. What a seat must be able to derive again follows from its [seed](SeatSeed).

mod archive;
mod board;
pub mod cohort;
mod context;
mod limits;
pub mod message;
pub mod number;
mod opportunity;
mod reader;
mod response;
mod roster;
pub mod seat;
mod seed;
mod signer;
mod successor;
mod terms;
mod transaction;

pub use self::{
    archive::{ArchivedBoard, ArchivedProof},
    board::{Board, BoardContent, BoardPlace, BoardProblem, SeatIndexes},
    context::CohortContext,
    opportunity::{CoinRef, Opportunity, OpportunityKind, TransactionHex},
    reader::{BoardReader, DirectReader, SharedBoards},
    response::{Entry, Response, ResponseContent, ResponseProblem},
    roster::{Roster, Row, RowAction, RowProblem},
    seed::SeatSeed,
    signer::SeatSigner,
    successor::{Succession, Successor},
    terms::{Absent, MAX_UNCONFIRMED, Registration, StandingBeacon, StandingPolicy, StandingTerms, Updates},
    transaction::{
        Destinations, Mode, StandingBuildError, StandingFault, TransactionCheck, announcement_vsize,
        build_announcement, build_refresh, prevouts, refresh_vsize, sighashes, signed_vsize,
        with_fallback_signatures, with_key_signatures,
    },
};

use crate::{
    did::Did,
    id::CohortId,
    key::PublicKey,
    output::{BeaconOutput, KeyAggregator, OutputError},
};

/// The output of a cohort of these keys.
fn output_of(
    terms: &StandingTerms,
    keys: &[PublicKey],
    aggregator: &dyn KeyAggregator,
) -> Result<BeaconOutput, OutputError> {
    let keys: Vec<[u8; 33]> = keys.iter().map(|key| key.to_bytes()).collect();
    let aggregation = aggregator.aggregate(&keys)?;
    BeaconOutput::new(aggregation, terms.network, &terms.script_tree())
}

/// What the signatures of a formed cohort are bound to.
fn context_of(terms: &StandingTerms, service: &Did, cohort_id: &CohortId, output: &BeaconOutput) -> CohortContext {
    CohortContext {
        network: terms.network,
        service: service.clone(),
        cohort_id: cohort_id.clone(),
        beacon_address: output.address().to_owned(),
    }
}
