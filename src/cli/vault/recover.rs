//! `vault recover`: what can still be had after the loss of a vault.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use serde_json::{Value, json};

use super::{
    super::{
        ChainArg,
        check::{CheckSources, Files},
        relay::trust,
        resolve::ResolveFailure,
    },
    VaultFailure,
    import::open,
};
use crate::{
    actors::{runtime::Clock, state::State},
    check::{ChainView, Inspector, hashes, who_may_have},
    config::Period,
    error::ProgramError,
    protocol::{
        did::Did,
        hash::{DocumentHash, SmtHash},
        identity::Identity,
        resolution::{BeaconSignal, ErrorCode, Event, Finding, Missing, MissingData, ResolutionError},
        text::shown,
    },
    resolve::Given,
    storage,
    vault::{
        self, Recovered, VaultContents,
        backups::{Backup, Backups, Restoration},
        collect::{AtHand, Collected, Wanted, collect},
        inbox, read_open, recovered,
    },
};

#[derive(Debug, Args)]
#[command(after_help = "\
It resolves the DID from the chain with all that the content stores, the files and the state directory have, verifies what it finds by its \
hashes, and stores it in the state directory. Then it resolves the DID from the state directory alone. What cannot be had is named: the \
transaction, its block, what kind of data, and who may have it.

--service asks a service for the messages that still wait in the DID's inbox there: for a day after a round it may have the CAS Announcement \
and the SMT proof, even if `join` has received them. They are read only, and not confirmed. After that no service gives out the data of a \
round; its operator has it in its results directory (`serve --out`).

Use a backup first, if there is one (`vault import`): an SMT proof is in no store, and records of cohorts with their terms are in no \
store either. What cannot be recovered at all is which updates the lost vault had approved last: they may still be announced, and a second, \
different update of the same version ends the DID. Before you sign the next update, let every cohort end that you joined, and check that \
its coin is spent.

Exit status: 0 when the DID resolves with what is in the state directory, with --min-conf confirmations and with one; 1 when it does not; \
2 wrong call.")]
pub(super) struct RecoverArgs {
    /// The DID
    #[arg(value_name = "DID")]
    did: Did,
    /// Where to read the chain: core=http://user:password@host:port, core=http://host:port?cookie=PATH, or
    /// esplora=https://host/api
    #[arg(long, value_name = "KIND=URL", env = "BTCR2_CHAIN", hide_env_values = true)]
    chain: Option<ChainArg>,
    /// The state directory, which is made if it does not exist; no other program may use it
    #[arg(long, value_name = "DIR", env = "BTCR2_STATE")]
    state: PathBuf,
    /// Read what waits for the DID at the service with this base URL; needs --identity; may be given several times
    #[arg(long = "service", value_name = "URL")]
    services: Vec<String>,
    /// How long to wait for the messages of a service
    #[arg(long, value_name = "TIME", default_value = "10s", requires = "services")]
    service_wait: Period,
    /// Trust an https service by the certificates in this PEM file only
    #[arg(long, value_name = "FILE", requires = "services")]
    tls_ca: Option<PathBuf>,
    #[command(flatten)]
    sources: CheckSources,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The data of files and stores.
struct Sources<'a> {
    given: &'a Given,
    inspector: &'a Inspector,
    did: &'a Did,
}

impl AtHand for Sources<'_> {
    fn document(&self, kind: Wanted, hash: &DocumentHash) -> Option<Value> {
        let given = match kind {
            Wanted::Genesis => self.given.genesis_document(self.did).cloned(),
            Wanted::Update => self.given.update(hash).map(|update| update.value().clone()),
            Wanted::Announcement => self.given.announcement(hash).cloned(),
        };
        given.or_else(|| self.inspector.remembered(hash))
    }

    fn proofs(&self, root: &SmtHash) -> Vec<Value> {
        self.given.proofs(root).cloned().collect()
    }
}

pub(super) async fn recover(args: &RecoverArgs) -> Result<ExitCode, VaultFailure> {
    let did = &args.did;
    let source = args.chain.as_ref().ok_or(ResolveFailure::NoChain)?.source().map_err(ResolveFailure::from)?;
    let stores = args.sources.stores()?;
    let files = args.sources.files(did).await.map_err(|error| VaultFailure::Sources(Box::new(error)))?;
    let Files { given: mut files, keys, identity } = files;
    read_services(args, identity.as_ref(), &mut files).await?;
    let chain = source.connect(did.network()).await;
    let chain = chain.map_err(|error| VaultFailure::Chain(format!("{source}: {error}")))?;
    let mut inspector =
        Inspector::new(did.clone(), (chain, source.to_string()), stores, files, vault::Sources::default(), keys);
    let state = open(&args.state).await?;
    let outcome = recover_into(args, &state, &mut inspector).await;
    state.close().await;
    let Recovery { collected, alone, problems } = outcome?;
    Ok(report(args, &collected, &alone, &problems))
}

