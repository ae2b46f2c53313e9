//! Compares a member's beacons on the chain with the member's stored data. Pure: the [`Watcher`](super::Watcher)
//! queries the chain.
//!
//! A resolver follows every spend from a beacon address that ends in a signal. A signal without data means that the DID
//! cannot be resolved any more, or that another party announces an update that the member never approved. Once the
//! timelock of a coin has passed, the operator alone can make such a spend.

use std::collections::{BTreeMap, BTreeSet};

use ::bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxIn, Txid};
use serde::Serialize;
use strum::VariantNames;

use crate::{
    actors::state::vault::VaultEntry,
    bitcoin::{
        chain::{Activity, BlockId, Spend, signal_of},
        recovery::{Maturity, survey},
    },
    protocol::{
        did::Did,
        hash::SignalBytes,
        id::CohortId,
        output::{BeaconOutput, InitialBeacon, InitialBeaconKind},
        update::SignedUpdate,
    },
};

/// The owner of a beacon.
#[derive(Clone, Debug)]
pub enum Beacon {
    /// A cohort's.
    Cohort(BeaconOutput),
    /// The DID's own, of its initial document.
    Initial(InitialBeacon),
}

impl Beacon {
    fn address(&self) -> String {
        match self {
            Self::Cohort(output) => output.address().to_owned(),
            Self::Initial(beacon) => beacon.address().to_string(),
        }
    }
}

/// A beacon of the member, with the signals that it has approved.
#[derive(Clone, Debug)]
pub struct WatchedBeacon {
    /// The beacon.
    pub beacon: Beacon,
    /// The signals whose data the member has, and the cohorts in which it approved them.
    pub approved: BTreeMap<SignalBytes, BTreeSet<CohortId>>,
}

/// The beacons of `entries`, by their scripts. The same keys and terms give the same beacon.
pub fn beacons<'a>(entries: impl IntoIterator<Item = &'a VaultEntry>) -> BTreeMap<ScriptBuf, WatchedBeacon> {
    let mut beacons: BTreeMap<ScriptBuf, WatchedBeacon> = BTreeMap::new();
    for VaultEntry { record, .. } in entries {
        let beacon = beacons.entry(record.output.script_pubkey().to_owned()).or_insert_with(|| WatchedBeacon {
            beacon: Beacon::Cohort(record.output.clone()),
            approved: BTreeMap::new(),
        });
        beacon.approved.entry(record.signal).or_default().insert(record.cohort_id.clone());
    }
    beacons
}

/// The initial beacons of the DIDs of `entries`, by their scripts. Their signals are single updates: those of the
/// entries, and those that were `prepared` to be announced without a cohort, are known.
pub fn initial_beacons<'a>(
    entries: impl IntoIterator<Item = &'a VaultEntry>,
    prepared: &[SignedUpdate],
) -> BTreeMap<ScriptBuf, WatchedBeacon> {
    let mut known: BTreeMap<&Did, BTreeMap<SignalBytes, BTreeSet<CohortId>>> = BTreeMap::new();
    let signal = |update: &SignedUpdate| SignalBytes::from_bytes(*update.hash().as_bytes());
    for VaultEntry { record, .. } in entries {
        let known = known
            .entry(&record.did)
            .or_insert_with(|| prepared.iter().map(|update| (signal(update), BTreeSet::new())).collect());
        if let Some(update) = &record.update {
            known.entry(signal(update)).or_default().insert(record.cohort_id.clone());
        }
    }
    let of = |(did, approved): (&Did, BTreeMap<_, _>)| {
        InitialBeaconKind::ALL.map(|kind| {
            let beacon = InitialBeacon::of(did, kind)?;
            let script = beacon.script_pubkey();
            Some((script, WatchedBeacon { beacon: Beacon::Initial(beacon), approved: approved.clone() }))
        })
    };
    known.into_iter().flat_map(of).flatten().collect()
}

/// The signers of a spend from a beacon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signers {
    /// All members, this one among them.
    AllMembers,
    /// Some of them, by the fallback leaf.
    SomeMembers,
    /// The operator alone, by the recovery leaf.
    Operator,
    /// The DID's own key, from an initial beacon.
    Controller,
}

