//! Verifies every record of a vault by the method's rules: what is in a file may have been changed, mixed up, or written by an
//! older version. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::Deserialize;
use serde_json::Value;

use super::{Recovered, RecoveredKind, VaultContents, target};
use crate::{
    actors::state::vault::VaultEntry,
    protocol::{
        beacon::{SmtProof, smt_index},
        did::{Did, Genesis},
        document,
        hash::DocumentHash,
        id::CohortId,
        update::{SignedUpdate, UpdateContext, UpdateError, verify_update, violations},
    },
};

/// A part of a vault.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The record of a cohort: the member, the service, and the cohort, whose name is the service's own.
    Record(Did, Did, CohortId),
    /// An update that was prepared without a cohort, or recovered.
    Prepared(DocumentHash),
    /// A recovered document.
    Recovered(Did, DocumentHash),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(did, service, cohort_id) => {
                write!(f, "the record of {did} in cohort {cohort_id} of {service}")
            }
            Self::Prepared(hash) => write!(f, "the update {hash} that was prepared without a cohort"),
            Self::Recovered(did, hash) => write!(f, "the recovered document {hash} of {did}"),
        }
    }
}

/// A part that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part}: {problem}")]
pub struct Invalid {
    /// The part.
    pub part: Part,
    /// The rule, in words.
    pub problem: String,
}

/// The result of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// The parts that break a rule; the others break none, as far as they can be verified without the chain.
    pub invalid: Vec<Invalid>,
    /// Updates whose source document the vault does not lead to, e.g. because another update of that version was announced. Of
    /// these only the form and the contexts are verified, the fields of the proof, and that the cohort's data commits to them; not
    /// the signature, and not what the patch makes.
    pub unverified: Vec<Part>,
}

impl Verification {
    /// Whether this part breaks a rule.
    pub fn is_invalid(&self, part: &Part) -> bool {
        self.invalid.iter().any(|invalid| invalid.part == *part)
    }
}

impl VaultContents {
    /// Without the parts that break a rule.
    #[must_use]
    pub fn without_invalid(mut self, verification: &Verification) -> Self {
        self.entries.retain(|entry| !verification.is_invalid(&part_of(entry)));
        self.prepared.retain(|update| !verification.is_invalid(&Part::Prepared(*update.hash())));
        self.recovered.retain(|one| !verification.is_invalid(&Part::Recovered(one.did.clone(), one.key().2)));
        self
    }
}

/// The part that an entry is.
pub fn part_of(entry: &VaultEntry) -> Part {
    let record = &entry.record;
    Part::Record(record.did.clone(), record.service.clone(), record.cohort_id.clone())
}

/// Verifies all of `contents`: that maps and proofs give the signal of their record and lead to its update, that updates are
/// valid ones of their DID where the vault leads to their source document, that genesis documents are those of their DIDs, and
/// that nothing belongs to another DID.
pub fn verify(contents: &VaultContents) -> Verification {
    let mut verification = Verification::default();
    for entry in &contents.entries {
        let problems = record_problems(entry);
        let part = part_of(entry);
        verification.invalid.extend(problems.into_iter().map(|problem| Invalid { part: part.clone(), problem }));
    }
    for update in contents.prepared.iter().filter(|update| target(update).is_none()) {
        let problem = "its proof names no DID that it is for (rule U-4)".to_owned();
        verification.invalid.push(Invalid { part: Part::Prepared(*update.hash()), problem });
    }
    for recovered in &contents.recovered {
        if let Err(problem) = check_recovered(recovered) {
            let part = Part::Recovered(recovered.did.clone(), recovered.key().2);
            verification.invalid.push(Invalid { part, problem });
        }
    }
    for did in contents.dids() {
        updates(contents, &did, &mut verification);
    }
    verification
}

fn record_problems(VaultEntry { record, genesis_document, .. }: &VaultEntry) -> Vec<String> {
    let mut problems = record.problems(genesis_document.as_ref());
    if record.output.network() != record.did.network() {
        problems.push(format!(
            "its beacon is one of {}, the DID's network is {}",
            record.output.network(),
            record.did.network()
        ));
    }
    if record.output.script_tree() != &record.conditions.script_tree {
        problems.push("its beacon's leaves are not those of the cohort's conditions".to_owned());
    }
    if let Some(update) = &record.update
        && let Some(of) = target(update)
        && of != record.did
    {
        problems.push(format!("its update is one of {of}"));
    }
    // The initial document was derived with the first update; with others and with none it is checked here.
    let is_first = record.update.as_ref().is_some_and(|update| update.target_version() == Some(2));
    if let Some(genesis) = genesis_document
        && !is_first
        && let Err(error) = document::initial_document(&record.did, Some(genesis))
    {
        problems.push(format!("genesis document: {error}"));
    }
    problems
}

