//! One party, the service or a seat, dies at each of its writes and each of its messages, and is started again with what it has stored. Every
//! time everything that is wanted is announced; nothing is said twice with other words; and every seat has the data of every announcement.
//!
//! `cargo test` tests a sample of the points. All of them:
//! `CRASH_POINTS=all cargo test -p btcr2-aggregation-actors --all-features --test it -- standing::crashes --nocapture`;
//! `CRASH_ONLY="smt-key Service Sent(17)"` repeats one.

use std::env;

use btcr2_aggregation_protocol::cohort::standing::{StandingBeacon, StandingTerms};

use super::{
    mortal::Point,
    scene::{Party, Scene},
    world::terms,
};
use crate::common::on_paused_clock;

/// Without `CRASH_POINTS=all`, one of so many points is run.
const SAMPLE: usize = 11;

const SEATS: u16 = 3;

/// The part of a life in which the party dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Until the cohort has formed and all rows are registered.
    Forming,
    /// From the trigger of a number to its confirmation.
    Announcing,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    beacon: StandingBeacon,
    phase: Phase,
    /// Whether a seat is absent, so that only the fallback is left.
    is_absent: bool,
    /// Whether seats have more to send, and to fetch, than one message takes.
    hash_only: bool,
}

impl Case {
    const fn new(
        name: &'static str,
        beacon: StandingBeacon,
        phase: Phase,
        is_absent: bool,
        hash_only: bool,
    ) -> Self {
        Self { name, beacon, phase, is_absent, hash_only }
    }

    fn terms(&self) -> StandingTerms {
        let mut terms = terms(self.beacon, SEATS);
        if self.hash_only {
            terms.updates = btcr2_aggregation_protocol::cohort::standing::Updates::Hash;
        }
        terms
    }
}

/// Writes and messages of the mortal party in that phase, and whether it has died.
fn life(case: &Case, party: Party, point: Option<Point>) -> (usize, usize, bool) {
    on_paused_clock(async {
        let mut scene = Scene::new(&case.terms(), usize::from(SEATS), party);
        if case.phase == Phase::Forming {
            scene.fate.arm(point);
        }
        scene.form().await;
        let mut counted = scene.fate.counted();
        let mut has_died = scene.deaths() > 0;
        scene.deposit().await;
        if case.is_absent {
            scene.stop_seat(usize::from(SEATS) - 1).await;
        }
        if case.phase == Phase::Announcing {
            scene.fate.arm(point);
        }
        scene.wants(&[(0, 0), (1, 1)]).await;
        scene.announce().await;
        if case.phase == Phase::Announcing {
            counted = scene.fate.counted();
            has_died = scene.deaths() > 0;
        }
        scene.settle().await;
        scene.check().await;
        (counted.0, counted.1, has_died)
    })
}

/// Prints the point if its run fails.
struct Named(String);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed: {}", self.0);
        }
    }
}

fn matrix(cases: &[Case], party: Party) {
    let all = env::var("CRASH_POINTS").is_ok_and(|points| points == "all");
    let only = env::var("CRASH_ONLY").ok();
    for case in cases {
        let (writes, sends, _) = life(case, party, None);
        let written = (1..=writes).flat_map(|at| [Point::Unwritten(at), Point::Written(at)]);
        let sent = (1..=sends).flat_map(|at| [Point::Unsent(at), Point::Sent(at)]);
        let points: Vec<Point> = written.chain(sent).collect();
        let name = |point: &Point| format!("{} {party:?} {point:?}", case.name);
        let chosen: Vec<Point> = match &only {
            Some(only) => points.iter().filter(|point| name(point).contains(only)).copied().collect(),
            None if all => points.clone(),
            None => points.iter().skip(SAMPLE / 2).step_by(SAMPLE).copied().collect(),
        };
        let mut killed = 0;
        for point in &chosen {
            let failed = Named(name(point));
            killed += usize::from(life(case, party, Some(*point)).2);
            drop(failed);
        }
        println!(
            "{} {party:?}: {writes} writes, {sends} messages; killed at {killed} of {} points",
            case.name,
            chosen.len()
        );
        // A run differs in its order: a party may come to its end before the last ones.
        assert!(only.is_some() || killed * 10 >= chosen.len() * 8, "{killed} of {}", chosen.len());
    }
}

const CAS: StandingBeacon = StandingBeacon::Cas;
const SMT: StandingBeacon = StandingBeacon::Smt;

const ANNOUNCING: [Case; 4] = [
    Case::new("cas-key", CAS, Phase::Announcing, false, false),
    Case::new("smt-key", SMT, Phase::Announcing, false, true),
    Case::new("cas-fallback", CAS, Phase::Announcing, true, true),
    Case::new("smt-fallback", SMT, Phase::Announcing, true, false),
];

const FORMING: [Case; 2] = [
    Case::new("cas-forming", CAS, Phase::Forming, false, false),
    Case::new("smt-forming", SMT, Phase::Forming, false, true),
];

#[test]
fn a_service_that_dies_anywhere_in_a_number_announces_it() {
    matrix(&ANNOUNCING, Party::Service);
}

#[test]
fn a_seat_that_dies_anywhere_in_a_number_is_announced() {
    matrix(&ANNOUNCING, Party::Seat);
}

#[test]
fn a_service_that_dies_while_it_forms_registers_its_seats() {
    matrix(&FORMING, Party::Service);
}

#[test]
fn a_seat_that_dies_while_it_joins_registers_its_dids() {
    matrix(&FORMING, Party::Seat);
}
