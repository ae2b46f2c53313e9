//! The machines under a network that drops, repeats, reorders and delays, with members of every behaviour.
//!
//! `SIM_SEEDS` sets the number of seeds for each property.

use std::cell::RefCell;

use crate::sim_support::{
    TIMEOUT, assert_consensus,
    dice::{Dice, for_each_seed, seeds},
    outsider,
};
use btcr2_aggregation_protocol::{
    cohort::{
        event::{ParticipantEvent, SpendPath},
        participant::membership::MembershipEvent,
        service::rules::PhaseRules,
    },
    error::Slot,
    id::CohortId,
    message::{Body, Message, control::CohortEnded, keygen::CohortOptInAccept},
    sim::{Crashes, Faults, START, Simulation},
};

#[test]
fn a_seed_reproduces_a_run_byte_for_byte() {
    let run = |seed| {
        let mut dice = Dice::new(seed);
        let mut setup = dice.setup(Dice::any_role);
        setup.faults = Faults { drop_per_mille: 50, ..dice.reordering() };
        let mut simulation = Simulation::new(seed, setup);
        simulation.run();
        simulation.trace().to_vec()
    };
    for seed in 0..5 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(1), run(2), "another seed is another run");
}

#[test]
fn honest_cohorts_complete_despite_reordering_and_repeats() {
    for_each_seed(80, |seed| {
        let mut dice = Dice::new(seed);
        let mut setup = dice.setup(Dice::honest);
        setup.faults = dice.reordering();
        let mut simulation = Simulation::new(seed, setup);
        simulation.run();
        simulation.assert_invariants();
        assert_consensus(&simulation);
        let report = simulation.report();
        let signed = report.signed.as_ref().unwrap_or_else(|| panic!("{} {:?}", report.phase, report.failure));
        assert_eq!(signed.path, SpendPath::KeyPath);
        assert!(report.accused().is_empty(), "{:?} {:?}", report.rejections, report.faults);
        assert!(simulation.has_ended());
        for node in simulation.participants() {
            assert!(node.machine().unwrap().record().is_some(), "{} has no record", node.identity().did());
        }
    });
}

#[test]
fn k_responsive_members_complete_by_fallback() {
    for_each_seed(80, |seed| {
        let mut dice = Dice::new(seed);
        let mut setup = dice.setup(Dice::honest);
        let n = setup.roles.len();
        // The default threshold is n - 1: one member may be missing, unless it is the only one.
        let adversary = dice.below(n as u64) as usize;
        let slot = if dice.below(2) == 0 { Slot::Nonce } else { Slot::PartialSignature };
        let role = setup.roles[adversary].clone();
        setup.roles[adversary] =
            if n == 1 || dice.below(2) == 0 { role.without(slot) } else { role.silent_from(slot) };
        setup.faults = dice.reordering();
        let mut simulation = Simulation::new(seed, setup);
        simulation.run();
        simulation.assert_invariants();
        assert_consensus(&simulation);
        let report = simulation.report();
        let signed = report.signed.as_ref().unwrap_or_else(|| panic!("{} {:?}", report.phase, report.failure));
        assert_eq!(signed.path, SpendPath::ScriptPath);
        assert_eq!(signed.holdouts, [simulation.did(adversary)], "only the silent member is named");
        assert!(report.accused().is_empty(), "{:?} {:?}", report.rejections, report.faults);
        assert!(simulation.has_ended());
    });
}

#[test]
fn nothing_hangs_despite_faulty_members_and_lost_messages() {
    for_each_seed(120, |seed| {
        let mut dice = Dice::new(seed);
        let mut setup = dice.setup(Dice::any_role);
        setup.finalize_at = if dice.below(2) == 0 { None } else { Some(1 + dice.below(8) as usize) };
        setup.defer_transaction = dice.below(3) as u32;
        setup.faults = dice.reordering();
        setup.faults.drop_per_mille = dice.below(100) as u32;
        if dice.below(4) == 0 {
            setup.refuses.insert(dice.below(4) as usize);
        }
        let limit = START + setup.timing.cohort_ttl + TIMEOUT * 8;
        let mut simulation = Simulation::new(seed, setup);
        simulation.run_until(|simulation| simulation.now() > limit);
        simulation.assert_invariants();
        assert_consensus(&simulation);
        assert!(simulation.now() <= limit, "something still happens at {:?}", simulation.now());
        assert!(simulation.has_ended(), "{:?}", simulation.report());
        let honest: Vec<_> = simulation.participants().iter().map(|node| node.identity().did().clone()).collect();
        let accused = simulation.report().accused();
        assert!(
            honest.iter().all(|did| !accused.contains(did)),
            "every member is honest, but {accused:?} are accused: {:?}",
            simulation.report()
        );
    });
}

