//! What the control socket answers about one update and one DID: what the update changes, the document as resolvers give it, and its health.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    config::MemberConfig,
    queue::{Item, Queue},
    settling::Seed,
};
use crate::{
    actors::runtime::Clock,
    bitcoin::chain::ChainSource,
    cas::Cas,
    check::{self, Inspector},
    controller::{Current, CurrentError, Keys, diff},
    protocol::{beacon::did_index, did::Did, jcs, key::PublicKey, patch::Patch},
    resolve::Given,
    standing::controller::ControlledDid,
    vault,
};

/// How long a chain may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many blocks before a timelock passes a check warns, as that of `check`.
const WARN_BLOCKS: u32 = 144;

/// How a DID is checked.
#[derive(Clone)]
pub(super) struct Checking {
    pub(super) source: ChainSource,
    pub(super) stores: Vec<Arc<dyn Cas>>,
    pub(super) min_conf: u32,
    pub(super) directory: PathBuf,
}

impl Checking {
    /// As the agent is configured.
    pub(super) fn of(config: &MemberConfig) -> Self {
        Self {
            source: config.chain.source.clone(),
            stores: config.stores.clone(),
            min_conf: config.min_conf,
            directory: config.state.clone(),
        }
    }
}

fn seed_of<'a>(seeds: &'a [Seed], did: &Did) -> Result<&'a Seed, String> {
    let index = did_index(did);
    let found = seeds.iter().find(|seed| seed.controller.indexes().contains_key(&index));
    found.ok_or_else(|| format!("{did} is not a DID of this member"))
}

async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, String> {
    tokio::time::timeout(PATIENCE, work).await.map_err(|_| "the chain has not answered in time".to_owned())
}

/// An update, what it changes, and in which lines the documents differ.
pub(super) async fn update(seeds: &[Seed], queue: &Queue, id: u64) -> Result<Value, String> {
    let item = queue.list().into_iter().find(|item| item.id == id);
    let item = item.ok_or_else(|| format!("there is no update {id} in the queue"))?;
    let mut shown = item.summary();
    shown["change"] = json!(item.change);
    shown["patch"] = item.update.value().get("patch").cloned().unwrap_or_default();
    let current = match seed_of(seeds, &item.did) {
        Ok(seed) => in_time(seed.controller.current(&item.did)).await?.map_err(|error| error.to_string()),
        Err(problem) => Err(problem),
    };
    match current.and_then(|current| Ok((difference(&item, &current)?, current))) {
        Ok((lines, current)) => {
            shown["from"] = json!(current.version.to_string());
            shown["diff"] = json!(lines);
        }
        Err(problem) => shown["problem"] = json!(problem),
    }
    Ok(shown)
}

/// The lines in which the document that the update leads to differs from the current one.
fn difference(item: &Item, current: &Current) -> Result<String, String> {
    let is_applied = current.applied.iter().any(|applied| applied.hash == *item.update.hash());
    if is_applied {
        return Err(format!("it is in the document: resolvers return version {}", current.version));
    }
    let update = item.update.value();
    let hash = jcs::document_hash(&current.document).map_err(|error| error.to_string())?;
    if update["sourceHash"] != json!(hash) {
        return Err(format!(
            "it starts from another document than the current one, of version {}; before it is submitted the same change is made on \
             that one, if it can be",
            current.version
        ));
    }
    let patch = Patch::from_value(&update["patch"]).map_err(|error| error.to_string())?;
    let target = patch.apply(&current.document).map_err(|error| error.to_string())?;
    Ok(diff(&current.document, &target))
}

/// The document of a DID, as resolvers give it now.
pub(super) async fn document(seeds: &[Seed], did: &Did) -> Result<Value, String> {
    let seed = seed_of(seeds, did)?;
    let current = match in_time(seed.controller.current(did)).await? {
        Ok(current) => current,
        Err(CurrentError::Deactivated { version, .. }) => {
            return Ok(json!({ "did": did, "versionId": version.to_string(), "deactivated": true }));
        }
        Err(error) => return Err(error.to_string()),
    };
    let applied = current.applied.iter().map(|applied| {
        let signal = &applied.signal;
        json!({
            "versionId": applied.version.to_string(), "update": applied.hash, "txid": signal.txid, "beacon": signal.beacon.service,
        })
    });
    let mut shown = json!({
        "did": did, "versionId": current.version.to_string(), "deactivated": false, "document": current.document,
        "updates": applied.collect::<Vec<_>>(), "warnings": current.warnings,
    });
    if let Some(young) = &current.young {
        shown["young"] = json!({ "versionId": young.version.to_string(), "confirmations": young.confirmations });
    }
    if let Some(problem) = &current.unsettled {
        shown["unsettled"] = json!(problem);
    }
    Ok(shown)
}

/// All keys of a DID.
fn keys_of(controlled: &ControlledDid) -> Vec<PublicKey> {
    let later: Vec<PublicKey> = match &*controlled.keys {
        Keys::File(file, _) => file.later().iter().map(|later| later.key.public_key()).collect(),
        Keys::One(..) => Vec::new(),
    };
    std::iter::once(controlled.identity.public_key()).chain(later).collect()
}

/// The health of a DID, as `check` judges it.
pub(super) async fn check(seeds: &[Seed], checking: &Checking, did: &Did) -> Result<Value, String> {
    let seed = seed_of(seeds, did)?;
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let work = async {
        let current = seed.controller.current(did).await.ok();
        let controlled = current.and_then(|current| seed.controller.signer_of(did, &current));
        let mut given = Given::default();
        if let Some(sidecar) = seed.controller.sidecar(did) {
            given.add(sidecar, "the agent's directory").map_err(|error| failed(&error))?;
        }
        let chain = checking.source.connect(did.network()).await.map_err(|error| failed(&error))?;
        let vault = vault::Sources { states: vec![checking.directory.clone()], files: Vec::new() };
        let chain = (chain, checking.source.to_string());
        let keys = controlled.as_ref().map(keys_of);
        let mut inspector = Inspector::new(did.clone(), chain, checking.stores.clone(), given, vault, keys);
        let looked =
            inspector.look(Clock::system().now(), checking.min_conf).await.map_err(|error| failed(&error))?;
        let terms = check::Terms {
            min_conf: checking.min_conf,
            warn_blocks: WARN_BLOCKS,
            max_backup_age: None,
            superseded: Vec::new(),
            accepted: std::collections::BTreeSet::new(),
        };
        serde_json::to_value(check::evaluate(&looked.view(&terms))).map_err(|error| failed(&error))
    };
    in_time(work).await?
}
