//! Which coin an announcement waits for, what it reports to its operator about the coins that it needs, and the fees of the node.

use crate::announcement_support::*;
use crate::bitcoind_support::faucet::Wallet;
use bitcoin::Amount;
use btcr2_aggregation::{
    bitcoin::{
        announcement::{AnnouncementEvent, Input, Need, NotFunded},
        chain::{Deposit, MemoryFees},
    },
    protocol::output::Change,
};
use serde_json::json;

on_both_chains! {
    a_block_reward_waits_for_its_maturity
}

in_memory! {
    a_coin_that_leaves_nothing_to_bump_with_is_taken_late
    what_a_deposit_needs_is_told_with_the_address
    a_deposit_that_is_too_small_is_told_at_once
    what_is_suggested_pays_for_two_bumps
    the_nodes_minimum_bounds_the_fee
    a_ceiling_below_the_minimum_is_named
    a_node_that_lost_its_blocks_loses_nothing
    where_change_went_and_what_was_paid_is_told_at_the_end
    change_that_goes_elsewhere_is_not_bumped_from
}

async fn a_block_reward_waits_for_its_maturity(mut world: World) -> World {
    let script = world.beacon.output.script_pubkey().to_owned();
    world.blocks.mine_to(1, &script).await;
    world.poll().await;
    let height = world.watch.announcement().sight().tip.unwrap().block.height;
    let waits = world.choose(SIGNAL, None).unwrap_err();
    assert!(matches!(waits, NotFunded::Immature { height: at, .. } if at == height + 100), "{waits}");
    // One that can be spent is not held back by it.
    let small = world.deposit(50_000).await;
    world.mine(1).await;
    assert_eq!(world.choose(SIGNAL, None).unwrap().coin.outpoint, small);
    world.mine(97).await;
    assert_eq!(world.choose(SIGNAL, None).unwrap().coin.outpoint, small);
    world.mine(1).await;
    let (transaction, value) = world.prepare().await;
    assert!(value > Amount::from_sat(50_000));
    world.feed(Input::Signed { transaction: transaction.clone(), value }).await;
    assert!(world.blocks.mempool().await.contains(&transaction.compute_txid()));
    world
}

async fn a_coin_that_leaves_nothing_to_bump_with_is_taken_late(mut world: World) -> World {
    let need = Need::of(&world.beacon.output, &world.rules, rate(1)).unwrap();
    let tight = world.deposit(need.at_least.to_sat() - 1).await;
    world.mine(1).await;
    assert!(matches!(world.choose(SIGNAL, None), Err(NotFunded::Tight { .. })));
    let wanted = world.wanted(SIGNAL, None);
    world.feed(Input::Prepare(wanted)).await;
    assert!(world.watch.announcement().prepared(&SIGNAL).is_none());
    pass(world.rules.funding_window * 3 / 4).await;
    assert_eq!(world.prepare().await.0.input[0].previous_output, tight);
    // The next cohort has a better one from the beginning.
    world.begin_again().await;
    world.poll().await;
    let good = world.deposit(need.at_least.to_sat()).await;
    world.mine(1).await;
    assert_eq!(world.prepare().await.0.input[0].previous_output, good);
    world
}

/// The last notice of a kind, as JSON.
fn last(world: &mut World, kind: &str) -> serde_json::Value {
    let all: Vec<_> = world.heard().iter().map(|notice| serde_json::to_value(&**notice).unwrap()).collect();
    all.into_iter().rfind(|notice| notice["event"] == kind).unwrap_or_default()
}

async fn what_a_deposit_needs_is_told_with_the_address(mut world: World) -> World {
    world.memory_chain().set_fees(MemoryFees::Estimate(rate(5)));
    world.begin_again().await;
    let need = Need::of(&world.beacon.output, &world.rules, rate(5)).unwrap();
    let event = last(&mut world, "funding-wanted");
    assert_eq!(event["atLeast"], need.at_least.to_sat());
    assert_eq!(event["suggested"], need.suggested.to_sat());
    let text = world.heard().last().unwrap().text();
    assert!(text.contains(&format!("deposit at least {} sat", need.at_least.to_sat())), "{text}");
    assert!(!text.contains('\n'), "a notice is one line: {text}");
    assert!(need.bare < need.at_least && need.at_least < need.suggested, "{need:?}");
    // Not without the chain, but the address all the same.
    world.memory_chain().set_reachable(false);
    world.begin_again().await;
    assert_eq!(world.count("funding-wanted"), 3);
    world.memory_chain().set_reachable(true);
    world
}