fn check_recovered(Recovered { did, kind, data }: &Recovered) -> Result<(), String> {
    match kind {
        RecoveredKind::GenesisDocument => match did.genesis() {
            Genesis::Key(_) => Err("a KEY DID has no genesis document".to_owned()),
            Genesis::External(_) => {
                document::initial_document(did, Some(data)).map(drop).map_err(|error| error.to_string())
            }
        },
        RecoveredKind::Update => {
            let update = SignedUpdate::from_value(data.clone()).map_err(|error| error.to_string())?;
            match target(&update) {
                Some(of) if of == *did => Ok(()),
                _ => Err("an update of another DID (rule U-4)".to_owned()),
            }
        }
        // Which signal it belongs to is known by its hash only.
        RecoveredKind::CasUpdate => {
            let entries = data.as_object().ok_or("not a CAS Announcement: it is not an object (rule C-1)")?;
            match entries.get(did.as_str()) {
                Some(entry) if entry.as_str().is_none_or(|text| text.parse::<DocumentHash>().is_err()) => {
                    Err("CAS Announcement: its entry of the DID is not the hash of an update (rule C-2)".to_owned())
                }
                _ => Ok(()),
            }
        }
        RecoveredKind::SmtProof => {
            let proof = SmtProof::deserialize(data).map_err(|error| format!("not an SMT proof: {error}"))?;
            proof.verify(&smt_index(did)).map_err(|error| format!("SMT proof: {error}"))
        }
    }
}

/// Follows the updates of `did` from the first document on.
fn updates(contents: &VaultContents, did: &Did, verification: &mut Verification) {
    let recovered = contents.recovered.iter().filter(|recovered| recovered.did == *did);
    let recovered = recovered.filter(|recovered| recovered.kind == RecoveredKind::GenesisDocument);
    let genesis = contents.of(did).find_map(|entry| entry.genesis_document.as_ref());
    let genesis = genesis.or_else(|| recovered.map(|recovered| &recovered.data).next());
    // By version, then by hash: several only if the vault has contradictory updates.
    let mut documents: BTreeMap<u64, BTreeMap<DocumentHash, Value>> = BTreeMap::new();
    if let Ok(initial) = document::initial_document(did, genesis) {
        documents.entry(1).or_default().insert(super::digest(&initial), initial);
    }
    let mut known: Vec<(Part, &SignedUpdate)> = contents
        .of(did)
        .filter_map(|entry| Some((part_of(entry), entry.record.update.as_ref()?)))
        .chain(
            contents
                .prepared
                .iter()
                .filter(|update| target(update).as_ref() == Some(did))
                .map(|update| (Part::Prepared(*update.hash()), update)),
        )
        .collect();
    known.sort_by_key(|(part, update)| (update.target_version(), part.clone()));
    let mut reported: BTreeSet<Part> = verification.invalid.iter().map(|invalid| invalid.part.clone()).collect();
    for (part, update) in known {
        let Some(version) = update.target_version().filter(|version| *version >= 2) else {
            let problem = "its targetVersionId is not an integer of at least 2 (rule U-17)".to_owned();
            if reported.insert(part.clone()) {
                verification.invalid.push(Invalid { part, problem });
            }
            continue;
        };
        let stated = update.value().get("sourceHash").and_then(Value::as_str);
        let stated = stated.and_then(|text| text.parse::<DocumentHash>().ok());
        let source = stated.and_then(|hash| documents.get(&(version - 1))?.get(&hash));
        let Some(source) = source else {
            if !reported.contains(&part) {
                match of_any_document(update, did) {
                    Some(error) => {
                        reported.insert(part.clone());
                        verification.invalid.push(Invalid { part, problem: format!("update: {error}") });
                    }
                    None => verification.unverified.push(part),
                }
            }
            continue;
        };
        let context = UpdateContext { did, document: source, version: version - 1, block: None };
        match verify_update(update, &context) {
            Ok(target) => {
                documents.entry(version).or_default().insert(super::digest(&target), target);
            }
            Err(error) => {
                if reported.insert(part.clone()) {
                    verification.invalid.push(Invalid { part, problem: format!("update: {error}") });
                }
            }
        }
    }
}

/// The first rule that an update breaks whatever document it starts from.
fn of_any_document(update: &SignedUpdate, did: &Did) -> Option<UpdateError> {
    let context = UpdateContext { did, document: &Value::Null, version: 1, block: None };
    violations(update, &context).into_iter().find(|error| {
        !matches!(
            error,
            UpdateError::Version { .. }
                | UpdateError::SourceHash
                | UpdateError::Method(_)
                | UpdateError::Signature
                | UpdateError::DoesNotApply(_)
                | UpdateError::TargetHash
                | UpdateError::TargetId
                | UpdateError::NotConformant(_)
        )
    })
}
