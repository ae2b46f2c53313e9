//! The result of a check.

use std::collections::BTreeSet;

use ::bitcoin::{OutPoint, Txid};
use clap::ValueEnum;
use serde::Serialize;

use super::{BeaconState, UpdateState};
use crate::protocol::{did::Did, hash::DocumentHash, id::CohortId, time::Timestamp};

/// How good or bad something is; the last one is the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// It needs attention before it becomes a problem, or weakens the DID.
    Warning,
    /// Not known, e.g. because the chain does not answer.
    Unknown,
    /// The DID does not resolve, or will not.
    Problem,
}

/// What a finding is about. The names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names describe them")]
pub enum Code {
    Chain,
    Resolves,
    DoesNotResolve,
    MissingData,
    YoungVersion,
    YoungMissingData,
    WillNotResolve,
    UnconfirmedMissingData,
    Deactivated,
    NotInVault,
    Store,
    PendingUpdate,
    SupersededUpdate,
    CannotApply,
    Contradiction,
    VersionGap,
    Beacon,
    UnusableBeacon,
    NoBeacon,
    NoSingleton,
    SingletonKey,
    OperatorSoon,
    OperatorAlone,
    TermsUnknown,
    CoinsUnknown,
    SigningKey,
    NoSigningKey,
    VaultDamaged,
    InvalidRecord,
    Backup,
    NoBackup,
    BackupIncomplete,
    BackupOld,
    Restored,
    IncompleteData,
    ServiceSilent,
}

/// The subject of a finding, as far as it has one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names and types describe the fields")]
pub struct About {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub txid: Option<Txid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outpoint: Option<OutPoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cohort_id: Option<CohortId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<DocumentHash>,
}

/// One result, with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What it is about.
    pub code: Code,
    /// How good or bad it is.
    pub status: Status,
    /// What was found, in a sentence for people.
    pub text: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// Whether the controller accepts it: it does not count then.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub accepted: bool,
    /// Its subject.
    #[serde(flatten)]
    pub about: About,
    /// What may change while the subject and the status stay, and is worth an event: an error code, or how far an update has got.
    #[serde(skip)]
    pub state: Option<String>,
}

impl Finding {
    pub(super) fn new(code: Code, status: Status, text: impl Into<String>) -> Self {
        let (text, about) = (text.into(), About::default());
        Self { code, status, text, advice: None, accepted: false, about, state: None }
    }

    pub(super) fn ok(code: Code, text: impl Into<String>) -> Self {
        Self::new(code, Status::Ok, text)
    }

    pub(super) fn warning(code: Code, text: impl Into<String>) -> Self {
        Self::new(code, Status::Warning, text)
    }

    pub(super) fn problem(code: Code, text: impl Into<String>) -> Self {
        Self::new(code, Status::Problem, text)
    }

    pub(super) fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    pub(super) fn address(mut self, address: impl Into<String>) -> Self {
        self.about.address = Some(address.into());
        self
    }

    pub(super) fn txid(mut self, txid: Txid) -> Self {
        self.about.txid = Some(txid);
        self
    }

    pub(super) fn outpoint(mut self, outpoint: OutPoint) -> Self {
        self.about.outpoint = Some(outpoint);
        self
    }

    pub(super) fn height(mut self, height: u32) -> Self {
        self.about.height = Some(height);
        self
    }

    pub(super) fn hash(mut self, hash: DocumentHash) -> Self {
        self.about.hash = Some(hash);
        self
    }

    pub(super) fn state(mut self, state: impl ToString) -> Self {
        self.state = Some(state.to_string());
        self
    }

    pub(super) fn version(mut self, version: u64) -> Self {
        self.about.version = Some(version);
        self
    }

    pub(super) fn cohort(mut self, cohort_id: Option<&CohortId>) -> Self {
        self.about.cohort_id = cohort_id.cloned();
        self
    }
}

