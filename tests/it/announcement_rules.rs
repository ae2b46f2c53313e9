//! What an announcement does with time, and with what no node does on request: over a chain in memory.

use std::{collections::BTreeSet, time::Duration};

use crate::announcement_support::*;
use crate::bitcoind_support::beacon::Beacon;
use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Transaction, Txid};
use btcr2_aggregation::{
    actors::events::Event,
    bitcoin::{
        announcement::{AnnouncementFailure, Input},
        chain::{Activity, Deposit, MemoryFees, Place},
        notice::AnnouncementNotice as Notice,
    },
    protocol::{error::RejectCode, machine, output::Change},
};

in_memory! {
    without_a_deposit_it_ends_at_the_deadline
    members_that_do_not_sign_end_it_and_a_late_signature_is_welcome
    an_announcement_that_is_evicted_is_handed_in_again
    an_end_is_delivered_at_each_start_until_it_is_acknowledged
    a_fallback_that_pays_too_little_gets_its_child_at_once
    an_estimator_that_lies_or_fails_is_held
    change_that_is_not_ours_cannot_bump
    a_chain_out_of_reach_is_said_once
    a_chain_that_stands_still_is_said
    nothing_is_handed_in_while_a_block_has_another_spend
    what_is_held_back_is_broadcast_when_it_is_released
    a_spend_that_no_member_approved_ends_a_hold
    what_was_prepared_or_signed_is_not_foreign
    a_cohort_that_fails_is_given_up
    what_does_not_fit_is_refused
    deposits_without_end_cannot_push_out_the_coin
}

async fn without_a_deposit_it_ends_at_the_deadline(mut world: World) -> World {
    let deadline = machine::Machine::deadline(world.watch.announcement()).unwrap();
    assert_eq!(deadline.since(world.settings.clock.now()), world.rules.funding_window);
    world.feed(Input::Tick).await;
    pass(world.rules.funding_window - Duration::from_millis(1)).await;
    world.feed(Input::Tick).await;
    assert!(!world.watch.announcement().has_ended());
    world.poll().await;
    assert!(!world.watch.announcement().has_ended());
    pass(Duration::from_millis(1)).await;
    world.poll().await;
    assert_eq!(world.failure(), &AnnouncementFailure::NotFunded);
    world
}

/// The names of the ends that a host receives of a previous run, and acknowledges if `acknowledge`.
async fn ends(world: &World, acknowledge: bool) -> Vec<&'static str> {
    let (mut events, mut ends) = (world.watch.announcements.events(), Vec::new());
    while let Ok(Some((cursor, event))) = tokio::time::timeout(Duration::from_secs(1), events.next()).await {
        if acknowledge {
            events.ack(&cursor).await.unwrap();
        }
        if let Event::Notice(notice) = event
            && cursor.is_decisive()
        {
            ends.push((&*notice).into());
        }
    }
    ends
}

/// A transaction that is signed while it is held back.
async fn held(world: &mut World) -> Txid {
    world.deposit(50_000).await;
    world.mine(1).await;
    let (transaction, value) = world.prepare().await;
    let txid = transaction.compute_txid();
    world.feed(Input::Hold { held: true }).await;
    world.feed(Input::Signed { transaction, value }).await;
    txid
}

async fn what_is_held_back_is_broadcast_when_it_is_released(mut world: World) -> World {
    let txid = held(&mut world).await;
    pass(world.rules.rebroadcast * 2).await;
    // Blocks pass, so that it would be bumped.
    world.mine(20).await;
    world.restart().await;
    world.poll().await;
    assert!(world.watch.announcement().is_held());
    assert_eq!(world.blocks.mempool().await, []);
    assert_eq!([world.count("announcement-bumped"), world.count("announcement-rebroadcast")], [0, 0]);
    world.feed(Input::Hold { held: false }).await;
    world.poll().await;
    assert_eq!(world.blocks.mempool().await, [txid]);
    let late = world.watch.feed(Input::Hold { held: true }).await.unwrap().unwrap_err();
    assert!(late.detail.contains("broadcast"), "{late}");
    world.mine(world.rules.confirmations).await;
    assert!(world.is_final());
    assert!(world.watch.feed(Input::Hold { held: true }).await.unwrap().is_err());
    world
}

