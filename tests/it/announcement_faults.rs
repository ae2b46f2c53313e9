//! What goes wrong around an announcement: outages, other cohorts at its address, estimates that lie, coins that vanish.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::announcement_support::*;
use crate::bitcoind_support::faucet::Wallet;
use async_trait::async_trait;
use bitcoin::{Amount, BlockHash, FeeRate, Script, Transaction, TxOut, Txid, block::Header};
use btcr2_aggregation::{
    actors::announcement::{Address, Announcements, PrepareError},
    bitcoin::{
        announcement::{AnnouncementEvent, AnnouncementFailure, Input, NotFunded, Prepared, State, Wanted},
        chain::{Activity, Chain, ChainError, ConfirmationTarget, MemoryFees, Tip, TransactionStatus},
        notice::AnnouncementNotice as Notice,
    },
    protocol::{id::CohortId, machine::Machine},
};
use tokio::task::JoinHandle;

in_memory! {
    a_cohort_that_is_funded_is_not_given_up_while_its_members_take_their_time
    a_deposit_that_came_during_an_outage_counts
    two_cohorts_at_one_address_leave_each_other_alone
    a_coin_is_chosen_once_however_many_ask
    a_new_address_is_not_scanned_for_and_an_old_one_is
    a_deposit_before_the_first_successful_look_is_seen
    only_new_blocks_are_read_and_pruned_ones_are_done_without
    nothing_is_prepared_while_the_chain_is_out_of_reach
    who_asks_for_a_transaction_waits_for_its_coin
    an_estimate_that_lies_high_does_not_cost_the_cohort
    a_coin_that_vanished_after_it_was_signed_ends_the_announcement
    a_child_that_did_not_get_through_is_handed_in_again
    what_must_not_be_missed_is_told_again_after_a_restart
    what_is_signed_is_not_undone_by_a_late_failure
    an_announcement_goes_on_after_a_panic
    an_announcement_that_panics_again_and_again_is_given_up
}

async fn a_cohort_that_is_funded_is_not_given_up_while_its_members_take_their_time(mut world: World) -> World {
    world.deposit(50_000).await;
    pass(world.rules.funding_window * 2).await;
    world.feed(Input::Tick).await;
    world.mine(1).await;
    assert!(!world.watch.announcement().has_ended());
    world.prepare().await;
    world
}

async fn a_deposit_that_came_during_an_outage_counts(mut world: World) -> World {
    world.poll().await;
    let chain = world.memory_chain();
    let script = world.beacon.output.script_pubkey().to_owned();
    world.faucet.pay(&world.blocks, &script, Amount::from_sat(50_000)).await;
    chain.set_reachable(false);
    pass(world.rules.funding_window * 2).await;
    // As a service that was down does, and a node that was.
    world.feed(Input::Tick).await;
    world.poll().await;
    assert!(!world.watch.announcement().has_ended());
    chain.set_reachable(true);
    world.mine(1).await;
    world.prepare().await;
    world
}

/// Another announcement at the same address.
async fn sibling(world: &World) -> (CohortId, Watch) {
    let cohort_id = CohortId::parse("3f0ab4f2-0f2b-4d7e-9a3f-5b6a0f3e1c22").unwrap();
    let announcements = world.watch.announcements.clone();
    let mut watch = Watch::of(cohort_id.clone(), announcements).await;
    watch.watch(Address::Script(world.beacon.output.script_pubkey().to_owned())).await;
    (cohort_id, watch)
}

async fn two_cohorts_at_one_address_leave_each_other_alone(mut world: World) -> World {
    let first = world.deposit(50_000).await;
    world.mine(1).await;
    let (transaction, value) = world.prepare().await;
    let (other_id, mut other) = sibling(&world).await;
    other.poll().await;
    let taken = |world: &World| world.settings.claims.others(&other_id, world.beacon.output.script_pubkey()).coins;
    let choose = |other: &Watch, world: &World| {
        let wanted = Wanted { taken: taken(world), ..world.wanted(SIGNAL, None) };
        other.announcement().choose(world.settings.clock.now(), &wanted)
    };
    assert!(matches!(choose(&other, &world), Err(NotFunded::NoDeposit { .. })));
    let second = world.deposit(60_000).await;
    world.mine(1).await;
    other.poll().await;
    assert_eq!(choose(&other, &world).unwrap().coin.outpoint, second);
    // The first one's spend is not an alarm to the other: in the mempool, in a block, and after a restart.
    world.feed(Input::Signed { transaction, value }).await;
    other.poll().await;
    world.mine(6).await;
    assert!(world.is_final());
    world.settings.claims = Arc::default();
    world.restart().await;
    let (_, mut other) = sibling(&world).await;
    other.poll().await;
    assert!(other.announcement().sight().spends.contains_key(&first));
    assert_eq!(alarms(&mut world), []);
    world
}

