//! One announcement, polled step by step over a chain in memory or over a real node, and its notices.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crate::bitcoind_support::{
    Kind, TestChain,
    beacon::{Beacon, key},
    faucet::Faucet,
};
use bitcoin::{Amount, FeeRate, OutPoint, Transaction, Txid};
use btcr2_aggregation::{
    actors::{
        announcement::{Address, AnnouncementError, AnnouncementSettings, Announcements},
        journal::{Journal, MemoryJournal, Record, StreamId},
        runtime::Clock,
    },
    bitcoin::{
        announcement::{
            Announcement, AnnouncementEvent, AnnouncementFailure, Announcing, Input, NotFunded, Prepared, Rules,
            State, Wanted,
        },
        chain::{ConfirmationTarget, MemoryChain, RejectionKind},
        change::ChangeKey,
        fees::FeePolicy,
        notice::AnnouncementNotice as Notice,
    },
    protocol::{
        error::Reject, hash::SignalBytes, id::CohortId, machine, network::Network, output::Change, time::Timestamp,
    },
};
use tokio::sync::broadcast::Receiver;

pub const SIGNAL: SignalBytes = SignalBytes::from_bytes([0x51; 32]);

pub fn rate(sat_per_vb: u32) -> FeeRate {
    FeeRate::from_sat_per_vb_u32(sat_per_vb)
}

/// The actor of one announcement, and the state of its machine after the last request.
pub struct Watch {
    pub announcements: Announcements,
    pub cohort_id: CohortId,
    machine: Arc<Announcement>,
}

impl Watch {
    /// The actor of a cohort, if its journal has an announcement that has not ended.
    pub async fn open(cohort_id: CohortId, rules: &Rules, settings: &AnnouncementSettings) -> Self {
        let announcements = Announcements::new(settings.clone(), rules.clone());
        announcements.resume().await.unwrap();
        Self::of(cohort_id, announcements).await
    }

    pub async fn of(cohort_id: CohortId, announcements: Announcements) -> Self {
        let machine = announcements.inspect(&cohort_id).await.unwrap();
        Self { announcements, cohort_id, machine }
    }

    pub fn announcement(&self) -> &Announcement {
        &self.machine
    }

    async fn inspect(&mut self) {
        self.machine = self.announcements.inspect(&self.cohort_id).await.unwrap();
    }

    pub async fn watch(&mut self, address: Address) {
        self.announcements.watch(&self.cohort_id, address).await.unwrap();
        self.inspect().await;
    }

    pub async fn feed(&mut self, input: Input) -> Result<Result<(), Reject>, AnnouncementError> {
        let fed = self.announcements.feed(&self.cohort_id, None, input).await;
        self.inspect().await;
        fed
    }

    pub async fn poll(&mut self) {
        self.announcements.look(&self.cohort_id).await.unwrap();
        self.inspect().await;
    }
}

/// One announcement, polled by hand.
pub struct World {
    pub blocks: TestChain,
    pub faucet: Faucet,
    pub beacon: Beacon,
    pub rules: Rules,
    pub journal: Arc<MemoryJournal>,
    pub settings: AnnouncementSettings,
    pub watch: Watch,
    pub notices: Receiver<Arc<Notice>>,
    pub received: Vec<Arc<Notice>>,
}

impl World {
    pub async fn memory(_name: &str) -> Option<Self> {
        Some(Self::on(TestChain::memory()).await)
    }

    pub async fn core(name: &str) -> Option<Self> {
        Some(Self::on(TestChain::core(&format!("announcement-{name}")).await?).await)
    }

