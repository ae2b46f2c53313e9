//! The way of a signal into the chain: a cohort's announcement, driven over a chain in memory and over a real node.
#![allow(clippy::unwrap_used)]

mod bitcoind_support;

use std::{sync::Arc, time::Duration};

use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Transaction, Txid};
use bitcoind_support::{
    Kind, TestChain,
    beacon::{Beacon, key},
    faucet::Faucet,
};
use btcr2_aggregation::{
    actors::{
        journal::{Journal, MemoryJournal, Record},
        runtime::Clock,
    },
    bitcoin::{
        announcement::{
            Announcement, AnnouncementEvent, AnnouncementFailure, Announcing, Input, NotFunded, Rules, State,
        },
        chain::{Activity, ConfirmationTarget, Deposit, MemoryChain, MemoryFees, Place, RejectionKind},
        change::ChangeKey,
        fees::FeePolicy,
        notice::AnnouncementNotice as Notice,
        watch::{Watch, WatchSettings, signal_of},
    },
    protocol::{
        error::RejectCode, hash::SignalBytes, id::CohortId, machine, network::Network, output::Change,
        time::Timestamp,
    },
};
use tokio::sync::broadcast::{self, Receiver};

const SIGNAL: SignalBytes = SignalBytes::from_bytes([0x51; 32]);

fn rate(sat_per_vb: u32) -> FeeRate {
    FeeRate::from_sat_per_vb_u32(sat_per_vb)
}

/// One announcement, polled by hand.
struct World {
    blocks: TestChain,
    faucet: Faucet,
    beacon: Beacon,
    rules: Rules,
    journal: Arc<MemoryJournal>,
    settings: WatchSettings,
    watch: Watch,
    notices: Receiver<Arc<Notice>>,
    heard: Vec<Arc<Notice>>,
}

impl World {
    async fn memory(_name: &str) -> Option<Self> {
        Some(Self::on(TestChain::memory()).await)
    }

    async fn core(name: &str) -> Option<Self> {
        Some(Self::on(TestChain::core(&format!("announcement-{name}")).await?).await)
    }

    async fn on(blocks: TestChain) -> Self {
        let faucet = Faucet::new(&blocks, 8).await;
        let change_key = Arc::new(ChangeKey::new(&key("operator")));
        let fees = FeePolicy::new(rate(1), rate(20), ConfirmationTarget::new(3)).unwrap();
        let mut rules = Rules::new(Change::To(change_key.script_pubkey().to_owned()));
        rules.fees = fees;
        let journal = Arc::new(MemoryJournal::new());
        let (sender, notices) = broadcast::channel(1 << 12);
        let settings = WatchSettings {
            chain: blocks.chain(),
            network: Network::Regtest,
            change_key: Some(change_key),
            journal: Arc::clone(&journal) as Arc<dyn Journal>,
            clock: Clock::starting_at(Timestamp::from_secs(1_700_000_000)),
            poll: Duration::from_secs(30),
            notices: sender,
        };
        let beacon = Beacon::new("announcement", 3, 20);
        let watch = open(&rules, &settings).await;
        let mut world =
            Self { blocks, faucet, beacon, rules, journal, settings, watch, notices, heard: Vec::new() };
        let script = world.beacon.output.script_pubkey().to_owned();
        world.feed(Input::Watch { script }).await;
        world
    }

    async fn feed(&mut self, input: Input) {
        self.watch.feed(input).await.unwrap().unwrap();
    }

    async fn poll(&mut self) {
        self.watch.poll().await.unwrap();
    }

    /// Everything that was told so far.
    fn heard(&mut self) -> &[Arc<Notice>] {
        while let Ok(notice) = self.notices.try_recv() {
            self.heard.push(notice);
        }
        &self.heard
    }

    fn names(&mut self) -> Vec<String> {
        let name =
            |notice: &Arc<Notice>| serde_json::to_value(&**notice).unwrap()["event"].as_str().unwrap().to_owned();
        self.heard().iter().map(name).collect()
    }

    fn count(&mut self, name: &str) -> usize {
        self.names().iter().filter(|heard| *heard == name).count()
    }

    fn depths(&mut self) -> Vec<u32> {
        let depth = |notice: &Arc<Notice>| match **notice {
            Notice::AnnouncementConfirmed { depth, .. } => Some(depth),
            _ => None,
        };
        self.heard().iter().filter_map(depth).collect()
    }

