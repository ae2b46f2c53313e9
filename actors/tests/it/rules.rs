//! The service's configured behaviour when a phase cannot be completed; and the notifications of all members.

use std::{
    collections::BTreeMap,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::common::{
    Operator, Updater, World, cohort, identity, made_up_transaction, on_paused_clock, pass,
    peers::{Peer, advert, note},
    settle,
    tap::Tap,
    update,
};
use async_trait::async_trait;
use btcr2_aggregation_actors::{
    notice::ServiceNotice,
    policy::{
        CohortView, FundedTransaction, ParticipantPolicy, PolicyError, ServicePolicy, TransactionRequest,
        UpdateRequest,
    },
    service::OpenCohort,
    transport::Delivery,
};
use btcr2_aggregation_protocol::{
    cohort::{
        event::{CohortFailure, SessionEnd, SpendPath},
        participant::Advert,
        service::rules::{Answer, PhaseRule, PhaseRules, TimedPhase},
    },
    did::Did,
    error::RejectCode,
    id::CohortId,
    identity::Identity,
    message::{Body, control::CohortEnded},
    update::Submission,
};

fn rule(secs: u64, extensions: u32, then: Answer) -> PhaseRule {
    PhaseRule { timeout: Some(Duration::from_secs(secs)), extensions, then }
}

fn with_rule(mut open: OpenCohort, phase: TimedPhase, rule: PhaseRule) -> OpenCohort {
    open.rules.set(phase, rule).unwrap();
    open
}

/// A member whose first updates are delayed, and that counts the questions of its policy.
struct Member {
    identity: Identity,
    /// The delay of its n-th update; `None` for no update.
    delays: Vec<Option<u64>>,
    asked: Arc<Asked>,
}

#[derive(Default)]
struct Asked {
    join: AtomicUsize,
    rejoin: AtomicUsize,
    update: AtomicUsize,
}

impl Asked {
    fn counts(&self) -> (usize, usize) {
        (self.join.load(Ordering::SeqCst), self.rejoin.load(Ordering::SeqCst))
    }
}

#[async_trait]
impl ParticipantPolicy for Member {
    async fn should_join(&self, _: &Advert) -> bool {
        self.asked.join.fetch_add(1, Ordering::SeqCst);
        true
    }

    async fn should_rejoin(&self, _: &Advert) -> bool {
        self.asked.rejoin.fetch_add(1, Ordering::SeqCst);
        true
    }

    async fn provide_update(&self, request: &UpdateRequest) -> Option<Submission> {
        let number = self.asked.update.fetch_add(1, Ordering::SeqCst);
        match self.delays.get(number) {
            Some(Some(secs)) => pass(Duration::from_secs(*secs)).await,
            Some(None) => pending().await,
            None => {}
        }
        update(&self.identity, request)
    }
}

async fn member(world: &World, name: &str, delays: &[Option<u64>]) -> (Did, Arc<Asked>) {
    let (identity, asked) = (identity(name), Arc::<Asked>::default());
    let policy = Member { identity: identity.clone(), delays: delays.to_vec(), asked: Arc::clone(&asked) };
    world.participant(&identity, policy).await;
    (identity.did().clone(), asked)
}

#[test]
fn a_phase_is_extended_as_often_as_its_rule_allows() {
    on_paused_clock(async {
        let world = World::new();
        let mut service = world.service("service", Operator).await;
        let (late, _) = member(&world, "late", &[Some(150), None]).await;
        let open = || with_rule(cohort(1), TimedPhase::Updates, rule(60, 2, Answer::Fail));
        let in_time = service.open(open()).await;
        service.ear.completed(&in_time).await;
        assert_eq!(world.elapsed().as_secs(), 150);
        assert_eq!(service.ear.count("phase-extended"), 2);
        let never = service.open(open()).await;
        let failure = service.ear.failed(&never).await;
        assert_eq!(failure, CohortFailure::UpdatesMissing { holdouts: vec![late] });
        assert_eq!(world.elapsed().as_secs(), 150 + 3 * 60);
        assert_eq!(service.ear.count("phase-extended"), 4);
    });
}

/// Forms the n-th cohort that it sees with the n-th number of members, and all others at once.
struct Patient {
    sizes: Vec<usize>,
    seen: Mutex<BTreeMap<CohortId, usize>>,
}

impl Patient {
    fn new(sizes: &[usize]) -> Self {
        Self { sizes: sizes.to_vec(), seen: Mutex::default() }
    }
}

#[async_trait]
impl ServicePolicy for Patient {
    async fn finalize(&self, cohort: &CohortView) -> bool {
        let mut seen = self.seen.lock().unwrap();
        let number = seen.len();
        let number = *seen.entry(cohort.cohort_id.clone()).or_insert(number);
        self.sizes.get(number).is_none_or(|size| cohort.admitted >= *size)
    }

    async fn beacon_transaction(&self, request: &TransactionRequest) -> Result<FundedTransaction, PolicyError> {
        made_up_transaction(request)
    }
}

fn reforming(least: u32) -> OpenCohort {
    let mut open = cohort(least);
    open.conditions.max_participants = Some(10);
    open.rules = PhaseRules::default().reforming();
    open
}

/// The cohort's failure, and the cohort that replaces it.
async fn failure_of(service: &mut crate::common::Service, cohort: &CohortId) -> (CohortFailure, Option<CohortId>) {
    service
        .ear
        .wait_for(|notice| match notice {
            ServiceNotice::CohortFailed { cohort_id, failure, next, .. } if cohort_id == cohort => {
                Some((failure.clone(), next.clone()))
            }
            _ => None,
        })
        .await
}

#[test]
fn a_cohort_is_formed_again_without_its_holdout_and_the_others_rejoin_by_themselves() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Patient::new(&[4])).await;
        let mut others = Vec::new();
        for name in ["a", "b", "c"] {
            others.push(member(&world, name, &[]).await);
        }
        let (holdout, asked_holdout) = member(&world, "holdout", &[None]).await;
        let first = service.open(reforming(3)).await;
        let (failure, next) = failure_of(&mut service, &first).await;
        assert_eq!(failure, CohortFailure::UpdatesMissing { holdouts: vec![holdout.clone()] });
        let second = next.expect("a successor");
        let result = service.ear.completed(&second).await;
        assert_eq!(result.output.keys().len(), 3);
        let records = world.members.records(&second, 3).await;
        records.values().for_each(|record| world.assert_proves_slot(record, &result));
        assert!(!records.contains_key(&holdout));
        for (did, asked) in &others {
            assert_eq!(asked.counts(), (1, 1), "{did} is asked to join once and to rejoin once");
            let end = world.members.failed(did, &first).await;
            let SessionEnd::EndedByService { at_fault: false, next: Some(reported), .. } = end else {
                panic!("{end:?}")
            };
            assert_eq!(reported, second);
        }
        // It is notified that it was at fault, and of no successor; if it opts in to that as to any cohort, it is
        // refused.
        let end = world.members.failed(&holdout, &first).await;
        assert!(matches!(end, SessionEnd::EndedByService { at_fault: true, next: None, .. }), "{end:?}");
        assert_eq!(asked_holdout.rejoin.load(Ordering::SeqCst), 0);
        assert_eq!(asked_holdout.join.load(Ordering::SeqCst), 2);
        let refused = service.ear.rejections();
        assert!(refused.iter().all(|(did, _)| *did == holdout) && !refused.is_empty(), "{refused:?}");
        let reformed = service.ear.wait_for(|notice| match notice {
            ServiceNotice::CohortReformed { cohort_id, predecessor, invited, excluded } => {
                Some((cohort_id.clone(), predecessor.clone(), *invited, excluded.clone()))
            }
            _ => None,
        });
        assert_eq!(reformed.await, (second, Some(first), 3, vec![holdout]));
    });
}

