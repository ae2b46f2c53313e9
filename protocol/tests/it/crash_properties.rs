//! The machines when their processes crash at any moment and restart from their journals, while the network loses,
//! repeats and reorders messages, and members are silent or send wrong messages.
//!
//! `SIM_SEEDS` sets the number of seeds for each property. The injected failures are counted and printed:
//! `cargo test -p btcr2-aggregation-protocol --test it crash_properties -- --nocapture`.

use std::{cell::RefCell, collections::BTreeSet, time::Duration};

use crate::sim_support::{
    TIMEOUT, assert_consensus,
    dice::{Dice, for_each_seed, seeds},
};
use btcr2_aggregation_protocol::{
    cohort::{
        event::{SessionEnd, SpendPath},
        service::{
            phase::Phase,
            rules::{Answer, PhaseRule, PhaseRules, TimedPhase},
        },
    },
    did::Did,
    error::Slot,
    message::{
        Body, Bytes, Message,
        sign::{NonceContribution, SignatureAuthorization},
        update::SubmitNonIncluded,
    },
    sim::{Crashes, Faults, Mishaps, Role, SLOTS, START, Seat, Simulation, Verdict},
};

/// A network that loses, repeats, delays and reorders, whose transports send again until a message is acknowledged;
/// and processes that sometimes crash. All delays are short compared to the duration of a phase.
fn mishaps(dice: &mut Dice) -> (Faults, Crashes) {
    let shortly = TIMEOUT / 20;
    let faults = Faults {
        drop_per_mille: dice.below(200) as u32,
        retry: Some(Duration::from_millis(1 + dice.below(5_000))),
        repeat_per_mille: dice.below(300) as u32,
        min_delay: Duration::from_millis(1),
        max_delay: Duration::from_millis(1 + dice.below(shortly.as_millis() as u64)),
    };
    let crashes = Crashes {
        service_per_mille: dice.below(150) as u32,
        participant_per_mille: dice.below(100) as u32,
        most: 3,
        longest: shortly,
        planned: Vec::new(),
    };
    (faults, crashes)
}

fn random_rules(dice: &mut Dice) -> PhaseRules {
    let mut rules = PhaseRules::default().reforming();
    rules.presence_check = dice.below(2) == 0;
    for phase in TimedPhase::ALL {
        let answers = [Answer::Proceed, Answer::FallBack, Answer::Reform];
        let then = match phase {
            TimedPhase::Presence => answers[dice.below(3) as usize],
            _ => rules.rule(phase).then,
        };
        let extensions = u32::from(dice.below(4) == 0);
        rules.set(phase, PhaseRule { extensions, then, ..rules.rule(phase) }).unwrap();
    }
    rules
}

/// A participant that does not follow the protocol, and what it sends instead of its messages.
fn adversary(dice: &mut Dice, simulated: &Role) -> (Role, fn(&Message) -> Vec<String>) {
    let role = simulated.clone();
    let slot = SLOTS[dice.below(6) as usize];
    match dice.below(7) {
        0 => (role.silent_from(slot), honest_texts),
        1 => (role.without(slot), honest_texts),
        2 => (Role { verdict: Verdict::Reject, ..role }, honest_texts),
        3 => (Role { signs: false, ..role }, honest_texts),
        4 => (role.without(Slot::FallbackSignature), wrong_partial_signature),
        5 => (role.silent_from(Slot::Validation), update_and_decline),
        _ => (role.without(Slot::FallbackSignature), two_nonces),
    }
}

fn honest_texts(message: &Message) -> Vec<String> {
    vec![message.to_json()]
}

fn with_another(message: &Message, another: Body) -> Vec<String> {
    vec![message.to_json(), Message::new(message.from.clone(), message.to.clone(), another).to_json()]
}

fn wrong_partial_signature(message: &Message) -> Vec<String> {
    match &*message.body {
        Body::SignatureAuthorization(body) => {
            let wrong = SignatureAuthorization { partial_signature: Bytes([0x5a; 32]), ..body.clone() };
            vec![Message::new(message.from.clone(), message.to.clone(), wrong).to_json()]
        }
        _ => honest_texts(message),
    }
}

fn update_and_decline(message: &Message) -> Vec<String> {
    match &*message.body {
        Body::SubmitUpdate(body) => {
            with_another(message, SubmitNonIncluded { cohort_id: body.cohort_id.clone() }.into())
        }
        _ => honest_texts(message),
    }
}

