//! The state of an announcement, and how facts change it.

use std::sync::Arc;

use bitcoin::{Amount, FeeRate, Transaction, TxOut, Txid};

use super::{
    Announcement, AnnouncementEvent, AnnouncementFailure, Prepared, Rules, Sight,
    change::{Bump, Child},
};
use crate::{
    chain::{BlockId, Place, RejectionKind},
    output::Coin,
    time::Timestamp,
};

/// The state of an announcement.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// The cohort has not formed.
    Planned,
    /// The beacon address is watched.
    Funding {
        /// When a deposit must have arrived.
        deadline: Timestamp,
    },
    /// The members sign.
    Signing {
        /// The transaction that they sign.
        prepared: Box<Prepared>,
        /// When they must have signed.
        deadline: Timestamp,
    },
    /// The transaction is signed and broadcast.
    Announcing(Box<Announcing>),
    /// The signal is in the chain at its final depth.
    Final {
        /// The transaction.
        txid: Txid,
        /// Its block.
        block: BlockId,
        /// The fees paid for it.
        paid: Paid,
    },
    /// There will be no signal.
    Failed {
        /// The reason.
        failure: AnnouncementFailure,
    },
}

/// The fees of an announcement, and the rest of its coin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paid {
    /// The fee of the transaction itself.
    pub fee: Amount,
    /// The fee of the child that paid for it, if there was one.
    pub child_fee: Amount,
    /// The change, after all children.
    pub change: Option<TxOut>,
}

/// A signed transaction on its way into the chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Announcing {
    /// The coin that it spends.
    pub coin: Coin,
    /// The transaction.
    pub transaction: Arc<Transaction>,
    /// Its identifier.
    pub txid: Txid,
    /// The child that pays for it, if one does.
    pub child: Option<Child>,
    /// Whether the chain accepted the child.
    pub child_taken: bool,
    /// The height at which the chain first reported that the coin does not exist, while no deposit of it is in sight.
    pub coin_missing_since: Option<u32>,
    /// The rate that it was prepared to pay.
    pub planned_rate: Option<FeeRate>,
    /// The block that confirms it, and its depth when it was last recorded.
    pub confirmed: Option<(BlockId, u32)>,
    /// The height from which on the target is counted: a bump comes that many blocks later.
    pub patient_since: Option<u32>,
    /// Whether the last submission was refused for its fee.
    pub refused_for_fee: bool,
    /// Whether the operator was notified that it cannot be bumped.
    pub bump_impossible: bool,
    /// When to submit it again if it is not in sight.
    pub submit_at: Timestamp,
    /// When to report that the chain does not grow.
    pub stalled_at: Timestamp,
}

impl Announcing {
    /// The fees so far, with the child.
    pub fn bump(&self) -> Bump<'_> {
        let paid: Amount = self.transaction.output.iter().map(|output| output.value).sum();
        Bump {
            parent: &self.transaction,
            parent_fee: self.coin.value.checked_sub(paid).unwrap_or_default(),
            child: self.child.as_ref(),
        }
    }

    /// The fees as planned now.
    fn paid(&self) -> Paid {
        let last = self.child.as_ref().map_or(&*self.transaction, |child| &child.transaction);
        Paid {
            fee: self.bump().parent_fee,
            child_fee: self.child.as_ref().map_or(Amount::ZERO, Child::fee),
            change: super::change_of(last).cloned(),
        }
    }

    /// Whether it needs to be submitted again when due: it is out of sight, or waits without its child. Not while a
    /// block contains another transaction that spends its coin.
    pub(super) fn lacks_something(&self, sight: &Sight) -> bool {
        match sight.spends.get(&self.coin.outpoint) {
            None => true,
            Some(spend) if matches!(spend.place, Place::Block(_)) => false,
            Some(spend) if spend.by == self.txid => self.child.is_some() && !self.child_taken,
            Some(_) => true,
        }
    }

    /// Whether `txid` is the txid of its child.
    pub(super) fn has_child(&self, txid: &Txid) -> bool {
        self.child.as_ref().is_some_and(|child| child.transaction.compute_txid() == *txid)
    }

    fn new(transaction: &Transaction, value: Amount, at: Timestamp, rules: &Rules) -> Option<Self> {
        let outpoint = transaction.input.first()?.previous_output;
        Some(Self {
            coin: Coin { outpoint, value },
            txid: transaction.compute_txid(),
            transaction: Arc::new(transaction.clone()),
            child: None,
            child_taken: false,
            coin_missing_since: None,
            planned_rate: None,
            confirmed: None,
            patient_since: None,
            refused_for_fee: false,
            bump_impossible: false,
            submit_at: at + rules.rebroadcast,
            stalled_at: at + rules.stall,
        })
    }
}

impl State {
    /// Its name, for people.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Funding { .. } => "waiting for funds",
            Self::Signing { .. } => "being signed",
            Self::Announcing(_) => "on its way",
            Self::Final { .. } => "final",
            Self::Failed { .. } => "failed",
        }
    }
}