#[test]
fn a_chain_of_reformations_ends_at_the_rules_limit() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Patient::new(&[5, 4, 3, 2])).await;
        // One more member holds out in each cohort.
        member(&world, "a", &[None]).await;
        member(&world, "b", &[Some(0), None]).await;
        member(&world, "c", &[Some(0), Some(0), None]).await;
        member(&world, "d", &[]).await;
        member(&world, "e", &[]).await;
        let mut open = reforming(1);
        open.rules.reformations = 2;
        let mut cohort_id = service.open(open).await;
        let mut chain = 0;
        loop {
            let (failure, next) = failure_of(&mut service, &cohort_id).await;
            assert!(matches!(failure, CohortFailure::UpdatesMissing { .. }), "{failure}");
            chain += 1;
            match next {
                Some(next) => cohort_id = next,
                None => break,
            }
        }
        assert_eq!(chain, 3, "the first, and two that replaced it");
        pass(Duration::from_secs(24 * 3600)).await;
        assert_eq!(service.ear.count("cohort-reformed"), 2);
        assert_eq!(world.members.count("signature-sent"), 0);
    });
}

/// A member, and a service that the test plays: the member was in `one`, which ended and named `two` as its successor.
async fn succeeded(change: bool, advert_first: bool) -> (usize, usize) {
    let world = World::new();
    let (did, asked) = member(&world, "member", &[]).await;
    let mut service = Peer::start(identity("service"), Arc::new(world.network.clone()));
    settle().await;
    service.broadcast(advert(&service.identity, "one"));
    assert!(matches!(&*service.receive().await.body, Body::CohortOptIn(_)));
    let body = advert(&service.identity, "two");
    let Body::CohortAdvert(mut second) = (*body).clone() else { panic!("{body:?}") };
    if change {
        second.recovery_sequence = Some(1440);
    }
    let ended = CohortEnded {
        cohort_id: CohortId::parse("one").unwrap(),
        code: "UPDATES_MISSING".to_owned(),
        reason: "a member did not answer".to_owned(),
        at_fault: false,
        next_cohort_id: Some(CohortId::parse("two").unwrap()),
        signed: None,
        opt_in: None,
    };
    if advert_first {
        service.broadcast(Body::from(second.clone()));
        settle().await;
    }
    service.send(&did, Body::from(ended));
    service.broadcast(Body::from(second));
    settle().await;
    asked.counts()
}

