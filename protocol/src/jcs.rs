//! JSON Canonicalization Scheme (RFC 8785), and the hash of a document.

use std::{cmp::Ordering, io::Write, ops::Range};

use serde::Serialize;
use serde_json::{Map, Number, Value};

use crate::{
    hash::{DocumentHash, sha256},
    work,
};

/// The largest integer magnitude that a JSON number carries exactly (2^53).
const MAX_EXACT_INTEGER: u64 = 1 << 53;

/// The deepest nesting of arrays and objects that is canonicalized: what the JSON parser admits, so that no text that was
/// parsed is refused for it. Values that are composed from parsed ones (a patched document) could nest deeper and would
/// exhaust the stack.
pub const MAX_DEPTH: usize = 128;

/// The deepest nesting of a message's body. It lies two levels deep in its envelope, and the JSON parser admits one level less than
/// [`MAX_DEPTH`].
pub(crate) const MAX_BODY_DEPTH: usize = MAX_DEPTH - 3;

/// The deepest nesting of a document in a body. What is deeper is refused whichever way it comes: it could not be forwarded, nor
/// be read again from a journal, where it is as deep.
pub(crate) const MAX_DOCUMENT_DEPTH: usize = MAX_BODY_DEPTH - 1;

/// A value that has no canonical form.
#[derive(Debug, thiserror::Error)]
pub enum JcsError {
    /// Arrays and objects nested deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels")]
    Depth,
    /// An integer that JCS, which writes numbers as IEEE doubles, would write as another one.
    #[error("the integer {0} is beyond what JSON numbers carry exactly and has no canonical form")]
    Integer(Number),
    /// The value does not serialize to JSON.
    #[error("not serializable as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The canonical bytes of `value`. Integers beyond 2^53 that are not written as the double nearest to them is written are
/// refused rather than rounded: two documents that differ would otherwise share a hash. Those that are must be admitted,
/// or what was written as `1e16` would have canonical bytes that have no canonical form.
pub fn canonicalize(value: &Value) -> Result<Vec<u8>, JcsError> {
    check(value, MAX_DEPTH)?;
    canonicalize_checked(value)
}

/// Like [`canonicalize`], for a value that [`check`] has accepted.
pub(crate) fn canonicalize_checked(value: &Value) -> Result<Vec<u8>, JcsError> {
    canonicalize_with_ranges(value, []).map(|(canonical, [])| canonical)
}

/// Which of the canonical bytes are those of a certain field, if it exists.
pub(crate) type Place = Option<Range<usize>>;

/// The canonical bytes of a value that [`check`] has accepted, and which of them are the canonical bytes of the value at
/// `path[0]`, at `path[0].path[1]`, and so on; `None` where there is no such field.
pub(crate) fn canonicalize_with_ranges<const N: usize>(
    value: &Value,
    path: [&str; N],
) -> Result<(Vec<u8>, [Place; N]), JcsError> {
    work::canonicalized();
    let mut canonical = Vec::with_capacity(1024);
    let mut ranges = [const { None }; N];
    write(value, &mut canonical, &path, &mut ranges)?;
    Ok((canonical, ranges))
}

/// Writes the canonical bytes of `value`. `path` and `ranges` are as long as each other.
fn write(value: &Value, out: &mut Vec<u8>, path: &[&str], ranges: &mut [Place]) -> Result<(), serde_json::Error> {
    match value {
        // Strings as JSON.stringify writes them, and so does serde_json.
        Value::Null | Value::Bool(_) | Value::String(_) => serde_json::to_writer(out, value),
        Value::Number(number) => write_number(number, out),
        Value::Array(items) => {
            let mut opening = b'[';
            for item in items {
                out.push(opening);
                write(item, out, &[], &mut [])?;
                opening = b',';
            }
            if items.is_empty() {
                out.push(opening);
            }
            out.push(b']');
            Ok(())
        }
        Value::Object(fields) => write_object(fields.iter(), out, path, ranges),
    }
}

fn write_object<'a>(
    fields: impl Iterator<Item = (&'a String, &'a Value)>,
    out: &mut Vec<u8>,
    path: &[&str],
    ranges: &mut [Place],
) -> Result<(), serde_json::Error> {
    let mut opening = b'{';
    for (key, field) in sorted(fields) {
        out.push(opening);
        serde_json::to_writer(&mut *out, key)?;
        out.push(b':');
        let start = out.len();
        match (path.split_first(), ranges.split_first_mut()) {
            (Some((first, path)), Some((range, ranges))) if first == key => {
                write(field, out, path, ranges)?;
                *range = Some(start..out.len());
            }
            _ => write(field, out, &[], &mut [])?,
        }
        opening = b',';
    }
    if opening == b'{' {
        out.push(opening);
    }
    out.push(b'}');
    Ok(())
}