/// The health of a DID.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The identifier.
    pub did: Did,
    /// When it was checked.
    #[serde(serialize_with = "date")]
    pub checked: Timestamp,
    /// The worst status that counts.
    pub status: Status,
    /// The height of the chain's tip; `None` if it is not known.
    pub height: Option<u32>,
    /// The current version, with as many confirmations as were asked for.
    pub version: Option<u64>,
    /// The confirmations of the update that made it; 0 of version 1.
    pub confirmations: Option<u32>,
    /// Whether that version deactivates the DID.
    pub deactivated: bool,
    /// The verification method of the identity file that may sign the next update; `None` if there is none, or no file.
    pub signing_method: Option<String>,
    /// All results, in the order of the questions.
    pub findings: Vec<Finding>,
    /// Every address that a document of the DID ever listed.
    pub beacons: Vec<BeaconState>,
    /// The updates of the vault that no confirmed version has.
    pub updates: Vec<UpdateState>,
}

fn date<S: serde::Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    time.to_date().serialize(serializer)
}

impl Report {
    pub(super) fn new(did: Did, checked: Timestamp) -> Self {
        Self {
            did,
            checked,
            status: Status::Ok,
            height: None,
            version: None,
            confirmations: None,
            deactivated: false,
            signing_method: None,
            findings: Vec::new(),
            beacons: Vec::new(),
            updates: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Takes the warnings that the controller accepts out of the status.
    pub(super) fn accept(&mut self, accepted: &BTreeSet<Code>) {
        for finding in &mut self.findings {
            finding.accepted = finding.status == Status::Warning && accepted.contains(&finding.code);
        }
        let counts = self.findings.iter().filter(|finding| !finding.accepted);
        self.status = counts.map(|finding| finding.status).max().unwrap_or(Status::Ok);
    }

    /// Whether the question to which `code` is an answer could be asked at all: without an answer of the chain, its stores or its
    /// coins, or without a current document, a finding that is not there may still be true.
    pub fn is_asked(&self, code: Code) -> bool {
        let found = |wanted: &[Code]| self.findings.iter().any(|finding| wanted.contains(&finding.code));
        match code {
            Code::Chain
            | Code::CoinsUnknown
            | Code::VaultDamaged
            | Code::InvalidRecord
            | Code::Backup
            | Code::NoBackup
            | Code::BackupIncomplete
            | Code::BackupOld
            | Code::IncompleteData
            | Code::ServiceSilent => true,
            _ if found(&[Code::Chain]) => false,
            Code::Resolves | Code::DoesNotResolve | Code::Store | Code::YoungVersion => true,
            // A resolver names all the data that it knows to be missing, unless another error ends it before.
            Code::MissingData => found(&[Code::MissingData]) || !found(&[Code::DoesNotResolve]),
            Code::YoungMissingData => {
                found(&[Code::MissingData]) || !found(&[Code::DoesNotResolve, Code::WillNotResolve])
            }
            Code::UnconfirmedMissingData => {
                let ends = found(&[Code::DoesNotResolve, Code::WillNotResolve]);
                !found(&[Code::CoinsUnknown]) && (found(&[Code::MissingData]) || !ends)
            }
            Code::WillNotResolve => !found(&[
                Code::DoesNotResolve,
                Code::CoinsUnknown,
                Code::YoungMissingData,
                Code::UnconfirmedMissingData,
            ]),
            Code::NotInVault | Code::Restored => !found(&[Code::DoesNotResolve, Code::Store]),
            Code::Beacon | Code::TermsUnknown | Code::OperatorSoon | Code::OperatorAlone => {
                !found(&[Code::DoesNotResolve, Code::CoinsUnknown, Code::VaultDamaged])
            }
            Code::PendingUpdate
            | Code::SupersededUpdate
            | Code::CannotApply
            | Code::Contradiction
            | Code::VersionGap => !found(&[Code::DoesNotResolve, Code::CoinsUnknown, Code::VaultDamaged]),
            _ => !found(&[Code::DoesNotResolve]),
        }
    }

    /// The findings with that status which count.
    pub fn with(&self, status: Status) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.status == status && !finding.accepted)
    }
}
