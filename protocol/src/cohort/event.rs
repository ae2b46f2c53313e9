//! The events that both roles journal: facts in the past tense, and self-contained. Recovery needs nothing but their
//! replay. How a cohort or a session ends is in `ending`.

use std::sync::Arc;

use bitcoin::{Amount, Transaction};
use serde::{Deserialize, Serialize};

pub use super::ending::{CohortFailure, SessionEnd};
use super::{
    Advert, Member, Timing, Unreached,
    service::{CohortTerms, rules::TimedPhase},
};
pub use crate::output::SpendPath;
use crate::{
    beacon::{Aggregation, BeaconData},
    did::Did,
    error::Fault,
    hash::{MessageDigest, SignalBytes},
    id::SessionId,
    message::Bytes,
    output::BeaconOutput,
    signing::Signed,
    time::Timestamp,
    update::{Edition, SignedUpdate},
};

/// An event of a cohort at its Aggregation Service. `digest` is the transcript digest of the message that caused it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ServiceEvent {
    /// The cohort was opened; the clock of its TTL starts.
    CohortAdvertised {
        /// When.
        at: Timestamp,
        /// The cohort's terms.
        terms: Arc<CohortTerms>,
    },
    /// The advert was repeated.
    AdvertRepeated {
        /// When.
        at: Timestamp,
    },
    /// A phase was given more time.
    PhaseExtended {
        /// When.
        at: Timestamp,
        /// The phase.
        phase: TimedPhase,
        /// The new deadline.
        until: Timestamp,
    },
    /// A phase had lapsed while the service was down, or the operator gave it more time. Its members get this time to
    /// respond. Not counted as an extension.
    GraceGiven {
        /// When.
        at: Timestamp,
        /// The phase.
        phase: TimedPhase,
        /// The new deadline.
        until: Timestamp,
    },
    /// A participant opted in with valid keys.
    OptInReceived {
        /// The candidate, with its keys.
        member: Arc<Member>,
        /// The digest of the opt-in.
        digest: MessageDigest,
    },
    /// A candidate lost its place: it had opted in with a key that another candidate has now proven to be its own.
    OptInDisplaced {
        /// The displaced candidate, and why.
        fault: Fault,
        /// The owner of the key.
        by: Did,
    },
    /// The operator admitted a candidate.
    MemberAdmitted {
        /// The candidate.
        did: Did,
        /// When. Absent in journals of versions without
        /// [`PhaseRules::settle`](super::service::rules::PhaseRules::settle).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<Timestamp>,
    },
    /// The operator refused a candidate.
    MemberRefused {
        /// The candidate.
        did: Did,
        /// The operator's reason, as text.
        reason: String,
    },
    /// The cohort was formed: its keys are aggregated and its beacon output is fixed.
    KeysAggregated {
        /// When.
        at: Timestamp,
        /// The beacon output.
        output: BeaconOutput,
    },
    /// A member's update was verified.
    UpdateReceived {
        /// The member.
        did: Did,
        /// The update.
        update: SignedUpdate,
        /// The digest of the submission.
        digest: MessageDigest,
        /// The rules that it was verified under.
        #[serde(default)]
        edition: Edition,
    },
    /// A member declined to update.
    UpdateDeclined {
        /// The member.
        did: Did,
        /// The digest of the decline.
        digest: MessageDigest,
    },
    /// Every slot was filled, and the updates were aggregated into the signal.
    UpdatesAggregated {
        /// When.
        at: Timestamp,
        /// The signal and each member's data.
        aggregation: Arc<Aggregation>,
        /// The rules that it was aggregated under.
        #[serde(default)]
        edition: Edition,
    },
    /// A member gave its verdict on the aggregated data.
    ValidationReceived {
        /// The member.
        did: Did,
        /// Its verdict.
        approved: bool,
        /// The digest of the verdict.
        digest: MessageDigest,
    },
    /// Every member approved.
    ValidationCompleted {
        /// When.
        at: Timestamp,
    },
    /// The operator could not provide the transaction yet.
    TransactionDeferred {
        /// When to request it again.
        retry_at: Timestamp,
        /// The operator's reason, as text.
        reason: String,
    },
    /// The transaction was requested again.
    TransactionRequested {
        /// When.
        at: Timestamp,
    },
    /// The transaction was checked, and the members were asked to confirm their presence before signing.
    PresenceRequested {
        /// When.
        at: Timestamp,
        /// The unsigned beacon transaction.
        transaction: Transaction,
        /// The value of the output that it spends.
        value: Amount,
    },
    /// A member confirmed its presence.
    PresenceConfirmed {
        /// The member.
        did: Did,
    },
    /// The transaction was checked and passed to a signing session.
    SigningStarted {
        /// When.
        at: Timestamp,
        /// The session.
        session_id: SessionId,
        /// The unsigned beacon transaction.
        transaction: Transaction,
        /// The value of the output that it spends.
        value: Amount,
        /// The members that did not confirm their presence. If there are any, the session starts with the fallback.
        absent: Vec<Did>,
        /// The members that the request for it did not reach: then too.
        #[serde(default, skip_serializing_if = "Unreached::is_empty")]
        unreached: Unreached,
    },
    /// A fault of a member was recorded.
    FaultRecorded {
        /// The fault.
        fault: Fault,
    },
    /// The transaction is signed.
    CohortCompleted {
        /// When.
        at: Timestamp,
        /// The signed transaction and the path that it takes.
        outcome: Arc<Signed>,
        /// The digests of the signing session's messages, in order.
        digests: Vec<MessageDigest>,
    },
    /// The cohort ended without a transaction.
    CohortFailed {
        /// When.
        at: Timestamp,
        /// Why.
        reason: CohortFailure,
        /// The terms of the cohort that replaces it, if there is one.
        successor: Option<Arc<CohortTerms>>,
    },
}

