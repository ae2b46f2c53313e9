//! From the opportunity to the signed response.

use std::{collections::BTreeSet, sync::Arc};

use super::{Current, Decided, Seat, SeatEffect, SeatEvent, SeatUpdate, Seated, Stage};
use crate::{
    beacon::did_index,
    cohort::standing::{
        opportunity::{Opportunity, OpportunityKind},
        reader::BoardReader,
        response::{Entry, Response, ResponseContent},
        roster::{Roster, Row},
        terms::{StandingBeacon, Updates},
    },
    error::{Reject, RejectCode},
    hash::{DidIndex, DocumentHash},
    jcs,
    message::Bytes,
    time::Timestamp,
};

impl Seat {
    pub(super) fn on_opportunity(&self, now: Timestamp, seated: &Seated, opportunity: &Opportunity) -> Decided {
        let refuse = |code, detail: String| Err(self.reject(code, detail));
        if !opportunity.is_signed(seated.roster.context(), &self.config.service_key) {
            return refuse(RejectCode::WrongSender, "the opportunity is not signed by the service".to_owned());
        }
        if let Some(current) = &seated.current {
            let known = &current.opportunity;
            if opportunity.number == known.number && *opportunity == **known {
                return Ok(Vec::new());
            }
            if opportunity.number <= known.number {
                // See `returns`: the service gets its own signed opportunity.
                return refuse(
                    RejectCode::Equivocation,
                    format!(
                        "number {} is not above {}, which this seat has answered",
                        opportunity.number, known.number
                    ),
                );
            }
        }
        if opportunity.number == 0 {
            return refuse(RejectCode::Malformed, "an opportunity has a number from 1".to_owned());
        }
        let fits = match opportunity.kind {
            OpportunityKind::Announcement | OpportunityKind::Move => opportunity.coins.len() == 1,
            OpportunityKind::Refresh => opportunity.coins.len() > usize::from(!seated.record.is_move_final()),
            OpportunityKind::Roster => opportunity.coins.is_empty(),
        };
        if !fits {
            return refuse(
                RejectCode::Malformed,
                "an announcement spends one coin, a refresh several, a roster none".to_owned(),
            );
        }
        if opportunity.coins.iter().collect::<BTreeSet<_>>().len() != opportunity.coins.len() {
            return refuse(RejectCode::Malformed, "a coin occurs twice".to_owned());
        }
        if now >= opportunity.deadline() {
            return refuse(RejectCode::WrongPhase, "the time to respond is over".to_owned());
        }
        if let Err(problem) = seated.record.may_answer(now, opportunity, &self.config.terms) {
            return refuse(RejectCode::UnacceptableTerms, problem);
        }
        // Another seat of this process, or its service, has checked the same rows.
        let known = self.config.boards.roster(&seated.roster, &opportunity.roster_hash, opportunity.row_count);
        if let Some((roster, rows)) = known.filter(|(roster, _)| roster.log().ends_with(&opportunity.rows)) {
            return self.accept(now, seated, opportunity, &roster, rows);
        }
        let before = opportunity.row_count.checked_sub(opportunity.rows.len() as u64);
        match before.and_then(|before| seated.roster.row_count().checked_sub(before)) {
            // What this seat knows of them already is not applied again.
            Some(known) if known <= opportunity.rows.len() as u64 => {
                let rows = usize::try_from(known).ok().and_then(|known| opportunity.rows.get(known..));
                self.follow(now, seated, opportunity, rows.unwrap_or_default())
            }
            Some(_) => refuse(RejectCode::DataMismatch, "fewer rows than this seat knows".to_owned()),
            None if before.is_none() => refuse(RejectCode::Malformed, "fewer rows in all than in it".to_owned()),
            None => Ok(vec![SeatEvent::RowsMissed { at: now, opportunity: Arc::new(opportunity.clone()) }]),
        }
    }

    pub(super) fn on_rows_fetched(&self, now: Timestamp, rows: &[Row]) -> Decided {
        let missed = self.seated.as_ref().and_then(|seated| Some((seated, seated.missed.as_ref()?)));
        let (seated, opportunity) = missed.ok_or_else(|| Reject::out_of_phase("rows", "none missed"))?;
        if now >= opportunity.deadline() {
            return Err(self.reject(RejectCode::WrongPhase, "the time to respond is over"));
        }
        // There may be later ones by now: they are those of the next number.
        let count = opportunity.row_count.saturating_sub(seated.roster.row_count());
        let rows = usize::try_from(count).ok().and_then(|count| rows.get(..count));
        match rows {
            Some(rows) => self.follow(now, seated, opportunity, rows),
            None => Err(self.reject(RejectCode::DataMismatch, "fewer rows than the opportunity has")),
        }
    }

