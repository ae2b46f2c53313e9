//! The messages of a round (wire format, section 2): plain JSON `{type, version, to?, from, body}`.
//!
//! Each phase has its own file: [`keygen`], [`update`], [`sign`]; our extensions are in [`control`]. The codecs of
//! the transports are [`envelope`] and [`request_auth`] (HTTP) and [`nostr`]. This file holds what the messages
//! share: the fields of every message, the `__bytes` sentinel, and decoding with errors that name the field.

mod bytes;
pub mod control;
mod decode_error;
pub mod envelope;
mod fields;
pub mod keygen;
pub mod nostr;
pub mod request_auth;
mod shared_body;
pub mod sign;
mod transaction_hex;
pub mod update;

use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

pub use self::{
    bytes::Bytes,
    decode_error::{DecodeError, VERSION},
    shared_body::SharedBody,
};
pub(crate) use self::{
    bytes::SENTINEL as BYTES_SENTINEL,
    transaction_hex::{signed, unsigned},
};
use self::{
    control::{CohortEnded, Presence, PresenceRequest},
    keygen::{CohortAdvert, CohortOptIn, CohortOptInAccept, CohortReady},
    shared_body::ReceivedBody,
    sign::{
        AggregatedNonce, AuthorizationRequest, FallbackAuthorizationRequest, FallbackSignature, NonceContribution,
        SignatureAuthorization,
    },
    update::{DistributeAggregatedData, SubmitNonIncluded, SubmitUpdate, ValidationAck},
};
use crate::{
    cohort::standing::message::{BodyReader, StandingMessage},
    did::Did,
    hash::{MessageDigest, sha256},
    id::CohortId,
    jcs, work,
};

const TYPE_PREFIX: &str = "https://btcr2.dev/aggregation/";

