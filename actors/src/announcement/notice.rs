//! The notices of announcements: one typed notice for every step, named like those of the actors.

use bitcoin::{Address, Amount, OutPoint, Script, TxOut, Txid};
use btcr2_aggregation_protocol::{
    announcement::{
        Announcement, AnnouncementEvent, AnnouncementFailure, Need, Prepared, State, change_of, fees::sat_per_vb,
    },
    chain::{BlockId, RejectionKind, Spend},
    hash::SignalBytes,
    id::CohortId,
    network::Network,
    time::Timestamp,
};
use serde::Serialize;
use strum::{IntoStaticStr, VariantNames};

/// A step of an announcement. Values are in satoshis, rates in sat/vB.
#[derive(Clone, Debug, PartialEq, Serialize, VariantNames, IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names and types describe the fields")]
#[non_exhaustive]
pub enum AnnouncementNotice {
    /// The beacon address waits for a deposit, until `deadline` in milliseconds since the Unix epoch. One deposit must
    /// hold at least `at_least`; `suggested` also pays for two bumps and one more announcement, at the current fee
    /// rate.
    FundingWanted {
        cohort_id: CohortId,
        beacon_address: String,
        deadline: Timestamp,
        #[serde(flatten, skip_serializing_if = "Option::is_none")]
        need: Option<NeededSat>,
    },
    /// A deposit is too small, and there is no sufficient one. Deposits are not added up.
    DepositTooSmall {
        cohort_id: CohortId,
        outpoint: OutPoint,
        #[serde(with = "bitcoin::amount::serde::as_sat")]
        value: Amount,
        #[serde(flatten)]
        need: NeededSat,
    },
    /// A deposit appeared, in the mempool or in a block.
    DepositSeen {
        cohort_id: CohortId,
        outpoint: OutPoint,
        #[serde(with = "bitcoin::amount::serde::as_sat")]
        value: Amount,
        block: Option<BlockId>,
    },
    /// A deposit disappeared.
    DepositGone { cohort_id: CohortId, outpoint: OutPoint },
    /// A transaction that no member was asked to sign spends from the beacon address. Sent again after a restart while
    /// this is true.
    ForeignSpend { cohort_id: CohortId, outpoint: OutPoint, by: Txid, block: Option<BlockId> },
    /// The signal of that transaction, which no member approved. Sent once the transaction could be read.
    ForeignSignal { cohort_id: CohortId, by: Txid, signal: SignalBytes },
    /// The members are asked to sign. The value of the coin minus the fee goes to `change_address`.
    AnnouncementPrepared {
        cohort_id: CohortId,
        txid: Txid,
        coin: OutPoint,
        fee_rate: f64,
        #[serde(with = "bitcoin::amount::serde::as_sat")]
        fee: Amount,
        #[serde(flatten, skip_serializing_if = "Option::is_none")]
        change: Option<ChangeSat>,
    },
    /// The chain accepted the announcement.
    AnnouncementBroadcast { cohort_id: CohortId, txid: Txid },
    /// The chain refused it.
    AnnouncementRefused { cohort_id: CohortId, txid: Txid, kind: RejectionKind, reason: String },
    /// It is not in sight, and is submitted again.
    AnnouncementRebroadcast { cohort_id: CohortId, txid: Txid },
    /// A child pays for it. `fee_rate` is the rate of both together.
    AnnouncementBumped {
        cohort_id: CohortId,
        txid: Txid,
        child: Txid,
        #[serde(with = "bitcoin::amount::serde::as_sat")]
        child_fee: Amount,
        fee_rate: f64,
    },
    /// The operator holds the transaction back; again when it is signed.
    AnnouncementHeld { cohort_id: CohortId },
    /// It is not held back any more: by the operator, or because another transaction would spend its coin.
    AnnouncementReleased { cohort_id: CohortId },
    /// It is stuck, and cannot be bumped.
    AnnouncementStuck { cohort_id: CohortId, txid: Txid, reason: String },
    /// It is confirmed at this depth.
    AnnouncementConfirmed { cohort_id: CohortId, txid: Txid, block: BlockId, depth: u32, of: u32 },
    /// The block that confirmed it was reorganized away.
    AnnouncementUnconfirmed { cohort_id: CohortId, txid: Txid, block: BlockId },
    /// It reached its final depth. `left` stays at the beacon address: the same members' next cohort can use it, or
    /// `recover` recovers it. `fee` was paid by the transaction, `child_fee` by its child; the rest of the coin is at
    /// `change_address`.
    AnnouncementFinal {
        cohort_id: CohortId,
        txid: Txid,
        block: BlockId,
        #[serde(with = "bitcoin::amount::serde::as_sat")]
        left: Amount,
        #[serde(with = "bitcoin::amount::serde::as_sat")]
        fee: Amount,
        #[serde(with = "bitcoin::amount::serde::as_sat")]
        child_fee: Amount,
        #[serde(flatten, skip_serializing_if = "Option::is_none")]
        change: Option<ChangeSat>,
    },
    /// The announcement failed. `left` stays at the beacon address and can be recovered by `recover`.
    AnnouncementFailed {
        cohort_id: CohortId,
        failure: AnnouncementFailure,
        reason: String,
        #[serde(with = "bitcoin::amount::serde::as_sat")]
        left: Amount,
    },
    /// A deposit arrived at the beacon address after its announcement had ended. Sent again after a restart.
    LateDeposit {
        cohort_id: CohortId,
        outpoint: OutPoint,
        #[serde(with = "bitcoin::amount::serde::as_sat")]
        value: Amount,
        block: Option<BlockId>,
    },
    /// The recovery key recovered a coin of the beacon address.
    CoinRecovered { cohort_id: CohortId, outpoint: OutPoint, by: Txid, block: Option<BlockId> },
    /// The timelock of a coin at the beacon address passes soon: in a block of `height` or later, about `expected` (seconds
    /// since the Unix epoch), the recovery key can spend it without any member.
    RecoveryNear {
        cohort_id: CohortId,
        outpoint: OutPoint,
        #[serde(with = "bitcoin::amount::serde::as_sat")]
        value: Amount,
        height: u32,
        blocks: u32,
        expected: u64,
    },
    /// The timelock has passed.
    RecoveryPossible {
        cohort_id: CohortId,
        outpoint: OutPoint,
        #[serde(with = "bitcoin::amount::serde::as_sat")]
        value: Amount,
        height: u32,
    },
    /// No block arrived for a long time.
    ChainStalled { cohort_id: CohortId },
    /// The chain cannot be queried. Sent once, until it can be again.
    ChainUnavailable { cohort_id: CohortId, problem: String },
    /// The chain can be queried again.
    ChainAvailable { cohort_id: CohortId },
}

