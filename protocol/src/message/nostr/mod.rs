//! Nostr events (wire format, section 6): a message is one signed event.
//!
//! Keygen messages are kind 1 with the message's JSON text as content. All others are kind 1059 with that text
//! encrypted by NIP-44 version 2 between the communication keys of sender and recipient. (Kind 1059 is NIP-59's gift
//! wrap, but these events are not gift wraps: the sender signs with its own key.) The tags, in this order:
//!
//! ```text
//! ["p", <sender's x-only key>]  ["t", <type URI>]  ["p", <recipient's x-only key>, when there is one]
//! ```
//!
//! [`seal`] is for sending. [`VerifiedEvent`] is for receiving: it verifies an event's signature before anything
//! else, and the signature proves a key. The caller, which knows the keys of EXTERNAL DIDs, decides whether that key
//! is the one of the DID that the message names as its sender.

mod limits;

use std::borrow::Cow;

use data_encoding::BASE64;
use nostr::{
    Event, EventId, Kind, PublicKey as NostrKey, Tag, Tags, Timestamp as NostrTime,
    hashes::Hash,
    nips::nip44::{self, v2},
    secp256k1::{rand, schnorr},
};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::{
    beacon::{BeaconData, BeaconType, CasAnnouncement},
    did::Did,
    hash::{DocumentHash, SignalBytes},
    id::CohortId,
    key::{KeyError, SecretKey, XOnlyKey},
    message::{self, Body, DecodeError, Message, keygen, update::DistributeAggregatedData},
    network::Network,
    time::Timestamp,
};

pub use self::limits::EventLimits;

/// The kind of events that carry keygen messages, in plain text.
pub const PLAIN_KIND: u16 = 1;

/// The kind of events that carry encrypted messages.
pub const ENCRYPTED_KIND: u16 = 1059;

/// The kind of events that request the deletion of other events by the same key (NIP-09).
pub const DELETION_KIND: u16 = 5;

/// The longest text that NIP-44 encrypts, in bytes. The length prefix of the format would allow 127 bytes more; the
/// `nostr` crate encrypts up to this length, and also decrypts longer texts.
pub const MAX_PLAINTEXT: usize = 65_536 - 128;

/// The base64 text of the longest NIP-44 payload: version, nonce, length, 64 KiB of padded text, MAC.
const MAX_PAYLOAD: usize = (1 + 32 + 2 + 65_536 + 32_usize).div_ceil(3) * 4;

/// The types of broadcast messages, to which listeners for adverts subscribe.
pub fn advert_types() -> [String; 3] {
    ["keygen/cohort_advert", keygen::KEY_PATH_ADVERT_TYPE, "standing/cohort_advert"].map(message::type_uri)
}

/// The key that two parties encrypt and decrypt with, the same in both directions. Deriving it costs about fifteen
/// times as much as encrypting a message, so callers should cache it for a peer. Never printed; wiped when dropped.
#[derive(Clone)]
pub struct ConversationKey(Zeroizing<[u8; 32]>);

impl ConversationKey {
    /// The conversation key of `own` and `peer`.
    ///
    /// # Errors
    /// [`KeyError`], never in practice: both were valid keys when they were parsed.
    pub fn derive(own: &SecretKey, peer: &XOnlyKey) -> Result<Self, KeyError> {
        // The crate's key type wipes itself as well.
        let own = nostr::SecretKey::from_slice(own.expose().as_ref()).map_err(|_| KeyError::NotASecretKey)?;
        let peer = NostrKey::from_byte_array(peer.to_bytes());
        let key = v2::ConversationKey::derive(&own, &peer).map_err(|_| KeyError::NotAnXCoordinate)?;
        Ok(Self(Zeroizing::new(key.to_byte_array())))
    }

