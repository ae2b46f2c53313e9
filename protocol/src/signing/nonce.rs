//! The member's secret nonce, which exists once and signs once.

use std::sync::Arc;

use musig2::{AggNonce, PartialSignature, SecNonce};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::{
    id::SessionId,
    key::{SecretKey, Signature},
    message::Bytes,
    output::BeaconOutput,
};

/// Why a nonce could not sign.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartialSignError {
    /// The secret nonce is not available: lost in a restart, or used already.
    #[error("the secret nonce of this session is gone")]
    NonceGone,
    /// The aggregate nonce is not two points (or infinity).
    #[error("the aggregate nonce is malformed")]
    AggregateNonce,
    /// The key is not a member's, or signing failed for another reason that a retry cannot fix.
    #[error("cannot sign: {0}")]
    Signing(String),
}

/// A MuSig2 secret nonce (BIP-327 `secnonce`).
///
/// It cannot be cloned, printed or serialized. [`sign`](Self::sign) consumes it even if signing fails, and dropping
/// wipes it. Two signatures with one nonce would reveal the member's secret key; the type prevents them.
pub struct SecretNonce(Zeroizing<[u8; 97]>);

impl SecretNonce {
    /// A new nonce and its public half (`pubnonce`, 66 bytes).
    ///
    /// BIP-327 `NonceGen` with the secret key, the public key and the untweaked aggregate key, and without a message.
    /// Only the randomness makes it unique, so `rng` must be a cryptographic generator that was never rewound.
    pub fn generate(key: &SecretKey, output: &BeaconOutput, rng: &mut dyn CryptoRng) -> (Self, Bytes<66>) {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(seed.as_mut());
        Self::from_seed(key, output, &seed)
    }

    /// The nonce from the given randomness (`rand'`). Only for replaying recorded rounds: the same seed gives the
    /// same nonce.
    pub fn from_seed(key: &SecretKey, output: &BeaconOutput, seed: &[u8; 32]) -> (Self, Bytes<66>) {
        let scalar = scalar(key);
        let aggregate: musig2::secp::Point = output.musig2_context().aggregated_pubkey_untweaked();
        let nonce = SecNonce::build_with_seckey(*seed, scalar).with_aggregated_pubkey(aggregate).build();
        let public = Bytes(nonce.public_nonce().into());
        (Self(Zeroizing::new(nonce.into())), public)
    }

    /// The partial signature (`psig`, 32 bytes) on `sighash` under the tweaked aggregate key.
    pub fn sign(
        self,
        key: &SecretKey,
        output: &BeaconOutput,
        aggregated: &Bytes<66>,
        sighash: &[u8; 32],
    ) -> Result<Bytes<32>, PartialSignError> {
        let aggregated = AggNonce::from_bytes(&aggregated.0).map_err(|_| PartialSignError::AggregateNonce)?;
        let nonce =
            SecNonce::from_bytes(self.0.as_ref()).map_err(|error| PartialSignError::Signing(error.to_string()))?;
        let signature: PartialSignature =
            musig2::sign_partial(output.musig2_context(), scalar(key), nonce, &aggregated, sighash)
                .map_err(|error| PartialSignError::Signing(error.to_string()))?;
        Ok(Bytes(signature.serialize()))
    }
}

fn scalar(key: &SecretKey) -> musig2::secp::Scalar {
    let bytes = key.expose();
    musig2::secp::Scalar::try_from(&*bytes).expect("both crates take the scalars 1..n as secret keys")
}

/// A member's signer in one cohort: its key and at most one open nonce.
///
/// The only type with access to both. The effects of the participant's machine drive it; the machine itself has
/// neither.
pub struct MemberSigner {
    key: Arc<SecretKey>,
    open: Option<(SessionId, SecretNonce)>,
}

impl MemberSigner {
    /// A signer with `key` and no nonce.
    pub fn new(key: Arc<SecretKey>) -> Self {
        Self { key, open: None }
    }

    /// Opens a nonce for `session`, wipes any nonce that was open before, and returns the public half.
    pub fn open_nonce(&mut self, session: &SessionId, output: &BeaconOutput, rng: &mut dyn CryptoRng) -> Bytes<66> {
        let (secret, public) = SecretNonce::generate(&self.key, output, rng);
        self.open = Some((session.clone(), secret));
        public
    }

    /// Signs with the open nonce of `session`, and consumes it even if signing fails.
    pub fn sign_partial(
        &mut self,
        session: &SessionId,
        output: &BeaconOutput,
        aggregated: &Bytes<66>,
        sighash: &[u8; 32],
    ) -> Result<Bytes<32>, PartialSignError> {
        match self.open.take() {
            Some((open, nonce)) if open == *session => nonce.sign(&self.key, output, aggregated, sighash),
            _ => Err(PartialSignError::NonceGone),
        }
    }

    /// Signs on the fallback leaf and wipes the open nonce: after that the member never signs on the key path.
    pub fn sign_fallback(&mut self, sighash: &[u8; 32], rng: &mut dyn CryptoRng) -> Signature {
        self.open = None;
        self.key.sign(sighash, rng)
    }
}
