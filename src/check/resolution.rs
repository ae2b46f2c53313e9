//! Whether the DID resolves, with as many confirmations as are asked for and with one; and whether the vault alone has the data.

use std::collections::BTreeSet;

use ::bitcoin::Txid;

use super::{ChainView, Code, Finding, Report, View};
use crate::{
    check::Status,
    protocol::{
        did::Genesis,
        jcs,
        resolution::{
            BeaconKind, BeaconSignal, ErrorCode, Event, Finding as Announced, Missing, MissingData, Resolution,
            ResolutionError, Source,
        },
    },
    vault::{RecoveredKind, VaultContents},
};

pub(super) fn evaluate(view: &View<'_>, chain: &ChainView, report: &mut Report) {
    let min_conf = view.terms.min_conf;
    for problem in &chain.problems {
        report.add(
            Finding::warning(Code::Store, format!("a content store failed: {problem}"))
                .advice("what it may have counts as missing here: check --cas"),
        );
    }
    let settled: Vec<Missing> = chain.settled.missing().collect();
    match &chain.settled.outcome {
        Ok(resolved) => {
            let metadata = resolved.metadata;
            let (version, confirmations) = (metadata.version_id, metadata.confirmations);
            (report.version, report.confirmations) = (Some(version), Some(confirmations));
            report.deactivated = metadata.deactivated;
            let made = match version {
                1 => "the initial document".to_owned(),
                _ => format!("{confirmations} confirmations"),
            };
            let text = format!("the DID resolves: version {version}, {made}");
            report.add(Finding::ok(Code::Resolves, text).version(version));
            if metadata.deactivated {
                let text = format!(
                    "the DID is deactivated by version {version}: no update of it counts any more, but resolvers need the data of all \
                     signals to see that"
                );
                report.add(Finding::ok(Code::Deactivated, text).version(version).advice("go on keeping the vault"));
            }
        }
        Err(error) => does_not_resolve(error, &settled, report),
    }
    young(chain, &settled, min_conf, report);
    if let Some(next) = &chain.next {
        unconfirmed(chain, next, report);
    }
    if let Some(vault) = view.vault {
        not_in_vault(view, chain, vault, report);
    }
}

/// The signals for which data is missing, each once: the problem, and who may have it.
fn does_not_resolve(error: &ResolutionError, missing: &[Missing], report: &mut Report) {
    if error.code() == ErrorCode::InternalError {
        let text = format!("the chain cannot be read: {error}");
        report.add(
            Finding::new(Code::Chain, Status::Unknown, text)
                .advice("nothing is known of the DID until the chain answers: check --chain, and the node"),
        );
        return;
    }
    let advice = match error {
        ResolutionError::Missing(_) => {
            "find what is missing, as stated below; what later documents need is known only then"
        }
        ResolutionError::GenesisMissing { .. } => {
            "give the genesis document: --identity FILE, --sidecar FILE, --state DIR or --cas STORE"
        }
        ResolutionError::Conflict { .. }
        | ResolutionError::VersionGap { .. }
        | ResolutionError::InvalidUpdate { .. } => {
            "what is announced cannot be taken back: `resolve DID --explain` shows which signals make it so"
        }
        _ => "`resolve DID --explain` shows every signal, and what is wrong with its data",
    };
    let text = format!("the DID does not resolve: {}: {error}", error.code());
    report.add(Finding::problem(Code::DoesNotResolve, text).state(error.code()).advice(advice));
    for missing in missing {
        report.add(about(missing, Finding::problem(Code::MissingData, text_of(missing))));
    }
}

/// What to do where the data is wrong, and not what is announced.
const WRONG_DATA: &str = "the data at hand is wrong, e.g. another member's SMT proof: find the DID's own, as for missing data (a backup of the \
                          vault, your file of `join --out`)";

/// Whether other data could help: everything else follows from what is announced.
const fn is_of_data(error: &ResolutionError) -> bool {
    matches!(error, ResolutionError::SmtProof { .. } | ResolutionError::OtherHash { .. })
}