async fn a_deposit_that_is_too_small_is_told_at_once(mut world: World) -> World {
    world.begin_again().await;
    let need = Need::of(&world.beacon.output, &world.rules, rate(1)).unwrap();
    let small = world.deposit(330).await;
    // In the mempool.
    let event = last(&mut world, "deposit-too-small");
    assert_eq!(event["outpoint"], json!(small.to_string()));
    assert_eq!((&event["value"], &event["atLeast"]), (&json!(330), &json!(need.at_least.to_sat())));
    world.mine(1).await;
    world.poll().await;
    assert_eq!(world.count("deposit-too-small"), 1);
    world.deposit(need.at_least.to_sat() - 1).await;
    assert_eq!(world.count("deposit-too-small"), 2);
    // With one that suffices, what else is there does not matter.
    world.deposit(need.at_least.to_sat()).await;
    world.deposit(400).await;
    assert_eq!(world.count("deposit-too-small"), 2);
    world
}

async fn what_is_suggested_pays_for_two_bumps(mut world: World) -> World {
    let need = Need::of(&world.beacon.output, &world.rules, rate(4)).unwrap();
    world.deposit(need.suggested.to_sat()).await;
    world.mine(1).await;
    world.memory_chain().set_fees(MemoryFees::Estimate(rate(4)));
    world.poll().await;
    let wanted = world.wanted(SIGNAL, Some(rate(4)));
    world.feed(Input::Prepare(wanted)).await;
    let prepared = world.watch.announcement().prepared(&SIGNAL).unwrap().clone();
    // The larger path: the members fall back.
    let transaction = world.beacon.sign(&prepared.transaction, prepared.coin.value);
    world.feed(Input::Signed { transaction, value: prepared.coin.value }).await;
    for times in 1..=2 {
        let before = world.announcing().bump().rate();
        world.mine_empty(3).await;
        let after = world.announcing().bump().rate();
        assert!(after.to_sat_per_kwu() >= before.to_sat_per_kwu() * 5 / 4, "bump {times}: {before} {after}");
    }
    assert_eq!(world.count("announcement-stuck"), 0);
    world
}

async fn the_nodes_minimum_bounds_the_fee(mut world: World) -> World {
    world.deposit(100_000).await;
    world.mine(1).await;
    world.memory_chain().set_min_relay(rate(9));
    let minimum = world.settings.chain.minimum_fee().await.unwrap();
    let mut wanted = world.wanted(SIGNAL, Some(rate(3)));
    wanted.minimum = minimum;
    world.feed(Input::Prepare(wanted)).await;
    let prepared = world.watch.announcement().prepared(&SIGNAL).unwrap().clone();
    assert_eq!(prepared.rate, rate(9));
    let transaction = world.beacon.sign(&prepared.transaction, prepared.coin.value);
    world.feed(Input::Signed { transaction, value: prepared.coin.value }).await;
    world.poll().await;
    assert_eq!(refusals(&mut world), []);
    // It rises while the announcement waits: a bump pays for that as well.
    world.memory_chain().set_min_relay(rate(19));
    world.mine_empty(3).await;
    assert!(world.announcing().bump().rate() >= rate(19), "{}", world.announcing().bump().rate());
    world
}

async fn a_ceiling_below_the_minimum_is_named(mut world: World) -> World {
    world.deposit(100_000).await;
    world.mine(1).await;
    let mut wanted = world.wanted(SIGNAL, Some(rate(3)));
    wanted.minimum = Some(rate(21));
    let refused = world.watch.announcement().choose(world.settings.clock.now(), &wanted).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("20 sat/vB") && text.contains("below 21") && text.contains("mempoolminfee"), "{text}");
    // While it waits to be confirmed too.
    let (transaction, value) = world.prepare().await;
    world.feed(Input::Signed { transaction, value }).await;
    world.memory_chain().set_min_relay(rate(30));
    world.mine_empty(3).await;
    let stuck = last(&mut world, "announcement-stuck");
    assert!(stuck["reason"].as_str().unwrap().contains("below what the node takes"), "{stuck}");
    world
}

