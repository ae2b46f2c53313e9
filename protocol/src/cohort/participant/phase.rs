//! What a participant knows in each phase of a cohort, and how events change it.

use std::sync::Arc;

use bitcoin::{Amount, Transaction};

use crate::{
    beacon::BeaconData,
    cohort::event::{ParticipantEvent, SessionEnd, SpendPath},
    hash::SignalBytes,
    id::SessionId,
    message::Bytes,
    names::named,
    output::BeaconOutput,
    time::Timestamp,
    update::SignedUpdate,
};

/// The state that all phases after approval share.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    /// The cohort's output.
    pub output: BeaconOutput,
    /// Our update, `None` when we declined.
    pub update: Option<SignedUpdate>,
    /// The part of the aggregated data that is ours.
    pub data: Arc<BeaconData>,
    /// The signal, recomputed from the data.
    pub signal: SignalBytes,
}

/// The transaction that we are asked to sign.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The session.
    pub session_id: SessionId,
    /// The unsigned transaction.
    pub transaction: Transaction,
    /// The value of the output that it spends.
    pub value: Amount,
    /// Until when the service may request the fallback, if it stated that. Until then we stay, whatever our own
    /// timing is.
    pub until: Option<Timestamp>,
}

impl Request {
    /// What the fallback leaf signs; `None` when the output has no such leaf.
    pub(super) fn fallback_sighash(&self, output: &BeaconOutput) -> Option<[u8; 32]> {
        let prevout = crate::signing::prevout(output, self.value);
        output.fallback()?.sighash(&self.transaction, &prevout).ok()
    }
}

/// The stage of a signing session.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// The host is asked whether to sign.
    Deciding(SpendPath),
    /// The host approved; the nonce, or the fallback signature, is being made.
    Approved(SpendPath),
    /// Our nonce is sent.
    NonceSent(Bytes<66>),
    /// The aggregate nonce has arrived; the partial signature is being made.
    Signing(Bytes<66>),
    /// Our secret nonce is lost: only the fallback can be signed.
    NonceLost,
    /// Our partial signature is sent; the fallback may still be requested.
    PartialSent {
        /// The aggregate nonce that it was made with.
        aggregated: Bytes<66>,
    },
    /// The fallback is being signed after a partial signature was sent.
    FallbackAfterPartial,
    /// Our fallback signature is sent.
    FallbackSent(Bytes<64>),
}

impl Stage {
    /// Whether a signature of ours was sent.
    pub fn has_signed(&self) -> bool {
        matches!(self, Self::PartialSent { .. } | Self::FallbackAfterPartial | Self::FallbackSent(_))
    }
}

/// The phases of a participant in a cohort.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the fields are explained where their types are")]
pub enum Phase {
    /// The advert has not been read yet.
    Planned,
    /// The host is asked whether to join.
    Invited { deadline: Timestamp },
    /// We opted in.
    OptedIn { accepted: bool, deadline: Timestamp },
    /// The cohort is formed; the host is asked for its update.
    Ready { output: BeaconOutput, deadline: Timestamp },
    /// Our slot is filled.
    Submitted { output: BeaconOutput, update: Option<SignedUpdate>, deadline: Timestamp },
    /// The data has arrived; the host is asked for its verdict.
    Validating {
        output: BeaconOutput,
        update: Option<SignedUpdate>,
        data: Arc<BeaconData>,
        verdict: Result<SignalBytes, String>,
        deadline: Timestamp,
    },
    /// We approved. `present` when the service has requested our presence confirmation since.
    Approved { round: Arc<Round>, present: bool, deadline: Timestamp },
    /// The transaction has arrived.
    Signing { round: Arc<Round>, request: Arc<Request>, stage: Stage, deadline: Timestamp },
    /// The session is over. `signed` holds the round when a signature of ours was sent, or when the other members
    /// have signed without us: the data that we approved is announced in both cases.
    Ended { reason: SessionEnd, signed: Option<Arc<Round>> },
}

named! {
    /// The phase of a participant in a cohort, without its data.
    PhaseKind {
        /// Planned.
        Planned = "planned",
        /// Deciding whether to join.
        Invited = "deciding whether to join",
        /// Waiting for the cohort to form.
        OptedIn = "waiting for the cohort to form",
        /// Preparing the update.
        Ready = "preparing the update",
        /// Waiting for the aggregated data.
        Submitted = "waiting for the aggregated data",
        /// Validating.
        Validating = "validating",
        /// Waiting for the transaction.
        Approved = "waiting for the transaction",
        /// Signing.
        Signing = "signing",
        /// Ended.
        Ended = "ended",
    }
}

impl Phase {
    /// The phase without its data.
    pub const fn kind(&self) -> PhaseKind {
        match self {
            Self::Planned => PhaseKind::Planned,
            Self::Invited { .. } => PhaseKind::Invited,
            Self::OptedIn { .. } => PhaseKind::OptedIn,
            Self::Ready { .. } => PhaseKind::Ready,
            Self::Submitted { .. } => PhaseKind::Submitted,
            Self::Validating { .. } => PhaseKind::Validating,
            Self::Approved { .. } => PhaseKind::Approved,
            Self::Signing { .. } => PhaseKind::Signing,
            Self::Ended { .. } => PhaseKind::Ended,
        }
    }

