//! The spans of log lines, which name the actor that a line is about.
//!
//! Each actor runs in its own span, whatever wakes it: [`start`](crate::supervision::start) wraps the whole actor. No
//! span is inside another one; each names everything that it belongs to, so that a line is understandable by itself.
//! Work that an actor passes to another task or thread keeps the span.
//!
//! The spans have the error level: every line that is written has its span. The cost for an actor is one formatting of
//! its names, and entering the span when it wakes; without a logger there is no cost.

use btcr2_aggregation_protocol::{
    did::Did,
    id::{CohortId, SessionId},
};
use tracing::{Span, error_span};

/// An Aggregation Service, for lines that concern no single cohort.
pub(crate) fn service(did: &Did) -> Span {
    error_span!(parent: None, "service", %did)
}

/// A cohort, at its service.
pub(crate) fn cohort(cohort_id: &CohortId) -> Span {
    error_span!(parent: None, "cohort", %cohort_id)
}

/// A cohort's signing session, at its service.
pub(crate) fn signing(cohort_id: &CohortId, session_id: &SessionId) -> Span {
    error_span!(parent: None, "signing", %cohort_id, %session_id)
}

/// A participant, for lines that concern no single cohort.
pub(crate) fn participant(did: &Did) -> Span {
    error_span!(parent: None, "participant", participant = %did)
}

/// A participant in a cohort.
pub(crate) fn session(cohort_id: &CohortId, participant: &Did) -> Span {
    error_span!(parent: None, "session", %cohort_id, %participant)
}

/// A standing cohort, at its service.
pub(crate) fn standing(cohort_id: &CohortId) -> Span {
    error_span!(parent: None, "standing", %cohort_id)
}

/// A number of a standing cohort, at its service.
pub(crate) fn number(cohort_id: &CohortId, number: u64) -> Span {
    error_span!(parent: None, "number", %cohort_id, number)
}

/// A member of standing cohorts, for lines that concern no single seat.
pub(crate) fn member(listener: &Did) -> Span {
    error_span!(parent: None, "member", member = %listener)
}

/// A seat in a standing cohort.
pub(crate) fn seat(cohort_id: &CohortId, seat: &Did) -> Span {
    error_span!(parent: None, "seat", %cohort_id, %seat)
}

/// A cohort's announcement.
pub(crate) fn announcement(cohort_id: &CohortId) -> Span {
    error_span!(parent: None, "announcement", %cohort_id)
}

/// An identity's endpoint on a transport, over all its connections.
pub(crate) fn link(did: &Did) -> Span {
    error_span!(parent: None, "link", %did)
}

/// An identity's connection on a transport.
pub(crate) fn connection(transport: &'static str, did: &Did) -> Span {
    error_span!(parent: None, "connection", transport, %did)
}

/// The connection to one relay.
pub(crate) fn relay(url: &str, did: &Did) -> Span {
    error_span!(parent: None, "relay", url, %did)
}

/// An inbox at an HTTP server.
pub(crate) fn inbox(owner: &Did) -> Span {
    error_span!(parent: None, "inbox", did = %owner)
}

/// The hub of an HTTP server.
pub(crate) fn hub() -> Span {
    error_span!(parent: None, "hub")
}
