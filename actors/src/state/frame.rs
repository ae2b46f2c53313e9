//! The frame of a value in the database: version, checksum, payload.
//!
//! redb checks its pages only when it repairs, so each value has its own checksum, which also covers its key: a value
//! under another key is as wrong as one with a flipped bit. The layout is the same in every version, so that a newer
//! version is distinguished from damage.

use btcr2_aggregation_protocol::hash::sha256_concat;

const VERSION_LEN: usize = 2;
const CHECK_LEN: usize = 8;

/// A value whose checksum is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its checksum is wrong")]
pub(super) struct Damage;

/// The kind of a frame's value; frames of different kinds cannot be confused.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Meta,
    Head,
    Record,
    Entry,
}

/// Truncated: it detects accidents, not forgery; an attacker could rewrite the whole file anyway.
fn check(kind: Kind, key: &[u8], version: [u8; VERSION_LEN], payload: &[u8]) -> [u8; CHECK_LEN] {
    let key_len = (key.len() as u64).to_be_bytes();
    let hash = sha256_concat(&[&[kind as u8], &key_len, key, &version, payload]);
    let mut check = [0; CHECK_LEN];
    check.copy_from_slice(&hash[..CHECK_LEN]);
    check
}

/// The frame of `payload` under `key`.
pub(super) fn seal(kind: Kind, key: &[u8], version: u16, payload: &[u8]) -> Vec<u8> {
    let version = version.to_be_bytes();
    [&version, &check(kind, key, version, payload)[..], payload].concat()
}

/// The version and payload of a frame that was found under `key`.
pub(super) fn open<'a>(kind: Kind, key: &[u8], frame: &'a [u8]) -> Result<(u16, &'a [u8]), Damage> {
    let (version, rest) = frame.split_first_chunk::<VERSION_LEN>().ok_or(Damage)?;
    let (found, payload) = rest.split_first_chunk::<CHECK_LEN>().ok_or(Damage)?;
    if *found == check(kind, key, *version, payload) {
        Ok((u16::from_be_bytes(*version), payload))
    } else {
        Err(Damage)
    }
}