    /// The key with these bytes, from the caller's cache.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Encrypts `text`; the result is base64. `rng` gives the 32 bytes of the payload's nonce.
    ///
    /// # Errors
    /// [`SealError::TooLong`] beyond [`MAX_PLAINTEXT`] bytes; [`SealError::Empty`].
    pub fn encrypt(&self, text: &str, rng: &mut dyn CryptoRng) -> Result<String, SealError> {
        if text.is_empty() {
            return Err(SealError::Empty);
        }
        if text.len() > MAX_PLAINTEXT {
            return Err(SealError::TooLong { bytes: text.len() });
        }
        let key = v2::ConversationKey::new(*self.0);
        let payload = v2::encrypt_to_bytes_with_rng(&mut OldRng(rng), &key, text.as_bytes())
            .map_err(|_| SealError::TooLong { bytes: text.len() })?;
        Ok(BASE64.encode(&payload))
    }

    /// Decrypts a base64 payload.
    ///
    /// # Errors
    /// [`DecryptError`], for the step that failed.
    pub fn decrypt(&self, payload: &str) -> Result<String, DecryptError> {
        // A text that is too long to be a payload is not decoded.
        if payload.len() > MAX_PAYLOAD {
            return Err(DecryptError::TooLong);
        }
        let bytes = BASE64.decode(payload.as_bytes()).map_err(|_| DecryptError::Base64)?;
        match bytes.first() {
            None => return Err(DecryptError::TooShort),
            Some(2) => {}
            Some(version) => return Err(DecryptError::Version(*version)),
        }
        let key = v2::ConversationKey::new(*self.0);
        let text = v2::decrypt_to_bytes(&key, &bytes).map_err(|error| match error {
            nip44::Error::V2(v2::ErrorV2::PayloadTooShort) => DecryptError::TooShort,
            nip44::Error::V2(v2::ErrorV2::InvalidHmac) => DecryptError::Mac,
            _ => DecryptError::Padding,
        })?;
        String::from_utf8(text).map_err(|_| DecryptError::Utf8)
    }
}

/// Why a message cannot become an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// NIP-44 does not encrypt texts of this length.
    #[error("the message takes {bytes} bytes, NIP-44 encrypts at most {MAX_PLAINTEXT}")]
    TooLong {
        /// The length of the message, in bytes.
        bytes: usize,
    },
    /// NIP-44 does not encrypt an empty text.
    #[error("an empty text cannot be encrypted")]
    Empty,
    /// An encrypted message needs a recipient.
    #[error("an encrypted message needs a recipient")]
    NoRecipient,
}

/// Why a payload does not decrypt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecryptError {
    /// Longer than the longest payload.
    #[error("longer than any NIP-44 payload")]
    TooLong,
    /// Shorter than the shortest payload.
    #[error("shorter than any NIP-44 payload")]
    TooShort,
    /// Not base64.
    #[error("not base64")]
    Base64,
    /// Not version 2.
    #[error("NIP-44 version 2 expected, {0} found")]
    Version(u8),
    /// Encrypted with another key, or modified.
    #[error("the MAC is not the conversation key's")]
    Mac,
    /// The text is not padded as NIP-44 requires.
    #[error("the padding is wrong")]
    Padding,
    /// The text is not UTF-8.
    #[error("not UTF-8")]
    Utf8,
}

/// Why an event is not a valid message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The event's id is not the hash of its content.
    #[error("the event's id is not its hash")]
    Id,
    /// The event is not signed by its key.
    #[error("the event's signature does not verify")]
    Signature,
    /// Neither [`PLAIN_KIND`] nor [`ENCRYPTED_KIND`].
    #[error("events of kind {0} carry no messages")]
    Kind(u16),
    /// The content does not decrypt.
    #[error("content: {0}")]
    Decrypt(#[from] DecryptError),
    /// The content is not a message.
    #[error("{error}")]
    Decode {
        /// What is wrong with it.
        error: DecodeError,
        /// The DID that it claims as its sender, if that can be read. Not proven.
        claimed: Option<Box<Did>>,
    },
    /// The message's type does not belong to this kind: a confidential message in plain text, or the reverse.
    #[error("{short_type} does not go with kind {kind}")]
    WrongKind {
        /// The event's kind.
        kind: u16,
        /// The message's type.
        short_type: &'static str,
        /// The DID that it claims as its sender. Not proven.
        claimed: Box<Did>,
    },
}

/// The recipient of a directed event.
#[derive(Clone)]
pub struct Peer {
    /// Its communication key.
    pub key: XOnlyKey,
    /// The key that messages to it are encrypted with.
    pub conversation: ConversationKey,
}

