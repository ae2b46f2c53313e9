//! `identity`: creates and shows identity files.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::json;

use super::fail;
use crate::{
    keyfile::{self, KeyFileError, Protection},
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
}

#[derive(Debug, Args)]
struct NewArgs {
    /// The Bitcoin network of the DID: bitcoin, signet, regtest, testnet3, testnet4 or mutinynet
    #[arg(long, value_name = "N", default_value = "regtest")]
    network: Network,
    /// Make an EXTERNAL DID of this genesis document instead of a KEY DID. Its id is `did:btcr2:_`; where its one
    /// verificationMethod has no publicKeyMultibase, the new key's is put there
    #[arg(long, value_name = "GENESIS.json")]
    external: Option<PathBuf>,
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
    };
    outcome.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

fn new(args: &NewArgs) -> Result<(), KeyFileError> {
    let secret = match &args.secret_env {
        Some(name) => keyfile::secret_from_env(name)?,
        None => SecretKey::generate(&mut ChaCha20Rng::from_os_rng()),
    };
    let genesis = args.external.as_deref().map(|path| keyfile::read_genesis(path, &secret)).transpose()?;
    if let (Some(path), Some(genesis)) = (&args.external, &genesis) {
        let concerns = document::genesis_concerns(genesis);
        if !concerns.is_empty() && !args.allow_risky_document {
            let problems: Vec<_> = concerns.iter().map(ToString::to_string).collect();
            return Err(KeyFileError::RiskyGenesis { path: path.clone(), problems: problems.join("; ") });
        }
    }
    let identity = keyfile::identity(secret, genesis, args.network)?;
    let passphrase = if args.encrypt {
        let prompt = "Passphrase for the new file: ";
        Some(keyfile::passphrase(prompt).ok_or_else(|| KeyFileError::PassphraseNeeded(args.out.clone()))?)
    } else {
        None
    };
    keyfile::write(&args.out, &identity, passphrase)?;
    out!("{}", identity.did());
    err!("written to {}: back it up, without it the DID cannot be updated", args.out.display());
    Ok(())
}

fn show(args: &ShowArgs) -> Result<(), KeyFileError> {
    let (identity, protection) = keyfile::read(&args.file, || keyfile::passphrase("Passphrase: "))?;
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
    }
    Ok(())
}
