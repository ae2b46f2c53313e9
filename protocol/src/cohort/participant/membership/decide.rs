//! The decisions of a participant about its cohorts.

use std::sync::Arc;

use super::{
    CohortKey, Membership, MembershipEvent, Previous, PreviousSession, Successor, WithoutCohort, run::Standing,
};
use crate::{
    cohort::{Advert, event::SessionEnd},
    did::Did,
    error::{Reject, RejectCode},
    id::CohortId,
    message::{Body, Message, keygen::CohortAdvert},
    time::Timestamp,
};

impl Membership {
    pub(super) fn on_message(&self, message: &Message, stored: bool) -> Result<Vec<MembershipEvent>, Reject> {
        if let Body::CohortAdvert(body) = &*message.body {
            return self.on_advert(&message.from, body);
        }
        let cohort = CohortKey::of_message(message);
        match self.run.standing(&cohort) {
            Some(Standing::Session(_)) => return Ok(self.on_claim(cohort, &message.body)),
            // Late messages of a cohort that has ended for us are not the service's fault.
            Some(Standing::Halted | Standing::Declined | Standing::Over) => return Ok(Vec::new()),
            Some(Standing::Formed) | None => {}
        }
        if self.facts.has_ended(&cohort) {
            return Ok(Vec::new());
        }
        let (from, forged) = (&message.from, self.run.has_session_named(&cohort.cohort_id));
        let reject = if forged {
            Reject::new(RejectCode::WrongSender, from, "the sender is not the service of the cohort's advert")
        } else {
            Reject::new(RejectCode::WrongCohort, from, "we take part in no such cohort")
        };
        let is_control = message.body.is_control();
        let known = self.run.standing(&cohort).is_some();
        if known || is_control || matches!(&*message.body, Body::CohortOptInAccept(_)) {
            // Messages of a previous run are not the service's fault, nor are those that end it.
            return if stored || (is_control && !forged) { Ok(Vec::new()) } else { Err(reject) };
        }
        // A cohort that has formed admits no one else: a member that has lost its session would wait in vain.
        let reject = (!stored).then_some(reject);
        Ok(vec![MembershipEvent::FormedWithoutUs { cohort, reject }])
    }

    /// A message to a session that names a successor. It counts before the session has made it durable, because the new
    /// cohort's advert may be the next message.
    fn on_claim(&self, cohort: CohortKey, body: &Body) -> Vec<MembershipEvent> {
        let Body::CohortEnded(ended) = body else { return Vec::new() };
        let Some(next) = &ended.next_cohort_id else { return Vec::new() };
        // Any peer can advertise a cohort and claim that another one replaces it: the claim only counts for a cohort that
        // we joined.
        if !self.facts.is_joined(&cohort)
            || self.run.session(&cohort).is_some_and(|s| s.claim.as_ref() == Some(next))
        {
            return Vec::new();
        }
        vec![MembershipEvent::SuccessorClaimed { cohort, next: next.clone() }]
    }

    fn on_advert(&self, from: &Did, body: &CohortAdvert) -> Result<Vec<MembershipEvent>, Reject> {
        let cohort = CohortKey { service: from.clone(), cohort_id: body.cohort_id.clone() };
        // A cohort on another network cannot announce anything for this DID.
        if !self.is_new(&cohort) || body.network != self.config.did.network() {
            return Ok(Vec::new());
        }
        let advert = Arc::new(Advert::read(from, body, &self.config.beacons)?);
        if self.replaces_ours(&advert) {
            return Ok(self.start_session(&advert));
        }
        // Before it takes a slot that another cohort could use.
        Ok(vec![MembershipEvent::AdvertRead { advert }])
    }

    fn is_new(&self, cohort: &CohortKey) -> bool {
        self.run.standing(cohort).is_none() && !self.facts.is_joined(cohort) && !self.facts.has_ended(cohort)
    }

