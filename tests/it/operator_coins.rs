//! The coins of an operator after its announcements: where change is, what was paid, and how the coins are spent.

use std::fs;

use crate::bitcoind_support::{
    TestChain,
    beacon::{Beacon, key},
    faucet::{Faucet, Wallet},
};
use crate::support::{directory, path, run};
use bitcoin::{Address, Amount};
use btcr2_aggregation::{
    bitcoin::{change::ChangeKey, recovery::CohortFile},
    protocol::id::CohortId,
};
use serde_json::{Value, json};

/// Runs a command with the operator's secret in the environment.
fn with_secret(arguments: &[&str], secret: &str) -> crate::support::Run {
    crate::support::run_with(arguments, &[("OPERATOR_SECRET", secret)])
}

#[test]
fn an_operators_coins_are_listed_and_spent() {
    actix_rt::System::new().block_on(async {
        let name = "an_operators_coins_are_listed_and_spent";
        let Some(blocks) = TestChain::core(name).await else { return };
        let mut faucet = Faucet::new(&blocks, 4).await;
        let directory = directory("operator-coins");
        // A cohort that was never announced; its recovery key is the operator's.
        let beacon = Beacon::new("coins", 3, 10);
        let cohort_id = CohortId::parse("3f0ab4f2-0f2b-4d7e-9a3f-5b6a0f3e1c11").unwrap();
        let file = CohortFile { cohort_id, output: beacon.output.clone() };
        file.write_to(&directory.join("results")).unwrap();
        let change = ChangeKey::new(&beacon.recovery).script_pubkey().to_owned();
        for sat in [30_000, 20_000] {
            faucet.pay(&blocks, &change, Amount::from_sat(sat)).await;
        }
        faucet.pay(&blocks, &beacon.output.script_pubkey().to_owned(), Amount::from_sat(40_000)).await;
        blocks.mine(1).await;
        faucet.pay(&blocks, &change, Amount::from_sat(10_000)).await;

        let source = format!("core={}?cookie={}", blocks.node().url(), blocks.node().cookie_file().display());
        let (results, secret) = (path(&directory, "results"), beacon.recovery.to_hex());
        let destination =
            Address::from_script(&Wallet::new(9).script(), bitcoin::Network::Regtest).unwrap().to_string();
        let coins = |more: &[&str]| {
            let fixed =
                ["coins", "--json", "--chain", &source, "--secret-env", "OPERATOR_SECRET", "--results", &results];
            let run = with_secret(&[&fixed[..], more].concat(), &secret);
            let report: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|_| panic!("{run:?}"));
            (run.status, report)
        };
        let (status, listed) = coins(&[]);
        assert_eq!(status, Some(0));
        let of = |report: &Value| {
            let coins = report["change"]["coins"].as_array().unwrap().clone();
            let mut coins: Vec<_> =
                coins.iter().map(|coin| (coin["value"].as_u64().unwrap(), coin["spendable"] == true)).collect();
            coins.sort_unstable();
            coins
        };
        assert_eq!(of(&listed), [(10_000, false), (20_000, true), (30_000, true)]);
        let left = &listed["beacons"][0];
        assert_eq!((&left["beaconAddress"], &left["recoverable"]), (&json!(beacon.output.address()), &json!(true)));
        assert_eq!(left["coins"][0]["maturity"]["state"], "waiting");

        // Unconfirmed change may have to pay for an announcement, and the timelock has not passed.
        let (_, shown) = coins(&["--to", &destination, "--dry-run"]);
        let made = shown["transactions"].as_array().unwrap();
        assert!(made.len() == 1 && made[0]["sent"] == false, "{shown}");
        blocks.mine(10).await;
        let (status, sent) = coins(&["--to", &destination, "--fee-rate", "3"]);
        assert_eq!(status, Some(0), "{sent}");
        let made = sent["transactions"].as_array().unwrap();
        assert!(made.len() == 2 && made.iter().all(|made| made["sent"] == true), "{sent}");
        blocks.mine(1).await;
        let fees: u64 = made.iter().map(|made| made["fee"].as_u64().unwrap()).sum();
        let arrived = blocks.chain().coins(&Wallet::new(9).script()).await.unwrap();
        let arrived: u64 = arrived.deposits.iter().map(|coin| coin.value.to_sat()).sum();
        assert_eq!(arrived + fees, 100_000);
        // Nothing is left, and the command reports that.
        let (status, nothing) = coins(&["--to", &destination]);
        assert_eq!((status, of(&nothing)), (Some(1), vec![]));
        // The coins of another operator's cohort are listed, but we cannot spend them.
        let text = with_secret(
            &["coins", "--chain", &source, "--secret-env", "OPERATOR_SECRET"],
            &key("another operator").to_hex(),
        );
        assert!(text.succeeded().stdout.contains("change at bcrt1p"));
        assert!(run(&["coins", "--chain", &source, "--results", "/nowhere"]).status != Some(0));
    });
}

