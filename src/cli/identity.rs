//! `identity`: creates and shows identity files.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::{Args, Subcommand};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::{Value, json};

use super::{
    beacon::BeaconText,
    fail,
    service_entry::{self, ServiceEntryArgs},
};
use crate::{
    controller,
    keyfile::{self, KeyFile, KeyFileError, LaterKey, Protection},
    protocol::{document, key::SecretKey, network::Network},
};

#[derive(Debug, Args)]
pub(super) struct IdentityArgs {
    #[command(subcommand)]
    command: IdentityCommand,
}

#[derive(Debug, Subcommand)]
enum IdentityCommand {
    /// Make a key and write it, with its DID, to a file that only you can read
    New(NewArgs),
    /// Show the identity in a file; the secret is never shown
    Show(ShowArgs),
    /// Print the entry of a DID document by which others find the Aggregation Service, or read such entries
    ServiceEntry(ServiceEntryArgs),
}

#[derive(Debug, Args)]
struct NewArgs {
    /// The Bitcoin network of the DID: bitcoin, signet, regtest, testnet3, testnet4 or mutinynet
    #[arg(long, value_name = "N", default_value = "regtest")]
    network: Network,
    /// Make an EXTERNAL DID instead of a KEY DID: of this genesis document, or of one that is made for --beacon. The id of a
    /// genesis document is `did:btcr2:_`; where its one verificationMethod has no publicKeyMultibase, the new key's is put
    /// there
    #[arg(long, value_name = "GENESIS.json", num_args = 0..=1)]
    external: Option<Option<PathBuf>>,
    /// With --external: begin with this beacon, e.g. a cohort's, of type cas (unless stated), smt or singleton. Resolvers look
    /// there from the first block on, so that no transaction has to add it; may be given several times
    #[arg(long = "beacon", value_name = "ADDRESS[,TYPE]", requires = "external")]
    beacons: Vec<BeaconText>,
    /// With --beacon: list no Singleton beacon of the DID's own key. If the cohorts of all its beacons end, the DID can never
    /// be updated again
    #[arg(long, requires = "beacons")]
    no_singleton: bool,
    /// With --external: take a genesis document without a beacon or a usable key, with a beacon twice, or with a secret key
    #[arg(long, requires = "external")]
    allow_risky_document: bool,
    /// Where to write the file, which must not exist yet
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Encrypt the file with a passphrase, from BTCR2_PASSPHRASE or a prompt
    #[arg(long)]
    encrypt: bool,
    /// Take the secret key (64 hex characters) from this environment variable instead of making a new one
    #[arg(long, value_name = "VAR")]
    secret_env: Option<String>,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The identity file
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: &IdentityArgs) -> ExitCode {
    let outcome = match &args.command {
        IdentityCommand::New(args) => new(args),
        IdentityCommand::Show(args) => show(args),
        IdentityCommand::ServiceEntry(args) => {
            return service_entry::main(args).map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS);
        }
    };
    outcome.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

