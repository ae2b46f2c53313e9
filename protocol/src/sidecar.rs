//! A member's record of a round: the Sidecar Data that a resolver requests from it (did:btcr2, "Sidecar Data"), and
//! the terms of the cohort, from which the beacon address can be derived again. A resolver reads them as
//! [`SidecarData`](crate::resolution::SidecarData).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    beacon::{AggregateBeacon, BeaconData, CasBeacon, SmtBeacon},
    cohort::conditions::Conditions,
    did::Did,
    document,
    hash::SignalBytes,
    id::CohortId,
    output::BeaconOutput,
    update::{SignedUpdate, UpdateContext, UpdateError, violations},
};

/// One member's record of a cohort. A member that declined has one too: without its proof it could not show that the
/// signal has no update of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberRecord {
    /// The member.
    pub did: Did,
    /// The service that ran the cohort.
    pub service: Did,
    /// The cohort.
    pub cohort_id: CohortId,
    /// Its conditions.
    pub conditions: Conditions,
    /// Its output: keys, network and leaves.
    pub output: BeaconOutput,
    /// The signal of the announcement.
    pub signal: SignalBytes,
    /// The member's update, `None` when it declined.
    pub update: Option<SignedUpdate>,
    /// The CAS Announcement or the SMT proof.
    pub data: BeaconData,
}

impl MemberRecord {
    /// Whether the announcement includes an update of the member.
    pub fn included(&self) -> bool {
        self.update.is_some()
    }

    /// The reasons, as text, why no current resolver accepts the record; empty if a resolver would accept it, as far
    /// as the record shows. Of an update after the first one only the form is checked: its source document is not in
    /// the record.
    ///
    /// Records of versions before 0.2.0 are still readable, and fail here: their updates have other contexts and no
    /// `invocationTarget`, and their trees count bits from the least significant one.
    pub fn problems(&self, genesis_document: Option<&Value>) -> Vec<String> {
        let mut problems = Vec::new();
        match &self.update {
            Some(update) if update.target_version() == Some(2) => {
                match document::initial_document(&self.did, genesis_document) {
                    Ok(initial) => {
                        let context = UpdateContext { did: &self.did, document: &initial, version: 1, block: None };
                        problems
                            .extend(violations(update, &context).iter().map(|error| format!("update: {error}")));
                    }
                    Err(error) => problems.push(format!("initial document: {error}")),
                }
            }
            Some(update) if !update.is_of_current_edition() => {
                problems.push(format!("update: {}", UpdateError::InvocationTargetMissing));
            }
            _ => {}
        }
        problems.extend(self.check_data().err().map(|reason| format!("beacon data: {reason}")));
        problems
    }

    fn check_data(&self) -> Result<(), String> {
        let slot = self.update.as_ref().map(SignedUpdate::hash);
        let verified = match &self.data {
            BeaconData::Cas(_) => CasBeacon.verify(&self.did, slot, &self.data),
            BeaconData::Smt(_) => SmtBeacon.verify(&self.did, slot, &self.data),
            // Only the host that registered the beacon type can check it.
            BeaconData::Other(_) => return Ok(()),
        };
        match verified {
            Ok(signal) if signal == self.signal => Ok(()),
            Ok(signal) => Err(format!("it gives the signal {signal}, the record states {}", self.signal)),
            Err(mismatch) => Err(mismatch.to_string()),
        }
    }

    /// The record as Sidecar Data: `genesisDocument` (EXTERNAL DIDs), `updates`, `casUpdates`, `smtProofs`. Empty
    /// lists are left out.
    pub fn sidecar(&self, genesis_document: Option<&Value>) -> Value {
        let mut sidecar = Map::new();
        sidecar.insert("@context".to_owned(), json!("https://btcr2.dev/context/v1"));
        if let Some(document) = genesis_document {
            sidecar.insert("genesisDocument".to_owned(), document.clone());
        }
        if let Some(update) = &self.update {
            sidecar.insert("updates".to_owned(), json!([update.value()]));
        }
        let list = match &self.data {
            BeaconData::Cas(_) => "casUpdates",
            BeaconData::Smt(_) => "smtProofs",
            BeaconData::Other(_) => "beaconData",
        };
        sidecar.insert(list.to_owned(), json!([plain_data(&self.data)]));
        Value::Object(sidecar)
    }

    /// The content of a member's file: `did`, `genesisDocument` (EXTERNAL DIDs), `included` and `sidecar`.
    pub fn to_file(&self, genesis_document: Option<&Value>) -> Value {
        let mut file = json!({ "did": self.did });
        if let Some(document) = genesis_document {
            file["genesisDocument"] = document.clone();
        }
        file["included"] = json!(self.included());
        file["sidecar"] = self.sidecar(genesis_document);
        file
    }
}

/// A CAS Announcement, an SMT proof or a host's data in the form of Sidecar Data.
pub fn plain_data(data: &BeaconData) -> Value {
    match data {
        BeaconData::Cas(announcement) => json!(announcement),
        BeaconData::Smt(proof) => json!(proof),
        BeaconData::Other(value) => value.clone(),
    }
}