/// A cohort's results, without the cohort.
fn result(out: &std::path::Path, cohort: &str, signed: usize, map: &Value, outcome: Option<Value>) {
    let directory = out.join(cohort);
    fs::create_dir_all(&directory).unwrap();
    let beacon = Beacon::new("cost", 3, 10);
    let coin = btcr2_aggregation::protocol::output::Coin {
        outpoint: bitcoin::OutPoint { vout: u32::try_from(signed).unwrap(), ..bitcoin::OutPoint::null() },
        value: Amount::from_sat(50_000),
    };
    let change = btcr2_aggregation::protocol::output::Change::Beacon;
    let rate = bitcoin::FeeRate::from_sat_per_vb_u32(10);
    let signal = btcr2_aggregation::protocol::hash::SignalBytes::from_bytes([1; 32]);
    let mut transaction = btcr2_aggregation::protocol::output::build_beacon_transaction(
        &beacon.output,
        &coin,
        &signal,
        rate,
        &change,
    )
    .unwrap();
    transaction.input[0].witness.push([0; 64]);
    let result = json!({
        "cohortId": cohort, "beaconAddress": beacon.output.address(), "prevout": { "value": 50_000 },
        "txHex": bitcoin::consensus::encode::serialize_hex(&transaction),
    });
    fs::write(directory.join("announcement.json"), map.to_string()).unwrap();
    if let Some(outcome) = outcome {
        fs::write(directory.join("announced.json"), outcome.to_string()).unwrap();
    }
    fs::write(directory.join("result.json"), result.to_string()).unwrap();
    let at = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000 + signed as u64);
    fs::File::options().write(true).open(directory.join("result.json")).unwrap().set_modified(at).unwrap();
}

#[test]
fn cost_counts_children_repeats_first_updates_and_failures() {
    let out = directory("cost-counts");
    // By time, not by name: "b" was signed first.
    let paid = json!({
        "event": "announcement-final", "childFee": 500, "change": 47_000, "changeAddress": "bcrt1pchange",
    });
    result(&out, "b", 1, &json!({ "did:a": "one", "did:b": "two" }), Some(paid));
    result(&out, "a", 2, &json!({ "did:a": "one", "did:b": "three" }), None);
    result(&out, "c", 3, &json!({ "did:c": "four" }), Some(json!({ "event": "announcement-failed" })));
    let cost = |more: &[&str]| {
        let run = run(&[&["cost", "--json", "--wallet", "p2tr", out.to_str().unwrap()], more].concat()).succeeded();
        serde_json::from_str::<Value>(&run.stdout).unwrap()
    };
    let report = cost(&[]);
    assert_eq!(report["notAnnounced"], json!(["c"]));
    let (first, second) = (&report["cohorts"][0], &report["cohorts"][1]);
    assert_eq!((&first["cohortId"], &first["announcement"]), (&json!("b"), &json!("final")));
    assert_eq!((&first["cost"]["updates"], &first["cost"]["firstUpdates"]), (&json!(2), &json!(2)));
    // 154 vB at 10 sat/vB, the child, and two singletons of 154 vB.
    assert_eq!(first["cost"]["childFees"], 500);
    assert_eq!(first["cost"]["paid"], 1540 + 500 + 2 * 1540);
    assert_eq!(first["cost"]["saved"], 2 * 1540 - (1540 + 500 + 2 * 1540));
    assert_eq!((&second["repeats"], &second["announcement"]), (&json!(1), &json!("unknown")));
    assert_eq!((&second["cost"]["updates"], &second["cost"]["firstUpdates"]), (&json!(1), &json!(0)));
    assert_eq!(report["total"]["updates"], 3);
    // The address of the change is in the end of the announcement, or in the transaction.
    assert_eq!(first["change"], json!({ "address": "bcrt1pchange", "value": 47_000 }));
    assert_eq!(second["change"]["value"], 50_000 - 1540);
    assert!(second["change"]["address"].as_str().unwrap().starts_with("bcrt1p"), "{second}");
    let listed = cost(&["--listed"]);
    assert_eq!(listed["cohorts"][0]["cost"]["saved"], 2 * 1540 - (1540 + 500));
    let text = run(&["cost", out.to_str().unwrap()]).succeeded().stdout;
    let parts =
        ["47000 sat went to bcrt1pchange", "500 sat by children", "2 first updates", "1 updates not counted"];
    for part in parts.into_iter().chain(["was not announced", "not known yet"]) {
        assert!(text.contains(part), "{part}: {text}");
    }
}
