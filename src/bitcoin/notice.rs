//! What subscribers hear of announcements: one typed notice for every step, named as those of the actors are.

use ::bitcoin::{Address, Amount, OutPoint, Txid};
use serde::Serialize;

use super::{
    announcement::{Announcement, AnnouncementEvent, AnnouncementFailure, State},
    chain::{BlockId, RejectionKind},
    fees::sat_per_vb,
};
use crate::protocol::{hash::SignalBytes, id::CohortId, network::Network, time::Timestamp};

/// A step of an announcement. Values are in satoshis, rates in sat/vB.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the fields are what their names and types say")]
pub enum AnnouncementNotice {
    /// The beacon address waits for a deposit, until `deadline` in milliseconds since the Unix epoch.
    FundingWanted { cohort_id: CohortId, beacon_address: String, deadline: Timestamp },
    /// A deposit is there: in the mempool, or in a block.
    DepositSeen {
        cohort_id: CohortId,
        outpoint: OutPoint,
        #[serde(with = "::bitcoin::amount::serde::as_sat")]
        value: Amount,
        block: Option<BlockId>,
    },
    /// A deposit is no longer there.
    DepositGone { cohort_id: CohortId, outpoint: OutPoint },
    /// A transaction that nobody was asked to sign spends from the beacon address. `signal` is what it announces, if that
    /// could be read: a signal that no member approved.
    ForeignSpend {
        cohort_id: CohortId,
        outpoint: OutPoint,
        by: Txid,
        block: Option<BlockId>,
        signal: Option<SignalBytes>,
    },
    /// The members are asked to sign.
    AnnouncementPrepared { cohort_id: CohortId, txid: Txid, coin: OutPoint, fee_rate: f64 },
    /// The chain took the announcement.
    AnnouncementBroadcast { cohort_id: CohortId, txid: Txid },
    /// It did not.
    AnnouncementRefused { cohort_id: CohortId, txid: Txid, kind: RejectionKind, reason: String },
    /// It is not in sight, and is handed in again.
    AnnouncementRebroadcast { cohort_id: CohortId, txid: Txid },
    /// A child pays for it. `fee_rate` is what both are to pay.
    AnnouncementBumped {
        cohort_id: CohortId,
        txid: Txid,
        child: Txid,
        #[serde(with = "::bitcoin::amount::serde::as_sat")]
        child_fee: Amount,
        fee_rate: f64,
    },
    /// It is stuck, and cannot be bumped.
    AnnouncementStuck { cohort_id: CohortId, txid: Txid, reason: String },
    /// It is confirmed, so many blocks deep.
    AnnouncementConfirmed { cohort_id: CohortId, txid: Txid, block: BlockId, depth: u32, of: u32 },
    /// It fell out of the block that confirmed it.
    AnnouncementUnconfirmed { cohort_id: CohortId, txid: Txid, block: BlockId },
    /// It is as deep as was asked for.
    AnnouncementFinal { cohort_id: CohortId, txid: Txid, block: BlockId },
    /// There will be no announcement. `left` stays at the beacon address, for `recover` to take back.
    AnnouncementFailed {
        cohort_id: CohortId,
        failure: AnnouncementFailure,
        reason: String,
        #[serde(with = "::bitcoin::amount::serde::as_sat")]
        left: Amount,
    },
    /// The timelock of a coin at the beacon address passes soon: in a block of `height` or later, about `expected` (seconds
    /// since the Unix epoch), the recovery key can spend it without any member.
    RecoveryNear {
        cohort_id: CohortId,
        outpoint: OutPoint,
        #[serde(with = "::bitcoin::amount::serde::as_sat")]
        value: Amount,
        height: u32,
        blocks: u32,
        expected: u64,
    },
    /// It has passed.
    RecoveryPossible {
        cohort_id: CohortId,
        outpoint: OutPoint,
        #[serde(with = "::bitcoin::amount::serde::as_sat")]
        value: Amount,
        height: u32,
    },
    /// No block came for long.
    ChainStalled { cohort_id: CohortId },
    /// The chain cannot be asked. Said once, until it can be again.
    ChainUnavailable { cohort_id: CohortId, problem: String },
    /// The chain can be asked again.
    ChainAvailable { cohort_id: CohortId },
}