/// An event of a cohort at one of its participants. It never holds a secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ParticipantEvent {
    /// The advert was read; the host is asked whether to join.
    CohortDiscovered {
        /// When.
        at: Timestamp,
        /// The advert.
        advert: Arc<Advert>,
        /// How long to wait for the service.
        timing: Timing,
    },
    /// The host joined.
    OptedIn {
        /// When.
        at: Timestamp,
    },
    /// The service admitted us.
    OptInAccepted,
    /// The cohort is formed, and its address follows from the keys and the terms.
    CohortReady {
        /// When.
        at: Timestamp,
        /// The beacon output that we derived.
        output: BeaconOutput,
    },
    /// We sent our update to the service.
    UpdateSubmitted {
        /// When.
        at: Timestamp,
        /// The update.
        update: SignedUpdate,
    },
    /// Our own checks refused our host's update. We decline instead, so that the cohort does not wait for us.
    UpdateRefused {
        /// When.
        at: Timestamp,
        /// The rule that it breaks, as text.
        reason: String,
    },
    /// We declined to update.
    UpdateDeclined {
        /// When.
        at: Timestamp,
    },
    /// The aggregated data arrived.
    DataReceived {
        /// When.
        at: Timestamp,
        /// The part of it that is ours.
        data: Arc<BeaconData>,
        /// The signal, recomputed from the data; or why the data is wrong.
        verdict: Result<SignalBytes, String>,
    },
    /// We gave our verdict.
    ValidationSent {
        /// When.
        at: Timestamp,
        /// Approved or not.
        approved: bool,
    },
    /// We confirmed our presence, as the service requested.
    PresenceConfirmed,
    /// The beacon transaction arrived and passed our checks. The host is asked whether to sign it.
    SigningRequested {
        /// When.
        at: Timestamp,
        /// The session.
        session_id: SessionId,
        /// The unsigned transaction.
        transaction: Transaction,
        /// The value of the output that it spends.
        value: Amount,
        /// The path to be signed.
        path: SpendPath,
        /// Until when the service may request the fallback, if the service states it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
    },
    /// The host approved of signing the transaction.
    SigningApproved {
        /// When.
        at: Timestamp,
    },
    /// We sent our public nonce to the service. From here on the session is spent if the secret nonce is lost.
    NonceSent {
        /// When.
        at: Timestamp,
        /// The public nonce.
        nonce: Bytes<66>,
    },
    /// The aggregate nonce arrived. The secret nonce is used now, once.
    AggregatedNonceReceived {
        /// When.
        at: Timestamp,
        /// The aggregate nonce.
        nonce: Bytes<66>,
    },
    /// We received a nonce of ours for a session that this journal does not know. The journal comes from a backup,
    /// and the session is spent.
    NonceSeen {
        /// When.
        at: Timestamp,
        /// The session.
        session_id: SessionId,
    },
    /// The secret nonce is lost (a restart after [`NonceSent`](Self::NonceSent)). The key path of this session cannot
    /// be signed any more.
    NonceLost {
        /// When.
        at: Timestamp,
    },
    /// We sent our partial signature to the service.
    PartialSignatureSent {
        /// When.
        at: Timestamp,
        /// The partial signature.
        signature: Bytes<32>,
    },
    /// The service requested the fallback path of our session.
    FallbackRequested {
        /// When.
        at: Timestamp,
    },
    /// We sent our fallback signature to the service.
    FallbackSignatureSent {
        /// When.
        at: Timestamp,
        /// The signature.
        signature: Bytes<64>,
    },
    /// The service sent the signed transaction, and it announces what we approved.
    TransactionSeen {
        /// When.
        at: Timestamp,
        /// The transaction, with its witness.
        transaction: Arc<Transaction>,
        /// The path that it takes.
        path: SpendPath,
    },
    /// The session is over.
    SessionEnded {
        /// When.
        at: Timestamp,
        /// Why.
        reason: SessionEnd,
    },
}

impl ParticipantEvent {
    /// Whether it belongs to the signing of the transaction, which has its own deadlines and no TTL.
    pub(super) const fn concerns_signing(&self) -> bool {
        matches!(
            self,
            Self::SigningRequested { .. }
                | Self::SigningApproved { .. }
                | Self::NonceSent { .. }
                | Self::AggregatedNonceReceived { .. }
                | Self::NonceLost { .. }
                | Self::NonceSeen { .. }
                | Self::PartialSignatureSent { .. }
                | Self::FallbackRequested { .. }
                | Self::FallbackSignatureSent { .. }
                | Self::TransactionSeen { .. }
        )
    }
}
