//! A service is gone permanently: its members notice it, and save their DIDs: one alone, the other by the cohort of another service.

use futures::future::join_all;

use super::world::{Agent, World};
use crate::support::{path, verify::text};

#[actix_rt::test]
async fn the_dids_of_a_vanished_service_are_saved() {
    let terms = ["--respond-time", "30s", "--absent", "wait"];
    let Some(mut world) = World::new("drill-vanished", 2, 2, &terms, "silence = \"1s\"").await else { return };
    let mut other = world.other_host("two", 2, &terms);
    for agent in &world.agents {
        agent.configure(&world.source, &[&world.host, &other], "silence = \"1s\"");
    }
    world.agents.iter_mut().for_each(Agent::start);
    let formed = world.host.program().event("standing-formed");
    (world.cohort_id, world.address) =
        (text(&formed["cohortId"]).to_owned(), text(&formed["beaconAddress"]).to_owned());
    let second = other.program().event("standing-formed");
    let (to, address) = (text(&second["cohortId"]).to_owned(), text(&second["beaconAddress"]).to_owned());
    let first = world.address.clone();
    world.pay(&first, 100_000).await;
    world.pay(&address, 100_000).await;
    world.host.program().event("coin-arrived");
    other.program().event("coin-arrived");
    let cohort = world.cohort_id.clone();
    let of_cohort = ["--cohort", &*cohort];
    join_all(world.agents.iter_mut().map(|agent| agent.mint("1", &of_cohort))).await;
    // At a start each DID is registered in every cohort in which its agent has a seat.
    for agent in &mut world.agents {
        agent.stop();
        agent.start();
    }
    for agent in &mut world.agents {
        agent.program().event_where("dids-registered", |event| event["cohortId"] == *to);
    }
    // An announcement is on its way when the service is gone, with all that it has stored.
    let id = world.change(0, 0, "last").await;
    let signed = world.host.program().event("number-signed");
    world.sent(&signed).await;
    world.host.program().kill();
    std::fs::remove_dir_all(world.directory.join("one")).unwrap();
    for agent in &mut world.agents {
        let silent = agent.program().event("service-silent");
        assert_eq!(silent["service"], "service-0");
    }
    let did = world.agents[0].dids[0].0.clone();
    let found = world.agents[0].check(&did, &world.source).await;
    assert!(found.contains(&"service-silent".to_owned()), "{found:?}");

    // Not while the other update of that version may still be announced.
    let out = path(&world.directory, "early.json");
    let early = world.agents[0].member(&["rescue", &did, "--out", &out]).await;
    assert_eq!(early.status, Some(1), "{early:?}");
    assert!(early.stderr.contains("may still announce") && early.stderr.contains("--pending"), "{}", early.stderr);
    world.blocks.mine(2).await;
    world.resolvable(0, id).await;

    // The first without a cohort, the second by that of the other service.
    let source = world.source.clone();
    for (agent, more) in [(0, &[][..]), (1, &["--to", &*to][..])] {
        let did = world.agents[agent].dids[0].0.clone();
        let own = own_address(&world, agent).await;
        world.pay(&own, 20_000).await;
        let out = path(&world.directory, &format!("rescue-{agent}.json"));
        let call = ["rescue", &did, "--out", &out, "--chain", &source, "--min-conf", "2", "--cohort", &cohort];
        let call = [&call[..], &["--fee-rate", "2", "--send"], more].concat();
        world.agents[agent].member(&call).await.succeeded();
        world.blocks.mine(2).await;
        let last = world.agents[agent].queue().await.last().unwrap()["id"].as_u64().unwrap();
        world.resolvable(agent, last).await;
    }
    world.all_list(&[0], &[]).await;
    world.all_list(&[1], &[&address]).await;
    world.agents.iter_mut().for_each(Agent::stop);
}

/// The address of the Singleton beacon of an agent's DID.
async fn own_address(world: &World, agent: usize) -> String {
    let one = &world.agents[agent];
    let did = &one.dids[0].0;
    let sidecar = format!("{}/sidecars/{}.json", one.state(), did.replace(':', "_"));
    let chain = ["--chain", &world.source, "--min-conf", "2", "--sidecar", &sidecar, "--json"];
    let resolved = crate::member_support::json(&[&["resolve", did][..], &chain].concat()).await;
    let services = resolved["didDocument"]["service"].as_array().unwrap();
    let singleton = services.iter().find(|service| service["type"] == "SingletonBeacon").unwrap();
    text(&singleton["serviceEndpoint"]).trim_start_matches("bitcoin:").to_owned()
}
