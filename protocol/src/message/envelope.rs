//! The signed HTTP envelope (wire format, section 5): `{v, from, to?, timestamp, nonce, message, sig}`.
//!
//! `timestamp` is in whole Unix seconds, `nonce` is 16 bytes in lower-case hex, `sig` is the BIP-340 signature, in hex,
//! over the SHA-256 of the canonical form ([`crate::jcs`]) of the envelope without `sig`; byte strings are canonicalized
//! as the `{"__bytes": ...}` objects that they are.
//!
//! [`SealedEnvelope`] is for sending. In canonical order an envelope starts with its sender and its message's body:
//!
//! ```text
//! {"from":"<did>","message":{"body":<body>,"from":"<did>",  "to":"<did>","type":...},"nonce":...,"timestamp":...}
//! └──────────── the same for every recipient ───────────┘  └──────────────── of this recipient ────────────────┘
//! ```
//!
//! A body with a thousand recipients is therefore canonicalized and hashed once, and the hash of each envelope
//! continues from that state. The JSON text of the body is shared too: [`SealedEnvelope::pieces`].
//!
//! [`ParsedEnvelope`] is for receiving. [`ParsedEnvelope::parse`] decides whether a text is an envelope (a server
//! responds 400 to one that is not), [`ParsedEnvelope::verify`] whether it is authentic (a server responds 401). This
//! module keeps no state: the caller detects a nonce that was used before.

use std::{sync::OnceLock, time::Duration};

use data_encoding::HEXLOWER;
use rand_core::CryptoRng;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{fields::Fields, shared_body::ReceivedBody};
use crate::{
    did::Did,
    hash::sha256,
    jcs::{self, JcsError},
    key::{SecretKey, Signature, SignatureTextError, XOnlyKey},
    message::{self, DecodeError, Message, SharedBody},
    time::Timestamp,
    update::CanonicalDocument,
};

/// The supported envelope version, the field `v`.
pub const VERSION: u64 = 1;

/// The largest permitted difference between the clocks of sender and recipient.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// The largest timestamp that a JSON number carries exactly (2^53 seconds).
const MAX_TIMESTAMP: f64 = (1u64 << 53) as f64;

/// The hash state after the part of an envelope's signed bytes that all recipients of a body share.
#[derive(Clone)]
pub(crate) struct BodyPrefix(Sha256);

impl BodyPrefix {
    /// For messages from `from` with the body `value`, whose canonical bytes are `canonical`.
    pub(crate) fn new(from: &Did, value: &Value, canonical: &[u8]) -> Result<Self, JcsError> {
        jcs::check(value, jcs::MAX_BODY_DEPTH)?;
        let mut hasher = Sha256::new();
        hasher.update(format!("{{\"from\":\"{from}\",\"message\":{{\"body\":"));
        hasher.update(canonical);
        hasher.update(format!(",\"from\":\"{from}\""));
        Ok(Self(hasher))
    }
}

/// The digest that the envelope of `message` signs. The envelope's sender and recipient are the message's.
///
/// # Errors
/// [`JcsError`] when the body has no canonical form or nests too deep. Only a body with a document of the caller's in
/// it, or a forwarded body, can cause this.
pub fn signing_digest(message: &Message, timestamp: Timestamp, nonce: &[u8; 16]) -> Result<[u8; 32], JcsError> {
    let BodyPrefix(mut hasher) = message.body.sealing_prefix(&message.from)?.into_owned();
    hasher.update(message.canonical_tail());
    let to = message.to.as_ref().map(|did| format!("\"to\":\"{did}\",")).unwrap_or_default();
    hasher.update(format!(
        ",\"nonce\":\"{}\",\"timestamp\":{},{to}\"v\":{VERSION}}}",
        HEXLOWER.encode(nonce),
        timestamp.as_secs(),
    ));
    Ok(hasher.finalize().into())
}

