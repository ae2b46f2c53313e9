#![allow(dead_code, unreachable_pub)]

/// The vectors file `name`, with or without `.json`.
pub fn vectors(name: &str) -> serde_json::Value {
    let directory = std::env::var("VECTORS_DIR")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors").to_owned());
    let path = std::path::Path::new(&directory).join(name).with_extension("json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
