//! Admission of seats, as in one-time cohorts: the cheap checks before a request reaches the machine, so that a refused applicant leaves nothing
//! behind; and the limits of those that become candidates.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use actix::{AsyncContext, Context, WrapFuture};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        cohort::{CohortInput, Credentials},
        message::{SeatOptIn, SeatRefused, StandingMessage},
    },
    did::Did,
    message::Body,
    time::Timestamp,
};

use super::StandingCohortActor;
use crate::{
    bans::end_of_ban,
    engine::Driven,
    seats::Seat,
    standing::{notice::StandingNotice, policy::SeatApplicant},
    subject::{NetworkAddress, Subject},
    transport::{Outbound, Received},
};

/// How many applicants a cohort notifies within [`PERIOD`] that they have no seat. Any peer can ask.
const MOST_REFUSALS: u32 = 64;
const PERIOD: Duration = Duration::from_secs(60);

/// The delay before a ban list that could not be read is read again.
const BANS_AGAIN: Duration = Duration::from_secs(10);

/// Who asks for seats.
#[derive(Default)]
pub(super) struct Applicants {
    /// The addresses from which candidates have asked.
    addresses: BTreeMap<Did, NetworkAddress>,
    /// What limits candidates and seats.
    seats: BTreeMap<Did, Seat>,
    /// Those that the host has admitted, until the machine has.
    admitted: BTreeMap<Did, SeatApplicant>,
    /// The start of the current period, and the number of refusals in it.
    refusals: (Timestamp, u32),
}

fn subjects(applicant: &SeatApplicant) -> Vec<Subject> {
    let invite = applicant.invite.as_ref().map(|proof| Subject::Invite(proof.id()));
    let dids = [Some(&applicant.did), applicant.applies_as.as_ref()].into_iter().flatten();
    dids.map(Subject::from).chain(applicant.address.map(Subject::Address)).chain(invite).collect()
}

fn banned(until: Timestamp) -> String {
    format!("banned until {}", end_of_ban(until))
}

impl StandingCohortActor {
    /// Refuses a request for a seat that needs no further checks; returns whether it did. The machine handles those of candidates and seats.
    pub(super) fn turns_away(&mut self, received: &Received) -> bool {
        let Body::Standing(message) = &*received.body else { return false };
        let StandingMessage::SeatOptIn(SeatOptIn { invite, applicant, .. }) = &**message else { return false };
        let machine = self.engine.machine();
        let from = &received.from;
        if machine.is_candidate(from) || self.is_seat(from) {
            return false;
        }
        let applicant = SeatApplicant {
            did: from.clone(),
            applies_as: applicant.as_ref().map(|applicant| applicant.did.clone()),
            invite: invite.clone(),
            address: received.address,
        };
        let screened =
            if machine.has_formed() { Err("the cohort has formed".to_owned()) } else { self.screen(&applicant) };
        if let Err(reason) = screened {
            self.refuse_seat(applicant.did, reason);
            return true;
        }
        let most = usize::from(self.engine.machine().config().terms.max_participants) * 4;
        if let Some(address) = applicant.address
            && self.applicants.addresses.len() < most
        {
            self.applicants.addresses.insert(applicant.did, address);
        }
        false
    }

    fn screen(&self, applicant: &SeatApplicant) -> Result<(), String> {
        let (subjects, now) = (subjects(applicant), self.shared.clock.now());
        if let Some(until) = self.shared.bans.known_ban(&subjects, now) {
            return Err(banned(until));
        }
        self.shared.seats.check(&subjects, now).map_err(|error| error.to_string())?;
        self.shared.policy.screen(self.cohort_id(), applicant)
    }

    /// Notifies an applicant that it has no seat.
    fn refuse_seat(&mut self, did: Did, reason: String) {
        let (now, cohort_id) = (self.shared.clock.now(), self.cohort_id().clone());
        let refusals = &mut self.applicants.refusals;
        if now.since(refusals.0) >= PERIOD {
            *refusals = (now, 0);
        }
        if refusals.1 >= MOST_REFUSALS {
            return;
        }
        refusals.1 += 1;
        let refused = SeatRefused { cohort_id: cohort_id.clone(), reason: reason.clone() };
        let body = Body::from(StandingMessage::from(refused)).into();
        let outbound = Outbound::Direct { to: did.clone(), body, until: Some(now + PERIOD) };
        self.shared.load.send(outbound, &self.outbound);
        self.shared.notices.publish(StandingNotice::SeatRefused { cohort_id, seat: did, reason });
    }