impl AnnouncementNotice {
    /// The cohort that it is about.
    pub fn cohort_id(&self) -> &CohortId {
        match self {
            Self::FundingWanted { cohort_id, .. }
            | Self::DepositTooSmall { cohort_id, .. }
            | Self::DepositSeen { cohort_id, .. }
            | Self::DepositGone { cohort_id, .. }
            | Self::ForeignSpend { cohort_id, .. }
            | Self::ForeignSignal { cohort_id, .. }
            | Self::AnnouncementPrepared { cohort_id, .. }
            | Self::AnnouncementBroadcast { cohort_id, .. }
            | Self::AnnouncementRefused { cohort_id, .. }
            | Self::AnnouncementRebroadcast { cohort_id, .. }
            | Self::AnnouncementBumped { cohort_id, .. }
            | Self::AnnouncementHeld { cohort_id }
            | Self::AnnouncementReleased { cohort_id }
            | Self::AnnouncementStuck { cohort_id, .. }
            | Self::AnnouncementConfirmed { cohort_id, .. }
            | Self::AnnouncementUnconfirmed { cohort_id, .. }
            | Self::AnnouncementFinal { cohort_id, .. }
            | Self::AnnouncementFailed { cohort_id, .. }
            | Self::LateDeposit { cohort_id, .. }
            | Self::CoinRecovered { cohort_id, .. }
            | Self::RecoveryNear { cohort_id, .. }
            | Self::RecoveryPossible { cohort_id, .. }
            | Self::ChainStalled { cohort_id, .. }
            | Self::ChainUnavailable { cohort_id, .. }
            | Self::ChainAvailable { cohort_id, .. } => cohort_id,
        }
    }

