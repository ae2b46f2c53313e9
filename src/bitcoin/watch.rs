//! Drives one announcement: polls the chain, journals the decisions of the machine, submits its transactions, and
//! notifies subscribers. It decides nothing itself.
//!
//! It serves the chain and its requests concurrently. A request that arrives during a look at the chain waits for its
//! result; when no sender of requests is left, the look is cancelled. A request for a transaction is answered when
//! there is one.

use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};

use ::bitcoin::{FeeRate, OutPoint, Transaction};
use rand_chacha::ChaCha20Rng;
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::{Instant, sleep_until},
};

pub use super::chain::signal_of;
use super::{
    announcement::{Announcement, AnnouncementEvent, Effect, Input, Need, NotFunded, Prepared, State, Wanted},
    chain::{Activity, Chain, ChainError, Rejection, Spend},
    change::{ChangeKey, Child},
    claims::Claims,
    look::look,
    notice::{self, AnnouncementNotice, NeededSat},
};
use crate::{
    actors::{
        journal::{Journal, JournalError, Record, StreamId},
        runtime::{Clock, LONGEST_SLEEP, Randomness},
    },
    bitcoin::recovery::block_time,
    protocol::{
        error::Reject,
        hash::SignalBytes,
        id::CohortId,
        machine::{self, Machine},
        network::Network,
        output::BeaconOutput,
    },
};

/// How long a request for a transaction waits for a coin before it is answered with what is missing.
const PATIENCE: Duration = Duration::from_secs(600);

/// How long the chain may take for its fees before the address is published without the required amounts of a deposit.
const QUICKLY: Duration = Duration::from_secs(5);

/// How many requests are queued during a look at the chain.
const PUT_ASIDE: usize = 64;

/// The settings of a watch.
#[derive(Clone)]
pub struct WatchSettings {
    /// The chain.
    pub chain: Arc<dyn Chain>,
    /// Its network.
    pub network: Network,
    /// The key that can spend change, for bumps; `None` if change goes elsewhere.
    pub change_key: Option<Arc<ChangeKey>>,
    /// The journal, with the facts in the stream `announcement/<cohort id>`.
    pub journal: Arc<dyn Journal>,
    /// The clock.
    pub clock: Clock,
    /// The poll interval.
    pub poll: Duration,
    /// The claims of the announcements of one address, shared by all watches.
    pub claims: Arc<Claims>,
    /// The channel of notices.
    pub notices: broadcast::Sender<Arc<AnnouncementNotice>>,
}

/// A request of the host.
#[derive(Debug)]
pub enum Request {
    /// The transaction that announces `signal`. Answered when there is one, when there will be none, and after ten
    /// minutes.
    Prepare {
        /// The cohort's output.
        output: BeaconOutput,
        /// The signal to announce.
        signal: SignalBytes,
        /// The channel of the answer.
        answer: oneshot::Sender<Result<Prepared, PrepareError>>,
    },
    /// The cohort has signed.
    Signed {
        /// The transaction.
        transaction: Transaction,
        /// The value of its coin.
        value: ::bitcoin::Amount,
        /// Answered when the fact is persisted.
        persisted: oneshot::Sender<()>,
    },
    /// The cohort ended without a transaction.
    CohortFailed {
        /// The reason.
        reason: String,
        /// Answered when the fact is persisted.
        persisted: oneshot::Sender<()>,
    },
}

/// Why there is no transaction to sign.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PrepareError {
    /// There will be none.
    #[error("{0}")]
    Never(String),
    /// Not yet.
    #[error(transparent)]
    NotFunded(#[from] NotFunded),
    /// Unknown: the known state of the chain is out of date.
    #[error("the chain cannot be queried now: {0}")]
    Unreachable(String),
}

/// Why a watch cannot continue.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WatchError {
    /// A fact was not persisted, so its effects must not happen.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A record of the journal is not a fact of an announcement.
    #[error("journal stream {stream}: {problem}")]
    Replay {
        /// The stream.
        stream: StreamId,
        /// What is wrong.
        problem: String,
    },
    /// The operator is stopping. The caller repeats the request after a restart.
    #[error("the operator is stopping")]
    Stopping,
}

