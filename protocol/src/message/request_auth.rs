//! The authorization of a request for an inbox (wire format, section 5): the header
//! `Authorization: BTCR2-Sig v=1,did=<did>,ts=<unix seconds>,nonce=<16 bytes in lower-case hex>,sig=<64 bytes in hex>`.
//!
//! `sig` is a BIP-340 signature over the SHA-256 of the canonical form of `{v, did, ts, nonce, path}`, where `path`
//! is the path of the request as the client wrote it: with any prefix of the base URL, and with the DID
//! percent-encoded as the client did. The verifier must take it from the request line, before any decoding.
//!
//! This module keeps no state: the caller detects a nonce that was used before.

use std::{fmt, time::Duration};

use data_encoding::HEXLOWER;
use rand_core::CryptoRng;
use serde_json::Value;

use crate::{
    did::Did,
    envelope::{parse_nonce, timestamp_from_secs},
    hash::sha256,
    key::{SecretKey, Signature, SignatureTextError, XOnlyKey},
    time::Timestamp,
};

/// The supported version, the parameter `v`.
const VERSION: u64 = 1;

const SCHEME: &str = "BTCR2-Sig";

/// Why a header is refused. The first three come from [`RequestAuthorization::parse`], the others from
/// [`RequestAuthorization::verify`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestAuthError {
    /// A scheme other than `BTCR2-Sig`, in exactly this spelling.
    #[error("the scheme {SCHEME} expected")]
    Scheme,
    /// A parameter is missing or does not have its shape.
    #[error("v, did, ts (whole seconds), nonce (16 bytes in lower-case hex) and sig expected")]
    Malformed,
    /// `v` is not 1.
    #[error("v: {VERSION} expected")]
    Version,
    /// `ts` is too far from the verifier's time.
    #[error("ts is not within the permitted skew")]
    TimestampSkew,
    /// `sig` is not hex.
    #[error("sig: hex expected")]
    SigHex,
    /// `sig` is not 64 bytes.
    #[error("sig: 64 bytes expected")]
    SigLength,
    /// `sig` is not the key's signature of this request.
    #[error("sig does not verify")]
    SigInvalid,
}

impl RequestAuthError {
    /// The reason as a stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Scheme => "REQUEST_AUTH_SCHEME",
            Self::Malformed => "REQUEST_AUTH_MALFORMED",
            Self::Version => "REQUEST_AUTH_VERSION_MISMATCH",
            Self::TimestampSkew => "REQUEST_AUTH_TIMESTAMP_SKEW",
            Self::SigHex => "REQUEST_AUTH_SIG_HEX",
            Self::SigLength => "REQUEST_AUTH_SIG_LENGTH",
            Self::SigInvalid => "REQUEST_AUTH_SIG_INVALID",
        }
    }
}

/// The header's parameters. Its `Display` is the header's value. Nothing in it is authentic before [`Self::verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestAuthorization {
    did: String,
    timestamp: Timestamp,
    nonce: [u8; 16],
    sig: String,
}

impl RequestAuthorization {
    /// Parses the header's value. Spaces around parameters, their order and unknown parameters do not matter. If a
    /// parameter occurs twice the last one counts, as in the TypeScript implementation.
    ///
    /// # Errors
    /// [`RequestAuthError::Scheme`], [`RequestAuthError::Malformed`] or [`RequestAuthError::Version`].
    pub fn parse(header: &str) -> Result<Self, RequestAuthError> {
        let parameters =
            header.strip_prefix(SCHEME).filter(|rest| rest.starts_with(' ')).ok_or(RequestAuthError::Scheme)?;
        let (mut v, mut did, mut ts, mut nonce, mut sig) = (None, None, None, None, None);
        for parameter in parameters.split(',') {
            let (name, value) = parameter.trim().split_once('=').ok_or(RequestAuthError::Malformed)?;
            match name {
                "v" => v = Some(value),
                "did" => did = Some(value),
                "ts" => ts = Some(value),
                "nonce" => nonce = Some(value),
                "sig" => sig = Some(value),
                _ => {}
            }
        }
        let (Some(v), Some(did), Some(ts), Some(nonce), Some(sig)) = (v, did, ts, nonce, sig) else {
            return Err(RequestAuthError::Malformed);
        };
        if v.parse() != Ok(VERSION) {
            return Err(RequestAuthError::Version);
        }
        let ts: f64 = ts.parse().map_err(|_| RequestAuthError::Malformed)?;
        Ok(Self {
            did: did.to_owned(),
            timestamp: timestamp_from_secs(ts).ok_or(RequestAuthError::Malformed)?,
            nonce: parse_nonce(nonce).ok_or(RequestAuthError::Malformed)?,
            sig: sig.to_owned(),
        })
    }