    pub(super) fn on_consider_decided(&self, advert: &Arc<Advert>, considers: bool) -> Vec<MembershipEvent> {
        let cohort = CohortKey::from(&**advert);
        if !self.is_new(&cohort) {
            return Vec::new();
        }
        if considers || self.replaces_ours(advert) {
            return self.start_session(advert);
        }
        vec![MembershipEvent::AdvertPassedOver { cohort }]
    }

    fn start_session(&self, advert: &Arc<Advert>) -> Vec<MembershipEvent> {
        if self.sessions() >= self.config.max_sessions {
            // It is considered when it is repeated.
            return Vec::new();
        }
        let rejoins = self.replaces_ours(advert);
        vec![MembershipEvent::SessionStarted { advert: Arc::clone(advert), rejoins, resumed: false }]
    }

    pub(super) fn on_opted_in(&self, at: Timestamp, advert: &Arc<Advert>) -> Vec<MembershipEvent> {
        let cohort = CohortKey::from(&**advert);
        let open = self.run.session(&cohort).is_some_and(|session| session.over.is_none());
        if !open || self.facts.is_joined(&cohort) {
            return Vec::new();
        }
        vec![MembershipEvent::CohortJoined { at, advert: Arc::clone(advert) }]
    }

    pub(super) fn on_formed(&self, at: Timestamp, cohort: &CohortKey) -> Vec<MembershipEvent> {
        match self.facts.joined_of(cohort) {
            Some(joined) if !joined.formed => vec![MembershipEvent::CohortFormed { at, cohort: cohort.clone() }],
            _ => Vec::new(),
        }
    }

    pub(super) fn on_session_ended(
        &self,
        at: Timestamp,
        cohort: &CohortKey,
        reason: &SessionEnd,
    ) -> Vec<MembershipEvent> {
        if self.run.session(cohort).is_none_or(|session| session.over.is_some()) {
            return Vec::new();
        }
        let Some(joined) = self.facts.joined_of(cohort) else {
            // Left, or failed on our side, before we joined: its end is remembered when its driver has stopped.
            return match reason {
                SessionEnd::NotJoined => vec![MembershipEvent::SessionDeclined { cohort: cohort.clone() }],
                _ => Vec::new(),
            };
        };
        let successor = self.successor(cohort, &joined.advert, reason, Some(at + self.config.patience));
        let announced = matches!(reason, SessionEnd::Signed) || reason.says_completed();
        let left = !announced && successor.is_none() && self.is_left_without(Some(cohort));
        let mut events = vec![MembershipEvent::CohortEnded { at, cohort: cohort.clone(), successor }];
        events.extend(left.then(|| left_without(cohort, WithoutCohort::CohortFailed)));
        events
    }

    /// The successor that an end names, unless we have joined it already.
    fn successor(
        &self,
        ended: &CohortKey,
        replaced: &Arc<Advert>,
        reason: &SessionEnd,
        until: Option<Timestamp>,
    ) -> Option<Successor> {
        let SessionEnd::EndedByService { next: Some(next), .. } = reason else { return None };
        let cohort = CohortKey { service: ended.service.clone(), cohort_id: CohortId::clone(next) };
        let is_new = !self.facts.is_joined(&cohort) && !self.facts.has_ended(&cohort) && cohort != *ended;
        is_new.then(|| Successor { cohort, replaced: Arc::clone(replaced), until })
    }

    /// Whether nothing is left once `cohort` is over.
    fn is_left_without(&self, cohort: Option<&CohortKey>) -> bool {
        !self.is_in_another(cohort) && self.facts.awaited().next().is_none()
    }