    pub async fn on(blocks: TestChain) -> Self {
        let faucet = Faucet::new(&blocks, 8).await;
        let change_key = Arc::new(ChangeKey::new(&key("operator")));
        let fees = FeePolicy::new(rate(1), rate(20), ConfirmationTarget::new(3)).unwrap();
        let mut rules = Rules::new(Change::To(change_key.script_pubkey().to_owned()));
        rules.fees = fees;
        let journal = Arc::new(MemoryJournal::new());
        let mut settings =
            AnnouncementSettings::new(blocks.chain(), Network::Regtest, Arc::clone(&journal) as Arc<dyn Journal>);
        settings.change_key = Some(change_key);
        settings.clock = Clock::starting_at(Timestamp::from_secs(1_700_000_000));
        let notices = settings.notices.subscribe();
        let beacon = Beacon::new("announcement", 3, 20);
        let watch = open(&rules, &settings).await;
        let mut world =
            Self { blocks, faucet, beacon, rules, journal, settings, watch, notices, received: Vec::new() };
        let script = world.beacon.output.script_pubkey().to_owned();
        world.watch.watch(Address::Script(script)).await;
        world
    }

    pub async fn feed(&mut self, input: Input) {
        self.watch.feed(input).await.unwrap().unwrap();
    }

    pub async fn poll(&mut self) {
        self.watch.poll().await;
    }

    /// All notices so far.
    pub fn heard(&mut self) -> &[Arc<Notice>] {
        while let Ok(notice) = self.notices.try_recv() {
            self.received.push(notice);
        }
        &self.received
    }

    pub fn names(&mut self) -> Vec<String> {
        let name =
            |notice: &Arc<Notice>| serde_json::to_value(&**notice).unwrap()["event"].as_str().unwrap().to_owned();
        self.heard().iter().map(name).collect()
    }

    pub fn count(&mut self, name: &str) -> usize {
        self.names().iter().filter(|seen| *seen == name).count()
    }

    pub fn depths(&mut self) -> Vec<u32> {
        let depth = |notice: &Arc<Notice>| match **notice {
            Notice::AnnouncementConfirmed { depth, .. } => Some(depth),
            _ => None,
        };
        self.heard().iter().filter_map(depth).collect()
    }

    /// Pays to the beacon address, and lets it be seen.
    pub async fn deposit(&mut self, sat: u64) -> OutPoint {
        let script = self.beacon.output.script_pubkey().to_owned();
        let outpoint = self.faucet.pay(&self.blocks, &script, Amount::from_sat(sat)).await;
        self.poll().await;
        outpoint
    }

    pub async fn mine(&mut self, blocks: u32) {
        self.blocks.mine(blocks).await;
        self.poll().await;
    }

    pub async fn mine_empty(&mut self, blocks: u32) {
        for _ in 0..blocks {
            self.blocks.mine_empty(1).await;
            self.poll().await;
        }
    }

    pub async fn take_back(&mut self, blocks: u32) {
        self.blocks.take_back(blocks).await;
        self.poll().await;
    }

    /// The members are asked, and sign.
    pub async fn prepare(&mut self) -> (Transaction, Amount) {
        let wanted = self.wanted(SIGNAL, None);
        self.feed(Input::Prepare(wanted)).await;
        let prepared = self.watch.announcement().prepared(&SIGNAL).expect("a coin");
        let value = prepared.coin.value;
        (self.beacon.sign(&prepared.transaction, value), value)
    }

    pub fn wanted(&self, signal: SignalBytes, estimate: Option<FeeRate>) -> Wanted {
        Wanted { output: self.beacon.output.clone(), signal, estimate, minimum: None, taken: BTreeSet::new() }
    }

    pub fn choose(&self, signal: SignalBytes, estimate: Option<FeeRate>) -> Result<Prepared, NotFunded> {
        self.watch.announcement().choose(self.settings.clock.now(), &self.wanted(signal, estimate))
    }

    /// Funded, signed and handed in.
    pub async fn announce(&mut self, sat: u64) -> Txid {
        self.deposit(sat).await;
        self.mine(1).await;
        let (transaction, value) = self.prepare().await;
        self.feed(Input::Signed { transaction: transaction.clone(), value }).await;
        self.poll().await;
        transaction.compute_txid()
    }

    pub fn announcing(&self) -> &Announcing {
        match self.watch.announcement().state() {
            State::Announcing(announcing) => announcing,
            state => panic!("{state:?}"),
        }
    }

