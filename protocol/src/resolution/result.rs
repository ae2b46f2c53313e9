//! What a resolution gives: the document with its metadata, or the error, and the history.

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Value, json};

use super::{
    error::{Missing, ResolutionError},
    history::Event,
};
use crate::{did::Did, time::Timestamp};

/// The media type of a document in `didResolutionMetadata` (rule C5).
pub const DOCUMENT_MEDIA_TYPE: &str = "application/did";

/// The media type of a whole [`ResolutionResult`] (rule C5).
pub const RESULT_MEDIA_TYPE: &str = "application/did-resolution";

/// A finished resolution.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Resolution {
    /// The identifier.
    pub did: Did,
    /// The document, or why there is none.
    pub outcome: Result<Resolved, ResolutionError>,
    /// What happened, in its order.
    pub history: Vec<Event>,
}

impl Resolution {
    /// The result in the form of DID Resolution.
    pub fn result(&self) -> ResolutionResult<'_> {
        ResolutionResult { outcome: self.outcome.as_ref() }
    }

    /// All that is missing for the signals that were found, in their order. The first is the error; what a later round
    /// would need is not known before this is there.
    pub fn missing(&self) -> impl Iterator<Item = Missing> + '_ {
        self.history.iter().filter_map(Event::missing)
    }
}

/// A document with its metadata.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Resolved {
    /// The document.
    pub document: Value,
    /// Its metadata.
    pub metadata: DocumentMetadata,
}

/// The metadata of a document (rule R-14).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct DocumentMetadata {
    /// The version, 1 the initial one; text in JSON.
    #[serde(serialize_with = "text")]
    pub version_id: u64,
    /// The confirmations of the block that announces the version; 0 at version 1.
    pub confirmations: u32,
    /// Whether the document deactivates the DID.
    pub deactivated: bool,
    /// The median time past of the block that announces the version, text in JSON; nothing at version 1.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "date")]
    pub updated: Option<Timestamp>,
}

fn text<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

fn date<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    time.and_then(Timestamp::to_date).serialize(serializer)
}

/// A result in the form of DID Resolution v1 (rule C5): `didResolutionMetadata`, `didDocument`, `didDocumentMetadata`.
/// On failure the error is an object of problem details (RFC 9457), the document null and its metadata empty.
#[derive(Clone, Copy, Debug)]
pub struct ResolutionResult<'a> {
    outcome: Result<&'a Resolved, &'a ResolutionError>,
}

impl<'a> ResolutionResult<'a> {
    /// The result of what failed before there was a [`Resolver`](super::Resolver): an identifier or options that are
    /// none.
    pub const fn failed(error: &'a ResolutionError) -> Self {
        Self { outcome: Err(error) }
    }

    fn resolution_metadata(&self) -> Value {
        match self.outcome {
            Ok(_) => json!({ "contentType": DOCUMENT_MEDIA_TYPE }),
            Err(error) => {
                let mut problem =
                    json!({ "type": error.code().url(), "title": error.code(), "detail": error.to_string() });
                if let Some(rule) = error.rule() {
                    problem["rule"] = json!(rule);
                }
                json!({ "error": problem })
            }
        }
    }
}

impl Serialize for ResolutionResult<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("didResolutionMetadata", &self.resolution_metadata())?;
        match self.outcome {
            Ok(resolved) => {
                map.serialize_entry("didDocument", &resolved.document)?;
                map.serialize_entry("didDocumentMetadata", &resolved.metadata)?;
            }
            Err(_) => {
                map.serialize_entry("didDocument", &Value::Null)?;
                map.serialize_entry("didDocumentMetadata", &json!({}))?;
            }
        }
        map.end()
    }
}