/// What signals change that do not count yet.
fn young(chain: &ChainView, settled: &[Missing], min_conf: u32, report: &mut Report) {
    let version = chain.settled.outcome.as_ref().ok().map(|resolved| resolved.metadata.version_id);
    match &chain.young.outcome {
        Ok(young) if version.is_some_and(|version| young.metadata.version_id > version) => {
            let metadata = young.metadata;
            let (version, confirmations) = (metadata.version_id, metadata.confirmations);
            let ends = if metadata.deactivated { ", which deactivates the DID" } else { "" };
            let text = format!(
                "version {version}{ends} is in a block, with {confirmations} of {min_conf} confirmations; its data is at hand"
            );
            report.add(Finding::ok(Code::YoungVersion, text).version(version));
        }
        Ok(_) => {}
        Err(ResolutionError::Missing(_)) => {
            let known: BTreeSet<_> = settled.iter().map(|missing| missing.signal.txid).collect();
            for missing in chain.young.missing().filter(|missing| !known.contains(&missing.signal.txid)) {
                let confirmations = missing.signal.block.confirmations;
                let text = format!(
                    "{}. It has {confirmations} of {min_conf} confirmations: with the last of them the DID stops to resolve",
                    text_of(&missing)
                );
                report.add(about(&missing, Finding::warning(Code::YoungMissingData, text)));
            }
        }
        // Reported already, unless only young signals cause it.
        Err(error) if chain.settled.outcome.is_ok() && error.code() == ErrorCode::InternalError => {
            report.add(Finding::new(Code::Chain, Status::Unknown, format!("the chain cannot be read: {error}")));
        }
        Err(error) if chain.settled.outcome.is_ok() => {
            let text = format!(
                "the DID will not resolve any more when its newest signals have {min_conf} confirmations: {}: {error}",
                error.code()
            );
            let advice = match is_of_data(error) {
                false => {
                    "only a reorganization of the chain could prevent it: `resolve DID --min-conf 1 --explain` shows the signal"
                }
                true => WRONG_DATA,
            };
            report.add(Finding::problem(Code::WillNotResolve, text).state(error.code()).advice(advice));
        }
        Err(_) => {}
    }
}

fn text_of(missing: &Missing) -> String {
    let BeaconSignal { beacon, txid, block, .. } = &*missing.signal;
    format!("missing for transaction {txid} in block {}, a signal of {beacon}: {}", block.height, missing.data)
}

fn about(missing: &Missing, finding: Finding) -> Finding {
    let BeaconSignal { beacon, txid, block, .. } = &*missing.signal;
    finding.address(beacon.address.to_string()).txid(*txid).height(block.height).advice(who_may_have(missing.data))
}

/// Who may have missing data, and how it is given.
pub(crate) fn who_may_have(data: MissingData) -> &'static str {
    match data {
        MissingData::Update { .. } => {
            "a backup of the vault (`vault import`), a file of `update --out`, `singleton` or `join --out` (--sidecar), or a store that \
             the cohort published to (--cas)"
        }
        MissingData::Announcement { .. } => {
            "a backup of the vault (`vault import`), any other member's vault or file (--sidecar), the operator's results directory, \
             or a store that the cohort published to (--cas)"
        }
        MissingData::SmtProof { .. } => {
            "a backup of the vault (`vault import`) or your file of `join --out` (--sidecar); otherwise only the service that built \
             the tree can have your proof and its nonce: ask its operator. No store and no other member has it"
        }
        MissingData::AnnouncementEntry { .. } => "nothing helps: the announcement itself is wrong about this DID",
        _ => "its controller, or the operator of the cohort",
    }
}