macro_rules! bodies {
    ($($(#[$doc:meta])* $variant:ident = $kind:literal;)*) => {
        /// The body of a message: one variant for each type.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Body {
            $($(#[$doc])* $variant($variant),)*
            /// A message of a standing cohort.
            Standing(Box<StandingMessage>),
        }

        impl Body {
            /// The names of the types of one-time cohorts behind the common prefix, in the order in which a round has them.
            pub const TYPES: &[&str] = &[$($kind),*];

            /// The cohort that the message belongs to.
            pub fn cohort_id(&self) -> &CohortId {
                match self {
                    $(Self::$variant(body) => &body.cohort_id,)*
                    Self::Standing(message) => message.cohort_id(),
                }
            }

            /// The name of the type without the common prefix, e.g. `keygen/cohort_advert`.
            pub fn short_type(&self) -> &'static str {
                match self {
                    Self::CohortAdvert(advert) if advert.recovery_key.is_none() => keygen::KEY_PATH_ADVERT_TYPE,
                    $(Self::$variant(_) => $kind,)*
                    Self::Standing(message) => message.short_type(),
                }
            }

            fn to_json(&self) -> String {
                match self {
                    $(Self::$variant(body) => serde_json::to_string(body),)*
                    Self::Standing(message) => return message.to_json(),
                }
                .expect("bodies hold strings, numbers and JSON values, all of which serialize")
            }

            fn decode<'de, D: Deserializer<'de>>(short_type: &str, json: D) -> Result<Self, DecodeError> {
                let body = match short_type {
                    keygen::KEY_PATH_ADVERT_TYPE => decode(json).map(Self::CohortAdvert),
                    $($kind => decode(json).map(Self::$variant),)*
                    other => match StandingMessage::read(other, Json(json)) {
                        Some(read) => read.map(Self::from),
                        None => Err(DecodeError::UnknownType(format!("{TYPE_PREFIX}{other}"))),
                    },
                }?;
                if let Self::CohortAdvert(advert) = &body {
                    advert.check_recovery(short_type == keygen::KEY_PATH_ADVERT_TYPE)?;
                }
                Ok(body)
            }
        }

        $(impl From<$variant> for Body {
            fn from(body: $variant) -> Self {
                Self::$variant(body)
            }
        })*
    };
}

bodies! {
    /// The service advertises a cohort to every peer.
    CohortAdvert = "keygen/cohort_advert";
    /// A participant requests membership.
    CohortOptIn = "keygen/cohort_opt_in";
    /// The service admits the participant.
    CohortOptInAccept = "keygen/cohort_opt_in_accept";
    /// The cohort is formed: its keys and its beacon address.
    CohortReady = "keygen/cohort_ready";
    /// A member's signed update.
    SubmitUpdate = "update/submit_update";
    /// A member declines to update.
    SubmitNonIncluded = "update/submit_nonincluded";
    /// The aggregated data, in which each member checks its slot.
    DistributeAggregatedData = "update/distribute_aggregated_data";
    /// A member's verdict on the aggregated data.
    ValidationAck = "update/validation_ack";
    /// The service requests nonces for the beacon transaction.
    AuthorizationRequest = "sign/authorization_request";
    /// A member's public nonce.
    NonceContribution = "sign/nonce_contribution";
    /// The aggregate nonce.
    AggregatedNonce = "sign/aggregated_nonce";
    /// A member's partial signature.
    SignatureAuthorization = "sign/signature_authorization";
    /// The service requests signatures on the fallback leaf.
    FallbackAuthorizationRequest = "sign/fallback_authorization_request";
    /// A member's signature on the fallback leaf.
    FallbackSignature = "sign/fallback_signature";
    /// The cohort has ended (our extension).
    CohortEnded = "control/cohort_ended";
    /// The service requests a presence confirmation (our extension).
    PresenceRequest = "control/presence_request";
    /// A member confirms its presence (our extension).
    Presence = "control/presence";
}

impl Body {
    /// The fields of bodies for documents that may be any JSON, in which a key may occur twice until their own reader refuses it.
    const DOCUMENTS: [&str; 3] = ["signedUpdate", "genesisDocument", "beaconData"];

    /// The documents in the body that may be any JSON, with the names of their fields.
    fn documents(&self) -> Vec<(&'static str, &Value)> {
        let named: Vec<(&'static str, Option<&Value>)> = match self {
            Self::SubmitUpdate(body) => vec![("signedUpdate", Some(&*body.signed_update))],
            Self::CohortOptIn(body) => vec![("genesisDocument", body.genesis_document.as_deref())],
            Self::DistributeAggregatedData(body) => vec![("beaconData", body.beacon_data.as_ref())],
            Self::Standing(message) => message.documents(),
            _ => Vec::new(),
        };
        named.into_iter().filter_map(|(name, document)| Some((name, document?))).collect()
    }

    fn check_depth(&self) -> Result<(), DecodeError> {
        let mut documents = self.documents().into_iter();
        match documents.find(|(_, document)| jcs::nests_deeper(document, jcs::MAX_DOCUMENT_DEPTH)) {
            Some((name, _)) => {
                let problem = format!("nested deeper than {} levels", jcs::MAX_DOCUMENT_DEPTH);
                Err(DecodeError::field(format!("body.{name}"), problem))
            }
            None => Ok(()),
        }
    }

    /// Whether the service sends it to every peer.
    pub fn is_advert(&self) -> bool {
        match self {
            Self::CohortAdvert(_) => true,
            Self::Standing(message) => message.is_advert(),
            _ => false,
        }
    }

    /// Whether the message is about the cohort rather than part of its round. Such messages are not in the
    /// transcript.
    pub fn is_control(&self) -> bool {
        self.short_type().starts_with("control/")
    }
}

impl<M: Into<StandingMessage>> From<M> for Body {
    fn from(message: M) -> Self {
        Self::Standing(Box::new(message.into()))
    }
}

struct Json<D>(D);

impl<'de, D: Deserializer<'de>> BodyReader for Json<D> {
    type Error = DecodeError;

    fn read<T: DeserializeOwned>(self) -> Result<T, DecodeError> {
        decode(self.0)
    }
}

/// The URI of the type with this short name.
pub(crate) fn type_uri(short_type: &str) -> String {
    format!("{TYPE_PREFIX}{short_type}")
}

fn decode<'de, T: DeserializeOwned, D: Deserializer<'de>>(json: D) -> Result<T, DecodeError> {
    serde_path_to_error::deserialize(json).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { "body".to_owned() } else { format!("body.{path}") };
        DecodeError::field(field, error.into_inner())
    })
}

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The claimed sender. The transport authenticates it.
    pub from: Did,
    /// The recipient; absent for a broadcast.
    pub to: Option<Did>,
    /// The body.
    pub body: SharedBody,
}