/// A signed envelope as it goes over the wire. Cloning it does not copy the body.
#[derive(Clone, Debug)]
pub struct SealedEnvelope {
    /// The JSON text before the message's body.
    pub head: String,
    /// The body. The envelopes of all its recipients share its JSON text.
    pub body: SharedBody,
    /// The JSON text after the body.
    pub tail: String,
}

impl SealedEnvelope {
    /// Seals `message` with `key`, which must be the key that authenticates the message's sender. The envelope's
    /// sender and recipient are the message's, `timestamp` is rounded down to its second, `nonce` must never have
    /// been used by this sender before, and `rng` gives the signature's auxiliary randomness.
    ///
    /// # Errors
    /// [`JcsError`], as [`signing_digest`].
    pub fn seal(
        message: &Message,
        key: &SecretKey,
        timestamp: Timestamp,
        nonce: [u8; 16],
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, JcsError> {
        let signature = key.sign(&signing_digest(message, timestamp, &nonce)?, rng);
        let to = message.to.as_ref().map(|did| format!("\"to\":\"{did}\",")).unwrap_or_default();
        // DIDs, hex and numbers contain no character that JSON escapes.
        let head = format!(
            "{{\"v\":{VERSION},\"from\":\"{}\",{to}\"timestamp\":{},\"nonce\":\"{}\",\"message\":{}",
            message.from,
            timestamp.as_secs(),
            HEXLOWER.encode(&nonce),
            message.json_head(),
        );
        Ok(Self { head, body: message.body.clone(), tail: format!("}},\"sig\":\"{signature}\"}}") })
    }

    /// Like [`Self::seal`], with a nonce from `rng`.
    ///
    /// # Errors
    /// [`JcsError`], as [`signing_digest`].
    pub fn seal_with_rng(
        message: &Message,
        key: &SecretKey,
        timestamp: Timestamp,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, JcsError> {
        let mut nonce = [0; 16];
        rng.fill_bytes(&mut nonce);
        Self::seal(message, key, timestamp, nonce, rng)
    }

    /// The JSON text in its three pieces, for a consumer that writes them one after another. It has no line breaks,
    /// unless the body was received with them and is forwarded.
    pub fn pieces(&self) -> [&str; 3] {
        [&self.head, self.body.json(), &self.tail]
    }

    /// The length of the JSON text in bytes.
    pub fn byte_len(&self) -> usize {
        self.pieces().iter().map(|piece| piece.len()).sum()
    }

    /// The JSON text.
    pub fn to_json(&self) -> String {
        self.pieces().concat()
    }
}

/// Why a text is refused as an envelope. [`Self::NotJson`] and [`Self::Malformed`] come from [`ParsedEnvelope::parse`], the
/// others from [`ParsedEnvelope::verify`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not JSON.
    #[error("not JSON")]
    NotJson,
    /// JSON, but not an envelope that could be signed, with the reason.
    #[error("not an envelope: {0}")]
    Malformed(String),
    /// `v` is not [`VERSION`].
    #[error("v: {VERSION} expected")]
    Version,
    /// `from` is not the expected sender.
    #[error("from is not the expected sender")]
    From,
    /// `to` is not the expected recipient.
    #[error("to is not the expected recipient")]
    To,
    /// `timestamp` is not a whole number of seconds, or too far from the verifier's time.
    #[error("timestamp: seconds within the permitted skew expected")]
    TimestampSkew,
    /// `sig` is missing or not hex.
    #[error("sig: hex expected")]
    SigHex,
    /// `sig` is not 64 bytes.
    #[error("sig: 64 bytes expected")]
    SigLength,
    /// `sig` is not the sender's signature of this envelope.
    #[error("sig does not verify")]
    SigInvalid,
    /// `nonce`, although signed, is not 16 bytes in lower-case hex.
    #[error("nonce: 16 bytes in lower-case hex expected")]
    Nonce,
}

impl EnvelopeError {
    /// The reason as a stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotJson => "ENVELOPE_NOT_JSON",
            Self::Malformed(_) => "ENVELOPE_MALFORMED",
            Self::Version => "ENVELOPE_VERSION_MISMATCH",
            Self::From => "ENVELOPE_FROM_MISMATCH",
            Self::To => "ENVELOPE_TO_MISMATCH",
            Self::TimestampSkew => "ENVELOPE_TIMESTAMP_SKEW",
            Self::SigHex => "ENVELOPE_SIG_HEX",
            Self::SigLength => "ENVELOPE_SIG_LENGTH",
            Self::SigInvalid => "ENVELOPE_SIG_INVALID",
            Self::Nonce => "ENVELOPE_NONCE",
        }
    }

    fn malformed(problem: impl ToString) -> Self {
        Self::Malformed(problem.to_string())
    }
}