/// A pending request for a transaction.
struct Waiting {
    output: BeaconOutput,
    signal: SignalBytes,
    answer: oneshot::Sender<Result<Prepared, PrepareError>>,
    until: Instant,
}

/// The result of a look at the chain.
struct Seen {
    activity: Activity,
    since: u32,
    fees: Fees,
}

/// The fees that the chain asks for.
#[derive(Clone, Copy, Debug, Default)]
struct Fees {
    /// Its estimate.
    estimate: Option<FeeRate>,
    /// The rate below which it accepts no transaction.
    minimum: Option<FeeRate>,
}

/// One announcement and its driver.
pub struct Watch {
    cohort_id: CohortId,
    machine: Announcement,
    settings: WatchSettings,
    stream: StreamId,
    rng: ChaCha20Rng,
    /// Why the last query of the chain failed.
    unreachable: Option<String>,
    /// The fees of the last successful query.
    fees: Fees,
    /// The cohort's output, once the host has provided it. The required amounts of a deposit follow from it.
    output: Option<BeaconOutput>,
    /// The deposits that were reported as too small.
    too_small: BTreeSet<OutPoint>,
    /// When the address was created, if that was in this run.
    begun: Option<Instant>,
    /// Whether the notices that must not be missed were sent in this run.
    has_notified: bool,
    waiting: Vec<Waiting>,
}

impl Watch {
    /// The stream of a cohort's announcement.
    pub fn stream(cohort_id: &CohortId) -> StreamId {
        StreamId::new(format!("{STREAMS}{cohort_id}"))
    }

    /// The cohort of an announcement's stream.
    pub fn cohort_of(stream: &StreamId) -> Option<CohortId> {
        stream.as_str().strip_prefix(STREAMS).and_then(|id| CohortId::parse(id).ok())
    }

    /// The announcement of a cohort, according to the journal.
    ///
    /// # Errors
    /// [`WatchError`] when the journal cannot be read, or has other records.
    pub async fn open(
        cohort_id: CohortId,
        machine: Announcement,
        settings: WatchSettings,
    ) -> Result<Self, WatchError> {
        let stream = Self::stream(&cohort_id);
        let records = settings.journal.read(&stream).await?;
        let events: Result<Vec<AnnouncementEvent>, _> = records.iter().map(Record::event).collect();
        let events =
            events.map_err(|error| WatchError::Replay { stream: stream.clone(), problem: error.to_string() })?;
        let machine = machine::replay(machine, &events);
        let rng = Randomness::System.for_actor(stream.as_str());
        settings.claims.note(&cohort_id, &machine);
        Ok(Self {
            cohort_id,
            machine,
            settings,
            stream,
            rng,
            unreachable: None,
            fees: Fees::default(),
            output: None,
            too_small: BTreeSet::new(),
            begun: None,
            has_notified: false,
            waiting: Vec::new(),
        })
    }

    /// The announcement.
    pub fn announcement(&self) -> &Announcement {
        &self.machine
    }

    /// Gives the watch its cohort's output before it is fed the script, so that it can compute what a deposit needs.
    pub async fn know(&mut self, output: BeaconOutput) {
        self.output = Some(output);
        if !self.machine.has_ended()
            && let Ok(fees) = tokio::time::timeout(QUICKLY, self.ask_fees()).await
        {
            self.fees = fees;
        }
    }

    /// The required amounts of one deposit, by the last known fees.
    fn need(&self) -> Option<Need> {
        let rules = self.machine.rules();
        let fees = rules.fees.above(self.fees.minimum).unwrap_or(rules.fees);
        Need::of(self.output.as_ref()?, rules, fees.first(self.fees.estimate)).ok()
    }

    /// Reports each deposit once that is too small, while there is no sufficient one.
    fn notify_too_small(&mut self) {
        let sight = self.machine.sight();
        self.too_small.retain(|outpoint| sight.deposits.contains_key(outpoint));
        let Some(need) = self.need().filter(|_| matches!(self.machine.state(), State::Funding { .. })) else {
            return;
        };
        let unspent = || sight.deposits.values().filter(|deposit| !sight.spends.contains_key(&deposit.outpoint));
        if unspent().any(|deposit| deposit.value >= need.at_least) {
            return;
        }
        let new: Vec<_> =
            unspent().filter(|deposit| !self.too_small.contains(&deposit.outpoint)).copied().collect();
        for deposit in new {
            self.too_small.insert(deposit.outpoint);
            self.notify(AnnouncementNotice::DepositTooSmall {
                cohort_id: self.cohort_id.clone(),
                outpoint: deposit.outpoint,
                value: deposit.value,
                need: NeededSat(need),
            });
        }
    }