/// Adds what the services still have for the DID.
async fn read_services(
    args: &RecoverArgs,
    identity: Option<&Identity>,
    files: &mut Given,
) -> Result<(), VaultFailure> {
    if args.services.is_empty() {
        return Ok(());
    }
    let usage = |problem: String| VaultFailure::from(ProgramError::Usage(problem));
    let identity = identity.ok_or_else(|| {
        usage("--service: give --identity FILE, since an inbox is read with the key of its DID".to_owned())
    })?;
    let trust = trust(args.tls_ca.as_deref()).map_err(usage)?;
    for service in &args.services {
        let found = inbox::read(service, &trust, identity, args.service_wait.0).await;
        let found = found.map_err(|error| usage(format!("--service {error}")))?;
        match &found.problem {
            Some(problem) => err!("warning: --service {service}: {}", shown(problem)),
            None => err!("{service} has {} announcements and proofs for the DID", found.count),
        }
        let refuse = |error| VaultFailure::Chain(format!("{service}: {error}"));
        files.add(found.sidecar, service).map_err(refuse)?;
    }
    Ok(())
}

/// What was done.
struct Recovery {
    collected: Collected,
    /// What the chain shows with the data of the vault alone.
    alone: ChainView,
    /// The failures of stores, and of entries.
    problems: Vec<String>,
}

async fn recover_into(
    args: &RecoverArgs,
    state: &State,
    inspector: &mut Inspector,
) -> Result<Recovery, VaultFailure> {
    let (did, min_conf, now) = (&args.did, args.sources.min_conf, Clock::system().now());
    if let Some(owner) = storage::member_of(state).await?
        && owner != did.as_str()
    {
        let problem = format!("the state directory belongs to {owner}: give another --state DIR");
        return Err(ProgramError::Usage(problem).into());
    }
    let mut before = VaultContents::default();
    read_open(state, &mut before).await?;
    if let Some(other) = before.dids().into_iter().find(|other| other != did) {
        let problem = format!("the state directory has data of {other}: give another --state DIR");
        return Err(ProgramError::Usage(problem).into());
    }
    let before = before.only(Some(did));
    let mut given = inspector.files().clone();
    let refuse = |error| VaultFailure::Chain(format!("the vault: {error}"));
    given.add_vault(&before, did, "the state directory").map_err(refuse)?;
    let view = inspector.read(&given, now, min_conf).await.map_err(VaultFailure::Chain)?;
    for resolution in [&view.settled, &view.young] {
        if let Err(error) = &resolution.outcome
            && error.code() == ErrorCode::InternalError
        {
            return Err(VaultFailure::Chain(error.to_string()));
        }
    }
    let collected = {
        let history = view.young.history.iter().chain(&view.settled.history);
        let at_hand = Sources { given: &given, inspector, did };
        collect(did, history, &hashes(&before), &at_hand)
    };
    if before.is_empty() {
        // Before the first write, and also if there is none: what the lost vault had approved last is not known from now on.
        record(&args.state, did).map_err(|error| VaultFailure::File { path: args.state.clone(), error })?;
    }
    for update in collected.updates.values() {
        // It is announced: no other one of its version is signed from now on.
        storage::prepare(state, update).await?;
    }
    let updates = collected.updates.values().map(|update| Recovered::update(did, update));
    for document in collected.documents.iter().cloned().chain(updates) {
        let refuse = |error: crate::actors::state::StateError| ProgramError::State(error.to_string());
        recovered::store(state, &document).await.map_err(refuse)?;
    }
    let after = contents(state, did).await?;
    let mut problems = view.problems;
    problems.extend(after.problems.iter().cloned());
    let mut given = Given::default();
    given.add_vault(&after, did, "the state directory").map_err(refuse)?;
    let alone = inspector.without_sources().read(&given, now, min_conf).await.map_err(VaultFailure::Chain)?;
    Ok(Recovery { collected, alone, problems })
}

async fn contents(state: &State, did: &Did) -> Result<VaultContents, VaultFailure> {
    let mut contents = VaultContents::default();
    read_open(state, &mut contents).await?;
    Ok(contents.only(Some(did)))
}

fn record(directory: &Path, did: &Did) -> std::io::Result<()> {
    Backups::change(directory, |backups| {
        let backup: &mut Backup = backups.entry(did.clone()).or_default();
        backup.restoration = Some(Restoration { at: Clock::system().now(), exported_at: None });
    })
}

