//! Whole cohorts over a chain: funded, signed, broadcast, mined, confirmed to the end, with the operator in between.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::bitcoind_support::{
    TestChain,
    beacon::{Beacon, key},
    faucet::Faucet,
};
use async_trait::async_trait;
use bitcoin::{Amount, BlockHash, FeeRate, Script, Transaction, Txid, address::NetworkUnchecked, block::Header};
use btcr2_aggregation::{
    actors::{
        announcement::{Address, AnnouncementError, AnnouncementSettings, Announcements},
        journal::{Archived, Journal, JournalError, MemoryJournal, Record, StreamId, StreamKind},
        notice::{Notices, ServiceNotice},
        runtime::Clock,
    },
    bitcoin::{
        announcement::{AnnouncementEvent, AnnouncementFailure, Rules},
        chain::{Activity, Chain, ChainError, ConfirmationTarget, Tip, TransactionStatus, signal_of},
        change::ChangeKey,
        notice::AnnouncementNotice,
        operator::ChainOperator,
    },
    demo::{self, DemoConfig, DemoError, DemoTransport, Report},
    protocol::{
        beacon::BeaconType, cohort::event::SpendPath, id::CohortId, network::Network, output::Change,
        time::Timestamp,
    },
};
use futures::future::BoxFuture;
use tokio::sync::broadcast::Receiver;

/// How long something that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

struct World {
    blocks: TestChain,
    faucet: Faucet,
    settings: AnnouncementSettings,
    rules: Rules,
    operator: ChainOperator,
    notices: Receiver<Arc<AnnouncementNotice>>,
}

fn operator(settings: &AnnouncementSettings, rules: &Rules) -> ChainOperator {
    ChainOperator::new(Announcements::new(settings.clone(), rules.clone()))
}

impl World {
    async fn on(blocks: TestChain) -> Self {
        let faucet = Faucet::new(&blocks, 4).await;
        let change_key = Arc::new(ChangeKey::new(&key("operator")));
        let rules = Rules::new(Change::To(change_key.script_pubkey().to_owned()));
        let journal = Arc::new(MemoryJournal::new());
        let mut settings = AnnouncementSettings::new(blocks.chain(), Network::Regtest, journal);
        settings.change_key = Some(change_key);
        // As tokio's, which stands still over a chain in memory.
        settings.clock = Clock::starting_at(Clock::system().now());
        settings.poll = Duration::from_millis(50);
        let notices = settings.notices.subscribe();
        let operator = operator(&settings, &rules);
        Self { blocks, faucet, settings, rules, operator, notices }
    }

    async fn next(&mut self) -> Arc<AnnouncementNotice> {
        tokio::time::timeout(PATIENCE, self.notices.recv()).await.expect("nothing happens any more").unwrap()
    }

    /// The first notice from now on that `pick` picks something from.
    async fn wait_for<T>(&mut self, pick: impl Fn(&AnnouncementNotice) -> Option<T>) -> T {
        loop {
            if let Some(found) = pick(&*self.next().await) {
                return found;
            }
        }
    }

    async fn confirmed(&mut self, wanted: u32) {
        self.wait_for(|notice| match notice {
            AnnouncementNotice::AnnouncementConfirmed { depth, .. } => (*depth == wanted).then_some(()),
            _ => None,
        })
        .await;
    }

    /// Runs a cohort, and pays for it as soon as its address is known. What `until_signed` finds on the way is an end too.
    async fn cohort(&mut self, config: &DemoConfig) -> Result<Report, DemoError> {
        let service_notices = Notices::new(1 << 12);
        let mut steps = service_notices.subscribe();
        let operator = self.operator.clone();
        actix_rt::spawn(async move {
            while let Ok(step) = steps.recv().await {
                operator.follow(&step).await.unwrap();
                if matches!(&*step, ServiceNotice::SigningComplete { .. } | ServiceNotice::CohortFailed { .. }) {
                    break;
                }
            }
        });
        let cohort = demo::run_with(config, Arc::new(self.operator.clone()), service_notices, |_| {});
        let funding = async {
            let address = loop {
                if let AnnouncementNotice::FundingWanted { beacon_address, .. } =
                    &*self.notices.recv().await.unwrap()
                {
                    break beacon_address.parse::<bitcoin::Address<NetworkUnchecked>>().unwrap();
                }
            };
            let script = address.assume_checked().script_pubkey();
            // Dust first, which must not be in the way.
            self.faucet.pay(&self.blocks, &script, Amount::from_sat(330)).await;
            self.faucet.pay(&self.blocks, &script, Amount::from_sat(60_000)).await;
            self.blocks.mine(1).await;
        };
        let (report, ()) = tokio::join!(tokio::time::timeout(PATIENCE, cohort), funding);
        report.expect("the cohort stands still")
    }