    /// The same watch, opened again in the same run: it does not repeat its notices.
    pub(super) fn already_notified(mut self) -> Self {
        self.has_notified = true;
        self
    }

    /// Feeds `input` to the machine, and executes all effects.
    ///
    /// # Errors
    /// [`WatchError`] when the facts cannot be persisted. A rejection by the machine is the inner result.
    pub async fn feed(&mut self, input: Input) -> Result<Result<(), Reject>, WatchError> {
        let mut next = Some(input);
        while let Some(input) = next.take() {
            let now = self.settings.clock.now();
            let events = match self.machine.decide(now, &input, &mut self.rng) {
                Ok(events) => events,
                Err(reject) => return Ok(Err(reject)),
            };
            if events.is_empty() {
                break;
            }
            let mut notices = Vec::new();
            let mut effects = Vec::new();
            let need = self.need();
            for event in &events {
                self.machine.apply(event);
                notices.extend(notice::of(&self.cohort_id, self.settings.network, &self.machine, need, event));
                effects.extend(self.machine.effects(event));
            }
            self.settings.claims.note(&self.cohort_id, &self.machine);
            if events.iter().any(|event| matches!(event, AnnouncementEvent::WatchStarted { .. })) {
                self.begun = Some(Instant::now());
                self.has_notified = true;
            }
            let records = events.iter().cloned().map(Record::new).collect();
            self.settings.journal.append(&self.stream, records).await?;
            for notice in notices {
                self.notify(notice);
            }
            self.notify_too_small();
            for event in &events {
                if let AnnouncementEvent::ForeignSpendSeen { spend, .. } = event {
                    self.look_into(spend).await;
                }
            }
            // Only the last of several is needed: it submits the announcement with its newest child.
            if let Some(Effect::Submit { transaction, child }) = effects.pop() {
                next = self.submit(&transaction, child.as_ref()).await;
            }
        }
        Ok(Ok(()))
    }

    async fn submit(&mut self, transaction: &Transaction, child: Option<&Child>) -> Option<Input> {
        let chain = Arc::clone(&self.settings.chain);
        let signed = child.zip(self.settings.change_key.as_ref()).map(|(child, key)| key.sign(child));
        let result = match &signed {
            Some(child) => chain.submit_package(transaction, child).await,
            None => chain.submit(transaction).await,
        };
        let result: Result<(), Rejection> = match result {
            Ok(()) => Ok(()),
            Err(ChainError::Rejected(rejection)) => Err(rejection),
            Err(error) => {
                // The machine submits it again if it stays out of sight.
                self.unreachable(&error);
                return None;
            }
        };
        Some(Input::Submitted { txid: signed.as_ref().unwrap_or(transaction).compute_txid(), result })
    }

    /// Queries the chain, and feeds the result.
    ///
    /// # Errors
    /// Like [`Self::feed`].
    pub async fn poll(&mut self) -> Result<(), WatchError> {
        if matches!(self.machine.state(), State::Planned) || self.machine.has_ended() {
            return Ok(());
        }
        let seen = self.ask().await;
        self.take(seen).await
    }

    /// The result of a look at the chain.
    async fn ask(&self) -> Result<Seen, ChainError> {
        let (activity, since) = look(&*self.settings.chain, &self.machine, self.is_young()).await?;
        Ok(Seen { activity, since, fees: self.ask_fees().await })
    }

    /// Whether the address is so new that the blocks that are read anyway contain everything.
    fn is_young(&self) -> bool {
        let others = self.settings.claims.others(&self.cohort_id, self.machine.script());
        // Half of it, in case blocks come fast.
        let window = block_time(self.settings.network) * self.machine.rules().window() / 2;
        !others.exist && self.begun.is_some_and(|begun| begun.elapsed() < window)
    }