fn two_nonces(message: &Message) -> Vec<String> {
    match &*message.body {
        Body::NonceContribution(body) => {
            let (first, second) = body.nonce_contribution.0.split_at(33);
            let swapped = Bytes([second, first].concat().try_into().unwrap());
            with_another(message, NonceContribution { nonce_contribution: swapped, ..body.clone() }.into())
        }
        _ => honest_texts(message),
    }
}

/// Asserts that every member, invited or admitted, is notified of the end of its cohort, and that the members of a
/// completed cohort have its record.
fn assert_notified(simulation: &Simulation, honest: &BTreeSet<Did>) {
    for cohort in simulation.service().cohorts() {
        let id = &cohort.machine().config().terms.cohort_id;
        for node in simulation.participants().iter().filter(|node| honest.contains(node.identity().did())) {
            let who = node.identity().did();
            let end = node.seat(id).map(Seat::machine).map(|machine| match machine.phase() {
                btcr2_aggregation_protocol::cohort::participant::phase::Phase::Ended { reason, .. } => {
                    (reason.clone(), machine.record().is_some())
                }
                phase => panic!("{who} still waits: {phase:?}"),
            });
            match cohort.machine().phase() {
                Phase::Completed { formed, .. } if formed.members.contains_key(who) => {
                    let (reason, has_record) = end.unwrap();
                    assert!(reason.says_completed(), "{who}: {reason:?}");
                    assert!(has_record, "{who} holds no record: {reason:?}");
                }
                Phase::Failed { waiting, reason, successor, .. } if waiting.contains(who) => {
                    let next = successor.as_ref().map(|terms| terms.cohort_id.clone());
                    let reported = match end.unwrap().0 {
                        SessionEnd::EndedByService { code, at_fault, next, .. } => (code, at_fault, next),
                        other => panic!("{who}: {other:?}"),
                    };
                    assert_eq!(reported, (reason.code().to_owned(), false, next), "{who}");
                }
                _ => {}
            }
        }
    }
}

/// Prints the failures of all runs, and asserts that there were some.
fn summary(property: &str, runs: usize, key_paths: u64, total: Mishaps) {
    println!("{property}: {runs} runs, {key_paths} completed by key path, {total:?}");
    if runs >= 50 {
        assert!(total.service_crashes > 0 && total.participant_crashes > 0, "no process crashed: {total:?}");
        assert!(total.texts_lost > 0 && total.nonces_lost > 0 && total.fallbacks > 0, "{total:?}");
        assert!(key_paths > 0, "{total:?}");
    }
}

#[test]
fn honest_cohorts_complete_despite_crashes() {
    let total = RefCell::new((Mishaps::default(), 0));
    for_each_seed(100, |seed| {
        let mut dice = Dice::new(seed);
        let mut setup = dice.setup(Dice::honest);
        (setup.faults, setup.crashes) = mishaps(&mut dice);
        setup.rules.presence_check = dice.below(2) == 0;
        setup.defer_transaction = dice.below(3) as u32;
        let mut simulation = Simulation::new(seed, setup);
        simulation.run();
        simulation.assert_invariants();
        assert_consensus(&simulation);
        let report = simulation.report();
        let signed = report.signed.as_ref().unwrap_or_else(|| panic!("{} {:?}", report.phase, report.failure));
        assert!(simulation.has_ended(), "{:?}", report.ends);
        assert!(report.accused().is_empty(), "{:?} {:?}", report.rejections, report.faults);
        assert_eq!(simulation.service().cohorts().len(), 1, "no member is at fault");
        let lost_a_nonce = report.mishaps.nonces_lost > 0 || report.mishaps.participant_crashes > 0;
        assert!(signed.path == SpendPath::KeyPath || lost_a_nonce, "the fallback was taken without need");
        let participants = simulation.participants().iter().map(|node| node.identity().did().clone()).collect();
        assert_notified(&simulation, &participants);
        let mut total = total.borrow_mut();
        total.0 += report.mishaps;
        total.1 += u64::from(signed.path == SpendPath::KeyPath);
    });
    let (mishaps, key_paths) = total.into_inner();
    summary("honest cohorts", seeds(100).count(), key_paths, mishaps);
}

