//! Agents of five seats and forty DIDs live through announcements while every process is killed (SIGKILL) at moments that a seed draws: a reboot of
//! everything at once, an agent that is restored from an older backup, a move to a cohort of six seats, and a seat that leaves. After each
//! announcement every DID resolves from the files of its agent alone, to exactly the version that was announced, and no EXTERNAL DID ever
//! paid for a transaction of its own.
//!
//! The seed is printed, and `YEARS_SEED` gives another one. All twelve announcements, with both beacons, take minutes:
//! `STANDING=long cargo test --test it member_years -- --nocapture`.
//!
//! At the reboot clocks jump by hours or days, in both directions, until they are set: with libfaketime (Debian's package `faketime`); without
//! it only the reboot is tested, and that is printed.

mod life;

use std::env;

use self::life::{Life, SEATS, Victim};

/// The seed of the everyday form.
const SEED: u64 = 18;

fn seed() -> u64 {
    env::var("YEARS_SEED").map_or(SEED, |seed| seed.parse().unwrap())
}

async fn agents_live_for_years(name: &str, beacon: &str, is_long: bool) {
    let seed = seed();
    println!("{name}: YEARS_SEED={seed}");
    let Some(mut life) = Life::new(name, beacon, seed).await else { return };
    let started = std::time::Instant::now();
    assert_eq!(life.dids().count(), 40);
    life.adopt(1).await;
    // Each process dies at least once while a number runs.
    let mut victims = life.shuffled();
    let mut next = |count: usize| victims.split_off(victims.len().saturating_sub(count));
    let (first, second, third) = (next(2), next(2), next(2));
    life.announces(&[0, 1, 3], &first).await;
    // Announced with the signature of the agent whose disk is lost then. An update of its own would be lost with it: it is on no board.
    let backup = life.back_up(2).await;
    life.announces(&[3, 0], &second).await;
    life.is_restored(2, &backup).await;
    life.announces(&[3, 1], &third).await;
    if is_long {
        life.announces(&[0, 4], &[Victim::Service, Victim::Agent(0)]).await;
    }
    life.reboots(&[2, 4, 1]).await;
    for round in 0..if is_long { 4 } else { 0 } {
        let victims = life.drawn(2);
        life.announces(&[round, (round + 2) % SEATS], &victims).await;
    }
    let victims = life.drawn(1);
    life.moves(&victims).await;
    let victims = life.drawn(1);
    life.leaves(3, &victims).await;
    for round in 0..if is_long { 2 } else { 1 } {
        let victims = life.drawn(2);
        life.announces(&[round, 2, 4], &victims).await;
    }
    life.nobody_paid().await;
    let Life { announced, killed, .. } = &life;
    println!("{name}: {announced} announcements, {killed} processes killed, in {:?}", started.elapsed());
    assert!(*announced >= if is_long { 12 } else { 7 });
    life.stop();
}

#[actix_rt::test]
async fn the_dids_of_agents_in_a_cas_cohort_live_through_everything() {
    let is_long = env::var("STANDING").is_ok_and(|form| form == "long");
    agents_live_for_years("member-years-cas", "cas", is_long).await;
}

/// `STANDING=long` only.
#[actix_rt::test]
async fn the_dids_of_agents_in_an_smt_cohort_live_through_everything() {
    if env::var("STANDING").is_ok_and(|form| form == "long") {
        agents_live_for_years("member-years-smt", "smt", true).await;
    } else {
        println!("skipped: member-years-smt: STANDING=long runs it");
    }
}
