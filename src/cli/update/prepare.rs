//! From the current document to the signed update.

use std::path::{Path, PathBuf};

use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::{Value, json};

use super::{
    super::resolve::{ResolveFailure, given},
    CommonArgs, UpdateArgs, UpdateFailure, Way, by_singleton,
    new_key::{self, NewKey},
    record::{Record, is_new},
    report::{self, Prepared},
    verbs::{Current, Plan},
};
use crate::{
    bitcoin::chain::BlockId,
    cas,
    controller::{self, Current as Resolved, Keys, places},
    inputs,
    member::{
        SIDECARS,
        control::Request,
        offline,
        queue::{Change, NewItem},
    },
    protocol::{
        did::Did,
        document,
        update::{Edit, SignedUpdate, UnsignedUpdate, UpdateError, build_update, sign_update},
    },
    resolve::{Given, Sources},
};

/// Prepares the update, gives it out and announces it if that is asked for. Whether the announcement is where it was to be.
pub(super) async fn run(args: &UpdateArgs) -> Result<bool, UpdateFailure> {
    check_call(args)?;
    let keys = new_key::read(&args.common, &args.did)?;
    let start = Start::open(args, &keys).await?;
    finish(args, keys, start, None).await
}

/// What an update starts from.
pub(super) struct Start {
    pub(super) sources: Sources,
    pub(super) given: Given,
    /// The block up to which the document was resolved, or an earlier one.
    pub(super) tip: BlockId,
    /// The current document.
    pub(super) document: Value,
    pub(super) version: u64,
}

impl Start {
    /// Resolves the DID.
    pub(super) async fn open(args: &UpdateArgs, keys: &Keys) -> Result<Self, UpdateFailure> {
        let sources = sources(args).await?;
        let mut given = sidecar_of(args).await?;
        if let Some(genesis) = keys.genesis_document() {
            let refuse = |error| ResolveFailure::Sidecar { path: keys.name().into(), error };
            given.add(json!({ "genesisDocument": genesis }), "the identity file").map_err(refuse)?;
        }
        let tip = sources.chain.tip().await;
        let tip = tip.map_err(|error| UpdateFailure::Unresolved(format!("{}: {error}", sources.chain_name)))?.block;
        let resolved = current(args, &sources, &given).await?;
        check_way(args, &resolved.document)?;
        Ok(Self { sources, given, tip, document: resolved.document, version: resolved.version })
    }
}

/// The update of `start`, given out and announced if that is asked for. Whether the announcement is where it was to be. `known` is
/// the patch of an update that was made before, in place of what the command asks for.
pub(super) async fn finish(
    args: &UpdateArgs,
    mut keys: Keys,
    start: Start,
    known: Option<Value>,
) -> Result<bool, UpdateFailure> {
    let UpdateArgs { did, common, .. } = args;
    let Start { sources, given, tip, document: source, version } = start;

    let signer = keys.signer(&source, version)?.0;
    let current = Current { did, document: &source, version, signer: &signer };
    let Plan { patch, edit, mut new_key, notes } = match (known, &args.patch, &args.verb) {
        (Some(patch), ..) => Plan { patch, edit: None, new_key: None, notes: Vec::new() },
        (None, Some(path), _) => {
            let patch = inputs::json(path).map_err(|error| UpdateFailure::Refused(error.to_string()))?;
            Plan { patch, edit: None, new_key: None, notes: Vec::new() }
        }
        (None, None, Some(verb)) => verb.plan(&current, &keys)?,
        (None, None, None) => return Err(nothing_to_do()),
    };
    let change = change_of(edit, &patch, &source)?;
    let unsigned = build_update(&source, version, patch).map_err(refused)?;
    check_document(args, &source, &unsigned)?;
    let (_, key) = keys.signer(&source, version)?;
    let mut update = sign_update(&unsigned, did, &signer, key, &mut ChaCha20Rng::from_os_rng()).map_err(refused)?;

    let record = match &common.state {
        Some(directory) if common.gives_out() => Some(Record::open(directory, did).await?),
        Some(directory) => Some(Record::read(directory, did).await?),
        None => None,
    };
    if let Some(record) = record {
        let kept = keep(args, &record, update, &mut keys, &mut new_key, &given).await;
        record.close().await;
        update = kept?;
    } else if common.gives_out() {
        store(&mut keys, &mut new_key)?;
    }

    // Not stored yet: it is generated again when the update is to leave this program.
    let key_is_new = new_key.as_ref().is_some_and(|new| new.stored.is_some());
    let prepared = Prepared {
        did,
        sidecar: given.with(did, &update),
        update,
        source: &source,
        version,
        target: unsigned.target_document(),
        signer: &signer,
        keys: &keys,
        notes: report::notes(common, notes, &source, unsigned.target_document(), &keys, key_is_new),
    };
    report::give_out(common, &prepared)?;
    if let Some(directory) = &common.queue {
        hand_over(common, directory, &prepared, change).await?;
    }
    if !common.announcement.send {
        return Ok(true);
    }
    by_singleton::send(common, &*sources.chain, tip, &given, &prepared).await
}