/// What an unauthenticated peer sends: an advert of its own, in a service's name, or about another's cohort.
fn unasked(dice: &mut Dice, simulation: &Simulation) -> Message {
    let peer = outsider(200 + dice.below(3) as u8);
    let ours = &simulation.service().machine().config().terms;
    let number = dice.below(4);
    let bait = || CohortId::parse(&format!("bait-{number}")).unwrap();
    let named = |dice: &mut Dice| if dice.below(2) == 0 { ours.cohort_id.clone() } else { bait() };
    match dice.below(4) {
        0 | 1 => {
            let body = ours.conditions.to_advert(bait(), ours.network, &peer.public_key());
            Message::new(peer.did().clone(), None, body)
        }
        2 => {
            let ended = CohortEnded {
                cohort_id: named(dice),
                code: "CANCELLED".to_owned(),
                reason: "a trick".to_owned(),
                at_fault: dice.below(2) == 0,
                next_cohort_id: Some(bait()),
                signed: None,
                opt_in: None,
            };
            Message::new(peer.did().clone(), Some(simulation.did(0)), Body::from(ended))
        }
        _ => {
            let accept = CohortOptInAccept { cohort_id: named(dice) };
            Message::new(peer.did().clone(), Some(simulation.did(0)), accept)
        }
    }
}

/// Members in several cohorts: of their service, which forms its cohort again without members that fail, and of
/// outsiders, whose cohorts come to nothing.
#[test]
fn memberships_survive_crashes_losses_and_outsiders() {
    let total = RefCell::new([0_usize; 5]);
    for_each_seed(60, |seed| {
        let mut dice = Dice::new(seed);
        let mut setup = dice.setup(Dice::any_role);
        setup.rules = PhaseRules::default().reforming();
        setup.max_sessions = 1 + dice.below(6) as usize;
        setup.faults = Faults { drop_per_mille: dice.below(60) as u32, ..dice.reordering() };
        // The service may be down for longer than its members wait for a successor.
        let longest = TIMEOUT * 2;
        setup.crashes =
            Crashes { participant_per_mille: 100, service_per_mille: 60, longest, ..Crashes::default() };
        for role in &mut setup.roles {
            role.considers = dice.below(8) > 0;
        }
        let members = setup.roles.len() as u64;
        let limit = START + (setup.timing.cohort_ttl + TIMEOUT * 24) * (setup.rules.reformations + 2);
        let mut simulation = Simulation::new(seed, setup);
        let mut unasked_messages = 40 * dice.below(2);
        loop {
            if unasked_messages > 0 && dice.below(3) == 0 {
                unasked_messages -= 1;
                let to = dice.below(members) as usize;
                let message = unasked(&mut dice, &simulation);
                if !simulation.participants()[to].is_down() {
                    let recipient = simulation.did(to);
                    // A rejection is recorded, and names the peer.
                    let _ = simulation.deliver(&message.from, &recipient, &message.to_json());
                }
            }
            simulation.assert_memberships();
            if simulation.now() > limit || !simulation.step() {
                break;
            }
        }
        simulation.assert_invariants();
        assert!(simulation.now() <= limit, "something still happens at {:?}", simulation.now());
        assert!(simulation.has_ended(), "{:?}", simulation.report().ends);
        let mut total = total.borrow_mut();
        for node in simulation.participants() {
            assert_eq!(node.membership().facts().joined().count(), 0, "every cohort is over");
            assert_eq!(node.membership().facts().awaited().count(), 0);
            let joined = |event: &&ParticipantEvent| matches!(event, ParticipantEvent::OptedIn { .. });
            let joined: usize = node.seats().iter().map(|seat| seat.events().iter().filter(joined).count()).sum();
            total[0] += joined;
            total[1] += usize::from(joined > 1);
            total[2] += node.crashes() as usize;
            let missed = |event: &&MembershipEvent| matches!(event, MembershipEvent::SuccessorMissed { .. });
            total[3] += node.membership_events().iter().filter(missed).count();
            total[4] += node.left_without_cohort().len();
        }
    });
    let total = total.into_inner();
    println!("joined, in several, crashes, successors missed, left without a cohort: {total:?}");
    assert!(seeds(60).count() < 60 || total.iter().all(|count| *count > 0), "{total:?}");
}
