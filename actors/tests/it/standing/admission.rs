//! Who gets a seat, and what is recorded of seats.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use btcr2_aggregation_actors::{
    bans::{Entry, Offence},
    policy::PolicyError,
    standing::{
        notice::{SeatNotice, StandingNotice},
        policy::{
            DefaultStandingPolicy, Price, PriceRequest, SeatApplicant, StandingServicePolicy, UpdatesToCheck,
        },
    },
    subject::Subject,
    transport::memory::MemoryTransport,
};
use btcr2_aggregation_protocol::{
    cohort::standing::{StandingBeacon, message::AskedRow},
    did::Did,
    id::CohortId,
    invite::InviteToken,
};
use tokio::sync::Notify;

use super::world::{Seat, World, announce, start_of_time, terms, until};
use crate::common::{identity, on_paused_clock};

/// An operator that admits one participant after the other, at the test's word.
#[derive(Default)]
struct Gatekeeper {
    inner: DefaultStandingPolicy,
    /// Admissions wait for this, if it is there.
    gate: Option<Arc<Notify>>,
    /// The DIDs that may have a seat; every DID without it.
    list: Option<BTreeSet<Did>>,
    token: Option<InviteToken>,
    asked: Mutex<Vec<SeatApplicant>>,
    released: Mutex<Vec<Did>>,
}

#[async_trait]
impl StandingServicePolicy for Gatekeeper {
    fn screen(&self, cohort_id: &CohortId, applicant: &SeatApplicant) -> Result<(), String> {
        let is_invited = |token: &InviteToken| {
            applicant.invite.as_ref().is_some_and(|proof| token.verify(proof, cohort_id, &applicant.did))
        };
        match (&self.list, &self.token) {
            (None, None) => Ok(()),
            (Some(list), _) if applicant.applies_as.as_ref().is_some_and(|did| list.contains(did)) => Ok(()),
            (_, Some(token)) if is_invited(token) => Ok(()),
            _ => Err("not on the list".to_owned()),
        }
    }

    async fn admit(&self, _: &CohortId, applicant: &SeatApplicant) -> Result<(), String> {
        self.asked.lock().unwrap().push(applicant.clone());
        if let Some(gate) = &self.gate {
            gate.notified().await;
        }
        Ok(())
    }

    async fn release(&self, _: &CohortId, applicant: &SeatApplicant) {
        self.released.lock().unwrap().push(applicant.did.clone());
    }

    async fn check_control(&self, cohort: &CohortId, row: &AskedRow, digest: &[u8; 32]) -> Result<(), String> {
        self.inner.check_control(cohort, row, digest).await
    }

    async fn check_updates(&self, updates: &UpdatesToCheck) -> Result<(), String> {
        self.inner.check_updates(updates).await
    }

    async fn price(&self, request: &PriceRequest) -> Result<Price, PolicyError> {
        self.inner.price(request).await
    }
}

fn world(seats: usize, policy: Gatekeeper) -> (World, Arc<Gatekeeper>) {
    let network = Arc::new(MemoryTransport::new());
    let mut world = World::new(start_of_time(), network.clone(), network, seats);
    let policy = Arc::new(policy);
    world.standing.policy = Arc::clone(&policy) as _;
    (world, policy)
}

/// Why a seat was not given.
async fn refused(seat: &mut Seat) -> String {
    seat.until(|notice| match notice {
        SeatNotice::SeatNotGiven { reason, .. } => Some(reason.clone()),
        _ => None,
    })
    .await
}

async fn formed(seat: &mut Seat) {
    seat.until(|notice| matches!(notice, SeatNotice::SeatFormed { .. }).then_some(())).await;
}

#[test]
fn a_list_and_invites_admit_seats() {
    on_paused_clock(async {
        let token: InviteToken = format!("btcr2-invite-{}", "5a".repeat(16)).parse().unwrap();
        let listed = identity("listed");
        let policy = Gatekeeper {
            list: Some(BTreeSet::from([listed.did().clone()])),
            token: Some(token.clone()),
            ..Gatekeeper::default()
        };
        let (mut world, policy) = world(5, policy);
        world.seats[0].controller.applies(None, Some(listed.clone()));
        world.seats[1].controller.applies(Some(token), None);
        world.seats[3].controller.applies(None, Some(identity("another")));
        let opened = world.start_service().await.open_standing(terms(StandingBeacon::Cas, 2 + 1)).await.unwrap();
        world.cohort = Some(opened);
        for seat in [2, 3] {
            world.seats[seat].start().await;
            assert_eq!(refused(&mut world.seats[seat]).await, "not on the list");
        }
        for seat in [0, 1] {
            world.seats[seat].start().await;
            world.seats[seat].until(|notice| matches!(notice, SeatNotice::SeatAccepted { .. }).then_some(())).await;
        }
        // What was refused can be asked for again, with an invite, by a member that starts again.
        world.seats[2].stop().await;
        world.seats[2].controller.applies(policy.token.clone(), None);
        world.seats[2].start().await;
        for seat in 0..3 {
            formed(&mut world.seats[seat]).await;
        }
        let asked = policy.asked.lock().unwrap();
        let shown: Vec<_> = asked.iter().map(|one| (one.applies_as.clone(), one.invite.is_some())).collect();
        assert_eq!(shown, [(Some(listed.did().clone()), false), (None, true), (None, true)]);
    });
}