/// What an agent makes again on another document.
fn change_of(edit: Option<Edit>, patch: &Value, source: &Value) -> Result<Change, UpdateFailure> {
    match edit {
        Some(change) => Ok(Change::Edit { change }),
        None => Change::of_patch(patch.clone(), source).map_err(|error| UpdateFailure::Refused(error.to_string())),
    }
}

/// Puts the update into the queue of an agent.
async fn hand_over(
    common: &CommonArgs,
    directory: &Path,
    prepared: &Prepared<'_>,
    change: Change,
) -> Result<(), UpdateFailure> {
    let item = NewItem {
        did: prepared.did.clone(),
        change,
        update: prepared.update.clone(),
        allow_risky: common.allow_risky_document,
    };
    let queued = offline(directory, Request::Add { item: Box::new(item) }).await?;
    err!(
        "queued   as {} in {}: `member queue --state {}` shows how far it is",
        queued["id"],
        directory.display(),
        directory.display()
    );
    Ok(())
}

/// The Sidecar Data that an agent has of the DID.
fn sidecar_of_agent(directory: &Path, did: &Did) -> Option<PathBuf> {
    let path = directory.join(SIDECARS).join(format!("{}.json", did.as_str().replace(':', "_")));
    path.exists().then_some(path)
}

/// Refuses a wrong call before any request is made.
pub(super) fn check_call(args: &UpdateArgs) -> Result<(), UpdateFailure> {
    let UpdateArgs { patch, verb, common, .. } = args;
    let problem = match (patch, verb) {
        (Some(_), Some(_)) => "--patch and a command: give one of them".to_owned(),
        (None, None) => return Err(nothing_to_do()),
        _ if !common.supersede.is_empty() && common.state.is_none() => {
            "--supersede is about updates in a state directory: give --state DIR".to_owned()
        }
        _ if common.announcement.is_used() && !matches!(common.announce_by, Some(Way::Singleton)) => {
            "--send, --wait, --service and --fee-rate are about --announce-by singleton: give that too".to_owned()
        }
        _ if common.announcement.check().is_err() => common.announcement.check().err().unwrap_or_default(),
        _ if common.announce_by.is_some() && common.queue.is_some() => {
            "--queue and --announce-by: two announcements of a version would end the DID. Give one of them"
                .to_owned()
        }
        _ if common.announce_by.is_some() && common.out.is_none() => {
            "--announce-by needs the update in a file: give --out FILE".to_owned()
        }
        _ => match &common.out {
            Some(path) if path.exists() => {
                format!("--out {}: it exists, and an update is not overwritten: give another name", path.display())
            }
            _ => return Ok(()),
        },
    };
    Err(UpdateFailure::Refused(problem))
}

fn nothing_to_do() -> UpdateFailure {
    UpdateFailure::Refused(
        "what is to be changed? Give --patch FILE or a command, e.g. `rotate-key`: `update --help` lists them"
            .to_owned(),
    )
}

fn refused(error: UpdateError) -> UpdateFailure {
    UpdateFailure::Refused(format!("no resolver would accept the update: {error}"))
}

pub(super) async fn sources(args: &UpdateArgs) -> Result<Sources, UpdateFailure> {
    let source = args.common.chain.as_ref().ok_or(ResolveFailure::NoChain)?.source();
    let source = source.map_err(ResolveFailure::from)?;
    let stores = args.common.cas.iter().map(|location| location.store(cas::DEFAULT_TIMEOUT));
    let stores = stores.collect::<Result<_, _>>().map_err(ResolveFailure::from)?;
    let chain = source.connect(args.did.network()).await;
    let chain = chain.map_err(|error| UpdateFailure::Unresolved(format!("{source}: {error}")))?;
    Ok(Sources { chain, chain_name: source.to_string(), stores, max_addresses: usize::MAX })
}

