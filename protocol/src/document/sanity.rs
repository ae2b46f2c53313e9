//! What the method allows and a controller hardly ever wants: a document after which nothing can be announced or signed.
//!
//! Every rule of the specification holds for such a document, and an announcement cannot be taken back. A controller's
//! program asks here before it signs or announces.

use std::{collections::BTreeSet, fmt};

use serde_json::Value;

use super::{absolute, beacon_address, invocation_methods};

/// Names of members that hold a secret key: W3C Controlled Identifiers, and what older suites and JWK have.
const SECRETS: [&str; 5] =
    ["secretKeyMultibase", "privateKeyMultibase", "secretKeyJwk", "privateKeyJwk", "privateKeyBase58"];

/// Something in a document that its controller should have to ask for twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Concern {
    /// The document has another `id` afterwards, or none.
    IdChanged,
    /// There is no verification method left at all.
    NoVerificationMethod,
    /// `capabilityInvocation` is empty or gone.
    NoInvocation,
    /// `capabilityInvocation` names methods, none of which has a key that can be read.
    NoUsableKey,
    /// No service is a beacon with a Bitcoin address.
    NoBeacon,
    /// Two beacons of one type have the same address.
    BeaconTwice {
        /// That address.
        address: String,
    },
    /// Two services have the same `id`.
    ServiceTwice {
        /// That id, absolute.
        id: String,
    },
    /// A secret key stands in the document, which is public.
    SecretKey {
        /// Where, as a JSON Pointer.
        place: String,
    },
}

impl fmt::Display for Concern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IdChanged => write!(f, "the document's id is another one afterwards"),
            Self::NoVerificationMethod => {
                write!(f, "no key is left: the DID cannot be updated any more, not even to deactivate it")
            }
            Self::NoInvocation => write!(
                f,
                "capabilityInvocation is empty: the DID cannot be updated any more, not even to deactivate it"
            ),
            Self::NoUsableKey => write!(
                f,
                "capabilityInvocation has no Multikey of a compressed secp256k1 key: the DID cannot be updated any more"
            ),
            Self::NoBeacon => write!(f, "there is no beacon: no update of the DID can be announced any more"),
            Self::BeaconTwice { address } => write!(f, "the beacon at {address} is in the document twice"),
            Self::ServiceTwice { id } => write!(f, "two services have the id {id}"),
            Self::SecretKey { place } => write!(f, "there is a secret key at {place}, which would be public"),
        }
    }
}

/// What an update does to a document that its controller may not mean: of the faults of `after`, those that `before` did not
/// have. A deactivation is meant as it is, and may remove what it likes; a secret it must not publish either.
pub fn concerns(before: &Value, after: &Value) -> Vec<Concern> {
    let known = faults(before);
    let mut concerns: Vec<_> = faults(after).into_iter().filter(|concern| !known.contains(concern)).collect();
    if after.get("deactivated") == Some(&Value::Bool(true)) {
        concerns.retain(|concern| matches!(concern, Concern::SecretKey { .. }));
    }
    if before.get("id") != after.get("id") {
        concerns.insert(0, Concern::IdChanged);
    }
    concerns
}

/// What is wrong with a genesis document, from which a DID is to begin.
pub fn genesis_concerns(genesis: &Value) -> Vec<Concern> {
    faults(genesis).into_iter().collect()
}

/// Secret keys in any JSON, e.g. in a patch whose document is not known.
pub fn secret_concerns(value: &Value) -> Vec<Concern> {
    let mut concerns = BTreeSet::new();
    secrets(value, &mut String::new(), &mut concerns);
    concerns.into_iter().collect()
}

