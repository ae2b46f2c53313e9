//! The genesis document of a DID that begins with beacons.

use serde_json::{Value, json};

use crate::protocol::{
    document::{self, InitialBeacon, InitialBeaconKind},
    key::PublicKey,
    network::Network,
    resolution::BeaconKind,
    update::unused_id,
};

/// A genesis document with a key, these beacons (the name of the service, the type, the address), and a Singleton beacon of the key unless that
/// is not wanted.
pub fn genesis_with(
    key: &PublicKey,
    network: Network,
    beacons: &[(&str, BeaconKind, String)],
    singleton: bool,
) -> Value {
    let mut genesis = document::genesis_document(key, network);
    genesis["service"] = json!([]);
    let mut list = |name: &str, kind: BeaconKind, address: &str| {
        let id = unused_id(&genesis, name);
        let service =
            json!({ "id": id, "type": kind.service_type(), "serviceEndpoint": format!("bitcoin:{address}") });
        genesis["service"].as_array_mut().into_iter().for_each(|services| services.push(service.clone()));
    };
    for (name, kind, address) in beacons {
        list(name, *kind, address);
    }
    if singleton {
        let own = InitialBeacon::new(*key, network, InitialBeaconKind::P2wpkh);
        list("singleton", BeaconKind::Singleton, &own.address().to_string());
    }
    genesis
}
