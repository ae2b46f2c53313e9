//! All DIDs of a seat leave their cohort, which goes on announcing.

use super::world::{Agent, World};
use crate::{member_support::json, support::verify::text};

async fn leaves(name: &str, beacon: &str) {
    let terms = ["--beacon", beacon, "--respond-time", "5s"];
    let Some(mut world) = World::formed(name, 3, 3, &terms, "2").await else { return };
    let cohort = world.cohort_id.clone();
    let left = world.agents[0].member(&["leave", "--all", "--cohort", &cohort, "--json"]).await.succeeded();
    assert_eq!(left.stdout.matches("\"step\":\"leaving\"").count(), 2, "{}", left.stdout);
    let foreign = world.agents[1].dids[0].0.clone();
    assert_eq!(world.agents[0].member(&["leave", &foreign, "--cohort", &cohort]).await.status, Some(1));
    world.resolvable(0, 1).await;
    world.resolvable(0, 2).await;
    for (did, _) in world.agents[0].dids.clone() {
        world.agents[0]
            .program()
            .event_where("did-leaves", |event| event["did"] == *did && event["step"] == "left");
    }
    let dids = json(&["member", "dids", "--json", "--state", &world.agents[0].state()]).await;
    assert!(dids.as_array().unwrap().iter().all(|did| did["exits"][0]["step"] == "left"), "{dids:#}");
    world.all_list(&[0], &[]).await;

    // Others announce, with its signature: resolvers need the data of that, too.
    let id = world.change(1, 0, "later").await;
    world.resolvable(1, id).await;
    world.all_list(&[0], &[]).await;
    // Without it.
    world.agents[0].stop();
    let id = world.change(2, 0, "much-later").await;
    world.resolvable(2, id).await;
    world.agents[0].start();
    world.agents[0].program().event("missed");
    world.all_list(&[0], &[]).await;
    let address = world.address.clone();
    world.all_list(&[1, 2], &[&address]).await;

    // When it cannot fetch what is announced, `check` knows it.
    let did = world.agents[0].dids[0].0.clone();
    let found = world.agents[0].check(&did, &world.source).await;
    assert!(found.contains(&"no-backup".to_owned()) && !found.contains(&"incomplete-data".to_owned()), "{found:?}");
    world.agents[0].stop();
    world.host.program().kill();
    world.agents[0].start();
    let incomplete = world.agents[0].program().event("data-incomplete");
    assert_eq!((text(&incomplete["cohortId"]), incomplete["dids"].as_array().unwrap().len()), (&*cohort, 2));
    let found = world.agents[0].check(&did, &world.source).await;
    assert!(found.contains(&"incomplete-data".to_owned()), "{found:?}");
    world.host.again(3, &[]);
    world.agents[0].program().event("data-complete");
    let found = world.agents[0].check(&did, &world.source).await;
    assert!(!found.contains(&"incomplete-data".to_owned()), "{found:?}");
    world.agents.iter_mut().for_each(Agent::stop);
}

#[actix_rt::test]
async fn the_data_of_a_left_cas_cohort_are_fetched_without_end() {
    leaves("drill-exit-cas", "cas").await;
}

#[actix_rt::test]
async fn the_data_of_a_left_smt_cohort_are_fetched_without_end() {
    leaves("drill-exit-smt", "smt").await;
}