/// Asks an announcement for a transaction.
fn ask(watch: &Watch, world: &World) -> JoinHandle<Result<Prepared, PrepareError>> {
    let (announcements, cohort_id) = (watch.announcements.clone(), watch.cohort_id.clone());
    let output = world.beacon.output.clone();
    actix_rt::spawn(async move { announcements.prepare(&cohort_id, &output, SIGNAL).await })
}

async fn a_coin_is_chosen_once_however_many_ask(mut world: World) -> World {
    world.deposit(50_000).await;
    world.deposit(60_000).await;
    world.mine(1).await;
    let (_, other) = sibling(&world).await;
    let (first, second) = (ask(&world.watch, &world), ask(&other, &world));
    let (first, second) = (first.await.unwrap().unwrap(), second.await.unwrap().unwrap());
    assert_ne!(first.coin.outpoint, second.coin.outpoint);
    world
}

async fn a_new_address_is_not_scanned_for_and_an_old_one_is(mut world: World) -> World {
    let old = world.deposit(50_000).await;
    let chain = world.memory_chain();
    assert_eq!(chain.scans(), 0);
    world.mine(100).await;
    let (_, mut other) = sibling(&world).await;
    other.poll().await;
    assert_eq!(chain.scans(), 1);
    assert!(other.announcement().sight().deposits.contains_key(&old));
    world
}

async fn a_deposit_before_the_first_successful_look_is_seen(mut world: World) -> World {
    let chain = world.memory_chain();
    chain.set_reachable(false);
    world.begin_again().await;
    world.poll().await;
    chain.set_reachable(true);
    let script = world.beacon.output.script_pubkey().to_owned();
    let deposit = world.faucet.pay(&world.blocks, &script, Amount::from_sat(50_000)).await;
    world.blocks.mine(100).await;
    world.poll().await;
    assert!(world.watch.announcement().sight().deposits.contains_key(&deposit));
    world
}

async fn only_new_blocks_are_read_and_pruned_ones_are_done_without(mut world: World) -> World {
    world.deposit(50_000).await;
    world.mine(20).await;
    let chain = world.memory_chain();
    let height = |world: &World| world.watch.announcement().sight().tip.unwrap().block.height;
    chain.set_pruned_below(height(&world) + 1);
    world.mine(1).await;
    assert_eq!((chain.scans(), world.count("chain-unavailable")), (0, 0));
    // Blocks that are gone before they were read.
    let script = world.beacon.output.script_pubkey().to_owned();
    let missed = world.faucet.pay(&world.blocks, &script, Amount::from_sat(60_000)).await;
    world.blocks.mine(30).await;
    chain.set_pruned_below(height(&world) + 10);
    world.poll().await;
    assert_eq!((chain.scans(), world.count("chain-unavailable")), (1, 0));
    assert!(world.watch.announcement().sight().deposits.contains_key(&missed));
    world
}

async fn nothing_is_prepared_while_the_chain_is_out_of_reach(mut world: World) -> World {
    world.deposit(50_000).await;
    world.mine(1).await;
    world.memory_chain().set_reachable(false);
    let refused = ask(&world.watch, &world).await.unwrap().unwrap_err();
    assert!(matches!(refused, PrepareError::Unreachable(_)), "{refused}");
    world.memory_chain().set_reachable(true);
    ask(&world.watch, &world).await.unwrap().unwrap();
    world
}

async fn who_asks_for_a_transaction_waits_for_its_coin(mut world: World) -> World {
    let answer = ask(&world.watch, &world);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(!answer.is_finished());
    let script = world.beacon.output.script_pubkey().to_owned();
    world.faucet.pay(&world.blocks, &script, Amount::from_sat(50_000)).await;
    world.blocks.mine(1).await;
    assert_eq!(answer.await.unwrap().unwrap().coin.value, Amount::from_sat(50_000));
    // Not without limit: the cohort is notified of what is missing.
    world.rules.funding_confirmations = 3;
    world.begin_again().await;
    let refused = ask(&world.watch, &world).await.unwrap().unwrap_err();
    assert!(matches!(refused, PrepareError::NotFunded(NotFunded::Unconfirmed { .. })), "{refused}");
    world
}

