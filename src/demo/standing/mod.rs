//! A standing cohort in one process: one address, several announcements, many DIDs, absent and refusing seats. Everything is real but the
//! coin, which is made up, and the chain: a signed transaction counts as final.

mod seat;

use std::{sync::Arc, time::Duration};

use ::bitcoin::{OutPoint, Transaction, TxOut, Txid, hashes::Hash};
use serde_json::{Value, json};
use tokio::{sync::broadcast, time::Instant};

use self::seat::DemoSeat;
use super::{DemoError, DemoTransport, NETWORK, internal, network::DemoNetwork};
use crate::{
    actors::{
        handle::{Member, Service, StandingCohort},
        runtime::{Clock, Randomness},
        standing::{
            MemberSettings, SeatRequest, StandingSettings,
            boards::MemoryBoards,
            notice::{SeatNotice, StandingNotice},
            policy::{DefaultStandingPolicy, SeatPolicy},
        },
    },
    bitcoin::{offline::OfflineOperator, verify::consensus_accepts},
    protocol::{
        cohort::standing::{
            BoardReader, CoinRef, Mode, Registration, SeatSeed, SharedBoards, StandingBeacon, StandingTerms,
            Updates, cohort::CohortInput,
        },
        did::Did,
        hash::sha256,
        identity::Identity,
        key::SecretKey,
        output::{MAX_FALLBACK_KEYS, MemoizedAggregator},
    },
};

/// How long seats may take that are not expected to be silent.
const PATIENCE: u32 = 600;

/// How many numbers may fail in a demo: those that seats refuse, and a few that are too slow.
const MOST_FAILURES: usize = 5;

/// What the first coin holds, in satoshi.
const DEPOSIT: u64 = 100_000_000;

/// The configuration of a demo of a standing cohort.
#[derive(Clone, Debug)]
pub struct StandingDemo {
    /// The number of seats.
    pub seats: usize,
    /// The DIDs of each seat.
    pub dids: usize,
    /// How many announcements.
    pub announcements: usize,
    /// How many DIDs of each seat are updated in each of them.
    pub updates: usize,
    /// How many seats are silent in every second announcement.
    pub absent: usize,
    /// How many seats refuse to sign once, in the first announcement.
    pub refuse: usize,
    /// How updates are aggregated.
    pub beacon: StandingBeacon,
    /// The transport.
    pub transport: DemoTransport,
    /// Whether boards are read once in the process, or by each seat.
    pub shares_boards: bool,
    /// The seed of all keys: the same seed gives the same address.
    pub seed: Option<u64>,
}

/// One announcement of a demo.
#[derive(Clone, Debug)]
pub struct AnnouncementReport {
    /// The number that was signed.
    pub number: u64,
    /// How it was signed.
    pub mode: Mode,
    /// The transaction.
    pub transaction: Arc<Transaction>,
    /// Updates in it.
    pub updates: usize,
    /// The seats that were silent.
    pub absent: usize,
    /// From the opening of the first number on these updates to the signed transaction.
    pub elapsed: Duration,
    /// Whether Bitcoin Core's consensus code accepts it.
    pub consensus: bool,
    /// Whether every seat that signed can prove what it has announced.
    pub data: bool,
}

/// The result of a demo.
#[derive(Clone, Debug)]
pub struct StandingReport {
    /// The beacon address.
    pub address: String,
    /// The seats.
    pub seats: usize,
    /// How many of them can spend together.
    pub spenders: usize,
    /// All registered DIDs.
    pub dids: usize,
    /// The announcements.
    pub announcements: Vec<AnnouncementReport>,
    /// Numbers that failed.
    pub failed: usize,
    /// From the start to the formed cohort.
    pub formation: Duration,
    /// From there to the last acknowledged registration.
    pub registration: Duration,
}

impl StandingReport {
    /// Whether every announcement was verified.
    pub fn ok(&self, announcements: usize) -> bool {
        self.announcements.len() == announcements && self.announcements.iter().all(|one| one.consensus && one.data)
    }

