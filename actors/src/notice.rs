//! Notifications to subscribers: one typed notice for every step of both roles.
//!
//! Each subscriber has its own queue. A subscriber that falls behind loses the oldest notices, receives their number,
//! and delays no other subscriber.

mod channel;

use std::sync::Arc;

use bitcoin::{Transaction, Txid};
use btcr2_aggregation_protocol::{
    beacon::Aggregation,
    cohort::{
        event::{CohortFailure, SessionEnd, SpendPath},
        participant::{self, membership::WithoutCohort},
        service::{self, rules::TimedPhase},
    },
    did::Did,
    error::{Reject, RejectCode},
    hash::SignalBytes,
    id::{CohortId, SessionId},
    output::BeaconOutput,
    sidecar::MemberRecord,
    signing::Signed,
    time::Timestamp,
    transcript::{SignedTranscriptHead, Transcript},
};
use serde::Serialize;
use strum::{IntoStaticStr, VariantNames};

pub use self::channel::Notices;
pub(crate) use self::channel::{Sink, WeakNotices};
use crate::bans::Offence;

/// The result of a cohort that succeeded, with everything that its operator needs to store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CohortResult {
    /// Its output.
    pub output: BeaconOutput,
    /// The announced signal, and each member's data.
    pub aggregation: Arc<Aggregation>,
    /// The signed transaction, and the messages that led to it.
    pub signed: Arc<Signed>,
    /// The head of the transcript of all its messages, signed by the service.
    pub transcript: SignedTranscriptHead,
    /// The digests of those messages, in order. They allow to prove to any member that its message is in the
    /// transcript, see [`Transcript::prove`].
    pub messages: Arc<Transcript>,
}

/// A step of a cohort at its service.
#[derive(Clone, Debug, Serialize, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "names and types describe the fields")]
#[non_exhaustive]
pub enum ServiceNotice {
    /// The cohort was advertised.
    CohortAdvertised { cohort_id: CohortId },
    /// A participant opted in with valid keys.
    OptInReceived { cohort_id: CohortId, participant: Did },
    /// The participant was admitted.
    ParticipantAccepted { cohort_id: CohortId, participant: Did },
    /// The participant was not admitted.
    ParticipantRefused { cohort_id: CohortId, participant: Did, reason: String },
    /// The cohort has formed.
    KeygenComplete {
        cohort_id: CohortId,
        beacon_address: String,
        participants: usize,
        /// The output at that address, for hosts that store it: coins can be recovered with it alone.
        #[serde(skip)]
        output: Arc<BeaconOutput>,
    },
    /// A member submitted (`included`) or declined.
    UpdateReceived { cohort_id: CohortId, participant: Did, included: bool },
    /// The aggregated data was sent to the members.
    DataDistributed { cohort_id: CohortId, signal: SignalBytes },
    /// A member approved or rejected the aggregated data.
    ValidationReceived { cohort_id: CohortId, participant: Did, approved: bool },
    /// All members approved; the operator is asked for the transaction.
    ValidationComplete { cohort_id: CohortId },
    /// The operator could not provide the transaction yet.
    TransactionDeferred { cohort_id: CohortId, reason: String },
    /// The members were asked for nonces.
    SigningStarted { cohort_id: CohortId, session_id: SessionId },
    /// A member's nonce arrived.
    NonceReceived { cohort_id: CohortId, session_id: SessionId, participant: Did },
    /// A member's partial signature arrived.
    PartialSignatureReceived { cohort_id: CohortId, session_id: SessionId, participant: Did },
    /// The members were asked to sign on the fallback leaf.
    FallbackStarted { cohort_id: CohortId, session_id: SessionId, reason: String, holdouts: Vec<Did> },
    /// A member's fallback signature arrived.
    FallbackSignatureReceived { cohort_id: CohortId, session_id: SessionId, participant: Did },
    /// The transaction is signed.
    SigningComplete {
        cohort_id: CohortId,
        path: SpendPath,
        txid: String,
        /// The whole result, for hosts; too large for a log line.
        #[serde(skip)]
        result: Arc<CohortResult>,
    },
    /// The cohort ended without a transaction.
    CohortFailed {
        cohort_id: CohortId,
        code: &'static str,
        reason: String,
        failure: CohortFailure,
        /// The cohort that replaces it, if there is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        next: Option<CohortId>,
    },
    /// The deadline of a phase was extended.
    PhaseExtended { cohort_id: CohortId, phase: TimedPhase, until: Timestamp },
    /// The members were asked to confirm their presence before signing.
    PresenceRequested { cohort_id: CohortId },
    /// A member confirmed its presence.
    PresenceConfirmed { cohort_id: CohortId, participant: Did },
    /// The cohort was restored from its journal, in this phase.
    CohortRecovered {
        cohort_id: CohortId,
        phase: service::phase::PhaseKind,
        /// Its output, if it has formed, for hosts that may have missed it before the restart.
        #[serde(skip)]
        output: Option<Arc<BeaconOutput>>,
    },
    /// An actor of the cohort panicked and is restarted, for the `restarts`th time in the current period.
    CohortRestarted { cohort_id: CohortId, restarts: usize },
    /// The cohort replaces one that failed.
    CohortReformed { cohort_id: CohortId, predecessor: Option<CohortId>, invited: usize, excluded: Vec<Did> },
    /// A member is banned until `until`.
    MemberBanned { cohort_id: CohortId, participant: Did, offence: Offence, until: Timestamp },
    /// A message was refused.
    MessageRejected { cohort_id: Option<CohortId>, from: Option<Did>, code: RejectCode, detail: String },
    /// A message of ours was not delivered, and will not be sent again.
    MessageUndelivered { cohort_id: CohortId, to: Did, kind: &'static str, reason: String },
}

/// What a participant knows of the transaction when its session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Known {
    /// We have seen the transaction, signed by the cohort.
    Seen,
    /// The service reports that it is signed without us, and did not show it.
    Reported,
    /// We have signed. Whether the other members have is not known, or the service reports it and did not show the
    /// transaction.
    SignedByUs,
}

