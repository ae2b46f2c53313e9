#![allow(dead_code, unreachable_pub)]

use std::{env, fs, path::PathBuf};

/// A file of test vectors, from `VECTORS_DIR` if set, else from the copy in this repository.
pub fn vectors(name: &str) -> serde_json::Value {
    let folder = env::var_os("VECTORS_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors")), PathBuf::from);
    let path = folder.join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
