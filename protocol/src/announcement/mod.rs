//! The announcement of one cohort as a state machine: from the first deposit at the beacon address to a final signal.
//!
//! ```text
//! planned ─ watch ▶ funding ─ prepare ▶ signing ─ signed ▶ announcing ─ depth reached ▶ final
//!                      └── not funded, cohort failed, coin spent or gone ──▶ failed
//! ```
//!
//! It is driven like the protocol's machines ([`Machine`]): it decides, its events are its journal, and the driver
//! executes its effects. Changes on the chain arrive as [`Input::Observed`]; [`Sight`] is the resulting view of the
//! chain. The machine never queries the chain: its driver polls it. A funding deadline therefore passes only when
//! the chain was seen after it: a deposit is never lost to downtime of the service or its node.
//!
//! The same members on the same terms have the same address in their next cohort. The inputs contain the transactions
//! and coins of the other announcements of the address, which its driver collects.
//!
//! While the machine announces, the place of its transaction is that of the spend of its coin in the sight. A
//! reorganization therefore needs no special rule: the spend leaves its block, and a transaction that is not in sight
//! is submitted again.

pub mod change;
mod decide;
mod event;
pub mod fees;
mod funding;
mod sight;
mod state;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bitcoin::{FeeRate, OutPoint, ScriptBuf, Transaction, TxOut, Txid};
use rand_core::CryptoRng;

use self::{change::Child, fees::FeePolicy};
pub use self::{
    event::{AnnouncementEvent, AnnouncementFailure},
    funding::{Need, NotFunded, Prepared, Wanted},
    sight::Sight,
    state::{Announcing, Paid, State},
};
use crate::{
    chain::{Activity, Rejection, Spend},
    error::Reject,
    hash::SignalBytes,
    machine::Machine,
    output::Change,
    time::Timestamp,
};

/// The operator's settings for all announcements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How long a beacon address is watched for a deposit.
    pub funding_window: Duration,
    /// The confirmations that a deposit needs before members sign a transaction that spends it.
    pub funding_confirmations: u32,
    /// How long members may take to sign.
    pub signing_window: Duration,
    /// The confirmations after which the announcement is final.
    pub confirmations: u32,
    /// The bounds of its fees.
    pub fees: FeePolicy,
    /// The destination of change.
    pub change: Change,
    /// Whether the operator can spend the change at once, to bump a stuck transaction.
    pub change_is_ours: bool,
    /// How long a transaction may be out of sight before it is submitted again.
    pub rebroadcast: Duration,
    /// How long the chain may be without a new block before the operator is notified.
    pub stall: Duration,
}

impl Rules {
    /// Change to `change`, which the operator can spend, and defaults for everything else: a day for funding with one
    /// confirmation, a day for signing, final at depth 6, submitted again every 10 minutes.
    pub fn new(change: Change) -> Self {
        Self {
            funding_window: Duration::from_secs(24 * 3600),
            funding_confirmations: 1,
            signing_window: Duration::from_secs(24 * 3600),
            confirmations: 6,
            fees: FeePolicy::default(),
            change,
            change_is_ours: true,
            rebroadcast: Duration::from_secs(600),
            stall: Duration::from_secs(3 * 3600),
        }
    }

    /// How many blocks below the last tip a look starts. A deeper reorganization would undo a final announcement.
    pub fn window(&self) -> u32 {
        self.confirmations.max(self.funding_confirmations).saturating_mul(2).max(12)
    }
}

