//! Who has a seat, and what it registers.

use std::collections::BTreeMap;

use super::{Candidate, CohortEffect, CohortEvent, Credentials, Decided, Phase, Running, StandingCohort};
use crate::{
    cohort::standing::{
        message::{
            Applicant, AskedRow, MAX_PART_ENTRIES, MAX_PART_ROWS, RowsReturned, SeatAccept, SeatOptIn,
            StandingMessage,
        },
        output_of,
        roster::Row,
        terms::Registration,
    },
    did::Did,
    error::{Reject, RejectCode},
    key::PublicKey,
    time::Timestamp,
};

impl StandingCohort {
    /// Whether it has formed.
    pub fn has_formed(&self) -> bool {
        self.running().is_some()
    }

    /// With what a seat was asked for.
    pub fn credentials(&self, did: &Did) -> Credentials {
        let of_seat = |running: &Running| {
            let seat = running.seats.iter().find(|(_, of)| *of == did).map(|(seat, _)| seat)?;
            running.credentials.get(seat).cloned()
        };
        match &self.phase {
            Phase::Enrolling { candidates } => candidates.get(did).map(|candidate| candidate.credentials.clone()),
            Phase::Running(running) => of_seat(running),
        }
        .unwrap_or_default()
    }

    /// Whether a DID has asked for a seat, before the cohort has formed.
    pub fn is_candidate(&self, did: &Did) -> bool {
        matches!(&self.phase, Phase::Enrolling { candidates } if candidates.contains_key(did))
    }

    /// Who has asked for a seat, and whether it was admitted, before the cohort has formed.
    pub fn candidates(&self) -> impl Iterator<Item = (&Did, bool)> {
        let candidates = match &self.phase {
            Phase::Enrolling { candidates } => Some(candidates),
            Phase::Running(_) => None,
        };
        candidates.into_iter().flatten().map(|(did, candidate)| (did, candidate.admitted))
    }

    pub(super) fn on_opt_in(&self, now: Timestamp, from: &Did, opt_in: &SeatOptIn) -> Decided {
        let reject = |code, detail: &str| Err(Reject::new(code, from, detail));
        let Phase::Enrolling { candidates } = &self.phase else {
            return match self.running().and_then(|running| running.seats.get(&opt_in.participant_pk)) {
                Some(did) if did == from => Ok(Vec::new()),
                _ => reject(RejectCode::WrongPhase, "the cohort has formed"),
            };
        };
        if from.network() != self.config.terms.network {
            return reject(RejectCode::InvalidKey, "a DID of another network");
        }
        match candidates.get(from) {
            Some(known) if known.seat == opt_in.participant_pk => return Ok(Vec::new()),
            Some(_) => return reject(RejectCode::Equivocation, "another seat key was given before"),
            None => {}
        }
        // By the x coordinate: a key and its negative are one secret, and do not aggregate.
        let x_only = opt_in.participant_pk.x_only();
        if candidates.values().any(|candidate| candidate.seat.x_only() == x_only) {
            return reject(RejectCode::DuplicateKey, "the seat key is another candidate's");
        }
        // Unauthenticated peers must not make the list grow.
        if candidates.len() >= usize::from(self.config.terms.max_participants) * 4 {
            return reject(RejectCode::CohortFull, "too many candidates");
        }
        if !opt_in.is_proven(&self.config.service, from) {
            return reject(RejectCode::InvalidKey, "the seat key is not proven");
        }
        let applicant = opt_in.applicant.as_ref();
        let is_proven = |applicant: &Applicant| applicant.is_proven(&self.config.service, &opt_in.cohort_id, from);
        if applicant.is_some_and(|applicant| !is_proven(applicant)) {
            return reject(RejectCode::InvalidKey, "the DID as which it applies is not proven");
        }
        let applicant = applicant.map(|applicant| applicant.did.clone());
        let credentials = Credentials { invite: opt_in.invite.clone(), applicant };
        Ok(vec![CohortEvent::SeatAsked { at: now, did: from.clone(), seat: opt_in.participant_pk, credentials }])
    }