    /// A line for people.
    pub fn text(&self) -> String {
        let sat = |value: &Amount| format!("{} sat", value.to_sat());
        match self {
            Self::FundingWanted { cohort_id, beacon_address, need, .. } => {
                let need = need.map_or_else(String::new, |need| format!(": deposit {}", need.0));
                format!("cohort {cohort_id} waits for a deposit to {beacon_address}{need}")
            }
            Self::DepositTooSmall { cohort_id, outpoint, value, need } => format!(
                "WARNING: cohort {cohort_id}: the deposit {outpoint} of {} is too small: deposit {}; deposits are not added up",
                sat(value),
                need.0
            ),
            Self::DepositSeen { outpoint, value, block: None, .. } => {
                format!("  deposit of {} in the mempool: {outpoint}", sat(value))
            }
            Self::DepositSeen { outpoint, value, block: Some(block), .. } => {
                format!("  deposit of {} in block {}: {outpoint}", sat(value), block.height)
            }
            Self::DepositGone { outpoint, .. } => format!("  a deposit is gone: {outpoint}"),
            Self::ForeignSpend { cohort_id, outpoint, by, .. } => {
                format!("ALARM: cohort {cohort_id}: {by} spends {outpoint}, and no member was asked to sign it")
            }
            Self::ForeignSignal { cohort_id, by, signal } => {
                format!("ALARM: cohort {cohort_id}: {by} announces {signal}, which no member approved")
            }
            Self::AnnouncementPrepared { txid, coin, fee_rate, change, .. } => {
                let change = change_text(change.as_ref());
                format!("  to be signed: {txid}, spends {coin} at {fee_rate} sat/vB{change}")
            }
            Self::AnnouncementBroadcast { cohort_id, txid } => format!("cohort {cohort_id} is broadcast: {txid}"),
            Self::AnnouncementRefused { txid, reason, .. } => format!("  {txid} was refused: {reason}"),
            Self::AnnouncementRebroadcast { txid, .. } => format!("  {txid} is not in sight: broadcast again"),
            Self::AnnouncementBumped { txid, child, child_fee, fee_rate, .. } => {
                format!("  {txid} is bumped to {fee_rate} sat/vB: {child} pays {}", sat(child_fee))
            }
            Self::AnnouncementHeld { cohort_id } => {
                format!("cohort {cohort_id}: its transaction is held back until it is released")
            }
            Self::AnnouncementReleased { cohort_id } => {
                format!("cohort {cohort_id}: its transaction is not held back any more")
            }
            Self::AnnouncementStuck { txid, reason, .. } => format!("  {txid} is stuck: {reason}"),
            Self::AnnouncementConfirmed { txid, block, depth, of, .. } => {
                format!("  {txid} is confirmed in block {}, {depth} of {of} deep", block.height)
            }
            Self::AnnouncementUnconfirmed { txid, block, .. } => {
                format!("  {txid} fell out of block {}: the chain was reorganized", block.height)
            }
            Self::AnnouncementFinal { cohort_id, txid, block, left, fee, child_fee, change } => {
                let (left, change) = (stays(*left), change_text(change.as_ref()));
                let fee = saturating_sum(*fee, *child_fee).to_sat();
                let height = block.height;
                format!(
                    "cohort {cohort_id} is announced permanently: {txid} in block {height}, for {fee} sat{change}{left}"
                )
            }
            Self::AnnouncementFailed { cohort_id, reason, left, .. } => {
                format!("cohort {cohort_id} will NOT be announced: {reason}{}", stays(*left))
            }
            Self::LateDeposit { cohort_id, outpoint, value, .. } => format!(
                "cohort {cohort_id} is over, and its address got {} more: {outpoint}; see `recover`",
                sat(value)
            ),
            Self::CoinRecovered { cohort_id, outpoint, by, .. } => {
                format!("cohort {cohort_id}: {by} recovers {outpoint}")
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

/// The destination of change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeSat {
    /// Its amount.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub change: Amount,
    /// Its address.
    pub change_address: String,
}

impl ChangeSat {
    fn of(output: Option<&TxOut>, network: Network) -> Option<Self> {
        let TxOut { value, script_pubkey } = output?;
        Some(Self { change: *value, change_address: address_of(script_pubkey, network) })
    }
}

fn address_of(script: &Script, network: Network) -> String {
    let address = Address::from_script(script, network.to_bitcoin());
    address.map_or_else(|_| script.to_hex_string(), |address| address.to_string())
}

fn change_text(change: Option<&ChangeSat>) -> String {
    change.map_or_else(String::new, |ChangeSat { change, change_address }| {
        format!("; change of {} sat goes to {change_address}", change.to_sat())
    })
}

fn saturating_sum(one: Amount, other: Amount) -> Amount {
    one.checked_add(other).unwrap_or(Amount::MAX)
}

/// The required amounts of one deposit, as in events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeededSat(pub Need);

impl Serialize for NeededSat {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut fields = serializer.serialize_struct("Need", 2)?;
        fields.serialize_field("atLeast", &self.0.at_least.to_sat())?;
        fields.serialize_field("suggested", &self.0.suggested.to_sat())?;
        fields.end()
    }
}

fn stays(left: Amount) -> String {
    match left.to_sat() {
        0 => String::new(),
        left => format!("; {left} sat stay at its address: see `recover`"),
    }
}

fn fee_of(prepared: &Prepared) -> Amount {
    let paid: Amount = prepared.transaction.output.iter().map(|output| output.value).sum();
    prepared.coin.value.checked_sub(paid).unwrap_or_default()
}

/// A beacon address waits for a deposit.
pub(super) fn funding_wanted(
    cohort_id: &CohortId,
    network: Network,
    script: &Script,
    deadline: Timestamp,
    need: Option<Need>,
) -> AnnouncementNotice {
    let beacon_address = address_of(script, network);
    let need = need.map(NeededSat);
    AnnouncementNotice::FundingWanted { cohort_id: cohort_id.clone(), beacon_address, deadline, need }
}

/// A transaction spends from the beacon address, and no member was asked to sign it.
pub fn foreign_spend(cohort_id: &CohortId, spend: &Spend) -> AnnouncementNotice {
    let Spend { outpoint, by, place } = *spend;
    AnnouncementNotice::ForeignSpend { cohort_id: cohort_id.clone(), outpoint, by, block: place.block().copied() }
}

/// The notice for `event`, which led to `announcement`.
pub(super) fn of(
    cohort_id: &CohortId,
    network: Network,
    announcement: &Announcement,
    need: Option<Need>,
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
        E::WatchStarted { script, deadline, .. } => funding_wanted(&cohort_id, network, script, *deadline, need),
        E::ForeignSpendSeen { spend, .. } => foreign_spend(&cohort_id, spend),
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
            fee: fee_of(prepared),
            change: ChangeSat::of(change_of(&prepared.transaction), network),
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
            State::Final { txid, paid, .. } => N::AnnouncementFinal {
                cohort_id,
                txid: *txid,
                block: *block,
                left: announcement.sight().unspent(),
                fee: paid.fee,
                child_fee: paid.child_fee,
                change: ChangeSat::of(paid.change.as_ref(), network),
            },
            _ => return None,
        },
        E::Failed { failure, .. } => {
            let (reason, left) = (failure.to_string(), announcement.sight().unspent());
            N::AnnouncementFailed { cohort_id, failure: failure.clone(), reason, left }
        }
        // Nothing else follows a signature that is held back.
        E::TransactionSigned { .. } if announcement.is_held() => N::AnnouncementHeld { cohort_id },
        E::Held { held: true, .. } => N::AnnouncementHeld { cohort_id },
        E::Held { held: false, .. } => N::AnnouncementReleased { cohort_id },
        E::Stalled { .. } => N::ChainStalled { cohort_id },
        E::TipSeen { .. }
        | E::SpendSeen { .. }
        | E::SpendGone { .. }
        | E::SiblingSpendSeen { .. }
        | E::TransactionSigned { .. }
        | E::HandInAccepted { .. } => return None,
    })
}
