//! Standing cohorts: one beacon address, any number of announcements, many DIDs for each seat (docs/standing.md).
//!
//! ```text
//!  formation ── keys ──▶ one output, no recovery leaf                                   terms, transaction
//!  between opportunities: seats register indexes, by signed rows                        roster, context
//!  opportunity N:
//!    opportunity ───────▶ response: entries and nonces, signed by the seat              response
//!    board: the roster and all responses, the same bytes for everybody                  board
//!    request ───────────▶ rebuild the signal, check, sign ──▶ confirmation              transaction
//! ```
//!
//! The service is a bulletin board. Every seat gets the same bytes, rebuilds the map or the tree from them, and signs only if that
//! gives the signal. What a seat must be able to derive again follows from its [seed](SeatSeed).

mod board;
mod context;
mod response;
mod roster;
mod seed;
mod terms;
mod transaction;

pub use self::{
    board::{Board, BoardContent, BoardPlace, BoardProblem, SeatIndexes},
    context::CohortContext,
    response::{Entry, Response, ResponseContent, ResponseProblem},
    roster::{Roster, Row, RowAction, RowProblem},
    seed::SeatSeed,
    terms::{Absent, MAX_UNCONFIRMED, Registration, StandingBeacon, StandingPolicy, StandingTerms, Updates},
    transaction::{
        Destinations, Mode, StandingBuildError, StandingFault, TransactionCheck, build_announcement, build_refresh,
        prevouts, sighashes, signed_vsize, with_fallback_signatures, with_key_signatures,
    },
};