async fn sidecar_of(args: &UpdateArgs) -> Result<Given, UpdateFailure> {
    let states: Vec<_> = args.common.state.iter().filter(|directory| !is_new(directory)).cloned().collect();
    let mut sidecars = args.common.sidecars.clone();
    sidecars.extend(args.common.queue.as_ref().and_then(|directory| sidecar_of_agent(directory, &args.did)));
    Ok(given(&sidecars, &states, &args.did).await?)
}

/// The current document. Refused if an update of the next version is in a block already.
async fn current(args: &UpdateArgs, sources: &Sources, given: &Given) -> Result<Resolved, UpdateFailure> {
    let min_conf = args.common.min_conf;
    let resolved = controller::current::current(sources, &args.did, given, min_conf).await?;
    for warning in &resolved.warnings {
        err!("warning: {warning}");
    }
    match (&resolved.young, &resolved.unsettled) {
        (Some(young), _) if args.common.queue.is_some() => {
            err!(
                "note: version {} is in a block, and not final yet: the agent waits, and makes the change on it",
                young.version
            );
            Ok(resolved)
        }
        (Some(young), _) => Err(UpdateFailure::Refused(format!(
            "an update to version {} is in a block, with {} of {min_conf} confirmations: another one of version {} would end \
             the DID. Wait, or start from that document: --min-conf 1",
            young.version,
            young.confirmations,
            resolved.version + 1
        ))),
        (None, Some(reason)) if !args.common.allow_risky_document => {
            Err(UpdateFailure::Refused(format!("{reason}; --allow-risky-document prepares this one all the same")))
        }
        (None, reason) => {
            reason.iter().for_each(|reason| err!("warning: {reason}"));
            Ok(resolved)
        }
    }
}

/// Refuses what no cohort can announce.
fn check_way(args: &UpdateArgs, source: &Value) -> Result<(), UpdateFailure> {
    if args.common.announce_by == Some(Way::Cohort) && places::of_cohorts(source, &args.did).is_empty() {
        return Err(UpdateFailure::Refused(
            "--announce-by cohort: the current document lists no beacon of a cohort (CASBeacon or SMTBeacon), so that \
             resolvers would not find the update. Announce it by a Singleton beacon (--announce-by singleton); `add-beacon \
             ADDRESS` adds a cohort's"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Refuses a document that ends the DID, and an update that changes nothing.
fn check_document(args: &UpdateArgs, source: &Value, unsigned: &UnsignedUpdate) -> Result<(), UpdateFailure> {
    let target = unsigned.target_document();
    if target == source {
        return Err(UpdateFailure::Refused(
            "the document would stay as it is: there is nothing to announce".to_owned(),
        ));
    }
    let concerns = document::concerns(source, target);
    if concerns.is_empty() || args.common.allow_risky_document {
        return Ok(());
    }
    let concerns: Vec<_> = concerns.iter().map(ToString::to_string).collect();
    Err(UpdateFailure::Refused(format!(
        "{}; an announcement cannot be taken back: --allow-risky-document if that is intended",
        concerns.join("; ")
    )))
}

/// The update that may leave this program by what the state directory knows, recorded there if it does.
async fn keep(
    args: &UpdateArgs,
    record: &Record<'_>,
    update: SignedUpdate,
    keys: &mut Keys,
    new_key: &mut Option<NewKey>,
    given: &Given,
) -> Result<SignedUpdate, UpdateFailure> {
    let genesis = given.genesis_document(&args.did);
    let initial = document::initial_document(&args.did, genesis)
        .map_err(|error| UpdateFailure::Unresolved(error.to_string()))?;
    let (update, settled) = record.settle(update, &initial, &args.common.supersede)?;
    if args.common.gives_out() {
        store(keys, new_key)?;
        record.add(&update, &settled).await?;
    }
    Ok(update)
}

/// The new secret key is on disk before the update that needs it leaves this program.
fn store(keys: &mut Keys, added: &mut Option<NewKey>) -> Result<(), UpdateFailure> {
    if new_key::store(keys, added)? {
        err!("the new key is in {}: back it up, without it the DID cannot be updated", keys.name());
    }
    Ok(())
}
