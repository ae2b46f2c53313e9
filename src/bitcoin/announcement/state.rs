//! Where an announcement is, and how facts move it on.

use std::sync::Arc;

use ::bitcoin::{Amount, FeeRate, Transaction, TxOut, Txid};

use super::{Announcement, AnnouncementEvent, AnnouncementFailure, Prepared, Rules, Sight};
use crate::{
    bitcoin::{
        chain::{BlockId, Place, RejectionKind},
        change::{Bump, Child},
    },
    protocol::{output::Coin, time::Timestamp},
};

/// Where an announcement is.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// The cohort has not formed.
    Planned,
    /// The beacon address is watched.
    Funding {
        /// When there must be a deposit.
        deadline: Timestamp,
    },
    /// The members sign.
    Signing {
        /// What they sign.
        prepared: Box<Prepared>,
        /// When they must have signed.
        deadline: Timestamp,
    },
    /// The transaction is signed and on its way.
    Announcing(Box<Announcing>),
    /// The signal is in the chain, as deep as was asked for.
    Final {
        /// The transaction.
        txid: Txid,
        /// Its block.
        block: BlockId,
        /// What was paid for it.
        paid: Paid,
    },
    /// There will be no signal.
    Failed {
        /// Why.
        failure: AnnouncementFailure,
    },
}

/// What was paid for an announcement, and what is left of its coin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paid {
    /// By the transaction itself.
    pub fee: Amount,
    /// By the child that paid for it, if there was one.
    pub child_fee: Amount,
    /// The change, behind all children.
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
    /// Whether the chain took that child.
    pub child_taken: bool,
    /// The height at which the chain first said that the coin does not exist, while no deposit of it is in sight.
    pub coin_missing_since: Option<u32>,
    /// The rate that it was to pay when it was prepared.
    pub planned_rate: Option<FeeRate>,
    /// The block that confirms it, and how deep that was when it was last noted.
    pub confirmed: Option<(BlockId, u32)>,
    /// The height at which it was last given a chance: a bump comes a target's number of blocks later.
    pub patient_since: Option<u32>,
    /// Whether the last try failed because it pays too little.
    pub refused_for_fee: bool,
    /// Whether the operator was told that it cannot be bumped.
    pub bump_impossible: bool,
    /// When to hand it in again, should it not be in sight.
    pub hand_in_at: Timestamp,
    /// When to say that the chain stands still.
    pub stalled_at: Timestamp,
}

impl Announcing {
    /// What it pays, with its child.
    pub fn bump(&self) -> Bump<'_> {
        let paid: Amount = self.transaction.output.iter().map(|output| output.value).sum();
        Bump {
            parent: &self.transaction,
            parent_fee: self.coin.value.checked_sub(paid).unwrap_or_default(),
            child: self.child.as_ref(),
        }
    }

    /// What is paid, as it is planned now.
    fn paid(&self) -> Paid {
        let last = self.child.as_ref().map_or(&*self.transaction, |child| &child.transaction);
        Paid {
            fee: self.bump().parent_fee,
            child_fee: self.child.as_ref().map_or(Amount::ZERO, Child::fee),
            change: super::change_of(last).cloned(),
        }
    }

    /// Whether there is something to hand in again, when it is due: it is out of sight, or waits without its child. Not while
    /// another transaction spends its coin in a block.
    pub(super) fn lacks_something(&self, sight: &Sight) -> bool {
        match sight.spends.get(&self.coin.outpoint) {
            None => true,
            Some(spend) if matches!(spend.place, Place::Block(_)) => false,
            Some(spend) if spend.by == self.txid => self.child.is_some() && !self.child_taken,
            Some(_) => true,
        }
    }

    /// Whether `txid` is its child's.
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
            hand_in_at: at + rules.rebroadcast,
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
    let Announcement { rules, script, sight, state, ours, siblings, alarms } = announcement;
    match (event, &mut *state) {
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
            // Out of the mempool, or out of the chain: at once.
            announcing.hand_in_at = *at;
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
        (E::Rebroadcast { at }, State::Announcing(announcing)) => announcing.hand_in_at = *at + rules.rebroadcast,
        (E::ChildPlanned { at, child, .. }, State::Announcing(announcing)) => {
            announcing.child = Some(child.clone());
            announcing.child_taken = false;
            announcing.patient_since = sight.tip.map(|tip| tip.block.height);
            announcing.hand_in_at = *at + rules.rebroadcast;
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
        // What is signed goes on whatever is said of its cohort: its signal may be in the chain any moment.
        (E::Failed { failure, .. }, State::Announcing(_)) if !failure.ends_what_is_signed() => {}
        (E::Failed { .. }, State::Final { .. }) => {}
        (E::Failed { failure, .. }, _) => *state = State::Failed { failure: failure.clone() },
        _ => {}
    }
}
