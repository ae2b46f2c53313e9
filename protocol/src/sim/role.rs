//! How a simulated participant behaves.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{document, error::Slot, key::PublicKey};

/// What a participant does with its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateChoice {
    /// It submits an update that adds the cohort's beacon to its document.
    Submit,
    /// It declines.
    Decline,
}

/// What a participant's host says about the aggregated data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What the machine found.
    Honest,
    /// No, whatever the machine found.
    Reject,
    /// Yes, whatever the machine found.
    Approve,
}

/// How a participant behaves. The default is an honest one with a KEY DID that submits an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// Whether its host joins.
    pub joins: bool,
    /// Submit or decline.
    pub update: UpdateChoice,
    /// Its host's verdict on the aggregated data.
    pub verdict: Verdict,
    /// Whether its host signs the transaction.
    pub signs: bool,
    /// The contributions that it never sends, though it makes them.
    pub withholds: BTreeSet<Slot>,
    /// Whether it has an EXTERNAL DID.
    pub external: bool,
    /// Whether it signs transactions with another key than the one that its DID proves.
    pub separate_key: bool,
}

impl Default for Role {
    fn default() -> Self {
        Self {
            joins: true,
            update: UpdateChoice::Submit,
            verdict: Verdict::Honest,
            signs: true,
            withholds: BTreeSet::new(),
            external: false,
            separate_key: false,
        }
    }
}

/// The contributions, in the order of a round.
pub const SLOTS: [Slot; 6] =
    [Slot::OptIn, Slot::Update, Slot::Validation, Slot::Nonce, Slot::PartialSignature, Slot::FallbackSignature];

impl Role {
    /// An honest participant that has nothing to update.
    pub fn decliner() -> Self {
        Self { update: UpdateChoice::Decline, ..Self::default() }
    }

    /// The same, but never heard of again from `slot` on.
    #[must_use]
    pub fn silent_from(mut self, slot: Slot) -> Self {
        self.withholds.extend(SLOTS.into_iter().filter(|later| *later >= slot));
        self
    }

    /// The same, but without this one contribution.
    #[must_use]
    pub fn without(mut self, slot: Slot) -> Self {
        self.withholds.insert(slot);
        self
    }

    /// Whether it does everything that the protocol asks for.
    pub fn is_honest_and_responsive(&self) -> bool {
        self.joins && self.signs && self.withholds.is_empty() && self.verdict != Verdict::Reject
    }
}

/// A genesis document whose one key is `key`.
pub fn genesis_document(key: &PublicKey) -> Value {
    let id = document::PLACEHOLDER;
    let method = format!("{id}#key-0");
    json!({
        "id": id,
        "@context": ["https://www.w3.org/ns/did/v1.1", "https://btcr2.dev/context/v1"],
        "verificationMethod": [{
            "id": method,
            "type": "Multikey",
            "controller": id,
            "publicKeyMultibase": document::encode_multikey(key),
        }],
        "authentication": [method],
        "assertionMethod": [method],
        "capabilityInvocation": [method],
        "capabilityDelegation": [method],
        "service": [],
    })
}
