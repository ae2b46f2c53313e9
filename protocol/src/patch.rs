//! JSON Patch (RFC 6902) within bounds.
//!
//! A patch is a small program from an untrusted author: `copy` can double a document with every operation, and `move`
//! can nest it until the stack overflows. Each operation is therefore measured before it runs.

use json_patch::{PatchOperation, jsonptr::Pointer};
use serde::Deserialize;
use serde_json::Value;

use crate::jcs::MAX_DEPTH;

/// The greatest number of operations of one patch. An update changes a few services and keys.
pub const MAX_OPERATIONS: usize = 1_000;

/// The greatest size in bytes (of canonical JSON, numbers counted at their longest) of a document and of everything
/// that the operations of one patch write into it, together. Removed content is not subtracted. This bounds the
/// patched document, every intermediate document, and the work of copying.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;

/// Why a patch is refused or does not apply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// Not an array of RFC 6902 operations.
    #[error("not an array of RFC 6902 operations")]
    NotAPatch,
    /// More than [`MAX_OPERATIONS`].
    #[error("more than {MAX_OPERATIONS} operations")]
    TooManyOperations,
    /// The document itself exceeds [`MAX_DOCUMENT_BYTES`] or the depth bound.
    #[error("the document is too large or too deep to be patched")]
    DocumentTooLarge,
    /// The operation with this index would exceed [`MAX_DOCUMENT_BYTES`].
    #[error("operation {0} makes the document too large")]
    TooLarge(usize),
    /// The operation with this index would nest the document deeper than [`MAX_DEPTH`].
    #[error("operation {0} makes the document too deep")]
    TooDeep(usize),
    /// The operation with this index does not apply to the document: a path that does not exist, or a failed `test`.
    #[error("operation {0} does not apply to the document")]
    DoesNotApply(usize),
}

/// A patch that is well-formed and not too long.
#[derive(Clone, Debug)]
pub struct Patch(Vec<PatchOperation>);

impl Patch {
    /// Parses an array of operations.
    ///
    /// # Errors
    /// [`PatchError::NotAPatch`], [`PatchError::TooManyOperations`].
    pub fn from_value(value: &Value) -> Result<Self, PatchError> {
        let operations = value.as_array().ok_or(PatchError::NotAPatch)?;
        if operations.len() > MAX_OPERATIONS {
            return Err(PatchError::TooManyOperations);
        }
        Vec::deserialize(value).map(Self).map_err(|_| PatchError::NotAPatch)
    }

    /// `document` with all operations applied in order. Fails as a whole if one of them fails.
    ///
    /// # Errors
    /// An operation does not apply, or a bound is exceeded.
    pub fn apply(&self, document: &Value) -> Result<Value, PatchError> {
        let initial = measure(document, MAX_DEPTH).ok_or(PatchError::DocumentTooLarge)?;
        let mut bytes_left = MAX_DOCUMENT_BYTES.checked_sub(initial).ok_or(PatchError::DocumentTooLarge)?;
        let mut document = document.clone();
        for (index, operation) in self.0.iter().enumerate() {
            if let Some((path, value)) = written(operation, &document) {
                let depth_left = MAX_DEPTH.checked_sub(path.count()).ok_or(PatchError::TooDeep(index))?;
                let value_bytes = measure(value, depth_left).ok_or(PatchError::TooDeep(index))?;
                // Brackets, colon and comma of a new member, beside its key.
                let key_bytes = path.last().map_or(0, |token| text_bytes(&token.decoded())) + 4;
                let bytes =
                    if matches!(operation, PatchOperation::Move(_)) { key_bytes } else { value_bytes + key_bytes };
                bytes_left = bytes_left.checked_sub(bytes).ok_or(PatchError::TooLarge(index))?;
            }
            // "unsafe" only because a failed patch leaves the document half patched; this copy is then dropped.
            json_patch::patch_unsafe(&mut document, std::slice::from_ref(operation))
                .map_err(|_| PatchError::DoesNotApply(index))?;
        }
        Ok(document)
    }
}

/// The value that `operation` writes into `document`, and its place; `None` when it writes nothing or its source does
/// not exist.
fn written<'a>(operation: &'a PatchOperation, document: &'a Value) -> Option<(&'a Pointer, &'a Value)> {
    match operation {
        PatchOperation::Add(add) => Some((&add.path, &add.value)),
        PatchOperation::Replace(replace) => Some((&replace.path, &replace.value)),
        PatchOperation::Copy(copy) => Some((&copy.path, document.pointer(copy.from.as_str())?)),
        PatchOperation::Move(mv) => Some((&mv.path, document.pointer(mv.from.as_str())?)),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => None,
    }
}

/// An upper bound of the canonical size in bytes; `None` when `value` nests deeper than `levels_left`.
fn measure(value: &Value, levels_left: usize) -> Option<usize> {
    match value {
        Value::Null => Some(4),
        Value::Bool(_) => Some(5),
        // Sign, 17 digits, and either "0." with six zeros or a point and an exponent: never longer.
        Value::Number(_) => Some(26),
        Value::String(text) => Some(text_bytes(text)),
        Value::Array(items) => {
            let levels_left = levels_left.checked_sub(1)?;
            items.iter().try_fold(2usize, |sum, item| Some(sum + measure(item, levels_left)? + 1))
        }
        Value::Object(fields) => {
            let levels_left = levels_left.checked_sub(1)?;
            fields.iter().try_fold(2usize, |sum, (key, field)| {
                Some(sum + text_bytes(key) + measure(field, levels_left)? + 2)
            })
        }
    }
}

/// The bytes of a canonical string: quotes, and escapes at their longest.
fn text_bytes(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        0..0x20 => 6,
        b'"' | b'\\' => 2,
        _ => 1,
    };
    2 + text.bytes().map(escaped).sum::<usize>()
}