    /// The phase's name, as text.
    pub const fn name(&self) -> &'static str {
        self.kind().as_str()
    }

    pub(super) fn deadline(&self) -> Option<Timestamp> {
        match self {
            Self::Planned | Self::Ended { .. } => None,
            Self::Invited { deadline }
            | Self::OptedIn { deadline, .. }
            | Self::Ready { deadline, .. }
            | Self::Submitted { deadline, .. }
            | Self::Validating { deadline, .. }
            | Self::Approved { deadline, .. }
            | Self::Signing { deadline, .. } => Some(*deadline),
        }
    }

    /// An event that does not fit the phase changes nothing. It cannot be decided, so no journal of ours has one.
    pub(super) fn apply(&mut self, event: &ParticipantEvent, deadline_from: impl Fn(Timestamp) -> Timestamp) {
        match (event, &mut *self) {
            (ParticipantEvent::CohortDiscovered { at, .. }, Self::Planned) => {
                *self = Self::Invited { deadline: deadline_from(*at) };
            }
            (ParticipantEvent::OptedIn { at }, Self::Invited { .. }) => {
                *self = Self::OptedIn { accepted: false, deadline: deadline_from(*at) };
            }
            (ParticipantEvent::OptInAccepted, Self::OptedIn { accepted, .. }) => *accepted = true,
            (ParticipantEvent::CohortReady { at, output }, Self::OptedIn { .. }) => {
                *self = Self::Ready { output: output.clone(), deadline: deadline_from(*at) };
            }
            (ParticipantEvent::UpdateSubmitted { at, update }, Self::Ready { output, .. }) => {
                *self = Self::Submitted {
                    output: output.clone(),
                    update: Some(update.clone()),
                    deadline: deadline_from(*at),
                };
            }
            (ParticipantEvent::UpdateDeclined { at }, Self::Ready { output, .. }) => {
                *self = Self::Submitted { output: output.clone(), update: None, deadline: deadline_from(*at) };
            }
            (ParticipantEvent::DataReceived { at, data, verdict }, Self::Submitted { output, update, .. }) => {
                *self = Self::Validating {
                    output: output.clone(),
                    update: update.take(),
                    data: Arc::clone(data),
                    verdict: verdict.clone(),
                    deadline: deadline_from(*at),
                };
            }
            (
                ParticipantEvent::ValidationSent { at, approved: true },
                Self::Validating { output, update, data, verdict: Ok(signal), .. },
            ) => {
                let round = Round {
                    output: output.clone(),
                    update: update.take(),
                    data: Arc::clone(data),
                    signal: *signal,
                };
                *self = Self::Approved { round: Arc::new(round), present: false, deadline: deadline_from(*at) };
            }
            (ParticipantEvent::PresenceConfirmed, Self::Approved { present, .. }) => *present = true,
            (
                ParticipantEvent::SigningRequested { at, session_id, transaction, value, path, until },
                Self::Approved { round, .. },
            ) => {
                let request = Request {
                    session_id: session_id.clone(),
                    transaction: transaction.clone(),
                    value: *value,
                    until: *until,
                };
                *self = Self::Signing {
                    round: Arc::clone(round),
                    request: Arc::new(request),
                    stage: Stage::Deciding(*path),
                    deadline: deadline_from(*at).max(until.unwrap_or_default()),
                };
            }
            (ParticipantEvent::SessionEnded { reason, .. }, phase) => {
                let signed = match phase {
                    Self::Signing { round, stage, .. } if stage.has_signed() => Some(Arc::clone(round)),
                    Self::Approved { round, .. } | Self::Signing { round, .. } if reason.says_completed() => {
                        Some(Arc::clone(round))
                    }
                    _ => None,
                };
                *self = Self::Ended { reason: reason.clone(), signed };
            }
            (_, Self::Signing { stage, deadline, request, .. }) => {
                let until = request.until.unwrap_or_default();
                apply_to_stage(event, stage, deadline, |at| deadline_from(at).max(until));
            }
            _ => {}
        }
    }
}

fn apply_to_stage(
    event: &ParticipantEvent,
    stage: &mut Stage,
    deadline: &mut Timestamp,
    deadline_from: impl Fn(Timestamp) -> Timestamp,
) {
    let (at, next) = match (event, &*stage) {
        (ParticipantEvent::SigningApproved { at }, Stage::Deciding(path)) => (at, Stage::Approved(*path)),
        (ParticipantEvent::NonceSent { at, nonce }, Stage::Approved(SpendPath::KeyPath)) => {
            (at, Stage::NonceSent(*nonce))
        }
        (ParticipantEvent::AggregatedNonceReceived { at, nonce }, Stage::NonceSent(_)) => {
            (at, Stage::Signing(*nonce))
        }
        (
            ParticipantEvent::NonceLost { at },
            Stage::Approved(SpendPath::KeyPath) | Stage::NonceSent(_) | Stage::Signing(_),
        ) => (at, Stage::NonceLost),
        (ParticipantEvent::PartialSignatureSent { at, .. }, Stage::Signing(aggregated)) => {
            (at, Stage::PartialSent { aggregated: *aggregated })
        }
        (ParticipantEvent::FallbackRequested { at }, Stage::Deciding(_)) => {
            (at, Stage::Deciding(SpendPath::ScriptPath))
        }
        (ParticipantEvent::FallbackRequested { at }, Stage::PartialSent { .. }) => {
            (at, Stage::FallbackAfterPartial)
        }
        (ParticipantEvent::FallbackRequested { at }, _) => (at, Stage::Approved(SpendPath::ScriptPath)),
        (ParticipantEvent::FallbackSignatureSent { at, signature }, _) => (at, Stage::FallbackSent(*signature)),
        _ => return,
    };
    *stage = next;
    *deadline = deadline_from(*at);
}
