//! What a request is answered: the HTTP status by the error code (rule C6), and the body in the form that was asked for.

use actix_web::{http::StatusCode, web::Bytes};
use serde_json::{Value, json};

use crate::protocol::resolution::{ErrorCode, RESULT_MEDIA_TYPE, ResolutionError, ResolutionResult, Resolved};

/// The form of a body, by the request's `Accept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The whole resolution result, under this content type.
    Result(&'static str),
    /// The document alone, under this content type. What has no document, or one of a deactivated DID, is a result all the same.
    Document(&'static str),
}

/// A result, in both forms.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// The error code, or `OK` or `DEACTIVATED`: for metrics.
    pub(super) outcome: &'static str,
    result: Bytes,
    /// With status 200 only.
    document: Option<Bytes>,
}

impl Answer {
    /// The answer for the outcome of a resolution.
    pub(super) fn of(outcome: Result<&Resolved, &ResolutionError>, result: ResolutionResult<'_>) -> Self {
        let result = Bytes::from(json!(result).to_string());
        match outcome {
            Err(error) => {
                Self { status: status_of(error.code()), outcome: error.code().as_str(), result, document: None }
            }
            Ok(resolved) if resolved.metadata.deactivated => {
                Self { status: StatusCode::GONE, outcome: "DEACTIVATED", result, document: None }
            }
            Ok(resolved) => Self {
                status: StatusCode::OK,
                outcome: "OK",
                result,
                document: Some(Bytes::from(resolved.document.to_string())),
            },
        }
    }

    /// The answer for what failed before a resolution began.
    pub(super) fn failed(error: &ResolutionError) -> Self {
        Self::of(Err(error), ResolutionResult::failed(error))
    }

    /// Whether the same request is answered so again until there is another block: it has a document, and all of that follows from
    /// the chain and from data that have the announced hashes.
    pub(super) fn is_lasting(&self) -> bool {
        matches!(self.status, StatusCode::OK | StatusCode::GONE)
    }

    /// Content type and body.
    pub(super) fn body(&self, form: Form) -> (&'static str, Bytes) {
        match (form, &self.document) {
            (Form::Document(media_type), Some(document)) => (media_type, document.clone()),
            (Form::Document(_), None) => (RESULT_MEDIA_TYPE, self.result.clone()),
            (Form::Result(media_type), _) => (media_type, self.result.clone()),
        }
    }

    /// The bytes of both forms.
    pub(super) fn size(&self) -> usize {
        self.result.len() + self.document.as_ref().map_or(0, Bytes::len)
    }

    #[cfg(test)]
    pub(super) fn for_tests(result: String) -> Self {
        Self { status: StatusCode::OK, outcome: "OK", result: Bytes::from(result), document: None }
    }
}

/// The HTTP status of a code: that of the code of DID Resolution that it refines.
fn status_of(code: ErrorCode) -> StatusCode {
    match code.refines() {
        ErrorCode::InvalidDid | ErrorCode::InvalidOptions => StatusCode::BAD_REQUEST,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A request that is refused before it is resolved, or given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum Refusal {
    /// None of the forms that the client accepts.
    NotAcceptable,
    /// A DID of another method.
    OtherMethod,
    /// A DID of a network without a chain here.
    OtherNetwork,
    /// A chain that was configured is not connected yet.
    NotConnected,
    /// The body is too large.
    TooLarge,
    /// The body took too long, or ended early.
    SlowBody,
    /// Too many requests of one address.
    Rate,
    /// Too many requests at once.
    Busy,
    /// The resolution took too long.
    Timeout,
    /// The program is stopping.
    Stopping,
}

impl Refusal {
    /// Status, code of DID Resolution, and what to do.
    const fn facts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::NotAcceptable => (
                StatusCode::NOT_ACCEPTABLE,
                "REPRESENTATION_NOT_SUPPORTED",
                "none of the media types of Accept is served: use application/did-resolution or application/did",
            ),
            Self::OtherMethod => (
                StatusCode::NOT_IMPLEMENTED,
                "METHOD_NOT_SUPPORTED",
                "only DIDs of the method btcr2 are resolved here",
            ),
            Self::OtherNetwork => (
                StatusCode::NOT_IMPLEMENTED,
                "FEATURE_NOT_SUPPORTED",
                "the chain of the DID's Bitcoin network is not served here",
            ),
            Self::NotConnected => {
                (StatusCode::SERVICE_UNAVAILABLE, "INTERNAL_ERROR", "a chain is not connected yet: try again later")
            }
            Self::TooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, "INVALID_OPTIONS", "the body is larger than this resolver reads")
            }
            Self::SlowBody => {
                (StatusCode::REQUEST_TIMEOUT, "INVALID_OPTIONS", "the body did not arrive whole in time")
            }
            Self::Rate => (
                StatusCode::TOO_MANY_REQUESTS,
                "INTERNAL_ERROR",
                "too many requests from this address: try again later",
            ),
            Self::Busy => {
                (StatusCode::SERVICE_UNAVAILABLE, "INTERNAL_ERROR", "too many requests at once: try again later")
            }
            Self::Timeout => (
                StatusCode::GATEWAY_TIMEOUT,
                "INTERNAL_ERROR",
                "the chain and the stores did not answer in time: try again later",
            ),
            Self::Stopping => {
                (StatusCode::SERVICE_UNAVAILABLE, "INTERNAL_ERROR", "this resolver is stopping: try again later")
            }
        }
    }

    pub(super) fn status(self) -> StatusCode {
        self.facts().0
    }

    /// Whether the same request may succeed later.
    pub(super) const fn is_transient(self) -> bool {
        matches!(self, Self::Rate | Self::Busy | Self::NotConnected | Self::Timeout | Self::Stopping)
    }

    /// A resolution result without a document.
    pub(super) fn result(self) -> Value {
        let (_, code, detail) = self.facts();
        json!({
            "didResolutionMetadata": {
                "error": { "type": format!("https://www.w3.org/ns/did#{code}"), "title": code, "detail": detail },
            },
            "didDocument": null,
            "didDocumentMetadata": {},
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_s_code_has_the_status_of_what_it_refines() {
        use ErrorCode as E;
        for (code, status) in [
            (E::InvalidDid, 400),
            (E::InvalidOptions, 400),
            (E::InvalidSignalData, 400),
            (E::NotFound, 404),
            (E::MissingUpdateData, 404),
            (E::InvalidDidDocument, 500),
            (E::InvalidDidUpdate, 500),
            (E::LatePublishing, 500),
            (E::InternalError, 500),
        ] {
            assert_eq!(status_of(code), status, "{code}");
        }
    }
}
