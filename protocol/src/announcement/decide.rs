//! Decides what happens to an announcement, and which facts that makes.

use std::collections::BTreeSet;

use bitcoin::{FeeRate, Txid};

use super::{
    Announcement, AnnouncementEvent as E, AnnouncementFailure as Failure, Announcing, Input, State,
    change::{BumpError, Child},
    out_of_phase,
};
use crate::{
    chain::{Place, Spend},
    error::{Reject, RejectCode},
    machine::Machine,
    output::Change,
    time::Timestamp,
};

pub(super) fn decide(announcement: &Announcement, now: Timestamp, input: &Input) -> Result<Vec<E>, Reject> {
    let mut deciding = Deciding { at: now, next: announcement.clone(), facts: Vec::new() };
    match input {
        Input::Watch { script } => deciding.watch(script)?,
        Input::Observed { activity, since, estimate, minimum, known } => {
            if matches!(announcement.state, State::Planned) || announcement.has_ended() {
                return Ok(Vec::new());
            }
            for fact in announcement.sight.news(now, activity, *since, announcement.coin().as_ref()) {
                deciding.fact(fact);
            }
            deciding.raise_alarms(known);
            deciding.give_up_unfunded();
            deciding.follow();
            deciding.submit_if_due();
            deciding.bump_if_stuck(*estimate, *minimum);
        }
        Input::Prepare(wanted) => match &announcement.state {
            State::Funding { .. } | State::Signing { .. } => {
                if announcement.prepared(&wanted.signal).is_none()
                    && let Ok(prepared) = announcement.choose(now, wanted)
                {
                    let deadline = now + announcement.rules.signing_window;
                    deciding.fact(E::TransactionPrepared { at: now, prepared: Box::new(prepared), deadline });
                }
            }
            state => return Err(out_of_phase("a request for a transaction", state)),
        },
        Input::Signed { transaction, value } => match &announcement.state {
            State::Announcing(announcing) if announcing.txid == transaction.compute_txid() => {}
            State::Final { txid, .. } if *txid == transaction.compute_txid() => {}
            state @ (State::Planned | State::Announcing(_) | State::Final { .. }) => {
                return Err(out_of_phase("a signed transaction", state));
            }
            // Also after the deadline: a late signature is still valid.
            State::Funding { .. } | State::Signing { .. } | State::Failed { .. } => {
                if transaction.input.len() != 1 {
                    let detail = format!("a transaction with {} inputs; one expected", transaction.input.len());
                    return Err(Reject { code: RejectCode::TransactionMismatch, peer: None, detail });
                }
                deciding.fact(E::TransactionSigned { at: now, transaction: transaction.clone(), value: *value });
                deciding.make_up_the_fee();
                deciding.follow();
            }
        },
        Input::Submitted { txid, result } => {
            let State::Announcing(announcing) = &announcement.state else { return Ok(Vec::new()) };
            let of_child = announcing.has_child(txid);
            if !of_child && announcing.txid != *txid {
                return Ok(Vec::new());
            }
            match result {
                Ok(()) => {
                    deciding.fact(E::HandInAccepted { at: now, txid: announcing.txid });
                    if of_child {
                        deciding.fact(E::HandInAccepted { at: now, txid: *txid });
                    }
                }
                Err(rejection) => {
                    deciding.fact(E::HandInRefused { at: now, txid: *txid, rejection: rejection.clone() });
                }
            }
        }
        Input::CohortFailed { reason } => match &announcement.state {
            State::Planned | State::Funding { .. } | State::Signing { .. } => {
                deciding.fail(Failure::Cohort { reason: reason.clone() });
            }
            // A transaction exists, whatever happened to it since.
            State::Announcing(_) | State::Final { .. } | State::Failed { .. } => {}
        },
        Input::Bump { rate } => deciding.bump_now(*rate)?,
        Input::Hold { held } => deciding.hold(*held)?,
        Input::Tick => deciding.tick(),
    }
    Ok(deciding.facts)
}

/// The rate of a bump over one that pays `paid`.
fn half_more(paid: FeeRate) -> FeeRate {
    FeeRate::from_sat_per_kwu(paid.to_sat_per_kwu().saturating_mul(3) / 2)
}

/// The facts so far, and the state that they lead to.
struct Deciding {
    at: Timestamp,
    next: Announcement,
    facts: Vec<E>,
}

impl Deciding {
    fn fact(&mut self, fact: E) {
        self.next.apply(&fact);
        self.facts.push(fact);
    }

    fn fail(&mut self, failure: Failure) {
        self.fact(E::Failed { at: self.at, failure });
    }