#[test]
fn honest_members_complete_without_the_faulty_ones() {
    let total = RefCell::new((Mishaps::default(), 0));
    for_each_seed(100, |seed| {
        let mut dice = Dice::new(seed);
        let mut setup = dice.setup(Dice::honest);
        let honest = 1 + setup.roles.len() / 2;
        // Each failed cohort is formed again without at least one of them.
        let adversaries = 1 + dice.below(PhaseRules::default().reformations.into()) as usize;
        setup.roles.truncate(honest);
        let mut tampers = Vec::new();
        for _ in 0..adversaries {
            let role = dice.honest();
            let (role, tamper) = adversary(&mut dice, &role);
            setup.roles.push(role);
            tampers.push(tamper);
        }
        (setup.faults, setup.crashes) = mishaps(&mut dice);
        setup.rules = random_rules(&mut dice);
        setup.finalize_at = if dice.below(2) == 0 { None } else { Some(setup.roles.len()) };
        let mut simulation = Simulation::new(seed, setup);
        for (index, tamper) in tampers.into_iter().enumerate() {
            let did = simulation.did(honest + index);
            simulation.tamper(&did, tamper);
        }
        simulation.run();
        simulation.assert_invariants();
        assert_consensus(&simulation);
        let report = simulation.report();
        let signed = report.signed.as_ref().unwrap_or_else(|| panic!("{} {:?}", report.phase, report.failure));
        let honest: BTreeSet<Did> = (0..honest).map(|index| simulation.did(index)).collect();
        let accused = report.accused();
        assert!(honest.is_disjoint(&accused), "{accused:?} {:?} {:?}", report.rejections, report.faults);
        for cohort in simulation.service().cohorts() {
            let excluded = &cohort.machine().config().terms.lineage.excluded;
            assert!(honest.is_disjoint(excluded), "an honest member is excluded: {excluded:?}");
        }
        assert_notified(&simulation, &honest);
        let mut total = total.borrow_mut();
        total.0 += report.mishaps;
        total.1 += u64::from(signed.path == SpendPath::KeyPath);
    });
    let (mishaps, key_paths) = total.into_inner();
    let runs = seeds(100).count();
    summary("cohorts with adversaries", runs, key_paths, mishaps);
    assert!(runs < 50 || (mishaps.reformations > 0 && mishaps.extensions > 0), "{mishaps:?}");
}

#[test]
fn lost_messages_cause_neither_hangs_nor_double_signing() {
    let total = RefCell::new((Mishaps::default(), 0));
    for_each_seed(100, |seed| {
        let mut dice = Dice::new(seed);
        let mut setup = dice.setup(Dice::any_role);
        setup.finalize_at = if dice.below(2) == 0 { None } else { Some(1 + dice.below(8) as usize) };
        setup.defer_transaction = dice.below(3) as u32;
        setup.faults = Faults { drop_per_mille: dice.below(60) as u32, ..dice.reordering() };
        (_, setup.crashes) = mishaps(&mut dice);
        setup.crashes.longest = TIMEOUT * 2;
        setup.rules = random_rules(&mut dice);
        let chain = setup.rules.reformations + 1;
        let limit = START + (setup.timing.cohort_ttl + TIMEOUT * 24) * chain;
        let mut simulation = Simulation::new(seed, setup);
        simulation.run_until(|simulation| simulation.now() > limit);
        simulation.assert_invariants();
        assert_consensus(&simulation);
        assert!(simulation.now() <= limit, "something still happens at {:?}", simulation.now());
        assert!(simulation.has_ended(), "{:?}", simulation.report());
        let report = simulation.report();
        assert!(report.accused().is_empty(), "every member is honest: {:?} {:?}", report.rejections, report.faults);
        let mut total = total.borrow_mut();
        total.0 += report.mishaps;
        total.1 += u64::from(report.signed.is_some_and(|signed| signed.path == SpendPath::KeyPath));
    });
    let (mishaps, key_paths) = total.into_inner();
    summary("anything goes", seeds(100).count(), key_paths, mishaps);
}

#[test]
fn a_seed_reproduces_a_run_with_crashes() {
    let run = |seed| {
        let mut dice = Dice::new(seed);
        let mut setup = dice.setup(Dice::any_role);
        (setup.faults, setup.crashes) = mishaps(&mut dice);
        setup.rules = random_rules(&mut dice);
        let mut simulation = Simulation::new(seed, setup);
        simulation.run();
        (simulation.trace().to_vec(), simulation.report().mishaps)
    };
    for seed in 0..5 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
