//! A whole standing cohort in one process, for examples and benchmarks: its service, and members with one seat each.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bitcoin::{Transaction, Txid, hashes::Hash};
use btcr2_aggregation::{
    actors::{
        chain::signal_of,
        handle::{Member, Service, StandingCohort},
        journal::{Journal, MemoryJournal, StreamId},
        notice::Notices,
        policy::PolicyError,
        runtime::{Clock, Randomness},
        standing::{
            MemberSettings, SeatRequest, StandingSettings,
            boards::{BoardError, BoardStore},
            notice::{SeatNotice, StandingNotice},
            policy::{
                BoardToSign, Control, Price, PriceRequest, RowWanted, SeatPolicy, SeatView, StandingOffer,
                StandingServicePolicy, UpdatesAsked, UpdatesChosen, UpdatesToCheck,
            },
        },
        supervision::End,
        transport::{ConnectError, Connection, Inbox, Outbound, Transport, Unsent, memory::MemoryTransport},
    },
    bitcoin::offline::OfflineOperator,
    protocol::{
        beacon::did_index,
        cohort::standing::{
            BoardReader, CoinRef, DirectReader, RowAction, SeatSeed, SharedBoards, StandingBeacon, StandingPolicy,
            StandingTerms, Updates,
            cohort::CohortInput,
            message::{AskedRow, ControlProof},
            seat::{KnownVersions, SeatUpdate},
        },
        did::Did,
        document::initial_document,
        hash::{DidIndex, DocumentHash, sha256},
        id::CohortId,
        identity::Identity,
        key::Signature,
        output::{KeyAggregator, MemoizedAggregator},
        time::Timestamp,
        update::{SignedUpdate, UpdateContext, build_update, sign_update, verify_proof},
    },
};
use futures::{FutureExt, future::BoxFuture};
use serde_json::json;
use tokio::sync::broadcast;

use super::{NETWORK, Outcome, identity};

/// What the first coin holds, in satoshi: enough for any number of announcements at 1 sat/vB.
const DEPOSIT: u64 = 1_000_000_000_000;

/// A standing cohort, before it starts.
#[derive(Clone)]
pub struct Standing {
    pub seats: usize,
    /// The DIDs of each seat.
    pub dids: usize,
    pub beacon: StandingBeacon,
    /// Whether the service receives and verifies updates.
    pub full: bool,
    /// Whether boards are read, and rosters followed, once in the process, or by each seat.
    pub shares_boards: bool,
    pub clock: Clock,
    pub randomness: Randomness,
}

/// How often each type of message was sent.
pub type Counts = BTreeMap<&'static str, u64>;

/// Counts the messages of all connections.
#[derive(Clone)]
struct Counting {
    inner: Arc<MemoryTransport>,
    counts: Arc<Mutex<Counts>>,
}

struct CountingConnection {
    inner: Box<dyn Connection>,
    counts: Arc<Mutex<Counts>>,
}

#[async_trait]
impl Transport for Counting {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        let inner = self.inner.connect(identity, inbox).await?;
        Ok(Box::new(CountingConnection { inner, counts: Arc::clone(&self.counts) }))
    }
}

#[async_trait]
impl Connection for CountingConnection {
    fn try_send(&self, outbound: Outbound) -> Result<(), Unsent> {
        let kind = match &outbound {
            Outbound::Direct { body, .. } | Outbound::Broadcast { body } => Some(body.short_type()),
            Outbound::WithdrawAdvert { .. } => None,
        };
        self.inner.try_send(outbound)?;
        if let Some(kind) = kind {
            *locked(&self.counts).entry(kind).or_default() += 1;
        }
        Ok(())
    }

    async fn ended(&self) -> End {
        self.inner.ended().await
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last boards, in memory. A host stores all of them on disk, without end.
#[derive(Clone, Default)]
struct LastBoards(Arc<Mutex<VecDeque<(DocumentHash, Arc<Vec<u8>>)>>>);

impl BoardStore for LastBoards {
    fn put(
        &self,
        _: &CohortId,
        _: u64,
        hash: &DocumentHash,
        bytes: Arc<Vec<u8>>,
    ) -> BoxFuture<'static, Result<(), BoardError>> {
        let mut boards = locked(&self.0);
        if !boards.iter().any(|(known, _)| known == hash) {
            boards.push_back((*hash, bytes));
            if boards.len() > 4 {
                boards.pop_front();
            }
        }
        futures::future::ready(Ok(())).boxed()
    }

    fn get(&self, hash: &DocumentHash) -> BoxFuture<'static, Result<Option<Arc<Vec<u8>>>, BoardError>> {
        let boards = locked(&self.0);
        let found = boards.iter().find(|(known, _)| known == hash).map(|(_, bytes)| Arc::clone(bytes));
        futures::future::ready(Ok(found)).boxed()
    }

