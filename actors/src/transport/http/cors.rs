//! CORS headers, by configuration.

use actix_web::{
    HttpResponse, HttpResponseBuilder,
    http::header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_MAX_AGE, HeaderMap, HeaderValue, ORIGIN, VARY,
    },
};

use super::config::Cors;

/// The origin that a response may name, if the request named one.
fn allowed_origin(cors: &Cors, request: &HeaderMap) -> Option<HeaderValue> {
    let origin = request.get(ORIGIN)?;
    match cors {
        Cors::Permissive => Some(HeaderValue::from_static("*")),
        Cors::Allow(origins) => {
            origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
        }
        Cors::SameOrigin => None,
    }
}

/// Adds the headers that let the requesting page read the response, if it may.
pub fn allow(response: &mut HttpResponseBuilder, cors: &Cors, request: &HeaderMap) {
    if *cors != Cors::SameOrigin {
        // Also without an origin: a cache must not serve that response to a page that may read another.
        response.insert_header((VARY, "Origin"));
    }
    if let Some(origin) = allowed_origin(cors, request) {
        response.insert_header((ACCESS_CONTROL_ALLOW_ORIGIN, origin));
    }
}

/// The answer to a preflight request.
pub fn preflight(cors: &Cors, request: &HeaderMap) -> HttpResponse {
    let mut response = HttpResponse::NoContent();
    if allowed_origin(cors, request).is_some() {
        response
            .insert_header((ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, OPTIONS"))
            .insert_header((ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type, last-event-id"))
            .insert_header((ACCESS_CONTROL_MAX_AGE, "86400"));
    }
    allow(&mut response, cors, request);
    response.finish()
}
