//! The announcement of one cohort as a machine: from the first deposit at the beacon address to a signal that is final.
//!
//! ```text
//! planned ─ watch ▶ funding ─ prepare ▶ signing ─ signed ▶ announcing ─ depth reached ▶ final
//!                      └── not funded, cohort failed, coin spent or gone ──▶ failed
//! ```
//!
//! It is driven like the protocol's machines ([`Machine`]): it decides, its events are its journal, and its effects are what
//! the driver does. What happens on the chain reaches it as [`Input::Observed`], what it knows of it is its [`Sight`]. It never
//! asks the chain anything: [`super::watch`] does, and polls. So a funding deadline passes only when the chain was seen after
//! it: no time that the service or its node was down for takes a deposit's worth from anybody.
//!
//! The same members on the same terms have the same address in their next cohort. What other announcements of the address have
//! signed or chosen comes with the inputs, see [`Claims`](super::claims::Claims).
//!
//! While it announces, the place of its transaction is nothing but the spend of the chosen coin in its sight. So a
//! reorganization needs no rule of its own: the spend is gone from its block, and what is not in sight is handed in again.

mod decide;
mod event;
mod funding;
mod sight;
mod state;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ::bitcoin::{FeeRate, OutPoint, ScriptBuf, Transaction, TxOut, Txid};
use rand_chacha::rand_core::CryptoRng;

pub use self::{
    event::{AnnouncementEvent, AnnouncementFailure},
    funding::{Need, NotFunded, Prepared, Wanted},
    sight::Sight,
    state::{Announcing, Paid, State},
};
use super::{
    chain::{Activity, Rejection, Spend},
    change::Child,
    fees::FeePolicy,
};
use crate::protocol::{
    error::{Reject, RejectCode},
    hash::SignalBytes,
    machine::Machine,
    output::Change,
    time::Timestamp,
};

/// What an operator has decided for all its announcements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How long a beacon address is watched for a deposit.
    pub funding_window: Duration,
    /// How deep a deposit must be confirmed before members sign a transaction that spends it.
    pub funding_confirmations: u32,
    /// How long members may take to sign.
    pub signing_window: Duration,
    /// How deep the announcement must be confirmed to be final.
    pub confirmations: u32,
    /// What it may cost.
    pub fees: FeePolicy,
    /// Where the rest of the coin goes.
    pub change: Change,
    /// Whether the operator can spend it there at once, to pay for a transaction that is stuck.
    pub change_is_ours: bool,
    /// How long to wait before handing in a transaction again that the chain does not show.
    pub rebroadcast: Duration,
    /// How long the chain may stand still before the operator is told.
    pub stall: Duration,
}

impl Rules {
    /// Change to `change`, which the operator can spend, and everything else at its default: a day for funding with one confirmation, a day for signing,
    /// final at depth 6, handed in again every 10 minutes.
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

    /// How many blocks below the last tip to look again: a reorganization that goes deeper would undo what was final.
    pub fn window(&self) -> u32 {
        self.confirmations.max(self.funding_confirmations).saturating_mul(2).max(12)
    }
}

/// What can happen to an announcement.
#[derive(Clone, Debug)]
pub enum Input {
    /// The cohort has formed: this is its beacon output's script.
    Watch {
        /// The script.
        script: ScriptBuf,
    },
    /// The chain was asked.
    Observed {
        /// What it answered.
        activity: Activity,
        /// From which height on that is all there is; 0 when it is all there is at any height.
        since: u32,
        /// Its fee estimate, if it has one.
        estimate: Option<FeeRate>,
        /// The rate below which it takes nothing, if it tells.
        minimum: Option<FeeRate>,
        /// The transactions that other announcements of the same address asked their members to sign.
        known: BTreeSet<Txid>,
    },
    /// The cohort wants a transaction. Without a coin that suffices nothing happens: see [`Announcement::choose`].
    Prepare(Wanted),
    /// The cohort has signed.
    Signed {
        /// The transaction, with its witness.
        transaction: Transaction,
        /// What the coin that it spends holds.
        value: ::bitcoin::Amount,
    },
    /// A transaction was handed in.
    HandedIn {
        /// Which one: the announcement, or its child.
        txid: Txid,
        /// How the chain took it.
        result: Result<(), Rejection>,
    },
    /// The cohort ended without a transaction.
    CohortFailed {
        /// Why.
        reason: String,
    },
    /// Time has passed.
    Tick,
}