    pub(super) fn on_session_stopped(&self, cohort: &CohortKey, failure: Option<&String>) -> Vec<MembershipEvent> {
        let Some(session) = self.run.session(cohort) else { return Vec::new() };
        let Some(reason) = failure else {
            return vec![MembershipEvent::SessionClosed { cohort: cohort.clone() }];
        };
        let runs = self.facts.is_joined(cohort);
        // Unauthenticated peers advertise without limit, also while our disk is full: a session that had not joined is
        // only remembered as one of many.
        let joined = runs || (session.over.is_some() && self.facts.has_ended(cohort));
        let reason = reason.clone();
        let mut events = vec![MembershipEvent::CohortHalted { cohort: cohort.clone(), joined, reason }];
        let left = runs && self.is_left_without(Some(cohort));
        events.extend(left.then(|| left_without(cohort, WithoutCohort::CohortFailed)));
        events
    }

    pub(super) fn on_resumed(&self, now: Timestamp, previous: &Previous) -> Vec<MembershipEvent> {
        let mut events = Vec::new();
        for cohort in &previous.archived {
            events.push(MembershipEvent::ArchiveRead { cohort: cohort.clone() });
        }
        for (cohort, session) in &previous.sessions {
            match session {
                Ok(session) if session.was_declined() => {
                    // It was to be removed, but the program ended first: its advert is treated like any other.
                    events.push(MembershipEvent::SessionDiscarded { cohort: cohort.clone() });
                }
                Ok(session) => self.resume_session(now, cohort, session, &mut events),
                Err(reason) => {
                    let (cohort, reason) = (cohort.clone(), reason.clone());
                    events.push(MembershipEvent::CohortHalted { cohort, joined: true, reason });
                }
            }
        }
        let is_here = |ours: &CohortKey| previous.sessions.iter().any(|(cohort, _)| cohort == ours);
        let lost = self.facts.joined().filter(|(cohort, _)| !is_here(cohort));
        events.extend(lost.map(|(cohort, _)| MembershipEvent::CohortLost { at: now, cohort: cohort.clone() }));
        events
    }

    /// The session's own journal is the first to know that it has joined, formed or ended; versions before 0.2 have no
    /// other.
    fn resume_session(
        &self,
        now: Timestamp,
        cohort: &CohortKey,
        session: &PreviousSession,
        events: &mut Vec<MembershipEvent>,
    ) {
        let PreviousSession { advert, joined, formed, end } = session;
        let known = self.facts.joined_of(cohort);
        match end {
            Some((at, reason)) if *joined && !self.facts.has_ended(cohort) => {
                // Awaited as long as it would be if there had been no restart.
                let until = Some(*at + self.config.patience).filter(|until| *until > now);
                let successor = self.successor(cohort, advert, reason, until);
                events.push(MembershipEvent::CohortEnded { at: *at, cohort: cohort.clone(), successor });
            }
            Some(_) => {}
            None if *joined => {
                if known.is_none() {
                    events.push(MembershipEvent::CohortJoined { at: now, advert: Arc::clone(advert) });
                }
                if *formed && known.is_none_or(|known| !known.formed) {
                    events.push(MembershipEvent::CohortFormed { at: now, cohort: cohort.clone() });
                }
            }
            None => {}
        }
        let (advert, rejoins) = (Arc::clone(advert), false);
        events.push(MembershipEvent::SessionStarted { advert, rejoins, resumed: true });
    }

    pub(super) fn on_tick(&self, now: Timestamp) -> Vec<MembershipEvent> {
        let awaited = || self.facts.awaited();
        let missed = || awaited().filter(|(_, until)| *until <= now).map(|(cohort, _)| cohort);
        let mut events: Vec<MembershipEvent> =
            missed().map(|cohort| MembershipEvent::SuccessorMissed { at: now, cohort: cohort.clone() }).collect();
        let waits = awaited().any(|(_, until)| until > now);
        if let Some(last) = missed().last()
            && !waits
            && !self.is_in_another(None)
        {
            events.push(left_without(last, WithoutCohort::SuccessorMissed));
        }
        events
    }
}

fn left_without(cohort: &CohortKey, cause: WithoutCohort) -> MembershipEvent {
    MembershipEvent::LeftWithoutCohort { cohort: cohort.clone(), cause }
}
