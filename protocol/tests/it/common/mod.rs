use std::{env, fs, path::PathBuf};

use serde_json::Value;

/// The vectors of `name`, from `VECTORS_DIR` or from the copy in this repository.
pub fn vectors(name: &str) -> Value {
    let directory = env::var_os("VECTORS_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors")), PathBuf::from);
    let path = directory.join(format!("{name}.json"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
