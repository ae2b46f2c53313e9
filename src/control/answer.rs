//! Answers of the API: JSON, and refusals as codes with a detail.

use std::{fmt::Display, time::Duration};

use actix_web::{
    HttpResponse, HttpResponseBuilder,
    http::{
        StatusCode,
        header::{ALLOW, CACHE_CONTROL, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE},
    },
};
use serde_json::{Value, json};

use super::sse::EventStream;
use crate::serve::terms::Problem;

/// Browsers must not guess a type, nor show an answer in a frame.
const NOSNIFF: HeaderName = HeaderName::from_static("x-content-type-options");

/// What a call is answered with.
pub(crate) enum Reply {
    /// JSON.
    Json(StatusCode, Value),
    /// Events, until the client leaves.
    Events(EventStream),
}

/// Why a call is refused.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Refusal {
    /// No token, or none that is accepted.
    Unauthorized,
    /// Too many logins have failed: try again after this time.
    Wait(Duration),
    /// The role does not suffice.
    Forbidden(String),
    /// The `Host` is not one of this service's.
    WrongHost,
    /// There is no such path, or no such thing.
    NotFound(String),
    /// The path has other methods.
    Method(String),
    /// The body is not JSON.
    NotJson(String),
    /// The body is too large.
    TooLarge,
    /// The body did not arrive in time.
    Slow,
    /// The request does not fit: each problem with the field that it is about.
    Invalid(Vec<Problem>),
    /// It cannot be done now.
    Conflict(String),
    /// Too many streams are open.
    Busy(&'static str),
    /// Something of ours has failed.
    Failed(String),
}

pub(crate) type Answer = Result<Reply, Refusal>;

/// The answer with a value.
pub(crate) fn ok(value: Value) -> Answer {
    Ok(Reply::Json(StatusCode::OK, value))
}

/// The answer with something new.
pub(crate) fn created(value: Value) -> Answer {
    Ok(Reply::Json(StatusCode::CREATED, value))
}

/// The refusal because of one field, or of the request as a whole.
pub(crate) fn invalid(field: Option<&str>, detail: impl Display) -> Refusal {
    Refusal::Invalid(vec![Problem { field: field.map(str::to_owned), detail: detail.to_string() }])
}

/// The refusal because something of ours has failed; for `map_err`.
pub(crate) fn failed(error: impl Display) -> Refusal {
    Refusal::Failed(error.to_string())
}

impl Refusal {
    /// The status and the code, which are stable.
    pub(crate) const fn code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::Wait(_) => (StatusCode::TOO_MANY_REQUESTS, "too_many_failures"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden"),
            Self::WrongHost => (StatusCode::MISDIRECTED_REQUEST, "wrong_host"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            Self::Method(_) => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::NotJson(_) => (StatusCode::BAD_REQUEST, "invalid_json"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large"),
            Self::Slow => (StatusCode::REQUEST_TIMEOUT, "timeout"),
            Self::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            Self::Conflict(_) => (StatusCode::CONFLICT, "conflict"),
            Self::Busy(_) => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            Self::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
        }
    }

    /// The reason in words.
    pub(crate) fn detail(&self) -> String {
        match self {
            Self::Unauthorized => "a token is needed: Authorization: Bearer TOKEN".to_owned(),
            Self::Wait(wait) => format!("too many logins have failed: try again in {} s", seconds(*wait)),
            Self::WrongHost => "the Host of the request is not a name of this service (--control-host)".to_owned(),
            Self::Method(allowed) => format!("this path has {allowed}"),
            Self::TooLarge => "the body is too large".to_owned(),
            Self::Slow => "the body did not arrive in time".to_owned(),
            Self::Busy(detail) => (*detail).to_owned(),
            Self::Invalid(problems) => {
                let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
                texts.join("; ")
            }
            Self::Forbidden(detail)
            | Self::NotFound(detail)
            | Self::NotJson(detail)
            | Self::Conflict(detail)
            | Self::Failed(detail) => detail.clone(),
        }
    }

    fn body(&self) -> Value {
        let mut body = json!({ "error": self.code().1, "detail": self.detail() });
        if let Self::Invalid(problems) = self {
            body["problems"] = json!(problems);
        }
        body
    }
}

fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// The HTTP response of an answer.
pub(crate) fn response(answer: Answer) -> HttpResponse {
    match answer {
        Ok(Reply::Json(status, value)) => begin(status).json(value),
        Ok(Reply::Events(events)) => begin(StatusCode::OK).content_type("text/event-stream").streaming(events),
        Err(refusal) => {
            let mut response = begin(refusal.code().0);
            match &refusal {
                Refusal::Unauthorized => drop(response.insert_header((WWW_AUTHENTICATE, "Bearer"))),
                Refusal::Wait(wait) => drop(response.insert_header((RETRY_AFTER, seconds(*wait).to_string()))),
                Refusal::Busy(_) => drop(response.insert_header((RETRY_AFTER, "5"))),
                Refusal::Method(allowed) => drop(response.insert_header((ALLOW, allowed.as_str()))),
                _ => {}
            }
            response.json(refusal.body())
        }
    }
}

fn begin(status: StatusCode) -> HttpResponseBuilder {
    let mut response = HttpResponse::build(status);
    response.insert_header((CACHE_CONTROL, "no-store")).insert_header((NOSNIFF, "nosniff"));
    response
}
