//! What may be restored into a state directory from an exported vault: everything is verified first, nothing that is known is
//! replaced by something older, and two different updates of one version are refused. [`plan`] is pure; `apply` writes.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Recovered, RecoveredKind, VaultContents, VaultDocument, recovered, target,
    verify::{Invalid, Part, Verification, verify},
};
use crate::{
    actors::state::{
        State,
        vault::{StateVault, Vault, VaultEntry, VaultError, VaultKey},
    },
    error::ProgramError,
    protocol::{did::Did, hash::DocumentHash, id::CohortId, update::SignedUpdate},
    storage,
};

/// The name that stands for the cohort of an update that is announced without one, as in `--supersede`.
const ALONE: &str = "singleton";

/// Why a vault is not restored. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A part of the file breaks a rule.
    #[error("{0}; it was changed, mixed up, or is of an old version. --skip-invalid restores the others")]
    Invalid(Invalid),
    /// The file has nothing that could be restored.
    #[error("the file has nothing of {0}")]
    NothingOf(Did),
    /// The file has nothing.
    #[error("the file has no entries")]
    Nothing,
    /// The file has several DIDs, and a state directory is one DID's.
    #[error(
        "the file has entries of several DIDs, and a state directory belongs to one: choose one with --did: {0}"
    )]
    SeveralDids(String),
    /// The directory is another DID's.
    #[error(
        "the state directory belongs to {owner}, or has data of it, and the file has entries of {found}: give another --state DIR"
    )]
    OtherDid {
        /// Of the directory.
        owner: String,
        /// Of the file.
        found: Did,
    },
    /// The directory has another record of the same cohort.
    #[error(
        "the state directory and the file have different records of {did} in cohort {cohort_id}: a signal has one, so one of them \
         is wrong. Restore into an empty directory, and compare both with the chain: `check`"
    )]
    Record {
        /// The member.
        did: Did,
        /// The cohort.
        cohort_id: CohortId,
    },
    /// There are two different updates of one version.
    #[error(
        "two different updates of version {version} of {did} may be announced: one {}, the other {}. Two of them end the DID. \
         If one will never be announced: --supersede COHORT (`singleton` for one that was prepared without a cohort)",
        place(.first),
        place(.second)
    )]
    Contradiction {
        /// The DID.
        did: Did,
        /// The version to which both lead.
        version: u64,
        /// The cohort of one; `None` where it was prepared without a cohort.
        first: Option<CohortId>,
        /// That of the other.
        second: Option<CohortId>,
    },
}

fn place(cohort_id: &Option<CohortId>) -> String {
    match cohort_id {
        Some(cohort_id) => format!("in cohort {cohort_id}"),
        None => "without a cohort (`singleton`)".to_owned(),
    }
}

/// What is to be decided.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Restore this DID's entries only.
    pub did: Option<&'a Did>,
    /// The DID to which the state directory belongs, if `join` has used it.
    pub owner: Option<&'a str>,
    /// The cohorts whose updates will never be announced, according to the controller.
    pub superseded: &'a [CohortId],
    /// Leave out invalid parts, instead of refusing the whole.
    pub skips_invalid: bool,
}

/// What is to be written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Entries that are new, or that have more than the stored one.
    pub entries: Vec<VaultEntry>,
    /// Updates that were prepared without a cohort, and are new.
    pub prepared: Vec<SignedUpdate>,
    /// Whether the directory's list of prepared updates is damaged, and the file's is stored in its place.
    pub replaces_prepared: bool,
    /// Recovered documents that are new.
    pub recovered: Vec<Recovered>,
    /// How many parts of the file are there already, with the same or newer contents.
    pub known: usize,
    /// The parts that are left out.
    pub skipped: Vec<Invalid>,
    /// The updates that could not be verified completely: see [`Verification::unverified`].
    pub unverified: Vec<Part>,
    /// The DIDs of what is restored.
    pub dids: BTreeSet<Did>,
}

impl Plan {
    /// How many parts are new, or have more than the stored ones.
    pub fn new_parts(&self) -> usize {
        self.entries.len() + self.prepared.len() + self.recovered.len()
    }
}