impl Peer {
    /// The peer with this communication key.
    ///
    /// # Errors
    /// As for [`ConversationKey::derive`].
    pub fn new(own: &SecretKey, key: XOnlyKey) -> Result<Self, KeyError> {
        Ok(Self { key, conversation: ConversationKey::derive(own, &key)? })
    }
}

/// Whether messages of this type are sent in plain text: all of the keygen phase, and adverts of standing cohorts.
pub fn is_plain(body: &Body) -> bool {
    body.is_advert() || body.short_type().starts_with("keygen/")
}

/// The signed event that carries `message`, to `to` or as a broadcast. `key` must be the communication key of the
/// message's sender; `created_at` is rounded down to its second.
///
/// # Errors
/// [`SealError`] when the message is too long to be encrypted, or must be encrypted and has no recipient.
pub fn seal(
    message: &Message,
    key: &SecretKey,
    to: Option<&Peer>,
    created_at: Timestamp,
    rng: &mut dyn CryptoRng,
) -> Result<Event, SealError> {
    let text = message.to_json();
    let (kind, content) = if is_plain(&message.body) {
        (PLAIN_KIND, text)
    } else {
        let peer = to.ok_or(SealError::NoRecipient)?;
        (ENCRYPTED_KIND, peer.conversation.encrypt(&text, rng)?)
    };
    let sender = key.public_key().x_only();
    // The tags are built by hand: the crate's event builder strips a `p` tag that names the author.
    let mut tags = vec![tag("p", sender.to_string()), tag("t", message.type_uri())];
    tags.extend(to.map(|peer| tag("p", peer.key.to_string())));
    Ok(sign(kind, tags, content, key, created_at, rng))
}

/// The signed event that requests the deletion of `adverts`, events by the same `key` (NIP-09), so that new
/// participants do not try to join a cohort that is over. Relays may ignore it. `created_at` must not be before the
/// adverts'.
pub fn retract(adverts: &[EventId], key: &SecretKey, created_at: Timestamp, rng: &mut dyn CryptoRng) -> Event {
    let mut tags: Vec<Tag> = adverts.iter().map(|advert| tag("e", advert.to_hex())).collect();
    tags.push(tag("k", PLAIN_KIND.to_string()));
    sign(DELETION_KIND, tags, String::new(), key, created_at, rng)
}

/// The kind of the event that authenticates a client to a relay (NIP-42).
pub const AUTHENTICATION_KIND: u16 = 22_242;

/// The signed event that answers a relay's challenge (NIP-42). Its `tags` name the relay and the challenge.
pub fn authenticate(tags: Vec<Tag>, key: &SecretKey, created_at: Timestamp, rng: &mut dyn CryptoRng) -> Event {
    sign(AUTHENTICATION_KIND, tags, String::new(), key, created_at, rng)
}

fn sign(
    kind: u16,
    tags: Vec<Tag>,
    content: String,
    key: &SecretKey,
    created_at: Timestamp,
    rng: &mut dyn CryptoRng,
) -> Event {
    let tags = Tags::from_list(tags);
    let pubkey = NostrKey::from_byte_array(key.public_key().x_only().to_bytes());
    let (created_at, kind) = (NostrTime::from_secs(created_at.as_secs()), Kind::from_u16(kind));
    let id = EventId::new(&pubkey, &created_at, &kind, &tags, &content);
    let signature = key.sign(id.as_bytes(), rng).to_bytes();
    let signature = schnorr::Signature::from_slice(&signature).expect("any 64 bytes are accepted");
    Event::new(id, pubkey, created_at, kind, tags, content, signature)
}

fn tag(name: &str, value: String) -> Tag {
    Tag::parse([name.to_owned(), value]).expect("a tag that is not empty is accepted")
}

/// An event with a valid id and signature: the holder of [`Self::sender`] signed its content.
#[derive(Clone, Copy, Debug)]
pub struct VerifiedEvent<'a> {
    event: &'a Event,
    sender: XOnlyKey,
}