    /// The service and its node are started again: only chain and journal are what they were.
    async fn restart(&mut self) {
        self.operator.announcements().stop().await;
        let node = self.blocks.node_mut();
        node.stop().await;
        node.start_again().await;
        self.operator = operator(&self.settings, &self.rules);
        assert_eq!(self.operator.announcements().resume().await.unwrap().len(), 1);
    }
}

fn config(beacon: BeaconType, path: SpendPath) -> DemoConfig {
    DemoConfig { participants: 3, decline: 1, beacon, path, transport: DemoTransport::Memory, seed: Some(11) }
}

/// The transaction that the block at the tip less `above` holds.
async fn mined(chain: &dyn Chain, report: &Report) -> Transaction {
    let txid = report.signed.transaction.compute_txid();
    let status = chain.status(&txid, 0).await.unwrap();
    let btcr2_aggregation::bitcoin::chain::TransactionStatus::At(place) = status else { panic!("{status:?}") };
    let block = place.block().expect("a block");
    chain.transaction(&txid, Some(&block.hash)).await.unwrap().expect("the block holds it")
}

async fn from_deposit_to_the_end(mut world: World, config: DemoConfig) {
    let report = world.cohort(&config).await.unwrap();
    assert_eq!(report.signed.path, config.path);
    let chain = world.blocks.chain();
    // In the mempool, then mined; a reorganization takes it out after two confirmations.
    world.wait_for(|notice| matches!(notice, AnnouncementNotice::AnnouncementBroadcast { .. }).then_some(())).await;
    world.blocks.mine(1).await;
    world.confirmed(1).await;
    world.restart().await;
    world.blocks.mine(1).await;
    world.confirmed(2).await;
    world.blocks.take_back(2).await;
    world.blocks.mine_empty(3).await;
    world
        .wait_for(|notice| matches!(notice, AnnouncementNotice::AnnouncementUnconfirmed { .. }).then_some(()))
        .await;
    world.restart().await;
    for depth in 1..=6 {
        world.blocks.mine(1).await;
        world.confirmed(depth).await;
    }
    let txid = world
        .wait_for(|notice| match notice {
            AnnouncementNotice::AnnouncementFinal { txid, .. } => Some(*txid),
            _ => None,
        })
        .await;
    assert_eq!(txid, report.signed.transaction.compute_txid());

    let mined = mined(&*chain, &report).await;
    assert_eq!(mined, report.signed.transaction);
    assert_eq!(signal_of(&mined), Some(report.signal));
    let last = mined.output.last().unwrap();
    assert!(last.script_pubkey.is_op_return() && last.value == Amount::ZERO);
    assert!(mined.output.iter().rev().skip(1).all(|output| !output.script_pubkey.is_op_return()));
}

macro_rules! on_a_node {
    ($($name:ident: $beacon:expr, $path:expr;)*) => {
        $(#[test]
        fn $name() {
            actix_rt::System::new().block_on(async {
                let Some(blocks) = TestChain::core(stringify!($name)).await else { return };
                from_deposit_to_the_end(World::on(blocks).await, config($beacon, $path)).await;
            });
        })*
    };
}

on_a_node! {
    a_cas_cohort_announces_by_key_path: BeaconType::cas(), SpendPath::KeyPath;
    a_cas_cohort_announces_by_fallback: BeaconType::cas(), SpendPath::ScriptPath;
    an_smt_cohort_announces_by_key_path: BeaconType::smt(), SpendPath::KeyPath;
    an_smt_cohort_announces_by_fallback: BeaconType::smt(), SpendPath::ScriptPath;
}

