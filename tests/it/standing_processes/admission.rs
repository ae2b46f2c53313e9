//! Who gets a seat, and what is served of the history when the seats are gone.

use std::fs;

use btcr2_aggregation::protocol::{did::Did, network::Network};
use serde_json::{Value, json};

use super::world::{Setting, World};
use crate::{
    bitcoind_support::beacon::key,
    resolve_cli::ran,
    support::{did_of, directory, identity, path, run, verify::text},
};

#[actix_rt::test]
async fn seats_are_admitted_and_history_outlives_them() {
    let name = "standing-admission";
    let lists = directory(&format!("{name}-lists"));
    let list = path(&lists, "list");
    // The operator knows the identity of one of them, and gives the others an invite.
    let known = Did::from_key(key(&format!("{name} seat 1")).public_key(), Network::Regtest);
    fs::write(&list, format!("{known}\n")).unwrap();
    let fixed = ["--fallback-threshold", "2", "--min-interval", "1s", "--respond-time", "8s"];
    let terms = [&fixed[..], &["--allow-list", &list, "--invites"]].concat();
    let setting = Setting { name, beacon: "smt", seats: 3, terms: &terms };
    let Some(mut world) = World::opened(&setting, 1).await else { return };
    let state = world.service_state();
    let made = run(&["invites", "new", "--uses", "2", "--state", &state, "--json"]).succeeded();
    let token = text(&serde_json::from_str::<Value>(&made.stdout).unwrap()["token"]).to_owned();
    // Without either.
    world.start(0, &[]);
    let refused = world.event(0, "seat-not-given");
    assert!(text(&refused["reason"]).contains("--show-identity"), "{refused:#}");
    world.service.program.event("seat-refused");
    world.stop(&[0]);
    world.start(0, &["--invite", &token]);
    world.start(1, &["--show-identity"]);
    world.start(2, &["--invite", &token]);
    world.forms();
    let listed = run(&["invites", "list", "--state", &state, "--json"]).succeeded().stdout;
    assert_eq!(listed.matches("did:btcr2:").count(), 2, "{listed}");
    world.deposit(100_000).await;
    world.stop(&[0]);
    let did = world.mint(0);
    world.start(0, &[]);
    world.event(0, "rows-acknowledged");
    let update = world.prepare(did, "one");
    world.announce(None).await;
    assert_eq!(world.dids[did].version, 2);
    world.stop(&[0, 1, 2]);
    // The service goes on to serve what it has stored, as another process.
    world.serve_again();
    let (url, cohort) = (world.proxy.url(), world.cohort_id.clone());
    // A DID that never was in the cohort: its document may have listed the address.
    let other = identity(&world.directory, "other");
    let out = path(&world.directory, "elsewhere");
    let fixed = ["history", "--service", &url, "--cohort", &cohort, "--json"];
    let fetched = ran(&[&fixed[..], &["--did", &did_of(&other), "--out", &out]].concat()).await.succeeded().stdout;
    let fetched: Value = serde_json::from_str(&fetched).unwrap();
    assert!(fetched["announcements"].as_u64() >= Some(1) && fetched["private"] == json!([]), "{fetched}");
    let file = format!("{out}/{}.json", did_of(&other).replace(':', "_"));
    let data: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(data["smtProofs"].as_array().unwrap().len() as u64, fetched["announcements"].as_u64().unwrap());
    // Everything that the seat has written is lost; its secret and the updates are there.
    let seat = &world.seats[0];
    let [secret, dids, updates, data] = ["seat.id", "dids", "updates", "out"].map(|part| seat.file(part));
    fs::remove_dir_all(&data).unwrap();
    let places = ["--dids", &dids, "--out", &data];
    let denied = ran(&[&fixed[..], &places].concat()).await;
    assert_eq!(denied.status, Some(1), "its leaves are not for every client");
    fs::write(path(&seat.place.join("updates"), "one.json"), update.value().to_string()).unwrap();
    let own = ["--identity", &secret, "--updates", &updates];
    ran(&[&fixed[..], &places, &own].concat()).await.succeeded();
    world.resolve_by_command(did).await;
}