    /// Pays to the beacon address, and lets it be seen.
    async fn deposit(&mut self, sat: u64) -> OutPoint {
        let script = self.beacon.output.script_pubkey().to_owned();
        let outpoint = self.faucet.pay(&self.blocks, &script, Amount::from_sat(sat)).await;
        self.poll().await;
        outpoint
    }

    async fn mine(&mut self, blocks: u32) {
        self.blocks.mine(blocks).await;
        self.poll().await;
    }

    async fn mine_empty(&mut self, blocks: u32) {
        for _ in 0..blocks {
            self.blocks.mine_empty(1).await;
            self.poll().await;
        }
    }

    async fn take_back(&mut self, blocks: u32) {
        self.blocks.take_back(blocks).await;
        self.poll().await;
    }

    /// The members are asked, and sign.
    async fn prepare(&mut self) -> (Transaction, Amount) {
        let output = self.beacon.output.clone();
        self.feed(Input::Prepare { output, signal: SIGNAL, estimate: None }).await;
        let prepared = self.watch.announcement().prepared(&SIGNAL).expect("a coin");
        let value = prepared.coin.value;
        (self.beacon.sign(&prepared.transaction, value), value)
    }

    /// Funded, signed and handed in.
    async fn announce(&mut self, sat: u64) -> Txid {
        self.deposit(sat).await;
        self.mine(1).await;
        let (transaction, value) = self.prepare().await;
        self.feed(Input::Signed { transaction: transaction.clone(), value }).await;
        self.poll().await;
        transaction.compute_txid()
    }

    fn announcing(&self) -> &Announcing {
        match self.watch.announcement().state() {
            State::Announcing(announcing) => announcing,
            state => panic!("{state:?}"),
        }
    }

    fn failure(&self) -> &AnnouncementFailure {
        match self.watch.announcement().state() {
            State::Failed { failure } => failure,
            state => panic!("{state:?}"),
        }
    }

    fn is_final(&self) -> bool {
        matches!(self.watch.announcement().state(), State::Final { .. })
    }

    async fn events(&self) -> Vec<AnnouncementEvent> {
        let records = self.journal.read(&Watch::stream(&cohort_id())).await.unwrap();
        // Through JSON, as a journal on disk would keep them.
        records
            .iter()
            .map(|record| Record::from_json(record.to_json().unwrap()).event::<AnnouncementEvent>().unwrap())
            .collect()
    }

    fn memory_chain(&self) -> MemoryChain {
        match self.blocks.kind() {
            Kind::Memory(chain) => chain.clone(),
            Kind::Node(_) => panic!("a chain in memory expected"),
        }
    }

    /// Begins anew, with other rules or another cohort.
    async fn begin_again(&mut self) {
        self.journal = Arc::default();
        self.settings.journal = Arc::clone(&self.journal) as Arc<dyn Journal>;
        self.watch = open(&self.rules, &self.settings).await;
        let script = self.beacon.output.script_pubkey().to_owned();
        self.feed(Input::Watch { script }).await;
    }

    /// As after a restart of service and node: nothing is left but the journal.
    async fn restart(&mut self) {
        self.assert_replay().await;
        if let TestChain::Core(node) = &mut self.blocks {
            node.stop().await;
            node.start_again().await;
        }
        self.watch = open(&self.rules, &self.settings).await;
    }

    async fn assert_replay(&self) {
        let replayed = machine::replay(Announcement::new(Arc::new(self.rules.clone())), &self.events().await);
        assert_eq!(&replayed, self.watch.announcement());
    }
}

fn cohort_id() -> CohortId {
    CohortId::parse("3f0ab4f2-0f2b-4d7e-9a3f-5b6a0f3e1c11").unwrap()
}

async fn open(rules: &Rules, settings: &WatchSettings) -> Watch {
    let machine = Announcement::new(Arc::new(rules.clone()));
    Watch::open(cohort_id(), machine, settings.clone()).await.unwrap()
}