    /// Feeds the result of a look at the chain.
    async fn take(&mut self, seen: Result<Seen, ChainError>) -> Result<(), WatchError> {
        match seen {
            Ok(Seen { activity, since, fees }) => {
                if self.unreachable.take().is_some() {
                    self.notify(AnnouncementNotice::ChainAvailable { cohort_id: self.cohort_id.clone() });
                }
                self.fees = fees;
                let Fees { estimate, minimum } = fees;
                let known = self.settings.claims.others(&self.cohort_id, self.machine.script()).transactions;
                // Observations are never rejected.
                let _ = self.feed(Input::Observed { activity, since, estimate, minimum, known }).await?;
            }
            Err(error) => self.unreachable(&error),
        }
        Ok(())
    }

    /// The fees that the chain asks for. On an error there are none: floor and ceiling apply.
    async fn ask_fees(&self) -> Fees {
        let target = self.machine.rules().fees.target();
        let known = |answer: Result<Option<FeeRate>, ChainError>| match answer {
            Ok(rate) => rate,
            Err(error) => {
                tracing::warn!(cohort_id = %self.cohort_id, %error, "no fee estimate");
                None
            }
        };
        Fees {
            estimate: known(self.settings.chain.fee_estimate(target).await),
            minimum: known(self.settings.chain.minimum_fee().await),
        }
    }

    fn unreachable(&mut self, error: &ChainError) {
        tracing::warn!(cohort_id = %self.cohort_id, %error, "the chain does not answer");
        if self.unreachable.replace(error.to_string()).is_none() {
            let (cohort_id, problem) = (self.cohort_id.clone(), error.to_string());
            self.notify(AnnouncementNotice::ChainUnavailable { cohort_id, problem });
        }
    }

    /// Reports the signal of a foreign spend, if it can be read. The spend itself was reported before, because a node
    /// may be slow.
    async fn look_into(&self, spend: &Spend) {
        let block = spend.place.block().map(|block| &block.hash);
        let found = self.settings.chain.transaction(&spend.by, block).await;
        if let Some(signal) = found.ok().flatten().as_ref().and_then(signal_of) {
            self.notify(AnnouncementNotice::ForeignSignal {
                cohort_id: self.cohort_id.clone(),
                by: spend.by,
                signal,
            });
        }
    }

    /// Repeats the notices that must not be missed, in case they were lost with the previous run: wanted funds, and
    /// alarms.
    async fn notify_again(&self) {
        if self.has_notified {
            return;
        }
        if let State::Funding { deadline } = self.machine.state() {
            let network = self.settings.network;
            self.notify(notice::funding_wanted(
                &self.cohort_id,
                network,
                self.machine.script(),
                *deadline,
                self.need(),
            ));
        }
        for spend in self.machine.alarms() {
            self.notify(notice::foreign_spend(&self.cohort_id, spend));
        }
        for spend in self.machine.alarms() {
            self.look_into(spend).await;
        }
    }

    fn notify(&self, notice: AnnouncementNotice) {
        // No subscriber is not an error.
        let _ = self.settings.notices.send(Arc::new(notice));
    }

    /// Answers the pending requests that can be answered.
    async fn answer_waiting(&mut self) -> Result<(), WatchError> {
        for waiting in std::mem::take(&mut self.waiting) {
            // The requester may be gone; it repeats its request.
            if waiting.answer.is_closed() {
                continue;
            }
            match self.prepare(&waiting).await? {
                Err(PrepareError::NotFunded(_) | PrepareError::Unreachable(_))
                    if Instant::now() < waiting.until =>
                {
                    self.waiting.push(waiting);
                }
                answer => drop(waiting.answer.send(answer)),
            }
        }
        Ok(())
    }

