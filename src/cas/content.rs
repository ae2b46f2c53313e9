//! The stored content, and its address in every notation.

use std::{fmt, str::FromStr, sync::Arc};

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD, HEXLOWER, HEXLOWER_PERMISSIVE};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::protocol::{
    beacon::CasAnnouncement,
    hash::{DocumentHash, SignalBytes, sha256},
    jcs::{self, JcsError},
    update::SignedUpdate,
};

/// The largest content, in bytes: 1 MiB, which every IPFS node accepts as one block. An announcement has about 120
/// bytes for each member.
pub const MAX_CONTENT: usize = 1 << 20;

/// CIDv1 (0x01), raw binary (0x55), SHA-256 (0x12) of 32 bytes (0x20).
const CID_PREFIX: [u8; 4] = [0x01, 0x55, 0x12, 0x20];

/// The address of a content: its SHA-256. Written base64url without padding, as announcements name updates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; 32]);

/// The text is not an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a hash: base64url without padding (43 characters), hex (64), or the CIDv1 of a raw block (bafkrei...) expected"
)]
pub struct ContentHashError;

impl ContentHash {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha256(bytes))
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// In hex, the notation of signals.
    pub fn hex(&self) -> String {
        HEXLOWER.encode(&self.0)
    }

    /// As the CIDv1 of a raw block, in base32, the address in IPFS.
    pub fn cid(&self) -> String {
        let bytes = [CID_PREFIX.as_slice(), &self.0].concat();
        format!("b{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

impl ContentHash {
    /// The hash in the CIDv1 of a raw block, in any of the bases that nodes use: base32, base58btc and base16. `None`
    /// for other kinds of CID, which address something else.
    pub fn from_any_cid(text: &str) -> Option<Self> {
        let (base, digits) = text.split_at_checked(1)?;
        let bytes = match base {
            "b" | "B" => BASE32_NOPAD.decode(digits.to_ascii_uppercase().as_bytes()).ok()?,
            "z" => bs58::decode(digits).into_vec().ok()?,
            "f" | "F" => HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok()?,
            _ => return None,
        };
        bytes.strip_prefix(&CID_PREFIX)?.try_into().ok().map(Self)
    }
}

impl From<DocumentHash> for ContentHash {
    fn from(hash: DocumentHash) -> Self {
        Self(*hash.as_bytes())
    }
}

/// The signal of a CAS beacon is the hash of its announcement; that of an SMT beacon is not the address of any content.
impl From<SignalBytes> for ContentHash {
    fn from(signal: SignalBytes) -> Self {
        Self(*signal.as_bytes())
    }
}

impl FromStr for ContentHash {
    type Err = ContentHashError;

    /// Parses any of the three notations, which differ in length.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = match text.len() {
            43 => BASE64URL_NOPAD.decode(text.as_bytes()).ok(),
            64 => HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok(),
            _ => from_cid(text),
        };
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or(ContentHashError)
    }
}

fn from_cid(text: &str) -> Option<Vec<u8>> {
    let base32 = text.strip_prefix('b').filter(|base32| !base32.bytes().any(|byte| byte.is_ascii_uppercase()))?;
    let bytes = BASE32_NOPAD.decode(base32.to_ascii_uppercase().as_bytes()).ok()?;
    bytes.strip_prefix(&CID_PREFIX).map(<[u8]>::to_vec)
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({self})")
    }
}

impl Serialize for ContentHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Bytes of at most [`MAX_CONTENT`], with their hash. A clone shares them.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    hash: ContentHash,
    bytes: Arc<[u8]>,
}

/// Why content cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// More bytes than a store accepts.
    #[error("more than {MAX_CONTENT} bytes: too large to be stored by hash")]
    TooLarge,
    /// It has no canonical form, and therefore no hash under which a resolver would look for it.
    #[error("it has no canonical form: {0}")]
    NotCanonical(#[from] JcsError),
}