fn new(args: &NewArgs) -> Result<(), KeyFileError> {
    let secret = match &args.secret_env {
        Some(name) => keyfile::secret_from_env(name)?,
        None => SecretKey::generate(&mut ChaCha20Rng::from_os_rng()),
    };
    let genesis = match &args.external {
        None => None,
        Some(Some(path)) if args.beacons.is_empty() => Some(keyfile::read_genesis(path, &secret)?),
        Some(Some(path)) => {
            let path = path.display();
            return Err(KeyFileError::Beacon(format!(
                "makes the genesis document by itself: give --external without {path}, or write the beacon into {path}"
            )));
        }
        Some(None) if args.beacons.is_empty() => return Err(KeyFileError::NoGenesis),
        Some(None) => Some(genesis_of(&secret, args.network, &args.beacons, !args.no_singleton)?),
    };
    if let Some(genesis) = &genesis {
        let concerns = document::genesis_concerns(genesis);
        if !concerns.is_empty() && !args.allow_risky_document {
            let problems: Vec<_> = concerns.iter().map(ToString::to_string).collect();
            let path = args.external.clone().flatten().unwrap_or_else(|| "--beacon".into());
            return Err(KeyFileError::RiskyGenesis { path, problems: problems.join("; ") });
        }
    }
    let identity = keyfile::identity(secret, genesis, args.network)?;
    let passphrase = args.encrypt.then(|| keyfile::new_passphrase("Passphrase for the new file: ")).transpose()?;
    keyfile::write(&args.out, &identity, passphrase)?;
    out!("{}", identity.did());
    err!("written to {}: back it up, without it the DID cannot be updated", args.out.display());
    if args.beacons.is_empty() {
        return Ok(());
    }
    for service in services(identity.genesis_document()) {
        err!("beacon   {service}");
    }
    if args.no_singleton {
        err!(
            "warning: no Singleton beacon of the DID's own key is among them. If the cohorts of these beacons end, no update of"
        );
        err!("         the DID can be announced any more, not even one that adds another beacon");
    } else {
        err!(
            "note: the Singleton beacon belongs to the DID's own key. Through it the DID can move to another cohort when its cohort"
        );
        err!("      has ended; without one it could not (--no-singleton)");
    }
    Ok(())
}

/// A genesis document with the key, these beacons and a Singleton beacon of the key.
fn genesis_of(
    secret: &SecretKey,
    network: Network,
    beacons: &[BeaconText],
    singleton: bool,
) -> Result<Value, KeyFileError> {
    let listed = |beacon: &BeaconText| {
        let address = beacon.on(network).map_err(KeyFileError::Beacon)?;
        Ok((beacon.name(), beacon.kind(), address.to_string()))
    };
    let beacons: Vec<_> = beacons.iter().map(listed).collect::<Result<_, KeyFileError>>()?;
    Ok(controller::genesis_with(&secret.public_key(), network, &beacons, singleton))
}

/// The services of a genesis document, for people.
fn services(genesis: Option<&Arc<Value>>) -> impl Iterator<Item = String> {
    let services = genesis.and_then(|genesis| genesis["service"].as_array()).into_iter().flatten();
    services.map(|service| {
        let text = |field: &str| service[field].as_str().unwrap_or_default();
        let address = document::beacon_address(text("serviceEndpoint")).unwrap_or_default();
        format!("{} {address}", text("type"))
    })
}

fn show(args: &ShowArgs) -> Result<(), KeyFileError> {
    let file = KeyFile::read(&args.file, || keyfile::passphrase("Passphrase: "))?;
    let (identity, protection) = (&file.identity, file.protection);
    let did = identity.did();
    let kind = if did.key().is_some() { "KEY" } else { "EXTERNAL" };
    let encrypted = protection == Protection::Passphrase;
    if args.json {
        let mut shown = json!({
            "did": did,
            "type": kind,
            "network": did.network(),
            "publicKey": identity.public_key(),
            "verificationMethod": identity.verification_method(),
            "encrypted": encrypted,
        });
        let later = |later: &LaterKey| json!({ "publicKey": later.key.public_key(), "verificationMethod": later.verification_method, "forVersion": later.for_version });
        if !file.later().is_empty() {
            shown["laterKeys"] = file.later().iter().map(later).collect();
        }
        if let Some(document) = identity.genesis_document() {
            shown["genesisDocument"] = (**document).clone();
        }
        out!("{shown}");
    } else {
        out!("did           {did}");
        out!("type          {kind}");
        out!("network       {}", did.network());
        out!("public key    {}", identity.public_key());
        out!("method        {}", identity.verification_method());
        out!("encrypted     {}", if encrypted { "yes" } else { "no" });
        for LaterKey { verification_method, key, for_version } in file.later() {
            out!("later key     {} of version {for_version}, {verification_method}", key.public_key());
        }
    }
    Ok(())
}