/// A journal that can be made to fail.
#[derive(Default)]
struct Flaky {
    journal: MemoryJournal,
    fails: AtomicBool,
}

impl Journal for Flaky {
    fn append(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>> {
        if self.fails.load(Ordering::Relaxed) {
            let error = JournalError { stream: stream.clone(), problem: "the disk is full".to_owned() };
            return Box::pin(async { Err(error) });
        }
        self.journal.append(stream, records)
    }

    fn read(&self, stream: &StreamId) -> BoxFuture<'static, Result<Vec<Record>, JournalError>> {
        let read = self.journal.read(stream);
        // As a disk does, it lets others run meanwhile.
        Box::pin(async {
            tokio::task::yield_now().await;
            read.await
        })
    }

    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>> {
        Journal::streams(&self.journal)
    }

    fn archive(&self, stream: &StreamId, at: Timestamp) -> BoxFuture<'static, Result<(), JournalError>> {
        self.journal.archive(stream, at)
    }

    fn archived(&self) -> BoxFuture<'static, Result<Vec<Archived>, JournalError>> {
        self.journal.archived()
    }

    fn remove(&self, stream: &StreamId) -> BoxFuture<'static, Result<(), JournalError>> {
        self.journal.remove(stream)
    }
}

fn paused(test: impl Future<Output = ()>) {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime")
    };
    actix_rt::System::with_tokio_rt(runtime).block_on(test);
}

#[test]
fn what_could_not_be_written_down_was_not_told_and_is_found_out_again() {
    paused(async {
        let mut world = World::on(TestChain::memory()).await;
        let journal = Arc::new(Flaky::default());
        world.settings.journal = Arc::clone(&journal) as Arc<dyn Journal>;
        world.operator = operator(&world.settings, &world.rules);
        let beacon = Beacon::new("flaky", 3, 144);
        let script = beacon.output.script_pubkey().to_owned();
        let cohort_id = CohortId::parse("3f0ab4f2-0f2b-4d7e-9a3f-5b6a0f3e1c11").unwrap();
        world.operator.announcements().watch(&cohort_id, Address::Script(script.clone())).await.unwrap();
        world.wait_for(|notice| matches!(notice, AnnouncementNotice::FundingWanted { .. }).then_some(())).await;
        journal.fails.store(true, Ordering::Relaxed);
        world.faucet.pay(&world.blocks, &script, Amount::from_sat(50_000)).await;
        tokio::time::sleep(world.settings.poll * 10).await;
        assert!(world.notices.try_recv().is_err());
        journal.fails.store(false, Ordering::Relaxed);
        let seen =
            |notice: &AnnouncementNotice| matches!(notice, AnnouncementNotice::DepositSeen { .. }).then_some(());
        world.wait_for(seen).await;
        world.operator.announcements().stop().await;
    });
}

#[test]
fn without_funds_the_cohort_fails_and_says_why() {
    paused(async {
        let mut world = World::on(TestChain::memory()).await;
        world.rules.funding_window = Duration::from_secs(60);
        world.operator = operator(&world.settings, &world.rules);
        let config = config(BeaconType::cas(), SpendPath::KeyPath);
        let service_notices = Notices::new(1 << 12);
        let cohort =
            demo::run_with(&config, Arc::new(world.operator.clone()), service_notices, |_| {}).await.unwrap_err();
        let DemoError::CohortFailed { reason, .. } = cohort else { panic!("{cohort}") };
        assert!(reason.contains("not funded in time"), "{reason}");
        let failure = world
            .wait_for(|notice| match notice {
                AnnouncementNotice::AnnouncementFailed { failure, .. } => Some(failure.clone()),
                _ => None,
            })
            .await;
        assert_eq!(failure, AnnouncementFailure::NotFunded);
        let streams = world.settings.journal.streams().await.unwrap();
        assert_eq!(streams.iter().filter(|stream| matches!(stream.kind(), StreamKind::Announcement(_))).count(), 1);
        // It has ended: nothing to go on with.
        assert_eq!(operator(&world.settings, &world.rules).announcements().resume().await.unwrap(), []);
    });
}

