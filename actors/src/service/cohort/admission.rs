//! Admission: the cheap checks before an opt-in reaches the machine, so that a refused applicant leaves nothing behind;
//! and the seats of those that become candidates.

use actix::Context;
use btcr2_aggregation_protocol::{
    cohort::{
        Member,
        event::ServiceEvent,
        service::{
            ServiceInput,
            phase::{Admission, Phase},
        },
    },
    did::Did,
    hash::MessageDigest,
    message::{Body, control::CohortEnded},
    time::Timestamp,
};

use std::{sync::Arc, time::Duration};

use super::CohortActor;
use crate::{
    bans,
    notice::ServiceNotice,
    policy::Applicant,
    subject::{NetworkAddress, Subject},
    transport::{Outbound, Received},
};

/// How many applicants a cohort notifies within [`REFUSAL_PERIOD`] that they are not admitted. Any peer can opt in.
const MAX_REFUSALS: u32 = 64;
const REFUSAL_PERIOD: Duration = Duration::from_secs(60);

/// The delay before a ban list that could not be read is read again.
const BOOK_AGAIN: Duration = Duration::from_secs(10);

/// The text for a ban.
fn banned_until(until: Timestamp) -> String {
    format!("banned until {}", bans::end_of_ban(until))
}

/// Everything by which an applicant is limited and banned.
fn subjects(did: &Did, address: Option<NetworkAddress>, invite: Option<Subject>) -> Vec<Subject> {
    [Some(Subject::from(did)), address.map(Subject::Address), invite].into_iter().flatten().collect()
}

impl CohortActor {
    /// Refuses an opt-in that needs no further checks; returns whether it did. The machine handles those of existing
    /// candidates.
    pub(super) fn turns_away(&mut self, received: &Received) -> bool {
        let Body::CohortOptIn(opt_in) = &*received.body else { return false };
        let Phase::Enrolling(enrolling) = self.engine.machine().phase() else { return false };
        if enrolling.candidates.contains_key(&received.from) {
            return false;
        }
        let (did, address, invite) = (received.from.clone(), received.address, opt_in.invite.clone());
        let applicant = Applicant { did, address, invite };
        if let Err(reason) = self.screen(&applicant) {
            self.notify_refused(applicant.did, received.digest(), reason);
            return true;
        }
        // At most one for each candidate, but applicants that only the machine rejects are included.
        if let Some(address) = applicant.address
            && self.addresses.len() < self.engine.machine().config().terms.limits.candidates
        {
            self.addresses.insert(applicant.did, address);
        }
        false
    }

    fn screen(&self, applicant: &Applicant) -> Result<(), String> {
        let terms = &self.engine.machine().config().terms;
        let invite = applicant.invite.as_ref().map(|proof| Subject::Invite(proof.id()));
        let subjects = subjects(&applicant.did, applicant.address, invite);
        if let Some(until) = self.shared.bans.known_ban(&subjects, self.shared.clock.now()) {
            return Err(banned_until(until));
        }
        // A member of the cohort that this one replaces takes no additional seat.
        if !terms.lineage.invited.contains(&applicant.did) {
            self.shared.seats.check(&subjects, self.shared.clock.now()).map_err(|error| error.to_string())?;
        }
        self.shared.policy.screen(&terms.cohort_id, applicant)
    }

    fn notify_refused(&mut self, did: Did, opt_in: MessageDigest, reason: String) {
        let (now, cohort_id) = (self.shared.clock.now(), self.cohort_id());
        if now.since(self.refusals.0) >= REFUSAL_PERIOD {
            self.refusals = (now, 0);
        }
        if self.refusals.1 >= MAX_REFUSALS {
            return;
        }
        self.refusals.1 += 1;
        let body = CohortEnded {
            cohort_id: cohort_id.clone(),
            code: CohortEnded::NOT_ADMITTED.to_owned(),
            reason: format!("not admitted: {reason}"),
            at_fault: false,
            next_cohort_id: None,
            signed: None,
            opt_in: Some(opt_in),
        };
        self.send(Outbound::Direct { to: did.clone(), body: body.into(), until: Some(now + REFUSAL_PERIOD) });
        self.shared.notices.publish(ServiceNotice::ParticipantRefused { cohort_id, participant: did, reason });
    }