/// The recipient that an envelope must name.
#[derive(Clone, Copy, Debug, Default)]
pub enum ExpectedTo<'a> {
    /// Any recipient: the caller checks [`ParsedEnvelope::to`] itself.
    #[default]
    Any,
    /// No recipient: the envelope is a broadcast, without `to`.
    Broadcast,
    /// This DID.
    Did(&'a Did),
}

/// What the verifier expects beyond a valid signature.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The sender; `None` for the sender whose key the caller looked up by [`ParsedEnvelope::from`].
    pub from: Option<&'a Did>,
    /// The recipient.
    pub to: ExpectedTo<'a>,
    /// The largest permitted difference between the clocks, in whole seconds, inclusive.
    pub skew: Duration,
}

impl Default for Expected<'_> {
    /// Any sender, any recipient, [`CLOCK_SKEW`].
    fn default() -> Self {
        Self { from: None, to: ExpectedTo::Any, skew: CLOCK_SKEW }
    }
}

/// The input of the caller's replay guard: this nonce of this sender must not be accepted again as long as the
/// timestamp is within the skew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The nonce.
    pub nonce: [u8; 16],
    /// When the sender sealed the envelope, by its clock.
    pub timestamp: Timestamp,
}

/// A text with the shape of an envelope. Nothing in it is authentic before [`Self::verify`].
///
/// The text is parsed once, and canonicalized once: the digest that is signed, the body's in the transcript, and that of
/// a submitted update, are of parts of the same canonical bytes.
#[derive(Clone, Debug)]
pub struct ParsedEnvelope<'a> {
    /// The envelope without `sig`, unknown fields included: every field must be signed.
    unsigned: Value,
    sig: Option<String>,
    /// The text of the message's body.
    body: Option<&'a str>,
    twice_in_message: Option<String>,
    twice_in_body: Option<String>,
    digests: OnceLock<EnvelopeDigests>,
}

/// The digests of an envelope's parts, where there are such parts.
#[derive(Clone, Copy, Debug)]
struct EnvelopeDigests {
    envelope: [u8; 32],
    body: Option<[u8; 32]>,
    update: Option<CanonicalDocument>,
}

impl<'a> ParsedEnvelope<'a> {
    /// Parses a text with the shape of an envelope: an object with a string `from`, and with an object `message` and
    /// a string `to` where present. [`Self::verify`] checks the other fields.
    ///
    /// # Errors
    /// [`EnvelopeError::NotJson`]; [`EnvelopeError::Malformed`] for JSON of another shape, for a `{"__bytes": ...}`
    /// that is not lower-case hex of whole bytes, and for content that no signed envelope can have: a field twice,
    /// nesting beyond the parser's limit, a lone surrogate, an integer that no double represents, a number out of the
    /// range of doubles.
    pub fn parse(text: &'a str) -> Result<Self, EnvelopeError> {
        let Fields { mut all, body, twice_in_message, twice_in_body } = Fields::parse(text).map_err(|error| {
            // `IgnoredAny` skips a value without the limits on depth, numbers and surrogates.
            match serde_json::from_str::<IgnoredAny>(text) {
                Ok(_) => EnvelopeError::malformed(error),
                Err(_) => EnvelopeError::NotJson,
            }
        })?;
        if !all.get("from").is_some_and(Value::is_string) {
            return Err(EnvelopeError::malformed("from: a string expected"));
        }
        if !all.get("to").is_none_or(Value::is_string) {
            return Err(EnvelopeError::malformed("to: a string expected"));
        }
        let sig = match all.remove("sig") {
            Some(Value::String(sig)) => Some(sig),
            _ => None,
        };
        let unsigned = Value::Object(all);
        jcs::check(&unsigned, jcs::MAX_DEPTH).map_err(EnvelopeError::malformed)?;
        check_byte_strings(&unsigned)?;
        Ok(Self { unsigned, sig, body, twice_in_message, twice_in_body, digests: OnceLock::new() })
    }