    /// Accepts an opportunity if these rows lead to its roster.
    fn follow(&self, now: Timestamp, seated: &Seated, opportunity: &Opportunity, rows: &[Row]) -> Decided {
        let mut roster = Arc::clone(&seated.roster);
        if !rows.is_empty() {
            let follows = Arc::make_mut(&mut roster).follow(rows);
            follows.map_err(|problem| self.reject(RejectCode::DataMismatch, problem))?;
        }
        if roster.hash() != opportunity.roster_hash || roster.row_count() != opportunity.row_count {
            return Err(
                self.reject(RejectCode::DataMismatch, "the rows do not lead to the roster of the opportunity")
            );
        }
        let roster = self.config.boards.shared(roster);
        self.accept(now, seated, opportunity, &roster, Arc::new(rows.to_vec()))
    }

    /// Accepts an opportunity if its roster has everything that the service has acknowledged to this seat. `rows` are those that this seat does
    /// not know.
    fn accept(
        &self,
        now: Timestamp,
        seated: &Seated,
        opportunity: &Opportunity,
        roster: &Roster,
        rows: Arc<Vec<Row>>,
    ) -> Decided {
        let is_own = |row: &&Row, serial: u64| row.seat == self.config.seat && row.serial >= serial;
        let is_there = |index: &DidIndex, serial: u64| {
            let last = [seated.roster.row(index), roster.row(index)];
            last.into_iter().flatten().any(|row| is_own(&row, serial))
                // The index has moved on since.
                || rows.iter().filter(|row| row.did_index == *index).any(|row| is_own(&row, serial))
        };
        let missing = seated
            .acknowledged
            .iter()
            .find(|(index, (serial, from))| opportunity.number >= *from && !is_there(index, *serial));
        if let Some((index, (serial, _))) = missing {
            let detail =
                format!("the roster lacks the row {serial} of {index}, which the service has acknowledged");
            return Err(self.reject(RejectCode::DataMismatch, detail));
        }
        let opportunity = Arc::new(opportunity.clone());
        Ok(vec![SeatEvent::OpportunityAccepted { at: now, opportunity, rows }])
    }

    /// What an opportunity is answered with that does not open a new number: by the response again, which a service that has restarted may
    /// not have, or by [evidence](Self::returns).
    pub(super) fn respond_again(&self, opportunity: &Opportunity) -> Vec<SeatEffect> {
        let repeated = self
            .current()
            .filter(|current| current.stage == Stage::Responded && *current.opportunity == *opportunity);
        match (&self.seated, repeated) {
            (Some(seated), Some(current)) => self.send_response(seated, current),
            _ => self.returns(opportunity),
        }
    }

    /// What a service needs that was restored from a backup: its own signed opportunity of the highest number, for one that opens a
    /// number otherwise than before, and the rows that it does not know.
    pub fn returns(&self, opportunity: &Opportunity) -> Vec<SeatEffect> {
        let returned = self.seated.as_ref().and_then(|seated| {
            let known = &seated.current.as_ref()?.opportunity;
            let has_forgotten = opportunity.number <= known.number && *opportunity != **known
                || opportunity.row_count < seated.roster.row_count();
            has_forgotten.then(|| self.evidence(seated, known, opportunity.row_count))
        });
        returned.unwrap_or_default()
    }

    pub(super) fn on_updates(&self, now: Timestamp, number: u64, updates: &[SeatUpdate]) -> Decided {
        let fault = |detail: String| Err(Reject { code: RejectCode::UpdateVerificationFailed, peer: None, detail });
        let current = self.stage_of(number, "updates")?;
        if current.stage != Stage::Choosing {
            return Err(Reject::out_of_phase("updates", "chosen"));
        }
        if !current.opportunity.kind.announces() && !updates.is_empty() {
            return fault(format!("a {} announces nothing", current.opportunity.kind));
        }
        let mut chosen: Vec<(DidIndex, u64, DocumentHash, &SeatUpdate)> = Vec::new();
        for update in updates {
            let index = did_index(&update.did);
            if current.roster.seat_of(&index) != Some(&self.config.seat) {
                return fault(format!("{} is not registered to this seat", update.did));
            }
            if chosen.iter().any(|(known, ..)| *known == index) {
                return fault(format!("two updates of {}", update.did));
            }
            let record = self.seated.as_ref().map(|seated| &seated.record);
            let allowed =
                record.map(|record| record.may_submit(&current.opportunity, &index, update.version, &update.hash));
            if let Some(Err(problem)) = allowed {
                return fault(format!("{}: {problem}", update.did));
            }
            if current.opportunity.kind == OpportunityKind::Move
                && let Err(problem) = self.may_move(&index, update.version, &update.hash)
            {
                return fault(format!("{}: {problem}", update.did));
            }
            self.check_full(update).map_err(|problem| Reject {
                code: RejectCode::UpdateVerificationFailed,
                peer: None,
                detail: format!("{}: {problem}", update.did),
            })?;
            chosen.push((index, update.version, update.hash, update));
        }
        chosen.sort_by_key(|(index, ..)| *index);
        let given = chosen.iter().map(|(.., update)| (update.did.clone(), update.full.clone())).collect();
        let updates = chosen.into_iter().map(|(index, version, hash, _)| (index, version, hash)).collect();
        Ok(vec![SeatEvent::Committed { at: now, number, updates, given }])
    }

