//! The facts that both roles journal. Past tense, and self-contained: replaying them is all that recovery needs.
//! How things end is in `ending`.

use std::sync::Arc;

use bitcoin::{Amount, Transaction};
use serde::{Deserialize, Serialize};

pub use super::ending::{CohortFailure, SessionEnd};
use super::{
    Advert, Member, Timing,
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

/// A fact in the life of a cohort at its Aggregation Service. `digest` is the transcript digest of the message that
/// caused it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ServiceEvent {
    /// The cohort was opened; the clock of its TTL starts.
    CohortAdvertised {
        /// When.
        at: Timestamp,
        /// On which terms.
        terms: Arc<CohortTerms>,
    },
    /// The advert was due again.
    AdvertRepeated {
        /// When.
        at: Timestamp,
    },
    /// A phase was given more time.
    PhaseExtended {
        /// When.
        at: Timestamp,
        /// Which.
        phase: TimedPhase,
        /// Until when.
        until: Timestamp,
    },
    /// A phase had lapsed while the service was down: its members have this long to answer. Not counted as an extension.
    GraceGiven {
        /// When.
        at: Timestamp,
        /// Which.
        phase: TimedPhase,
        /// Until when.
        until: Timestamp,
    },
    /// A participant opted in with valid keys.
    OptInReceived {
        /// Who, with which keys.
        member: Arc<Member>,
        /// Of the opt-in.
        digest: MessageDigest,
    },
    /// A candidate lost its place: it had opted in with a key that another one has now proven to be its own.
    OptInDisplaced {
        /// Who lost its place.
        fault: Fault,
        /// Whose key it is.
        by: Did,
    },
    /// The operator admitted a candidate.
    MemberAdmitted {
        /// Who.
        did: Did,
        /// When. Unknown in journals of versions whose cohorts did not settle.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<Timestamp>,
    },
    /// The operator refused a candidate.
    MemberRefused {
        /// Who.
        did: Did,
        /// Why, in the operator's words.
        reason: String,
    },
    /// The cohort was formed: its keys are aggregated, its beacon output is fixed.
    KeysAggregated {
        /// When.
        at: Timestamp,
        /// The beacon output.
        output: BeaconOutput,
    },
    /// A member's update was verified.
    UpdateReceived {
        /// Whose.
        did: Did,
        /// The update.
        update: SignedUpdate,
        /// Of the submission.
        digest: MessageDigest,
        /// The rules that it was verified by.
        #[serde(default)]
        edition: Edition,
    },
    /// A member declined to update.
    UpdateDeclined {
        /// Who.
        did: Did,
        /// Of the refusal.
        digest: MessageDigest,
    },
    /// Every slot was filled, and the updates were aggregated into the signal.
    UpdatesAggregated {
        /// When.
        at: Timestamp,
        /// The signal and each member's data.
        aggregation: Arc<Aggregation>,
        /// The rules that it was made by.
        #[serde(default)]
        edition: Edition,
    },
    /// A member gave its verdict on the aggregated data.
    ValidationReceived {
        /// Who.
        did: Did,
        /// Its verdict.
        approved: bool,
        /// Of the verdict.
        digest: MessageDigest,
    },
    /// Every member approved.
    ValidationCompleted {
        /// When.
        at: Timestamp,
    },
    /// The operator could not provide the transaction yet.
    TransactionDeferred {
        /// When to ask again.
        retry_at: Timestamp,
        /// Why, in the operator's words.
        reason: String,
    },
    /// It was time to ask for the transaction again.
    TransactionRequested {
        /// When.
        at: Timestamp,
    },
    /// The transaction was checked; before signing, the members were asked for a sign of life.
    PresenceRequested {
        /// When.
        at: Timestamp,
        /// The unsigned beacon transaction.
        transaction: Transaction,
        /// The value of the output that it spends.
        value: Amount,
    },
    /// A member is there.
    PresenceConfirmed {
        /// Who.
        did: Did,
    },
    /// The transaction was checked and handed to a signing session.
    SigningStarted {
        /// When.
        at: Timestamp,
        /// The session.
        session_id: SessionId,
        /// The unsigned beacon transaction.
        transaction: Transaction,
        /// The value of the output that it spends.
        value: Amount,
        /// Who gave no sign of life: the session begins with the fallback.
        absent: Vec<Did>,
    },
    /// A member did wrong.
    FaultRecorded {
        /// What it did.
        fault: Fault,
    },
    /// The transaction is signed.
    CohortCompleted {
        /// When.
        at: Timestamp,
        /// The signed transaction and how it came about.
        outcome: Arc<Signed>,
        /// Of the signing session's messages, in order.
        digests: Vec<MessageDigest>,
    },
    /// The cohort ended without a transaction.
    CohortFailed {
        /// When.
        at: Timestamp,
        /// Why.
        reason: CohortFailure,
        /// The cohort that takes its place, if there is one.
        successor: Option<Arc<CohortTerms>>,
    },
}

