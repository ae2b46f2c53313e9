//! The address that a cohort will have: its members' keys and its terms determine it.

use std::{fs, path::Path, sync::Arc};

use btcr2_aggregation::protocol::{
    key::SecretKey,
    network::Network,
    output::{BeaconOutput, KeyAggregation, RecoverySequence, ScriptTree},
};
use serde_json::Value;

use super::{identity, path, run_with};

/// The secret key that an identity began with, in hex.
pub fn secret(identity: &str) -> String {
    let file: Value = serde_json::from_str(&fs::read_to_string(identity).unwrap()).unwrap();
    file["secretKey"].as_str().unwrap().to_owned()
}

/// The address of a cohort of these members, on the default terms of a service. All are identity files.
pub fn address(service: &str, members: &[&str]) -> String {
    let key = |file: &str| SecretKey::from_hex(&secret(file)).unwrap().public_key();
    let tree = ScriptTree::FallbackAndRecovery {
        recovery_key: key(service).x_only(),
        recovery_sequence: RecoverySequence::try_from(4320).unwrap(),
        fallback_threshold: None,
    };
    let aggregation = KeyAggregation::new(members.iter().map(|file| key(file)).collect::<Vec<_>>()).unwrap();
    BeaconOutput::new(Arc::new(aggregation), Network::Regtest, &tree).unwrap().address().to_owned()
}

/// An EXTERNAL DID with the key of another identity, whose genesis document lists that CAS beacon.
pub fn listing(directory: &Path, name: &str, of: &str, address: &str) -> String {
    let file = path(directory, name);
    let made = ["identity", "new", "--external", "--beacon", address, "--secret-env", "SECRET", "--out", &file];
    run_with(&made, &[("SECRET", &secret(of))]).succeeded();
    file
}

/// An EXTERNAL DID whose genesis document lists the beacon of its cohort of one, at the service of this directory.
pub fn identity_that_lists_its_cohort(directory: &Path, name: &str) -> String {
    let key = identity(directory, &format!("{name}.key"));
    let address = address(&path(directory, "service"), &[&key]);
    listing(directory, name, &key, &address)
}
