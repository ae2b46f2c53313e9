//! Inputs, events and effects of a standing cohort at its service.

use std::sync::Arc;

use bitcoin::{Transaction, Txid};
use serde::{Deserialize, Serialize};

use super::saved::SavedCohort;
use crate::{
    cohort::standing::{
        message::{AskedRow, StandingMessage},
        number::{NumberEnd, NumberTask, Why},
        opportunity::{CoinRef, Opportunity, OpportunityKind},
        roster::Row,
        successor::{Succession, Successor},
        terms::StandingTerms,
    },
    did::Did,
    hash::DidIndex,
    invite::InviteProof,
    key::{PublicKey, Signature},
    output::BeaconOutput,
    time::Timestamp,
};

/// With what a participant asks for a seat, beside its key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Credentials {
    /// The proof of an invite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invite: Option<InviteProof>,
    /// The DID as which it applies, proven.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applicant: Option<Did>,
}

/// An input of a standing cohort.
#[derive(Clone, Debug, PartialEq)]
pub enum CohortInput {
    /// Begin: advertise the cohort.
    Advertise,
    /// Begin: advertise the cohort as the successor of another one.
    AdvertiseSuccessor(Succession),
    /// The successor has formed; signed by the service.
    SuccessorFormed(Arc<Successor>),
    /// A peer's message, authenticated by its transport.
    Message {
        /// The sender.
        from: Did,
        /// The message.
        message: StandingMessage,
    },
    /// The host's answer to [`CohortEffect::AskAdmission`].
    Admitted {
        /// Who.
        did: Did,
        /// Why not, if not.
        refusal: Option<String>,
    },
    /// The host forms the cohort of those admitted so far.
    Finalize,
    /// The host's answer to [`CohortEffect::CheckControl`]: for each row why it is not proven, if it is not.
    ControlChecked {
        /// The seat's DID.
        from: Did,
        /// The rows, as they were asked for.
        rows: Vec<(AskedRow, Option<String>)>,
    },
    /// A deposit at the beacon address that is final.
    CoinFound(CoinRef),
    /// A coin of this cohort was spent by a transaction that is final.
    Spent {
        /// The coin.
        coin: CoinRef,
        /// By which transaction.
        by: Txid,
    },
    /// The host's answer to [`CohortEffect::SignOpportunity`].
    OpportunitySigned(Arc<Opportunity>),
    /// The number has ended.
    NumberEnded {
        /// The number.
        number: u64,
        /// How.
        end: NumberEnd,
    },
    /// The host opens a number now, within the cadence; or one that joins all coins, moves to the successor, or shows the roster.
    OpenNow {
        /// What it does.
        kind: OpportunityKind,
    },
    /// The host opens no number until it is released, or releases it.
    Hold {
        /// Whether it is held.
        held: bool,
    },
    /// Time has passed.
    Tick,
}