async fn a_node_that_lost_its_blocks_loses_nothing(mut world: World) -> World {
    world.deposit(50_000).await;
    world.mine(20).await;
    // It reads them again, and is asked meanwhile; the funding window passes too.
    let sight = world.watch.announcement().sight().clone();
    world.blocks.take_back(19).await;
    pass(world.rules.funding_window * 2).await;
    world.poll().await;
    assert_eq!((world.count("chain-unavailable"), world.count("deposit-gone")), (1, 0));
    assert!(world.watch.announcement().sight() == &sight && !world.watch.announcement().has_ended());
    world.mine(20).await;
    world.prepare().await;
    world
}

fn address(script: &bitcoin::Script) -> serde_json::Value {
    json!(bitcoin::Address::from_script(script, bitcoin::Network::Regtest).unwrap().to_string())
}

async fn where_change_went_and_what_was_paid_is_told_at_the_end(mut world: World) -> World {
    let own = world.settings.change_key.as_ref().unwrap().script_pubkey().to_owned();
    world.announce(50_000).await;
    let prepared = last(&mut world, "announcement-prepared");
    let fee = prepared["fee"].as_u64().unwrap();
    assert_eq!((&prepared["change"], &prepared["changeAddress"]), (&json!(50_000 - fee), &address(&own)));
    world.mine_empty(3).await;
    let child = world.announcing().child.clone().expect("a child");
    world.mine(6).await;
    let event = last(&mut world, "announcement-final");
    let child_fee = child.fee().to_sat();
    assert_eq!((&event["fee"], &event["childFee"]), (&json!(fee), &json!(child_fee)));
    assert_eq!((&event["change"], &event["changeAddress"]), (&json!(50_000 - fee - child_fee), &address(&own)));
    let coins = world.settings.chain.coins(&own).await.unwrap().deposits;
    assert_eq!(coins.iter().map(|coin| coin.value.to_sat()).collect::<Vec<_>>(), [50_000 - fee - child_fee]);
    let text = world.heard().last().unwrap().text();
    assert!(text.contains(&format!("for {} sat; change of", fee + child_fee)), "{text}");
    world
}

async fn change_that_goes_elsewhere_is_not_bumped_from(mut world: World) -> World {
    let elsewhere = Wallet::new(8).script();
    world.rules.change = Change::To(elsewhere.clone());
    world.rules.change_is_ours = false;
    world.begin_again().await;
    // No change has to pay for a bump: what pays for the announcement will do.
    let need = Need::of(&world.beacon.output, &world.rules, rate(1)).unwrap();
    assert_eq!(need.at_least, need.bare);
    world.announce(50_000).await;
    world.mine_empty(9).await;
    assert!(world.announcing().child.is_none());
    assert_eq!(world.count("announcement-stuck"), 1);
    world.mine(6).await;
    let event = last(&mut world, "announcement-final");
    assert_eq!((&event["changeAddress"], &event["childFee"]), (&address(&elsewhere), &json!(0)));
    world
}

#[test]
fn a_deposit_of_an_old_journal_is_no_reward() {
    let old = json!({
        "outpoint": format!("{}:1", "ab".repeat(32)), "value": 5, "place": "mempool",
    });
    let deposit: Deposit = serde_json::from_value(old.clone()).unwrap();
    assert!(!deposit.coinbase);
    // And a new one of that kind is what an old program reads.
    assert_eq!(serde_json::to_value(deposit).unwrap(), old);
    let seen = json!({ "event": "deposit-seen", "at": 1, "deposit": old });
    assert!(matches!(
        serde_json::from_value::<AnnouncementEvent>(seen).unwrap(),
        AnnouncementEvent::DepositSeen { deposit: read, .. } if read == deposit
    ));
}