/// Something that the vault still lacks.
struct Lost {
    text: String,
    advice: &'static str,
    json: Value,
}

/// Everything for which the vault has no data, each signal once.
fn lost(alone: &ChainView) -> Vec<Lost> {
    let mut seen = BTreeSet::new();
    let mut lost = Vec::new();
    for event in alone.young.history.iter().chain(&alone.settled.history) {
        match event {
            Event::Signal { signal, finding: Finding::Invalid { reason }, .. } => {
                if seen.insert(signal.txid) {
                    lost.push(Lost {
                        text: format!("{signal}: what was found is invalid: {}", shown(reason)),
                        advice: "find another copy: `resolve DID --explain`",
                        json: about(signal, "invalid", reason),
                    });
                }
            }
            event => {
                let Some(missing) = event.missing().filter(|missing| seen.insert(missing.signal.txid)) else {
                    continue;
                };
                lost.push(of_missing(&missing));
            }
        }
    }
    if let Err(ResolutionError::GenesisMissing { hash }) = &alone.settled.outcome {
        lost.push(Lost {
            text: format!("the genesis document {hash}"),
            advice: "the identity file has it (--identity), or a store (--cas): without it nothing of the DID is known",
            json: json!({ "data": "genesis-document", "hash": hash }),
        });
    }
    lost
}

fn of_missing(missing: &Missing) -> Lost {
    let BeaconSignal { beacon, txid, bytes, block, .. } = &*missing.signal;
    let (what, name, hash) = match missing.data {
        MissingData::Update { hash } => ("the update", "update", hash.to_string()),
        MissingData::Announcement { hash } => ("the CAS Announcement", "cas-announcement", hash.to_string()),
        MissingData::SmtProof { root } => ("the SMT proof, with its nonce,", "smt-proof", root.to_string()),
        _ => ("data", "other", missing.data.to_string()),
    };
    let mut json = about(&missing.signal, name, &hash);
    json["whoMayHaveIt"] = json!(who_may_have(missing.data));
    Lost {
        text: format!(
            "{what} {hash} for the signal {bytes}: transaction {txid}, block {}, of {beacon}",
            block.height
        ),
        advice: who_may_have(missing.data),
        json,
    }
}

fn about(signal: &BeaconSignal, data: &str, hash: &str) -> Value {
    let BeaconSignal { beacon, txid, bytes, block, .. } = signal;
    json!({
        "data": data, "hash": hash, "signal": bytes, "txid": txid, "height": block.height,
        "beacon": { "type": beacon.kind, "address": beacon.address.to_string() },
    })
}

fn report(args: &RecoverArgs, collected: &Collected, alone: &ChainView, problems: &[String]) -> ExitCode {
    for problem in problems {
        err!("warning: {}", shown(problem));
    }
    let lost = lost(alone);
    let resolved = alone.settled.outcome.as_ref().ok();
    let is_whole = resolved.is_some() && alone.young.outcome.is_ok();
    if args.json {
        let lost: Vec<_> = lost.iter().map(|lost| &lost.json).collect();
        out!(
            "{}",
            json!({
                "resolves": is_whole, "versionId": resolved.map(|resolved| resolved.metadata.version_id),
                "deactivated": resolved.is_some_and(|resolved| resolved.metadata.deactivated),
                "updates": collected.updates.len(), "documents": collected.documents.len(), "missing": lost,
            })
        );
    } else {
        out!(
            "stored in {}: {} updates, {} announcements, proofs or genesis documents, verified by their hashes",
            args.state.display(),
            collected.updates.len(),
            collected.documents.len()
        );
        for Lost { text, advice, .. } in &lost {
            out!("MISSING   {text}");
            out!("          -> {advice}");
        }
    }
    match (&alone.settled.outcome, &alone.young.outcome) {
        (Ok(resolved), Ok(_)) => {
            let (version, end) = match resolved.metadata.deactivated {
                true => (resolved.metadata.version_id, ", which deactivates it"),
                false => (resolved.metadata.version_id, ""),
            };
            err!("the DID resolves from the state directory alone: version {version}{end}");
        }
        (Ok(resolved), Err(error)) => {
            let version = resolved.metadata.version_id;
            err!(
                "error: the DID resolves to version {version} now, but not when its newest signals count: {error}"
            );
        }
        (Err(error), _) => {
            err!("error: the DID does not resolve from the state directory: {}: {error}", error.code());
            if !lost.is_empty() {
                err!("what later documents need is known only when this is there: run `vault recover` again then");
            }
        }
    }
    err!(
        "note: which updates the lost vault had approved last is not known. They may still be announced, and a second, different one \
         of their version would end the DID: before you sign the next update, let every cohort end that you joined"
    );
    if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
