//! Which keys may update a document (rules U-6 and U-7): the members of its `capabilityInvocation`.

use serde_json::Value;

use super::{DocumentError, decode_multikey};
use crate::key::PublicKey;

/// `reference` as an absolute DID URL: one that begins with `#`, `?` or `/` is relative to the document's own `id`.
pub(crate) fn absolute(document: &Value, reference: &str) -> String {
    let base = document.get("id").and_then(Value::as_str).unwrap_or_default();
    if reference.starts_with(['#', '?', '/']) { format!("{base}{reference}") } else { reference.to_owned() }
}

/// A member of `capabilityInvocation`: its absolute id, and the method that is embedded in it, if one is.
fn members(document: &Value) -> impl Iterator<Item = (String, Option<&Value>)> {
    let members = document.get("capabilityInvocation").and_then(Value::as_array).into_iter().flatten();
    members.filter_map(|member| match member {
        Value::String(reference) => Some((absolute(document, reference), None)),
        Value::Object(method) => Some((absolute(document, method.get("id")?.as_str()?), Some(member))),
        _ => None,
    })
}

/// The key of the member of `capabilityInvocation` that `reference` names: the embedded method's, or that of the
/// `verificationMethod` with that id. A key that is listed under other relationships only never authorizes.
///
/// # Errors
/// [`DocumentError::NotAuthorized`], [`DocumentError::MethodNotFound`], [`DocumentError::Multikey`].
pub fn invocation_key(document: &Value, reference: &str) -> Result<PublicKey, DocumentError> {
    let wanted = absolute(document, reference);
    let (_, embedded) = members(document)
        .find(|(id, _)| *id == wanted)
        .ok_or_else(|| DocumentError::NotAuthorized { method: shortened(&wanted) })?;
    method_key(document, &wanted, embedded)
}

/// The methods that may update `document` and whose key can be read, in the order of `capabilityInvocation`: absolute id
/// and key.
pub fn invocation_methods(document: &Value) -> impl Iterator<Item = (String, PublicKey)> {
    members(document).filter_map(|(id, embedded)| {
        let key = method_key(document, &id, embedded).ok()?;
        Some((id, key))
    })
}

fn method_key(document: &Value, id: &str, embedded: Option<&Value>) -> Result<PublicKey, DocumentError> {
    let listed = || {
        let methods = document.get("verificationMethod").and_then(Value::as_array).into_iter().flatten();
        let named = |method: &&Value| {
            method.get("id").and_then(Value::as_str).is_some_and(|other| absolute(document, other) == id)
        };
        methods.into_iter().find(named)
    };
    let method = embedded.or_else(listed).ok_or_else(|| DocumentError::MethodNotFound { method: shortened(id) })?;
    if method.get("type").and_then(Value::as_str) != Some("Multikey") {
        return Err(DocumentError::Multikey);
    }
    decode_multikey(method.get("publicKeyMultibase").and_then(Value::as_str).ok_or(DocumentError::Multikey)?)
}

/// A peer's text as it is shown: no longer than a DID URL of this method is.
fn shortened(text: &str) -> String {
    const MOST: usize = 200;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