    /// Signs a request for `path` by `did` with `key`. `path` is the path exactly as in the request line, see
    /// [`inbox_path`]; `timestamp` is rounded down to its second; the nonce and the signature's auxiliary randomness
    /// come from `rng`.
    pub fn sign(did: &Did, key: &SecretKey, path: &str, timestamp: Timestamp, rng: &mut dyn CryptoRng) -> Self {
        let mut nonce = [0; 16];
        rng.fill_bytes(&mut nonce);
        let mut authorization = Self {
            did: did.as_str().to_owned(),
            timestamp: Timestamp::from_secs(timestamp.as_secs()),
            nonce,
            sig: String::new(),
        };
        authorization.sig = key.sign(&sha256(&authorization.signing_bytes(path)), rng).to_string();
        authorization
    }

    /// The DID whose inbox is requested, as the header claims; any text.
    pub fn did(&self) -> &str {
        &self.did
    }

    /// When the client signed, by its clock, in whole seconds.
    pub fn timestamp(&self) -> Timestamp {
        self.timestamp
    }

    /// The nonce, for the caller's replay guard: it must not be accepted from this DID again as long as the timestamp is
    /// within the skew.
    pub fn nonce(&self) -> [u8; 16] {
        self.nonce
    }

    /// Whether `sig` has the shape of a signature. More cannot be checked without the key.
    pub fn is_well_formed(&self) -> bool {
        Signature::from_hex(&self.sig).is_ok()
    }

    /// The bytes whose SHA-256 is signed: the canonical form of `{v, did, ts, nonce, path}`.
    pub fn signing_bytes(&self, path: &str) -> Vec<u8> {
        // serde_json escapes strings as JCS does, and the keys are sorted: this always is the canonical form.
        format!(
            "{{\"did\":{},\"nonce\":\"{}\",\"path\":{},\"ts\":{},\"v\":{VERSION}}}",
            Value::from(self.did.as_str()),
            HEXLOWER.encode(&self.nonce),
            Value::from(path),
            self.timestamp.as_secs(),
        )
        .into_bytes()
    }

    /// Verifies that the request for `path`, exactly as in the request line, is signed by `key` and fresh at `now`.
    /// `skew` ([`crate::envelope::CLOCK_SKEW`] in the wire format) counts in whole seconds, inclusive.
    ///
    /// # Errors
    /// [`RequestAuthError`]: the first reason in the order of its variants.
    pub fn verify(
        &self,
        key: &XOnlyKey,
        path: &str,
        now: Timestamp,
        skew: Duration,
    ) -> Result<(), RequestAuthError> {
        if !self.timestamp.agrees_with(now, skew) {
            return Err(RequestAuthError::TimestampSkew);
        }
        let signature = Signature::from_hex(&self.sig).map_err(|error| match error {
            SignatureTextError::Hex => RequestAuthError::SigHex,
            SignatureTextError::Length => RequestAuthError::SigLength,
        })?;
        if key.verify(&sha256(&self.signing_bytes(path)), &signature) {
            Ok(())
        } else {
            Err(RequestAuthError::SigInvalid)
        }
    }
}

impl fmt::Display for RequestAuthorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { did, timestamp, nonce, sig } = self;
        let (ts, nonce) = (timestamp.as_secs(), HEXLOWER.encode(nonce));
        write!(f, "{SCHEME} v={VERSION},did={did},ts={ts},nonce={nonce},sig={sig}")
    }
}

/// The path of the inbox of `did` under the base URL's path (empty, or e.g. `/agg`), as the TypeScript implementation
/// writes it: `/v1/actors/did%3Abtcr2%3Ak1.../inbox`.
pub fn inbox_path(base_path: &str, did: &Did) -> String {
    format!("{}/v1/actors/{}/inbox", base_path.trim_end_matches('/'), did.uri_component())
}