#[derive(Deserialize)]
struct Header<B> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    version: Value,
    from: String,
    #[serde(default, deserialize_with = "bytes::present")]
    to: Option<String>,
    body: B,
}

impl<B> Header<B> {
    fn decode<'de, D: Deserializer<'de>>(json: D) -> Result<Self, DecodeError>
    where
        B: Deserialize<'de>,
    {
        serde_path_to_error::deserialize(json).map_err(|error| {
            let path = error.path().to_string();
            DecodeError::field(if path == "." { "message".to_owned() } else { path }, error.into_inner())
        })
    }

    /// Sender, recipient, the short name of the type, and the body.
    fn check(self, known: &[&Did]) -> Result<(Did, Option<Did>, String, B), DecodeError> {
        let from = did("from", &self.from, known)?;
        let to = self.to.map(|to| did("to", &to, known)).transpose()?;
        if self.version.as_f64() != Some(VERSION as f64) {
            return Err(DecodeError::Version(self.version.to_string()));
        }
        match self.kind.strip_prefix(TYPE_PREFIX) {
            Some(short_type) => Ok((from, to, short_type.to_owned(), self.body)),
            None => Err(DecodeError::UnknownType(self.kind)),
        }
    }
}

/// The DID `text` of `field`: one of the `known`, or parsed.
fn did(field: &str, text: &str, known: &[&Did]) -> Result<Did, DecodeError> {
    let known = known.iter().find(|did| did.as_str() == text);
    known
        .map_or_else(|| Did::parse(text), |did| Ok((*did).clone()))
        .map_err(|error| DecodeError::field(field, error))
}

/// Keys of the body that the TypeScript implementation, which flattens the body over the message, would take for the
/// message's own. It would take a `null` too.
#[derive(Deserialize)]
struct Reserved {
    #[serde(default, rename = "type", deserialize_with = "bytes::present")]
    kind: Option<serde::de::IgnoredAny>,
    #[serde(default, deserialize_with = "bytes::present")]
    from: Option<serde::de::IgnoredAny>,
}

/// Why a body with such keys is refused.
const RESERVED: &str = "must not have a type or from of its own";

/// Serde also accepts a list of fields for a struct; the wire format allows only objects.
fn check_object(field: &str, json: &str) -> Result<(), DecodeError> {
    if json.trim_start().starts_with('{') { Ok(()) } else { Err(DecodeError::field(field, "an object expected")) }
}

impl Message {
    /// A message from `from` to `to`, or a broadcast.
    pub fn new(from: Did, to: Option<Did>, body: impl Into<SharedBody>) -> Self {
        Self { from, to, body: body.into() }
    }

    /// The full type URI.
    pub fn type_uri(&self) -> String {
        type_uri(self.body.short_type())
    }

    /// The message as the JSON text that is sent.
    pub fn to_json(&self) -> String {
        format!("{}{}}}", self.json_head(), self.body.json())
    }

