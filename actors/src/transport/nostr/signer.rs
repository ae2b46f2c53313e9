//! Our answer to relays that request authentication (NIP-42). The signer signs nothing else.

use std::{borrow::Cow, fmt, sync::Mutex};

use btcr2_aggregation_protocol::{
    identity::Identity,
    nostr::{AUTHENTICATION_KIND, authenticate},
    time::Timestamp,
};
use nostr_sdk::{
    Event, NostrSigner, PublicKey, SignerError, UnsignedEvent, signer::SignerBackend, util::BoxedFuture,
};
use rand_chacha::ChaCha20Rng;

/// Signs answers to challenges for an identity.
pub(super) struct Signer {
    identity: Identity,
    rng: Mutex<ChaCha20Rng>,
}

impl Signer {
    pub(super) const fn new(identity: Identity, rng: ChaCha20Rng) -> Self {
        Self { identity, rng: Mutex::new(rng) }
    }

    fn key(&self) -> PublicKey {
        PublicKey::from_byte_array(self.identity.public_key().x_only().to_bytes())
    }

    fn sign(&self, unsigned: UnsignedEvent) -> Result<Event, SignerError> {
        if unsigned.kind.as_u16() != AUTHENTICATION_KIND || unsigned.pubkey != self.key() {
            return Err(refusal());
        }
        // A panic while it is locked leaves a valid generator.
        let mut rng = self.rng.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let at = Timestamp::from_secs(unsigned.created_at.as_secs());
        Ok(authenticate(unsigned.tags.to_vec(), self.identity.secret_key(), at, &mut *rng))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.identity.did())
    }
}

fn refusal() -> SignerError {
    SignerError::from("only answers to a relay's challenge are signed here")
}

impl NostrSigner for Signer {
    fn backend(&self) -> SignerBackend<'_> {
        SignerBackend::Custom(Cow::Borrowed("btcr2-aggregation"))
    }

    fn get_public_key(&self) -> BoxedFuture<'_, Result<PublicKey, SignerError>> {
        Box::pin(async { Ok(self.key()) })
    }

    fn sign_event(&self, unsigned: UnsignedEvent) -> BoxedFuture<'_, Result<Event, SignerError>> {
        Box::pin(async move { self.sign(unsigned) })
    }

    fn nip04_encrypt<'a>(&'a self, _: &'a PublicKey, _: &'a str) -> BoxedFuture<'a, Result<String, SignerError>> {
        Box::pin(async { Err(refusal()) })
    }

    fn nip04_decrypt<'a>(&'a self, _: &'a PublicKey, _: &'a str) -> BoxedFuture<'a, Result<String, SignerError>> {
        Box::pin(async { Err(refusal()) })
    }

    fn nip44_encrypt<'a>(&'a self, _: &'a PublicKey, _: &'a str) -> BoxedFuture<'a, Result<String, SignerError>> {
        Box::pin(async { Err(refusal()) })
    }

    fn nip44_decrypt<'a>(&'a self, _: &'a PublicKey, _: &'a str) -> BoxedFuture<'a, Result<String, SignerError>> {
        Box::pin(async { Err(refusal()) })
    }
}
