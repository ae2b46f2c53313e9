//! The update that replaces the address of a beacon in a document: by another one when a cohort moves, or by none.

use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::{Value, json};

use super::keys::Keys;
use crate::protocol::{
    did::Did,
    document::beacon_address,
    update::{SignedUpdate, build_update, sign_update},
};

/// What is replaced in a document: the beacon of a cohort.
pub(crate) struct AddressChange<'a> {
    /// The address of the old cohort.
    pub(crate) from: &'a str,
    /// The address of the new one, and the type of its beacon; none for a DID that only leaves.
    pub(crate) to: Option<(&'a str, &'a str)>,
}

impl AddressChange<'_> {
    /// The patch of a document: every service at the old address is one at the new one, or is removed. `None` if there is none.
    pub(crate) fn patch(&self, document: &Value) -> Option<Value> {
        let services = document.get("service")?.as_array()?;
        let at_old = |service: &Value| {
            service.get("serviceEndpoint").and_then(Value::as_str).and_then(beacon_address) == Some(self.from)
        };
        let mut patch = Vec::new();
        // From the end, so that a removal moves none of those that follow.
        for (at, service) in services.iter().enumerate().rev().filter(|(_, service)| at_old(service)) {
            let Some((address, beacon_type)) = self.to else {
                patch.push(json!({ "op": "remove", "path": format!("/service/{at}") }));
                continue;
            };
            let endpoint = format!("bitcoin:{address}");
            patch.push(
                json!({ "op": "replace", "path": format!("/service/{at}/serviceEndpoint"), "value": endpoint }),
            );
            if service.get("type").and_then(Value::as_str) != Some(beacon_type) {
                patch.push(json!({ "op": "replace", "path": format!("/service/{at}/type"), "value": beacon_type }));
            }
        }
        (!patch.is_empty()).then_some(Value::Array(patch))
    }

    /// The signed update of a document of that version; the same bytes each time. `None` if the document does not list the old address.
    ///
    /// # Errors
    /// Why it cannot be made, in words.
    pub(crate) fn of(
        &self,
        did: &Did,
        keys: &Keys,
        document: &Value,
        version: u64,
    ) -> Result<Option<SignedUpdate>, String> {
        let Some(patch) = self.patch(document) else { return Ok(None) };
        let update = build_update(document, version, patch).map_err(|error| error.to_string())?;
        let (method, key) = keys.signer(document, version).map_err(|error| error.to_string())?;
        // BIP-340 signatures need no randomness. An update that may be announced already has to be made again identically.
        let mut rng = ChaCha20Rng::from_seed([0; 32]);
        sign_update(&update, did, &method, key, &mut rng).map(Some).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::protocol::{
        document::{initial_document, lists_beacon},
        identity::Identity,
        key::SecretKey,
        network::Network,
        update::add_beacon_service_patch,
    };

    #[test]
    fn every_service_at_the_old_address_is_one_at_the_new_one() {
        let identity = Identity::from_key(SecretKey::from_bytes(&[7; 32]).unwrap(), Network::Regtest);
        let (did, keys) = (identity.did().clone(), Keys::of(&identity));
        let (from, to) = ("bcrt1pold", "bcrt1pnew");
        let change = AddressChange { from, to: Some((to, "SMTBeacon")) };
        let first = initial_document(&did, None).unwrap();
        assert_eq!(change.of(&did, &keys, &first, 1).unwrap(), None, "it does not list the address");
        let listed = build_update(&first, 1, add_beacon_service_patch(&did, "CASBeacon", from)).unwrap();
        let document = listed.target_document();
        let update = change.of(&did, &keys, document, 2).unwrap().unwrap();
        assert_eq!(update.target_version(), Some(3));
        let moved = build_update(document, 2, update.value()["patch"].clone()).unwrap();
        assert!(lists_beacon(moved.target_document(), "SMTBeacon", to));
        assert!(!lists_beacon(moved.target_document(), "CASBeacon", from));
        let again = change.of(&did, &keys, document, 2).unwrap().unwrap();
        assert_eq!(again.hash(), update.hash(), "the identical one");
        // One that only leaves.
        let gone = AddressChange { from, to: None }.patch(document).unwrap();
        let left = build_update(document, 2, gone).unwrap();
        assert_eq!(left.target_document()["service"], first["service"]);
    }
}