/// The fields in the order of the UTF-16 code units of their keys.
fn sorted<'a>(fields: impl Iterator<Item = (&'a String, &'a Value)>) -> Vec<(&'a String, &'a Value)> {
    let mut sorted: Vec<_> = fields.collect();
    sorted.sort_unstable_by(|(one, _), (other, _)| compare(one, other));
    sorted
}

fn compare(one: &str, other: &str) -> Ordering {
    if one.is_ascii() && other.is_ascii() {
        return one.cmp(other);
    }
    one.encode_utf16().cmp(other.encode_utf16())
}

fn write_number(number: &Number, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    match number.as_i64() {
        // Written the same by every serializer.
        Some(integer) if integer.unsigned_abs() <= MAX_EXACT_INTEGER => {
            write!(out, "{integer}").map_err(serde_json::Error::io)
        }
        _ => serde_jcs::to_writer(out, number),
    }
}

/// The canonical bytes of any serializable value.
pub fn canonicalize_serializable(value: &impl Serialize) -> Result<Vec<u8>, JcsError> {
    canonicalize(&serde_json::to_value(value)?)
}

/// The JSON Document Hash: SHA-256 of the canonical bytes.
pub fn document_hash(value: &Value) -> Result<DocumentHash, JcsError> {
    hash(value).map(DocumentHash::from_bytes)
}

/// The SHA-256 of the canonical bytes.
///
/// # Errors
/// [`JcsError`], as [`canonicalize`].
pub fn hash(value: &Value) -> Result<[u8; 32], JcsError> {
    Ok(sha256(&canonicalize(value)?))
}

/// The SHA-256 of the canonical bytes of an object without one of its fields.
///
/// # Errors
/// [`JcsError`], as [`canonicalize`].
pub(crate) fn hash_without(fields: &Map<String, Value>, left_out: &str) -> Result<[u8; 32], JcsError> {
    let kept = || fields.iter().filter(|(key, _)| *key != left_out);
    kept().try_for_each(|(_, field)| check(field, MAX_DEPTH - 1))?;
    work::canonicalized();
    let mut canonical = Vec::with_capacity(1024);
    write_object(kept(), &mut canonical, &[], &mut [])?;
    Ok(sha256(&canonical))
}