    /// The sender that the envelope claims; any text.
    pub fn from(&self) -> &str {
        self.unsigned["from"].as_str().unwrap_or_default()
    }

    /// The recipient that the envelope claims; any text.
    pub fn to(&self) -> Option<&str> {
        self.unsigned["to"].as_str()
    }

    /// The nonce, if it is 16 bytes in lower-case hex.
    pub fn nonce(&self) -> Option<[u8; 16]> {
        self.unsigned["nonce"].as_str().and_then(parse_nonce)
    }

    /// The timestamp, if it is a whole number of seconds, in any JSON notation.
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.unsigned["timestamp"].as_f64().and_then(timestamp_from_secs)
    }

    /// The message as JSON; `null` if there is none.
    pub fn message_value(&self) -> &Value {
        &self.unsigned["message"]
    }

    /// The message.
    ///
    /// # Errors
    /// [`DecodeError`], as for [`Message::from_json`]; a message of an unknown type is to be ignored, not refused.
    pub fn message(&self) -> Result<Message, DecodeError> {
        // Before the copy, which has them too. Without a canonical form it has none.
        let _ = self.digests();
        self.clone().into_message_among(&[])
    }

    /// Like [`Self::message`], without a copy. `known` are DIDs that are likely to be the sender or the recipient, see
    /// [`Message::from_json_among`].
    ///
    /// # Errors
    /// As [`Self::message`].
    pub fn into_message_among(mut self, known: &[&Did]) -> Result<Message, DecodeError> {
        let digests = self.digests().ok();
        if let Some(key) = self.twice_in_message {
            return Err(DecodeError::duplicate("message", &key));
        }
        let message = self.unsigned.get_mut("message").map(Value::take).unwrap_or_default();
        let received = ReceivedBody {
            text: self.body.unwrap_or_default(),
            twice: self.twice_in_body,
            digest: digests.and_then(|digests| digests.body),
            update: digests.and_then(|digests| digests.update),
        };
        Message::from_value(message, received, known)
    }

    fn digests(&self) -> Result<EnvelopeDigests, JcsError> {
        if let Some(digests) = self.digests.get() {
            return Ok(*digests);
        }
        // `parse` has checked it.
        let path = ["message", "body", "signedUpdate"];
        let (canonical, [_, body, update]) = jcs::canonicalize_with_ranges(&self.unsigned, path)?;
        let part = |range: jcs::Place| range.and_then(|range| canonical.get(range));
        let digests = EnvelopeDigests {
            envelope: sha256(&canonical),
            body: part(body).map(sha256),
            update: part(update).map(CanonicalDocument::of),
        };
        Ok(*self.digests.get_or_init(|| digests))
    }

    /// The `from` of the message, if it is a string.
    pub fn inner_from(&self) -> Option<&str> {
        self.unsigned["message"]["from"].as_str()
    }

    /// The `type` of the message, if it is a string.
    pub fn inner_type(&self) -> Option<&str> {
        self.unsigned["message"]["type"].as_str()
    }

    /// Whether the message names the envelope's sender as its own. The body must not name another one: the TypeScript
    /// implementation, which flattens the body over the message, would take that of the body.
    pub fn sender_matches(&self) -> bool {
        let message = &self.unsigned["message"];
        let body_from = message["body"].get("from");
        self.inner_from() == Some(self.from()) && body_from.is_none_or(|from| from.as_str() == Some(self.from()))
    }

    /// The bytes whose SHA-256 is signed: the canonical form of all received fields except `sig`.
    ///
    /// # Errors
    /// None in practice: [`Self::parse`] has refused content without a canonical form.
    pub fn signing_bytes(&self) -> Result<Vec<u8>, JcsError> {
        jcs::canonicalize(&self.unsigned)
    }

    /// Verifies that the envelope is signed by `key`, fresh at `now`, and as `expected`.
    ///
    /// # Errors
    /// [`EnvelopeError`]: the first reason in the order of its variants.
    pub fn verify(
        &self,
        key: &XOnlyKey,
        now: Timestamp,
        expected: &Expected<'_>,
    ) -> Result<Verified, EnvelopeError> {
        if self.unsigned["v"].as_f64() != Some(VERSION as f64) {
            return Err(EnvelopeError::Version);
        }
        if expected.from.is_some_and(|from| from.as_str() != self.from()) {
            return Err(EnvelopeError::From);
        }
        let to_matches = match expected.to {
            ExpectedTo::Any => true,
            ExpectedTo::Broadcast => self.to().is_none(),
            ExpectedTo::Did(did) => self.to() == Some(did.as_str()),
        };
        if !to_matches {
            return Err(EnvelopeError::To);
        }
        let timestamp = self
            .timestamp()
            .filter(|timestamp| timestamp.agrees_with(now, expected.skew))
            .ok_or(EnvelopeError::TimestampSkew)?;
        let sig = self.sig.as_deref().ok_or(EnvelopeError::SigHex)?;
        let signature = Signature::from_hex(sig).map_err(|error| match error {
            SignatureTextError::Hex => EnvelopeError::SigHex,
            SignatureTextError::Length => EnvelopeError::SigLength,
        })?;
        let digests = self.digests().map_err(|_| EnvelopeError::SigInvalid)?;
        if !key.verify(&digests.envelope, &signature) {
            return Err(EnvelopeError::SigInvalid);
        }
        // Checked after the signature, so that a changed nonce gives the same error as in the TypeScript
        // implementation.
        let nonce = self.nonce().ok_or(EnvelopeError::Nonce)?;
        Ok(Verified { nonce, timestamp })
    }
}

