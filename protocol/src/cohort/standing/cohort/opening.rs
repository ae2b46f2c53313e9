//! When the next number opens, on which coins, and what follows from its end.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{CohortEvent, Decided, OpenNumber, Running, StandingCohort};
use crate::{
    cohort::standing::{
        limits::{MAX_PART_BYTES, MAX_PART_ROWS, json_len},
        number::NumberEnd,
        opportunity::{CoinRef, Opportunity, OpportunityKind},
        roster::Row,
        terms::Absent,
    },
    error::Reject,
    key::{PublicKey, Signature},
    time::{CLOCK_TOLERANCE, Timestamp},
};

/// After so many failures in a row a cohort waits for its cadence.
const MAX_FAILURES: u32 = 3;

impl StandingCohort {
    /// When the next number may open; `None` while one is open, nothing asks for one, or there is no coin.
    pub(super) fn next_opening(&self) -> Option<Timestamp> {
        let running = self.running()?;
        if running.held
            || running.open.is_some()
            || running.coins.next().is_none()
            || running.migration.has_moved() && running.failures == 0
            || running.coins.depth() >= usize::from(self.config.terms.max_unconfirmed)
        {
            return None;
        }
        // Last, since it looks at every seat.
        self.asked_for(running).filter(|_| self.has_least_dids(running))
    }

    /// When what asks for the next number lets it open.
    fn asked_for(&self, running: &Running) -> Option<Timestamp> {
        let earliest = self.earliest(running);
        if running.failures > 0 {
            // The same coins again: at once, or after three failures in the cadence.
            return Some(if running.failures < MAX_FAILURES { Timestamp::default() } else { earliest });
        }
        if !self.coins_to_join(running).is_empty() {
            // Before it is needed: no update waits for it.
            return Some(earliest);
        }
        let trigger = self.config.terms.pending_update_trigger.unwrap_or(1);
        let triggered = running.pending.len() >= usize::from(trigger);
        let latest = self.config.terms.max_seconds_between_announcements.map(|seconds| {
            running.opened.map_or(Timestamp::default(), |opened| opened + Duration::from_secs(seconds.into()))
        });
        match (triggered, latest) {
            (true, _) => Some(earliest),
            (false, Some(latest)) => Some(latest.max(earliest)),
            (false, None) => None,
        }
    }

    fn earliest(&self, running: &Running) -> Timestamp {
        let seconds = Duration::from_secs(self.config.terms.min_seconds_between_announcements.into());
        running.paced.map_or(Timestamp::default(), |paced| paced + seconds)
    }

    /// Whether the last number was opened clearly later than now: the clock was wrong then, and was set back. Without this the cohort would wait
    /// until that time comes again.
    fn is_set_back(now: Timestamp, running: &Running) -> bool {
        running.opened.is_some_and(|opened| now + CLOCK_TOLERANCE < opened)
    }

    /// Whether enough seats have the least number of DIDs.
    fn has_least_dids(&self, running: &Running) -> bool {
        let least = usize::try_from(self.config.terms.min_dids_per_participant).unwrap_or(usize::MAX);
        let ready = running.roster.seats_with(least);
        let needed = match self.config.terms.absent {
            Absent::Wait => running.seats.len(),
            Absent::Proceed => self.config.terms.spenders(running.seats.len()),
        };
        ready >= needed
    }

