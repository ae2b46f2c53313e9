//! Files that the programs read, made from one known key.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use super::{Service, path, run_with};
use btcr2_aggregation::protocol::{
    identity::Identity,
    key::SecretKey,
    network::Network,
    update::{add_beacon_service_patch, build_update, sign_update},
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::Value;

/// The secret key of the identity that the tests know.
pub const SECRET: &str = "b7e151628aed2a6abf7158809cf4f3c762e7160f38b4da56a784d9045190cfef";

/// An identity file of the key `SECRET`.
pub fn secret_identity(directory: &Path) -> String {
    let file = path(directory, "member");
    run_with(&["identity", "new", "--secret-env", "SECRET", "--out", &file], &[("SECRET", SECRET)]).succeeded();
    file
}

/// A signed update of the DID of `SECRET`, by `patch`, in a file.
pub fn signed_update(directory: &Path, patch: Value) -> String {
    let identity = Identity::from_key(SecretKey::from_hex(SECRET).unwrap(), Network::Regtest);
    let unsigned = build_update(&identity.initial_document().unwrap(), 1, patch).unwrap();
    let (method, key) = (identity.verification_method(), identity.secret_key());
    let mut rng = ChaCha20Rng::from_seed([7; 32]);
    let update = sign_update(&unsigned, identity.did(), method, key, &mut rng).unwrap();
    let file = path(directory, "update.json");
    fs::write(&file, update.value().to_string()).unwrap();
    file
}

/// A patch that adds a beacon.
pub fn usual_patch() -> Value {
    let did = Identity::from_key(SecretKey::from_hex(SECRET).unwrap(), Network::Regtest).did().clone();
    add_beacon_service_patch(&did, "CASBeacon", "bcrt1p0000")
}

/// Runs a round of one member, which leaves `service-state`, `member-state` and `out` in `directory`; the cohort's identifier.
pub fn round(directory: &Path) -> String {
    let at = |name| path(directory, name);
    let service = Service::once(directory, 1, &["--state", &at("service-state"), "--out", &at("out")]);
    let member = secret_identity(directory);
    let result = service.join(&member, &["--add-beacon", "--state", &at("member-state")]).result();
    service.program.result();
    result["cohortId"].as_str().unwrap().to_owned()
}

/// A self-signed certificate and its key, as PEM.
pub fn certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let names = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    (names.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// Writes a file for its owner only.
pub fn private(path: &str, content: impl AsRef<[u8]>) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