    pub fn failure(&self) -> &AnnouncementFailure {
        match self.watch.announcement().state() {
            State::Failed { failure } => failure,
            state => panic!("{state:?}"),
        }
    }

    pub fn is_final(&self) -> bool {
        matches!(self.watch.announcement().state(), State::Final { .. })
    }

    pub async fn events(&self) -> Vec<AnnouncementEvent> {
        let records = self.journal.read(&StreamId::of_announcement(&cohort_id())).await.unwrap();
        // Through JSON, as a journal on disk would keep them.
        records
            .iter()
            .map(|record| Record::from_json(record.to_json().unwrap()).event::<AnnouncementEvent>().unwrap())
            .collect()
    }

    pub fn memory_chain(&self) -> MemoryChain {
        match self.blocks.kind() {
            Kind::Memory(chain) => chain.clone(),
            Kind::Node(_) => panic!("a chain in memory expected"),
        }
    }

    /// Begins anew, with other rules or another cohort.
    pub async fn begin_again(&mut self) {
        self.journal = Arc::default();
        self.settings.journal = Arc::clone(&self.journal) as Arc<dyn Journal>;
        self.watch = open(&self.rules, &self.settings).await;
        self.watch.watch(Address::Output(self.beacon.output.clone())).await;
    }

    /// As after a restart of service and node: nothing is left but the journal.
    pub async fn restart(&mut self) {
        self.assert_replay().await;
        self.watch.announcements.stop().await;
        if let TestChain::Core(node) = &mut self.blocks {
            node.stop().await;
            node.start_again().await;
        }
        self.watch = open(&self.rules, &self.settings).await;
    }

    pub async fn assert_replay(&self) {
        // As it is now: time may have passed since the last request.
        let announcement = self.watch.announcements.inspect(&cohort_id()).await.unwrap();
        let replayed = machine::replay(Announcement::new(Arc::new(self.rules.clone())), &self.events().await);
        assert_eq!(replayed, *announcement);
    }
}

pub fn cohort_id() -> CohortId {
    CohortId::parse("3f0ab4f2-0f2b-4d7e-9a3f-5b6a0f3e1c11").unwrap()
}

pub async fn open(rules: &Rules, settings: &AnnouncementSettings) -> Watch {
    Watch::open(cohort_id(), rules, settings).await
}

pub fn run<'a, W, T>(paused: bool, name: &'a str, world: impl FnOnce(&'a str) -> W, test: fn(World) -> T)
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

/// The members sign another signal behind the operator's back.
pub fn behind_our_back(world: &World) -> (Transaction, SignalBytes) {
    let hidden = SignalBytes::from_bytes([0x66; 32]);
    let secret = world.choose(hidden, None).unwrap();
    (world.beacon.sign(&secret.transaction, secret.coin.value), hidden)
}

pub fn alarms(world: &mut World) -> Vec<(OutPoint, Txid)> {
    let alarm = |notice: &Arc<Notice>| match &**notice {
        Notice::ForeignSpend { outpoint, by, .. } => Some((*outpoint, *by)),
        _ => None,
    };
    world.heard().iter().filter_map(alarm).collect()
}

/// What foreign spends announce.
pub fn foreign_signals(world: &mut World) -> Vec<(Txid, SignalBytes)> {
    let signal = |notice: &Arc<Notice>| match &**notice {
        Notice::ForeignSignal { by, signal, .. } => Some((*by, *signal)),
        _ => None,
    };
    world.heard().iter().filter_map(signal).collect()
}

pub fn refusals(world: &mut World) -> Vec<RejectionKind> {
    let refusal = |notice: &Arc<Notice>| match &**notice {
        Notice::AnnouncementRefused { kind, .. } => Some(*kind),
        _ => None,
    };
    world.heard().iter().filter_map(refusal).collect()
}

pub async fn pass(time: Duration) {
    tokio::time::advance(time).await;
}