    pub(super) fn on_tick(&self, now: Timestamp) -> Vec<CohortEvent> {
        match (self.next_opening(), self.running()) {
            (Some(opening), Some(running)) if opening <= now || Self::is_set_back(now, running) => {
                let (kind, joined) = (running.migration.next_kind(), self.coins_to_join(running));
                let coins = match kind {
                    // A move that is open goes on when its coin can pay for it.
                    OpportunityKind::Announcement | OpportunityKind::Move if !joined.is_empty() => joined,
                    OpportunityKind::Refresh => running.coins.to_join(),
                    _ => running.coins.to_announce(),
                };
                self.plan(now, running, kind, coins).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether a number of this kind may open now.
    ///
    /// # Errors
    /// Why not.
    pub fn may_open(&self, now: Timestamp, kind: OpportunityKind) -> Result<(), Reject> {
        self.open_now(now, kind).map(drop)
    }

    pub(super) fn open_now(&self, now: Timestamp, kind: OpportunityKind) -> Decided {
        let fault = |detail: &str| Err(Reject::not_now(detail));
        let Some(running) = self.running() else { return fault("the cohort has not formed") };
        if running.held {
            return fault("the operator holds the cohort: release it first");
        }
        if running.open.is_some() {
            return fault("a number is open");
        }
        let coins = match kind {
            OpportunityKind::Announcement | OpportunityKind::Move => running.coins.to_announce(),
            OpportunityKind::Refresh => running.coins.to_join(),
            OpportunityKind::Roster => Vec::new(),
        };
        if let Some(problem) = self.cannot_open(running, kind, coins.len()) {
            return fault(problem);
        }
        // The cadence is a promise to the seats: the operator keeps it too.
        let is_early = now < self.earliest(running) && !Self::is_set_back(now, running);
        if is_early && running.failures == 0 && kind != OpportunityKind::Roster {
            return fault("the terms' time between announcements has not passed");
        }
        match self.plan(now, running, kind, coins) {
            Some(event) => Ok(vec![event]),
            None => fault("there is no coin, or too many announcements are unconfirmed"),
        }
    }

    /// The host's own decision that no number opens, e.g. during maintenance. One that is open goes on.
    pub(super) fn on_hold(&self, now: Timestamp, held: bool) -> Decided {
        let running = self.running().ok_or_else(|| Reject::not_now("the cohort has not formed"))?;
        Ok(if running.held == held { Vec::new() } else { vec![CohortEvent::Held { at: now, held }] })
    }

    /// A number of this kind on these coins. Several are joined by a refresh: also those that one has tried to join, and failed.
    fn plan(
        &self,
        now: Timestamp,
        running: &Running,
        kind: OpportunityKind,
        coins: Vec<CoinRef>,
    ) -> Option<CohortEvent> {
        let spends = kind != OpportunityKind::Roster;
        let is_deep = running.coins.depth() >= usize::from(self.config.terms.max_unconfirmed);
        if spends && (coins.is_empty() || is_deep) {
            return None;
        }
        let kind = if coins.len() > 1 { OpportunityKind::Refresh } else { kind };
        // A seat that has missed rows fetches them; so does each of them where they are many.
        let rows = running.unsent();
        let transactions = if spends { running.coins.transactions() } else { Vec::new() };
        let bytes = || json_len(&rows) + json_len(&transactions);
        let rows = if rows.len() > MAX_PART_ROWS || bytes() > MAX_PART_BYTES { Vec::new() } else { rows.to_vec() };
        let opportunity = Opportunity {
            number: running.last + 1,
            kind,
            respond_by: self.respond_by(now).as_secs(),
            roster_hash: running.roster.hash(),
            coins,
            rows,
            row_count: running.roster.row_count(),
            transactions,
            signature: Signature::from_bytes(&[0; 64]),
        };
        let (opportunity, by_fallback) = (Arc::new(opportunity), running.by_fallback);
        Some(CohortEvent::NumberPlanned { at: now, opportunity, by_fallback })
    }

    fn respond_by(&self, now: Timestamp) -> Timestamp {
        now + Duration::from_secs(self.config.terms.respond_seconds.into())
    }

    pub(super) fn on_signed(&self, now: Timestamp, opportunity: &Arc<Opportunity>) -> Decided {
        let planned = self.running().and_then(|running| running.open.as_ref()).filter(|open| !open.is_signed);
        let Some(planned) = planned else { return Err(Reject::out_of_phase("signed opportunity", "none planned")) };
        let unsigned = Opportunity { signature: planned.opportunity.signature, ..(**opportunity).clone() };
        if unsigned != *planned.opportunity {
            return Err(Reject::out_of_phase("signed opportunity", "another one is planned"));
        }
        Ok(vec![CohortEvent::NumberOpened { at: now, signature: opportunity.signature }])
    }

    pub(super) fn on_number_ended(&self, now: Timestamp, number: u64, end: &NumberEnd) -> Decided {
        if self.open_number() != Some(number) {
            // Reported again after a restart.
            return Ok(Vec::new());
        }
        Ok(vec![CohortEvent::NumberEnded { at: now, number, end: end.clone() }])
    }
}

impl Running {
    /// The rows that were sent with no number yet.
    pub(super) fn unsent(&self) -> &[Row] {
        self.roster.rows_from(self.sent as u64)
    }

    pub(super) fn apply(&mut self, event: &CohortEvent) {
        match event {
            CohortEvent::RowsSettled { registered, .. } => {
                let roster = Arc::make_mut(&mut self.roster);
                for row in registered {
                    if roster.row(&row.did_index) != Some(row) {
                        roster.apply(row);
                    }
                }
            }
            CohortEvent::PendingReceived { seat, .. } => drop(self.pending.insert(*seat)),
            CohortEvent::CoinArrived { coin, .. } => self.coins.deposit(*coin),
            CohortEvent::RowsRestored { rows, .. } => {
                let roster = Arc::make_mut(&mut self.roster);
                rows.iter().for_each(|row| roster.apply(row));
            }
            CohortEvent::NumberPlanned { opportunity, by_fallback, .. } => {
                self.last = opportunity.number;
                self.migration.planned(opportunity.kind);
                self.open = Some(OpenNumber {
                    pending: std::mem::take(&mut self.pending),
                    opportunity: Arc::clone(opportunity),
                    roster: Arc::clone(&self.roster),
                    by_fallback: *by_fallback,
                    is_signed: false,
                });
                // Later rows are those of the next number.
                self.sent = self.roster.log().len();
            }
            CohortEvent::NumberOpened { at, signature } => {
                if let Some(open) = &mut self.open {
                    let signed = Opportunity { signature: *signature, ..(*open.opportunity).clone() };
                    (open.opportunity, open.is_signed) = (Arc::new(signed), true);
                }
                self.opened = Some(*at);
            }
            CohortEvent::NumberEnded { at, number, end } => {
                // If it ended before it was opened, it was opened by a clock that was wrong.
                self.opened = self.opened.map(|opened| opened.min(*at));
                self.end(*number, end);
            }
            CohortEvent::Held { held, .. } => self.held = *held,
            CohortEvent::NumbersSkipped { to, .. } => self.last = self.last.max(*to),
            CohortEvent::SuccessorNamed { successor, output, .. } => self.migration.name(successor, output),
            CohortEvent::Confirmed { number, .. } => {
                self.coins.confirm(*number);
                self.migration.confirmed(*number);
            }
            CohortEvent::Voided { coin, numbers, .. } => {
                self.coins.void(coin, numbers);
                self.migration.voided(numbers);
                // What they announced is to be announced again.
                if !numbers.is_empty() {
                    self.pending.extend(self.seats.keys().copied());
                }
            }
            _ => {}
        }
    }

    fn end(&mut self, number: u64, end: &NumberEnd) {
        let Some(open) = self.open.take() else { return };
        // What a silent seat has announced to have is still to come, in the next number; of a failed number that of all. One that is silent there
        // too claims again when it is back: numbers for its sake must not follow one on the other, and leave no time for a move.
        let was_silent: Vec<PublicKey> = match &self.ended {
            Some((_, NumberEnd::Idle { absent, .. } | NumberEnd::Signed { absent, .. })) => absent.clone(),
            _ => Vec::new(),
        };
        let still = |seat: &&PublicKey| !was_silent.contains(seat);
        let silent = |seats: &[PublicKey]| {
            open.pending.iter().filter(|seat| seats.contains(seat)).filter(still).copied().collect()
        };
        let left: BTreeSet<PublicKey> = match end {
            NumberEnd::Idle { absent, .. } | NumberEnd::Signed { absent, .. } => silent(absent),
            NumberEnd::Failed { .. } => open.pending.clone(),
        };
        self.pending.extend(left);
        self.ended = Some((number, end.clone()));
        let kind = open.opportunity.kind;
        if kind == OpportunityKind::Roster {
            // It was no try at an announcement: what was to come is still to come.
            self.pending.extend(open.pending);
            return;
        }
        match end {
            NumberEnd::Idle { .. } => {
                self.migration.idle(kind);
                (self.failures, self.by_fallback) = (0, false);
                self.paced = self.opened;
            }
            NumberEnd::Failed { absent, refused, .. } => {
                self.failures += 1;
                if self.failures >= MAX_FAILURES {
                    self.paced = self.opened;
                }
                // A seat that has lost its nonces is present, and all can sign the next number; but one that loses them again and
                // again must not stop the others.
                let silent = !absent.is_empty();
                let refusal =
                    refused.values().any(|reason| reason != super::super::message::Confirmation::NONCE_LOST);
                self.by_fallback = silent || refusal || self.failures > 1;
                self.coins.failed(&open.opportunity.coins);
            }
            NumberEnd::Signed { transaction, .. } => {
                (self.failures, self.by_fallback) = (0, false);
                self.paced = self.opened;
                let leaves = self.leaves(&open.opportunity);
                self.coins.signed(number, open.opportunity.coins.clone(), transaction, leaves);
                self.migration.signed(number, kind);
            }
        }
    }
}
