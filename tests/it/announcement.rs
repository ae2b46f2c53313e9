//! The way of a signal into the chain: a cohort's announcement, driven over a chain in memory and over a real node.

use crate::announcement_support::*;
use bitcoin::Amount;
use std::collections::BTreeSet;

use crate::bitcoind_support::beacon::Beacon;
use btcr2_aggregation::bitcoin::{
    announcement::{AnnouncementFailure, Input, NotFunded},
    chain::{RejectionKind, signal_of},
    notice::AnnouncementNotice as Notice,
};

on_both_chains! {
    a_signal_goes_from_a_deposit_to_its_sixth_confirmation
    a_reorganization_after_two_confirmations_is_lived_through
    an_announcement_that_is_stuck_is_bumped_until_it_is_taken
    of_several_deposits_the_largest_is_spent
    dust_never_blocks
    a_deposit_that_vanishes_before_signing_is_not_relied_on
    a_foreign_spend_raises_an_alarm_and_is_outbid
    a_foreign_spend_in_a_block_ends_it_when_it_is_final
    every_step_survives_a_restart
}

async fn a_signal_goes_from_a_deposit_to_its_sixth_confirmation(mut world: World) -> World {
    world.poll().await;
    let unfunded = world.choose(SIGNAL, None).unwrap_err();
    assert!(matches!(unfunded, NotFunded::NoDeposit { .. }), "{unfunded}");
    let coin = world.deposit(50_000).await;
    let waiting = world.choose(SIGNAL, None).unwrap_err();
    assert!(matches!(waiting, NotFunded::Unconfirmed { .. }), "{waiting}");
    world.mine(1).await;

    let (transaction, value) = world.prepare().await;
    assert_eq!((transaction.input[0].previous_output, value), (coin, Amount::from_sat(50_000)));
    assert_eq!(signal_of(&transaction), Some(SIGNAL));
    let txid = transaction.compute_txid();
    world.feed(Input::Signed { transaction, value }).await;
    assert!(world.blocks.mempool().await.contains(&txid));
    world.poll().await;
    for _ in 0..6 {
        assert!(!world.is_final());
        world.mine(1).await;
    }
    assert!(world.is_final());
    assert_eq!(world.depths(), [1, 2, 3, 4, 5, 6]);
    let names = world.names();
    for (name, times) in [
        ("funding-wanted", 1),
        ("deposit-seen", 2),
        ("announcement-prepared", 1),
        ("announcement-broadcast", 1),
        ("announcement-final", 1),
        ("foreign-spend", 0),
        ("announcement-bumped", 0),
    ] {
        assert_eq!(names.iter().filter(|seen| *seen == name).count(), times, "{name} in {names:?}");
    }
    assert_eq!(names.last().unwrap(), "announcement-final");
    world
}

async fn a_reorganization_after_two_confirmations_is_lived_through(mut world: World) -> World {
    let txid = world.announce(50_000).await;
    world.mine(1).await;
    world.mine(1).await;
    assert_eq!(world.announcing().confirmed.map(|(_, depth)| depth), Some(2));
    world.take_back(2).await;
    assert_eq!(world.announcing().confirmed, None);
    assert_eq!(world.count("announcement-unconfirmed"), 1);
    // Other blocks without it; then one with it.
    world.mine_empty(1).await;
    assert_eq!(world.announcing().confirmed, None);
    assert!(world.blocks.mempool().await.contains(&txid));
    for _ in 0..6 {
        world.mine(1).await;
    }
    assert!(world.is_final());
    assert_eq!(world.depths(), [1, 2, 1, 2, 3, 4, 5, 6]);
    world
}