impl<'a> VerifiedEvent<'a> {
    /// Verifies an event's id and signature.
    ///
    /// # Errors
    /// [`ReadError::Id`] or [`ReadError::Signature`].
    pub fn verify(event: &'a Event) -> Result<Self, ReadError> {
        if !event.verify_id() {
            return Err(ReadError::Id);
        }
        if !event.verify_signature_with_ctx(::secp256k1::SECP256K1) {
            return Err(ReadError::Signature);
        }
        let sender = XOnlyKey::from_bytes(event.pubkey.as_bytes()).map_err(|_| ReadError::Signature)?;
        Ok(Self { event, sender })
    }

    /// The key that signed the event.
    pub fn sender(&self) -> XOnlyKey {
        self.sender
    }

    /// When the event was created, as its sender states it.
    pub fn created_at(&self) -> Timestamp {
        Timestamp::from_secs(self.event.created_at.as_secs())
    }

    /// Reads the message. `conversation` is called when the key of the conversation with the sender is needed.
    ///
    /// # Errors
    /// [`ReadError`], of the kind, the encryption or the message.
    pub fn message<E>(
        &self,
        conversation: impl FnOnce(&XOnlyKey) -> Result<ConversationKey, E>,
    ) -> Result<Message, ReadError> {
        let kind = self.event.kind.as_u16();
        let text = match kind {
            PLAIN_KIND => Cow::Borrowed(self.event.content.as_str()),
            ENCRYPTED_KIND => {
                let key = conversation(&self.sender).map_err(|_| DecryptError::Mac)?;
                Cow::Owned(key.decrypt(&self.event.content)?)
            }
            other => return Err(ReadError::Kind(other)),
        };
        let message = Message::from_json(&text)
            .map_err(|error| ReadError::Decode { error, claimed: claimed_sender(&text) })?;
        if is_plain(&message.body) != (kind == PLAIN_KIND) {
            let short_type = message.body.short_type();
            return Err(ReadError::WrongKind { kind, short_type, claimed: Box::new(message.from) });
        }
        Ok(message)
    }
}

/// The `from` of a text that is not a valid message.
fn claimed_sender(text: &str) -> Option<Box<Did>> {
    #[derive(serde::Deserialize)]
    struct Claim {
        from: Did,
    }
    serde_json::from_str::<Claim>(text).ok().map(|claim| Box::new(claim.from))
}

/// The greatest number of members of a cohort of this beacon type over Nostr, or `None` if there is no limit. A CAS
/// announcement holds all members and must fit into one encrypted message; an SMT proof does not grow with the
/// cohort.
pub fn max_members(beacon_type: &BeaconType) -> Option<usize> {
    if *beacon_type != BeaconType::cas() {
        return None;
    }
    // Each member adds the same number of bytes, so two encodings determine all others.
    let (one, two) = (longest_distribution(1), longest_distribution(2));
    Some(1 + MAX_PLAINTEXT.saturating_sub(one) / (two - one))
}

/// The length of the message that distributes a CAS announcement of `members` members, all with updates and with DIDs
/// of the greatest length.
fn longest_distribution(members: usize) -> usize {
    // KEY DIDs are longer than EXTERNAL ones by one byte, the parity of the key.
    let key = SecretKey::from_bytes(&[1; 32]).expect("1 < 0x0101... < n").public_key();
    let did = Did::from_key(key, Network::Regtest);
    let hash = DocumentHash::from_bytes([0xff; 32]);
    let cohort_id = CohortId::parse(&"c".repeat(64)).expect("64 visible characters are accepted");
    let width = did.as_str().len();
    // The keys of the map only have to be distinct and as long as DIDs.
    let announcement: CasAnnouncement = (0..members).map(|number| (format!("{number:0>width$}"), hash)).collect();
    let body = DistributeAggregatedData::new(
        cohort_id,
        BeaconType::cas(),
        SignalBytes::from_bytes([0xff; 32]),
        &BeaconData::Cas(announcement),
    );
    Message::new(did.clone(), Some(did), body).to_json().len()
}

/// The caller's randomness as the `rand` version of the `nostr` crate.
struct OldRng<'a>(&'a mut dyn CryptoRng);

impl rand::RngCore for OldRng<'_> {
    fn next_u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand::Error> {
        self.0.fill_bytes(bytes);
        Ok(())
    }
}