fn faults(document: &Value) -> BTreeSet<Concern> {
    let mut faults = BTreeSet::new();
    let list = |name: &str| document.get(name).and_then(Value::as_array).into_iter().flatten();
    let invocation = || list("capabilityInvocation");
    // A method may also be embedded where it is used.
    if list("verificationMethod").next().is_none() && !invocation().any(Value::is_object) {
        faults.insert(Concern::NoVerificationMethod);
    } else if invocation().next().is_none() {
        faults.insert(Concern::NoInvocation);
    } else if invocation_methods(document).next().is_none() {
        faults.insert(Concern::NoUsableKey);
    }
    let (mut beacons, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for service in list("service") {
        let text = |name: &str| service.get(name).and_then(Value::as_str);
        if let Some(id) = text("id").map(|id| absolute(document, id))
            && !ids.insert(id.clone())
        {
            faults.insert(Concern::ServiceTwice { id });
        }
        let kind = text("type").filter(|kind| kind.ends_with("Beacon"));
        if let (Some(kind), Some(address)) = (kind, text("serviceEndpoint").and_then(beacon_address))
            && !beacons.insert((kind, address))
        {
            faults.insert(Concern::BeaconTwice { address: address.to_owned() });
        }
    }
    if beacons.is_empty() {
        faults.insert(Concern::NoBeacon);
    }
    secrets(document, &mut String::new(), &mut faults);
    faults
}

/// Nesting is bounded: what is checked here was parsed by a parser with a limit.
fn secrets(value: &Value, place: &mut String, found: &mut BTreeSet<Concern>) {
    let length = place.len();
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                place.push('/');
                place.push_str(&name.replace('~', "~0").replace('/', "~1"));
                // A JWK's private part is `d`.
                let jwk = name == "d" && fields.contains_key("kty");
                if (jwk || SECRETS.contains(&name.as_str())) && !value.is_null() {
                    found.insert(Concern::SecretKey { place: place.clone() });
                } else {
                    secrets(value, place, found);
                }
                place.truncate(length);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                place.push_str(&format!("/{index}"));
                secrets(value, place, found);
                place.truncate(length);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{document::genesis_document, key::SecretKey, network::Network};

    fn document() -> Value {
        let secret = SecretKey::from_hex(&"11".repeat(32)).unwrap();
        genesis_document(&secret.public_key(), Network::Regtest)
    }

    /// The concerns about `document()` after `change`.
    fn after(change: impl FnOnce(&mut Value)) -> Vec<Concern> {
        let mut after = document();
        change(&mut after);
        concerns(&document(), &after)
    }

    #[test]
    fn a_usual_document_raises_no_concern() {
        assert_eq!(genesis_concerns(&document()), []);
        assert_eq!(after(|_| {}), []);
        let another = after(|document| {
            let beacon = json!({ "id": "#cas", "type": "CASBeacon", "serviceEndpoint": "bitcoin:bcrt1qother" });
            document["service"].as_array_mut().unwrap().push(beacon);
        });
        assert_eq!(another, []);
    }

    #[test]
    fn what_ends_a_did_is_a_concern() {
        assert_eq!(after(|document| document["id"] = json!("did:example:1")), [Concern::IdChanged]);
        assert_eq!(after(|document| document["verificationMethod"] = json!([])), [Concern::NoVerificationMethod]);
        assert_eq!(after(|document| document["capabilityInvocation"] = json!([])), [Concern::NoInvocation]);
        let unreadable = after(|document| document["verificationMethod"][0]["publicKeyMultibase"] = json!("z6Mk"));
        assert_eq!(unreadable, [Concern::NoUsableKey]);
        assert_eq!(after(|document| document["service"] = json!([])), [Concern::NoBeacon]);
        let no_endpoint = after(|document| {
            document["service"] =
                json!([{ "id": "#a", "type": "SingletonBeacon", "serviceEndpoint": "https://example.org" }]);
        });
        assert_eq!(no_endpoint, [Concern::NoBeacon]);
    }

    #[test]
    fn a_beacon_added_twice_is_a_concern() {
        let twice = after(|document| {
            let mut beacon = document["service"][0].clone();
            beacon["id"] = json!("#again");
            document["service"].as_array_mut().unwrap().push(beacon);
        });
        assert!(matches!(&twice[..], [Concern::BeaconTwice { .. }]), "{twice:?}");
        let same_id = after(|document| {
            let mut beacon = document["service"][0].clone();
            beacon["serviceEndpoint"] = json!("bitcoin:bcrt1qother");
            document["service"].as_array_mut().unwrap().push(beacon);
        });
        assert!(matches!(&same_id[..], [Concern::ServiceTwice { .. }]), "{same_id:?}");
    }

    #[test]
    fn a_secret_key_is_a_concern_wherever_it_stands() {
        let secret = after(|document| document["verificationMethod"][0]["secretKeyMultibase"] = json!("z3u2"));
        assert_eq!(secret, [Concern::SecretKey { place: "/verificationMethod/0/secretKeyMultibase".to_owned() }]);
        let patch = json!([{ "op": "add", "path": "/x", "value": { "kty": "EC", "d": "secret" } }]);
        assert_eq!(secret_concerns(&patch), [Concern::SecretKey { place: "/0/value/d".to_owned() }]);
    }

    #[test]
    fn a_deactivation_may_remove_everything() {
        let deactivated = after(|document| {
            *document = json!({ "id": document["id"], "deactivated": true });
        });
        assert_eq!(deactivated, []);
    }

    #[test]
    fn a_fault_that_was_there_before_is_no_concern() {
        let mut before = document();
        before["service"] = json!([]);
        let mut changed = before.clone();
        changed["alsoKnownAs"] = json!(["https://example.org"]);
        assert_eq!(concerns(&before, &changed), []);
    }
}
