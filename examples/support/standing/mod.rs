//! A whole standing cohort in one process, for examples and benchmarks: its service, and members with one seat each.

mod controller;
mod counting;

use std::{
    collections::{BTreeMap, VecDeque},
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
            policy::{Price, PriceRequest, SeatPolicy, StandingServicePolicy, UpdatesToCheck},
        },
        transport::{Transport, memory::MemoryTransport},
    },
    bitcoin::offline::OfflineOperator,
    protocol::{
        cohort::standing::{
            BoardReader, CoinRef, DirectReader, SeatSeed, SharedBoards, StandingBeacon, StandingTerms, Updates,
            cohort::CohortInput, message::AskedRow,
        },
        did::Did,
        document::initial_document,
        hash::{DocumentHash, sha256},
        id::CohortId,
        identity::Identity,
        output::{KeyAggregator, MemoizedAggregator},
        time::Timestamp,
        update::{SignedUpdate, UpdateContext, verify_proof},
    },
};
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::broadcast;

pub use self::counting::Counts;
use self::{controller::Controller, counting::Counting};
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

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The names of all boards, and the last ones, in memory. A host stores all of them on disk, without end.
#[derive(Clone, Default)]
struct LastBoards(Arc<Mutex<Boards>>);

#[derive(Default)]
struct Boards {
    names: BTreeMap<u64, DocumentHash>,
    last: VecDeque<(DocumentHash, Arc<Vec<u8>>)>,
}

impl BoardStore for LastBoards {
    fn put(
        &self,
        _: &CohortId,
        number: u64,
        hash: &DocumentHash,
        bytes: Arc<Vec<u8>>,
    ) -> BoxFuture<'static, Result<(), BoardError>> {
        let mut boards = locked(&self.0);
        if boards.names.insert(number, *hash) != Some(*hash) {
            boards.last.push_back((*hash, bytes));
            if boards.last.len() > 4 {
                boards.last.pop_front();
            }
        }
        futures::future::ready(Ok(())).boxed()
    }

    fn get(&self, hash: &DocumentHash) -> BoxFuture<'static, Result<Option<Arc<Vec<u8>>>, BoardError>> {
        let boards = locked(&self.0);
        let found = boards.last.iter().find(|(known, _)| known == hash).map(|(_, bytes)| Arc::clone(bytes));
        futures::future::ready(Ok(found)).boxed()
    }

    fn list(
        &self,
        _: &CohortId,
        after: u64,
        most: usize,
    ) -> BoxFuture<'static, Result<Vec<(u64, DocumentHash)>, BoardError>> {
        let boards = locked(&self.0);
        let later = boards.names.range(after.saturating_add(1)..).take(most);
        let listed = later.map(|(number, hash)| (*number, *hash)).collect();
        futures::future::ready(Ok(listed)).boxed()
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
        if self.seats.iter().any(|seat| seat.controller.checked() != number) {
            return Err("a seat has not checked its data".into());
        }
        Ok(transaction)
    }

    /// The transaction is final: everyone is notified.
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
