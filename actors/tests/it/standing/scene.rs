//! A service and seats on a chain, of which one party is mortal; and what must hold however often it dies.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bitcoin::{FeeRate, Transaction};
use btcr2_aggregation_actors::{
    chain::signal_of,
    handle::{Member, Service, StandingCohort},
    journal::{Journal, MemoryJournal},
    runtime::{Clock, Randomness},
    standing::{
        ChainView, MemberSettings, SeatRequest, StandingSettings,
        boards::{BoardStore, MemoryBoards},
        notice::StandingNotice,
        policy::{DefaultStandingPolicy, SeatPolicy},
    },
    transport::{Transport, memory::MemoryTransport},
};
use btcr2_aggregation_protocol::{
    beacon::did_index,
    cohort::standing::{BoardContent, StandingTerms, cohort::StandingCohort as Machine},
    did::Did,
    hash::{DidIndex, DocumentHash},
};

use tokio::sync::broadcast;

use super::{
    chain::TestChain,
    holder::{DIDS, Holder},
    mortal::{Fate, MortalBoards, MortalJournal, MortalTransport, Transcript},
    world::start_of_time,
};
use crate::common::{NETWORK, Operator, identity, settle};

/// How long a run may take in virtual time.
const PATIENCE: Duration = Duration::from_secs(12 * 3600);

/// The blocks with which a transaction is final.
const DEPTH: usize = 2;

pub(super) struct SceneSeat {
    pub(super) holder: Arc<Holder>,
    settings: MemberSettings,
    pub(super) member: Option<Member>,
}

/// Who is mortal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Party {
    Service,
    /// The first seat.
    Seat,
}

pub(super) struct Scene {
    clock: Clock,
    /// What has happened at the service, for the reader of a failure.
    notices: broadcast::Receiver<Arc<StandingNotice>>,
    terms: StandingTerms,
    mortal: Party,
    pub(super) fate: Arc<Fate>,
    transcript: Arc<Transcript>,
    pub(super) chain: TestChain,
    journal: Arc<dyn Journal>,
    transport: Arc<dyn Transport>,
    standing: StandingSettings,
    /// Those of the service, also when a seat is mortal.
    boards: Arc<dyn BoardStore>,
    service: Option<Service>,
    pub(super) cohort: Option<StandingCohort>,
    pub(super) seats: Vec<SceneSeat>,
    until: tokio::time::Instant,
    deaths: usize,
}

impl Scene {
    pub(super) fn new(terms: &StandingTerms, seats: usize, mortal: Party) -> Self {
        let (fate, transcript) = (Arc::new(Fate::default()), Arc::new(Transcript::default()));
        // One for all: the time goes on while a party is dead.
        let clock = start_of_time();
        let network = MemoryTransport::new();
        let chain = TestChain::default();
        let view = || {
            let chain: Arc<dyn btcr2_aggregation_actors::chain::Chain> = Arc::new(chain.clone());
            let min_confirmations = u32::try_from(DEPTH).unwrap();
            Some(ChainView { min_confirmations, poll: Duration::from_secs(5), ..ChainView::new(chain) })
        };
        // Only the mortal party's own fate is ever armed.
        let fate_of = |party: Party| if party == mortal { Arc::clone(&fate) } else { Arc::default() };
        let parts = |fate: &Arc<Fate>| {
            let journal: Arc<dyn Journal> =
                Arc::new(MortalJournal(Arc::clone(fate), Arc::new(MemoryJournal::new())));
            let inner: Arc<dyn BoardStore> = Arc::new(MemoryBoards::default());
            let boards: Arc<dyn BoardStore> = Arc::new(MortalBoards(Arc::clone(fate), Arc::clone(&inner)));
            let transport: Arc<dyn Transport> = Arc::new(MortalTransport {
                fate: Arc::clone(fate),
                transcript: Arc::clone(&transcript),
                inner: Arc::new(network.clone()),
            });
            (journal, boards, transport, inner)
        };
        let (journal, of_service, transport, boards) = parts(&fate_of(Party::Service));
        let mut policy = DefaultStandingPolicy::default();
        policy.price.rate = FeeRate::from_sat_per_vb_u32(2);
        let mut standing =
            StandingSettings { policy: Arc::new(policy), boards: of_service, ..StandingSettings::default() };
        standing.chain = view();
        let seats = (0..seats).map(|place| {
            let fate = if place == 0 { fate_of(Party::Seat) } else { Arc::default() };
            let (journal, boards, transport, _) = parts(&fate);
            let holder = Arc::new(Holder::new(place));
            let policy: Arc<dyn SeatPolicy> = Arc::clone(&holder) as _;
            let mut settings = MemberSettings::new(Arc::clone(&holder.seed), NETWORK, transport, policy);
            (settings.journal, settings.boards, settings.chain) = (journal, boards, view());
            settings.clock = clock;
            SceneSeat { holder, settings, member: None }
        });
        Self {
            clock,
            notices: standing.notices.subscribe(),
            terms: terms.clone(),
            mortal,
            seats: seats.collect(),
            until: tokio::time::Instant::now() + PATIENCE,
            fate,
            transcript,
            chain,
            journal,
            transport,
            standing,
            boards,
            service: None,
            cohort: None,
            deaths: 0,
        }
    }