async fn a_spend_that_no_member_approved_ends_a_hold(mut world: World) -> World {
    let txid = held(&mut world).await;
    let (foreign, _) = behind_our_back(&world);
    world.blocks.chain().submit(&foreign).await.unwrap();
    world.poll().await;
    world.poll().await;
    assert!(!world.watch.announcement().is_held());
    assert_eq!(world.count("announcement-released"), 1);
    assert!(world.announcing().txid == txid && world.count("foreign-spend") == 1);
    world
}

async fn an_end_is_delivered_at_each_start_until_it_is_acknowledged(mut world: World) -> World {
    world.deposit(50_000).await;
    world.mine(1).await;
    let (transaction, value) = world.prepare().await;
    assert_eq!(ends(&world, true).await, [""; 0], "it has not ended");
    pass(world.rules.signing_window).await;
    world.feed(Input::Tick).await;
    for acknowledge in [false, true] {
        world.restart().await;
        assert_eq!(ends(&world, acknowledge).await, ["announcement-failed"]);
    }
    world.restart().await;
    assert_eq!(ends(&world, false).await, [""; 0]);
    // The late signature leads to another end.
    world.feed(Input::Signed { transaction, value }).await;
    world.mine(6).await;
    assert!(world.is_final());
    for acknowledge in [false, true] {
        world.restart().await;
        assert_eq!(ends(&world, acknowledge).await, ["announcement-final"]);
    }
    world.restart().await;
    assert_eq!(ends(&world, false).await, [""; 0]);
    world
}

async fn members_that_do_not_sign_end_it_and_a_late_signature_is_welcome(mut world: World) -> World {
    world.deposit(50_000).await;
    world.mine(1).await;
    let (transaction, value) = world.prepare().await;
    pass(world.rules.signing_window).await;
    world.feed(Input::Tick).await;
    assert_eq!(world.failure(), &AnnouncementFailure::NotSigned);
    world.feed(Input::Signed { transaction, value }).await;
    world.mine(6).await;
    assert!(world.is_final());
    world
}

async fn an_announcement_that_is_evicted_is_handed_in_again(mut world: World) -> World {
    let txid = world.announce(50_000).await;
    let chain = world.memory_chain();
    chain.evict(&txid);
    world.poll().await;
    assert!(world.blocks.mempool().await.contains(&txid));
    assert_eq!((world.count("announcement-rebroadcast"), world.count("announcement-broadcast")), (1, 2));
    // A chain that was out of reach when it was first handed in: at the next occasion.
    let chain = world.memory_chain();
    chain.evict(&txid);
    chain.set_reachable(false);
    world.poll().await;
    let chain = world.memory_chain();
    chain.set_reachable(true);
    world.poll().await;
    pass(world.rules.rebroadcast).await;
    world.feed(Input::Tick).await;
    assert!(world.blocks.mempool().await.contains(&txid));
    world
}

async fn a_fallback_that_pays_too_little_gets_its_child_at_once(mut world: World) -> World {
    // Thirty members: the fallback witness is far larger than the key path's.
    world.beacon = Beacon::new("thirty", 30, 20);
    world.begin_again().await;
    world.deposit(100_000).await;
    world.mine(1).await;
    let wanted = world.wanted(SIGNAL, Some(rate(10)));
    world.feed(Input::Prepare(wanted)).await;
    let prepared = world.watch.announcement().prepared(&SIGNAL).unwrap().clone();
    assert_eq!(prepared.rate, rate(10));
    let transaction = world.beacon.sign(&prepared.transaction, prepared.coin.value);
    world.feed(Input::Signed { transaction, value: prepared.coin.value }).await;
    assert!(world.announcing().child.is_some());
    assert_eq!(world.announcing().bump().rate(), rate(10));
    assert_eq!(world.blocks.mempool().await.len(), 2);
    world
}

