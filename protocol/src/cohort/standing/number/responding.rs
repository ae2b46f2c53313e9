//! Responses: their parts, the updates in them, and what all of them lead to.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

use super::{Decided, Held, Number, NumberEffect, NumberEnd, NumberEvent, Parts, Phase, Why};
use crate::{
    cohort::standing::{
        message::{FullUpdate, MAX_PART_ENTRIES, ResponsePart},
        opportunity::OpportunityKind,
        response::{Entry, Response},
        terms::{Absent, StandingBeacon, Updates},
        transaction::Mode,
    },
    did::Did,
    error::{Reject, RejectCode},
    hash::{DidIndex, DocumentHash, sha256_concat},
    jcs,
    key::PublicKey,
    time::Timestamp,
};

/// The DID index of each update, which is the one that the response has the hash of.
fn match_updates(
    beacon: StandingBeacon,
    entries: &[Entry],
    updates: &[FullUpdate],
) -> Result<Vec<(DidIndex, Value)>, String> {
    let by_content: BTreeMap<[u8; 32], DidIndex> = entries
        .iter()
        .map(|entry| match entry {
            Entry::Cas { update_hash, .. } => (*update_hash.as_bytes(), entry.index()),
            Entry::Smt { leaf, .. } => (*leaf.as_bytes(), entry.index()),
        })
        .collect();
    let mut matched: BTreeMap<DidIndex, Value> = BTreeMap::new();
    for FullUpdate { update, nonce_hash } in updates {
        let hash = jcs::document_hash(update).map_err(|error| error.to_string())?;
        let content = match (beacon, nonce_hash) {
            (StandingBeacon::Cas, _) => *hash.as_bytes(),
            // Rule M-3.
            (StandingBeacon::Smt, Some(nonce_hash)) => sha256_concat(&[nonce_hash.as_bytes(), hash.as_bytes()]),
            (StandingBeacon::Smt, None) => return Err("an update without the hash of its leaf's nonce".to_owned()),
        };
        let index = by_content.get(&content).ok_or("an update that the response does not have the hash of")?;
        if matched.insert(*index, update.clone()).is_some() {
            return Err("an update occurs twice".to_owned());
        }
    }
    Ok(matched.into_iter().collect())
}

impl NumberEvent {
    pub(super) const fn is_response(&self) -> bool {
        matches!(
            self,
            Self::PartReceived { .. }
                | Self::ResponseHeld { .. }
                | Self::ResponseRefused { .. }
                | Self::ResponseReceived { .. }
        )
    }
}

/// Applies an event about a response.
pub(super) fn collect(
    event: &NumberEvent,
    parts: &mut BTreeMap<PublicKey, Parts>,
    held: &mut BTreeMap<PublicKey, Held>,
    responses: &mut BTreeMap<PublicKey, Response>,
) {
    match event {
        NumberEvent::PartReceived { seat, part, .. } => {
            let fresh = || Parts {
                hash: part.response_hash,
                parts: part.parts,
                next: 1,
                entries: Vec::new(),
                updates: Vec::new(),
            };
            if part.part == 1 {
                parts.insert(*seat, fresh());
            }
            let so_far = parts.entry(*seat).or_insert_with(fresh);
            so_far.entries.extend(part.entries.iter().cloned());
            so_far.updates.extend(part.updates.iter().cloned());
            so_far.next = part.part + 1;
        }
        NumberEvent::ResponseHeld { response, updates, .. } => {
            parts.remove(&response.seat);
            let (response, updates) = (Arc::clone(response), updates.clone());
            held.insert(response.seat, Held { response, updates });
        }
        NumberEvent::ResponseRefused { seat, .. } => drop(held.remove(seat)),
        NumberEvent::ResponseReceived { response, .. } => {
            parts.remove(&response.seat);
            held.remove(&response.seat);
            responses.insert(response.seat, (**response).clone());
        }
        _ => {}
    }
}

