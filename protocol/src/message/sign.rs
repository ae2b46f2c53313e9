//! The signing phase: nonces and partial signatures (BIP-327), or signatures on the fallback leaf (BIP-342).

use bitcoin::{Amount, ScriptBuf, Transaction};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Bytes, transaction_hex::unsigned};
use crate::id::{CohortId, SessionId};

/// `sign/authorization_request`: the beacon transaction to sign.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationRequest {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The signing session.
    pub session_id: SessionId,
    /// The unsigned transaction, in the legacy serialization (no segwit marker).
    #[serde(with = "unsigned")]
    pub pending_tx: Transaction,
    /// The script of the output that input 0 spends.
    #[serde(with = "script_hex")]
    pub prev_out_script_hex: ScriptBuf,
    /// Its value, a decimal string of satoshi.
    #[serde(with = "satoshi_text")]
    pub prev_out_value: Amount,
    /// Our extension: until when the service may still request the fallback of this session, in Unix seconds. A
    /// member that leaves earlier may be missing for the fallback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_deadline: Option<u64>,
}

/// `sign/nonce_contribution`: a member's public nonce.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NonceContribution {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The signing session.
    pub session_id: SessionId,
    /// BIP-327 `pubnonce`, 66 bytes.
    pub nonce_contribution: Bytes<66>,
}

/// `sign/aggregated_nonce`: the aggregate nonce.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AggregatedNonce {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The signing session.
    pub session_id: SessionId,
    /// BIP-327 `aggnonce`, 66 bytes.
    pub aggregated_nonce: Bytes<66>,
}

/// `sign/signature_authorization`: a member's partial signature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignatureAuthorization {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The signing session.
    pub session_id: SessionId,
    /// BIP-327 `psig`, 32 bytes.
    pub partial_signature: Bytes<32>,
}

/// `sign/fallback_authorization_request`: the same transaction, to be signed on the fallback leaf.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FallbackAuthorizationRequest {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The signing session.
    pub session_id: SessionId,
    /// The unsigned transaction, in the legacy serialization (no segwit marker).
    #[serde(with = "unsigned")]
    pub pending_tx: Transaction,
    /// The script of the output that input 0 spends.
    #[serde(with = "script_hex")]
    pub prev_out_script_hex: ScriptBuf,
    /// Its value, a decimal string of satoshi.
    #[serde(with = "satoshi_text")]
    pub prev_out_value: Amount,
    /// The fallback leaf's script.
    #[serde(with = "script_hex")]
    pub fallback_leaf_script_hex: ScriptBuf,
}

/// `sign/fallback_signature`: a member's signature on the fallback leaf.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FallbackSignature {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The signing session.
    pub session_id: SessionId,
    /// The member's x-only key.
    pub signer_pk: Bytes<32>,
    /// BIP-340 signature over the BIP-342 signature hash, 64 bytes.
    pub fallback_signature: Bytes<64>,
}

mod script_hex {
    use super::{Deserialize, Deserializer, HEXLOWER, ScriptBuf, Serializer, de};

    pub(super) fn serialize<S: Serializer>(script: &ScriptBuf, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER.encode(script.as_bytes()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ScriptBuf, D::Error> {
        let hex = String::deserialize(deserializer)?;
        let bytes = HEXLOWER.decode(hex.as_bytes()).map_err(|_| de::Error::custom("lower-case hex expected"))?;
        Ok(ScriptBuf::from_bytes(bytes))
    }
}

pub(super) mod satoshi_text {
    use super::{Amount, Deserialize, Deserializer, Serialize, Serializer, de};

    pub(in crate::message) fn serialize<S: Serializer>(amount: &Amount, serializer: S) -> Result<S::Ok, S::Error> {
        amount.to_sat().to_string().serialize(serializer)
    }

    pub(in crate::message) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Amount, D::Error> {
        let text = String::deserialize(deserializer)?;
        let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        let amount = text.parse().ok().filter(|_| canonical).map(Amount::from_sat);
        amount
            .filter(|amount| *amount <= Amount::MAX_MONEY)
            .ok_or_else(|| de::Error::custom("a decimal number of satoshi expected"))
    }
}