/// An event of a standing cohort at its service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CohortEvent {
    /// The cohort was advertised. Its journal begins with this, or with [`Saved`](Self::Saved).
    Advertised {
        /// When.
        at: Timestamp,
        /// Its terms.
        terms: Arc<StandingTerms>,
        /// The service.
        service: Did,
        /// The cohort that it succeeds, if it does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        succeeds: Option<Succession>,
    },
    /// All that earlier events have led to: it replaces them in the journal.
    Saved(Box<SavedCohort>),
    /// A participant has asked for a seat.
    SeatAsked {
        /// When.
        at: Timestamp,
        /// Who.
        did: Did,
        /// The seat key.
        seat: PublicKey,
        /// With what it asks.
        #[serde(default)]
        credentials: Credentials,
    },
    /// It has one.
    SeatAdmitted {
        /// When.
        at: Timestamp,
        /// Who.
        did: Did,
        /// The seat key.
        seat: PublicKey,
        /// With what it has asked.
        #[serde(default)]
        credentials: Credentials,
    },
    /// It has none.
    SeatRefused {
        /// When.
        at: Timestamp,
        /// Who.
        did: Did,
        /// Why.
        reason: String,
    },
    /// The cohort has formed of those admitted.
    Formed {
        /// When.
        at: Timestamp,
        /// The output.
        output: BeaconOutput,
    },
    /// Rows were registered, and others refused.
    RowsSettled {
        /// When.
        at: Timestamp,
        /// The seat's DID.
        from: Did,
        /// Those that are new, and count from the next number on.
        registered: Vec<Row>,
        /// Index and serial of those that were registered before.
        known: Vec<(DidIndex, u64)>,
        /// Index and serial of those that do not count, with the reason.
        refused: Vec<(DidIndex, u64, String)>,
    },
    /// A seat has returned rows that this service has lost.
    RowsRestored {
        /// When.
        at: Timestamp,
        /// The rows.
        rows: Vec<Row>,
    },
    /// A seat has updates.
    PendingReceived {
        /// When.
        at: Timestamp,
        /// The seat.
        seat: PublicKey,
    },
    /// A coin for announcements.
    CoinArrived {
        /// When.
        at: Timestamp,
        /// The coin.
        coin: CoinRef,
    },
    /// The cohort to which this one moves has formed.
    SuccessorNamed {
        /// When.
        at: Timestamp,
        /// The successor, signed by the service.
        successor: Arc<Successor>,
        /// The output that follows from its keys.
        output: BeaconOutput,
    },
    /// A number is to be opened; its opportunity is being signed.
    NumberPlanned {
        /// When.
        at: Timestamp,
        /// The opportunity, not signed yet.
        opportunity: Arc<Opportunity>,
        /// Whether k seats sign it, since a seat was silent or refused in the number before.
        by_fallback: bool,
    },
    /// The number is open.
    NumberOpened {
        /// When.
        at: Timestamp,
        /// The service's signature of the planned opportunity.
        signature: Signature,
    },
    /// The number has ended.
    NumberEnded {
        /// When.
        at: Timestamp,
        /// The number.
        number: u64,
        /// How.
        end: NumberEnd,
    },
    /// A seat has answered a higher number than this service knows of: it was restored from a backup. Numbers up to that one are used.
    NumbersSkipped {
        /// When.
        at: Timestamp,
        /// The highest used number.
        to: u64,
    },
    /// The host holds the cohort: no number opens; or it has released it.
    Held {
        /// When.
        at: Timestamp,
        /// Whether it is held.
        held: bool,
    },
    /// An announcement is final.
    Confirmed {
        /// When.
        at: Timestamp,
        /// Its number.
        number: u64,
    },
    /// Another transaction has spent the coin of an announcement: it, and all that descend from it, can never be mined.
    Voided {
        /// When.
        at: Timestamp,
        /// The coin.
        coin: CoinRef,
        /// The numbers.
        numbers: Vec<u64>,
        /// The transaction that has spent the coin.
        by: Txid,
    },
}

/// What a standing cohort's service needs done.
#[derive(Clone, Debug, PartialEq)]
pub enum CohortEffect {
    /// Send to every peer.
    Broadcast(StandingMessage),
    /// Send to a seat.
    Send {
        /// The seat's DID.
        to: Did,
        /// The message.
        message: StandingMessage,
    },
    /// Answer with [`CohortInput::Admitted`].
    AskAdmission {
        /// Who asks.
        did: Did,
        /// Its seat key.
        seat: PublicKey,
        /// With what it asks.
        credentials: Credentials,
    },
    /// Check that the sender controls these DIDs, by a resolver; answer with [`CohortInput::ControlChecked`].
    CheckControl {
        /// The seat's DID.
        from: Did,
        /// The rows.
        rows: Vec<AskedRow>,
    },
    /// Sign with the service's key; answer with [`CohortInput::OpportunitySigned`].
    SignOpportunity(Arc<Opportunity>),
    /// Run this number, from its journal if it has one; answer with [`CohortInput::NumberEnded`].
    RunNumber(Arc<NumberTask>),
    /// Broadcast these transactions, in this order, and follow them. They are broadcast again until they are final.
    Announce(Vec<Arc<Transaction>>),
    /// The coin of the open number is gone: end it with [`NumberInput::Abandoned`](crate::cohort::standing::number::NumberInput::Abandoned).
    AbandonNumber {
        /// The number.
        number: u64,
        /// Why.
        reason: String,
    },
    /// A number has failed; which seats were silent, which refused.
    Failed {
        /// The number.
        number: u64,
        /// Why.
        why: Why,
    },
}
