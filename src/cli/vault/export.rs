//! `vault export`: the backup of a member's vault.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use serde_json::json;

use super::{SourceArgs, VaultFailure, complete};
use crate::{
    actors::runtime::Clock,
    passphrase,
    protocol::did::Did,
    vault::{
        VaultDocument,
        backups::{Backup, Backups, Export},
        verify::{Verification, verify},
    },
};

#[derive(Debug, Args)]
#[command(after_help = "\
The file has everything of the vault that cannot be had again, SMT nonces included: every record, every update that was prepared \
without a cohort, and what `vault recover` found. It is written completely or not at all, read back and compared, and every map, proof \
and update is verified; only then success is printed (exit status 0), and the time is recorded in the state directory, so that `check` \
can warn when something was added since. Of an update that starts from a document to which the vault does not lead, only its form is \
verified, not its signature: it is counted as \"in part only\". Exit status 1: the file is there, but an entry is damaged or breaks a \
rule, as stated.

Make one after every round, also while `join` runs, and store it elsewhere. It contains no secret key, but shows what the DID \
announced or may announce: --encrypt encrypts it.")]
pub(super) struct ExportArgs {
    /// Write to this file, which must not exist yet, instead of standard output
    #[arg(value_name = "FILE", conflicts_with = "out")]
    file: Option<PathBuf>,
    #[command(flatten)]
    sources: SourceArgs,
    /// This DID's entries only
    #[arg(long, value_name = "DID")]
    did: Option<Did>,
    /// The same as FILE
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Encrypt the file with a passphrase, from BTCR2_PASSPHRASE or a prompt, as an age file
    #[arg(long)]
    encrypt: bool,
    /// Leave out records that break a rule, e.g. those of version 0.1, which no resolver accepts
    #[arg(long)]
    skip_invalid: bool,
    /// Print one JSON object about the file
    #[arg(long)]
    json: bool,
}

pub(super) async fn export(args: &ExportArgs) -> Result<ExitCode, VaultFailure> {
    let at = Clock::system().now();
    let mut contents = args.sources.sources().read().await?.only(args.did.as_ref());
    let damaged = std::mem::take(&mut contents.problems);
    if args.skip_invalid {
        let verification = verify(&contents);
        for invalid in &verification.invalid {
            err!("warning: left out: {invalid}");
        }
        contents = contents.without_invalid(&verification);
    }
    if contents.is_empty() {
        let of = args.did.as_ref().map_or_else(String::new, |did| format!(" of {did}"));
        err!("warning: nothing is stored{of}: the export is empty");
    }
    let document = VaultDocument::new(contents, at);
    let Some(path) = args.file.as_ref().or(args.out.as_ref()) else {
        if args.encrypt {
            return Err(VaultFailure::NoFile);
        }
        out!("{}", document.to_json()?);
        return Ok(complete(&damaged));
    };
    let passphrase =
        args.encrypt.then(|| passphrase::new_passphrase("Passphrase for the new file: ")).transpose()?;
    document.write(path, passphrase)?;
    // What was read back is equal to it.
    let (hash, contents) = (document.hash, document.into_contents());
    let Verification { invalid, unverified } = verify(&contents);
    for invalid in &invalid {
        err!("error: {invalid}: a restoration refuses it, see --skip-invalid");
    }
    for part in &unverified {
        err!(
            "note: {part} could be verified in part only: the vault does not lead to the document that its update starts from"
        );
    }
    let counts = [contents.entries.len(), contents.prepared.len(), contents.recovered.len()];
    let is_sound = invalid.is_empty() && damaged.is_empty();
    let verified = counts.iter().sum::<usize>().saturating_sub(unverified.len() + invalid.len());
    if let Some(hash) = hash
        && is_sound
    {
        let exports = Export::of(&contents, hash, at);
        for directory in &args.sources.states {
            if let Err(error) = record(directory, &exports) {
                let directory = directory.display();
                err!(
                    "warning: the export could not be recorded in {directory}, so that `check` does not know it: {error}"
                );
            }
        }
    }
    let path = path.display().to_string();
    if args.json {
        let [entries, prepared, recovered] = counts;
        out!(
            "{}",
            json!({
                "file": path, "verified": is_sound && unverified.is_empty(), "encrypted": args.encrypt, "exportedAt": at.to_date(), "hash": hash,
                "entries": entries, "prepared": prepared, "recovered": recovered, "unverified": unverified.len(),
                "invalid": invalid.len(), "damaged": damaged.len(),
            })
        );
    } else {
        let encrypted = if args.encrypt { ", encrypted" } else { "" };
        let state = match (is_sound, unverified.len()) {
            (false, _) => "NOT verified, see standard error".to_owned(),
            (true, 0) => "read back and verified".to_owned(),
            (true, partly) => format!("read back: {verified} verified, {partly} in part only"),
        };
        out!("{} written to {path}{encrypted}, {state}", counted(counts));
    }
    let status = complete(&damaged);
    Ok(if is_sound { status } else { ExitCode::FAILURE })
}

/// What a vault has, for people.
fn counted([entries, prepared, recovered]: [usize; 3]) -> String {
    let mut text = format!("{entries} entries");
    for (count, what) in [(prepared, "updates without a cohort"), (recovered, "recovered documents")] {
        if count > 0 {
            text += &format!(", {what}: {count},");
        }
    }
    text
}

fn record(directory: &Path, exports: &BTreeMap<Did, Export>) -> io::Result<()> {
    Backups::change(directory, |backups| {
        for (did, export) in exports {
            let backup: &mut Backup = backups.entry(did.clone()).or_default();
            backup.export = Some(export.clone());
        }
    })
}