/// An input of an announcement.
#[derive(Clone, Debug)]
pub enum Input {
    /// The cohort has formed: this is its beacon output's script.
    Watch {
        /// The script.
        script: ScriptBuf,
    },
    /// The chain was queried.
    Observed {
        /// The result.
        activity: Activity,
        /// The height from which on `activity` is complete; 0 if it is complete at any height.
        since: u32,
        /// Its fee estimate, if it has one.
        estimate: Option<FeeRate>,
        /// The rate below which it accepts no transaction, if known.
        minimum: Option<FeeRate>,
        /// The transactions that other announcements of the same address asked their members to sign.
        known: BTreeSet<Txid>,
    },
    /// The cohort requests a transaction. Nothing happens if no coin suffices: see [`Announcement::choose`].
    Prepare(Wanted),
    /// The cohort has signed.
    Signed {
        /// The transaction, with its witness.
        transaction: Transaction,
        /// The value of the coin that it spends.
        value: bitcoin::Amount,
    },
    /// A transaction was submitted.
    Submitted {
        /// The announcement, or its child.
        txid: Txid,
        /// The answer of the chain.
        result: Result<(), Rejection>,
    },
    /// The cohort ended without a transaction.
    CohortFailed {
        /// The reason.
        reason: String,
    },
    /// The operator bumps the transaction now, within the bounds of its fees.
    Bump {
        /// The rate to pay; half more than now if none is given.
        rate: Option<FeeRate>,
    },
    /// The operator holds the signed transaction back, or releases it. Members have it too, and may broadcast it.
    Hold {
        /// Whether it is held back.
        held: bool,
    },
    /// Time has passed.
    Tick,
}

/// What the driver executes for an announcement.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Submit the transaction, with the child that pays for it if there is one, and feed [`Input::Submitted`].
    Submit {
        /// The signed announcement.
        transaction: Arc<Transaction>,
        /// The child, still to be signed.
        child: Option<Child>,
    },
}

/// The announcement of one cohort.
#[derive(Clone, Debug, PartialEq)]
pub struct Announcement {
    rules: Arc<Rules>,
    script: ScriptBuf,
    sight: Sight,
    state: State,
    /// The transactions that members were asked to sign. All other spends are foreign.
    ours: BTreeSet<Txid>,
    /// Spends by other announcements of the same address, which are not foreign either.
    siblings: BTreeSet<Txid>,
    /// Foreign spends for which an alarm was raised.
    alarms: BTreeMap<OutPoint, Txid>,
    /// Whether the host holds the signed transaction back.
    held: bool,
}

impl Announcement {
    /// The announcement of a cohort that has not formed yet.
    pub fn new(rules: Arc<Rules>) -> Self {
        Self {
            rules,
            script: ScriptBuf::new(),
            sight: Sight::default(),
            state: State::Planned,
            ours: BTreeSet::new(),
            siblings: BTreeSet::new(),
            alarms: BTreeMap::new(),
            held: false,
        }
    }

    /// Whether the signed transaction is held back.
    pub fn is_held(&self) -> bool {
        self.held && !self.has_ended()
    }

    /// The operator's settings.
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// The watched script; empty until it is known.
    pub fn script(&self) -> &ScriptBuf {
        &self.script
    }

    /// Whether the chain has the signed transaction, in its mempool or a block, as far as it was looked at.
    pub fn is_in_sight(&self) -> bool {
        let State::Announcing(announcing) = &self.state else { return matches!(self.state, State::Final { .. }) };
        let spend = self.sight.spends.get(&announcing.coin.outpoint);
        spend.is_some_and(|spend| spend.by == announcing.txid)
    }

    /// The known state of the chain.
    pub fn sight(&self) -> &Sight {
        &self.sight
    }

    /// The state of the announcement.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The transactions that its members were asked to sign.
    pub fn asked_for(&self) -> &BTreeSet<Txid> {
        &self.ours
    }

    /// The expected transactions at its address: those that its members were asked to sign, those of other
    /// announcements of the address, and those for which an alarm was raised.
    pub fn known_transactions(&self) -> BTreeSet<Txid> {
        self.ours.iter().chain(&self.siblings).chain(self.alarms.values()).copied().collect()
    }

    /// The coin that it will spend, from its choice to the end of the announcement.
    pub fn coin(&self) -> Option<OutPoint> {
        match &self.state {
            State::Signing { prepared, .. } => Some(prepared.coin.outpoint),
            State::Announcing(announcing) => Some(announcing.coin.outpoint),
            State::Planned | State::Funding { .. } | State::Final { .. } | State::Failed { .. } => None,
        }
    }

    /// The foreign spends for which an alarm was raised and that are still in sight.
    pub fn alarms(&self) -> impl Iterator<Item = &Spend> {
        self.sight.spends.values().filter(|spend| self.alarms.get(&spend.outpoint) == Some(&spend.by))
    }