/// What restoring `document` beside `existing` changes.
///
/// # Errors
/// The first [`Refusal`].
pub fn plan(existing: &VaultContents, document: VaultDocument, terms: &Terms<'_>) -> Result<Plan, Refusal> {
    let mut incoming = document.into_contents().only(terms.did);
    let dids = incoming.dids();
    check_dids(&dids, terms)?;
    // Also without an owner: nothing that `join` has used, but another import or a recovery.
    if let Some(other) = existing.dids().into_iter().find(|did| !dids.contains(did))
        && let Some(found) = dids.first()
    {
        return Err(Refusal::OtherDid { owner: other.to_string(), found: found.clone() });
    }
    let verification = verify(&incoming);
    if let Some(first) = verification.invalid.first()
        && !terms.skips_invalid
    {
        return Err(Refusal::Invalid(first.clone()));
    }
    incoming = incoming.without_invalid(&verification);
    let Verification { invalid, unverified } = verification;
    let mut plan = Plan { dids, skipped: invalid, unverified, ..Plan::default() };
    let mut stored: BTreeMap<VaultKey, VaultEntry> =
        existing.entries.iter().map(|entry| (entry.key(), entry.clone())).collect();
    for entry in &incoming.entries {
        let Some(known) = stored.get(&entry.key()) else {
            stored.insert(entry.key(), entry.clone());
            plan.entries.push(entry.clone());
            continue;
        };
        // What is stored counts where both have something, e.g. the height after a reorganization.
        let refusal =
            || Refusal::Record { did: entry.record.did.clone(), cohort_id: entry.record.cohort_id.clone() };
        let merged = known.clone().over(entry.clone()).ok_or_else(refusal)?;
        if merged == *known {
            plan.known += 1;
        } else {
            stored.insert(merged.key(), merged.clone());
            plan.entries.push(merged);
        }
    }
    for update in &incoming.prepared {
        if existing.prepared.contains(update) { plan.known += 1 } else { plan.prepared.push(update.clone()) }
    }
    for one in &incoming.recovered {
        if existing.recovered.contains(one) { plan.known += 1 } else { plan.recovered.push(one.clone()) }
    }
    check_contradictions(existing, &incoming, &plan.dids, terms.superseded)?;
    Ok(plan)
}

fn check_dids(dids: &BTreeSet<Did>, terms: &Terms<'_>) -> Result<(), Refusal> {
    if dids.is_empty() {
        return Err(terms.did.map_or(Refusal::Nothing, |did| Refusal::NothingOf(did.clone())));
    }
    // One that has the owner among others is a matter of choosing.
    if let Some(owner) = terms.owner
        && !dids.iter().any(|did| did.as_str() == owner)
        && let Some(other) = dids.first()
    {
        return Err(Refusal::OtherDid { owner: owner.to_owned(), found: other.clone() });
    }
    if dids.len() > 1 {
        let names: Vec<_> = dids.iter().map(|did| did.as_str()).collect();
        return Err(Refusal::SeveralDids(names.join(", ")));
    }
    Ok(())
}

/// Refuses two different updates of one version of which the file has at least one: both may be announced.
fn check_contradictions(
    existing: &VaultContents,
    incoming: &VaultContents,
    dids: &BTreeSet<Did>,
    superseded: &[CohortId],
) -> Result<(), Refusal> {
    for did in dids {
        let mut by_version: BTreeMap<u64, Vec<(DocumentHash, Option<CohortId>)>> = BTreeMap::new();
        // The file's first: what only the directory has is not refused here.
        for (position, contents) in [incoming, existing].into_iter().enumerate() {
            for (update, cohort_id) in updates(contents, did) {
                let named = cohort_id.map_or(ALONE, CohortId::as_str);
                // What was found announced is not one that was prepared, and never announced.
                let is_announced = cohort_id.is_none()
                    && [incoming, existing].iter().any(|contents| contents.was_recovered(update.hash()));
                if !is_announced && superseded.iter().any(|superseded| superseded.as_str() == named) {
                    continue;
                }
                let (Some(version), Ok(unsigned)) = (update.target_version(), update.unsigned_hash()) else {
                    continue;
                };
                let known = by_version.entry(version).or_default();
                let other = known.iter().find(|(hash, _)| *hash != unsigned);
                if let Some((_, first)) = other {
                    let (did, first) = (did.clone(), first.clone());
                    return Err(Refusal::Contradiction { did, version, first, second: cohort_id.cloned() });
                }
                if position == 0 {
                    known.push((unsigned, cohort_id.cloned()));
                }
            }
        }
    }
    Ok(())
}

/// The updates of a DID that may be announced, with their cohorts.
fn updates<'a>(
    contents: &'a VaultContents,
    did: &'a Did,
) -> impl Iterator<Item = (&'a SignedUpdate, Option<&'a CohortId>)> {
    let of_cohorts =
        contents.of(did).filter_map(|entry| Some((entry.record.update.as_ref()?, Some(&entry.record.cohort_id))));
    let prepared = contents.prepared.iter().filter(move |update| target(update).as_ref() == Some(did));
    of_cohorts.chain(prepared.map(|update| (update, None)))
}

/// Writes what the plan has, each part durable before the next: after an interruption the same import completes it.
///
/// # Errors
/// When the directory cannot be written.
pub(crate) async fn apply(state: &State, plan: &Plan) -> Result<(), ProgramError> {
    let refuse = |error: VaultError| ProgramError::State(error.to_string());
    let vault = StateVault::new(state);
    for entry in &plan.entries {
        // A damaged one is replaced by its copy.
        vault.repair(entry.clone()).await.map_err(refuse)?;
        vault.put(entry.clone()).await.map_err(refuse)?;
    }
    // A list that is damaged is one that the file's replaces: the plan has all of the file's updates then.
    if plan.replaces_prepared {
        storage::replace_prepared(state, &plan.prepared).await?;
    }
    for update in &plan.prepared {
        storage::prepare(state, update).await?;
    }
    for one in &plan.recovered {
        // No other one of its version is signed from now on.
        if let RecoveredKind::Update = one.kind
            && let Ok(update) = SignedUpdate::from_value(one.data.clone())
        {
            storage::prepare(state, &update).await?;
        }
        recovered::store(state, one).await.map_err(|error| ProgramError::State(error.to_string()))?;
    }
    Ok(())
}