    pub(super) fn on_admitted(&self, now: Timestamp, did: &Did, refusal: Option<&String>) -> Decided {
        let Phase::Enrolling { candidates } = &self.phase else {
            return Err(Reject::out_of_phase("admission", "formed"));
        };
        let Some(candidate) = candidates.get(did).filter(|candidate| !candidate.admitted) else {
            return Err(Reject::out_of_phase("admission", "no candidate"));
        };
        let mut events = vec![match refusal {
            Some(reason) => CohortEvent::SeatRefused { at: now, did: did.clone(), reason: reason.clone() },
            None => CohortEvent::SeatAdmitted {
                at: now,
                did: did.clone(),
                seat: candidate.seat,
                credentials: candidate.credentials.clone(),
            },
        }];
        let admitted = candidates.values().filter(|candidate| candidate.admitted).count();
        if refusal.is_none() && admitted + 1 == usize::from(self.config.terms.max_participants) {
            events.push(self.form(now, candidates, Some(did))?);
        }
        Ok(events)
    }

    /// Whether the cohort can be formed of the seats that were admitted so far.
    ///
    /// # Errors
    /// Why not.
    pub fn may_form(&self) -> Result<(), Reject> {
        let Phase::Enrolling { candidates } = &self.phase else {
            return Err(Reject::not_now("the cohort has formed already"));
        };
        let admitted = candidates.values().filter(|candidate| candidate.admitted).count();
        let needed = self.config.terms.min_participants;
        if admitted < usize::from(needed) {
            let detail = format!("{admitted} seats are admitted, and the terms ask for at least {needed}");
            return Err(Reject::not_now(detail));
        }
        Ok(())
    }

    /// What a message is answered with that repeats an earlier one, because the first answer may be lost: with the promise of a seat, or
    /// with the cohort's keys.
    pub fn answers_again(&self, from: &Did, message: &StandingMessage) -> Vec<CohortEffect> {
        let StandingMessage::SeatOptIn(opt_in) = message else { return Vec::new() };
        match &self.phase {
            Phase::Enrolling { candidates } => {
                let known = candidates.get(from);
                let known = known.filter(|known| known.admitted && known.seat == opt_in.participant_pk);
                known.map(|_| self.accept(from)).into_iter().collect()
            }
            Phase::Running(running) => {
                let is_seat = running.seats.get(&opt_in.participant_pk) == Some(from);
                let ready = is_seat.then(|| self.ready(&running.output));
                ready.map(|message| CohortEffect::Send { to: from.clone(), message }).into_iter().collect()
            }
        }
    }

    pub(super) fn accept(&self, did: &Did) -> CohortEffect {
        let accept = SeatAccept { cohort_id: self.config.cohort_id.clone() };
        CohortEffect::Send { to: did.clone(), message: accept.into() }
    }

    pub(super) fn form(
        &self,
        now: Timestamp,
        candidates: &BTreeMap<Did, Candidate>,
        and: Option<&Did>,
    ) -> Result<CohortEvent, Reject> {
        let admitted = candidates.iter().filter(|(did, candidate)| candidate.admitted || Some(*did) == and);
        let keys: Vec<PublicKey> = admitted.map(|(_, candidate)| candidate.seat).collect();
        if and.is_none() {
            self.may_form()?;
        }
        let output = output_of(&self.config.terms, &keys, &*self.config.aggregator).map_err(|error| Reject {
            code: RejectCode::InvalidKey,
            peer: None,
            detail: error.to_string(),
        })?;
        Ok(CohortEvent::Formed { at: now, output })
    }