    /// A service that receives updates gets each of them whole, and any other none.
    fn check_full(&self, update: &SeatUpdate) -> Result<(), String> {
        match (self.config.terms.updates, &update.full) {
            (Updates::Hash, None) => Ok(()),
            (Updates::Hash, Some(_)) => Err("the service of this cohort receives hashes only".to_owned()),
            (Updates::Full, None) => Err("the service of this cohort receives the whole update".to_owned()),
            (Updates::Full, Some(full)) => match jcs::document_hash(full) {
                Ok(hash) if hash == update.hash => Ok(()),
                Ok(_) => Err("the hash is not that of the update".to_owned()),
                Err(error) => Err(error.to_string()),
            },
        }
    }

    pub(super) fn stage_of(&self, number: u64, input: &'static str) -> Result<&Current, Reject> {
        let current = self.current().filter(|current| current.opportunity.number == number);
        current.ok_or_else(|| Reject::out_of_phase(input, "another number"))
    }

    /// What the seat signs as its response, with these nonces.
    pub fn content(&self, number: u64, nonces: Vec<Bytes<66>>) -> Option<ResponseContent> {
        let seated = self.seated.as_ref()?;
        let current = seated.current.as_ref().filter(|current| current.opportunity.number == number)?;
        if current.stage != Stage::Committed {
            return None;
        }
        let beacon = self.config.terms.beacon_type;
        let mut entries: Vec<Entry> = match (current.opportunity.kind, beacon) {
            (OpportunityKind::Refresh | OpportunityKind::Roster, _) => Vec::new(),
            (OpportunityKind::Announcement | OpportunityKind::Move, StandingBeacon::Cas) => current
                .given
                .iter()
                .zip(&current.updates)
                .map(|((did, _), (_, _, hash))| Entry::Cas { did: did.as_str().to_owned(), update_hash: *hash })
                .collect(),
            (OpportunityKind::Announcement | OpportunityKind::Move, StandingBeacon::Smt) => current
                .roster
                .indexes(&self.config.seat)
                .map(|index| Entry::leaf(*index, &self.leaf_nonce(number, index), current.update_of(index)))
                .collect(),
        };
        entries.sort();
        Some(ResponseContent {
            number,
            roster_hash: current.opportunity.roster_hash,
            has_updates: !current.updates.is_empty(),
            entries,
            nonce_contributions: nonces,
        })
    }

    /// The nonce of an index's leaf at that number.
    pub fn leaf_nonce(&self, number: u64, index: &DidIndex) -> [u8; 32] {
        let address = self.output().map_or("", |output| output.address());
        self.config.seed.leaf_nonce(&self.config.service, address, number, index)
    }

    pub(super) fn on_response(&self, now: Timestamp, response: &Arc<Response>) -> Decided {
        let current = self.stage_of(response.number, "response")?;
        if current.stage != Stage::Committed {
            return Err(Reject::out_of_phase("response", "not committed"));
        }
        let expected = self.content(response.number, response.nonce_contributions.clone());
        if expected.is_none_or(|expected| expected.entries != response.entries) {
            return Err(Reject {
                code: RejectCode::DataMismatch,
                peer: None,
                detail: "the response is not the one that this seat has decided on".to_owned(),
            });
        }
        response.check_in(self.place(current)).map_err(|problem| Reject {
            code: RejectCode::Malformed,
            peer: None,
            detail: problem.to_string(),
        })?;
        Ok(vec![SeatEvent::Responded { at: now, response: Arc::clone(response) }])
    }
}

impl Seated {
    pub(super) fn apply(&mut self, event: &SeatEvent, boards: &dyn BoardReader) {
        match event {
            SeatEvent::RowsMissed { opportunity, .. } => self.missed = Some(Arc::clone(opportunity)),
            SeatEvent::OpportunityAccepted { opportunity, rows, .. } => {
                self.acknowledged.retain(|_, (_, from)| *from > opportunity.number);
                self.missed = None;
                // They were checked when the event was decided.
                let known = boards.roster(&self.roster, &opportunity.roster_hash, opportunity.row_count);
                match known.filter(|(_, known)| known == rows) {
                    Some((roster, _)) => self.roster = roster,
                    None if rows.is_empty() => {}
                    None => {
                        let roster = Arc::make_mut(&mut self.roster);
                        rows.iter().for_each(|row| roster.apply(row));
                    }
                }
                self.current = Some(Current {
                    opportunity: Arc::clone(opportunity),
                    roster: Arc::clone(&self.roster),
                    updates: Vec::new(),
                    given: Vec::new(),
                    response: None,
                    stage: Stage::Choosing,
                });
            }
            SeatEvent::Committed { at, updates, given, .. } => {
                if let Some(current) = &mut self.current {
                    current.updates.clone_from(updates);
                    current.given.clone_from(given);
                    current.stage = Stage::Committed;
                    self.record.commit(*at, &current.opportunity, updates);
                }
            }
            SeatEvent::Responded { response, .. } => {
                if let Some(current) = &mut self.current {
                    current.response = Some(Arc::clone(response));
                    current.stage = Stage::Responded;
                }
            }
            other => self.apply_confirming(other),
        }
    }
}
