//! A machine starts again with a clock that is wrong by days, e.g. because its battery is empty, and is set right while the programs run.
//! Meanwhile the others go on; afterwards all goes on by itself, and nothing was refused or lost because of the clock.

use super::world::{Agent, World};
use crate::support::clock::Clock;

/// Those who respond announce without the others after so long.
const TERMS: [&str; 6] = ["--fallback-threshold", "2", "--respond-time", "6s", "--confirm-time", "6s"];

async fn world(name: &str, more: &[&str]) -> Option<World> {
    let directory = crate::support::directory(&format!("{name}-clocks"));
    let clock = Clock::new(name, &directory)?;
    let mut world = World::formed(name, 3, 3, &[&TERMS, more].concat(), "1").await?;
    world.agents[1].clock = Some(clock.clone());
    world.host.clock = Some(clock);
    let id = world.change(0, 0, "first").await;
    world.resolvable(0, id).await;
    Some(world)
}

/// Every DID has the version, from the files of its agent alone.
async fn all_have(world: &World, versions: [&str; 3]) {
    for (agent, version) in versions.iter().enumerate() {
        assert_eq!(world.resolved(agent, 0).await.0, *version, "agent {agent}");
    }
}

async fn an_agent_starts_with(name: &str, offset: &str) {
    let Some(mut world) = world(name, &[]).await else { return };
    let clock = world.agents[1].clock.clone().unwrap();
    world.agents[1].kill();
    clock.set(offset);
    world.agents[1].start();
    let apart = world.agents[1].program().event("clocks-differ")["seconds"].as_i64().unwrap();
    assert!((apart.abs() - 3 * 86_400).abs() < 60 && (apart < 0) == offset.starts_with('-'), "{apart}");
    // Its own update waits, and that of another seat does not wait for it.
    let waits = world.change(1, 0, "own").await;
    let other = world.change(0, 0, "second").await;
    world.resolvable(0, other).await;
    clock.set("+0");
    world.resolvable(1, waits).await;
    all_have(&world, ["3", "2", "1"]).await;
    world.agents[1].program().event("clocks-agree");
    world.agents.iter_mut().for_each(Agent::stop);
}

#[actix_rt::test]
async fn an_agent_whose_clock_is_days_behind_waits_for_it() {
    an_agent_starts_with("drill-clock-behind", "-3d").await;
}

#[actix_rt::test]
async fn an_agent_whose_clock_is_days_ahead_waits_for_it() {
    an_agent_starts_with("drill-clock-ahead", "+3d").await;
}

/// It opens a number, to which no member responds. The number ends when the time is right, also if its own time to respond is days away.
async fn the_service_starts_with(name: &str, offset: &str) {
    let Some(mut world) = world(name, &["--max-interval", "4s"]).await else { return };
    let clock = world.host.clock.clone().unwrap();
    clock.set(offset);
    world.host.again(3, &[]);
    if offset.starts_with('+') {
        world.host.program().event("number-opened");
    }
    let first = world.change(0, 0, "second").await;
    for agent in [0, 2] {
        world.agents[agent].program().event("clocks-differ");
    }
    clock.set("+0");
    let second = world.change(2, 0, "first").await;
    world.resolvable(0, first).await;
    world.resolvable(2, second).await;
    all_have(&world, ["3", "1", "2"]).await;
    world.agents.iter_mut().for_each(Agent::stop);
}

#[actix_rt::test]
async fn a_service_whose_clock_is_days_behind_goes_on() {
    the_service_starts_with("drill-clock-service-behind", "-3d").await;
}

#[actix_rt::test]
async fn a_service_whose_clock_is_days_ahead_goes_on() {
    the_service_starts_with("drill-clock-service-ahead", "+3d").await;
}