impl Content {
    /// Any bytes.
    ///
    /// # Errors
    /// [`ContentError::TooLarge`].
    pub fn new(bytes: impl Into<Arc<[u8]>>) -> Result<Self, ContentError> {
        let bytes = bytes.into();
        if bytes.len() > MAX_CONTENT {
            return Err(ContentError::TooLarge);
        }
        Ok(Self { hash: ContentHash::of(&bytes), bytes })
    }

    /// The canonical bytes of a JSON document (RFC 8785), whose hash is the JSON Document Hash.
    ///
    /// # Errors
    /// [`ContentError`].
    pub fn document(document: &Value) -> Result<Self, ContentError> {
        Self::new(jcs::canonicalize(document)?)
    }

    /// The address.
    pub fn hash(&self) -> ContentHash {
        self.hash
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The address is the update's [`SignedUpdate::hash`].
impl TryFrom<&SignedUpdate> for Content {
    type Error = ContentError;

    fn try_from(update: &SignedUpdate) -> Result<Self, Self::Error> {
        Self::document(update.value())
    }
}

/// The address is the announcement's [`CasAnnouncement::signal`].
impl TryFrom<&CasAnnouncement> for Content {
    type Error = ContentError;

    fn try_from(announcement: &CasAnnouncement) -> Result<Self, Self::Error> {
        Self::new(jcs::canonicalize_serializable(announcement)?)
    }
}

/// Only the hash: content can be as large as a cohort's announcement.
impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Content({}, {} bytes)", self.hash, self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_address_has_three_spellings() {
        // The CID that IPFS tools print for a raw block of these bytes: `printf hello | ipfs block put`.
        let hash = ContentHash::of(b"hello");
        assert_eq!(hash.cid(), "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq");
        assert_eq!(hash.hex(), "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        assert_eq!(hash.to_string(), "LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ");
        for text in [hash.cid(), hash.hex(), hash.hex().to_uppercase(), hash.to_string()] {
            assert_eq!(text.parse(), Ok(hash), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let hash = ContentHash::of(b"hello");
        let dag_pb = format!("b{}", BASE32_NOPAD.encode(&[&[1, 0x70, 0x12, 0x20], hash.0.as_slice()].concat()));
        let cid_with_surplus = format!("{}aa", hash.cid());
        for text in [
            "",
            "b",
            &hash.to_string()[1..],
            &hash.hex()[1..],
            &format!("{hash}="),
            &hash.cid().to_uppercase(),
            &hash.cid()[1..],
            &dag_pb.to_ascii_lowercase(),
            &cid_with_surplus,
        ] {
            assert_eq!(text.parse::<ContentHash>(), Err(ContentHashError), "{text}");
        }
    }

    #[test]
    fn what_is_published_is_found_by_the_hash_that_was_announced() {
        let update = SignedUpdate::from_value(json!({ "b": 1.0, "a": "\u{20ac}" })).unwrap();
        let content = Content::try_from(&update).unwrap();
        assert_eq!(content.hash(), (*update.hash()).into());
        assert_eq!(content.bytes(), r#"{"a":"€","b":1}"#.as_bytes());

        // Keys that UTF-8 and UTF-16 sort differently, as only an invalid announcement has them.
        for keys in [vec![], vec!["did:b", "did:a"], vec!["\u{ffff}", "\u{10000}", "\u{1f600}"]] {
            let announcement: CasAnnouncement =
                keys.into_iter().map(|key| (key.to_owned(), *update.hash())).collect();
            assert_eq!(Content::try_from(&announcement).unwrap().hash(), announcement.signal().into());
        }
    }

    #[test]
    fn what_no_store_takes_is_refused_before_it_is_sent() {
        assert!(Content::new(vec![0; MAX_CONTENT]).is_ok());
        assert!(matches!(Content::new(vec![0; MAX_CONTENT + 1]), Err(ContentError::TooLarge)));
    }
}