    async fn prepare(&mut self, waiting: &Waiting) -> Result<Result<Prepared, PrepareError>, WatchError> {
        if let State::Failed { failure } = self.machine.state() {
            return Ok(Err(PrepareError::Never(failure.to_string())));
        }
        if let Some(problem) = &self.unreachable {
            return Ok(Err(PrepareError::Unreachable(problem.clone())));
        }
        self.output.get_or_insert_with(|| waiting.output.clone());
        let claims = Arc::clone(&self.settings.claims);
        let _turn = claims.choose().await;
        let wanted = Wanted {
            output: waiting.output.clone(),
            signal: waiting.signal,
            estimate: self.fees.estimate,
            minimum: self.fees.minimum,
            taken: claims.others(&self.cohort_id, self.machine.script()).coins,
        };
        if let Err(reject) = self.feed(Input::Prepare(wanted.clone())).await? {
            return Ok(Err(PrepareError::Never(reject.detail)));
        }
        let now = self.settings.clock.now();
        Ok(match self.machine.prepared(&wanted.signal) {
            Some(prepared) => Ok(prepared.clone()),
            None => self.machine.choose(now, &wanted).map_err(PrepareError::from),
        })
    }

    /// Runs until the announcement has ended, or its operator is dropped. Pending requests are served first in any
    /// case.
    ///
    /// # Errors
    /// [`WatchError`] when the facts cannot be persisted. A new watch continues from the persisted state.
    pub async fn run(mut self, requests: &mut mpsc::Receiver<Request>) -> Result<Announcement, WatchError> {
        self.notify_again().await;
        let mut poll_at = Instant::now();
        let mut ticked = None;
        while !(self.machine.has_ended() && requests.is_empty()) {
            // One tick per deadline: a tick without effect now has an effect after the next look at the chain.
            let deadline = self.machine.deadline().filter(|deadline| ticked != Some(*deadline));
            let due = deadline.map_or(LONGEST_SLEEP, |deadline| self.settings.clock.nap(deadline));
            tokio::select! {
                biased;
                request = requests.recv() => match request {
                    Some(request) => {
                        self.serve(request).await?;
                        if !self.waiting.is_empty() {
                            poll_at = Instant::now();
                        }
                    }
                    None => break,
                },
                () = sleep_until(Instant::now() + due) => {
                    // Otherwise only the poll interval passed.
                    let passed = deadline.filter(|deadline| *deadline <= self.settings.clock.now());
                    if passed.is_some() {
                        ticked = passed;
                        let _ = self.feed(Input::Tick).await?;
                    }
                }
                () = sleep_until(poll_at) => {
                    let Some((seen, put_aside)) = self.ask_and_listen(requests).await else { break };
                    self.take(seen).await?;
                    for request in put_aside {
                        self.serve(request).await?;
                    }
                    self.answer_waiting().await?;
                    poll_at = Instant::now() + self.settings.poll;
                    ticked = None;
                }
            }
        }
        Ok(self.machine)
    }

    /// The result of a look at the chain, and the requests that arrived meanwhile. `None` when no sender of requests is
    /// left.
    async fn ask_and_listen(
        &self,
        requests: &mut mpsc::Receiver<Request>,
    ) -> Option<(Result<Seen, ChainError>, Vec<Request>)> {
        let mut put_aside = Vec::new();
        let mut ask = pin!(self.ask());
        loop {
            tokio::select! {
                biased;
                seen = &mut ask => return Some((seen, put_aside)),
                request = requests.recv(), if put_aside.len() < PUT_ASIDE => put_aside.push(request?),
            }
        }
    }

    async fn serve(&mut self, request: Request) -> Result<(), WatchError> {
        let refused = match request {
            Request::Prepare { output, signal, answer } => {
                let until = Instant::now() + PATIENCE;
                self.waiting.push(Waiting { output, signal, answer, until });
                Ok(())
            }
            Request::Signed { transaction, value, persisted } => {
                let fed = self.feed(Input::Signed { transaction, value }).await?;
                // The requester may be gone; it repeats its request after a restart.
                let _ = persisted.send(());
                fed
            }
            Request::CohortFailed { reason, persisted } => {
                let fed = self.feed(Input::CohortFailed { reason }).await?;
                let _ = persisted.send(());
                fed
            }
        };
        if let Err(reject) = refused {
            tracing::warn!(cohort_id = %self.cohort_id, %reject, "an announcement rejected an input of its host");
        }
        Ok(())
    }
}

/// The prefix of the streams of announcements.
const STREAMS: &str = "announcement/";
