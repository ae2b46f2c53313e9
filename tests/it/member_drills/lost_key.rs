//! The seed of one seat is lost, with the keys of its DIDs still there: the others go on by fallback and move, it saves its DIDs alone.

use serde_json::Value;

use super::world::{Agent, World};
use crate::{
    resolve_cli::ran,
    support::{path, verify::text},
};

#[actix_rt::test]
async fn the_others_move_and_the_lost_seat_saves_its_dids_alone() {
    let terms = ["--beacon", "smt", "--respond-time", "5s", "--confirm-time", "5s"];
    let Some(mut world) = World::formed("drill-lost-key", 3, 3, &terms, "1").await else { return };
    let (cohort, old) = (world.cohort_id.clone(), world.address.clone());
    world.agents[2].stop();
    world.agents[2].loses_its_seed();
    // The cohort goes on, at the price of the fallback.
    let id = world.change(0, 0, "by-fallback").await;
    let signed = world.host.program().event_where("number-signed", |event| event["mode"] == "fallback");
    assert_eq!(signed["absent"].as_array().unwrap().len(), 1);
    world.resolvable(0, id).await;

    // The others migrate. The controller of the lost seat takes another one at the successor, where it registers its DIDs.
    world.succeeds(3);
    // To prove control of them it needs what was announced without it.
    let (service, did) = (world.host.proxy.url(), world.agents[2].dids[0].0.clone());
    let sidecars = path(&world.agents[2].place, "state/sidecars");
    let fetch = ["history", "--service", &service, "--cohort", &cohort, "--did", &did, "--out", &sidecars];
    ran(&fetch).await.succeeded();
    world.agents[2].start();
    let formed = world.host.program().event("standing-formed");
    let (new, address) = (text(&formed["cohortId"]).to_owned(), text(&formed["beaconAddress"]).to_owned());
    world.host.program().event_where("number-opened", |event| event["kind"] == "move");
    let moved = world.host.program().event_where("number-signed", |event| event["cohortId"] == *cohort);
    assert_eq!(moved["mode"], Value::from("fallback"));
    world.sent(&moved).await;
    world.blocks.mine(2).await;
    world.host.service.program.event_where("coin-arrived", |event| event["cohortId"] == new);
    world.all_list(&[0, 1], &[&address]).await;

    // It was in no number since: its DID is saved by its own Singleton beacon, with what the service serves of the old cohort.
    let out = path(&world.directory, "rescue.json");
    let refused = world.agents[2].member(&["rescue", &did, "--out", &out]).await;
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("--address"), "{refused:?}");
    let source = world.source.clone();
    let lost = ["--cohort", &cohort, "--address", &old, "--to", &new];
    let call = ["rescue", &did, "--out", &out, "--chain", &source, "--min-conf", "2", "--send", "--fee-rate", "2"];
    let call = [&call[..], &lost].concat();
    let poor = world.agents[2].member(&call).await;
    assert_eq!(poor.status, Some(1), "{poor:?}");
    let document = json_of(&out);
    let services = document["sourceDocument"]["service"].as_array().unwrap();
    let singleton = services.iter().find(|service| service["type"] == "SingletonBeacon").unwrap();
    let own = text(&singleton["serviceEndpoint"]).trim_start_matches("bitcoin:").to_owned();
    assert!(poor.stderr.contains(&own) && poor.stderr.contains("sat"), "{}", poor.stderr);
    world.pay(&own, 20_000).await;
    world.agents[2].member(&call).await.succeeded();
    assert_eq!(json_of(&out), document, "the same update");
    world.blocks.mine(2).await;
    world.resolvable(2, 1).await;
    world.all_list(&[0, 1, 2], &[&address]).await;
    // It lives at the successor.
    let id = world.change(2, 0, "after").await;
    world.resolvable(2, id).await;
    world.all_list(&[0, 1, 2], &[&address]).await;
    world.agents.iter_mut().for_each(Agent::stop);
}

fn json_of(file: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}
