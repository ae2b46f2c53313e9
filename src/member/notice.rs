//! What a running member reports, beside the notices of its seats.

use serde::Serialize;
use strum::VariantNames;

use super::{leaving::Step, queue::Stage};
use crate::protocol::{did::Did, hash::DocumentHash, id::CohortId, text::shown};

/// An event of a member.
#[derive(Clone, Debug, Serialize, VariantNames)]
#[strum(serialize_all = "kebab-case")]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
#[non_exhaustive]
pub enum MemberNotice {
    /// It runs: its seats continue, and its control socket is open.
    MemberReady {
        /// The seeds of seats.
        seats: usize,
        /// The DIDs.
        dids: usize,
        /// The updates in the queue that are not over.
        open: usize,
        /// The control socket.
        socket: String,
    },
    /// Its page for a browser is served.
    ConsoleOpened {
        /// Where, without the secret by which one logs in.
        url: String,
    },
    /// It cannot go on now, and starts again by itself.
    MemberInterrupted {
        /// Why.
        problem: String,
        /// After how many seconds it tries again.
        retry_seconds: u64,
    },
    /// It has stopped, as it was asked to.
    MemberStopped,
    /// An update in the queue has changed.
    UpdateStep {
        /// Its number in the queue.
        id: u64,
        /// The DID.
        did: Did,
        /// How far it is.
        stage: Stage,
        /// The version to which it leads, as text.
        version_id: String,
        /// The signed update's hash.
        update: DocumentHash,
        /// The cohort in which it was submitted.
        #[serde(skip_serializing_if = "Option::is_none")]
        cohort_id: Option<CohortId>,
        /// The number in which it was submitted.
        #[serde(skip_serializing_if = "Option::is_none")]
        number: Option<u64>,
        /// Why it waits or is refused.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A person, or the hook, is asked for a decision.
    ApprovalAsked {
        /// Its number.
        id: u64,
        /// `join` or `sign`.
        kind: &'static str,
        /// The cohort.
        cohort_id: CohortId,
        /// The number of the announcement to sign.
        #[serde(skip_serializing_if = "Option::is_none")]
        number: Option<u64>,
        /// Why it is not decided by the policy alone.
        reason: String,
        /// After how many seconds it counts as rejected; none for one that is held.
        #[serde(skip_serializing_if = "Option::is_none")]
        timeout_seconds: Option<u64>,
    },
    /// It is decided.
    ApprovalDecided {
        /// Its number.
        id: u64,
        /// Whether it was approved.
        approved: bool,
        /// Why not.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// DIDs were registered: their documents may list the beacon.
    DidsRegistered {
        /// The cohort.
        cohort_id: CohortId,
        /// The DIDs.
        dids: Vec<Did>,
    },
    /// A DID leaves a cohort, or has left it.
    DidLeaves {
        /// The DID.
        did: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// How far it is.
        step: Step,
    },
    /// The data of an address that DIDs have left cannot be fetched. That is tried again, without end.
    DataIncomplete {
        /// The cohort.
        cohort_id: CohortId,
        /// The DIDs.
        dids: Vec<Did>,
        /// Why.
        problem: String,
    },
    /// The data of an address that DIDs have left are complete again.
    DataComplete {
        /// The cohort.
        cohort_id: CohortId,
        /// The DIDs.
        dids: Vec<Did>,
    },
    /// A service cannot be reached, for longer than the policy permits.
    ServiceSilent {
        /// Its name in the agent's file.
        service: String,
        /// Since when, as a date.
        since: String,
        /// Why, as far as that is known.
        problem: String,
    },
    /// A service can be reached again that was silent.
    ServiceAnswers {
        /// Its name in the agent's file.
        service: String,
    },
    /// A verified backup was written.
    BackupWritten {
        /// The file.
        file: String,
    },
    /// A backup could not be written. The program continues.
    BackupFailed {
        /// Why.
        problem: String,
    },
}

impl MemberNotice {
    /// The notice for people.
    pub fn text(&self) -> String {
        match self {
            Self::MemberReady { seats, dids, open, socket } => {
                format!(
                    "READY: {seats} seat seeds, {dids} DIDs, {open} updates in the queue; control socket {socket}"
                )
            }
            Self::ConsoleOpened { url } => {
                format!("the page is at {url}; `member console-url` prints an address by which one logs in")
            }
            Self::MemberInterrupted { problem, retry_seconds } => {
                format!("error: {problem}; starting again in {retry_seconds} s")
            }
            Self::MemberStopped => "stopped".to_owned(),
            Self::UpdateStep { id, did, stage, version_id, cohort_id, number, reason, .. } => {
                let mut text = format!("update {id} of {did}, version {version_id}: {stage}");
                if let (Some(cohort_id), Some(number)) = (cohort_id, number) {
                    text.push_str(&format!(" (number {number} of cohort {cohort_id})"));
                }
                if let Some(reason) = reason {
                    text.push_str(&format!(": {}", shown(reason)));
                }
                text
            }
            Self::ApprovalAsked { id, kind, cohort_id, number, reason, timeout_seconds } => {
                let what = match number {
                    Some(number) => format!("{kind} number {number} of cohort {cohort_id}"),
                    None => format!("{kind} cohort {cohort_id}"),
                };
                let until = match timeout_seconds {
                    Some(seconds) => format!("within {seconds} s"),
                    None => "at any time".to_owned(),
                };
                format!(
                    "asked to {what} ({}): `member approve {id}` or `member reject {id}` {until}",
                    shown(reason)
                )
            }
            Self::ApprovalDecided { id, approved: true, .. } => format!("request {id} is approved"),
            Self::ApprovalDecided { id, reason, .. } => {
                format!("request {id} is rejected: {}", shown(reason.as_deref().unwrap_or("no reason given")))
            }
            Self::DidsRegistered { cohort_id, dids } => {
                format!(
                    "{} DIDs are registered in cohort {cohort_id}: their documents may list its beacon",
                    dids.len()
                )
            }
            Self::DidLeaves { did, cohort_id, step } => match step {
                Step::Leaving => format!("{did} leaves cohort {cohort_id}: its update is on its way"),
                Step::Unregistering => {
                    format!("{did} does not list cohort {cohort_id} any more, finally: it is unregistered there")
                }
                Step::Left => format!(
                    "{did} has left cohort {cohort_id}; what is announced there later is fetched for it all the same"
                ),
            },
            Self::DataIncomplete { cohort_id, dids, problem } => format!(
                "warning: what cohort {cohort_id} announces cannot be fetched for {} DIDs that have left its address, and is tried again: {}",
                dids.len(),
                shown(problem)
            ),
            Self::DataComplete { cohort_id, dids } => {
                format!("what cohort {cohort_id} has announced is complete again for {} DIDs", dids.len())
            }
            Self::ServiceSilent { service, since, problem } => format!(
                "warning: the service {service} is silent since {since}: {}. If it is gone, save the DIDs that list its beacon: `member rescue \
                 DID`, or register them at another service and `member rescue DID --to COHORT`",
                shown(problem)
            ),
            Self::ServiceAnswers { service } => format!("the service {service} answers again"),
            Self::BackupWritten { file } => format!("backup written, and verified: {file}"),
            Self::BackupFailed { problem } => format!("error: no backup was written: {problem}"),
        }
    }
}