impl Number {
    pub(super) fn on_part(&self, now: Timestamp, seat: PublicKey, from: &Did, part: &ResponsePart) -> Decided {
        let reject = |code, detail: String| Err(Reject::new(code, from, detail));
        let Phase::Collecting { parts, held, responses } = &self.phase else {
            // A repeated response that was received before changes nothing.
            let known = self
                .board()
                .and_then(|board| board.response(&seat))
                .is_some_and(|response| response.hash(self.task.roster.context()) == part.response_hash);
            return if known {
                Ok(Vec::new())
            } else {
                reject(RejectCode::WrongPhase, "no response is awaited".into())
            };
        };
        let known = responses.get(&seat).or_else(|| held.get(&seat).map(|held| &*held.response));
        if let Some(response) = known {
            return if response.hash(self.task.roster.context()) == part.response_hash {
                Ok(Vec::new())
            } else {
                reject(
                    RejectCode::Equivocation,
                    "the seat has responded otherwise; the first response stands".into(),
                )
            };
        }
        let most = usize::try_from(self.task.terms.max_dids_per_participant).unwrap_or(usize::MAX);
        let fits = part.entries.len() <= MAX_PART_ENTRIES
            && part.updates.len() <= part.entries.len()
            && (1..=part.parts).contains(&part.part)
            && usize::try_from(part.parts).is_ok_and(|parts| parts <= most.max(1));
        if !fits {
            return reject(RejectCode::Malformed, "a part that no response has".into());
        }
        if self.task.terms.updates == Updates::Hash && !part.updates.is_empty() {
            return reject(RejectCode::Malformed, "this service receives hashes only".into());
        }
        let so_far = parts.get(&seat);
        if let Some(so_far) = so_far
            && (so_far.hash != part.response_hash || so_far.parts != part.parts)
            && part.part != 1
        {
            return reject(RejectCode::Equivocation, "a part of another response".into());
        }
        // Parts come in order; a first part begins again, e.g. after a restart of the seat.
        let expected = so_far.map_or(1, |so_far| so_far.next);
        if part.part != 1 && part.part != expected {
            return if part.part < expected {
                Ok(Vec::new())
            } else {
                reject(RejectCode::WrongPhase, format!("part {expected} is expected"))
            };
        }
        let so_far = so_far.filter(|_| part.part != 1);
        let entries = [so_far.map_or(&[][..], |so_far| &so_far.entries), &part.entries].concat();
        if entries.len() > most {
            return reject(RejectCode::Malformed, format!("more than {most} entries"));
        }
        if part.part < part.parts {
            return Ok(vec![NumberEvent::PartReceived { at: now, seat, part: Box::new(part.clone()) }]);
        }
        let (Some(roster_hash), Some(has_updates), Some(nonces), Some(signature)) =
            (part.roster_hash, part.has_updates, &part.nonce_contributions, part.signature)
        else {
            return reject(RejectCode::Malformed, "the last part lacks what the seat signs".into());
        };
        let response = Response {
            seat,
            number: part.number,
            roster_hash,
            has_updates,
            entries,
            nonce_contributions: nonces.clone(),
            signature,
        };
        response
            .check_in(self.task.place())
            .map_err(|problem| Reject::new(RejectCode::Malformed, from, problem))?;
        if self.task.terms.updates == Updates::Hash || !has_updates {
            return Ok(self.receive(now, responses, Arc::new(response)));
        }
        let updates = [so_far.map_or(&[][..], |so_far| &so_far.updates), &part.updates].concat();
        let matched = match_updates(self.task.terms.beacon_type, &response.entries, &updates);
        let updates =
            matched.map_err(|problem| Reject::new(RejectCode::UpdateVerificationFailed, from, problem))?;
        // All entries of a CAS response are updates; which leaves of an SMT response are, only the seat knows.
        let is_complete = match self.task.terms.beacon_type {
            StandingBeacon::Cas => updates.len() == response.entries.len(),
            StandingBeacon::Smt => !updates.is_empty(),
        };
        if !is_complete {
            return reject(RejectCode::UpdateVerificationFailed, "not every update is in the response".into());
        }
        Ok(vec![NumberEvent::ResponseHeld { at: now, response: Arc::new(response), updates }])
    }

    /// A response that counts, and the end of collecting if it is the last one.
    fn receive(
        &self,
        now: Timestamp,
        responses: &BTreeMap<PublicKey, Response>,
        response: Arc<Response>,
    ) -> Vec<NumberEvent> {
        let mut events = vec![NumberEvent::ResponseReceived { at: now, response: Arc::clone(&response) }];
        if responses.len() + 1 == self.task.seats.len() {
            let mut all = responses.clone();
            all.insert(response.seat, (*response).clone());
            events.push(self.close(now, &all));
        }
        events
    }

    pub(super) fn check_updates(
        &self,
        response: &Arc<Response>,
        updates: &[(DidIndex, Value)],
    ) -> Vec<NumberEffect> {
        let response_hash = response.hash(self.task.roster.context());
        vec![NumberEffect::CheckUpdates { seat: response.seat, response_hash, updates: updates.to_vec() }]
    }

    /// The host has checked the updates of a response.
    pub(super) fn on_checked(
        &self,
        now: Timestamp,
        seat: &PublicKey,
        response_hash: &DocumentHash,
        problem: Option<&String>,
    ) -> Decided {
        let Phase::Collecting { held, responses, .. } = &self.phase else {
            return Err(Reject::out_of_phase("checked updates", "not collecting"));
        };
        let held = held.get(seat).filter(|held| held.response.hash(self.task.roster.context()) == *response_hash);
        let Some(held) = held else { return Err(Reject::out_of_phase("checked updates", "no such response")) };
        Ok(match problem {
            None => self.receive(now, responses, Arc::clone(&held.response)),
            Some(problem) => {
                let reason = crate::text::shown_within(problem, 200).into_owned();
                vec![NumberEvent::ResponseRefused { at: now, seat: *seat, reason }]
            }
        })
    }

    /// What the responses lead to.
    pub(super) fn close(&self, now: Timestamp, responses: &BTreeMap<PublicKey, Response>) -> NumberEvent {
        let task = &self.task;
        let absent: Vec<PublicKey> =
            task.seats.keys().filter(|seat| !responses.contains_key(seat)).copied().collect();
        let needed = match task.terms.absent {
            Absent::Wait => task.seats.len(),
            Absent::Proceed => task.terms.spenders(task.seats.len()),
        };
        if responses.len() < needed {
            return NumberEvent::Ended { at: now, end: NumberEnd::failed(Why::Absent, absent, BTreeMap::new()) };
        }
        let has_updates = responses.values().any(|response| response.has_updates);
        let kind = task.opportunity.kind;
        if kind == OpportunityKind::Roster || kind.announces() && !has_updates {
            return NumberEvent::BoardIdle { at: now };
        }
        let by_fallback = task.terms.absent == Absent::Proceed && (task.by_fallback || !absent.is_empty());
        NumberEvent::BoardClosed { at: now, mode: if by_fallback { Mode::Fallback } else { Mode::Key } }
    }
}