#[test]
fn a_banned_participant_gets_no_seat() {
    on_paused_clock(async {
        let (mut world, _) = world(2, Gatekeeper::default());
        let banned = identity("banned");
        let entry = Entry {
            offence: Offence::Equivocation,
            cohort_id: CohortId::parse("another").unwrap(),
            number: None,
            at: world.clock.now(),
            detail: "a test".to_owned(),
            address: None,
            invite: None,
            evidence: Vec::new(),
        };
        assert!(world.bans.record(Subject::from(banned.did()), entry).is_some());
        world.seats[0].controller.applies(None, Some(banned));
        let opened = world.start_service().await.open_standing(terms(StandingBeacon::Cas, 2)).await.unwrap();
        world.cohort = Some(opened);
        world.seats[0].start().await;
        assert!(refused(&mut world.seats[0]).await.starts_with("banned until 2025-06-"));
        until(&mut world.notices, |notice| matches!(notice, StandingNotice::SeatRefused { .. }).then_some(()))
            .await;
    });
}

#[test]
fn whoever_comes_too_late_gets_its_invite_back() {
    on_paused_clock(async {
        let gate = Arc::new(Notify::new());
        let (mut world, policy) = world(4, Gatekeeper { gate: Some(Arc::clone(&gate)), ..Gatekeeper::default() });
        let opened = world.start_service().await.open_standing(terms(StandingBeacon::Cas, 3)).await.unwrap();
        world.cohort = Some(opened);
        for seat in 0..4 {
            world.seats[seat].start().await;
        }
        // All four are candidates, and all are admitted at once; there are three seats.
        while policy.asked.lock().unwrap().len() < 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        gate.notify_waiters();
        let cohort_id = world.cohort().id().clone();
        let formed = until(&mut world.notices, |notice| match notice {
            StandingNotice::StandingFormed { seats, .. } => Some(*seats),
            _ => None,
        })
        .await;
        assert_eq!(formed, 3);
        let late = until(&mut world.notices, |notice| match notice {
            StandingNotice::SeatRefused { seat, reason, .. } => Some((seat.clone(), reason.clone())),
            _ => None,
        })
        .await;
        assert_eq!(late.1, "the cohort has formed");
        let place = (0..4).find(|seat| *world.seats[*seat].identity(&cohort_id).did() == late.0).unwrap();
        assert_eq!(refused(&mut world.seats[place]).await, "the cohort has formed");
        while policy.released.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(*policy.released.lock().unwrap(), [late.0]);
    });
}

#[test]
fn refusals_of_a_seat_are_recorded_number_by_number() {
    on_paused_clock(async {
        let (mut world, _) = world(3, Gatekeeper::default());
        let known = identity("known to the operator");
        world.seats[1].controller.applies(None, Some(known.clone()));
        let mut terms = terms(StandingBeacon::Cas, 3);
        terms.min_seconds_between_announcements = 1;
        world.form(terms).await;
        world.seats[1].controller.refuses(Some("never"));
        let mut ends = 0;
        for seat in [0, 2, 0] {
            announce(&mut world, &[seat]).await;
            ends += 1;
        }
        assert_eq!(ends, 3);
        let listed = world.bans.list().unwrap();
        let conduct = &listed[&Subject::from(known.did())];
        assert!(conduct.entries.len() >= 3, "{conduct:?}");
        let numbers: BTreeSet<_> = conduct.entries.iter().map(|entry| entry.number.unwrap()).collect();
        assert_eq!(numbers.len(), conduct.entries.len(), "one for each number");
        for entry in &conduct.entries {
            assert_eq!((entry.offence, entry.detail.as_str()), (Offence::Rejection, "never"));
        }
        assert!(conduct.ban(world.clock.now()).is_some(), "three times in a month");
        // The seat that it has stays, also after a restart.
        world.restart_service().await;
        world.seats[1].controller.refuses(None);
        announce(&mut world, &[1]).await;
    });
}