    /// What is known of a candidate or a seat.
    pub(super) fn applicant(&self, did: &Did) -> SeatApplicant {
        let Credentials { invite, applicant } = self.engine.machine().credentials(did);
        let address = self.applicants.addresses.get(did).copied();
        SeatApplicant { did: did.clone(), applies_as: applicant, invite, address }
    }

    /// Asks the operator whether to give a seat.
    pub(super) fn ask_admission(&mut self, did: Did, ctx: &mut Context<Self>) {
        let (applicant, shared) = (self.applicant(&did), Arc::clone(&self.shared));
        let cohort_id = self.cohort_id().clone();
        let subjects = subjects(&applicant);
        let asked = applicant.clone();
        let question = async move {
            // The operator may have just changed the ban list.
            while shared.bans.is_stale() {
                let bans = shared.bans.clone();
                match tokio::task::spawn_blocking(move || bans.refresh()).await {
                    Ok(Ok(())) => break,
                    // Until the operator has repaired it no candidate is admitted, and none is refused.
                    Ok(Err(error)) => tracing::error!(did = %asked.did, %error, "an admission is delayed"),
                    Err(error) => tracing::error!(did = %asked.did, %error, "an admission is delayed"),
                }
                tokio::time::sleep(BANS_AGAIN).await;
            }
            match shared.bans.known_ban(&subjects, shared.clock.now()) {
                None => shared.policy.admit(&cohort_id, &asked).await.err(),
                Some(until) => Some(banned(until)),
            }
        };
        ctx.spawn(actix::ActorFutureExt::map(question.into_actor(self), move |refusal, actor, ctx| {
            if refusal.is_none() {
                actor.applicants.admitted.insert(did.clone(), applicant);
            }
            if actor.engine.machine().has_formed() {
                return actor.release_admitted(ctx);
            }
            actor.feed(CohortInput::Admitted { did, refusal }, ctx);
        }));
    }

    /// The cohort has formed: those that were admitted too late get back what their admission has used up.
    pub(super) fn release_admitted(&mut self, ctx: &mut Context<Self>) {
        for (did, applicant) in std::mem::take(&mut self.applicants.admitted) {
            if self.is_seat(&did) {
                continue;
            }
            self.refuse_seat(did, "the cohort has formed".to_owned());
            let (policy, cohort_id) = (Arc::clone(&self.shared.policy), self.cohort_id().clone());
            let releasing = async move { policy.release(&cohort_id, &applicant).await };
            ctx.spawn(releasing.into_actor(self));
        }
    }

    /// A participant is a candidate.
    pub(super) fn seat_asked(&mut self, did: &Did) {
        let taken = self.shared.seats.take(subjects(&self.applicant(did)));
        self.applicants.seats.insert(did.clone(), taken);
    }

    /// A candidate is a seat, if the cohort forms.
    pub(super) fn seat_admitted(&mut self, did: &Did) {
        self.applicants.admitted.remove(did);
    }

    /// A candidate is none any more.
    pub(super) fn seat_refused(&mut self, did: &Did) {
        self.applicants.seats.remove(did);
        self.applicants.addresses.remove(did);
    }

    /// Once the cohort has formed, only its seats are counted.
    pub(super) fn settle_seats(&mut self) {
        let seats: Vec<Did> = self.engine.machine().seats().map(|(_, did)| did.clone()).collect();
        self.applicants.seats.retain(|did, _| seats.contains(did));
        self.applicants.addresses.retain(|did, _| seats.contains(did));
        self.applicants.seats.values_mut().for_each(Seat::formed);
    }

    /// Counts the seats of a previous run.
    pub(super) fn restore_seats(&mut self) {
        self.applicants = Applicants::default();
        let seats: Vec<Did> = self.engine.machine().seats().map(|(_, did)| did.clone()).collect();
        seats.iter().for_each(|did| self.seat_asked(did));
        self.settle_seats();
    }
}