#[test]
fn however_many_begin_to_watch_there_is_one_watch() {
    paused(async {
        let mut world = World::on(TestChain::memory()).await;
        let journal = Arc::new(Flaky::default());
        world.settings.journal = Arc::clone(&journal) as Arc<dyn Journal>;
        world.operator = operator(&world.settings, &world.rules);
        let script = Beacon::new("races", 3, 144).output.script_pubkey().to_owned();
        let cohort_id = CohortId::parse("3f0ab4f2-0f2b-4d7e-9a3f-5b6a0f3e1c11").unwrap();
        let announcements = world.operator.announcements().clone();
        let watch = || announcements.watch(&cohort_id, Address::Script(script.clone()));
        let (first, second, resumed) = tokio::join!(watch(), watch(), announcements.resume());
        first.unwrap();
        second.unwrap();
        assert_eq!(resumed.unwrap().len(), 1);
        world.wait_for(|notice| matches!(notice, AnnouncementNotice::FundingWanted { .. }).then_some(())).await;
        let begun = journal.read(&StreamId::of_announcement(&cohort_id)).await.unwrap();
        let begun: Vec<AnnouncementEvent> = begun.iter().map(|record| record.event().unwrap()).collect();
        let begun = begun.iter().filter(|event| matches!(event, AnnouncementEvent::WatchStarted { .. }));
        assert_eq!(begun.count(), 1);
        announcements.stop().await;
        // It has stopped permanently.
        assert!(matches!(watch().await, Err(AnnouncementError::Stopping)));

        // The next operator knows of it before it watches anything else at the same address.
        world.settings.claims = Arc::default();
        world.operator = operator(&world.settings, &world.rules);
        let next = CohortId::parse("3f0ab4f2-0f2b-4d7e-9a3f-5b6a0f3e1c22").unwrap();
        world.operator.announcements().watch(&next, Address::Script(script.clone())).await.unwrap();
        assert!(world.settings.claims.others(&next, &script).exist);
        world.operator.announcements().stop().await;
    });
}

/// A chain that never answers.
struct Silent;

#[async_trait]
impl Chain for Silent {
    async fn tip(&self) -> Result<Tip, ChainError> {
        pending().await
    }

    async fn block_hash(&self, _: u32) -> Result<Option<BlockHash>, ChainError> {
        pending().await
    }

    async fn header(&self, _: &BlockHash) -> Result<Option<Header>, ChainError> {
        pending().await
    }

    async fn coins(&self, _: &Script) -> Result<Activity, ChainError> {
        pending().await
    }

    async fn activity(&self, _: &Script, _: u32) -> Result<Activity, ChainError> {
        pending().await
    }

    async fn transaction(&self, _: &Txid, _: Option<&BlockHash>) -> Result<Option<Transaction>, ChainError> {
        pending().await
    }

    async fn status(&self, _: &Txid, _: u32) -> Result<TransactionStatus, ChainError> {
        pending().await
    }

    async fn fee_estimate(&self, _: ConfirmationTarget) -> Result<Option<FeeRate>, ChainError> {
        pending().await
    }

    async fn submit(&self, _: &Transaction) -> Result<(), ChainError> {
        pending().await
    }

    async fn submit_package(&self, _: &Transaction, _: &Transaction) -> Result<(), ChainError> {
        pending().await
    }
}

#[test]
fn a_chain_that_does_not_answer_keeps_nobody_from_stopping() {
    paused(async {
        let mut world = World::on(TestChain::memory()).await;
        world.settings.chain = Arc::new(Silent);
        world.operator = operator(&world.settings, &world.rules);
        let script = Beacon::new("silent", 3, 144).output.script_pubkey().to_owned();
        let cohort_id = CohortId::parse("3f0ab4f2-0f2b-4d7e-9a3f-5b6a0f3e1c11").unwrap();
        world.operator.announcements().watch(&cohort_id, Address::Script(script)).await.unwrap();
        // It is asking by now.
        tokio::time::sleep(world.settings.poll * 2).await;
        tokio::time::timeout(Duration::from_secs(3600), world.operator.announcements().stop())
            .await
            .expect("it stops");
    });
}