/// A step of a participant in a cohort.
#[derive(Clone, Debug, Serialize, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "names and types describe the fields")]
#[non_exhaustive]
pub enum ParticipantNotice {
    /// An advert was accepted for consideration.
    CohortDiscovered { did: Did, cohort_id: CohortId, service: Did },
    /// We opted in.
    CohortJoined {
        did: Did,
        cohort_id: CohortId,
        #[serde(skip)]
        service: Did,
    },
    /// The service admitted us.
    OptInAccepted { did: Did, cohort_id: CohortId },
    /// The cohort has formed, and its address is correct.
    CohortReady { did: Did, cohort_id: CohortId, beacon_address: String },
    /// We submitted our update.
    UpdateSubmitted { did: Did, cohort_id: CohortId },
    /// Our own policy's update breaks a rule, so no resolver would accept it: it is not submitted, and we decline.
    UpdateRefused { did: Did, cohort_id: CohortId, reason: String },
    /// We declined.
    UpdateDeclined { did: Did, cohort_id: CohortId },
    /// The aggregated data arrived; `problem` is what is wrong with it.
    ValidationRequested { did: Did, cohort_id: CohortId, problem: Option<String> },
    /// We approved the aggregated data. From now on it may be announced, with a signature of ours or without: the host
    /// must store what it contains for us. Repeated when the session is restored.
    DataApproved {
        did: Did,
        cohort_id: CohortId,
        /// What to store; too large for a log line.
        #[serde(skip)]
        record: Arc<MemberRecord>,
    },
    /// The transaction arrived and is correct.
    SigningRequested { did: Did, cohort_id: CohortId, session_id: SessionId },
    /// We sent our nonce.
    NonceSent { did: Did, cohort_id: CohortId },
    /// The session was restored from its journal, in this phase.
    SessionRecovered { did: Did, cohort_id: CohortId, service: Did, phase: participant::phase::PhaseKind },
    /// The session's actor panicked and is restarted, for the `restarts`th time in the current period.
    SessionRestarted { did: Did, cohort_id: CohortId, restarts: usize },
    /// Our secret nonce is lost; we can only sign the fallback.
    NonceLost { did: Did, cohort_id: CohortId },
    /// The service asked for the fallback.
    FallbackRequested { did: Did, cohort_id: CohortId },
    /// We sent a signature: the transaction may be announced from now on, which is not known yet. Published once.
    SignatureSent {
        did: Did,
        cohort_id: CohortId,
        included: bool,
        /// What to store; too large for a log line.
        #[serde(skip)]
        record: Arc<MemberRecord>,
    },
    /// The signed transaction was seen and verified: it announces what we approved. Published once, and again when the
    /// session is restored.
    CohortComplete {
        did: Did,
        cohort_id: CohortId,
        included: bool,
        txid: Txid,
        /// The transaction, for hosts.
        #[serde(skip)]
        transaction: Arc<Transaction>,
        /// What to store; too large for a log line.
        #[serde(skip)]
        record: Arc<MemberRecord>,
    },
    /// The service needs nothing more from us; `known` is what is known of the transaction.
    CohortOver {
        did: Did,
        cohort_id: CohortId,
        known: Known,
        /// The service, for hosts: it names the session together with the cohort.
        #[serde(skip)]
        service: Did,
    },
    /// The session ended, and according to the service, or to our own side, nothing is announced. With `signed`, we
    /// sent a signature nevertheless.
    CohortFailed {
        did: Did,
        cohort_id: CohortId,
        reason: String,
        signed: bool,
        end: SessionEnd,
        /// The service, for hosts: it names the session together with the cohort.
        #[serde(skip)]
        service: Did,
    },
    /// We are left without a cohort that could announce anything: the last one failed, or its successor was not joined in
    /// time. That is the cohort that is named. Published after the end of a cohort.
    WithoutCohort { did: Did, cohort_id: CohortId, cause: WithoutCohort },
    /// A message was refused.
    MessageRejected { did: Did, cohort_id: Option<CohortId>, from: Option<Did>, code: RejectCode, detail: String },
    /// A message arrived whose sender or time cannot be verified: the service's clock may be wrong, or ours.
    MessageUnverified { did: Did, reason: String },
    /// A message of ours was not delivered, and will not be sent again.
    MessageUndelivered { did: Did, cohort_id: CohortId, kind: &'static str, reason: String },
}

impl ServiceNotice {
    /// The cohort that the notice is about.
    pub fn cohort_id(&self) -> Option<&CohortId> {
        match self {
            Self::CohortAdvertised { cohort_id, .. }
            | Self::OptInReceived { cohort_id, .. }
            | Self::ParticipantAccepted { cohort_id, .. }
            | Self::ParticipantRefused { cohort_id, .. }
            | Self::KeygenComplete { cohort_id, .. }
            | Self::UpdateReceived { cohort_id, .. }
            | Self::DataDistributed { cohort_id, .. }
            | Self::ValidationReceived { cohort_id, .. }
            | Self::ValidationComplete { cohort_id, .. }
            | Self::TransactionDeferred { cohort_id, .. }
            | Self::SigningStarted { cohort_id, .. }
            | Self::NonceReceived { cohort_id, .. }
            | Self::PartialSignatureReceived { cohort_id, .. }
            | Self::FallbackStarted { cohort_id, .. }
            | Self::FallbackSignatureReceived { cohort_id, .. }
            | Self::SigningComplete { cohort_id, .. }
            | Self::CohortFailed { cohort_id, .. }
            | Self::PhaseExtended { cohort_id, .. }
            | Self::PresenceRequested { cohort_id, .. }
            | Self::PresenceConfirmed { cohort_id, .. }
            | Self::CohortRecovered { cohort_id, .. }
            | Self::CohortRestarted { cohort_id, .. }
            | Self::CohortReformed { cohort_id, .. }
            | Self::MemberBanned { cohort_id, .. }
            | Self::MessageUndelivered { cohort_id, .. } => Some(cohort_id),
            Self::MessageRejected { cohort_id, .. } => cohort_id.as_ref(),
        }
    }

