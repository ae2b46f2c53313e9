//! The behaviour of a simulated participant.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    document,
    error::Slot,
    key::PublicKey,
    network::Network,
    output::{InitialBeacon, InitialBeaconKind},
    update::Edit,
};

/// What a participant does with its slot.
#[derive(Clone, Debug, PartialEq)]
pub enum UpdateChoice {
    /// It submits the update of version 2, which adds the cohort's beacon to its document.
    Submit,
    /// It submits the update of version 3, which makes this change to that document.
    Next(Edit),
    /// It declines.
    Decline,
}

/// The verdict of a participant's host on the aggregated data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The verdict of the machine.
    Honest,
    /// A rejection, whatever the verdict of the machine.
    Reject,
    /// An approval, whatever the verdict of the machine.
    Approve,
}

/// The behaviour of a participant. The default is an honest participant with a KEY DID that submits an update.
#[derive(Clone, Debug, PartialEq)]
pub struct Role {
    /// Whether its host considers adverts.
    pub considers: bool,
    /// Whether its host joins.
    pub joins: bool,
    /// Submit or decline.
    pub update: UpdateChoice,
    /// Its host's verdict on the aggregated data.
    pub verdict: Verdict,
    /// Whether its host signs the transaction.
    pub signs: bool,
    /// The contributions that it makes but never sends.
    pub withholds: BTreeSet<Slot>,
    /// Whether it has an EXTERNAL DID.
    pub external: bool,
    /// Whether it signs transactions with a key other than the one that its DID proves.
    pub separate_key: bool,
}

impl Default for Role {
    fn default() -> Self {
        Self {
            considers: true,
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
    /// An honest participant that declines.
    pub fn decliner() -> Self {
        Self { update: UpdateChoice::Decline, ..Self::default() }
    }

    /// The same role, but it sends nothing from `slot` on.
    #[must_use]
    pub fn silent_from(mut self, slot: Slot) -> Self {
        self.withholds.extend(SLOTS.into_iter().filter(|later| *later >= slot));
        self
    }

    /// The same role, but without this contribution.
    #[must_use]
    pub fn without(mut self, slot: Slot) -> Self {
        self.withholds.insert(slot);
        self
    }

    /// Whether it does everything that the protocol requires.
    pub fn is_honest_and_responsive(&self) -> bool {
        self.considers && self.joins && self.signs && self.withholds.is_empty() && self.verdict != Verdict::Reject
    }
}

/// A genesis document whose only key is `key`, with one Singleton Beacon of it.
pub fn genesis_document(key: &PublicKey, network: Network) -> Value {
    let id = document::PLACEHOLDER;
    let method = format!("{id}#key-0");
    let beacon = InitialBeacon::new(*key, network, InitialBeaconKind::P2wpkh);
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
        "service": [{
            "id": format!("{id}#singleton"),
            "type": "SingletonBeacon",
            "serviceEndpoint": format!("bitcoin:{}", beacon.address()),
        }],
    })
}
