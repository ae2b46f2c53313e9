//! A seat's signer: its key, and the nonces of one number.

use std::sync::Arc;

use rand_core::CryptoRng;

use crate::{
    key::{SecretKey, Signature},
    message::Bytes,
    output::BeaconOutput,
    signing::nonce::SecretNonce,
};

/// The seat's key and at most one open nonce for each input of one number. Nonces are in memory only, wiped when they are dropped, and used
/// once.
pub struct SeatSigner {
    key: Arc<SecretKey>,
    open: Option<(u64, Vec<SecretNonce>)>,
}

impl SeatSigner {
    /// A signer without nonces.
    pub const fn new(key: Arc<SecretKey>) -> Self {
        Self { key, open: None }
    }

    /// The seat's key.
    pub const fn key(&self) -> &Arc<SecretKey> {
        &self.key
    }

    /// Opens a nonce for each of `inputs` inputs of a number, wipes all others, and returns the public halves.
    pub fn open(
        &mut self,
        number: u64,
        inputs: usize,
        output: &BeaconOutput,
        rng: &mut dyn CryptoRng,
    ) -> Vec<Bytes<66>> {
        let (secret, public) = (0..inputs).map(|_| SecretNonce::generate(&self.key, output, rng)).unzip();
        self.open = Some((number, secret));
        public
    }

    /// A partial signature for each input, with the nonces of the number, which are gone then; `None` if there are none.
    pub fn sign_partials(
        &mut self,
        number: u64,
        output: &BeaconOutput,
        aggregated: &[Bytes<66>],
        sighashes: &[[u8; 32]],
    ) -> Option<Vec<Bytes<32>>> {
        let (of, nonces) = self.open.take()?;
        if of != number || nonces.len() != aggregated.len() || nonces.len() != sighashes.len() {
            return None;
        }
        let each = nonces.into_iter().zip(aggregated).zip(sighashes);
        each.map(|((nonce, aggregated), digest)| nonce.sign(&self.key, output, aggregated, digest).ok()).collect()
    }

    /// A signature for each input on the fallback leaf. All nonces are wiped: after that the seat never signs this number by key path.
    pub fn sign_fallback(&mut self, sighashes: &[[u8; 32]], rng: &mut dyn CryptoRng) -> Vec<Signature> {
        self.open = None;
        sighashes.iter().map(|digest| self.key.sign(digest, rng)).collect()
    }
}