/// What the signals in the mempool change when they are in a block: a resolver's own answer.
fn unconfirmed(chain: &ChainView, next: &Resolution, report: &mut Report) {
    let waiting = |txid: &Txid| chain.unconfirmed.iter().any(|signal| signal.txid == *txid);
    for missing in next.missing().filter(|missing| waiting(&missing.signal.txid)) {
        let BeaconSignal { beacon, txid, bytes, .. } = &*missing.signal;
        let text = format!(
            "transaction {txid} in the mempool announces the signal {bytes} of {beacon}, and this is missing for it: {}. Once it is \
             confirmed the DID does not resolve without it",
            missing.data
        );
        report.add(
            Finding::warning(Code::UnconfirmedMissingData, text)
                .address(beacon.address.to_string())
                .txid(*txid)
                .advice(who_may_have(missing.data)),
        );
    }
    match &next.outcome {
        // Reported already, unless only the mempool causes it.
        Err(error) if chain.young.outcome.is_ok() => match error {
            ResolutionError::Missing(_) => {}
            error if error.code() == ErrorCode::InternalError => {
                report.add(Finding::new(
                    Code::Chain,
                    Status::Unknown,
                    format!("the chain cannot be read: {error}"),
                ));
            }
            error => {
                let text = format!(
                    "the DID will not resolve any more when what is in the mempool is confirmed: {}: {error}",
                    error.code()
                );
                let advice = match is_of_data(error) {
                    false => {
                        "only another transaction that spends its coin first could prevent it: if the coin is yours, spend it with a higher \
                         fee (not by `singleton bump`, which announces the same); otherwise ask the operator of the cohort now"
                    }
                    true => WRONG_DATA,
                };
                report.add(Finding::problem(Code::WillNotResolve, text).state(error.code()).advice(advice));
            }
        },
        _ => {}
    }
}

/// The hashes of all documents that the vault has of one DID, and the roots of its SMT proofs.
pub(crate) fn hashes(vault: &VaultContents) -> BTreeSet<[u8; 32]> {
    let mut hashes = BTreeSet::new();
    for entry in &vault.entries {
        // The hash of the announcement, or the root.
        hashes.insert(*entry.record.signal.as_bytes());
        hashes.extend(entry.record.update.as_ref().map(|update| *update.hash().as_bytes()));
        let genesis = entry.genesis_document.as_ref().and_then(|document| jcs::document_hash(document).ok());
        hashes.extend(genesis.map(|hash| *hash.as_bytes()));
    }
    hashes.extend(vault.prepared.iter().map(|update| *update.hash().as_bytes()));
    for recovered in &vault.recovered {
        hashes.extend(match recovered.kind {
            RecoveredKind::SmtProof => {
                let root = recovered.data.get("id").and_then(|id| id.as_str()?.parse().ok());
                root.map(|root: crate::protocol::hash::SmtHash| *root.as_bytes())
            }
            _ => jcs::document_hash(&recovered.data).ok().map(|hash| *hash.as_bytes()),
        });
    }
    hashes
}

/// Data that resolves the DID now, and that only others have.
fn not_in_vault(view: &View<'_>, chain: &ChainView, vault: &VaultContents, report: &mut Report) {
    let held = hashes(vault);
    let advice = "store it in the vault: `vault recover` with the same --chain, --cas and --sidecar; others need not store it";
    let external = matches!(view.did.genesis(), Genesis::External(_));
    let has_genesis = vault.entries.iter().any(|entry| entry.genesis_document.is_some())
        || vault.recovered.iter().any(|recovered| recovered.kind == RecoveredKind::GenesisDocument);
    // The identity file of an EXTERNAL DID has it.
    if external && !has_genesis && view.keys.is_none() && !chain.young.history.is_empty() {
        report
            .add(Finding::warning(Code::NotInVault, "the vault does not have the genesis document").advice(advice));
    }
    for event in &chain.young.history {
        let Event::Signal { signal, finding, announcement, update, .. } = event else { continue };
        let bytes = *signal.bytes.as_bytes();
        let lacks_announcement = signal.beacon.kind != BeaconKind::Singleton && !held.contains(&bytes);
        let lacks_update = matches!(finding, Announced::Update { hash, .. } if !held.contains(hash.as_bytes()));
        let is_found = matches!(finding, Announced::Update { .. } | Announced::NoEntry);
        if !is_found || !(lacks_announcement || lacks_update) {
            continue;
        }
        let what = match (lacks_announcement, signal.beacon.kind) {
            (true, BeaconKind::Smt) => "the SMT proof",
            (true, _) => "the CAS Announcement",
            (false, _) => "the update",
        };
        let from = if lacks_announcement { announcement } else { update };
        let from = match from {
            Some(Source::Sidecar) | None => "a file".to_owned(),
            Some(source) => source.to_string(),
        };
        let text = format!(
            "{what} for transaction {} in block {} is not in the vault, only in {from}",
            signal.txid, signal.block.height
        );
        report.add(
            Finding::warning(Code::NotInVault, text)
                .address(signal.beacon.address.to_string())
                .txid(signal.txid)
                .height(signal.block.height)
                .advice(advice),
        );
    }
}