async fn an_announcement_that_is_stuck_is_bumped_until_it_is_taken(mut world: World) -> World {
    let txid = world.announce(50_000).await;
    let before = world.announcing().bump().rate();
    world.mine_empty(2).await;
    assert!(world.announcing().child.is_none());
    // The target of three blocks has passed.
    world.mine_empty(1).await;
    let first = world.announcing().child.clone().expect("a child");
    let bumped = world.announcing().bump().rate();
    assert!(bumped >= before.checked_mul(3).unwrap().checked_div(2).unwrap(), "{before} {bumped}");
    assert!(world.blocks.mempool().await.contains(&first.transaction.compute_txid()));
    // It is still not taken: the next child takes the place of the first, and pays more.
    world.mine_empty(3).await;
    let second = world.announcing().child.clone().expect("a child");
    assert!(second.fee() > first.fee());
    let mempool = world.blocks.mempool().await;
    assert!(mempool.contains(&txid) && mempool.contains(&second.transaction.compute_txid()));
    assert!(!mempool.contains(&first.transaction.compute_txid()));
    // Up to the ceiling, and no further.
    for _ in 0..8 {
        world.mine_empty(3).await;
    }
    assert!(world.announcing().bump().rate() <= rate(20), "{}", world.announcing().bump().rate());
    assert_eq!(world.count("announcement-stuck"), 1);
    world.mine(6).await;
    assert!(world.is_final());
    assert!(world.count("announcement-bumped") >= 3);
    world
}

async fn of_several_deposits_the_largest_is_spent(mut world: World) -> World {
    let smaller = world.deposit(20_000).await;
    world.mine(1).await;
    let largest = world.deposit(500_000).await;
    world.mine(1).await;
    let as_large = world.deposit(500_000).await;
    world.mine(1).await;
    let (transaction, value) = world.prepare().await;
    // Rule T-4: the largest, of equal ones the deepest.
    assert_eq!((transaction.input[0].previous_output, value), (largest, Amount::from_sat(500_000)));
    world.feed(Input::Signed { transaction, value }).await;
    world.mine(6).await;
    assert!(world.is_final());
    let noticed = world.heard().iter().find_map(|notice| match **notice {
        Notice::AnnouncementFinal { left, .. } => Some(left),
        _ => None,
    });
    assert_eq!(noticed, Some(Amount::from_sat(520_000)));
    let left = world.settings.chain.coins(world.beacon.output.script_pubkey()).await.unwrap();
    let left: BTreeSet<_> = left.deposits.iter().map(|deposit| deposit.outpoint).collect();
    assert_eq!(left, BTreeSet::from([smaller, as_large]));
    world
}

async fn dust_never_blocks(mut world: World) -> World {
    // Thirty members, whose fallback witness is large.
    world.beacon = Beacon::new("thirty", 30, 20);
    world.begin_again().await;
    world.deposit(331).await;
    world.mine(1).await;
    let dust = world.choose(SIGNAL, None).unwrap_err();
    let NotFunded::TooSmall { largest, need, .. } = dust else { panic!("{dust}") };
    assert_eq!(largest, Amount::from_sat(331));
    // Enough for the fee, but nothing would be left to bump with; a better one comes later.
    world.deposit(need.bare.to_sat()).await;
    world.mine(1).await;
    let tight = world.choose(SIGNAL, None).unwrap_err();
    assert!(matches!(tight, NotFunded::Tight { largest, .. } if largest == need.bare), "{tight}");
    assert!(tight.to_string().contains(&format!("at least {} sat", need.at_least.to_sat())), "{tight}");
    let good = world.deposit(10_000).await;
    let waits = world.choose(SIGNAL, None).unwrap_err();
    assert!(matches!(waits, NotFunded::Unconfirmed { .. }), "{waits}");
    world.mine(1).await;
    let (transaction, value) = world.prepare().await;
    assert_eq!((transaction.input[0].previous_output, transaction.output.len()), (good, 2));
    world.feed(Input::Signed { transaction, value }).await;
    world.mine(6).await;
    assert!(world.is_final());
    world
}