pub(super) fn apply(announcement: &mut Announcement, event: &AnnouncementEvent) {
    use AnnouncementEvent as E;
    announcement.sight.apply(event);
    let Announcement { rules, script, sight, state, ours, siblings, alarms, held: is_held } = announcement;
    match (event, &mut *state) {
        (E::Held { at, held }, state) => {
            *is_held = *held;
            if let State::Announcing(announcing) = state {
                // Blocks do not count while it cannot be mined.
                announcing.patient_since = sight.tip.map(|tip| tip.block.height);
                announcing.submit_at = *at + rules.rebroadcast;
            }
        }
        (E::WatchStarted { script: watched, deadline, .. }, State::Planned) => {
            script.clone_from(watched);
            *state = State::Funding { deadline: *deadline };
        }
        (E::ForeignSpendSeen { spend, .. }, _) => {
            alarms.insert(spend.outpoint, spend.by);
        }
        (E::SiblingSpendSeen { spend, .. }, _) => {
            siblings.insert(spend.by);
        }
        (E::TransactionPrepared { prepared, deadline, .. }, State::Funding { .. } | State::Signing { .. }) => {
            ours.insert(prepared.transaction.compute_txid());
            *state = State::Signing { prepared: prepared.clone(), deadline: *deadline };
        }
        (E::TransactionSigned { at, transaction, value }, before) => {
            let Some(mut announcing) = Announcing::new(transaction, *value, *at, rules) else { return };
            if let State::Signing { prepared, .. } = before {
                announcing.planned_rate = Some(prepared.rate);
            }
            announcing.patient_since = sight.tip.map(|tip| tip.block.height);
            ours.insert(announcing.txid);
            *state = State::Announcing(Box::new(announcing));
        }
        (E::TipSeen { at, tip }, State::Announcing(announcing)) => {
            announcing.stalled_at = *at + rules.stall;
            announcing.patient_since.get_or_insert(tip.block.height);
        }
        (E::SpendGone { at, outpoint }, State::Announcing(announcing)) if *outpoint == announcing.coin.outpoint => {
            // Out of the mempool, or out of the chain: submit it at once.
            announcing.submit_at = *at;
            announcing.child_taken = false;
        }
        (E::SpendSeen { spend, .. }, State::Announcing(announcing))
            if spend.outpoint == announcing.coin.outpoint =>
        {
            announcing.coin_missing_since = None;
        }
        (E::DepositSeen { deposit, .. }, State::Announcing(announcing))
            if deposit.outpoint == announcing.coin.outpoint =>
        {
            announcing.coin_missing_since = None;
        }
        (E::HandInAccepted { txid, .. }, State::Announcing(announcing)) => {
            announcing.refused_for_fee = false;
            announcing.coin_missing_since = None;
            announcing.child_taken |= announcing.has_child(txid);
        }
        (E::HandInRefused { rejection, .. }, State::Announcing(announcing)) => {
            announcing.refused_for_fee = rejection.kind == RejectionKind::FeeTooLow;
            let coin = &announcing.coin.outpoint;
            let in_sight = sight.deposits.contains_key(coin) || sight.spends.contains_key(coin);
            if rejection.kind == RejectionKind::InputsSpent && !in_sight {
                announcing.coin_missing_since =
                    announcing.coin_missing_since.or(sight.tip.map(|tip| tip.block.height));
            }
        }
        (E::Rebroadcast { at }, State::Announcing(announcing)) => announcing.submit_at = *at + rules.rebroadcast,
        (E::ChildPlanned { at, child, .. }, State::Announcing(announcing)) => {
            announcing.child = Some(child.clone());
            announcing.child_taken = false;
            announcing.patient_since = sight.tip.map(|tip| tip.block.height);
            announcing.submit_at = *at + rules.rebroadcast;
            announcing.refused_for_fee = false;
        }
        (E::BumpImpossible { .. }, State::Announcing(announcing)) => announcing.bump_impossible = true,
        (E::Confirmed { block, depth, .. }, State::Announcing(announcing)) => {
            announcing.confirmed = Some((*block, *depth));
        }
        (E::Unconfirmed { .. }, State::Announcing(announcing)) => {
            announcing.confirmed = None;
            announcing.patient_since = sight.tip.map(|tip| tip.block.height);
        }
        (E::Stalled { at }, State::Announcing(announcing)) => announcing.stalled_at = *at + rules.stall,
        (E::Finalized { block, .. }, State::Announcing(announcing)) => {
            *state = State::Final { txid: announcing.txid, block: *block, paid: announcing.paid() };
        }
        // A signed announcement continues even if its cohort is reported as failed: its signal may enter the chain at
        // any moment.
        (E::Failed { failure, .. }, State::Announcing(_)) if !failure.ends_what_is_signed() => {}
        (E::Failed { .. }, State::Final { .. }) => {}
        (E::Failed { failure, .. }, _) => *state = State::Failed { failure: failure.clone() },
        _ => {}
    }
}
