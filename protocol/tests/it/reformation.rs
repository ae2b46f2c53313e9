//! A cohort that fails because of some of its members is formed again without them.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use crate::sim_support::{assert_refused, bodies, honest, outsider, setup};
use btcr2_aggregation_protocol::{
    beacon::BeaconRegistry,
    cohort::{
        event::{CohortFailure, SessionEnd},
        service::{
            CohortTerms, Lineage, ServiceCohort, ServiceConfig, ServiceEffect, ServiceInput, phase::Phase,
            rules::PhaseRules,
        },
    },
    error::{RejectCode, Slot},
    identity::Identity,
    machine::{Machine, Step, replay, step},
    message::{Body, Bytes, Message, keygen::CohortOptIn, sign::SignatureAuthorization, update::SubmitNonIncluded},
    output::DirectAggregator,
    sim::{Role, START, Setup, Simulation, Verdict},
    time::Timestamp,
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

fn reforming(roles: Vec<Role>) -> Setup {
    let mut setup = setup(roles);
    setup.rules = PhaseRules::default().reforming();
    setup
}

fn silent_from(slot: Slot) -> Role {
    Role::default().silent_from(slot)
}

fn lineage(simulation: &Simulation) -> &Lineage {
    &simulation.service().machine().config().terms.lineage
}

#[test]
fn members_at_fault_are_excluded_and_the_others_complete() {
    let rejecter = Role { verdict: Verdict::Reject, ..Role::default() };
    for (case, role) in [
        ("no update", silent_from(Slot::Update)),
        ("no verdict", silent_from(Slot::Validation)),
        ("a rejection", rejecter),
    ] {
        let mut roles = honest(3);
        roles.push(role);
        let mut simulation = Simulation::new(1, reforming(roles));
        simulation.run();
        simulation.assert_invariants();
        let report = simulation.report();
        assert_eq!(report.signed.unwrap().signers.len(), 3, "{case}");
        let adversary = simulation.did(3);
        assert_eq!(lineage(&simulation).excluded, [adversary.clone()].into(), "{case}");
        let others = (0..3).map(|index| simulation.did(index)).collect();
        assert_eq!(lineage(&simulation).invited, others, "{case}");
        let [first, second] = simulation.service().cohorts() else { panic!("{case}: two cohorts") };
        let (first, second) = (&first.machine().config().terms, &second.machine().config().terms);
        assert_eq!(second.lineage.predecessor.as_ref(), Some(&first.cohort_id), "{case}");
        assert_eq!(second.conditions, first.conditions, "{case}: the conditions are the same");
        for (node, at_fault) in simulation.participants().iter().zip([false, false, false, true]) {
            let reported = node.seats()[0].events().last().map(|event| format!("{event:?}")).unwrap();
            if case == "a rejection" && at_fault {
                continue;
            }
            assert!(reported.contains(&format!("at_fault: {at_fault}")), "{case}: {reported}");
            assert_eq!(reported.contains(second.cohort_id.as_str()), !at_fault, "{case}: {reported}");
        }
    }
}

#[test]
fn members_with_recorded_faults_are_excluded_too() {
    // Member 3 submits and declines, and then signs wrongly; members 4 and 5 are silent at the fallback.
    let mut roles = honest(6);
    roles[3] = Role::default();
    roles[4] = Role::default().without(Slot::FallbackSignature);
    roles[5] = Role::default().without(Slot::FallbackSignature);
    let mut simulation = Simulation::new(1, reforming(roles));
    let culprit = simulation.did(3);
    simulation.tamper(&culprit, |message| {
        let texts = |body: Body| Message::new(message.from.clone(), message.to.clone(), body).to_json();
        match &*message.body {
            Body::SubmitUpdate(body) => {
                let declined = SubmitNonIncluded { cohort_id: body.cohort_id.clone() };
                vec![message.to_json(), texts(declined.into())]
            }
            Body::SignatureAuthorization(body) => {
                let wrong = SignatureAuthorization { partial_signature: Bytes([0x5a; 32]), ..body.clone() };
                vec![texts(wrong.into())]
            }
            _ => vec![message.to_json()],
        }
    });
    simulation.run();
    simulation.assert_invariants();
    let first = simulation.service().cohorts()[0].machine().phase();
    let Phase::Failed { reason: CohortFailure::Signing { culprits, .. }, .. } = first else { panic!("{first:?}") };
    assert_eq!(*culprits, vec![culprit]);
    assert_eq!(lineage(&simulation).excluded, (3..6).map(|index| simulation.did(index)).collect());
    assert_eq!(simulation.report().signed.unwrap().signers.len(), 3);
}

#[test]
fn too_few_remaining_members_wait_for_new_ones() {
    for (min, complete) in [(3, true), (4, false)] {
        let mut roles = honest(3);
        roles.push(silent_from(Slot::Update));
        let mut setup = reforming(roles);
        setup.conditions.min_participants = min;
        let mut simulation = Simulation::new(1, setup);
        simulation.run();
        simulation.assert_invariants();
        assert_eq!(simulation.report().signed.is_some(), complete, "at least {min}");
        assert_eq!(simulation.service().cohorts().len(), 2);
        let last = simulation.service().cohorts().last().unwrap().machine().phase();
        let expired =
            matches!(last, Phase::Failed { reason: CohortFailure::EnrollmentExpired { admitted: 3 }, .. });
        assert_eq!(expired, !complete, "{last:?}");
        let names_a_next_cohort =
            |end: &Option<SessionEnd>| matches!(end, Some(SessionEnd::EndedByService { next: Some(_), .. }));
        assert!(!simulation.report().ends.iter().any(names_a_next_cohort), "there is no next cohort in the end");
    }
}

#[test]
fn a_new_member_takes_the_place_of_the_culprit() {
    // The cohort forms at its minimum, and one of its members is silent. The fourth participant, for which there was
    // no place, is admitted to the next cohort.
    let mut roles = vec![silent_from(Slot::Update)];
    roles.extend(honest(3));
    let mut setup = reforming(roles);
    setup.conditions.min_participants = 3;
    setup.conditions.max_participants = Some(3);
    let mut simulation = Simulation::new(1, setup);
    simulation.run();
    simulation.assert_invariants();
    assert_eq!(simulation.service().cohorts().len(), 2);
    assert_eq!(lineage(&simulation).invited.len(), 2);
    assert_eq!(simulation.report().signed.unwrap().signers.len(), 3);
}

#[test]
fn the_minimum_completes_without_a_member_that_rejects() {
    let mut roles = vec![Role { verdict: Verdict::Reject, ..Role::default() }];
    roles.extend(honest(3));
    let mut setup = reforming(roles);
    setup.conditions.min_participants = 3;
    setup.conditions.max_participants = Some(3);
    let mut simulation = Simulation::new(1, setup);
    simulation.run();
    simulation.assert_invariants();
    assert_eq!(lineage(&simulation).excluded, [simulation.did(0)].into());
    assert_eq!(simulation.report().signed.unwrap().signers.len(), 3);
}

#[test]
fn a_chain_of_failing_cohorts_ends() {
    for reformations in 0..3 {
        // Each cohort fails because of another member, later than the previous one.
        let mut roles = honest(2);
        roles.extend([silent_from(Slot::Update), silent_from(Slot::Validation)]);
        roles.push(Role { verdict: Verdict::Reject, ..Role::default() });
        let mut setup = reforming(roles);
        setup.rules.reformations = reformations;
        let mut simulation = Simulation::new(1, setup);
        simulation.run();
        simulation.assert_invariants();
        assert!(simulation.has_ended());
        assert_eq!(simulation.service().cohorts().len(), reformations as usize + 1);
        assert_eq!(lineage(&simulation).excluded.len(), reformations as usize);
    }
}

#[test]
fn excluded_members_stay_out_and_invited_ones_are_awaited() {
    let mut roles = honest(3);
    roles.push(silent_from(Slot::Update));
    let mut simulation = Simulation::new(1, reforming(roles));
    let slow = simulation.did(0);
    let held: Rc<RefCell<Option<Message>>> = Rc::default();
    let (keep, opt_ins) = (Rc::clone(&held), Rc::new(RefCell::new(0)));
    simulation.tamper(&slow, move |message| {
        if matches!(&*message.body, Body::CohortOptIn(_)) {
            *opt_ins.borrow_mut() += 1;
            if *opt_ins.borrow() == 2 {
                *keep.borrow_mut() = Some(message.clone());
                return Vec::new();
            }
        }
        vec![message.to_json()]
    });
    assert!(simulation.run_until(|_| held.borrow().is_some()));
    simulation.advance(crate::sim_support::TIMEOUT / 2);
    let Phase::Enrolling(enrolling) = simulation.service().machine().phase() else {
        panic!("it does not wait for all invited members: {:?}", simulation.service().machine())
    };
    assert_eq!(enrolling.admitted(), 2);

    let identity = simulation.participants()[3].identity();
    let opt_in = bodies::opt_in(&simulation, identity);
    let excluded = Message::new(simulation.did(3), None, opt_in);
    assert_refused(&mut simulation, "an excluded member", &excluded, RejectCode::Excluded);

    let last = held.take().unwrap();
    simulation.deliver_to_service(&last).unwrap();
    assert!(!matches!(simulation.service().machine().phase(), Phase::Enrolling(_)), "the cohort is complete");
    simulation.run();
    simulation.assert_invariants();
    assert_eq!(simulation.report().signed.unwrap().signers.len(), 3);
}

/// A service's machine on its own, for a cohort that is formed again for `invited`.
struct Alone {
    initial: ServiceCohort,
    machine: ServiceCohort,
    journal: Vec<btcr2_aggregation_protocol::cohort::event::ServiceEvent>,
    rng: ChaCha8Rng,
    now: Timestamp,
}

impl Alone {
    fn new(invited: &[&Identity], most: u32) -> Self {
        Self::with(invited, most, PhaseRules::default())
    }

    fn with(invited: &[&Identity], most: u32, rules: PhaseRules) -> Self {
        let service = outsider(90);
        let mut conditions = Setup::new(Vec::new()).conditions;
        conditions.max_participants = Some(most);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let terms = CohortTerms {
            service: service.did().clone(),
            service_key: service.public_key(),
            cohort_id: btcr2_aggregation_protocol::id::CohortId::generate(&mut rng),
            network: service.did().network(),
            conditions,
            timing: crate::sim_support::timing(),
            limits: Default::default(),
            rules,
            lineage: Lineage {
                generation: 1,
                invited: invited.iter().map(|identity| identity.did().clone()).collect(),
                ..Lineage::default()
            },
        };
        let (beacons, aggregator) = (BeaconRegistry::default(), Arc::new(DirectAggregator));
        let machine = ServiceCohort::new(Arc::new(ServiceConfig { terms: Arc::new(terms), beacons, aggregator }));
        let machine = machine.unwrap();
        let mut alone = Self { initial: machine.clone(), machine, journal: Vec::new(), rng, now: START };
        alone.feed(&ServiceInput::Advertise).unwrap();
        alone
    }

    fn feed(
        &mut self,
        input: &ServiceInput,
    ) -> Result<Step<ServiceCohort>, btcr2_aggregation_protocol::error::Reject> {
        let step = step(&mut self.machine, self.now, input, &mut self.rng)?;
        self.journal.extend(step.events.iter().cloned());
        assert_eq!(replay(self.initial.clone(), &self.journal), self.machine);
        Ok(step)
    }

    fn opt_in(&mut self, identity: &Identity) -> Result<(), RejectCode> {
        let body = CohortOptIn {
            cohort_id: self.machine.config().terms.cohort_id.clone(),
            participant_pk: Bytes(identity.public_key().to_bytes()),
            communication_pk: Bytes(identity.public_key().to_bytes()),
            genesis_document: None,
            invite: None,
        };
        let message = Message::new(identity.did().clone(), None, body);
        self.feed(&ServiceInput::Message(message)).map(drop).map_err(|reject| reject.code)
    }

    /// Whether the operator is asked to form the cohort.
    fn decide(&mut self, identity: &Identity, admission: Result<(), String>) -> bool {
        let did = identity.did().clone();
        let step = self.feed(&ServiceInput::AdmissionDecided { did, admission }).unwrap();
        step.effects.iter().any(|effect| matches!(effect, ServiceEffect::AskFinalization { .. }))
    }
}

#[test]
fn a_refused_invited_member_is_not_awaited() {
    let (one, two) = (outsider(1), outsider(2));
    let mut alone = Alone::new(&[&one, &two], 5);
    alone.opt_in(&one).unwrap();
    assert!(!alone.decide(&one, Ok(())), "the other member has not opted in yet");
    alone.opt_in(&two).unwrap();
    assert!(alone.decide(&two, Err("not any more".to_owned())), "no other member is awaited");
}

#[test]
fn a_cohort_with_its_minimum_settles_before_it_forms() {
    let settle = Duration::from_secs(30);
    let (one, two, three) = (outsider(1), outsider(2), outsider(3));
    let is_enrolling = |alone: &Alone| matches!(alone.machine.phase(), Phase::Enrolling(_));
    let admit = |alone: &mut Alone, identity: &Identity| {
        alone.opt_in(identity).unwrap();
        assert!(!alone.decide(identity, Ok(())), "the host is not asked");
    };
    let start = || Alone::with(&[], 3, PhaseRules::default().settling(settle));

    // The settling time starts with the first member, which is enough here. A later member does not postpone its end.
    let mut alone = start();
    admit(&mut alone, &one);
    alone.now = START + Duration::from_secs(20);
    admit(&mut alone, &two);
    assert_eq!(alone.machine.deadline(), Some(START + settle));
    alone.now = START + settle;
    alone.feed(&ServiceInput::Tick).unwrap();
    assert!(!is_enrolling(&alone));
    assert_eq!(alone.machine.phase().formed().unwrap().members.len(), 2);

    // A full cohort forms at once.
    let mut alone = start();
    admit(&mut alone, &one);
    admit(&mut alone, &two);
    assert!(is_enrolling(&alone));
    alone.opt_in(&three).unwrap();
    alone.decide(&three, Ok(()));
    assert!(!is_enrolling(&alone));

    // An invited member that does not opt in delays the others no longer than the settling time.
    let mut alone = Alone::with(&[&one, &two], 3, PhaseRules::default().settling(settle));
    admit(&mut alone, &one);
    alone.now = START + settle;
    alone.feed(&ServiceInput::Tick).unwrap();
    assert!(!is_enrolling(&alone));
}

#[test]
fn the_place_of_an_invited_member_is_reserved() {
    let (one, two, new) = (outsider(1), outsider(2), outsider(3));
    let mut alone = Alone::new(&[&one, &two], 3);
    alone.opt_in(&new).unwrap();
    assert_eq!(alone.opt_in(&outsider(4)), Err(RejectCode::CohortFull), "two places are reserved");
    alone.opt_in(&one).unwrap();
    alone.opt_in(&two).unwrap();
}