async fn a_deposit_that_vanishes_before_signing_is_not_relied_on(mut world: World) -> World {
    let first = world.deposit(20_000).await;
    world.mine(1).await;
    let (transaction, _) = world.prepare().await;
    assert_eq!(transaction.input[0].previous_output, first);
    // The block that held the deposit is taken back, and it stays in the mempool.
    world.take_back(1).await;
    assert!(world.choose(SIGNAL, None).is_err());
    let second = world.deposit(30_000).await;
    world.mine(1).await;
    assert_ne!(first, second);
    let (_, value) = world.prepare().await;
    // The same transaction as before: its coin is back.
    assert_eq!(value, Amount::from_sat(20_000));
    world
}

async fn a_foreign_spend_raises_an_alarm_and_is_outbid(mut world: World) -> World {
    let coin = world.deposit(50_000).await;
    world.mine(1).await;
    let (ours, value) = world.prepare().await;
    let (foreign, hidden) = behind_our_back(&world);
    world.settings.chain.submit(&foreign).await.unwrap();
    world.poll().await;
    world.poll().await;
    assert_eq!(alarms(&mut world), [(coin, foreign.compute_txid())]);
    assert_eq!(foreign_signals(&mut world), [(foreign.compute_txid(), hidden)]);
    // Ours is signed all the same. It pays no more than the other, so it takes a child.
    let txid = ours.compute_txid();
    world.feed(Input::Signed { transaction: ours, value }).await;
    assert_eq!(refusals(&mut world), [RejectionKind::FeeTooLow]);
    // A second one where the first does not pay for replacing what is there.
    world.poll().await;
    world.poll().await;
    let mempool = world.blocks.mempool().await;
    assert!(mempool.contains(&txid) && !mempool.contains(&foreign.compute_txid()), "{mempool:?}");
    world.mine(6).await;
    assert!(world.is_final());
    assert_eq!(alarms(&mut world).len(), 1);
    world
}

async fn a_foreign_spend_in_a_block_ends_it_when_it_is_final(mut world: World) -> World {
    let coin = world.deposit(50_000).await;
    world.mine(1).await;
    let (ours, value) = world.prepare().await;
    let (foreign, hidden) = behind_our_back(&world);
    world.blocks.mine_with(1, std::slice::from_ref(&foreign)).await;
    world.poll().await;
    assert_eq!(alarms(&mut world), [(coin, foreign.compute_txid())]);
    assert_eq!(foreign_signals(&mut world), [(foreign.compute_txid(), hidden)]);
    world.feed(Input::Signed { transaction: ours.clone(), value }).await;
    assert_eq!(refusals(&mut world), [RejectionKind::InputsSpent]);
    // Nothing can be done while a block has it.
    for _ in 0..4 {
        world.mine(1).await;
        assert!(!world.watch.announcement().has_ended());
    }
    world.mine(1).await;
    assert_eq!(world.failure(), &AnnouncementFailure::CoinSpent { by: foreign.compute_txid() });
    assert_eq!((alarms(&mut world).len(), refusals(&mut world).len()), (1, 1));
    world
}

async fn every_step_survives_a_restart(mut world: World) -> World {
    world.restart().await;
    let coin = world.deposit(50_000).await;
    world.restart().await;
    world.mine(1).await;
    world.restart().await;
    let (transaction, value) = world.prepare().await;
    assert_eq!(transaction.input[0].previous_output, coin);
    world.restart().await;
    let (again, _) = world.prepare().await;
    assert_eq!(again.compute_txid(), transaction.compute_txid());
    world.feed(Input::Signed { transaction: transaction.clone(), value }).await;
    world.restart().await;
    // Reported twice, as after a restart between its end and ours.
    world.feed(Input::Signed { transaction, value }).await;
    world.mine_empty(3).await;
    world.restart().await;
    world.mine(2).await;
    world.restart().await;
    world.take_back(1).await;
    world.restart().await;
    world.mine(6).await;
    assert!(world.is_final());
    assert_eq!(world.count("announcement-final"), 1);
    world
}
