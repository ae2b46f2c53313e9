//! Whether a document conforms to DID Core v1.1 and to did:btcr2's demands on its `@context` (rules U-15 and I-4).
//!
//! A resolver refuses a document that does not, and with it every later version of the DID. No maintained crate checks this:
//! those that read DID documents read them into types of their own, which accept other documents than these.

use std::collections::BTreeSet;

use serde_json::Value;

use super::methods::absolute;

/// What the `@context` of every document has to list.
pub const DOCUMENT_CONTEXT: [&str; 2] = ["https://www.w3.org/ns/did/v1.1", "https://btcr2.dev/context/v1"];

/// The relationships of DID Core v1.1, "Verification Relationships".
const RELATIONSHIPS: [&str; 5] =
    ["authentication", "assertionMethod", "keyAgreement", "capabilityInvocation", "capabilityDelegation"];

/// What does not conform: where, and what has to be there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place} is not {expected}")]
pub struct NotConformant {
    /// Where in the document, as a JSON Pointer (RFC 6901); "the document" for the whole.
    pub place: String,
    /// What has to be there.
    pub expected: &'static str,
}

fn refuse<T>(place: impl Into<String>, expected: &'static str) -> Result<T, NotConformant> {
    Err(NotConformant { place: place.into(), expected })
}

/// Whether `document` conforms. That its `id` is the right one is another rule's business.
///
/// # Errors
/// The first thing that does not.
pub fn check_conformance(document: &Value) -> Result<(), NotConformant> {
    let Some(fields) = document.as_object() else { return refuse("the document", "an object") };
    let contexts = fields.get("@context").and_then(Value::as_array);
    if !contexts.is_some_and(|entries| DOCUMENT_CONTEXT.iter().all(|context| entries.iter().any(|e| e == context)))
    {
        return refuse(
            "/@context",
            "an array with https://www.w3.org/ns/did/v1.1 and https://btcr2.dev/context/v1",
        );
    }
    if !fields.get("id").and_then(Value::as_str).is_some_and(is_did) {
        return refuse("/id", "a DID");
    }
    if let Some(controller) = fields.get("controller")
        && !one_or_more(controller, |value| value.as_str().is_some_and(is_did))
    {
        return refuse("/controller", "a DID or an array of DIDs");
    }
    if let Some(aliases) = fields.get("alsoKnownAs")
        && !array_of(aliases, |value| value.as_str().is_some_and(is_uri))
    {
        return refuse("/alsoKnownAs", "an array of URIs");
    }
    if let Some(methods) = fields.get("verificationMethod") {
        let Some(methods) = methods.as_array() else { return refuse("/verificationMethod", "an array") };
        for (position, method) in methods.iter().enumerate() {
            check_method(document, method, &format!("/verificationMethod/{position}"))?;
        }
    }
    for relationship in RELATIONSHIPS {
        let Some(members) = fields.get(relationship) else { continue };
        let Some(members) = members.as_array() else { return refuse(format!("/{relationship}"), "an array") };
        for (position, member) in members.iter().enumerate() {
            let place = format!("/{relationship}/{position}");
            match member {
                Value::String(reference) if is_did_url(&absolute(document, reference)) => {}
                Value::Object(_) => check_method(document, member, &place)?,
                _ => return refuse(place, "a DID URL or an embedded verification method"),
            }
        }
    }
    match fields.get("service") {
        Some(services) => check_services(document, services),
        None => Ok(()),
    }
}

/// DID Core v1.1, "Verification Methods"; did:btcr2 has Multikeys only.
fn check_method(document: &Value, method: &Value, place: &str) -> Result<(), NotConformant> {
    let Some(fields) = method.as_object() else { return refuse(place, "an object") };
    let text = |field: &str| fields.get(field).and_then(Value::as_str);
    if !text("id").is_some_and(|id| is_did_url(&absolute(document, id))) {
        return refuse(format!("{place}/id"), "a DID URL");
    }
    if text("type") != Some("Multikey") {
        return refuse(format!("{place}/type"), "Multikey");
    }
    if !text("controller").is_some_and(is_did) {
        return refuse(format!("{place}/controller"), "a DID");
    }
    if !text("publicKeyMultibase").is_some_and(is_multibase) {
        return refuse(format!("{place}/publicKeyMultibase"), "a key in base58btc (z...) or base64url (u...)");
    }
    Ok(())
}

/// DID Core v1.1, "Services".
fn check_services(document: &Value, services: &Value) -> Result<(), NotConformant> {
    let Some(services) = services.as_array() else { return refuse("/service", "an array") };
    let mut ids = BTreeSet::new();
    for (position, service) in services.iter().enumerate() {
        let place = format!("/service/{position}");
        let Some(fields) = service.as_object() else { return refuse(place, "an object") };
        let id = fields.get("id").and_then(Value::as_str).map(|id| absolute(document, id));
        let Some(id) = id.filter(|id| is_uri(id)) else { return refuse(place + "/id", "a URI") };
        if !ids.insert(id) {
            return refuse(place + "/id", "the id of one service only");
        }
        if !fields.get("type").is_some_and(|kind| one_or_more(kind, Value::is_string)) {
            return refuse(place + "/type", "a string or an array of strings");
        }
        if !fields.get("serviceEndpoint").is_some_and(is_endpoint) {
            return refuse(place + "/serviceEndpoint", "a URI, a map, or an array of these");
        }
    }
    Ok(())
}

fn is_endpoint(value: &Value) -> bool {
    let one = |value: &Value| value.is_object() || value.as_str().is_some_and(is_uri);
    one_or_more(value, one)
}

fn one_or_more(value: &Value, of: impl Fn(&Value) -> bool) -> bool {
    if value.is_array() { array_of(value, of) } else { of(value) }
}

fn array_of(value: &Value, of: impl Fn(&Value) -> bool) -> bool {
    value.as_array().is_some_and(|items| items.iter().all(of))
}

/// DID Core v1.1, "DID Syntax".
fn is_did(text: &str) -> bool {
    let mut parts = text.strip_prefix("did:").into_iter().flat_map(|rest| rest.splitn(2, ':'));
    let (Some(method), Some(id)) = (parts.next(), parts.next()) else { return false };
    let method_char = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let id_char = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:%".contains(&byte);
    !method.is_empty()
        && method.bytes().all(method_char)
        && !id.is_empty()
        && !id.ends_with(':')
        && id.bytes().all(id_char)
}

/// DID Core v1.1, "DID URL Syntax": a DID, then path, query and fragment.
fn is_did_url(text: &str) -> bool {
    let end = text.find(['/', '?', '#']).unwrap_or(text.len());
    is_did(&text[..end]) && is_uri(text)
}

/// RFC 3986: a scheme, then characters that a URI has.
fn is_uri(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    let scheme_char = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    let uri_char = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte);
    scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(scheme_char)
        && !rest.is_empty()
        && rest.bytes().all(uri_char)
}

fn is_multibase(text: &str) -> bool {
    let bytes = match text.as_bytes() {
        [b'z', rest @ ..] => {
            rest.iter().all(|byte| byte.is_ascii_alphanumeric() && !b"0OIl".contains(byte)).then_some(rest)
        }
        [b'u', rest @ ..] => {
            rest.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte)).then_some(rest)
        }
        _ => None,
    };
    bytes.is_some_and(|bytes| !bytes.is_empty())
}
