//! Invites: how an operator admits a participant whose DID it does not know yet.
//!
//! A token is a secret that the operator gives to the invited participant. An opt-in does not carry the token,
//! because the carriers of messages can read an opt-in. It carries a proof of the token that is bound to the cohort
//! and to the DID that opts in. Version 1 ignores the field.

use std::{fmt, str::FromStr};

use data_encoding::HEXLOWER;
use rand_core::CryptoRng;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{did::Did, hash::sha256_concat, id::CohortId};

/// A text that is not an invite, or not a proof of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} expected")]
pub struct InviteError(&'static str);

/// The prefix of every token, which makes it recognizable.
const PREFIX: &str = "btcr2-invite-";

/// A token that an operator gives to a participant. Every holder of the token can opt in with it.
#[derive(Clone, PartialEq, Eq)]
pub struct InviteToken([u8; 16]);

impl InviteToken {
    /// A new token from the caller's randomness.
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        let mut bytes = [0; 16];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// The token as text, for the invited participant.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", HEXLOWER.encode(&self.0))
    }

    /// The token's identifier, for the operator, its lists and its logs.
    pub fn id(&self) -> InviteId {
        let hash = sha256_concat(&[b"did:btcr2 aggregation invite id", &self.0]);
        let mut id = [0; 8];
        id.copy_from_slice(&hash[..8]);
        InviteId(id)
    }

    /// The proof that `did` has this token, for `cohort_id` only.
    pub fn prove(&self, cohort_id: &CohortId, did: &Did) -> InviteProof {
        // Neither identifier contains a zero byte. The double hash prevents length extension of a proof.
        let (cohort_id, did) = (cohort_id.as_str().as_bytes(), did.as_str().as_bytes());
        let inner = sha256_concat(&[b"did:btcr2 aggregation invite proof", &self.0, cohort_id, &[0], did]);
        InviteProof { id: self.id(), mac: sha256_concat(&[&self.0, &inner]) }
    }

    /// Whether `proof` proves that `did` has this token, for `cohort_id`.
    pub fn verify(&self, proof: &InviteProof, cohort_id: &CohortId, did: &Did) -> bool {
        let expected = self.prove(cohort_id, did);
        let differences = expected.mac.iter().zip(&proof.mac).fold(0, |sum, (a, b)| sum | (a ^ b));
        expected.id == proof.id && differences == 0
    }
}

impl fmt::Debug for InviteToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InviteToken({})", self.id())
    }
}

impl FromStr for InviteToken {
    type Err = InviteError;

    fn from_str(text: &str) -> Result<Self, InviteError> {
        let bytes = text.trim().strip_prefix(PREFIX).and_then(|hex| HEXLOWER.decode(hex.as_bytes()).ok());
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or(InviteError("an invite, btcr2-invite- and 32 hex characters,"))
    }
}

/// The identifier of a token, which does not reveal it: 16 hex characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InviteId([u8; 8]);

impl fmt::Display for InviteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for InviteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for InviteId {
    type Err = InviteError;

    fn from_str(text: &str) -> Result<Self, InviteError> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or(InviteError("the identifier of an invite, 16 hex characters,"))
    }
}

/// A proof that a participant has a token: the 16 hex characters of its identifier, a dot, and 64 hex characters.
#[derive(Clone, PartialEq, Eq)]
pub struct InviteProof {
    id: InviteId,
    mac: [u8; 32],
}

impl InviteProof {
    /// The identifier of the token that it claims to prove.
    pub fn id(&self) -> InviteId {
        self.id
    }
}

impl fmt::Debug for InviteProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InviteProof({})", self.id)
    }
}

impl FromStr for InviteProof {
    type Err = InviteError;

    fn from_str(text: &str) -> Result<Self, InviteError> {
        let expected = InviteError("a proof of an invite");
        let (id, mac) = text.split_once('.').ok_or(expected)?;
        let mac = HEXLOWER.decode(mac.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        Ok(Self { id: id.parse()?, mac: mac.ok_or(expected)? })
    }
}

impl Serialize for InviteProof {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}.{}", self.id, HEXLOWER.encode(&self.mac)))
    }
}

macro_rules! from_text {
    ($($name:ident),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

from_text!(InviteToken, InviteId, InviteProof);

impl Serialize for InviteId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{identity::Identity, key::SecretKey, network::Network};

    #[test]
    fn a_proof_is_valid_for_one_did_in_one_cohort() {
        let token: InviteToken = format!("{PREFIX}{}", "5a".repeat(16)).parse().unwrap();
        let did = |byte| {
            let key = SecretKey::from_bytes(&[byte; 32]).unwrap();
            Identity::from_key(key, Network::Regtest).did().clone()
        };
        let [one, other] = ["one", "other"].map(|name| CohortId::parse(name).unwrap());
        let proof = token.prove(&one, &did(1));
        assert!(token.verify(&proof, &one, &did(1)));
        assert!(!token.verify(&proof, &other, &did(1)));
        assert!(!token.verify(&proof, &one, &did(2)));
        assert!(!InviteToken([0; 16]).verify(&proof, &one, &did(1)));
        let text = serde_json::to_string(&proof).unwrap();
        assert_eq!(serde_json::from_str::<InviteProof>(&text).unwrap(), proof);
        let secret = &token.reveal()[PREFIX.len()..];
        assert!(!format!("{text} {token:?} {proof:?}").contains(secret), "the token is revealed");
        assert_eq!(token.reveal().parse(), Ok(token));
    }

    #[test]
    fn texts_that_are_not_invites_are_refused() {
        for text in ["", "btcr2-invite-", "btcr2-invite-zz", &"5a".repeat(16)] {
            assert!(text.parse::<InviteToken>().is_err(), "{text}");
        }
        for text in ["", ".", "00.00", &format!("{}.{}", "0".repeat(16), "0".repeat(63))] {
            assert!(text.parse::<InviteProof>().is_err(), "{text}");
        }
    }
}
