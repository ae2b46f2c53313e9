//! A cohort of three seats moves to one of four.

use serde_json::Value;

use super::world::{Agent, World};
use crate::{member_support::json, support::verify::text};

async fn moves(name: &str, beacon: &str) {
    let terms = ["--beacon", beacon, "--respond-time", "30s"];
    let Some(mut world) = World::formed(name, 4, 3, &terms, "2").await else { return };
    let id = world.change(0, 0, "before").await;
    world.resolvable(0, id).await;
    let old = world.address.clone();

    // The operator starts the service with the successor's terms; a fourth agent wants in.
    world.succeeds(4);
    world.agents[3].start();
    let formed = world.host.program().event("standing-formed");
    let (new, address) = (text(&formed["cohortId"]).to_owned(), text(&formed["beaconAddress"]).to_owned());
    let named = world.host.program().event("successor-named");
    assert_eq!((text(&named["cohortId"]), text(&named["successor"])), (&*world.cohort_id, &*new));
    world
        .host
        .program()
        .event_where("number-opened", |event| event["kind"] == "roster" && event["cohortId"] == new);
    for agent in &mut world.agents[..3] {
        let known = agent.program().event("successor-known");
        assert_eq!(text(&known["beaconAddress"]), address);
        agent.program().event_where("move-prepared", |event| event["registered"].as_array().unwrap().len() == 2);
    }
    // Without a request.
    world.host.program().event_where("number-opened", |event| event["kind"] == "move");
    let is_move = |event: &Value| event["cohortId"] == *world.cohort_id;
    let moved = world.host.service.program.event_where("number-signed", is_move);
    assert_eq!((&moved["mode"], &moved["absent"]), (&Value::from("key"), &Value::from(Vec::<Value>::new())));
    world.sent(&moved).await;
    world.blocks.mine(2).await;
    world.host.service.program.event_where("coin-arrived", |event| event["cohortId"] == new);

    // Every DID lists the new address, in its files; what comes to the old one follows.
    world.all_list(&[0, 1, 2], &[&address]).await;
    assert_eq!(world.resolved(0, 0).await.0, "3");
    world.pay(&old, 50_000).await;
    world.host.program().event_where("number-opened", |event| event["kind"] == "refresh");
    world.host.service.program.event_where("number-signed", |event| {
        event["cohortId"] == *world.cohort_id && event["number"] != moved["number"]
    });
    let status = json(&["member", "status", "--json", "--state", &world.agents[0].state()]).await;
    let cohorts = status["seats"][0]["cohorts"].as_array().unwrap();
    let old_one = cohorts.iter().find(|cohort| cohort["cohortId"] == *world.cohort_id).unwrap();
    assert_eq!((text(&old_one["successor"]), &old_one["hasMoved"]), (&*new, &Value::Bool(true)));

    // Life goes on there: updates, and DIDs that begin there, without a choice of the cohort.
    world.agents[0].mint("1", &[]).await;
    world.agents[3].mint("1", &[]).await;
    let id = world.change(1, 0, "after").await;
    world.resolvable(1, id).await;
    world.all_list(&[0, 1, 2, 3], &[&address]).await;
    world.agents.iter_mut().for_each(Agent::stop);
}

#[actix_rt::test]
async fn a_cas_cohort_moves_to_one_of_another_size() {
    moves("drill-migration-cas", "cas").await;
}

#[actix_rt::test]
async fn an_smt_cohort_moves_to_one_of_another_size() {
    moves("drill-migration-smt", "smt").await;
}

/// A person decides on the seat there, and on the move.
#[actix_rt::test]
async fn a_move_that_is_not_approved_is_not_signed() {
    let terms = ["--respond-time", "30s", "--absent", "wait"];
    let Some(mut world) = World::formed("drill-migration-asked", 2, 2, &terms, "1").await else { return };
    world.agents[1].stop();
    world.agents[1].configure(&world.source, &[&world.host], "move = \"ask\"");
    world.agents[1].start();
    world.succeeds(2);
    let asked = crate::member_support::pending(&world.agents[1].state()).await;
    assert_eq!(
        (&asked["kind"], &asked["request"]["succeeds"]),
        (&Value::from("join"), &Value::from(world.cohort_id.clone()))
    );
    let file = crate::support::path(&world.directory, "advert.json");
    std::fs::write(&file, asked.to_string()).unwrap();
    let config = crate::support::path(&world.agents[1].place, "member.toml");
    let dry = json(&["member", "dry-run", "--config", &config, "--advert", &file, "--json"]).await;
    assert_eq!(dry["decision"], "ask");
    world.agents[1].member(&["approve", &asked["id"].to_string()]).await.succeeded();
    let first = crate::member_support::pending(&world.agents[1].state()).await;
    assert_eq!((&first["kind"], first["request"]["dids"].as_array().unwrap().len()), (&Value::from("move"), 1));
    std::fs::write(&file, first.to_string()).unwrap();
    let dry = json(&["member", "dry-run", "--config", &config, "--request", &file, "--json"]).await;
    assert_eq!((&dry["kind"], &dry["decision"]), (&Value::from("move"), &Value::from("ask")));
    world.agents[1].member(&["reject", &first["id"].to_string(), "--reason", "not yet"]).await.succeeded();
    let refused = world.agents[1].program().event("seat-refused-to-sign");
    assert!(text(&refused["reason"]).contains("would be left"), "{refused}");
    // The cohort tries again.
    let second = loop {
        let next = crate::member_support::pending(&world.agents[1].state()).await;
        if next["id"] != first["id"] {
            break next;
        }
    };
    world.agents[1].member(&["approve", &second["id"].to_string()]).await.succeeded();
    let cohort = world.cohort_id.clone();
    world.host.program().event_where("number-signed", |event| event["cohortId"] == *cohort);
    world.agents.iter_mut().for_each(Agent::stop);
}
