//! `cost ledger` at a service and at its member: both have seen the same, and so has the node.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    member_support::{World, json},
    resolve_cli::ran,
    support::{contains, path, run, verify::text},
};

async fn ledger(state: &str) -> Value {
    json(&["cost", "ledger", "--json", "--state", state]).await
}

/// A list without the times, which are of two clocks.
fn timeless(list: &Value) -> Vec<Value> {
    let mut list = list.as_array().unwrap().clone();
    list.iter_mut().for_each(|one| one["at"] = Value::Null);
    list
}

/// The fees in satoshi of all transactions that the node has in blocks.
async fn fees(world: &World) -> BTreeMap<String, u64> {
    let node = world.blocks.node();
    let tip = node.rpc("getblockcount", json!([])).await.as_u64().unwrap();
    let mut fees = BTreeMap::new();
    for height in 1..=tip {
        let hash = node.rpc("getblockhash", json!([height])).await;
        let block = node.rpc("getblock", json!([hash, 2])).await;
        for transaction in block["tx"].as_array().unwrap().iter().skip(1) {
            let fee = (transaction["fee"].as_f64().unwrap() * 1e8).round() as u64;
            fees.insert(text(&transaction["txid"]).to_owned(), fee);
        }
    }
    fees
}

#[actix_rt::test]
async fn both_ledgers_agree_with_each_other_and_the_chain() {
    let prices = ["--enrollment-price", "100sat/did", "--announcement-price", "2.5"];
    let Some(mut world) = World::with_terms("member-costs", "max-cost = 100", &prices).await else { return };
    let service = path(&world.directory, "service.state");
    world.formed().await;
    let dids = world.mint("3").await;
    world.hand_over(&dids[0], "one").await.succeeded();
    world.mined_until(1, "resolvable").await;
    world.hand_over(&dids[0], "two").await.succeeded();
    world.hand_over(&dids[1], "one").await.succeeded();
    world.mined_until(2, "resolvable").await;
    world.mined_until(3, "resolvable").await;
    // By the agent, which runs.
    let member = ledger(&world.state).await;
    let numbers: Vec<Value> =
        member["announcements"].as_array().unwrap().iter().map(|one| one["number"].clone()).collect();
    assert!((2..=3).contains(&numbers.len()), "{member:#}");
    for number in &numbers {
        world.service.program.event_where("number-confirmed", |event| event["number"] == *number);
    }
    let of_service = ledger(&service).await;
    assert_eq!(timeless(&member["announcements"]), timeless(&of_service["announcements"]));
    assert_eq!(
        timeless(&member["entries"]),
        timeless(&of_service["entries"]),
        "one seat: the ledgers are the same"
    );
    assert_eq!(member["sums"], of_service["sums"]);

    // The chain.
    let fees = fees(&world).await;
    let mut all = 0;
    for announced in member["announcements"].as_array().unwrap() {
        assert_eq!(announced["state"], "final");
        let fee = fees[text(&announced["txid"])];
        assert_eq!(announced["fee"], fee, "{announced:#}");
        assert_eq!((&announced["operatorOutput"], &announced["childFee"]), (&json!(0), &json!(0)));
        all += fee;
    }
    let total = |kind: &str| {
        let lines = member["total"].as_array().unwrap();
        lines.iter().find(|line| line["kind"] == kind).map_or(Value::Null, |line| line["amount"].clone())
    };
    assert_eq!(total("fee-share"), all);
    // Three DIDs at 100 sat, each announcement at 2.5 sat for the one seat.
    assert_eq!(total("enrollment"), 300);
    assert_eq!(total("announcement").as_f64().unwrap(), 2.5 * numbers.len() as f64);
    let comparison = &member["comparisons"][0];
    assert_eq!(comparison["fees"], all);
    assert_eq!(comparison["updates"], json!({ "atLeast": 3, "isExact": true }));
    // DIDs that were made with the beacon: that cannot be seen here, so that there are two figures.
    assert_eq!(comparison["registrations"], json!({ "needed": 0, "possible": 2 }));

    // It is derived again, without the agent, and after a restart.
    world.stop();
    assert_eq!(ledger(&world.state).await, member);
    world.start();
    assert_eq!(ledger(&world.state).await, member);
    let csv = ran(&["cost", "ledger", "--state", &world.state, "--csv"]).await.succeeded().stdout;
    assert_eq!(csv.lines().count(), member["entries"].as_array().unwrap().len() + 1, "{csv}");
    contains(&csv, &["fee-share,chain", "enrollment,advertised,100,sat", &dids[1].0]);
    let months = ran(&["cost", "ledger", "--state", &service, "--csv", "--by", "did"]).await.succeeded().stdout;
    contains(&months, &["did,kind,origin,amount", &dids[2].0]);
    let shown = ran(&["cost", "ledger", "--state", &service]).await.succeeded().stdout;
    contains(&shown, &["3 updates, 0 repeats", "Singleton transactions"]);
    world.stop();
}

#[test]
fn an_estimate_is_honest_where_the_cohort_is_dearer() {
    let estimate = |arguments: &[&str]| {
        let run = run(&[&["cost", "estimate", "--wallet", "p2tr"], arguments].concat()).succeeded();
        run.stdout
    };
    contains(&estimate(&["--registrations", "0", "--updates", "60"]), &["the cohort saves 7392 sat"]);
    contains(&estimate(&["--announcements", "1"]), &["the cohort is dearer by 154 sat"]);
    let bumped = ["--operator-output", "1000", "--bumps", "1", "--threshold", "7", "--by-fallback", "2", "--json"];
    let json: Value = serde_json::from_str(&estimate(&bumped)).unwrap();
    assert_eq!((&json["childVsize"], &json["byKeyVsize"]), (&json!(111), &json!(197)));
    contains(run(&["cost", "estimate", "--bumps", "1"]).usage(), &["operator's output"]);
    contains(run(&["cost", "ledger", "--state", "nowhere"]).stderr.as_str(), &["nowhere"]);
}