async fn an_estimate_that_lies_high_does_not_cost_the_cohort(mut world: World) -> World {
    world.deposit(2_000).await;
    world.mine(1).await;
    world.memory_chain().set_fees(MemoryFees::Estimate(rate(1_000_000)));
    let lie = Some(rate(1_000_000));
    assert!(matches!(world.choose(SIGNAL, lie), Err(NotFunded::TooSmall { .. })));
    pass(world.rules.funding_window * 3 / 4).await;
    let prepared = world.choose(SIGNAL, lie).unwrap();
    assert!(prepared.rate > rate(5) && prepared.rate < rate(20), "{}", prepared.rate);
    // No sat/vB more would do.
    let more = FeeRate::from_sat_per_kwu(prepared.rate.to_sat_per_kwu() + 250);
    let fee = more.fee_vb(btcr2_aggregation::protocol::output::key_path_vsize(&prepared.transaction)).unwrap();
    assert!(fee > Amount::from_sat(2_000) || prepared.transaction.output.len() == 1);
    world
}

async fn a_coin_that_vanished_after_it_was_signed_ends_the_announcement(mut world: World) -> World {
    let script = world.beacon.output.script_pubkey().to_owned();
    let payment = world.faucet.payment(&script, Amount::from_sat(50_000));
    world.settings.chain.submit(&payment).await.unwrap();
    world.mine(1).await;
    let (transaction, value) = world.prepare().await;
    world.feed(Input::Signed { transaction, value }).await;
    // The block is taken back, and the next one pays the deposit's coin to another address.
    let coin = payment.input[0].previous_output;
    let elsewhere = TxOut { value: Amount::from_sat(1_000), script_pubkey: Wallet::new(9).script() };
    let conflict = Wallet::new(7).spend(&[(coin, Amount::from_btc(50.0).unwrap())], vec![elsewhere]);
    world.blocks.take_back(1).await;
    world.blocks.mine_with(1, &[conflict]).await;
    world.poll().await;
    pass(world.rules.rebroadcast).await;
    world.poll().await;
    world.mine(world.rules.confirmations - 1).await;
    assert!(!world.watch.announcement().has_ended());
    world.mine(1).await;
    assert_eq!(world.failure(), &AnnouncementFailure::CoinGone);
    world
}

async fn a_child_that_did_not_get_through_is_handed_in_again(mut world: World) -> World {
    world.announce(50_000).await;
    world.blocks.mine_empty(3).await;
    let script = world.beacon.output.script_pubkey().to_owned();
    let activity = world.settings.chain.activity(&script, 0).await.unwrap();
    world.memory_chain().set_reachable(false);
    world.feed(Input::Observed { activity, since: 0, estimate: None, minimum: None, known: BTreeSet::new() }).await;
    let child = world.announcing().child.clone().expect("a child").transaction.compute_txid();
    world.memory_chain().set_reachable(true);
    world.poll().await;
    assert!(!world.blocks.mempool().await.contains(&child));
    let due = world.watch.announcement().deadline().unwrap();
    pass(due.since(world.settings.clock.now())).await;
    world.feed(Input::Tick).await;
    assert!(world.blocks.mempool().await.contains(&child));
    assert!(world.announcing().child_taken);
    world
}

async fn what_must_not_be_missed_is_told_again_after_a_restart(mut world: World) -> World {
    world.poll().await;
    world.restart().await;
    world.poll().await;
    assert_eq!(world.count("funding-wanted"), 2);
    let coin = world.deposit(50_000).await;
    world.mine(1).await;
    world.prepare().await;
    let (foreign, hidden) = behind_our_back(&world);
    world.settings.chain.submit(&foreign).await.unwrap();
    world.poll().await;
    world.restart().await;
    world.poll().await;
    let txid = foreign.compute_txid();
    assert_eq!(alarms(&mut world), [(coin, txid), (coin, txid)]);
    assert_eq!(foreign_signals(&mut world), [(txid, hidden), (txid, hidden)]);
    world
}