#[test]
fn a_member_is_asked_to_join_a_successor_whose_terms_are_others() {
    on_paused_clock(async {
        assert_eq!(succeeded(false, false).await, (1, 1), "the same terms: it rejoins");
        assert_eq!(succeeded(true, false).await, (2, 0), "other terms: as any cohort");
        assert_eq!(succeeded(false, true).await, (2, 0), "it was not known to be a successor when it joined");
    });
}

#[test]
fn a_declined_early_successor_is_considered_again() {
    struct OnlyAgain(Arc<Asked>);
    #[async_trait]
    impl ParticipantPolicy for OnlyAgain {
        async fn should_join(&self, advert: &Advert) -> bool {
            self.0.join.fetch_add(1, Ordering::SeqCst);
            advert.cohort_id.as_str() == "one"
        }

        async fn should_rejoin(&self, _: &Advert) -> bool {
            self.0.rejoin.fetch_add(1, Ordering::SeqCst);
            true
        }

        async fn provide_update(&self, _: &UpdateRequest) -> Option<Submission> {
            None
        }
    }
    on_paused_clock(async {
        let world = World::new();
        let asked = Arc::<Asked>::default();
        let member = identity("member");
        world.participant(&member, OnlyAgain(Arc::clone(&asked))).await;
        let mut service = Peer::start(identity("service"), Arc::new(world.network.clone()));
        settle().await;
        service.broadcast(advert(&service.identity, "one"));
        service.receive().await;
        service.broadcast(advert(&service.identity, "two"));
        settle().await;
        assert_eq!(asked.counts(), (2, 0));
        service.send(
            member.did(),
            Body::from(CohortEnded {
                cohort_id: CohortId::parse("one").unwrap(),
                code: "UPDATES_MISSING".to_owned(),
                reason: "a member did not answer".to_owned(),
                at_fault: false,
                next_cohort_id: Some(CohortId::parse("two").unwrap()),
                signed: None,
                opt_in: None,
            }),
        );
        service.broadcast(advert(&service.identity, "two"));
        let opt_in = service.receive().await;
        assert_eq!(opt_in.body.cohort_id().as_str(), "two");
        assert_eq!(asked.counts(), (2, 1));
    });
}