    /// The report as one JSON object.
    pub fn to_json(&self, announcements: usize) -> Value {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let each = self.announcements.iter().map(|one| {
            json!({
                "number": one.number,
                "mode": one.mode,
                "txid": one.transaction.compute_txid(),
                "vsize": one.transaction.vsize(),
                "updates": one.updates,
                "absent": one.absent,
                "elapsedMs": millis(one.elapsed),
                "verified": { "consensus": one.consensus, "data": one.data },
            })
        });
        json!({
            "ok": self.ok(announcements),
            "beaconAddress": self.address,
            "seats": self.seats,
            "spenders": self.spenders,
            "dids": self.dids,
            "announcements": each.collect::<Vec<_>>(),
            "failedNumbers": self.failed,
            "formationMs": millis(self.formation),
            "registrationMs": millis(self.registration),
        })
    }
}

impl StandingDemo {
    /// Checks that the demo is possible.
    ///
    /// # Errors
    /// [`DemoError::Config`], with what to change.
    pub fn check(&self) -> Result<(), DemoError> {
        let refuse = |problem: String| Err(DemoError::Config(problem));
        if !(1..=MAX_FALLBACK_KEYS).contains(&self.seats) {
            return refuse(format!("a standing cohort has 1 to {MAX_FALLBACK_KEYS} seats, not {}", self.seats));
        }
        if self.dids == 0 || self.updates == 0 || self.updates > self.dids {
            return refuse(
                "each seat has at least one DID, and updates at least one of them and at most all".to_owned(),
            );
        }
        if self.announcements == 0 {
            return refuse("at least one announcement expected".to_owned());
        }
        let away = self.absent.max(self.refuse);
        if away > 0 && self.seats - away.min(self.seats) < self.threshold() {
            let Self { seats, .. } = self;
            return refuse(format!(
                "of {seats} seats at most {} can be silent or refuse",
                seats - self.threshold()
            ));
        }
        self.terms().map(drop)
    }

    /// Two thirds of the seats, but not all.
    fn threshold(&self) -> usize {
        (2 * self.seats).div_ceil(3).min(self.seats.saturating_sub(1)).max(1)
    }

    fn terms(&self) -> Result<StandingTerms, DemoError> {
        let number = |number: usize| u16::try_from(number).map_err(internal);
        let seats = number(self.seats)?;
        let mut terms = StandingTerms::new(self.beacon, NETWORK, seats, seats);
        terms.max_dids_per_participant = u32::try_from(self.dids).map_err(internal)?;
        terms.min_seconds_between_announcements = 1;
        // Every seat that can has updates.
        terms.pending_update_trigger = Some(number(self.seats - self.absent)?);
        terms.updates = if self.seats * self.dids > 1_000 { Updates::Hash } else { Updates::Full };
        terms.registration = Registration::Proven;
        (terms.respond_seconds, terms.confirm_seconds) = (PATIENCE, PATIENCE);
        if self.absent > 0 {
            // Long enough that only silent seats miss it, short enough to watch.
            terms.respond_seconds =
                3 + u32::try_from(self.seats * self.dids / 2_000 + self.seats / 20).map_err(internal)?;
        }
        if self.seats > 1 {
            terms = terms.proceeding(number(self.threshold())?);
        }
        match terms.problems().first() {
            None => Ok(terms),
            Some(problem) => Err(DemoError::Config(problem.to_string())),
        }
    }

    fn randomness(&self) -> Randomness {
        match self.seed {
            Some(seed) => Randomness::Seeded(sha256(&seed.to_be_bytes())),
            None => Randomness::System,
        }
    }
}

/// A seat of the demo.
struct RunningSeat {
    policy: Arc<DemoSeat>,
    member: Member,
    did: Did,
}

/// A running demo.
struct Running {
    cohort: StandingCohort,
    notices: broadcast::Receiver<Arc<StandingNotice>>,
    seats: Vec<RunningSeat>,
    failed: usize,
    /// When the last number was opened, after the last announcement.
    opened: Option<Instant>,
}