async fn what_is_signed_is_not_undone_by_a_late_failure(mut world: World) -> World {
    world.announce(50_000).await;
    let mut machine = world.watch.announcement().clone();
    let at = world.settings.clock.now();
    machine.apply(&AnnouncementEvent::Failed { at, failure: AnnouncementFailure::NotSigned });
    assert!(matches!(machine.state(), State::Announcing(_)));
    world.mine(6).await;
    let finished = world.watch.announcement().state().clone();
    let mut machine = world.watch.announcement().clone();
    machine.apply(&AnnouncementEvent::Failed { at, failure: AnnouncementFailure::NotFunded });
    assert_eq!(machine.state(), &finished);
    assert!(world.heard().iter().any(|notice| matches!(**notice, Notice::AnnouncementFinal { .. })));
    world
}

/// A chain that panics the next times that it is asked for what a script has.
struct Stumbling {
    chain: Arc<dyn Chain>,
    panics: AtomicU32,
}

impl Stumbling {
    fn stumble(&self) {
        let panics = self.panics.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        assert!(panics.is_err(), "the chain panics, as this test wants");
    }
}

#[async_trait]
impl Chain for Stumbling {
    async fn tip(&self) -> Result<Tip, ChainError> {
        self.chain.tip().await
    }

    async fn block_hash(&self, height: u32) -> Result<Option<BlockHash>, ChainError> {
        self.chain.block_hash(height).await
    }

    async fn header(&self, hash: &BlockHash) -> Result<Option<Header>, ChainError> {
        self.chain.header(hash).await
    }

    async fn coins(&self, script: &Script) -> Result<Activity, ChainError> {
        self.stumble();
        self.chain.coins(script).await
    }

    async fn activity(&self, script: &Script, since: u32) -> Result<Activity, ChainError> {
        self.stumble();
        self.chain.activity(script, since).await
    }

    async fn transaction(&self, txid: &Txid, block: Option<&BlockHash>) -> Result<Option<Transaction>, ChainError> {
        self.chain.transaction(txid, block).await
    }

    async fn status(&self, txid: &Txid, since: u32) -> Result<TransactionStatus, ChainError> {
        self.chain.status(txid, since).await
    }

    async fn fee_estimate(&self, target: ConfirmationTarget) -> Result<Option<FeeRate>, ChainError> {
        self.chain.fee_estimate(target).await
    }

    async fn submit(&self, transaction: &Transaction) -> Result<(), ChainError> {
        self.chain.submit(transaction).await
    }

    async fn submit_package(&self, parent: &Transaction, child: &Transaction) -> Result<(), ChainError> {
        self.chain.submit_package(parent, child).await
    }
}

async fn an_announcement_goes_on_after_a_panic(mut world: World) -> World {
    world.announce(50_000).await;
    let stumbling = Arc::new(Stumbling { chain: world.blocks.chain(), panics: AtomicU32::new(1) });
    world.settings.chain = Arc::clone(&stumbling) as Arc<dyn Chain>;
    world.watch.announcements.stop().await;
    let announcements = Announcements::new(world.settings.clone(), world.rules.clone());
    assert_eq!(announcements.resume().await.unwrap(), [cohort_id()]);
    tokio::time::sleep(world.settings.poll * 2).await;
    assert_eq!(stumbling.panics.load(Ordering::Relaxed), 0, "it was asked");
    world.blocks.mine(6).await;
    tokio::time::sleep(world.settings.poll * 2).await;
    assert_eq!(world.count("announcement-final"), 1);
    announcements.stop().await;
    world.watch = open(&world.rules, &world.settings).await;
    world
}

async fn an_announcement_that_panics_again_and_again_is_given_up(mut world: World) -> World {
    let txid = world.announce(50_000).await;
    let chain = world.blocks.chain();
    world.watch.announcements.stop().await;
    world.settings.chain = Arc::new(Stumbling { chain: Arc::clone(&chain), panics: AtomicU32::new(u32::MAX) });
    let announcements = Announcements::new(world.settings.clone(), world.rules.clone());
    announcements.resume().await.unwrap();
    let gone = world.settings.vitals.failed().await;
    let reason = "its actor panicked 6 times within 60s".to_owned();
    assert_eq!((gone.actor, gone.reason), (format!("announcement {}", cohort_id()), reason));
    // Nothing is lost: it continues in the next run.
    assert!(!announcements.has_ended(&cohort_id()).await);
    world.settings.chain = chain;
    world.watch = open(&world.rules, &world.settings).await;
    assert_eq!(world.announcing().txid, txid);
    world.mine(6).await;
    assert!(world.is_final());
    world
}
