//! Coins and standing cohorts, on a real node.

use std::fs;

use bitcoin::{Address, Amount, ScriptBuf, address::NetworkUnchecked};
use serde_json::{Value, json};

use super::{Controlled, eventually, id};
use crate::{
    bitcoind_support::{TestChain, faucet::Faucet},
    support::{Program, contains, directory, identity, path},
};

fn script(address: &str) -> ScriptBuf {
    address.parse::<Address<NetworkUnchecked>>().unwrap().assume_checked().script_pubkey()
}

/// A node, a faucet, and a service with a control API on them.
async fn on_a_node(name: &str) -> Option<(TestChain, Faucet, String, Controlled)> {
    let blocks = TestChain::core(name).await?;
    let faucet = Faucet::new(&blocks, 4).await;
    let node = blocks.node();
    let source = format!("core={}?cookie={}", node.url(), node.cookie_file().display());
    let arguments = ["--chain", &source, "--chain-poll", "200ms", "--confirmations", "2"];
    let api = Controlled::start_in(directory(name), &arguments);
    Some((blocks, faucet, source, api))
}

#[actix_rt::test]
async fn the_deposit_of_a_cohort_is_wanted_and_its_fee_is_bumped() {
    let Some((blocks, mut faucet, source, mut api)) = on_a_node("control-coins").await else { return };
    let cohort_id = id(&api.ctl(&["cohort", "create", "--set", "min-participants=2"]));
    let members: Vec<Program> = ["a", "b"]
        .iter()
        .map(|name| {
            let file = identity(&api.directory, name);
            let state = format!("{file}.state");
            let arguments = [
                "--decline",
                "--state",
                &state,
                "--chain",
                &source,
                "--chain-poll",
                "200ms",
                "--confirmations",
                "2",
            ];
            api.service.join(&file, &arguments)
        })
        .collect();
    let announcement = |api: &Controlled| {
        let coins = api.ctl(&["coins", "list"]);
        let found =
            coins["announcements"].as_array().unwrap().iter().find(|one| one["cohortId"] == json!(cohort_id));
        found.cloned().unwrap_or_default()
    };
    eventually("a deposit is wanted", || announcement(&api)["wanted"]["atLeast"].is_u64());
    let wanted = announcement(&api);
    let address = wanted["beaconAddress"].as_str().unwrap();
    assert!(wanted["wanted"]["suggested"].as_u64() > wanted["wanted"]["atLeast"].as_u64(), "{wanted}");
    let uri = wanted["wanted"]["uri"].as_str().unwrap();
    let (suggested, amount) =
        (wanted["wanted"]["suggested"].as_u64().unwrap(), uri.split("?amount=").nth(1).unwrap());
    assert!(uri.starts_with(&format!("bitcoin:{address}?")), "{uri}");
    assert_eq!(Amount::from_str_in(amount, bitcoin::Denomination::Bitcoin).unwrap().to_sat(), suggested);
    assert_eq!(api.ctl(&["coins", "show", &cohort_id])["wanted"]["atLeast"], wanted["wanted"]["atLeast"]);
    assert_eq!(api.ctl_run(&["coins", "show", "none"]).status, Some(1));
    let early = api.ctl_run(&["coins", "bump", &cohort_id]);
    assert_eq!(early.status, Some(1), "{early:?}");
    // Held back before it is signed, and over a restart.
    api.ctl(&["coins", "hold", &cohort_id]);
    api.service.program.event("announcement-held");
    faucet.pay(&blocks, &script(address), Amount::from_sat(60_000)).await;
    blocks.mine(1).await;
    let is_signed = |api: &Controlled| announcement(api)["state"] == "announcing";
    eventually("it is signed", || is_signed(&api));
    assert_eq!(announcement(&api)["held"], true);
    api.service.program.kill();
    let url = api.service.url.trim_start_matches("http://").to_owned();
    let chain = ["--chain", &source, "--chain-poll", "200ms", "--confirmations", "2", "--listen", &url];
    api = Controlled::start_in(api.directory.clone(), &chain);
    eventually("it is known again", || is_signed(&api));
    assert_eq!(blocks.mempool().await, [], "nothing is broadcast");
    api.ctl(&["coins", "release", &cohort_id]);
    api.service.program.event("announcement-released");
    api.service.program.event("announcement-broadcast");
    let late = api.ctl_run(&["coins", "hold", &cohort_id]);
    contains(&late.all(), &["nothing can take it back"]);
    assert_eq!(late.status, Some(1));
    let before = announcement(&api);
    assert_eq!(before["state"], "announcing", "{before}");
    api.ctl(&["coins", "bump", &cohort_id, "--fee-rate", "12.5"]);
    api.service.program.event("announcement-bumped");
    let after = announcement(&api);
    assert!(after["feeRate"].as_f64().unwrap() >= 12.4 && after["child"].is_string(), "{after}");
    contains(&api.ctl_run(&["coins", "bump", &cohort_id, "--fee-rate", "2"]).all(), &["highest fee rate"]);
    for _ in 0..2 {
        blocks.mine(1).await;
    }
    let last = api.service.program.event("announcement-final");
    eventually("its end is among those of cohorts", || {
        let announcement = api.ctl(&["cohort", "show", &cohort_id])["announcement"].clone();
        announcement["state"] == "final" && announcement["txid"] == last["txid"]
    });
    for member in members {
        assert_eq!(member.end().0, Some(0));
    }
}

