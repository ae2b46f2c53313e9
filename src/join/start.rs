//! What a member knows when it starts: what it has stored, and what a resolution shows.

use std::sync::Arc;

use serde_json::json;

use super::{
    JoinConfig, Making, MemberPolicy,
    ledger::{Ledger, Standing},
    memberships::Earlier,
};
use crate::{
    actors::state::vault::{Vault, VaultEntry},
    controller::{CurrentError, Resolving, places::Listing},
    error::ProgramError,
    events::Printer,
    protocol::resolution::beacons,
    storage::Storage,
    vault::{VaultContents, recovered},
};

/// The member's data in the state directory.
pub(super) async fn contents(config: &JoinConfig, storage: &Storage) -> Result<VaultContents, ProgramError> {
    let state = |error: &dyn std::fmt::Display| ProgramError::State(error.to_string());
    let mut contents = VaultContents::default();
    if let Some(vault) = storage.vault() {
        for key in vault.list(config.identity.did()).await.map_err(|error| state(&error))? {
            contents.entries.extend(vault.get(&key).await.map_err(|error| state(&error))?);
        }
    }
    contents.prepared = storage.prepared().await?;
    if let Some(open) = storage.state() {
        // The commands of the vault report what cannot be read of it.
        (contents.recovered, _) = recovered::read(open).await.map_err(|error| state(&error))?;
    }
    contents.settled = storage.settled().await?;
    Ok(contents)
}

/// The updates that may be announced. With a chain, a signed transaction counts when it is confirmed.
pub(super) fn ledger(config: &JoinConfig, contents: &VaultContents, earlier: &[Earlier]) -> Ledger {
    let signed = if config.chain.is_some() { Standing::Signed } else { Standing::Announced };
    let standing = |entry: &VaultEntry| match (entry.confirmed_height, entry.txid) {
        (Some(_), _) => Standing::Announced,
        (None, Some(_)) => signed,
        (None, None) => Standing::Approved,
    };
    let known = contents.entries.iter().map(|entry| (entry.clone(), standing(entry)));
    // The constructors of an identity have validated this document.
    let initial = config.identity.initial_document().unwrap_or_default();
    let ledger = Ledger::new(initial, config.superseded.clone(), contents.settled.clone(), known);
    ledger.without_cohort(contents);
    for session in earlier {
        if let Some(update) = &session.approved {
            ledger.approved(&session.cohort_id, update);
        }
        if session.seen {
            ledger.advance(&session.cohort_id, signed);
        }
    }
    ledger.loaded();
    ledger
}

/// How the member makes its update.
pub(super) fn making(config: &JoinConfig, contents: &VaultContents) -> Result<Making, ProgramError> {
    let did = config.identity.did();
    let resolving = match &config.chain {
        Some(chain) => {
            let mut given = config.given.clone();
            let refuse = |error| ProgramError::State(format!("{error}"));
            if let Some(document) = config.identity.genesis_document() {
                given.add(json!({ "genesisDocument": **document }), "the identity file").map_err(refuse)?;
            }
            given.add_vault(contents, did, "the state directory").map_err(refuse)?;
            let (source, stores) = (chain.source.clone(), config.publication.stores.clone());
            let min_conf = config.min_conf.unwrap_or(chain.confirmations).max(1);
            Some(Arc::new(Resolving::new(did.clone(), source, stores, min_conf, given)))
        }
        None => None,
    };
    Ok(Making {
        keys: Arc::clone(&config.keys),
        resolving,
        allow_unlisted: config.allow_unlisted,
        allow_risky: config.allow_risky,
        patience: config.timing.phase_timeout / 2,
        pause: config.chain.as_ref().map_or(super::ChainQuestions::POLL, |chain| chain.poll),
    })
}

/// Resolves the current document before the first cohort is joined, so that a member does not join for an update that it
/// could not submit. `Err` is the reason to end. A chain that does not answer is asked again when a cohort asks for the update.
pub(super) async fn resolve(
    config: &JoinConfig,
    policy: &MemberPolicy,
    earlier: &[Earlier],
    printer: &Printer,
) -> Result<Result<(), String>, ProgramError> {
    if !policy.resolves() {
        return Ok(Ok(()));
    }
    let did = config.identity.did();
    match policy.resolve_once().await {
        Ok(Some(current)) => {
            let listed: Vec<_> = beacons(&current.document, did.network()).into_iter().flatten().collect();
            printer.resolved(did, current.version, policy.min_conf(), &listed, &Listing(&listed).to_string());
            Ok(Ok(()))
        }
        Ok(None) => Ok(Ok(())),
        Err(CurrentError::Unusable(error)) => Err(ProgramError::Usage(format!("--chain: {error}"))),
        Err(error) => {
            let problem = match &error {
                CurrentError::Deactivated { .. } => format!("nothing is submitted: {error}"),
                error => format!("the current document is not known: {error}"),
            };
            let is_in_a_cohort = earlier.iter().any(|session| !session.ended);
            if !error.is_transient() && !is_in_a_cohort {
                return Ok(Err(problem));
            }
            printer.warn(&format!("{problem}; it is resolved again when a cohort asks for the update"));
            Ok(Ok(()))
        }
    }
}