impl AnnouncementNotice {
    /// A line for people.
    pub fn text(&self) -> String {
        let sat = |value: &Amount| format!("{} sat", value.to_sat());
        match self {
            Self::FundingWanted { cohort_id, beacon_address, .. } => {
                format!("cohort {cohort_id} waits for a deposit to {beacon_address}")
            }
            Self::DepositSeen { outpoint, value, block: None, .. } => {
                format!("  deposit of {} in the mempool: {outpoint}", sat(value))
            }
            Self::DepositSeen { outpoint, value, block: Some(block), .. } => {
                format!("  deposit of {} in block {}: {outpoint}", sat(value), block.height)
            }
            Self::DepositGone { outpoint, .. } => format!("  a deposit is gone: {outpoint}"),
            Self::ForeignSpend { cohort_id, outpoint, by, signal, .. } => {
                let signal = match signal {
                    Some(signal) => format!("it announces {signal}, which no member approved"),
                    None => "it announces nothing".to_owned(),
                };
                format!(
                    "ALARM: cohort {cohort_id}: {by} spends {outpoint}, and nobody was asked to sign it; {signal}"
                )
            }
            Self::AnnouncementPrepared { txid, coin, fee_rate, .. } => {
                format!("  to be signed: {txid}, spends {coin} at {fee_rate} sat/vB")
            }
            Self::AnnouncementBroadcast { cohort_id, txid } => format!("cohort {cohort_id} is broadcast: {txid}"),
            Self::AnnouncementRefused { txid, reason, .. } => format!("  {txid} was refused: {reason}"),
            Self::AnnouncementRebroadcast { txid, .. } => format!("  {txid} is not in sight: broadcast again"),
            Self::AnnouncementBumped { txid, child, child_fee, fee_rate, .. } => {
                format!("  {txid} is bumped to {fee_rate} sat/vB: {child} pays {}", sat(child_fee))
            }
            Self::AnnouncementStuck { txid, reason, .. } => format!("  {txid} is stuck: {reason}"),
            Self::AnnouncementConfirmed { txid, block, depth, of, .. } => {
                format!("  {txid} is confirmed in block {}, {depth} of {of} deep", block.height)
            }
            Self::AnnouncementUnconfirmed { txid, block, .. } => {
                format!("  {txid} fell out of block {}: the chain was reorganized", block.height)
            }
            Self::AnnouncementFinal { cohort_id, txid, block } => {
                format!("cohort {cohort_id} is announced for good: {txid} in block {}", block.height)
            }
            Self::AnnouncementFailed { cohort_id, reason, left, .. } => {
                let left = match *left {
                    Amount::ZERO => String::new(),
                    ref left => format!("; {} stay at its address: see `recover`", sat(left)),
                };
                format!("cohort {cohort_id} will NOT be announced: {reason}{left}")
            }
            Self::RecoveryNear { cohort_id, outpoint, value, height, blocks, .. } => format!(
                "WARNING: cohort {cohort_id}: from height {height} on, in {blocks} blocks, the recovery key alone can \
                 spend {outpoint} ({}), and members rely on you alone: announce, or prepare to `recover`",
                sat(value)
            ),
            Self::RecoveryPossible { cohort_id, outpoint, value, .. } => format!(
                "WARNING: cohort {cohort_id}: the recovery key alone can spend {outpoint} ({}) now: `recover` it",
                sat(value)
            ),
            Self::ChainStalled { .. } => "  no block came for long: is the node still connected?".to_owned(),
            Self::ChainUnavailable { problem, .. } => format!("  the chain does not answer: {problem}"),
            Self::ChainAvailable { .. } => "  the chain answers again".to_owned(),
        }
    }
}

/// What `event`, which led to `announcement`, is to subscribers. Foreign spends are for the driver to look into.
pub(super) fn of(
    cohort_id: &CohortId,
    network: Network,
    announcement: &Announcement,
    event: &AnnouncementEvent,
) -> Option<AnnouncementNotice> {
    use AnnouncementEvent as E;
    use AnnouncementNotice as N;
    let cohort_id = cohort_id.clone();
    let announcing = match announcement.state() {
        State::Announcing(announcing) => Some(announcing),
        _ => None,
    };
    let txid = announcing.map(|announcing| announcing.txid);
    Some(match event {
        E::WatchStarted { script, deadline, .. } => N::FundingWanted {
            cohort_id,
            beacon_address: Address::from_script(script, network.to_bitcoin())
                .map_or_else(|_| script.to_hex_string(), |address| address.to_string()),
            deadline: *deadline,
        },
        E::DepositSeen { deposit, .. } => N::DepositSeen {
            cohort_id,
            outpoint: deposit.outpoint,
            value: deposit.value,
            block: deposit.place.block().copied(),
        },
        E::DepositGone { outpoint, .. } => N::DepositGone { cohort_id, outpoint: *outpoint },
        E::TransactionPrepared { prepared, .. } => N::AnnouncementPrepared {
            cohort_id,
            txid: prepared.transaction.compute_txid(),
            coin: prepared.coin.outpoint,
            fee_rate: sat_per_vb(prepared.rate),
        },
        E::HandInAccepted { txid: accepted, .. } if Some(*accepted) == txid => {
            N::AnnouncementBroadcast { cohort_id, txid: *accepted }
        }
        E::HandInRefused { txid, rejection, .. } => N::AnnouncementRefused {
            cohort_id,
            txid: *txid,
            kind: rejection.kind,
            reason: rejection.reason.clone(),
        },
        E::Rebroadcast { .. } => N::AnnouncementRebroadcast { cohort_id, txid: txid? },
        E::ChildPlanned { child, rate, .. } => N::AnnouncementBumped {
            cohort_id,
            txid: txid?,
            child: child.transaction.compute_txid(),
            child_fee: child.fee(),
            fee_rate: sat_per_vb(*rate),
        },
        E::BumpImpossible { reason, .. } => {
            N::AnnouncementStuck { cohort_id, txid: txid?, reason: reason.to_string() }
        }
        E::Confirmed { block, depth, .. } => N::AnnouncementConfirmed {
            cohort_id,
            txid: txid?,
            block: *block,
            depth: *depth,
            of: announcement.rules().confirmations,
        },
        E::Unconfirmed { block, .. } => N::AnnouncementUnconfirmed { cohort_id, txid: txid?, block: *block },
        E::Finalized { block, .. } => match announcement.state() {
            State::Final { txid, .. } => N::AnnouncementFinal { cohort_id, txid: *txid, block: *block },
            _ => return None,
        },
        E::Failed { failure, .. } => {
            let (reason, left) = (failure.to_string(), announcement.sight().unspent());
            N::AnnouncementFailed { cohort_id, failure: failure.clone(), reason, left }
        }
        E::Stalled { .. } => N::ChainStalled { cohort_id },
        E::TipSeen { .. }
        | E::SpendSeen { .. }
        | E::SpendGone { .. }
        | E::ForeignSpendSeen { .. }
        | E::TransactionSigned { .. }
        | E::HandInAccepted { .. } => return None,
    })
}