    /// The text that [`Self::to_json`] writes before the body. After the body it writes one closing brace.
    pub(crate) fn json_head(&self) -> String {
        let to = self.to.as_ref().map(|did| format!("\"to\":\"{did}\",")).unwrap_or_default();
        // A DID and a type URI contain no character that JSON escapes.
        format!(
            "{{\"type\":\"{TYPE_PREFIX}{}\",\"version\":{VERSION},{to}\"from\":\"{}\",\"body\":",
            self.body.short_type(),
            self.from,
        )
    }

    /// The part of the message's canonical form after `{"body":...,"from":"..."`, closing brace included.
    pub(crate) fn canonical_tail(&self) -> String {
        let to = self.to.as_ref().map(|did| format!(",\"to\":\"{did}\"")).unwrap_or_default();
        format!("{to},\"type\":\"{TYPE_PREFIX}{}\",\"version\":{VERSION}}}", self.body.short_type())
    }

    /// Parses a message's JSON text.
    ///
    /// # Errors
    /// [`DecodeError`], naming the field that is wrong.
    pub fn from_json(text: &str) -> Result<Self, DecodeError> {
        Self::from_json_among(text, &[])
    }

    /// Like [`Self::from_json`]. `known` are DIDs that are likely to be the sender or the recipient: parsing a DID
    /// costs about as much as parsing the rest of a short message.
    ///
    /// # Errors
    /// As for [`Self::from_json`].
    pub fn from_json_among(text: &str, known: &[&Did]) -> Result<Self, DecodeError> {
        check_object("message", text)?;
        work::parsed();
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let header = Header::<&RawValue>::decode(&mut deserializer)?;
        deserializer.end().map_err(|error| DecodeError::field("message", error))?;
        let (from, to, short_type, body) = header.check(known)?;
        let text = body.get();
        check_object("body", text)?;
        work::parsed();
        let reserved: Reserved = serde_json::from_str(text).map_err(|error| DecodeError::field("body", error))?;
        if reserved.kind.is_some() || reserved.from.is_some() {
            return Err(DecodeError::field("body", RESERVED));
        }
        work::parsed();
        let body = Body::decode(&short_type, &mut serde_json::Deserializer::from_str(text))?;
        body.check_depth()?;
        // The received bytes are hashed and forwarded, unknown fields included.
        let body = SharedBody::of_text(body, text);
        Ok(Self { from, to, body })
    }

    /// A message that was parsed as a part of an envelope.
    fn from_value(message: Value, received: ReceivedBody<'_>, known: &[&Did]) -> Result<Self, DecodeError> {
        if !message.is_object() {
            return Err(DecodeError::field("message", "an object expected"));
        }
        let (from, to, short_type, body) = Header::<Value>::decode(message)?.check(known)?;
        let Value::Object(fields) = &body else { return Err(DecodeError::field("body", "an object expected")) };
        if fields.contains_key("type") || fields.contains_key("from") {
            return Err(DecodeError::field("body", RESERVED));
        }
        let body = Body::decode(&short_type, body)?;
        if let Some(key) = &received.twice {
            return Err(DecodeError::duplicate("body", key));
        }
        body.check_depth()?;
        let body = SharedBody::received(body, &received, &from);
        Ok(Self { from, to, body })
    }

    /// The digest that represents this message in a transcript: SHA-256 of the JCS bytes of
    /// `{type, version, to?, from, bodyHash}`, where `bodyHash` is the hex SHA-256 of the JCS bytes of the body. A body
    /// with a thousand recipients is therefore canonicalized once.
    pub fn digest(&self) -> MessageDigest {
        // Already canonical: keys in order, values without escapes.
        let header = format!(
            "{{\"bodyHash\":\"{}\",\"from\":\"{}\"{}",
            MessageDigest::from_bytes(self.body.hash(&self.from)),
            self.from,
            self.canonical_tail(),
        );
        MessageDigest::from_bytes(sha256(header.as_bytes()))
    }
}

impl Serialize for Message {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_json()).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}
