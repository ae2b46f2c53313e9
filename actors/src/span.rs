//! The spans of log lines: whoever reads a line is to know whose it is.
//!
//! Each actor runs in a span of its own, whatever wakes it: [`start`](crate::supervision::start) wraps the whole of it. No span is inside another
//! one; each names everything that it belongs to, so that a line is understood by itself. What an actor hands to another
//! task or thread takes the span along.
//!
//! The spans have the level of errors: a line that is written at all has its span. That costs an actor one formatting of
//! its names in its life, and entering the span when it wakes; where nothing is logged, neither.

use btcr2_aggregation_protocol::{
    did::Did,
    id::{CohortId, SessionId},
};
use tracing::{Span, error_span};

/// An Aggregation Service, as far as it is about no single cohort.
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

/// A participant, as far as it is about no single cohort.
pub(crate) fn participant(did: &Did) -> Span {
    error_span!(parent: None, "participant", participant = %did)
}

/// A participant in a cohort.
pub(crate) fn session(cohort_id: &CohortId, participant: &Did) -> Span {
    error_span!(parent: None, "session", %cohort_id, %participant)
}

/// An identity's place on a transport, over all its connections.
pub(crate) fn link(did: &Did) -> Span {
    error_span!(parent: None, "link", %did)
}

/// An identity's connection on a transport.
pub(crate) fn connection(transport: &'static str, did: &Did) -> Span {
    error_span!(parent: None, "connection", transport, %did)
}

/// A connection's connection to one relay.
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