#[test]
fn members_are_asked_for_a_sign_of_life_and_those_without_are_found_before_signing() {
    on_paused_clock(async {
        for there in [true, false] {
            let mut world = World::new();
            let mut service = world.service("service", Operator).await;
            world.updaters(1).await;
            let last = identity("last");
            let lossy = Tap::losing(
                &world.network,
                if there { |_| true } else { |body| !matches!(body, Body::Presence(_)) },
            );
            world.participant_on(&last, Updater(last.clone()), lossy).await;
            let mut open = with_rule(cohort(2), TimedPhase::Presence, rule(30, 0, Answer::Fail));
            open.rules.presence_check = true;
            let cohort_id = service.open(open).await;
            if there {
                assert_eq!(service.ear.completed(&cohort_id).await.signed.path, SpendPath::KeyPath);
                assert_eq!(service.ear.count("presence-confirmed"), 2);
            } else {
                let failure = service.ear.failed(&cohort_id).await;
                assert_eq!(failure, CohortFailure::MembersAbsent { holdouts: vec![last.did().clone()] });
                assert_eq!(world.elapsed().as_secs(), 30);
                assert_eq!(service.ear.count("signing-started"), 0);
                assert_eq!(world.members.count("nonce-sent"), 0);
            }
        }
    });
}

#[test]
fn all_members_are_notified_of_the_end() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Operator).await;
        let members = world.updaters(2).await;
        let (waiting, _) = member(&world, "waiting", &[Some(0), None]).await;
        let good = service.open(cohort(3)).await;
        service.ear.completed(&good).await;
        let bad = service.open(cohort(3)).await;
        service.ear.event(&bad, "update-received").await;
        service.cancel(&bad, "enough").await;
        for did in members.iter().map(Identity::did).chain([&waiting]) {
            world.members.event(did, &good, "cohort-over").await;
            let end = world.members.failed(did, &bad).await;
            let SessionEnd::EndedByService { reason, at_fault: false, .. } = end else { panic!("{end:?}") };
            assert!(reason.contains("enough"), "{reason}");
        }
        assert_eq!(world.elapsed(), Duration::ZERO);
    });
}

#[test]
fn senders_to_unknown_cohorts_are_notified_at_a_limited_rate() {
    on_paused_clock(async {
        let world = World::new();
        let mut service = world.service("service", Operator).await;
        let mut lost = Peer::start(identity("lost"), Arc::new(world.network.clone()));
        settle().await;
        for _ in 0..3 {
            lost.send(service.did(), note("forgotten"));
        }
        let reported = lost.receive().await;
        let Body::CohortEnded(ended) = &*reported.body else { panic!("{reported:?}") };
        assert_eq!((ended.code.as_str(), ended.cohort_id.as_str()), (CohortEnded::UNKNOWN, "forgotten"));
        settle().await;
        assert!(lost.rest().is_empty());
        assert_eq!(service.ear.rejections(), vec![(lost.did().clone(), RejectCode::WrongCohort); 3]);
        for number in 0..200 {
            lost.send(service.did(), note(format!("made up {number}").replace(' ', "-")));
        }
        settle().await;
        pass(Duration::from_secs(1)).await;
        let answers = lost.rest().into_iter().filter(|delivery| matches!(delivery, Delivery::Message(_))).count();
        assert_eq!(answers, 63, "no more than 64 in a minute");
    });
}