    fn list(
        &self,
        _: &CohortId,
        _: u64,
        _: usize,
    ) -> BoxFuture<'static, Result<Vec<(u64, DocumentHash)>, BoardError>> {
        futures::future::ready(Ok(Vec::new())).boxed()
    }
}

/// An operator that verifies the signature of each update, as one of a one-time cohort does.
struct Operator;

#[async_trait]
impl StandingServicePolicy for Operator {
    async fn check_control(&self, _: &CohortId, _: &AskedRow, _: &[u8; 32]) -> Result<(), String> {
        Ok(())
    }

    async fn check_updates(&self, updates: &UpdatesToCheck) -> Result<(), String> {
        for (_, value) in &updates.updates {
            let update = SignedUpdate::from_value(value.clone()).map_err(|error| error.to_string())?;
            let did = value.pointer("/proof/invocationTarget").and_then(|did| did.as_str()).unwrap_or_default();
            let did = Did::parse(did).map_err(|error| error.to_string())?;
            let document = initial_document(&did, None).map_err(|error| error.to_string())?;
            let version = update.target_version().unwrap_or_default() - 1;
            let context = UpdateContext { did: &did, document: &document, version, block: None };
            verify_proof(&update, &context).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    async fn price(&self, _: &PriceRequest) -> Result<Price, PolicyError> {
        Ok(Price { rate: bitcoin::FeeRate::BROADCAST_MIN, operator: None })
    }
}

struct Held {
    identity: Identity,
    index: DidIndex,
    version: u64,
}

struct Holder {
    held: Vec<Held>,
    /// The places of the DIDs that want an update.
    wanted: BTreeSet<usize>,
    next: usize,
    /// The highest number whose data this seat has checked.
    checked: u64,
}

/// The controller of one seat's DIDs.
pub struct Controller {
    randomness: Randomness,
    holder: Mutex<Holder>,
}

impl Controller {
    fn new(seat: usize, dids: usize, randomness: Randomness) -> Self {
        let held = |at: usize| {
            let identity = identity(randomness, &format!("did {seat} {at}"));
            Held { index: did_index(identity.did()), identity, version: 1 }
        };
        let holder = Holder { held: (0..dids).map(held).collect(), wanted: BTreeSet::new(), next: 0, checked: 0 };
        Self { randomness, holder: Mutex::new(holder) }
    }

    fn wants(&self, updates: usize) {
        let mut holder = locked(&self.holder);
        let total = holder.held.len();
        for _ in 0..updates {
            let place = holder.next % total;
            holder.wanted.insert(place);
            holder.next += 1;
        }
    }

    /// What was wanted is final.
    fn settled(&self) {
        let holder = &mut *locked(&self.holder);
        for place in std::mem::take(&mut holder.wanted) {
            holder.held[place].version += 1;
        }
    }
}

impl Held {
    /// A signed update. Each of them starts from the initial document: what it costs does not depend on that.
    fn update(&self, full: bool, randomness: Randomness) -> Option<SeatUpdate> {
        let (did, version) = (self.identity.did(), self.version + 1);
        let document = self.identity.initial_document().ok()?;
        let known = format!("https://example.org/{version}");
        let patch = json!([{ "op": "add", "path": "/alsoKnownAs", "value": [known] }]);
        let update = build_update(&document, self.version, patch).ok()?;
        let mut rng = randomness.for_actor(&format!("update {did} {version}"));
        let method = self.identity.verification_method();
        let signed = sign_update(&update, did, method, self.identity.secret_key(), &mut rng).ok()?;
        let full = full.then(|| signed.value().clone());
        Some(SeatUpdate { did: did.clone(), version, hash: *signed.hash(), full })
    }
}

#[async_trait]
impl SeatPolicy for Controller {
    async fn joins(&self, _: &StandingOffer) -> Result<(), String> {
        Ok(())
    }

    fn standing_policy(&self) -> StandingPolicy {
        StandingPolicy { least_threshold: (1, 2), least_seconds_to_answer: 1, ..StandingPolicy::default() }
    }

    async fn registers(&self, _: &SeatView) -> Vec<RowWanted> {
        let held = |held: &Held| RowWanted { did: held.identity.did().clone(), action: RowAction::Register };
        locked(&self.holder).held.iter().map(held).collect()
    }

    async fn proves(&self, _: &Did, _: &[u8; 32]) -> Option<Control> {
        // Registration is not measured; the operator above asks for no proof.
        let signature = Signature::from_bytes(&[0; 64]);
        let proof = ControlProof { verification_method: "#initialKey".to_owned(), signature };
        Some(Control { proof, genesis_document: None, sidecar: None })
    }

    async fn has_updates(&self, _: &SeatView, _: &KnownVersions) -> bool {
        // The example claims them itself, so that it knows when a number begins.
        false
    }

    async fn chooses(&self, seat: &SeatView, _: &UpdatesAsked) -> UpdatesChosen {
        let holder = locked(&self.holder);
        let full = seat.terms.updates == Updates::Full;
        let wanted = holder.wanted.iter().map(|place| &holder.held[*place]);
        let updates = wanted.filter_map(|held| held.update(full, self.randomness)).collect();
        UpdatesChosen { resolved: Vec::new(), updates }
    }

    /// Gets what a resolver needs of every DID, and checks it.
    async fn signs(&self, _: &SeatView, board: &BoardToSign) -> Result<(), String> {
        let mut holder = locked(&self.holder);
        if let Some(map) = board.board.announcement() {
            let by_index: BTreeMap<&DidIndex, &Held> = holder.held.iter().map(|held| (&held.index, held)).collect();
            let is_there = board.entries.iter().all(|entry| {
                let held = by_index.get(&entry.index);
                held.is_some_and(|held| map.get(held.identity.did().as_str()) == entry.update.as_ref())
            });
            if !is_there {
                return Err("the map lacks an update".to_owned());
            }
        } else {
            for entry in &board.entries {
                let data = board.board.data(&entry.index, entry.nonce.as_ref(), entry.update.as_ref());
                data.ok_or("a proof is not valid")?;
            }
        }
        holder.checked = board.number;
        Ok(())
    }
}

struct Seat {
    controller: Arc<Controller>,
    settings: MemberSettings,
    member: Member,
    did: Did,
}

/// A running standing cohort.
pub struct Running {
    standing: Standing,
    service_identity: Identity,
    settings: StandingSettings,
    aggregator: Arc<dyn KeyAggregator>,
    network: Counting,
    service: Service,
    cohort: StandingCohort,
    journal: Arc<dyn Journal>,
    notices: broadcast::Receiver<Arc<StandingNotice>>,
    seat_notices: broadcast::Receiver<Arc<SeatNotice>>,
    seats: Vec<Seat>,
    coin: CoinRef,
}

impl Standing {
    pub fn of(seats: usize, clock: Clock, randomness: Randomness) -> Self {
        let beacon = StandingBeacon::Cas;
        Self { seats, dids: 1, beacon, full: true, shares_boards: true, clock, randomness }
    }

    fn terms(&self) -> Outcome<StandingTerms> {
        let seats = u16::try_from(self.seats)?;
        let mut terms = StandingTerms::new(self.beacon, NETWORK, seats, seats);
        terms.max_dids_per_participant = u32::try_from(self.dids)?;
        terms.min_dids_per_participant = terms.max_dids_per_participant;
        terms.min_seconds_between_announcements = 1;
        terms.pending_update_trigger = Some(seats);
        terms.updates = if self.full { Updates::Full } else { Updates::Hash };
        (terms.respond_seconds, terms.confirm_seconds) = (86_400, 86_400);
        if seats > 1 {
            terms = terms.proceeding((2 * seats).div_ceil(3).min(seats - 1));
        }
        match terms.problems().first() {
            None => Ok(terms),
            Some(problem) => Err(problem.to_string().into()),
        }
    }

    fn reader(&self) -> Arc<dyn BoardReader> {
        if self.shares_boards { Arc::new(SharedBoards::default()) } else { Arc::new(DirectReader) }
    }

    async fn service(
        &self,
        identity: &Identity,
        network: &Counting,
        settings: &StandingSettings,
        aggregator: &Arc<dyn KeyAggregator>,
        journal: &Arc<dyn Journal>,
    ) -> Outcome<Service> {
        let transport: Arc<dyn Transport> = Arc::new(network.clone());
        let builder = Service::builder(identity.clone(), transport, Arc::new(OfflineOperator))
            .clock(self.clock)
            .randomness(self.randomness)
            .aggregator(Arc::clone(aggregator))
            .journal(Arc::clone(journal));
        Ok(builder.standing(settings.clone()).start().await?)
    }

    /// Forms the cohort and registers all DIDs.
    pub async fn start(self) -> Outcome<Running> {
        let network = Counting { inner: Arc::new(MemoryTransport::new()), counts: Arc::default() };
        let (reader, boards) = (self.reader(), LastBoards::default());
        let settings = StandingSettings {
            policy: Arc::new(Operator),
            boards: Arc::new(boards.clone()),
            reader: Arc::clone(&reader),
            notices: Notices::new(1 << 16),
            ..StandingSettings::default()
        };
        let notices = settings.notices.subscribe();
        let aggregator: Arc<dyn KeyAggregator> = Arc::new(MemoizedAggregator::default());
        let service_identity = identity(self.randomness, "service");
        let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
        let service = self.service(&service_identity, &network, &settings, &aggregator, &journal).await?;
        let seat_notices = Notices::new(1 << 17);
        let mut received = seat_notices.subscribe();
        let mut members = Vec::new();
        for number in 0..self.seats {
            let controller = Arc::new(Controller::new(number, self.dids, self.randomness));
            let seed = SeatSeed::from_bytes(sha256(format!("seat {number}").as_bytes()));
            let policy: Arc<dyn SeatPolicy> = Arc::clone(&controller) as _;
            let settings = MemberSettings {
                boards: Arc::new(boards.clone()),
                reader: Arc::clone(&reader),
                aggregator: Arc::clone(&aggregator),
                clock: self.clock,
                randomness: self.randomness,
                notices: seat_notices.clone(),
                ..MemberSettings::new(Arc::new(seed), NETWORK, Arc::new(network.clone()), policy)
            };
            members.push((controller, settings.clone(), Member::start(settings).await?));
        }
        let cohort = service.open_standing(self.terms()?).await?;
        let mut acknowledged = 0;
        while acknowledged < self.seats * self.dids {
            match &*received.recv().await? {
                SeatNotice::RowsAcknowledged { indexes, .. } => acknowledged += indexes.len(),
                SeatNotice::OfferDeclined { reasons, .. } => return Err(reasons.join("; ").into()),
                SeatNotice::SeatRejected { detail, .. } => return Err(detail.clone().into()),
                _ => {}
            }
        }
        let mut seats = Vec::new();
        for (controller, settings, member) in members {
            let did = member.seats().await.first().ok_or("a member without a seat")?.seat.clone();
            seats.push(Seat { controller, settings, member, did });
        }
        let coin =
            CoinRef { txid: Txid::from_byte_array(sha256(b"a coin that is made up")), vout: 0, value: DEPOSIT };
        cohort.report(CohortInput::CoinFound(coin)).await?;
        Ok(Running {
            standing: self,
            service_identity,
            settings,
            aggregator,
            network,
            service,
            cohort,
            journal,
            notices,
            seat_notices: received,
            seats,
            coin,
        })
    }
}

impl Running {
    /// Each seat wants so many updates from now on.
    pub fn want(&self, updates: usize) {
        self.seats.iter().for_each(|seat| seat.controller.wants(updates));
    }

    /// One announcement: from the seats' claims until each of them has checked, stored and signed what is announced, and has the signed transaction.
    pub async fn announce(&mut self) -> Outcome<Arc<Transaction>> {
        for seat in &self.seats {
            seat.member.request(&seat.did, SeatRequest::Pending).await?;
        }
        let (number, transaction) = loop {
            match &*self.notices.recv().await? {
                StandingNotice::NumberSigned { number, transaction, absent, .. } if absent.is_empty() => {
                    break (*number, Arc::clone(transaction));
                }
                StandingNotice::NumberFailed { reason, .. } => return Err(reason.clone().into()),
                StandingNotice::NumberIdle { .. } => return Err("no seat had an update".into()),
                StandingNotice::StandingRejected { detail, .. } => return Err(detail.clone().into()),
                _ => {}
            }
        };
        let mut announced = 0;
        while announced < self.seats.len() {
            match &*self.seat_notices.recv().await? {
                SeatNotice::Announced { number: of, .. } if *of == number => announced += 1,
                SeatNotice::SeatRejected { detail, .. } => return Err(detail.clone().into()),
                _ => {}
            }
        }
        if self.seats.iter().any(|seat| locked(&seat.controller.holder).checked != number) {
            return Err("a seat has not checked its data".into());
        }
        Ok(transaction)
    }

    /// The transaction is final: everyone is told.
    pub async fn settle(&mut self, transaction: &Transaction) -> Outcome<()> {
        let (coin, by, signal) = (self.coin, transaction.compute_txid(), signal_of(transaction));
        self.cohort.report(CohortInput::Spent { coin, by }).await?;
        for seat in &self.seats {
            seat.controller.settled();
            seat.member.request(&seat.did, SeatRequest::Spent { coin, by, signal }).await?;
        }
        let change = transaction.output.first().map_or(0, |output| output.value.to_sat());
        self.coin = CoinRef { txid: by, vout: 0, value: change };
        // An operator removes the journals of numbers after a while.
        for archived in self.journal.archived().await? {
            self.journal.remove(&archived.stream).await?;
        }
        // The terms' time between announcements.
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(())
    }

    /// How often each type of message was sent since the last call.
    pub fn counts(&self) -> Counts {
        std::mem::take(&mut *locked(&self.network.counts))
    }

    /// The records of the journals of the service and of all seats, and the bytes of their JSON.
    pub async fn journals(&self) -> Outcome<(usize, usize)> {
        let (mut records, mut bytes) = (0, 0);
        for journal in self.seats.iter().map(|seat| &seat.settings.journal).chain([&self.journal]) {
            for stream in journal.streams().await? {
                for record in journal.read(&stream).await? {
                    (records, bytes) = (records + 1, bytes + record.to_json()?.len());
                }
            }
        }
        Ok((records, bytes))
    }

    /// Stops everything, moves each journal to the one that `open` gives, and starts again with those. Returns how long the service, and all
    /// seats one after the other, take until they go on.
    pub async fn restart(
        &mut self,
        open: impl Fn(&str) -> Outcome<Arc<dyn Journal>>,
    ) -> Outcome<(Duration, Duration)> {
        for seat in &self.seats {
            seat.member.stop().await;
        }
        self.service.stop().await;
        moved(&self.journal, &*open("service")?).await?;
        for seat in &self.seats {
            moved(&seat.settings.journal, &*open(seat.did.as_str())?).await?;
        }
        let began = std::time::Instant::now();
        self.journal = open("service")?;
        let Self { standing, service_identity, network, settings, aggregator, journal, .. } = &*self;
        self.service = standing.service(service_identity, network, settings, aggregator, journal).await?;
        while !matches!(&*self.notices.recv().await?, StandingNotice::StandingRecovered { .. }) {}
        let service = began.elapsed();
        self.cohort = self.service.standing_cohort(self.cohort.id());
        let began = std::time::Instant::now();
        for seat in &mut self.seats {
            seat.settings.journal = open(seat.did.as_str())?;
            seat.member = Member::start(seat.settings.clone()).await?;
            while !matches!(&*self.seat_notices.recv().await?, SeatNotice::SeatRecovered { .. }) {}
        }
        Ok((service, began.elapsed()))
    }

    pub async fn stop(self) {
        for seat in &self.seats {
            seat.member.stop().await;
        }
        self.service.stop().await;
    }
}

async fn moved(from: &Arc<dyn Journal>, to: &dyn Journal) -> Outcome<()> {
    let streams: Vec<StreamId> = from.streams().await?;
    for stream in streams {
        to.append(&stream, from.read(&stream).await?).await?;
    }
    Ok(())
}

/// Where the clock of an example begins.
pub const START: Timestamp = Timestamp::from_secs(1_750_000_000);
