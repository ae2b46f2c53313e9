//! The headers of pages.

use actix_web::{
    HttpResponse, HttpResponseBuilder,
    http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, LOCATION},
};

/// What a page may load and do: its own script, style and images, and its own forms.
pub(crate) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Marks the requests of a script that refreshes a page: they do not count as use of the session.
pub(crate) const BACKGROUND: HeaderName = HeaderName::from_static("x-background");

/// The security headers.
const SECURITY: [(&str, &str); 5] = [
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    // Nothing goes to other sites. Not `no-referrer`: browsers would then send `Origin: null` with our own forms, and a form of another
    // page could not be distinguished.
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// Adds the security headers.
pub(crate) fn secure(response: &mut HttpResponseBuilder) -> &mut HttpResponseBuilder {
    for (name, value) in SECURITY {
        response.insert_header((HeaderName::from_static(name), value));
    }
    response
}

/// Adds the headers of a page: it is not stored.
pub(crate) fn page(response: &mut HttpResponseBuilder) -> &mut HttpResponseBuilder {
    secure(response)
        .insert_header((CONTENT_TYPE, "text/html; charset=utf-8"))
        .insert_header((CACHE_CONTROL, "no-store"))
}

/// The answer that sends a browser to another page.
pub(crate) fn see(path: &str) -> HttpResponse {
    page(&mut HttpResponse::SeeOther()).insert_header((LOCATION, path)).finish()
}