/// Runs a standing cohort. `progress` is called with what has just happened, in words.
///
/// # Errors
/// [`DemoError`].
///
/// # Panics
/// When called outside of an actix `System`.
pub async fn run(config: &StandingDemo, mut progress: impl FnMut(&str)) -> Result<StandingReport, DemoError> {
    config.check()?;
    let (terms, randomness, clock) = (config.terms()?, config.randomness(), Clock::system());
    let identity = Identity::from_key(SecretKey::generate(&mut randomness.for_actor("service identity")), NETWORK);
    let network = DemoNetwork::start(config.transport, identity.did(), clock, randomness).await?;
    let reader: Arc<dyn BoardReader> = Arc::new(SharedBoards::default());
    let boards = Arc::new(MemoryBoards::default());
    let mut standing = StandingSettings {
        policy: Arc::new(DefaultStandingPolicy::default()),
        boards: boards.clone(),
        ..StandingSettings::default()
    };
    if config.shares_boards {
        standing.reader = Arc::clone(&reader);
    }
    let notices = standing.notices.subscribe();
    let aggregator = Arc::new(MemoizedAggregator::default());
    let service = Service::builder(identity, Arc::clone(&network.service), Arc::new(OfflineOperator))
        .clock(clock)
        .aggregator(aggregator.clone())
        .standing(standing)
        .start()
        .await
        .map_err(internal)?;
    let started = Instant::now();
    let mut members = Vec::new();
    for number in 0..config.seats {
        let policy = DemoSeat::new(number, config.dids, randomness)?;
        let mut seed = randomness.for_actor(&format!("seat {number}"));
        let seed = Arc::new(SeatSeed::generate(&mut seed));
        let decisions: Arc<dyn SeatPolicy> = Arc::clone(&policy) as _;
        let mut settings = MemberSettings::new(seed, NETWORK, Arc::clone(&network.members), decisions);
        (settings.clock, settings.aggregator) = (clock, aggregator.clone());
        if config.shares_boards {
            (settings.reader, settings.boards) = (Arc::clone(&reader), boards.clone());
        }
        let notices = settings.notices.subscribe();
        members.push((policy, Member::start(settings).await.map_err(internal)?, notices));
    }
    let cohort = service.open_standing(terms.clone()).await.map_err(internal)?;
    let mut seats = Vec::new();
    let mut formation = Duration::ZERO;
    for (policy, member, mut notices) in members {
        let did = in_time("formation", formed(&mut notices)).await?;
        formation = started.elapsed();
        in_time("registration", registered(&mut notices, config.dids)).await?;
        seats.push(RunningSeat { policy, member, did });
    }
    let registration = started.elapsed().saturating_sub(formation);
    progress("the cohort has formed, and all DIDs are registered");
    let mut running = Running { cohort, notices, seats, failed: 0, opened: None };
    let machine = running.cohort.inspect().await.ok_or_else(|| internal("the cohort is gone"))?;
    let output = machine.output().cloned().ok_or_else(|| internal("the cohort has not formed"))?;
    drop(machine);
    let mut coin =
        CoinRef { txid: Txid::from_byte_array(sha256(b"a coin that is made up")), vout: 0, value: DEPOSIT };
    running.cohort.report(CohortInput::CoinFound(coin)).await.map_err(internal)?;
    let mut announcements = Vec::new();
    for round in 0..config.announcements {
        let report = running.announce(config, round, coin).await?;
        let prevout = TxOut {
            value: ::bitcoin::Amount::from_sat(coin.value),
            script_pubkey: output.script_pubkey().to_owned(),
        };
        let consensus = consensus_accepts(&report.transaction, &prevout);
        coin = running.settle(&report.transaction, coin).await?;
        progress(&format!("announcement {} of {} is signed", round + 1, config.announcements));
        announcements.push(AnnouncementReport { consensus, ..report });
    }
    let report = StandingReport {
        address: output.address().to_owned(),
        seats: config.seats,
        spenders: terms.spenders(config.seats),
        dids: config.seats * config.dids,
        announcements,
        failed: running.failed,
        formation,
        registration,
    };
    for seat in &running.seats {
        seat.member.stop().await;
    }
    service.stop().await;
    network.stop().await;
    Ok(report)
}

/// A step of one seat, which does not wait without limit.
async fn in_time<T>(step: &str, running: impl Future<Output = Result<T, DemoError>>) -> Result<T, DemoError> {
    let patience = Duration::from_secs(PATIENCE.into());
    let ended = tokio::time::timeout(patience, running).await;
    ended.map_err(|_| internal(format!("the {step} has not ended after {PATIENCE} s")))?
}

