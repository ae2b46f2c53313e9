//! A message's body with what is computed of it once, however many recipients it has.

use std::{
    borrow::Cow,
    fmt,
    ops::Deref,
    sync::{Arc, OnceLock},
};

use serde_json::Value;

use super::{Body, envelope::BodyPrefix};
use crate::{
    did::Did,
    hash::sha256,
    jcs::{self, JcsError},
    update::{CanonicalDocument, SignedUpdate, UpdateError},
    work,
};

/// What is known of a received body besides its value.
pub(super) struct ReceivedBody<'a> {
    /// Its text.
    pub(super) text: &'a str,
    /// A field of it that occurs twice.
    pub(super) twice: Option<String>,
    /// The SHA-256 of its canonical bytes.
    pub(super) digest: Option<[u8; 32]>,
    /// The canonical bytes of its update, if it has one.
    pub(super) update: Option<CanonicalDocument>,
}

/// A body with its JSON text and digests, each computed once however many recipients it has.
#[derive(Clone)]
pub struct SharedBody(Arc<Shared>);

struct Shared {
    body: Body,
    json: OnceLock<String>,
    one_line: OnceLock<bool>,
    digests: OnceLock<Digests>,
    /// Of a received `signedUpdate`.
    update: Option<CanonicalDocument>,
}

/// What is cached of a body's canonical bytes. They are as long as the JSON text itself and are needed only for these
/// two digests, so both are computed at once and the bytes are dropped.
struct Digests {
    hash: [u8; 32],
    /// The sender whose messages were hashed or sealed first; in practice the only sender of the body.
    from: Did,
    /// Absent when the body cannot be sealed, or was received: such a body is hardly ever sealed.
    prefix: Option<BodyPrefix>,
}

impl SharedBody {
    /// A body that was received as `text`.
    pub(super) fn of_text(body: Body, text: &str) -> Self {
        Self::new(body, OnceLock::from(text.to_owned()), OnceLock::new(), None)
    }

    /// A body of a message of `from`, whose digests are known.
    pub(super) fn received(body: Body, received: &ReceivedBody<'_>, from: &Did) -> Self {
        let digests = received.digest.map(|hash| Digests { hash, from: from.clone(), prefix: None });
        let digests = digests.map(OnceLock::from).unwrap_or_default();
        Self::new(body, OnceLock::from(received.text.to_owned()), digests, received.update)
    }

    fn new(
        body: Body,
        json: OnceLock<String>,
        digests: OnceLock<Digests>,
        update: Option<CanonicalDocument>,
    ) -> Self {
        Self(Arc::new(Shared { body, json, one_line: OnceLock::new(), digests, update }))
    }

    /// The signed update, if this is one's submission.
    ///
    /// # Errors
    /// [`UpdateError`], as [`SignedUpdate::from_value`].
    pub fn signed_update(&self) -> Option<Result<SignedUpdate, UpdateError>> {
        let Body::SubmitUpdate(submit) = &self.0.body else { return None };
        Some(match self.0.update {
            Some(canonical) => SignedUpdate::from_canonical(Arc::clone(&submit.signed_update), canonical),
            None => SignedUpdate::from_value((*submit.signed_update).clone()),
        })
    }

    /// The body's JSON text: as it was received, or as we serialize it.
    pub fn json(&self) -> &str {
        self.0.json.get_or_init(|| self.0.body.to_json())
    }

    /// Whether the JSON text has no line breaks. Only a received text can have them.
    pub fn is_on_one_line(&self) -> bool {
        *self.0.one_line.get_or_init(|| !self.json().contains(['\n', '\r']))
    }

    /// The hash state of an envelope from `from` with this body, after sender and body (wire format, section 5). Only
    /// a few hundred bytes are left to hash for each recipient.
    ///
    /// # Errors
    /// [`JcsError`] when the body has no canonical form, or nests too deep to be parsed inside an envelope. Only a
    /// body with a document of the caller's in it, or a received body, can cause this.
    pub(crate) fn sealing_prefix(&self, from: &Did) -> Result<Cow<'_, BodyPrefix>, JcsError> {
        let digests = self.digests(from);
        match &digests.prefix {
            Some(prefix) if digests.from == *from => Ok(Cow::Borrowed(prefix)),
            // A second sender of the same body, or a body that cannot be sealed: too rare to be cached.
            _ => {
                let (value, canonical) = self.canonical()?;
                BodyPrefix::new(from, &value, &canonical).map(Cow::Owned)
            }
        }
    }

    /// The SHA-256 of the canonical bytes, for a message of `from`.
    pub(super) fn hash(&self, from: &Did) -> [u8; 32] {
        self.digests(from).hash
    }

    fn digests(&self, from: &Did) -> &Digests {
        self.0.digests.get_or_init(|| {
            let from = from.clone();
            match self.canonical() {
                Ok((value, canonical)) => {
                    let prefix = BodyPrefix::new(&from, &value, &canonical).ok();
                    Digests { hash: sha256(&canonical), from, prefix }
                }
                // A received body that has no canonical form is hashed as its text.
                Err(_) => Digests { hash: sha256(self.json().as_bytes()), from, prefix: None },
            }
        })
    }

    fn canonical(&self) -> Result<(Value, Vec<u8>), JcsError> {
        work::parsed();
        let value = serde_json::from_str(self.json())?;
        let canonical = jcs::canonicalize(&value)?;
        Ok((value, canonical))
    }
}

impl<B: Into<Body>> From<B> for SharedBody {
    fn from(body: B) -> Self {
        Self::new(body.into(), OnceLock::new(), OnceLock::new(), None)
    }
}

impl Deref for SharedBody {
    type Target = Body;

    fn deref(&self) -> &Body {
        &self.0.body
    }
}

impl PartialEq for SharedBody {
    fn eq(&self, other: &Self) -> bool {
        self.0.body == other.0.body
    }
}

impl fmt::Debug for SharedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.body.fmt(f)
    }
}