    /// Whether the announcement is in its last state.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Final { .. } | State::Failed { .. })
    }

    /// The transaction that announces `signal`, once it is prepared.
    pub fn prepared(&self, signal: &SignalBytes) -> Option<&Prepared> {
        match &self.state {
            State::Signing { prepared, .. } if prepared.signal == *signal && self.is_spendable(prepared) => {
                Some(prepared)
            }
            _ => None,
        }
    }

    /// Whether the coin of `prepared` exists, and no other transaction spends it.
    fn is_spendable(&self, prepared: &Prepared) -> bool {
        let spent_by_another =
            self.sight.spends.get(&prepared.coin.outpoint).is_some_and(|spend| !self.ours.contains(&spend.by));
        self.sight.deposits.contains_key(&prepared.coin.outpoint) && !spent_by_another
    }

    /// The transaction that can announce `wanted` at `now`, with the best available coin.
    ///
    /// It pays the chain's estimate within the operator's bounds and above the chain's minimum. In the last quarter of
    /// the funding window, and after it, a smaller coin pays what it can: a high estimate must not make the cohort
    /// fail. In that time a coin that leaves no change for a bump is also accepted, if there is no better one.
    ///
    /// # Errors
    /// [`NotFunded`], with what is missing.
    pub fn choose(&self, now: Timestamp, wanted: &Wanted) -> Result<Prepared, NotFunded> {
        let fees = self.rules.fees.above(wanted.minimum)?;
        let rate = fees.first(wanted.estimate);
        let late = match &self.state {
            State::Funding { deadline } => *deadline <= now + self.rules.funding_window / 4,
            _ => true,
        };
        let chosen = funding::choose(&self.sight, &self.rules, wanted, rate, late);
        match chosen {
            Err(NotFunded::TooSmall { .. }) if late => {
                funding::choose_cheaper(&self.sight, &self.rules, wanted, fees.floor(), rate).map_or(chosen, Ok)
            }
            chosen => chosen,
        }
    }
}

impl Machine for Announcement {
    type Input = Input;
    type Event = AnnouncementEvent;
    type Effect = Effect;

    fn decide(&self, now: Timestamp, input: &Input, _: &mut dyn CryptoRng) -> Result<Vec<Self::Event>, Reject> {
        decide::decide(self, now, input)
    }

    fn apply(&mut self, event: &AnnouncementEvent) {
        state::apply(self, event);
    }

    fn effects(&self, event: &AnnouncementEvent) -> Vec<Effect> {
        let State::Announcing(announcing) = &self.state else { return Vec::new() };
        match event {
            _ if self.held => Vec::new(),
            AnnouncementEvent::Held { .. } if !announcing.lacks_something(&self.sight) => Vec::new(),
            AnnouncementEvent::TransactionSigned { .. }
            | AnnouncementEvent::Held { .. }
            | AnnouncementEvent::Rebroadcast { .. }
            | AnnouncementEvent::ChildPlanned { .. } => vec![Effect::Submit {
                transaction: Arc::clone(&announcing.transaction),
                child: announcing.child.clone(),
            }],
            _ => Vec::new(),
        }
    }

    /// No effects: the first poll after a restart shows the chain, and a transaction that is not in sight is submitted
    /// again when due.
    fn resume(&self) -> Vec<Effect> {
        Vec::new()
    }

    fn deadline(&self) -> Option<Timestamp> {
        match &self.state {
            State::Planned | State::Final { .. } | State::Failed { .. } => None,
            State::Funding { deadline } | State::Signing { deadline, .. } => Some(*deadline),
            State::Announcing(announcing) if self.held || !announcing.lacks_something(&self.sight) => {
                Some(announcing.stalled_at)
            }
            State::Announcing(announcing) => Some(announcing.submit_at.min(announcing.stalled_at)),
        }
    }
}

/// The change of an announcement, or of its child: the first output, unless that is the signal.
pub fn change_of(transaction: &Transaction) -> Option<&TxOut> {
    transaction.output.first().filter(|output| !output.script_pubkey.is_op_return())
}

/// The host's input does not fit the state.
fn out_of_phase(input: &str, state: &State) -> Reject {
    Reject::not_now(format_args!("{input} does not fit an announcement that is {}", state.name()))
}
