//! `identity service-entry`: the entry of a service's DID document by which others find it, and what such entries contain.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::{Failure, WRONG_CALL};
use crate::{
    controller::{SERVICE_TYPE, ServiceEntry},
    inputs,
    keyfile::{self, KeyFile, KeyFileError},
    protocol::did::Did,
    shell,
};

const EXAMPLES: &str = "\
Examples:
  Print the entry, and how to add it to the document:
    btcr2-aggregation identity service-entry service.id --url https://service.example --relay wss://relay.example
  Where is the service with this DID? What it prints are arguments of `join`:
    btcr2-aggregation resolve did:btcr2:k1q... --chain esplora=https://esplora.example/api > service.json
    btcr2-aggregation identity service-entry --read service.json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ServiceEntryArgs {
    /// The identity file of the service
    #[arg(value_name = "FILE", required_unless_present_any = ["did", "read"])]
    file: Option<PathBuf>,
    /// The DID of the service, in place of its identity file
    #[arg(long, value_name = "DID", conflicts_with = "file")]
    did: Option<Did>,
    /// The URL by which others reach it over HTTP
    #[arg(long, value_name = "URL", required_unless_present_any = ["relays", "read"])]
    url: Option<String>,
    /// A Nostr relay over which others reach it; may be given several times
    #[arg(long = "relay", value_name = "URL", value_delimiter = ',')]
    relays: Vec<String>,
    /// The id of the entry, without the DID
    #[arg(long, value_name = "ID", default_value = "aggregation")]
    id: String,
    /// Read a document, as `resolve` prints it, and print the entries in it as arguments of `join`
    #[arg(long, value_name = "DOCUMENT.json", conflicts_with_all = ["file", "did", "url", "relays", "id"])]
    read: Option<PathBuf>,
    /// With --read: print one JSON object for each entry
    #[arg(long, requires = "read")]
    json: bool,
}

/// Why there is no entry.
#[derive(Debug, thiserror::Error)]
pub(super) enum EntryError {
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    #[error("--read {0}")]
    Document(#[from] inputs::InputError),
    #[error("{0}")]
    Wrong(String),
}

impl Failure for EntryError {
    fn status(&self) -> u8 {
        match self {
            Self::KeyFile(error) => error.status(),
            Self::Document(_) => 1,
            Self::Wrong(_) => WRONG_CALL,
        }
    }
}

pub(super) fn main(args: &ServiceEntryArgs) -> Result<(), EntryError> {
    match &args.read {
        Some(document) => read(&inputs::json(document)?, args.json),
        None => print(args),
    }
}

fn print(args: &ServiceEntryArgs) -> Result<(), EntryError> {
    let checked = |option: &str, url: &str, schemes: [&str; 2]| {
        let parsed = reqwest::Url::parse(url).ok().filter(|parsed| schemes.contains(&parsed.scheme()));
        let plain = parsed.filter(|url| url.username().is_empty() && url.password().is_none());
        plain.map(|_| url.trim_end_matches('/').to_owned()).ok_or_else(|| {
            EntryError::Wrong(format!("{option} {url}: a URL with {}:// or {}:// expected", schemes[0], schemes[1]))
        })
    };
    let url = args.url.as_deref().map(|url| checked("--url", url, ["https", "http"])).transpose()?;
    let relays = args.relays.iter().map(|relay| checked("--relay", relay, ["wss", "ws"]));
    let entry = ServiceEntry { url, relays: relays.collect::<Result<_, _>>()? };
    let did = match (&args.did, &args.file) {
        (Some(did), _) => did.clone(),
        (None, Some(file)) => KeyFile::read(file, || keyfile::passphrase("Passphrase: "))?.identity.did().clone(),
        (None, None) => return Err(EntryError::Wrong("FILE or --did is missing".to_owned())),
    };
    let name = args.id.trim_start_matches('#');
    out!("{}", entry.to_json(&did, name));
    err!(
        "To add it, announce an update of the service's DID document, e.g. from a Singleton beacon of its own key:"
    );
    let (did, endpoint) = (did.to_string(), entry.endpoint().to_string());
    let mut words = vec!["btcr2-aggregation", "update", &did, "add-service", name, "--type", SERVICE_TYPE];
    words.extend(["--endpoint", &endpoint]);
    let file = args.file.as_ref().map(|file| file.display().to_string()).unwrap_or_else(|| "service.id".to_owned());
    words.extend(["--identity", &file, "--out", "entry.json", "--announce-by", "singleton"]);
    err!("  {} --chain KIND=URL", shell::line(&words));
    Ok(())
}

fn read(document: &Value, json: bool) -> Result<(), EntryError> {
    // A resolution result, or the document alone.
    let document = document.get("didDocument").unwrap_or(document);
    let did = document["id"].as_str().and_then(|did| Did::parse(did).ok());
    let did = did.ok_or_else(|| EntryError::Wrong("the document of a did:btcr2 DID expected".to_owned()))?;
    let entries = ServiceEntry::all_of(document);
    if entries.is_empty() {
        return Err(EntryError::Wrong(format!("the document has no usable service of type {SERVICE_TYPE}")));
    }
    for ServiceEntry { url, relays } in entries {
        if json {
            out!("{}", json!({ "did": did, "url": url, "relays": relays }));
            continue;
        }
        let mut words: Vec<String> = url.into_iter().flat_map(|url| ["--service".to_owned(), url]).collect();
        words.extend(relays.into_iter().flat_map(|relay| ["--relay".to_owned(), relay]));
        words.extend(["--service-did".to_owned(), did.to_string()]);
        out!("{}", shell::line(&words));
    }
    Ok(())
}
