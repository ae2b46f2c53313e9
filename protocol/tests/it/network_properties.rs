//! The machines under a network that drops, repeats, reorders and delays, with members of every behaviour.
//!
//! `SIM_SEEDS` sets the number of seeds for each property.

use crate::sim_support::{
    TIMEOUT, assert_consensus,
    dice::{Dice, for_each_seed},
};
use btcr2_aggregation_protocol::{
    cohort::event::SpendPath,
    error::Slot,
    sim::{Faults, START, Simulation},
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