fn run<'a, W, T>(paused: bool, name: &'a str, world: impl FnOnce(&'a str) -> W, test: fn(World) -> T)
where
    W: Future<Output = Option<World>>,
    T: Future<Output = World>,
{
    let runtime = || {
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(paused).build().expect("a runtime")
    };
    actix_rt::System::with_tokio_rt(runtime).block_on(async {
        if let Some(world) = world(name).await {
            test(world).await.assert_replay().await;
        }
    });
}

/// Runs a test over a chain in memory, whose clock stands still, and over a node.
macro_rules! on_both_chains {
    ($($name:ident)*) => {
        mod memory { $(#[test] fn $name() { super::run(true, stringify!($name), super::World::memory, super::$name); })* }
        mod core { $(#[test] fn $name() { super::run(false, stringify!($name), super::World::core, super::$name); })* }
    };
}

/// Runs a test over a chain in memory only: it needs time, or what no node does on request.
macro_rules! in_memory {
    ($($name:ident)*) => {
        mod memory_only {
            $(#[test] fn $name() { super::run(true, stringify!($name), super::World::memory, super::$name); })*
        }
    };
}

on_both_chains! {
    a_signal_goes_from_a_deposit_to_its_sixth_confirmation
    a_reorganization_after_two_confirmations_is_lived_through
    an_announcement_that_is_stuck_is_bumped_until_it_is_taken
    of_several_deposits_the_oldest_that_suffices_is_spent
    dust_never_blocks
    a_deposit_that_vanishes_before_signing_is_not_relied_on
    a_foreign_spend_raises_an_alarm_and_is_outbid
    a_foreign_spend_in_a_block_ends_it_when_it_is_final
    every_step_survives_a_restart
}

in_memory! {
    without_a_deposit_it_ends_at_the_deadline
    members_that_do_not_sign_end_it_and_a_late_signature_is_welcome
    an_announcement_that_is_evicted_is_handed_in_again
    a_fallback_that_pays_too_little_gets_its_child_at_once
    an_estimator_that_lies_or_fails_is_held
    change_that_is_not_ours_cannot_bump
    a_chain_out_of_reach_is_said_once
    a_chain_that_stands_still_is_said
    nothing_is_handed_in_while_a_block_has_another_spend
    what_was_prepared_or_signed_is_not_foreign
    a_cohort_that_fails_is_given_up
    what_does_not_fit_is_refused
    deposits_without_end_cannot_push_out_the_coin
}

async fn a_signal_goes_from_a_deposit_to_its_sixth_confirmation(mut world: World) -> World {
    world.poll().await;
    let unfunded = world.watch.announcement().choose(&world.beacon.output, &SIGNAL, None).unwrap_err();
    assert!(matches!(unfunded, NotFunded::NoDeposit { .. }), "{unfunded}");
    let coin = world.deposit(50_000).await;
    let waiting = world.watch.announcement().choose(&world.beacon.output, &SIGNAL, None).unwrap_err();
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
        assert_eq!(names.iter().filter(|heard| *heard == name).count(), times, "{name} in {names:?}");
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
    assert!(world.announcing().bump().rate() <= rate(21), "{}", world.announcing().bump().rate());
    assert_eq!(world.count("announcement-stuck"), 1);
    world.mine(6).await;
    assert!(world.is_final());
    assert!(world.count("announcement-bumped") >= 3);
    world
}

async fn of_several_deposits_the_oldest_that_suffices_is_spent(mut world: World) -> World {
    let first = world.deposit(20_000).await;
    world.mine(1).await;
    let larger = world.deposit(500_000).await;
    world.mine(1).await;
    let (transaction, value) = world.prepare().await;
    assert_eq!((transaction.input[0].previous_output, value), (first, Amount::from_sat(20_000)));
    world.feed(Input::Signed { transaction, value }).await;
    world.mine(6).await;
    assert!(world.is_final());
    let left = world.settings.chain.coins(world.beacon.output.script_pubkey()).await.unwrap();
    assert_eq!(left.deposits.iter().map(|deposit| deposit.outpoint).collect::<Vec<_>>(), [larger]);
    world
}

async fn dust_never_blocks(mut world: World) -> World {
    // Thirty members, whose fallback witness is large.
    world.beacon = Beacon::new("thirty", 30, 20);
    world.begin_again().await;
    world.deposit(331).await;
    world.mine(1).await;
    let dust = world.watch.announcement().choose(&world.beacon.output, &SIGNAL, None).unwrap_err();
    let NotFunded::TooSmall { largest, needed, .. } = dust else { panic!("{dust}") };
    assert_eq!(largest, Amount::from_sat(331));
    // Enough for the fee, but nothing would be left to bump with; a better one comes later.
    let bare = world.deposit(needed.to_sat()).await;
    world.mine(1).await;
    let chosen = world.watch.announcement().choose(&world.beacon.output, &SIGNAL, None).unwrap();
    assert_eq!((chosen.coin.outpoint, chosen.transaction.output.len()), (bare, 1));
    let good = world.deposit(10_000).await;
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
    assert!(world.watch.announcement().choose(&world.beacon.output, &SIGNAL, None).is_err());
    let second = world.deposit(30_000).await;
    world.mine(1).await;
    assert_ne!(first, second);
    let (_, value) = world.prepare().await;
    // The same transaction as before: its coin is back.
    assert_eq!(value, Amount::from_sat(20_000));
    world
}

/// The members sign another signal behind the operator's back.
fn behind_our_back(world: &World) -> (Transaction, SignalBytes) {
    let hidden = SignalBytes::from_bytes([0x66; 32]);
    let secret = world.watch.announcement().choose(&world.beacon.output, &hidden, None).unwrap();
    (world.beacon.sign(&secret.transaction, secret.coin.value), hidden)
}

fn alarms(world: &mut World) -> Vec<(OutPoint, Txid, Option<SignalBytes>)> {
    let alarm = |notice: &Arc<Notice>| match &**notice {
        Notice::ForeignSpend { outpoint, by, signal, .. } => Some((*outpoint, *by, *signal)),
        _ => None,
    };
    world.heard().iter().filter_map(alarm).collect()
}

fn refusals(world: &mut World) -> Vec<RejectionKind> {
    let refusal = |notice: &Arc<Notice>| match &**notice {
        Notice::AnnouncementRefused { kind, .. } => Some(*kind),
        _ => None,
    };
    world.heard().iter().filter_map(refusal).collect()
}

async fn a_foreign_spend_raises_an_alarm_and_is_outbid(mut world: World) -> World {
    let coin = world.deposit(50_000).await;
    world.mine(1).await;
    let (ours, value) = world.prepare().await;
    let (foreign, hidden) = behind_our_back(&world);
    world.settings.chain.submit(&foreign).await.unwrap();
    world.poll().await;
    world.poll().await;
    assert_eq!(alarms(&mut world), [(coin, foreign.compute_txid(), Some(hidden))]);
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
    assert_eq!(alarms(&mut world), [(coin, foreign.compute_txid(), Some(hidden))]);
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
    // Told twice, as after a restart between its end and ours.
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

async fn pass(time: Duration) {
    tokio::time::advance(time).await;
}

async fn without_a_deposit_it_ends_at_the_deadline(mut world: World) -> World {
    let deadline = machine::Machine::deadline(world.watch.announcement()).unwrap();
    assert_eq!(deadline.since(world.settings.clock.now()), world.rules.funding_window);
    world.feed(Input::Tick).await;
    pass(world.rules.funding_window - Duration::from_millis(1)).await;
    world.feed(Input::Tick).await;
    assert!(!world.watch.announcement().has_ended());
    pass(Duration::from_millis(1)).await;
    world.feed(Input::Tick).await;
    assert_eq!(world.failure(), &AnnouncementFailure::NotFunded);
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
    let output = world.beacon.output.clone();
    world.feed(Input::Prepare { output, signal: SIGNAL, estimate: Some(rate(10)) }).await;
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
        let prepared = world.watch.announcement().choose(&world.beacon.output, &SIGNAL, estimate).unwrap();
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
    // On the chain before we are told that it is signed.
    world.settings.chain.submit(&transaction).await.unwrap();
    world.poll().await;
    assert_eq!(world.count("foreign-spend"), 0);
    // Signed without our having prepared it, and mined before the first look: nothing of that was written down.
    world.begin_again().await;
    world.feed(Input::Signed { transaction, value }).await;
    world.mine(6).await;
    assert!(world.is_final());
    assert_eq!(world.count("foreign-spend"), 0);
    world
}

async fn a_cohort_that_fails_is_given_up(mut world: World) -> World {
    world.deposit(50_000).await;
    let reason = "nobody came".to_owned();
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
    let output = world.beacon.output.clone();
    let refused = world.watch.feed(Input::Prepare { output, signal: SIGNAL, estimate: None }).await.unwrap();
    assert_eq!(refused.unwrap_err().code, RejectCode::WrongPhase);
    world.feed(Input::CohortFailed { reason: "late".to_owned() }).await;
    let txid = Txid::from_raw_hash(bitcoin::hashes::Hash::all_zeros());
    world.feed(Input::HandedIn { txid, result: Ok(()) }).await;
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
    });
    let activity = Activity { tip, deposits: deposits.collect(), spends: Vec::new() };
    let since = tip.block.height + 1;
    world.feed(Input::Observed { activity, since, estimate: None }).await;
    let known = &world.watch.announcement().sight().deposits;
    assert_eq!(known.len(), 256);
    assert!(known.contains_key(&coin));
    // Of the rest, the largest.
    assert!(
        known.values().all(|deposit| deposit.outpoint == coin || deposit.value.to_sat() >= 60_000 + 2_000 - 255)
    );
    world
}