/// 16 bytes in lower-case hex.
pub(crate) fn parse_nonce(hex: &str) -> Option<[u8; 16]> {
    HEXLOWER.decode(hex.as_bytes()).ok()?.try_into().ok()
}

/// A whole number of seconds, in any JSON notation (`1750000000`, `1.75e9`).
pub(crate) fn timestamp_from_secs(secs: f64) -> Option<Timestamp> {
    let whole = secs.fract() == 0.0 && (0.0..=MAX_TIMESTAMP).contains(&secs);
    // In range and whole, so the conversion is exact.
    whole.then(|| Timestamp::from_secs(secs as u64))
}

/// Refuses an object whose only key is `__bytes` and whose value is not lower-case hex of whole bytes: it does not
/// represent a byte string. With other keys beside it, it is an ordinary object.
fn check_byte_strings(value: &Value) -> Result<(), EnvelopeError> {
    match value {
        Value::Object(fields) => {
            check_sentinel(fields).and_then(|()| fields.values().try_for_each(check_byte_strings))
        }
        Value::Array(items) => items.iter().try_for_each(check_byte_strings),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

fn check_sentinel(fields: &Map<String, Value>) -> Result<(), EnvelopeError> {
    let hex = fields.get(message::BYTES_SENTINEL).filter(|_| fields.len() == 1);
    let valid = hex.is_none_or(|hex| {
        let hex = hex.as_str().map(str::as_bytes);
        hex.is_some_and(|hex| hex.len() % 2 == 0 && hex.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')))
    });
    if valid { Ok(()) } else { Err(EnvelopeError::malformed("__bytes: lower-case hex of whole bytes expected")) }
}