#[actix_rt::test]
async fn a_standing_cohort_is_operated_by_ctl() {
    let Some((blocks, mut faucet, source, mut api)) = on_a_node("control-standing").await else { return };
    let terms = ["standing=true", "min-participants=2", "max-participants=5", "absent=wait", "min-interval=1s"];
    let terms: Vec<&str> = terms.iter().flat_map(|term| ["--set", term]).collect();
    let withdrawn = id(&api.ctl(&[&["standing", "create"][..], &terms].concat()));
    api.ctl(&["standing", "cancel", &withdrawn, "--reason", "a typing error"]);
    eventually("it is gone", || api.ctl(&["standing", "list"])["standing"] == json!([]));
    api.ctl(&[&["template", "put", "long"][..], &terms].concat());
    let cohort_id = id(&api.ctl(&["standing", "create", "--template", "long"]));
    let seats: Vec<Program> = ["one", "two"]
        .iter()
        .map(|name| {
            let place = api.directory.join(name);
            for part in ["dids", "updates", "out"] {
                fs::create_dir_all(place.join(part)).unwrap();
            }
            let file = identity(&place, "seat.id");
            identity(&place.join("dids"), "own.id");
            let [dids, updates, out, state] = ["dids", "updates", "out", "state"].map(|part| path(&place, part));
            let places = ["--dids", &dids, "--updates", &updates, "--out", &out, "--state", &state];
            let chain = ["--chain", &source, "--chain-poll", "200ms", "--confirmations", "2"];
            let fixed =
                ["join", "--standing", "--service", &api.service.url, "--identity", &file, "--events", "json"];
            Program::start(&[&fixed[..], &places, &chain].concat())
        })
        .collect();
    let show = |api: &Controlled| api.ctl(&["standing", "show", &cohort_id]);
    eventually("both have seats", || show(&api)["admitted"] == 2);
    assert_eq!(api.ctl_run(&["standing", "hold", &cohort_id]).status, Some(1), "not before it has formed");
    api.ctl(&["standing", "finalize", &cohort_id]);
    let formed = api.service.program.event("standing-formed");
    assert_eq!((&formed["cohortId"], &formed["seats"]), (&json!(cohort_id), &json!(2)));
    eventually("both DIDs are registered", || show(&api)["dids"] == 2);
    let listed: Vec<Value> = api.ctl(&["standing", "seats", &cohort_id])["seats"].as_array().unwrap().clone();
    assert!(listed.len() == 2 && listed.iter().all(|seat| seat["dids"] == 1), "{listed:#?}");
    api.ctl(&["standing", "hold", &cohort_id]);
    faucet.pay(&blocks, &script(formed["beaconAddress"].as_str().unwrap()), Amount::from_sat(80_000)).await;
    blocks.mine(2).await;
    api.service.program.event("coin-arrived");
    let coins = api.ctl(&["coins", "list"]);
    assert_eq!(coins["standing"][0]["coins"][0]["value"], 80_000, "{coins}");
    contains(&api.ctl_run(&["standing", "trigger", &cohort_id]).all(), &["release it first"]);
    let mut api = api.restarted(&["--chain", &source, "--chain-poll", "200ms", "--confirmations", "2"]);
    eventually("it is still held", || show(&api)["held"] == true);
    api.ctl(&["standing", "release", &cohort_id]);
    api.ctl(&["standing", "trigger", &cohort_id, "--kind", "roster"]);
    let opened = api.service.program.event("number-opened");
    eventually("it waits for both seats, which do not come again", || {
        let open = show(&api)["open"].clone();
        let awaited = open["awaited"].as_array().map_or(0, Vec::len);
        (&open["number"], &open["stage"], &open["kind"], awaited)
            == (&opened["number"], &json!("responding"), &json!("roster"), 2)
    });
    contains(&api.ctl_run(&["standing", "cancel", &cohort_id]).all(), &["has formed"]);
    assert_eq!(
        api.ctl(&["standing", "announcements", &cohort_id])["announcements"],
        json!([]),
        "none is signed yet"
    );
    let timeline = api.ctl(&["standing", "timeline", &cohort_id]).to_string();
    contains(&timeline, &["number-opened", "standing.release"]);
    drop(seats);
    let audit = api.audit(100);
    let actions: Vec<&str> = audit.iter().rev().filter_map(|entry| entry["action"].as_str()).collect();
    let expected =
        ["create", "cancel", "create", "hold", "finalize", "hold", "trigger", "release", "trigger", "cancel"];
    let expected: Vec<String> = expected.iter().map(|action| format!("standing.{action}")).collect();
    let standing: Vec<&str> = actions.into_iter().filter(|action| action.starts_with("standing.")).collect();
    assert_eq!(standing, expected, "{audit:#?}");
}
