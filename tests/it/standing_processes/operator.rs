//! What an operator of a standing cohort does: pays, joins coins, opens numbers, bumps.

use bitcoin::{Address, Amount, OutPoint, TxOut};
use serde_json::{Value, json};

use super::world::{DEPTH, Setting, World};
use crate::{
    bitcoind_support::faucet::Wallet,
    member_support::json as json_of,
    support::{contains, verify::text},
};

/// A cohort of two seats whose announcements have an output of the operator, and whose DIDs list the beacon.
async fn world(name: &str, sat: u64) -> Option<(World, Wallet, Vec<usize>)> {
    let wallet = Wallet::new(21);
    let address = Address::from_script(&wallet.script(), bitcoin::Network::Regtest).unwrap();
    let output = format!("{address}:1000");
    let terms = ["--absent", "wait", "--min-interval", "1s", "--fee-rate", "1", "--fee-target", "3"];
    let terms = [&terms[..], &["--operator-output", &output]].concat();
    let mut world = World::formed(&Setting { name, beacon: "cas", seats: 2, terms: &terms }, 1, sat).await?;
    world.stop(&[0, 1]);
    let dids = (0..2).map(|seat| world.mint(seat)).collect();
    for seat in 0..2 {
        world.start(seat, &[]);
        world.event(seat, "rows-acknowledged");
    }
    Some((world, wallet, dids))
}

/// Asks for a number by a signal, again while the terms' second has not passed, or another number is open: which one.
fn ask(world: &mut World, signal: &str, kind: &str) -> Value {
    loop {
        world.service.program.signal(signal);
        let answer = world.service.program.any_where(|event| {
            event["event"] == "number-opened" && event["kind"] == kind
                || event["event"] == "warning" && text(&event["message"]).contains("no number was opened")
        });
        if answer["event"] == "number-opened" {
            return answer["number"].clone();
        }
    }
}

#[actix_rt::test]
async fn a_low_coin_is_joined_with_a_deposit() {
    let Some((mut world, _, dids)) = world("standing-refresh", 4_000).await else { return };
    world.prepare(dids[0], "first");
    let signed = world.signed();
    world.sent(&signed).await;
    // 197 vB by key path, with the output of the operator; there is no fallback.
    let balance = 4_000 - 1_000 - 197;
    assert_eq!(signed["balance"], balance);
    assert_eq!(signed["announcementsLeft"], json!([2, 2]));
    let low = world.service.program.event("balance-low");
    assert_eq!((&low["balance"], &low["announcementsLeft"]), (&json!(balance), &json!([2, 2])));
    world.blocks.mine(DEPTH).await;
    // Without a request.
    world.deposit(50_000).await;
    world.service.program.event_where("number-opened", |event| event["kind"] == "refresh");
    let joined = world.signed();
    assert!(joined["balance"].as_u64().unwrap() > 51_000, "{joined:#}");
    world.sent(&joined).await;
    world.blocks.mine(DEPTH).await;
    let number = joined["number"].clone();
    world.service.program.event_where("number-confirmed", |event| event["number"] == number);

    // A coin that is not low is joined with another one when the operator asks for it.
    world.service.program.signal("-USR2");
    let refused = |event: &Value| {
        text(&event["message"]).starts_with("SIGUSR2: no number was opened: a refresh joins two coins")
    };
    world.service.program.event_where("warning", refused);
    world.deposit(20_000).await;
    ask(&mut world, "-USR2", "refresh");
    let joined = world.is_announced().await;
    assert!(joined["balance"].as_u64().unwrap() > 70_000, "{joined:#}");

    // A number without need ends without a transaction.
    let number = ask(&mut world, "-USR1", "announcement");
    let idle = world.service.program.event_where("number-idle", |event| event["number"] == number);
    assert_eq!(idle["absent"], json!([]));
    world.prepare(dids[1], "second");
    world.announce(None).await;
    world.resolve(None).await;
}

#[actix_rt::test]
async fn what_waits_is_bumped_by_the_operators_output() {
    let Some((mut world, wallet, dids)) = world("standing-bump", 30_000).await else { return };
    world.prepare(dids[0], "first");
    let first = world.signed();
    world.sent(&first).await;
    world.prepare(dids[1], "second");
    let second = world.signed();
    world.sent(&second).await;
    // Blocks pass without them.
    world.blocks.mine_empty(3).await;
    let waits = world.service.program.event("number-unconfirmed");
    assert_eq!(waits["number"], first["number"]);
    assert_eq!(waits["txid"], first["txid"]);
    assert_eq!((&waits["feeRate"], &waits["lastNumber"]), (&json!(1.0), &second["number"]));
    let bump: OutPoint = text(&waits["bump"]).parse().unwrap();
    assert_eq!((bump.txid.to_string().as_str(), bump.vout), (text(&second["txid"]), 1));
    assert_eq!(waits["bumpValue"], 1_000);
    // Its wallet does what is advised, and the child pays for all of the chain.
    let output = TxOut { value: Amount::from_sat(330), script_pubkey: wallet.script() };
    let child = wallet.spend(&[(bump, Amount::from_sat(1_000))], vec![output]);
    world.blocks.chain().submit(&child).await.unwrap();
    let entry = world.blocks.node().rpc("getmempoolentry", json!([first["txid"]])).await;
    assert_eq!(entry["descendantcount"], 3, "{entry:#}");
    world.blocks.mine(DEPTH).await;
    for signed in [first, second] {
        world.service.program.event_where("number-confirmed", |event| event["number"] == signed["number"]);
    }
    world.resolve(None).await;
    contains(&world.dids[dids[0]].version.to_string(), &["2"]);

    // The child is in no record of the service: only the chain shows it, with the announcement that it was for.
    let state = world.service_state();
    let ledger = ["cost", "ledger", "--json", "--state", &state];
    let announcements = |costs: Value| costs["announcements"].as_array().unwrap().clone();
    let recorded = announcements(json_of(&ledger).await);
    assert_eq!(recorded.iter().map(|one| &one["childFee"]).collect::<Vec<_>>(), [&Value::Null, &Value::Null]);
    let source = world.source.clone();
    let seen = announcements(json_of(&[&ledger[..], &["--chain", &source, "--since", "0"]].concat()).await);
    let fees: Vec<_> = seen.iter().map(|one| (&one["fee"], &one["operatorOutput"], &one["childFee"])).collect();
    assert_eq!(
        fees,
        [(&json!(197), &json!(1_000), &json!(0)), (&json!(197), &json!(1_000), &json!(670))],
        "{seen:#?}"
    );

    // What each seat has recorded itself is its part of the service's ledger.
    let part = |costs: &Value, seat: &Value| {
        let of_seat = costs["entries"].as_array().unwrap().iter().filter(|entry| entry["seat"] == *seat);
        let mut part: Vec<Value> = of_seat.cloned().collect();
        // Each has its own clock, and its own look at the chain.
        part.iter_mut().for_each(|entry| (entry["at"], entry["state"]) = (Value::Null, Value::Null));
        part
    };
    let service = json_of(&ledger).await;
    for seat in 0..2 {
        let state = world.seats[seat].file("state");
        let own = json_of(&["cost", "ledger", "--json", "--state", &state]).await;
        let did = own["entries"][0]["seat"].clone();
        assert_eq!(part(&own, &did), part(&service, &did));
        assert_eq!(own["entries"].as_array().unwrap().len(), 2, "its update, and its share of the output: {own:#}");
        assert_eq!(own["comparisons"][0]["own"]["paid"], 1_197);
    }
}