/// Whether `value` has a canonical form and nests at most `levels_left` levels deep: for a value that will lie inside
/// another one, or whose canonical bytes are wanted later.
///
/// # Errors
/// [`JcsError`], as [`canonicalize`] would give it.
pub fn check(value: &Value, levels_left: usize) -> Result<(), JcsError> {
    let inner = || levels_left.checked_sub(1).ok_or(JcsError::Depth);
    match value {
        Value::Number(number) => {
            let exact = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
            match exact {
                Some(magnitude) if magnitude > MAX_EXACT_INTEGER && !is_canonical(number) => {
                    Err(JcsError::Integer(number.clone()))
                }
                _ => Ok(()),
            }
        }
        Value::Array(items) => {
            let levels_left = inner()?;
            items.iter().try_for_each(|item| check(item, levels_left))
        }
        Value::Object(fields) => {
            let levels_left = inner()?;
            fields.values().try_for_each(|field| check(field, levels_left))
        }
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}

/// Gives every number of `value` one representation, whatever its spelling was: `2.0` and `2e0` become `2`, and what is
/// beyond 2^53 a double. The canonical form stays the same, and values that have the same one are equal afterwards: a
/// patch's `test` compares numbers and not their spelling (RFC 6902, 4.6). `value` has to have a canonical form.
pub(crate) fn unify_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let exact = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
            let unified = match (exact, number.as_f64()) {
                (Some(magnitude), Some(double)) if magnitude > MAX_EXACT_INTEGER => Number::from_f64(double),
                // A double up to 2^53 without a fraction is that integer.
                (None, Some(double)) if double.fract() == 0.0 && double.abs() <= MAX_EXACT_INTEGER as f64 => {
                    Some(Number::from(double as i64))
                }
                _ => None,
            };
            if let Some(unified) = unified {
                *number = unified;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(unify_numbers),
        Value::Object(fields) => fields.values_mut().for_each(unify_numbers),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// Whether `value` nests more than `levels` levels deep, whatever else is wrong with it.
pub(crate) fn nests_deeper(value: &Value, levels: usize) -> bool {
    let deeper = |inner: &Value| nests_deeper(inner, levels - 1);
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(deeper),
        Value::Object(fields) => levels == 0 || fields.values().any(deeper),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Whether an integer is spelled as JCS spells the double nearest to it.
fn is_canonical(integer: &Number) -> bool {
    let double = integer.as_f64().and_then(Number::from_f64);
    double.and_then(|double| serde_jcs::to_string(&double).ok()).is_some_and(|text| text == integer.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_number_has_one_representation() {
        for spellings in [
            ["2", "2.0", "2e0"],
            ["0", "-0.0", "0e5"],
            ["-3", "-3.0", "-30e-1"],
            ["9007199254740992", "9007199254740992.0", "9.007199254740992e15"],
            ["10000000000000000", "1e16", "10000000000000000.0"],
            ["0.5", "5e-1", "0.50"],
        ] {
            let values = spellings.map(|text| serde_json::from_str::<Value>(text).unwrap());
            let unified = values.clone().map(|mut value| {
                unify_numbers(&mut value);
                value
            });
            assert!(unified.iter().all(|value| *value == unified[0]), "{unified:?}");
            for (before, after) in values.iter().zip(&unified) {
                assert_eq!(canonicalize(before).unwrap(), canonicalize(after).unwrap());
            }
        }
    }
    #[test]
    fn the_ranges_are_the_canonical_bytes_of_the_values() {
        let value: Value = serde_json::from_str(
            r#"{"z":[1.50,{"b":{},"a":[]}],"m":{"\u20ac":"\u0001\"/","b":{"y":2,"x":-0.0,"u":{"k":[null,true]}}},"\ud83d\ude00":0,"\ufb33":1e21}"#,
        )
        .unwrap();
        let (canonical, ranges) = canonicalize_with_ranges(&value, ["m", "b", "u", "nothing"]).unwrap();
        assert_eq!(canonical, serde_jcs::to_vec(&value).unwrap());
        let at = |range: &Place| canonical[range.clone().unwrap()].to_vec();
        assert_eq!(at(&ranges[0]), serde_jcs::to_vec(&value["m"]).unwrap());
        assert_eq!(at(&ranges[1]), br#"{"u":{"k":[null,true]},"x":0,"y":2}"#);
        assert_eq!(at(&ranges[2]), br#"{"k":[null,true]}"#);
        assert_eq!(ranges[3], None);
    }

    #[test]
    fn a_field_is_left_out_of_a_hash() {
        let whole = json!({ "z": 1, "proof": { "deep": [1e21] }, "a": { "proof": 2 } });
        let rest = json!({ "a": { "proof": 2 }, "z": 1 });
        let fields = whole.as_object().unwrap();
        assert_eq!(hash_without(fields, "proof").unwrap(), hash(&rest).unwrap());
        assert_eq!(hash_without(fields, "nothing").unwrap(), hash(&whole).unwrap());
        let one = json!({ "proof": 1 });
        assert_eq!(hash_without(one.as_object().unwrap(), "proof").unwrap(), hash(&json!({})).unwrap());
        let nested = |levels| (0..levels).fold(json!([]), |inner, _| json!([inner]));
        for (levels, fits) in [(MAX_DEPTH - 2, true), (MAX_DEPTH - 1, false)] {
            let deep = json!({ "a": nested(levels) });
            assert_eq!(hash(&deep).is_ok(), fits);
            assert_eq!(hash_without(deep.as_object().unwrap(), "b").is_ok(), fits);
        }
    }
}