/// A fact in the life of a cohort at one of its participants. No secret is ever in one.
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
    /// The cohort is formed, and its address follows from keys and terms.
    CohortReady {
        /// When.
        at: Timestamp,
        /// The beacon output, derived by ourselves.
        output: BeaconOutput,
    },
    /// Our update went to the service.
    UpdateSubmitted {
        /// When.
        at: Timestamp,
        /// The update.
        update: SignedUpdate,
    },
    /// Our host's update is refused by our own checks. We decline in its place, so that nobody waits for us.
    UpdateRefused {
        /// When.
        at: Timestamp,
        /// Which rule it breaks, in words.
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
        /// What is in it for us.
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
    /// The service asked whether we are there.
    PresenceConfirmed,
    /// The beacon transaction arrived and is the one we want; the host is asked whether to sign it.
    SigningRequested {
        /// When.
        at: Timestamp,
        /// The session.
        session_id: SessionId,
        /// The unsigned transaction.
        transaction: Transaction,
        /// The value of the output that it spends.
        value: Amount,
        /// Which path is to be signed.
        path: SpendPath,
        /// Until when the service may ask for the fallback, as it says itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
    },
    /// The host approved of signing the transaction.
    SigningApproved {
        /// When.
        at: Timestamp,
    },
    /// Our public nonce went to the service. From here on the session is spent if the secret one is lost.
    NonceSent {
        /// When.
        at: Timestamp,
        /// The public nonce.
        nonce: Bytes<66>,
    },
    /// The aggregate nonce arrived: the secret nonce is used now, once.
    AggregatedNonceReceived {
        /// When.
        at: Timestamp,
        /// The aggregate nonce.
        nonce: Bytes<66>,
    },
    /// A nonce of ours for a session was seen that this journal does not know: it comes from a backup, and the session is
    /// spent.
    NonceSeen {
        /// When.
        at: Timestamp,
        /// The session.
        session_id: SessionId,
    },
    /// The secret nonce is gone (a restart after [`NonceSent`](Self::NonceSent)): the key path of this session cannot be
    /// signed any more.
    NonceLost {
        /// When.
        at: Timestamp,
    },
    /// Our partial signature went to the service.
    PartialSignatureSent {
        /// When.
        at: Timestamp,
        /// The partial signature.
        signature: Bytes<32>,
    },
    /// The service asked for the fallback path of the session that we take part in.
    FallbackRequested {
        /// When.
        at: Timestamp,
    },
    /// Our fallback signature went to the service.
    FallbackSignatureSent {
        /// When.
        at: Timestamp,
        /// The signature.
        signature: Bytes<64>,
    },
    /// The service showed the signed transaction, and it is the one that announces what we approved.
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
    /// Whether it belongs to the signing of the transaction, which has deadlines of its own and no TTL.
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
