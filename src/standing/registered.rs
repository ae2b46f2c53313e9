//! A registered DID at the operator: its last states, so that the work of an update does not grow with the updates before it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::protocol::{
    cohort::standing::MAX_UNCONFIRMED,
    did::Did,
    update::{SignedUpdate, UpdateContext, verify_update},
};

/// How many versions are kept at once. An update follows on one that is final, or that an unconfirmed announcement has: no older one is needed.
const MOST: usize = MAX_UNCONFIRMED as usize + 2;

/// A DID after one update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    document: Value,
    /// The update that leads to it; none of the version with which the DID was registered.
    update: Option<Value>,
}

/// A registered DID: its last states by version, each of which follows from the one before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Registered {
    did: Did,
    states: BTreeMap<u64, State>,
    /// The genesis document of an EXTERNAL DID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    genesis: Option<Value>,
    /// The Sidecar Data with which it was registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sidecar: Option<Value>,
}

impl Registered {
    pub(super) fn new(did: Did, document: Value, version: u64) -> Self {
        let states = BTreeMap::from([(version, State { document, update: None })]);
        Self { did, states, genesis: None, sidecar: None }
    }

    /// With what a resolver needed when it was registered.
    pub(super) fn with_sidecar(self, genesis: Option<Value>, sidecar: Option<Value>) -> Self {
        Self { genesis, sidecar, ..self }
    }

    /// What a resolver needs of it, as far as it is known here: the updates are the last ones.
    pub(super) fn sidecars(&self) -> Vec<Value> {
        let genesis = self.genesis.as_ref().map(|genesis| json!({ "genesisDocument": genesis }));
        let updates: Vec<&Value> = self.states.values().filter_map(|state| state.update.as_ref()).collect();
        genesis.into_iter().chain(self.sidecar.clone()).chain([json!({ "updates": updates })]).collect()
    }

    /// Its oldest document here: nothing that may still be announced changes it.
    pub(super) fn settled(&self) -> &Value {
        // There is one from the registration on.
        self.states.values().next().map_or(&Value::Null, |state| &state.document)
    }

    /// The DID resolves to this document now. The states after it stay if they follow from it.
    pub(super) fn resolved(&self, document: Value, version: u64) -> Self {
        let follows = self.states.get(&version).is_some_and(|known| known.document == document);
        if follows { self.clone() } else { Self::new(self.did.clone(), document, version) }
    }

    /// What it is after an update; `None` if the update was known.
    ///
    /// # Errors
    /// Why resolvers would refuse the update, in words.
    pub(super) fn after(&self, signed: &SignedUpdate) -> Result<Option<Self>, String> {
        let target = signed.target_version().ok_or("the update has no targetVersionId")?;
        if self.states.get(&target).is_some_and(|known| known.update.as_ref() == Some(signed.value())) {
            return Ok(None);
        }
        let before = target.checked_sub(1).and_then(|before| Some((before, self.states.get(&before)?)));
        let Some((version, State { document, .. })) = before else {
            let known = self.states.keys().next_back().copied().unwrap_or_default();
            return Err(format!("the update leads to version {target}, and the DID has version {known} here"));
        };
        let context = UpdateContext { did: &self.did, document, version, block: None };
        let document = verify_update(signed, &context).map_err(|error| error.to_string())?;
        let mut states = self.states.clone();
        // Later ones followed from the update that this one replaces.
        states.retain(|version, _| *version < target);
        states.insert(target, State { document, update: Some(signed.value().clone()) });
        while states.len() > MOST {
            states.pop_first();
        }
        Ok(Some(Self { states, ..self.clone() }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        actors::runtime::Randomness,
        protocol::{
            document,
            identity::Identity,
            key::SecretKey,
            network::Network,
            update::{build_update, sign_update},
        },
    };

    struct Controller {
        identity: Identity,
        document: Value,
    }

    impl Controller {
        fn new() -> Self {
            let identity = Identity::from_key(SecretKey::from_bytes(&[7; 32]).unwrap(), Network::Regtest);
            let document = document::initial_document(identity.did(), None).unwrap();
            Self { identity, document }
        }

        fn signs(&self, document: &Value, version: u64, note: &str) -> (SignedUpdate, Value) {
            let patch = json!([{ "op": "add", "path": "/note", "value": note }]);
            let did = self.identity.did();
            let update = build_update(document, version, patch).unwrap();
            let mut rng = Randomness::System.for_actor("test");
            let (method, key) = (self.identity.verification_method(), self.identity.secret_key());
            let signed = sign_update(&update, did, method, key, &mut rng).unwrap();
            let context = UpdateContext { did, document, version, block: None };
            let after = verify_update(&signed, &context).unwrap();
            (signed, after)
        }
    }

    #[test]
    fn two_hundred_updates_of_a_did_take_no_more_than_the_last_ones() {
        let controller = Controller::new();
        let mut registered = Registered::new(controller.identity.did().clone(), controller.document.clone(), 1);
        let mut document = controller.document.clone();
        let mut sizes = Vec::new();
        for version in 1..=200 {
            let (signed, after) = controller.signs(&document, version, &format!("{version:03}"));
            registered = registered.after(&signed).unwrap().unwrap();
            assert_eq!(registered.after(&signed), Ok(None), "repeated");
            document = after;
            sizes.push(serde_json::to_vec(&registered).unwrap().len());
        }
        assert_eq!(registered.states.len(), MOST);
        assert!(sizes[199] <= sizes[MOST] + 500, "{} and {} bytes", sizes[MOST], sizes[199]);
        // The oldest ones are settled, and no update follows on them.
        let (old, _) = controller.signs(&controller.document, 1, "old");
        assert!(registered.after(&old).unwrap_err().contains("has version 201 here"));
    }

    #[test]
    fn another_update_of_a_version_replaces_what_followed() {
        let controller = Controller::new();
        let registered = Registered::new(controller.identity.did().clone(), controller.document.clone(), 1);
        let (first, after_first) = controller.signs(&controller.document, 1, "first");
        let (second, _) = controller.signs(&after_first, 2, "second");
        let (other, after_other) = controller.signs(&controller.document, 1, "other");
        let both = registered.after(&first).unwrap().unwrap().after(&second).unwrap().unwrap();
        assert!(registered.after(&second).unwrap_err().contains("leads to version 3"));
        let replaced = both.after(&other).unwrap().unwrap();
        assert!(replaced.after(&second).is_err(), "it follows on the one that was replaced");
        let (third, _) = controller.signs(&after_other, 2, "third");
        assert!(replaced.after(&third).is_ok());
        // What resolvers give now, and what follows from it.
        assert_eq!(both.resolved(after_first.clone(), 2), both);
        let settled = both.resolved(after_other, 2);
        assert_eq!(settled.states.len(), 1);
        assert!(settled.after(&second).is_err() && settled.after(&third).is_ok());
    }
}