    fn announcing(&self) -> Option<&Announcing> {
        match &self.next.state {
            State::Announcing(announcing) => Some(announcing),
            _ => None,
        }
    }

    /// The place of the announcement, and the transaction that spends its coin instead with its place.
    fn places(&self) -> (Option<Place>, Option<(Txid, Place)>) {
        let Some(announcing) = self.announcing() else { return (None, None) };
        match self.next.sight.spends.get(&announcing.coin.outpoint) {
            None => (None, None),
            Some(spend) if spend.by == announcing.txid => (Some(spend.place), None),
            Some(spend) => (None, Some((spend.by, spend.place))),
        }
    }

    fn watch(&mut self, script: &bitcoin::ScriptBuf) -> Result<(), Reject> {
        match &self.next.state {
            State::Planned => {
                let deadline = self.at + self.next.rules.funding_window;
                self.fact(E::WatchStarted { at: self.at, script: script.clone(), deadline });
                Ok(())
            }
            _ if self.next.script == *script => Ok(()),
            state => Err(out_of_phase("another script", state)),
        }
    }

    /// Holds the signed transaction back, or releases it.
    fn hold(&mut self, held: bool) -> Result<(), Reject> {
        if self.next.has_ended() {
            return Err(out_of_phase("a hold", &self.next.state));
        }
        if held && (self.places().0.is_some() || self.announcing().is_some_and(|announcing| announcing.taken)) {
            return Err(Reject::not_now("the transaction is broadcast: nothing can take it back"));
        }
        if self.next.held != held {
            self.fact(E::Held { at: self.at, held });
        }
        Ok(())
    }

    /// Raises an alarm once for each foreign spend. A spend by another announcement of the address is not foreign.
    fn raise_alarms(&mut self, known: &BTreeSet<Txid>) {
        let Announcement { sight, ours, siblings, alarms, .. } = &self.next;
        let alarmed = |spend: &&Spend| alarms.get(&spend.outpoint) == Some(&spend.by);
        let others =
            sight.spends.values().filter(|spend| !ours.contains(&spend.by) && !siblings.contains(&spend.by));
        let others: Vec<_> = others.filter(|spend| !alarmed(spend)).copied().collect();
        for spend in others {
            if self.next.held && self.next.coin() == Some(spend.outpoint) {
                // What the members approved must win.
                self.fact(E::Held { at: self.at, held: false });
            }
            self.fact(match known.contains(&spend.by) {
                true => E::SiblingSpendSeen { at: self.at, spend },
                false => E::ForeignSpendSeen { at: self.at, spend },
            });
        }
    }

    /// Fails if no deposit arrived in time, as far as the chain shows now. With a deposit, the cohort's own deadline
    /// for its transaction applies.
    fn give_up_unfunded(&mut self) {
        let dust = self.next.script.minimal_non_dust();
        if let State::Funding { deadline } = &self.next.state
            && *deadline <= self.at
            && !self.next.sight.has_unspent(dust)
        {
            self.fail(Failure::NotFunded);
        }
    }

    /// Follows the announcement through blocks: deeper, out of them, to its final depth.
    fn follow(&mut self) {
        let Some(announcing) = self.announcing() else { return };
        let (ours, other) = self.places();
        let needed = self.next.rules.confirmations.max(1);
        let block = ours.as_ref().and_then(Place::block).copied();
        if let Some((before, _)) = announcing.confirmed
            && block != Some(before)
        {
            self.fact(E::Unconfirmed { at: self.at, block: before });
        }
        if let Some(block) = block {
            let depth = self.next.sight.depth(&Place::Block(block));
            if self.announcing().is_some_and(|announcing| announcing.confirmed != Some((block, depth))) {
                self.fact(E::Confirmed { at: self.at, block, depth });
            }
            if depth >= needed {
                self.fact(E::Finalized { at: self.at, block });
            }
        } else if let Some((by, place)) = other
            && self.next.sight.depth(&place) >= needed
        {
            self.fail(Failure::CoinSpent { by });
        } else if other.is_none()
            && let Some(since) = self.announcing().and_then(|announcing| announcing.coin_missing_since)
            && self.next.sight.tip.is_some_and(|tip| tip.block.height >= since.saturating_add(needed))
        {
            self.fail(Failure::CoinGone);
        }
    }