    /// How often the mortal party has died and was started again, or is dead.
    pub(super) fn deaths(&self) -> usize {
        self.deaths + usize::from(self.fate.is_dead())
    }

    pub(super) async fn start_service(&mut self) {
        let builder = Service::builder(identity("service"), Arc::clone(&self.transport), Arc::new(Operator));
        let builder = builder.clock(self.clock).randomness(Randomness::System).journal(Arc::clone(&self.journal));
        let service = builder.standing(self.standing.clone()).start().await.unwrap();
        // As its program does: without a cohort of a previous run it advertises one.
        self.cohort = Some(match service.standing_cohorts().await.first() {
            Some(cohort) => cohort.clone(),
            None => service.open_standing(self.terms.clone()).await.unwrap(),
        });
        self.service = Some(service);
    }

    pub(super) async fn start_seat(&mut self, place: usize) {
        let settings = self.seats[place].settings.clone();
        self.seats[place].member = Some(Member::start(settings).await.unwrap());
    }

    pub(super) async fn stop_seat(&mut self, place: usize) {
        if let Some(member) = self.seats[place].member.take() {
            member.stop().await;
        }
    }

    /// What is left of a dead process goes, and its successor starts.
    async fn restart(&mut self) {
        self.deaths += 1;
        match self.mortal {
            Party::Service => self.service.take().unwrap().stop().await,
            Party::Seat => self.stop_seat(0).await,
        }
        settle().await;
        self.fate.revive();
        match self.mortal {
            Party::Service => self.start_service().await,
            Party::Seat => self.start_seat(0).await,
        }
    }

    /// A moment passes, in which the mortal party may die and is started again.
    async fn moment(&mut self) {
        if tokio::time::Instant::now() >= self.until {
            while let Ok(notice) = self.notices.try_recv() {
                eprintln!("{notice:?}");
            }
            panic!("nothing happens any more");
        }
        let died = {
            let fate = Arc::clone(&self.fate);
            tokio::select! {
                () = async move { fate.died().await } => true,
                () = tokio::time::sleep(Duration::from_secs(1)) => false,
            }
        };
        if died {
            self.restart().await;
        }
    }

    pub(super) async fn machine(&self) -> Option<Arc<Machine>> {
        self.cohort.as_ref()?.inspect().await
    }

    /// Whether the cohort has formed, and every seat knows that its rows are registered.
    async fn is_formed(&self) -> bool {
        let Some(machine) = self.machine().await else { return false };
        if machine.roster().map(|roster| roster.len()) != Some(self.seats.len() * DIDS) {
            return false;
        }
        for seat in &self.seats {
            let Some(member) = &seat.member else { return false };
            let Some(summary) = member.seats().await.first().cloned() else { return false };
            let Some(machine) = member.inspect(&summary.seat).await else { return false };
            if machine.output().is_none() || machine.awaits_answer() {
                return false;
            }
        }
        true
    }

    pub(super) async fn form(&mut self) {
        self.start_service().await;
        for place in 0..self.seats.len() {
            self.start_seat(place).await;
        }
        while self.fate.is_dead() || !self.is_formed().await {
            self.moment().await;
        }
    }

    /// A final deposit, which the service sees.
    pub(super) async fn deposit(&mut self) {
        let script = self.machine().await.unwrap().output().unwrap().script_pubkey().to_owned();
        self.chain.pay(script, 1_000_000);
        self.chain.mine(DEPTH);
        while self.machine().await.is_none_or(|machine| machine.coins().is_empty()) {
            self.moment().await;
        }
    }

    /// The DIDs of these seats want their next version.
    pub(super) async fn wants(&self, wanted: &[(usize, usize)]) {
        for (place, did) in wanted {
            let seat = &self.seats[*place];
            seat.holder.wants(*did);
            for summary in seat.member.as_ref().unwrap().seats().await {
                seat.member.as_ref().unwrap().request(&summary.seat, SeatRequest::Claim).await.unwrap();
            }
        }
    }

    /// Everything that is wanted gets into blocks, and is final for every party.
    pub(super) async fn announce(&mut self) {
        loop {
            self.moment().await;
            if !self.chain.mempool().is_empty() {
                for transaction in self.chain.mine(DEPTH) {
                    self.resolve(&transaction).await;
                }
            }
            let wanted = self.seats.iter().any(|seat| !seat.holder.lock().wants.is_empty());
            let machine = self.machine().await;
            // The coin of the last announcement that is final.
            let spent = self.chain.mined().last().map(Transaction::compute_txid);
            let is_final = machine.is_some_and(|machine| {
                machine.open_number().is_none()
                    && machine.unconfirmed().is_empty()
                    && machine.coins().first().map(|coin| coin.txid) == spent
            });
            if !wanted && is_final && !self.fate.is_dead() {
                return;
            }
        }
    }

