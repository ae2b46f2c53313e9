//! The decisions of the hosts of standing cohorts: async traits that the actors ask.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use bitcoin::{FeeRate, Transaction, TxOut, Txid};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        ArchivedBoard, Board, CoinRef, Mode, Opportunity, OpportunityKind, RowAction, StandingPolicy,
        StandingTerms, Succession, Successor,
        message::{AskedRow, ControlProof},
        seat::{KnownVersions, OwnEntry, SeatUpdate},
    },
    did::Did,
    hash::{DidIndex, DocumentHash, SignalBytes},
    id::CohortId,
    identity::Identity,
    invite::{InviteProof, InviteToken},
    key::PublicKey,
};
use serde_json::Value;

use crate::{policy::PolicyError, subject::NetworkAddress};

/// What an announcement may cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// The fee rate. The terms bound it.
    pub rate: FeeRate,
    /// The operator's own output, which pays for bumps; there may be none.
    pub operator: Option<TxOut>,
}

/// A number whose transaction is to be priced.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PriceRequest {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The number.
    pub number: u64,
    /// How it is signed: by fallback it is larger.
    pub mode: Mode,
    /// What is announced; nothing by a refresh.
    pub signal: Option<SignalBytes>,
}

/// Updates that a seat submits.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UpdatesToCheck {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The number.
    pub number: u64,
    /// The seat.
    pub seat: PublicKey,
    /// Each update with the index of its DID.
    pub updates: Vec<(DidIndex, Value)>,
}

/// A participant that asks for a seat.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SeatApplicant {
    /// The DID of the seat, which is of this cohort only.
    pub did: Did,
    /// The DID as which it applies, if it has shown one. Proven when it is asked about for [admission](StandingServicePolicy::admit), and
    /// not before.
    pub applies_as: Option<Did>,
    /// The invite that it presents.
    pub invite: Option<InviteProof>,
    /// Its network address, if the transport knows it.
    pub address: Option<NetworkAddress>,
}

/// The operator of standing cohorts.
#[async_trait]
pub trait StandingServicePolicy: Send + Sync {
    /// Whether to consider a request for a seat at all; `Err` refuses it, with the reason. Must answer at once: it is asked for each request
    /// of a participant that is not a candidate yet. Considers every one by default.
    fn screen(&self, cohort_id: &CohortId, applicant: &SeatApplicant) -> Result<(), String> {
        let _ = (cohort_id, applicant);
        Ok(())
    }

    /// Whether to give a seat; `Err` refuses, with the reason. Admits every candidate by default.
    async fn admit(&self, cohort_id: &CohortId, applicant: &SeatApplicant) -> Result<(), String> {
        let _ = (cohort_id, applicant);
        Ok(())
    }

    /// A candidate that was admitted has no seat after all: the cohort has formed without it. What its admission has used up can be given
    /// back.
    async fn release(&self, cohort_id: &CohortId, applicant: &SeatApplicant) {
        let _ = (cohort_id, applicant);
    }

    /// Why a row of proven registration is not proven, for each row. `digest` is what a key of the DID's `capabilityInvocation` signs.
    async fn check_control(&self, cohort_id: &CohortId, row: &AskedRow, digest: &[u8; 32]) -> Result<(), String>;

    /// The keys that control a DID of this cohort now: those of `capabilityInvocation`. They prove control to get the DID's proofs. By
    /// default that of a KEY DID.
    ///
    /// # Errors
    /// Why they cannot be found, in words.
    async fn control_keys(&self, cohort_id: &CohortId, did: &Did) -> Result<Vec<PublicKey>, String> {
        let _ = cohort_id;
        Ok(did.key().into_iter().collect())
    }

    /// Checks updates by rules U, as far as the operator can, and stores them; `Err` refuses the response, with the reason. Only in cohorts
    /// whose service receives updates.
    async fn check_updates(&self, updates: &UpdatesToCheck) -> Result<(), String>;

    /// The price of a number.
    async fn price(&self, request: &PriceRequest) -> Result<Price, PolicyError>;
}

/// Admits every candidate and every row, checks that updates are such of their DID, and pays 1 sat/vB: for simulations with throw-away keys.
#[derive(Clone, Debug)]
pub struct DefaultStandingPolicy {
    /// The price of every number.
    pub price: Price,
}

impl Default for DefaultStandingPolicy {
    fn default() -> Self {
        Self { price: Price { rate: FeeRate::BROADCAST_MIN, operator: None } }
    }
}

#[async_trait]
impl StandingServicePolicy for DefaultStandingPolicy {
    async fn check_control(&self, _: &CohortId, _: &AskedRow, _: &[u8; 32]) -> Result<(), String> {
        Ok(())
    }

    async fn check_updates(&self, _: &UpdatesToCheck) -> Result<(), String> {
        Ok(())
    }

    async fn price(&self, _: &PriceRequest) -> Result<Price, PolicyError> {
        Ok(self.price.clone())
    }
}

/// A standing cohort, as a member's policy sees it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StandingOffer {
    /// The service.
    pub service: Did,
    /// The cohort.
    pub cohort_id: CohortId,
    /// Its terms.
    pub terms: Arc<StandingTerms>,
    /// The cohort that it succeeds, if it does: signed by the service.
    pub succeeds: Option<Succession>,
}

/// A seat of a formed cohort.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SeatView {
    /// The service.
    pub service: Did,
    /// The cohort.
    pub cohort_id: CohortId,
    /// Its terms.
    pub terms: Arc<StandingTerms>,
    /// The seat's own DID.
    pub seat: Did,
    /// The beacon address.
    pub beacon_address: String,
    /// The seat's key.
    pub key: PublicKey,
}