    /// Submits the announcement again if it is not in sight, or if its child was not accepted. Not if a block contains
    /// another transaction that spends its coin.
    fn submit_if_due(&mut self) {
        let Some(announcing) = self.announcing().filter(|_| !self.next.held) else { return };
        let is_due = self.at.is_over(announcing.submit_at, self.next.rules.rebroadcast);
        if announcing.lacks_something(&self.next.sight) && is_due {
            self.fact(E::Rebroadcast { at: self.at });
        }
    }

    /// The signatures are those of the fallback, whose size the fee does not cover at the planned rate. A child pays
    /// the difference.
    fn make_up_the_fee(&mut self) {
        let Some(rate) = self.announcing().and_then(|announcing| announcing.planned_rate) else { return };
        if self.announcing().is_some_and(|announcing| announcing.bump().rate() < rate) {
            self.bump_to(rate);
        }
    }

    /// Bumps an announcement that was not confirmed within the target. The blocks decide, not the estimate: if the
    /// estimate is not above the paid rate, the estimate was wrong.
    fn bump_if_stuck(&mut self, estimate: Option<FeeRate>, minimum: Option<FeeRate>) {
        let (ours, other) = self.places();
        // One that is held back is not stuck, unless a member has broadcast it.
        let Some(announcing) = self.announcing().filter(|_| !self.next.held || ours.is_some()) else { return };
        // A foreign spend that is not in a block yet is outbid: the transaction that the members approved must win.
        if [ours, other.map(|(_, place)| place)].iter().any(|place| matches!(place, Some(Place::Block(_)))) {
            return;
        }
        let patience = u32::from(self.next.rules.fees.target().blocks());
        let height = self.next.sight.tip.map(|tip| tip.block.height);
        let waited = height.zip(announcing.patient_since).map_or(0, |(height, since)| height.saturating_sub(since));
        if announcing.refused_for_fee || waited >= patience {
            let half_more = half_more(announcing.bump().rate());
            let asked = estimate.map_or(half_more, |estimate| estimate.max(half_more));
            match self.next.rules.fees.above(minimum) {
                Ok(fees) => self.bump_to(fees.hold(Some(asked))),
                Err(_) => self.bump_impossible(BumpError::CeilingBelowMinimum),
            }
        }
    }

    /// Bumps because the operator asks for it, whatever the blocks and the estimate indicate.
    fn bump_now(&mut self, rate: Option<FeeRate>) -> Result<(), Reject> {
        let Some(announcing) = self.announcing() else { return Err(out_of_phase("a bump", &self.next.state)) };
        let (ours, other) = self.places();
        if [ours, other.map(|(_, place)| place)].iter().any(|place| matches!(place, Some(Place::Block(_)))) {
            return Err(Reject::not_now("a transaction that spends its coin is in a block"));
        }
        let asked = rate.unwrap_or_else(|| half_more(announcing.bump().rate()));
        let rate = self.next.rules.fees.hold(Some(asked));
        let child = self.child_for(rate).map_err(Reject::not_now)?;
        self.fact(E::ChildPlanned { at: self.at, child, rate });
        Ok(())
    }

    fn bump_to(&mut self, rate: FeeRate) {
        if self.announcing().is_none() {
            return;
        }
        match self.child_for(rate) {
            Ok(child) => self.fact(E::ChildPlanned { at: self.at, child, rate }),
            Err(reason) => self.bump_impossible(reason),
        }
    }

    /// The child with which the announcement pays `rate`.
    fn child_for(&self, rate: FeeRate) -> Result<Child, BumpError> {
        let Some(announcing) = self.announcing() else { return Err(BumpError::NoChange) };
        let bump = announcing.bump();
        let change = match &self.next.rules.change {
            Change::To(script) if self.next.rules.change_is_ours => script.as_script(),
            // The beacon's coin is the members' to spend, and change to another address is its owner's.
            Change::To(_) | Change::Beacon => bitcoin::Script::new(),
        };
        if rate <= bump.rate() {
            return Err(BumpError::AtCeiling);
        }
        bump.child_for(rate, self.next.rules.fees.ceiling(), change)
    }

    /// Reports once that the announcement cannot be bumped.
    fn bump_impossible(&mut self, reason: BumpError) {
        if self.announcing().is_some_and(|announcing| !announcing.bump_impossible) {
            self.fact(E::BumpImpossible { at: self.at, reason });
        }
    }

    fn tick(&mut self) {
        match &self.next.state {
            State::Signing { deadline, .. } if *deadline <= self.at => self.fail(Failure::NotSigned),
            State::Announcing(announcing) => {
                if announcing.stalled_at <= self.at {
                    self.fact(E::Stalled { at: self.at });
                }
                self.submit_if_due();
            }
            _ => {}
        }
    }
}