impl Signers {
    fn of(input: &TxIn, output: &BeaconOutput) -> Self {
        let Some(leaf) = input.witness.taproot_leaf_script() else { return Self::AllMembers };
        // The output has no other leaves.
        match output.recovery() {
            Some(recovery) if recovery.script() == leaf.script => Self::Operator,
            _ => Self::SomeMembers,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::AllMembers => "all members",
            Self::SomeMembers => "some members (fallback)",
            Self::Operator => "the operator alone",
            Self::Controller => "the DID's own key",
        }
    }
}

/// The severity of a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// No action is needed.
    Note,
    /// A problem is approaching.
    Warning,
    /// A problem exists.
    Alarm,
}

/// A notice about a member's beacons. Values are in satoshis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, VariantNames)]
#[strum(serialize_all = "kebab-case")]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names and types describe the fields")]
pub enum WatchNotice {
    /// A signal that the member approved is in sight, in `block` or in the mempool.
    SignalSeen {
        cohort_ids: BTreeSet<CohortId>,
        beacon_address: String,
        txid: Txid,
        signal: SignalBytes,
        signers: Signers,
        block: Option<BlockId>,
    },
    /// A signal for which the member has no data, and which it never approved.
    UnknownSignal {
        beacon_address: String,
        txid: Txid,
        signal: SignalBytes,
        signers: Signers,
        block: Option<BlockId>,
    },
    /// Members have spent from the beacon without a signal, and this member did not approve it.
    UnapprovedSpend {
        beacon_address: String,
        txid: Txid,
        outpoint: OutPoint,
        signers: Signers,
        block: Option<BlockId>,
    },
    /// The operator recovered its coin, by the terms of the cohort. There is no signal.
    CoinRecovered { beacon_address: String, txid: Txid, outpoint: OutPoint, block: Option<BlockId> },
    /// The timelock of a coin passes soon: from `height` on the operator alone can spend it. `expected` is the
    /// estimated time, in seconds since the Unix epoch.
    RecoveryNear {
        beacon_address: String,
        outpoint: OutPoint,
        #[serde(with = "::bitcoin::amount::serde::as_sat")]
        value: Amount,
        height: u32,
        blocks: u32,
        expected: u64,
    },
    /// The timelock has passed: the operator alone can spend from the beacon.
    RecoveryPossible {
        beacon_address: String,
        outpoint: OutPoint,
        #[serde(with = "::bitcoin::amount::serde::as_sat")]
        value: Amount,
        height: u32,
    },
}

impl WatchNotice {
    /// The severity of the notice.
    pub fn severity(&self) -> Severity {
        match self {
            Self::SignalSeen { .. } | Self::CoinRecovered { .. } => Severity::Note,
            Self::RecoveryNear { .. } | Self::RecoveryPossible { .. } => Severity::Warning,
            Self::UnknownSignal { .. } | Self::UnapprovedSpend { .. } => Severity::Alarm,
        }
    }

    /// The subject of the notice, so that it is not repeated at every block.
    pub(super) fn subject(&self) -> (&'static str, Txid, Option<OutPoint>, bool) {
        match self {
            Self::SignalSeen { txid, block, .. } => ("signal", *txid, None, block.is_some()),
            Self::UnknownSignal { txid, block, .. } => ("unknown signal", *txid, None, block.is_some()),
            Self::UnapprovedSpend { txid, outpoint, block, .. } => {
                ("unapproved spend", *txid, Some(*outpoint), block.is_some())
            }
            Self::CoinRecovered { txid, outpoint, block, .. } => {
                ("recovered", *txid, Some(*outpoint), block.is_some())
            }
            Self::RecoveryNear { outpoint, .. } => ("recovery near", outpoint.txid, Some(*outpoint), true),
            Self::RecoveryPossible { outpoint, .. } => ("recovery possible", outpoint.txid, Some(*outpoint), true),
        }
    }