    /// The boards whose signal a transaction has, the last one first. Numbers of a CAS cohort that have failed can have the same map.
    async fn boards_of(&self, transaction: &Transaction) -> Vec<(DocumentHash, BoardContent)> {
        let signal = signal_of(transaction).expect("an announcement");
        let listed = self.boards.list(self.cohort.as_ref().unwrap().id(), 0, 1_000).await.unwrap();
        let mut boards = Vec::new();
        for (_, hash) in listed {
            let bytes = self.boards.get(&hash).await.unwrap().unwrap();
            let content: BoardContent = serde_json::from_slice(&bytes).unwrap();
            if content.signal(self.terms.beacon_type) == Some(signal) {
                boards.insert(0, (hash, content));
            }
        }
        assert!(!boards.is_empty(), "a board gives the signal of an announcement");
        boards
    }

    /// The machine of the service, which is there at some time.
    async fn machine_soon(&mut self) -> Arc<Machine> {
        loop {
            if let Some(machine) = self.machine().await {
                return machine;
            }
            self.moment().await;
        }
    }

    /// What an announcement has: index, version and update, each of a response that its seat has sent.
    async fn updates_of(&mut self, transaction: &Transaction) -> Vec<(DidIndex, u64, DocumentHash)> {
        let boards = self.boards_of(transaction).await;
        let content = &boards[0].1;
        let machine = self.machine_soon().await;
        let context = machine.roster().unwrap().context();
        let mut updates = Vec::new();
        for response in &content.responses {
            let (_, did) = machine.seats().find(|(key, _)| **key == response.seat).unwrap();
            let sent = self.transcript.responses(did, content.number);
            assert_eq!(sent, BTreeSet::from([response.hash(context)]), "what the seat has sent, and nothing else");
            let is_own = |seat: &&SceneSeat| {
                let key = seat.holder.seed.seat_key(NETWORK, &context.service, &context.cohort_id).unwrap();
                key.public_key() == response.seat
            };
            let seat = self.seats.iter().find(is_own).unwrap();
            let entries = response.entries.iter();
            updates.extend(entries.filter_map(|entry| seat.holder.announced(context, content.number, entry)));
        }
        updates
    }

    /// A transaction is in a block: resolvers give what it announces.
    async fn resolve(&mut self, transaction: &Transaction) {
        for (index, version, _) in self.updates_of(transaction).await {
            for seat in &self.seats {
                let mut state = seat.holder.lock();
                if state.made.values().any(|(of, _)| *of == index) {
                    state.finals.insert(index, version);
                    state.wants.remove(&index);
                }
            }
        }
    }

    /// The trouble is over, and every seat gets what it has missed.
    pub(super) async fn settle(&mut self) {
        if self.fate.is_dead() {
            self.restart().await;
        }
        self.fate.revive();
        for place in 0..self.seats.len() {
            if self.seats[place].member.is_none() {
                self.start_seat(place).await;
            }
        }
        let announced = self.announcements();
        while !self.seats.iter().all(|seat| seat.has_data(&announced)) {
            self.moment().await;
        }
    }

    fn announcements(&self) -> Vec<Transaction> {
        self.chain.mined().into_iter().filter(|transaction| !transaction.input.is_empty()).collect()
    }

    /// What must hold after every run.
    pub(super) async fn check(&mut self) {
        self.transcript.check();
        let announcements = self.announcements();
        let mut numbers = BTreeSet::new();
        let mut said: BTreeMap<(DidIndex, u64), DocumentHash> = BTreeMap::new();
        for transaction in &announcements {
            let boards = self.boards_of(transaction).await;
            assert!(numbers.insert(boards[0].1.number), "two announcements of number {}", boards[0].1.number);
            for (index, version, hash) in self.updates_of(transaction).await {
                let first = *said.entry((index, version)).or_insert(hash);
                assert_eq!(first, hash, "two updates of version {version} of {index}");
            }
            for seat in &self.seats {
                let mut is_stored = false;
                for (hash, _) in &boards {
                    is_stored |= seat.settings.boards.get(hash).await.unwrap().is_some();
                }
                assert!(is_stored, "the board of number {}", boards[0].1.number);
            }
        }
        assert!(!said.is_empty());
    }
}

impl SceneSeat {
    /// Whether it has what resolvers need of each announcement, for each of its DIDs. It was verified when it was stored.
    fn has_data(&self, announcements: &[Transaction]) -> bool {
        let state = self.holder.lock();
        let of = |transaction: &Transaction, did: &Did| {
            let signal = signal_of(transaction).expect("an announcement");
            state.data.contains_key(&(signal, did_index(did)))
        };
        announcements.iter().all(|transaction| self.holder.dids.iter().all(|did| of(transaction, did)))
    }
}