    /// Asks the operator whether to admit `member`.
    pub(super) fn ask_admission(&mut self, member: Arc<Member>, ctx: &mut Context<Self>) {
        let (view, shared) = (self.view(), Arc::clone(&self.shared));
        let subjects = self.subjects_of(&member);
        let question = async move {
            // The operator may have just changed the ban list.
            while shared.bans.is_stale() {
                let bans = shared.bans.clone();
                match tokio::task::spawn_blocking(move || bans.refresh()).await {
                    Ok(Ok(())) => break,
                    // The operator has to repair a list that cannot be read; until then no candidate is admitted, and
                    // none is refused permanently.
                    Ok(Err(error)) => tracing::error!(did = %member.did, %error, "an admission is delayed"),
                    Err(error) => tracing::error!(did = %member.did, %error, "an admission is delayed"),
                }
                tokio::time::sleep(BOOK_AGAIN).await;
            }
            let admission = match shared.bans.known_ban(&subjects, shared.clock.now()) {
                None => shared.policy.admit(&view, &member).await,
                Some(until) => Err(banned_until(until)),
            };
            Some(ServiceInput::AdmissionDecided { did: member.did.clone(), admission })
        };
        self.ask(question, ctx);
    }

    /// The network address and the invite of `member`, as far as they are known.
    pub(super) fn subjects_of(&self, member: &Member) -> Vec<Subject> {
        let invite = member.invite.as_ref().map(|proof| Subject::Invite(proof.id()));
        subjects(&member.did, self.addresses.get(&member.did).copied(), invite)
    }

    /// Takes and frees seats as the cohort progresses.
    pub(super) fn count_seats(&mut self, event: &ServiceEvent) {
        match event {
            ServiceEvent::OptInReceived { member, .. } => self.take_seat(member),
            ServiceEvent::MemberRefused { did, .. } => drop(self.seats.remove(did)),
            ServiceEvent::OptInDisplaced { fault, .. } => drop(self.seats.remove(&fault.did)),
            ServiceEvent::KeysAggregated { .. } => self.settle_seats(),
            ServiceEvent::CohortCompleted { .. } | ServiceEvent::CohortFailed { .. } => self.seats.clear(),
            _ => {}
        }
    }

    /// Takes the seats of a cohort of a previous run.
    pub(super) fn restore_seats(&mut self) {
        let machine = self.engine.machine();
        if machine.has_ended() {
            return;
        }
        let members: Vec<Arc<Member>> = match machine.phase() {
            Phase::Enrolling(enrolling) => {
                let candidates = enrolling.candidates.values();
                let seated = candidates.filter(|(_, admission)| *admission != Admission::Refused);
                seated.map(|(member, _)| Arc::clone(member)).collect()
            }
            phase => phase.formed().into_iter().flat_map(|formed| formed.members.values().cloned()).collect(),
        };
        members.iter().for_each(|member| self.take_seat(member));
        self.settle_seats();
    }

    fn take_seat(&mut self, member: &Member) {
        let seat = self.shared.seats.take(self.subjects_of(member));
        self.seats.insert(member.did.clone(), seat);
    }

    /// Once the cohort has formed, only its members have seats.
    fn settle_seats(&mut self) {
        let Some(formed) = self.engine.machine().phase().formed() else { return };
        self.seats.retain(|did, _| formed.members.contains_key(did));
        self.addresses.retain(|did, _| formed.members.contains_key(did));
        self.seats.values_mut().for_each(crate::seats::Seat::formed);
    }
}