    /// The rows of a seat, each with the reason why it does not count, if any.
    pub(super) fn settle(&self, now: Timestamp, from: &Did, rows: &[(AskedRow, Option<String>)]) -> Decided {
        let (running, seat) = self.seat(from)?;
        let mut roster = (*running.roster).clone();
        let (mut registered, mut known, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        // Every seat verifies every row: one that registers and releases without end must not make the others work for it.
        let most =
            usize::try_from(self.config.terms.max_dids_per_participant).unwrap_or(usize::MAX).saturating_mul(2);
        let of_seat = running.unsent().iter().filter(|row| row.seat == seat).count();
        for (asked, problem) in rows {
            let AskedRow { did_index, serial, .. } = asked;
            let row = row_of(seat, asked);
            // Sent again because the answer was lost.
            if roster.row(did_index) == Some(&row) {
                known.push((*did_index, *serial));
                continue;
            }
            let since = running.unsent().iter().chain(&registered);
            let problem = match problem {
                Some(problem) => Some(problem.clone()),
                // A release and a registration: more of one index between two numbers only make every seat verify them.
                None if since.filter(|row| row.did_index == *did_index).count() >= 2 => {
                    Some("the index has changed twice since the last number".to_owned())
                }
                None if of_seat + registered.len() >= most => {
                    Some(format!("the seat has changed {most} indexes since the last number"))
                }
                None => roster.follow([&row]).err().map(|problem| problem.to_string()),
            };
            match problem {
                Some(problem) => refused.push((*did_index, *serial, problem)),
                None => registered.push(row),
            }
        }
        Ok(vec![CohortEvent::RowsSettled { at: now, from: from.clone(), registered, known, refused }])
    }

    /// Rows that a service has lost which was restored from a backup. They are signed by seats, so that every seat may return them.
    pub(super) fn on_rows_returned(&self, now: Timestamp, from: &Did, returned: &RowsReturned) -> Decided {
        let (running, _) = self.seat(from)?;
        if returned.rows.len() > MAX_PART_ROWS {
            return Err(Reject::new(RejectCode::Malformed, from, format!("at most {MAX_PART_ROWS} rows expected")));
        }
        let Some(known) = running.roster.row_count().checked_sub(returned.after) else {
            return Err(Reject::new(RejectCode::WrongPhase, from, "rows before these are missing"));
        };
        let new = usize::try_from(known).ok().and_then(|known| returned.rows.get(known..)).unwrap_or_default();
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let mut roster = (*running.roster).clone();
        roster.follow(new).map_err(|problem| Reject::new(RejectCode::Malformed, from, problem))?;
        Ok(vec![CohortEvent::RowsRestored { at: now, rows: new.to_vec() }])
    }

    pub(super) fn seat(&self, from: &Did) -> Result<(&Running, PublicKey), Reject> {
        let running = self.running().ok_or_else(|| Reject::new(RejectCode::WrongPhase, from, "not formed yet"))?;
        let seat = running.seats.iter().find(|(_, did)| *did == from).map(|(seat, _)| *seat);
        Ok((running, seat.ok_or_else(|| Reject::new(RejectCode::NotAMember, from, "no seat of this cohort"))?))
    }

    pub(super) fn on_register(&self, now: Timestamp, from: &Did, asked: &[AskedRow]) -> Decided {
        self.seat(from)?;
        if asked.is_empty() || asked.len() > MAX_PART_ENTRIES {
            return Err(Reject::new(RejectCode::Malformed, from, "1 to 256 rows expected"));
        }
        if self.config.terms.registration == Registration::Proven {
            // See `check_control`.
            return Ok(Vec::new());
        }
        let rows: Vec<_> = asked.iter().map(|row| (row.clone(), None)).collect();
        self.settle(now, from, &rows)
    }

    /// The check that proven registration needs of a message with rows.
    pub fn check_control(&self, from: &Did, message: &StandingMessage) -> Option<CohortEffect> {
        let StandingMessage::RegisterRows(asked) = message else { return None };
        if self.config.terms.registration != Registration::Proven || asked.rows.len() > MAX_PART_ENTRIES {
            return None;
        }
        // Also of rows that are registered: a new proof shows what has changed since.
        self.seat(from).ok().map(|_| CohortEffect::CheckControl { from: from.clone(), rows: asked.rows.clone() })
    }
}

fn row_of(seat: PublicKey, asked: &AskedRow) -> Row {
    Row { seat, did_index: asked.did_index, action: asked.action, serial: asked.serial, signature: asked.signature }
}