async fn an_estimator_that_lies_or_fails_is_held(mut world: World) -> World {
    world.deposit(100_000).await;
    world.mine(1).await;
    let chain = world.memory_chain();
    for (fees, expected) in [
        (MemoryFees::Estimate(rate(7)), rate(7)),
        (MemoryFees::Estimate(rate(1_000_000)), rate(20)),
        (MemoryFees::Estimate(FeeRate::ZERO), rate(1)),
        (MemoryFees::Unknown, rate(1)),
        (MemoryFees::Failing, rate(1)),
    ] {
        chain.set_fees(fees);
        let estimate = world.settings.chain.fee_estimate(world.rules.fees.target()).await.ok().flatten();
        let prepared = world.choose(SIGNAL, estimate).unwrap();
        assert_eq!(prepared.rate, expected);
        let fee = prepared.coin.value - prepared.transaction.output[0].value;
        let vsize = btcr2_aggregation::protocol::output::key_path_vsize(&prepared.transaction);
        assert!(fee <= rate(20).fee_vb(vsize).unwrap());
    }
    // While it is stuck too: the package stays below the ceiling whatever is claimed.
    chain.set_fees(MemoryFees::Unknown);
    let (transaction, value) = world.prepare().await;
    world.feed(Input::Signed { transaction, value }).await;
    chain.set_fees(MemoryFees::Estimate(rate(1_000_000)));
    world.mine_empty(4).await;
    assert_eq!(world.announcing().bump().rate(), rate(20));
    chain.set_fees(MemoryFees::Failing);
    world.mine_empty(4).await;
    assert_eq!(world.announcing().bump().rate(), rate(20));
    world
}

async fn change_that_is_not_ours_cannot_bump(mut world: World) -> World {
    world.rules.change = Change::Beacon;
    world.begin_again().await;
    world.announce(50_000).await;
    world.mine_empty(9).await;
    assert!(world.announcing().child.is_none());
    assert_eq!(world.count("announcement-stuck"), 1);
    world
}

async fn a_chain_out_of_reach_is_said_once(mut world: World) -> World {
    world.deposit(50_000).await;
    let chain = world.memory_chain();
    chain.set_reachable(false);
    for _ in 0..3 {
        world.poll().await;
    }
    assert_eq!((world.count("chain-unavailable"), world.count("chain-available")), (1, 0));
    chain.set_reachable(true);
    world.poll().await;
    assert_eq!((world.count("chain-unavailable"), world.count("chain-available")), (1, 1));
    world
}

async fn a_chain_that_stands_still_is_said(mut world: World) -> World {
    world.announce(50_000).await;
    world.mine(1).await;
    pass(world.rules.stall).await;
    world.feed(Input::Tick).await;
    world.feed(Input::Tick).await;
    assert_eq!(world.count("chain-stalled"), 1);
    world.mine(1).await;
    pass(world.rules.stall - Duration::from_secs(1)).await;
    world.feed(Input::Tick).await;
    assert_eq!(world.count("chain-stalled"), 1);
    world
}

async fn nothing_is_handed_in_while_a_block_has_another_spend(mut world: World) -> World {
    world.deposit(50_000).await;
    world.mine(1).await;
    let (ours, value) = world.prepare().await;
    let (foreign, _) = behind_our_back(&world);
    world.blocks.mine_with(1, std::slice::from_ref(&foreign)).await;
    world.poll().await;
    world.feed(Input::Signed { transaction: ours.clone(), value }).await;
    pass(world.rules.rebroadcast * 2).await;
    world.poll().await;
    world.feed(Input::Tick).await;
    assert_eq!(world.count("announcement-rebroadcast"), 0);
    // Out of the block again, it is worth a try.
    world.take_back(1).await;
    assert_eq!(world.count("announcement-rebroadcast"), 1);
    world
}