/// A number in which updates can be submitted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UpdatesAsked {
    /// The opportunity.
    pub opportunity: Arc<Opportunity>,
    /// Updates that may be announced already: only the identical one of that version may be chosen.
    pub committed: Vec<(DidIndex, u64, DocumentHash)>,
    /// Index and version of those that an unconfirmed ancestor announces.
    pub announced: BTreeSet<(DidIndex, u64)>,
    /// The indexes for which the seat answers.
    pub indexes: BTreeSet<DidIndex>,
    /// In a move: where the DIDs go. The update of each of its indexes replaces the beacon address by that of the successor, and does nothing
    /// else that must not wait.
    pub move_to: Option<MoveTo>,
}

/// The cohort to which the DIDs of a seat move.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MoveTo {
    /// The successor: its address follows from its keys, and its terms are accepted by [`SeatPolicy::standing_policy`].
    pub successor: Arc<Successor>,
    /// The seat's indexes that another seat of this member has registered there, as k seats there have signed.
    pub indexes: BTreeSet<DidIndex>,
    /// Its other indexes.
    pub others: BTreeSet<DidIndex>,
}

/// The answer to [`UpdatesAsked`].
#[derive(Clone, Debug, Default)]
pub struct UpdatesChosen {
    /// The version of each DID that resolvers give, finally.
    pub resolved: Vec<(DidIndex, u64)>,
    /// The updates, each of another DID.
    pub updates: Vec<SeatUpdate>,
}

/// A board whose transaction the seat has verified, and is to sign.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BoardToSign {
    /// The number.
    pub number: u64,
    /// What the transaction does.
    pub kind: OpportunityKind,
    /// What it spends. The signatures commit to the values.
    pub coins: Vec<CoinRef>,
    /// The board. It is stored already.
    pub board: Arc<Board>,
    /// The transaction, unsigned.
    pub transaction: Transaction,
    /// How it is signed.
    pub mode: Mode,
    /// Its virtual size when it is signed, in vB.
    pub vsize: u64,
    /// What this seat has put under each of its indexes.
    pub entries: Vec<OwnEntry>,
}

/// A board that was announced without this seat.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MissedBoard {
    /// The number.
    pub number: u64,
    /// The transaction.
    pub txid: Txid,
    /// The board, which gives the signal that was reported.
    pub board: Arc<ArchivedBoard>,
    /// Its hash.
    pub board_hash: DocumentHash,
    /// The nonce of the leaf of each index of this seat, in an SMT cohort: the seat may have responded, and others have signed without it.
    pub nonces: Vec<(DidIndex, [u8; 32])>,
}

/// A DID to register, or to release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowWanted {
    /// The DID.
    pub did: Did,
    /// What to do.
    pub action: RowAction,
}

/// What proven registration needs.
#[derive(Clone, Debug)]
pub struct Control {
    /// A method of the DID's `capabilityInvocation`, and its signature of the row.
    pub proof: ControlProof,
    /// The genesis document of an EXTERNAL DID.
    pub genesis_document: Option<Value>,
    /// The Sidecar Data with which the service resolves a DID that has been updated.
    pub sidecar: Option<Value>,
}

/// The controller of seats.
#[async_trait]
pub trait SeatPolicy: Send + Sync {
    /// Whether to ask for a seat; `Err` declines, with the reason. The terms are accepted by [`Self::standing_policy`] already.
    async fn joins(&self, offer: &StandingOffer) -> Result<(), String>;

    /// An invite of the service's operator, with which seats are asked for.
    fn invite(&self) -> Option<InviteToken> {
        None
    }

    /// A KEY DID as which seats are asked for, for a service that admits by a list: the DID of a seat is of its cohort only. It links the
    /// seats.
    fn applies_as(&self) -> Option<Identity> {
        None
    }

    /// What is accepted of terms.
    fn standing_policy(&self) -> StandingPolicy {
        StandingPolicy::default()
    }

    /// The DIDs to register once the cohort has formed.
    async fn registers(&self, seat: &SeatView) -> Vec<RowWanted>;

    /// Proves control of a DID: `digest` is to be signed by a key of its `capabilityInvocation`. `None` if it cannot be proven: the row is then
    /// not sent.
    async fn proves(&self, did: &Did, digest: &[u8; 32]) -> Option<Control>;

    /// Whether there are updates that [need a number](KnownVersions::needs_number), by what the seat knows and what the host knows.
    async fn has_updates(&self, seat: &SeatView, known: &KnownVersions) -> bool;

    /// The updates of a number.
    async fn chooses(&self, seat: &SeatView, asked: &UpdatesAsked) -> UpdatesChosen;

    /// The indexes that do not move with their cohort: their DIDs move by their Singleton, or have left. The seat signs no move that would leave
    /// any other behind. None by default.
    async fn leaves_behind(&self, seat: &SeatView, move_to: &MoveTo) -> Vec<DidIndex> {
        let _ = (seat, move_to);
        Vec::new()
    }

    /// Stores what resolvers need of an announcement from which the seat was absent; `Err` gives the reason, and it is asked again later. It may
    /// be asked again for what it has stored.
    async fn missed(&self, seat: &SeatView, missed: &MissedBoard) -> Result<(), String> {
        let _ = (seat, missed);
        Ok(())
    }

    /// Stores what resolvers need of a board; `Err` refuses to sign, with the reason.
    async fn signs(&self, seat: &SeatView, board: &BoardToSign) -> Result<(), String>;
}
