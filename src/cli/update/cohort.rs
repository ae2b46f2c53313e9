//! The cohort whose beacon is adopted: from a member's vault, from the file of `join --out`, or from an operator's
//! `output.json`. The address is derived from the members' keys and the terms, never taken from a text.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{UpdateFailure, record::is_new};
use crate::{
    bitcoin::recovery::CohortFile,
    error::ProgramError,
    inputs,
    protocol::{
        beacon::BeaconType, cohort::conditions::Conditions, did::Did, id::CohortId, output::BeaconOutput,
        sidecar::MemberRecord,
    },
    vault::Sources,
};

/// A cohort, as far as its beacon depends on it.
pub(super) struct Cohort {
    pub(super) id: CohortId,
    pub(super) output: BeaconOutput,
    /// Unknown from an operator's file.
    pub(super) beacon_type: Option<BeaconType>,
    /// Whose record it is.
    pub(super) member: Option<Did>,
    /// Where it was found, for people.
    pub(super) from: String,
}

impl Cohort {
    /// The cohort that `text` names: a file, or a cohort of the vault in `state`.
    pub(super) async fn find(text: &str, state: Option<&Path>) -> Result<Self, UpdateFailure> {
        let path = Path::new(text);
        if path.is_file() {
            let value: Value = inputs::json(path).map_err(|error| UpdateFailure::Refused(error.to_string()))?;
            let cohort = Self::of_file(&value, text)?;
            if let Some(state) = state.filter(|state| !is_new(state)) {
                cohort.check_vault(state).await?;
            }
            return Ok(cohort);
        }
        let id = CohortId::parse(text)
            .map_err(|error| UpdateFailure::Refused(format!("{text} is not a file, and {error}")))?;
        let Some(state) = state else {
            return Err(UpdateFailure::Refused(format!(
                "{text} is not a file: give --state DIR, the state directory of `join` that has this cohort, or a file of `join --out`"
            )));
        };
        Self::of_vault(&id, state).await
    }

    fn of_file(value: &Value, name: &str) -> Result<Self, UpdateFailure> {
        let refuse = |problem: String| UpdateFailure::Refused(format!("{name}: {problem}"));
        if let Some(cohort) = value.get("cohort") {
            let conditions: Conditions = part(cohort, "conditions").map_err(refuse)?;
            let output: BeaconOutput = part(cohort, "output").map_err(refuse)?;
            let stated = cohort.get("beaconAddress").and_then(Value::as_str);
            if stated.is_some_and(|stated| stated != output.address()) {
                return Err(refuse(format!(
                    "it states the beacon address {}, and its keys and terms lead to {}: it was changed",
                    crate::protocol::text::shown(stated.unwrap_or_default()),
                    output.address()
                )));
            }
            if conditions.script_tree != *output.script_tree() {
                return Err(refuse(
                    "the terms in it (`conditions`) are not those of its address (`output`): it was changed"
                        .to_owned(),
                ));
            }
            return Ok(Self {
                id: part(cohort, "cohortId").map_err(refuse)?,
                output,
                beacon_type: Some(conditions.beacon_type),
                member: Some(part(value, "did").map_err(refuse)?),
                from: name.to_owned(),
            });
        }
        if value.get("output").is_none() {
            return Err(refuse(format!(
                "neither a file of `join --out` (with `cohort`) nor an operator's {} (with `cohortId` and `output`)",
                CohortFile::NAME
            )));
        }
        let file: CohortFile = serde_json::from_value(value.clone()).map_err(|error| refuse(error.to_string()))?;
        Ok(Self { id: file.cohort_id, output: file.output, beacon_type: None, member: None, from: name.to_owned() })
    }

    /// Refuses what a file states otherwise than the member's own record of the same cohort: a file proves nothing.
    async fn check_vault(&self, state: &Path) -> Result<(), UpdateFailure> {
        let sources = Sources { states: vec![state.to_owned()], ..Sources::default() };
        let failed = |error: String| UpdateFailure::Program(ProgramError::State(error));
        let contents = sources.read().await.map_err(|error| failed(error.to_string()))?;
        let mut records = contents.of_cohort(&self.id).map(|entry| &entry.record).peekable();
        let is_same = |record: &MemberRecord| {
            record.output.address() == self.output.address()
                && self.beacon_type.as_ref().is_none_or(|stated| *stated == record.conditions.beacon_type)
        };
        if records.peek().is_none() || records.any(is_same) {
            return Ok(());
        }
        Err(UpdateFailure::Refused(format!(
            "{}: its cohort {} has another address or type of beacon than in {}: adopt that one by its identifier",
            self.from,
            self.id,
            state.display()
        )))
    }

    async fn of_vault(id: &CohortId, state: &Path) -> Result<Self, UpdateFailure> {
        let failed = |problem: String| UpdateFailure::Program(ProgramError::State(problem));
        let sources = Sources { states: vec![state.to_owned()], ..Sources::default() };
        let contents = sources.read().await.map_err(|error| failed(error.to_string()))?;
        let mut records = contents.of_cohort(id).map(|entry| &entry.record);
        let Some(record) = records.next() else {
            let problems: String = contents.problems.iter().map(|problem| format!("; {problem}")).collect();
            return Err(UpdateFailure::Refused(format!(
                "nothing is stored of cohort {id} in {}: `vault list` shows all entries{problems}",
                state.display()
            )));
        };
        if let Some(other) = records.find(|other| other.output.address() != record.output.address()) {
            return Err(UpdateFailure::Refused(format!(
                "{} has two cohorts {id}, of the services {} and {}: give the file of `join --out` instead",
                state.display(),
                record.service,
                other.service
            )));
        }
        Ok(Self {
            id: id.clone(),
            output: record.output.clone(),
            beacon_type: Some(record.conditions.beacon_type.clone()),
            member: Some(record.did.clone()),
            from: format!("the state directory {}", state.display()),
        })
    }
}

/// A member of a JSON object.
fn part<T: DeserializeOwned>(value: &Value, field: &str) -> Result<T, String> {
    let part = value.get(field).cloned().unwrap_or_default();
    serde_json::from_value(part).map_err(|error| format!("`{field}`: {error}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::protocol::{
        key::SecretKey,
        network::Network,
        output::{KeyAggregation, ScriptTree},
    };

    fn output() -> BeaconOutput {
        let keys = (1..=2).map(|n| SecretKey::from_bytes(&[n; 32]).unwrap().public_key());
        let tree = ScriptTree::FallbackAndRecovery {
            recovery_key: SecretKey::from_bytes(&[9; 32]).unwrap().public_key().x_only(),
            recovery_sequence: 144.try_into().unwrap(),
            fallback_threshold: None,
        };
        BeaconOutput::new(Arc::new(KeyAggregation::new(keys).unwrap()), Network::Regtest, &tree).unwrap()
    }

    fn problem(value: &Value) -> String {
        Cohort::of_file(value, "file").err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn the_address_follows_from_keys_and_terms() {
        let output = output();
        let file = json!({ "cohortId": "a", "output": output });
        let cohort = Cohort::of_file(&file, "file").ok().unwrap();
        assert_eq!((cohort.output.address(), cohort.beacon_type), (output.address(), None));
        assert!(problem(&json!({})).contains("neither a file of `join --out`"));
        assert!(problem(&json!({ "cohort": {} })).contains("`conditions`"));
        let mut wrong = file;
        wrong["output"] = json!({});
        assert!(problem(&wrong).starts_with("file: "));
    }
}