    /// A line for people.
    pub fn text(&self) -> String {
        let place = |block: &Option<BlockId>| match block {
            Some(block) => format!("in block {}", block.height),
            None => "in the mempool".to_owned(),
        };
        match self {
            Self::SignalSeen { beacon_address, txid, signal, block, .. } => {
                format!("{beacon_address}: {txid} {} announces {signal}, as approved", place(block))
            }
            Self::UnknownSignal { beacon_address, txid, signal, signers, block } => format!(
                "ALARM: {beacon_address}: {txid} {} announces {signal}, signed by {}; there is no data for it here, \
                 and it was never approved. If this address is or was a beacon of the DID, the DID does not resolve without that data",
                place(block),
                signers.text()
            ),
            Self::UnapprovedSpend { beacon_address, txid, outpoint, signers, block } => format!(
                "ALARM: {beacon_address}: {txid} {} spends {outpoint} and announces nothing, signed by {}; it was \
                 never approved",
                place(block),
                signers.text()
            ),
            Self::CoinRecovered { beacon_address, txid, block, .. } => {
                format!("{beacon_address}: the operator recovered its coin with {txid} {}", place(block))
            }
            Self::RecoveryNear { beacon_address, outpoint, value, height, blocks, expected } => {
                let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(*expected);
                format!(
                    "WARNING: {beacon_address}: from height {height} on, in {blocks} blocks, about {}, the operator alone \
                     can spend {outpoint} ({} sat), and announce what it likes from this beacon",
                    humantime::format_rfc3339_seconds(time),
                    value.to_sat()
                )
            }
            Self::RecoveryPossible { beacon_address, outpoint, value, .. } => format!(
                "WARNING: {beacon_address}: the operator alone can spend {outpoint} ({} sat) now, and announce what it \
                 likes from this beacon",
                value.to_sat()
            ),
        }
    }
}

/// The notices for a member, given the coins and the spends of `beacon` and the spending transactions. `warn_blocks` is
/// how many blocks before the end of a timelock the warnings start.
///
/// A spend whose transaction is missing has left the mempool again.
pub fn judge(
    beacon: &WatchedBeacon,
    activity: &Activity,
    transactions: &BTreeMap<Txid, Transaction>,
    warn_blocks: u32,
) -> Vec<WatchNotice> {
    let address = || beacon.beacon.address();
    let spent = |spend: &Spend| of_spend(beacon, spend, transactions.get(&spend.by)?);
    let mut notices: Vec<_> = activity.spends.iter().filter_map(spent).collect();
    let coins = match &beacon.beacon {
        Beacon::Cohort(output) => survey(output, activity).unwrap_or_default(),
        Beacon::Initial(_) => Vec::new(),
    };
    notices.extend(coins.iter().filter(|coin| coin.spent_by.is_none()).filter_map(|coin| match coin.maturity {
        Maturity::Waiting { height, blocks, expected } if blocks <= warn_blocks => {
            Some(WatchNotice::RecoveryNear {
                beacon_address: address(),
                outpoint: coin.outpoint,
                value: coin.value,
                height,
                blocks,
                expected,
            })
        }
        Maturity::Mature { height } => Some(WatchNotice::RecoveryPossible {
            beacon_address: address(),
            outpoint: coin.outpoint,
            value: coin.value,
            height,
        }),
        Maturity::Waiting { .. } | Maturity::Unconfirmed => None,
    }));
    notices
}

/// The notice for a spend; `None` when it is the controller's own payment.
fn of_spend(beacon: &WatchedBeacon, spend: &Spend, transaction: &Transaction) -> Option<WatchNotice> {
    let beacon_address = beacon.beacon.address();
    let (txid, outpoint, block) = (spend.by, spend.outpoint, spend.place.block().copied());
    let input = transaction.input.iter().find(|input| input.previous_output == outpoint);
    // A chain that reports a spend by a transaction without that input is wrong: it must not suppress the alarm.
    let signers = match &beacon.beacon {
        Beacon::Cohort(output) => input.map_or(Signers::SomeMembers, |input| Signers::of(input, output)),
        Beacon::Initial(_) => Signers::Controller,
    };
    Some(match signal_of(transaction) {
        Some(signal) => match beacon.approved.get(&signal) {
            Some(cohort_ids) => {
                let cohort_ids = cohort_ids.clone();
                WatchNotice::SignalSeen { cohort_ids, beacon_address, txid, signal, signers, block }
            }
            None => WatchNotice::UnknownSignal { beacon_address, txid, signal, signers, block },
        },
        // A wallet that spends its coins announces nothing.
        None if signers == Signers::Controller => return None,
        None if signers == Signers::Operator => {
            WatchNotice::CoinRecovered { beacon_address, txid, outpoint, block }
        }
        None => WatchNotice::UnapprovedSpend { beacon_address, txid, outpoint, signers, block },
    })
}
