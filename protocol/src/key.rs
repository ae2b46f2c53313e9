//! Keys. A public key is a curve point from parsing on. A secret key is wiped when dropped, and leaves its type only
//! through the operations of this crate.

use std::{cmp::Ordering, fmt};

use bitcoin::key::TapTweak;
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use rand_core::CryptoRng;
use secp256k1::{Keypair, Message, SECP256K1, ecdsa, schnorr};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

/// Bytes that are not a valid key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a point of secp256k1 in 33-byte compressed form.
    #[error("not a compressed point of secp256k1")]
    NotAPoint,
    /// Not the x coordinate of a point of secp256k1.
    #[error("not the x coordinate of a point of secp256k1")]
    NotAnXCoordinate,
    /// Not a scalar in `1..n`.
    #[error("not a secret key of secp256k1")]
    NotASecretKey,
}

/// A text that is not a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureTextError {
    /// Not whole bytes in hex.
    #[error("not hex")]
    Hex,
    /// Hex, but not of 64 bytes.
    #[error("not 64 bytes")]
    Length,
}

/// A point of secp256k1. Ordered by its 33 compressed bytes, as BIP-327's KeySort orders keys.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(secp256k1::PublicKey);

impl PublicKey {
    /// Parses 33 compressed bytes; an uncompressed or hybrid key is refused.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.len() != 33 {
            return Err(KeyError::NotAPoint);
        }
        secp256k1::PublicKey::from_slice(bytes).map(Self).map_err(|_| KeyError::NotAPoint)
    }

    /// The 33 compressed bytes.
    pub fn to_bytes(self) -> [u8; 33] {
        self.0.serialize()
    }

    /// The x coordinate (BIP-340).
    pub fn x_only(self) -> XOnlyKey {
        XOnlyKey(self.0.x_only_public_key().0)
    }

    /// The key as the `secp256k1` crate's type.
    pub fn as_inner(&self) -> &secp256k1::PublicKey {
        &self.0
    }
}

impl From<secp256k1::PublicKey> for PublicKey {
    fn from(key: secp256k1::PublicKey) -> Self {
        Self(key)
    }
}

impl PartialOrd for PublicKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PublicKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.to_bytes().cmp(&other.to_bytes())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.to_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// The x coordinate of a point of secp256k1 (BIP-340).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XOnlyKey(secp256k1::XOnlyPublicKey);

impl XOnlyKey {
    /// Parses 32 bytes; they must be the x coordinate of a point.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        secp256k1::XOnlyPublicKey::from_slice(bytes).map(Self).map_err(|_| KeyError::NotAnXCoordinate)
    }

    /// The 32 bytes.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0.serialize()
    }

    /// The key as the `secp256k1` crate's type.
    pub fn as_inner(&self) -> &secp256k1::XOnlyPublicKey {
        &self.0
    }

    /// BIP-340 verification over a 32-byte digest.
    pub fn verify(&self, digest: &[u8; 32], signature: &Signature) -> bool {
        SECP256K1.verify_schnorr(&signature.0, &Message::from_digest(*digest), &self.0).is_ok()
    }
}

impl fmt::Display for XOnlyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.to_bytes()))
    }
}

impl fmt::Debug for XOnlyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "XOnlyKey({self})")
    }
}

/// A BIP-340 signature: 64 bytes, written in hex. [`XOnlyKey::verify`] decides whether it is valid.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(schnorr::Signature);

impl Signature {
    /// Wraps 64 bytes.
    pub fn from_bytes(bytes: &[u8; 64]) -> Self {
        Self(schnorr::Signature::from_slice(bytes).expect("any 64 bytes are accepted"))
    }

    /// Parses 64 bytes in hex of either case.
    ///
    /// # Errors
    /// [`SignatureTextError`], which distinguishes text that is not hex from hex of another length.
    pub fn from_hex(text: &str) -> Result<Self, SignatureTextError> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| SignatureTextError::Hex)?;
        let bytes: [u8; 64] = bytes.try_into().map_err(|_| SignatureTextError::Length)?;
        Ok(Self::from_bytes(&bytes))
    }

    /// The 64 bytes.
    pub fn to_bytes(self) -> [u8; 64] {
        self.0.serialize()
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.to_bytes()))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({self})")
    }
}

macro_rules! hex_serde {
    ($type:ty, $parse:expr) => {
        impl std::str::FromStr for $type {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).unwrap_or_default();
                #[allow(clippy::redundant_closure_call)]
                ($parse)(&bytes)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

hex_serde!(PublicKey, PublicKey::from_bytes);
hex_serde!(XOnlyKey, XOnlyKey::from_bytes);
hex_serde!(Signature, |bytes: &[u8]| <&[u8; 64]>::try_from(bytes)
    .map(Signature::from_bytes)
    .map_err(|_| KeyError::NotAPoint));

/// A secret key, with the public key that every signature needs: never printed, never serialized, wiped when dropped.
pub struct SecretKey(Keypair);

impl SecretKey {
    /// Parses 32 bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        Keypair::from_seckey_slice(SECP256K1, bytes).map(Self).map_err(|_| KeyError::NotASecretKey)
    }

    /// A new key from the caller's randomness.
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        loop {
            let mut bytes = Zeroizing::new([0u8; 32]);
            rng.fill_bytes(bytes.as_mut());
            // All draws except about 2^-128 of them are valid scalars.
            if let Ok(key) = Self::from_bytes(&bytes) {
                return key;
            }
        }
    }

    /// The public key.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.0.public_key())
    }

    /// Signs a 32-byte digest (BIP-340, 32 bytes of auxiliary randomness).
    pub fn sign(&self, digest: &[u8; 32], rng: &mut dyn CryptoRng) -> Signature {
        let mut aux = Zeroizing::new([0u8; 32]);
        rng.fill_bytes(aux.as_mut());
        Signature(SECP256K1.sign_schnorr_with_aux_rand(&Message::from_digest(*digest), &self.0, &aux))
    }

    /// Signs a 32-byte digest with ECDSA. The nonce follows from key and digest by RFC 6979. S and R are low, so that
    /// no signature is longer than 70 bytes in DER.
    pub(crate) fn sign_ecdsa(&self, digest: &[u8; 32]) -> ecdsa::Signature {
        let mut key = self.0.secret_key();
        let signature = SECP256K1.sign_ecdsa_low_r(&Message::from_digest(*digest), &key);
        key.non_secure_erase();
        signature
    }

    /// The secret key of the taproot output key that has this key as its internal key and no scripts (BIP-86).
    pub(crate) fn tap_tweaked(&self) -> Self {
        let mut pair = self.0;
        let mut tweaked = pair.tap_tweak(SECP256K1, None).to_keypair();
        let key = Self(tweaked);
        pair.non_secure_erase();
        tweaked.non_secure_erase();
        key
    }

    /// Parses 64 hex characters.
    ///
    /// # Errors
    /// [`KeyError::NotASecretKey`], which does not reveal the text.
    pub fn from_hex(hex: &str) -> Result<Self, KeyError> {
        let bytes = Zeroizing::new(HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).unwrap_or_default());
        let bytes: &[u8; 32] = bytes.as_slice().try_into().map_err(|_| KeyError::NotASecretKey)?;
        Self::from_bytes(bytes)
    }

    /// The key as 64 hex characters, only for the file that stores it. The text is wiped when dropped.
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(HEXLOWER.encode(self.expose().as_ref()))
    }

    /// The scalar, for the signing code of this crate only.
    pub(crate) fn expose(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.secret_bytes())
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.non_secure_erase();
    }
}
