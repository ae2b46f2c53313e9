//! Members and their keys.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    did::Did,
    document,
    error::{Reject, RejectCode},
    invite::InviteProof,
    key::{KeyError, PublicKey},
    message::keygen::CohortOptIn,
    network::Network,
};

/// A participant as its opt-in describes it: every key is parsed, and the DID proves the communication key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Its identifier.
    pub did: Did,
    /// The key it signs the beacon transaction with.
    pub participant_key: PublicKey,
    /// The key that its DID proves, with which it authenticates and signs updates.
    pub communication_key: PublicKey,
    /// The identifier of that key's verification method.
    pub verification_method: String,
    /// The genesis document of an EXTERNAL DID.
    pub genesis_document: Option<Arc<Value>>,
    /// The proof of its invite. The operator decides whether it is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invite: Option<InviteProof>,
}

/// Why an opt-in does not give a valid member.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MemberError {
    /// `participantPk` is not a curve point.
    #[error("participantPk: {0}")]
    ParticipantKey(KeyError),
    /// `communicationPk` is not a curve point.
    #[error("communicationPk: {0}")]
    CommunicationKey(KeyError),
    /// The DID proves another key, or no key at all.
    #[error("communicationPk is not the key that the DID proves: {0}")]
    Unproven(String),
    /// The DID is on another network than the cohort.
    #[error("the DID is on {found}, the cohort on {expected}")]
    Network {
        /// The cohort's network.
        expected: Network,
        /// The DID's network.
        found: Network,
    },
}

impl Member {
    /// The member that the opt-in of `from` describes.
    ///
    /// For a KEY DID the communication key is the key in the DID; for an EXTERNAL one the genesis document must hash to
    /// the DID, and the key is that of one of its `capabilityInvocation` methods (wire format, section 5; rules U-6 and
    /// U-7).
    pub fn from_opt_in(from: &Did, body: &CohortOptIn, network: Network) -> Result<Self, MemberError> {
        if from.network() != network {
            return Err(MemberError::Network { expected: network, found: from.network() });
        }
        let participant_key = PublicKey::from_bytes(&body.participant_pk.0).map_err(MemberError::ParticipantKey)?;
        let communication_key =
            PublicKey::from_bytes(&body.communication_pk.0).map_err(MemberError::CommunicationKey)?;
        let genesis_document = body.genesis_document.clone().filter(|_| from.key().is_none());
        let verification_method = document::genesis_method(from, genesis_document.as_deref(), &communication_key)
            .map_err(|error| MemberError::Unproven(error.to_string()))?;
        let (did, invite) = (from.clone(), body.invite.clone());
        Ok(Self { did, participant_key, communication_key, verification_method, genesis_document, invite })
    }

    /// Whether `other` has the same identity and keys. The invite may differ.
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        (&self.did, self.participant_key, self.communication_key, &self.verification_method, &self.genesis_document)
            == (
                &other.did,
                other.participant_key,
                other.communication_key,
                &other.verification_method,
                &other.genesis_document,
            )
    }

    /// Whether the member has proven that it holds its participant key: it authenticates with the same key.
    pub fn holds_participant_key(&self) -> bool {
        self.participant_key == self.communication_key
    }

    pub(crate) fn reject(from: &Did, error: &MemberError) -> Reject {
        Reject::new(RejectCode::InvalidKey, from, error)
    }
}