async fn what_was_prepared_or_signed_is_not_foreign(mut world: World) -> World {
    world.deposit(50_000).await;
    world.mine(1).await;
    let (transaction, value) = world.prepare().await;
    // On the chain before we are notified that it is signed.
    world.settings.chain.submit(&transaction).await.unwrap();
    world.poll().await;
    assert_eq!(world.count("foreign-spend"), 0);
    // Signed without our having prepared it, and mined before the first look: nothing of that was written down.
    world.memory_chain().set_reachable(false);
    world.begin_again().await;
    world.feed(Input::Signed { transaction, value }).await;
    world.memory_chain().set_reachable(true);
    world.mine(6).await;
    assert!(world.is_final());
    assert_eq!(world.count("foreign-spend"), 0);
    world
}

async fn a_cohort_that_fails_is_given_up(mut world: World) -> World {
    world.deposit(50_000).await;
    let reason = "no participant joined".to_owned();
    world.feed(Input::CohortFailed { reason: reason.clone() }).await;
    assert_eq!(world.failure(), &AnnouncementFailure::Cohort { reason });
    let left = world.heard().iter().find_map(|notice| match **notice {
        Notice::AnnouncementFailed { left, .. } => Some(left),
        _ => None,
    });
    assert_eq!(left, Some(Amount::from_sat(50_000)));
    world.mine(1).await;
    world
}

async fn what_does_not_fit_is_refused(mut world: World) -> World {
    let other = Input::Watch { script: ScriptBuf::new_op_return([1]) };
    let refused = world.watch.feed(other).await.unwrap().unwrap_err();
    assert_eq!(refused.code, RejectCode::WrongPhase);
    world.announce(50_000).await;
    let state = world.watch.announcement().state().clone();
    let mut other = Transaction::clone(&world.announcing().transaction);
    other.output[0].value -= Amount::from_sat(1);
    let value = Amount::from_sat(50_000);
    let refused = world.watch.feed(Input::Signed { transaction: other, value }).await.unwrap().unwrap_err();
    assert_eq!(refused.code, RejectCode::WrongPhase);
    let wanted = world.wanted(SIGNAL, None);
    let refused = world.watch.feed(Input::Prepare(wanted)).await.unwrap();
    assert_eq!(refused.unwrap_err().code, RejectCode::WrongPhase);
    world.feed(Input::CohortFailed { reason: "late".to_owned() }).await;
    let txid = Txid::from_raw_hash(bitcoin::hashes::Hash::all_zeros());
    world.feed(Input::Submitted { txid, result: Ok(()) }).await;
    assert_eq!(world.watch.announcement().state(), &state);
    world
}

async fn deposits_without_end_cannot_push_out_the_coin(mut world: World) -> World {
    let coin = world.deposit(50_000).await;
    world.mine(1).await;
    world.prepare().await;
    let tip = world.settings.chain.tip().await.unwrap();
    let place = Place::Block(tip.block);
    let deposits = (0..2_000).map(|vout| Deposit {
        outpoint: OutPoint { txid: coin.txid, vout: vout + 10 },
        value: Amount::from_sat(60_000 + u64::from(vout)),
        place,
        coinbase: false,
    });
    let activity = Activity { tip, deposits: deposits.collect(), spends: Vec::new() };
    let since = tip.block.height + 1;
    world.feed(Input::Observed { activity, since, estimate: None, minimum: None, known: BTreeSet::new() }).await;
    let known = &world.watch.announcement().sight().deposits;
    assert_eq!(known.len(), 256);
    assert!(known.contains_key(&coin));
    // Of the rest, the largest.
    assert!(
        known.values().all(|deposit| deposit.outpoint == coin || deposit.value.to_sat() >= 60_000 + 2_000 - 255)
    );
    world
}
