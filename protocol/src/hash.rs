//! 32-byte hashes, each kind with its own type, and their two encodings in JSON.

use std::fmt;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// SHA-256 of the concatenation of `parts`.
pub fn sha256_concat(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// A text that is not 32 bytes in the expected encoding.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{expected} expected")]
pub struct HashTextError {
    expected: &'static str,
}

macro_rules! hash_newtype {
    ($(#[$doc:meta])* $name:ident, $encode:expr, $decode:expr, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Wraps 32 bytes that are already known to be this kind of hash.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&$encode.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl std::str::FromStr for $name {
            type Err = HashTextError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $decode
                    .decode(text.as_bytes())
                    .ok()
                    .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
                    .map(Self)
                    .ok_or(HashTextError { expected: $expected })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

hash_newtype!(
    /// JSON Document Hash: SHA-256 of a document's JCS bytes, written base64url without padding
    /// (did:btcr2, "JSON Document Hash").
    DocumentHash,
    BASE64URL_NOPAD,
    BASE64URL_NOPAD,
    "base64url of 32 bytes without padding"
);
hash_newtype!(
    /// A hash inside a sparse Merkle tree or its proof, written base64url without padding.
    SmtHash,
    BASE64URL_NOPAD,
    BASE64URL_NOPAD,
    "base64url of 32 bytes without padding"
);
hash_newtype!(
    /// The index of a DID: SHA-256 of its text (rule M-1), written base64url without padding.
    DidIndex,
    BASE64URL_NOPAD,
    BASE64URL_NOPAD,
    "base64url of 32 bytes without padding"
);
hash_newtype!(
    /// Signal Bytes: the 32 bytes that a beacon transaction's `OP_RETURN` carries, written in hex.
    SignalBytes,
    HEXLOWER,
    HEXLOWER_PERMISSIVE,
    "hex of 32 bytes"
);
hash_newtype!(
    /// Digest of one message of a round, the leaf content of the cohort's transcript, written in hex.
    MessageDigest,
    HEXLOWER,
    HEXLOWER_PERMISSIVE,
    "hex of 32 bytes"
);