    /// Whether this is the end of a cohort.
    pub(crate) fn is_end(&self) -> bool {
        matches!(self, Self::SigningComplete { .. } | Self::CohortFailed { .. })
    }

    pub(crate) fn formed(cohort_id: CohortId, output: &BeaconOutput) -> Self {
        Self::KeygenComplete {
            cohort_id,
            beacon_address: output.address().to_owned(),
            participants: output.keys().len(),
            output: Arc::new(output.clone()),
        }
    }

    pub(crate) fn failed(cohort_id: CohortId, failure: &CohortFailure, next: Option<CohortId>) -> Self {
        Self::CohortFailed {
            cohort_id,
            code: failure.code(),
            reason: failure.to_string(),
            failure: failure.clone(),
            next,
        }
    }

    pub(crate) fn rejected(cohort_id: Option<&CohortId>, reject: &Reject) -> Self {
        Self::MessageRejected {
            cohort_id: cohort_id.cloned(),
            from: reject.peer.clone(),
            code: reject.code,
            detail: reject.detail.clone(),
        }
    }
}

impl ParticipantNotice {
    /// The cohort that the notice is about.
    pub fn cohort_id(&self) -> Option<&CohortId> {
        match self {
            Self::CohortDiscovered { cohort_id, .. }
            | Self::CohortJoined { cohort_id, .. }
            | Self::OptInAccepted { cohort_id, .. }
            | Self::CohortReady { cohort_id, .. }
            | Self::UpdateSubmitted { cohort_id, .. }
            | Self::UpdateRefused { cohort_id, .. }
            | Self::UpdateDeclined { cohort_id, .. }
            | Self::ValidationRequested { cohort_id, .. }
            | Self::DataApproved { cohort_id, .. }
            | Self::SigningRequested { cohort_id, .. }
            | Self::NonceSent { cohort_id, .. }
            | Self::SessionRecovered { cohort_id, .. }
            | Self::SessionRestarted { cohort_id, .. }
            | Self::NonceLost { cohort_id, .. }
            | Self::FallbackRequested { cohort_id, .. }
            | Self::SignatureSent { cohort_id, .. }
            | Self::CohortComplete { cohort_id, .. }
            | Self::CohortOver { cohort_id, .. }
            | Self::CohortFailed { cohort_id, .. }
            | Self::WithoutCohort { cohort_id, .. }
            | Self::MessageUndelivered { cohort_id, .. } => Some(cohort_id),
            Self::MessageRejected { cohort_id, .. } => cohort_id.as_ref(),
            Self::MessageUnverified { .. } => None,
        }
    }

    pub(crate) fn rejected(did: &Did, cohort_id: Option<&CohortId>, reject: &Reject) -> Self {
        Self::MessageRejected {
            did: did.clone(),
            cohort_id: cohort_id.cloned(),
            from: reject.peer.clone(),
            code: reject.code,
            detail: reject.detail.clone(),
        }
    }
}