/// What the driver does for an announcement.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Hand in the transaction, with the child that pays for it if there is one, and feed [`Input::HandedIn`].
    HandIn {
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
    /// The transactions that members were asked to sign: all other spends are foreign.
    ours: BTreeSet<Txid>,
    /// Spends by other announcements of the same address, which are not foreign either.
    siblings: BTreeSet<Txid>,
    /// Foreign spends that the operator was told of.
    alarms: BTreeMap<OutPoint, Txid>,
}

impl Announcement {
    /// Of a cohort that has not formed yet.
    pub fn new(rules: Arc<Rules>) -> Self {
        Self {
            rules,
            script: ScriptBuf::new(),
            sight: Sight::default(),
            state: State::Planned,
            ours: BTreeSet::new(),
            siblings: BTreeSet::new(),
            alarms: BTreeMap::new(),
        }
    }

    /// What the operator has decided.
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// The script that is watched; empty before it is known.
    pub fn script(&self) -> &ScriptBuf {
        &self.script
    }

    /// What is known of the chain.
    pub fn sight(&self) -> &Sight {
        &self.sight
    }

    /// Where it is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The transactions that its members were asked to sign.
    pub fn asked_for(&self) -> &BTreeSet<Txid> {
        &self.ours
    }

    /// The transactions at its address that are no news: what its members were asked to sign, what other announcements of the
    /// address did, and what the operator was alarmed of.
    pub fn known_transactions(&self) -> BTreeSet<Txid> {
        self.ours.iter().chain(&self.siblings).chain(self.alarms.values()).copied().collect()
    }

    /// The coin that it is to spend, from when it is chosen until the announcement has ended.
    pub fn coin(&self) -> Option<OutPoint> {
        match &self.state {
            State::Signing { prepared, .. } => Some(prepared.coin.outpoint),
            State::Announcing(announcing) => Some(announcing.coin.outpoint),
            State::Planned | State::Funding { .. } | State::Final { .. } | State::Failed { .. } => None,
        }
    }

    /// The foreign spends that the operator was told of and that are still in sight.
    pub fn alarms(&self) -> impl Iterator<Item = &Spend> {
        self.sight.spends.values().filter(|spend| self.alarms.get(&spend.outpoint) == Some(&spend.by))
    }

    /// Whether nothing will change any more.
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

    /// Whether the coin of `prepared` is there, and nobody else spends it.
    fn is_spendable(&self, prepared: &Prepared) -> bool {
        let spent_by_another =
            self.sight.spends.get(&prepared.coin.outpoint).is_some_and(|spend| !self.ours.contains(&spend.by));
        self.sight.deposits.contains_key(&prepared.coin.outpoint) && !spent_by_another
    }

    /// The transaction that could announce what is wanted at `now`, with the best coin that there is.
    ///
    /// It pays the chain's estimate, held by the operator's bounds and the chain's minimum. In the last quarter of the funding
    /// window, and after it, a coin that is too small for that pays what it can: an estimate that lies high must not cost the
    /// cohort. Nor must a coin that leaves nothing to bump with, while none that does is there.
    ///
    /// # Errors
    /// [`NotFunded`], which says what is missing.
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
            AnnouncementEvent::TransactionSigned { .. }
            | AnnouncementEvent::Rebroadcast { .. }
            | AnnouncementEvent::ChildPlanned { .. } => vec![Effect::HandIn {
                transaction: Arc::clone(&announcing.transaction),
                child: announcing.child.clone(),
            }],
            _ => Vec::new(),
        }
    }

    /// Nothing: the first poll after a restart shows the chain, and what is not in sight is handed in again when it is due.
    fn resume(&self) -> Vec<Effect> {
        Vec::new()
    }

    fn deadline(&self) -> Option<Timestamp> {
        match &self.state {
            State::Planned | State::Final { .. } | State::Failed { .. } => None,
            State::Funding { deadline } | State::Signing { deadline, .. } => Some(*deadline),
            State::Announcing(announcing) if !announcing.lacks_something(&self.sight) => {
                Some(announcing.stalled_at)
            }
            State::Announcing(announcing) => Some(announcing.hand_in_at.min(announcing.stalled_at)),
        }
    }
}

/// The change of an announcement, or of its child: the first output, unless that is the signal.
pub fn change_of(transaction: &Transaction) -> Option<&TxOut> {
    transaction.output.first().filter(|output| !output.script_pubkey.is_op_return())
}

/// The host's input does not fit the state.
fn out_of_phase(input: &str, state: &State) -> Reject {
    let detail = format!("{input} does not fit an announcement that is {}", state.name());
    Reject { code: RejectCode::WrongPhase, peer: None, detail }
}