/// Waits until the cohort of a seat has formed; returns the seat's DID.
async fn formed(notices: &mut broadcast::Receiver<Arc<SeatNotice>>) -> Result<Did, DemoError> {
    loop {
        match &*notices.recv().await.map_err(internal)? {
            SeatNotice::SeatFormed { seat, .. } => return Ok(seat.clone()),
            SeatNotice::OfferDeclined { reasons, .. } => return Err(internal(reasons.join("; "))),
            SeatNotice::SeatNotGiven { reason, .. } => return Err(internal(reason)),
            _ => {}
        }
    }
}

/// Waits until all DIDs of a seat are acknowledged.
async fn registered(notices: &mut broadcast::Receiver<Arc<SeatNotice>>, dids: usize) -> Result<(), DemoError> {
    let mut acknowledged = 0;
    while acknowledged < dids {
        match &*notices.recv().await.map_err(internal)? {
            SeatNotice::RowsAcknowledged { indexes, .. } => acknowledged += indexes.len(),
            SeatNotice::NotRegistered { refused, .. } => {
                return Err(internal(refused.first().map_or("not registered", |(_, why)| why)));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Running {
    /// One announcement, with the seats that are silent or refuse.
    async fn announce(
        &mut self,
        config: &StandingDemo,
        round: usize,
        coin: CoinRef,
    ) -> Result<AnnouncementReport, DemoError> {
        let silent = if round % 2 == 1 { config.absent } else { 0 };
        let refusing = if round == 0 { config.refuse } else { 0 };
        let total = self.seats.len();
        for (number, seat) in self.seats.iter().enumerate() {
            let is_silent = number >= total - silent;
            seat.policy.begin(config.updates, is_silent, number < refusing);
            if !is_silent {
                seat.member.request(&seat.did, SeatRequest::Pending).await.map_err(internal)?;
            }
        }
        loop {
            match &*self.notices.recv().await.map_err(internal)? {
                StandingNotice::NumberOpened { .. } if self.opened.is_none() => self.opened = Some(Instant::now()),
                StandingNotice::NumberFailed { number, reason, .. } => {
                    self.failed += 1;
                    if self.failed > MOST_FAILURES {
                        return Err(internal(format!("number {number} failed as those before it: {reason}")));
                    }
                    self.seats.iter().for_each(|seat| seat.policy.signs_again());
                }
                StandingNotice::StandingRejected { detail, .. } => tracing::warn!(detail, "a message was refused"),
                StandingNotice::StandingHalted { reason, .. } => return Err(internal(reason)),
                StandingNotice::NumberSigned { number, mode, absent, transaction, .. } => {
                    let elapsed = self.opened.take().map_or(Duration::ZERO, |opened| opened.elapsed());
                    let spent = OutPoint::new(coin.txid, coin.vout);
                    if transaction.input.first().map(|input| input.previous_output) != Some(spent) {
                        return Err(internal("the transaction spends another coin"));
                    }
                    let (updates, data) = self.verified(*number, transaction);
                    return Ok(AnnouncementReport {
                        number: *number,
                        mode: *mode,
                        transaction: Arc::clone(transaction),
                        updates,
                        absent: absent.len(),
                        elapsed,
                        consensus: false,
                        data,
                    });
                }
                _ => {}
            }
        }
    }

    /// How many updates were announced, and whether every seat that has a board of the number has proofs of its updates.
    fn verified(&self, number: u64, transaction: &Transaction) -> (usize, bool) {
        let signal = crate::actors::chain::signal_of(transaction);
        let proven: Vec<Option<usize>> =
            self.seats.iter().filter_map(|seat| seat.policy.proven(number, signal.as_ref())).collect();
        (proven.iter().flatten().sum(), !proven.is_empty() && proven.iter().all(Option::is_some))
    }

    /// The transaction counts as final.
    async fn settle(&mut self, transaction: &Transaction, coin: CoinRef) -> Result<CoinRef, DemoError> {
        let by = transaction.compute_txid();
        let signal = crate::actors::chain::signal_of(transaction);
        self.cohort.report(CohortInput::Spent { coin, by }).await.map_err(internal)?;
        for seat in &self.seats {
            seat.policy.settled();
            let spent = SeatRequest::Spent { coin, by, signal };
            seat.member.request(&seat.did, spent).await.map_err(internal)?;
        }
        let change = transaction.output.first().map_or(0, |output| output.value.to_sat());
        Ok(CoinRef { txid: by, vout: 0, value: change })
    }
}
