//! Drives one announcement: polls the chain, journals what the machine decides, hands in what it wants handed in, and tells
//! subscribers. It decides nothing itself.
//!
//! It is at the chain or at its requests, never deaf to either: what is asked while it looks at the chain waits for the answer,
//! and when nobody can ask any more the look is given up. Who asks for a transaction is answered when there is one.

use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};

use ::bitcoin::{FeeRate, OutPoint, Transaction};
use rand_chacha::ChaCha20Rng;
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::{Instant, sleep_until},
};

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

/// How long who asks for a transaction waits for a coin before it is told what is missing.
const PATIENCE: Duration = Duration::from_secs(600);

/// How long the chain may take to say what it asks for, before the address is told without what a deposit needs.
const QUICKLY: Duration = Duration::from_secs(5);

/// How many requests are put aside while the chain is asked.
const PUT_ASIDE: usize = 64;

/// What a watch has to do with.
#[derive(Clone)]
pub struct WatchSettings {
    /// The chain.
    pub chain: Arc<dyn Chain>,
    /// Its network.
    pub network: Network,
    /// What to spend change with, for bumps; none where change goes elsewhere.
    pub change_key: Option<Arc<ChangeKey>>,
    /// Where the facts are kept, in the stream `announcement/<cohort id>`.
    pub journal: Arc<dyn Journal>,
    /// The time.
    pub clock: Clock,
    /// How often to ask the chain.
    pub poll: Duration,
    /// What the announcements of one address leave to each other: one for all watches.
    pub claims: Arc<Claims>,
    /// Where to tell what happens.
    pub notices: broadcast::Sender<Arc<AnnouncementNotice>>,
}

/// What a host asks of a watch.
#[derive(Debug)]
pub enum Request {
    /// The transaction that announces `signal`: answered when there is one, when there will be none, and after ten minutes.
    Prepare {
        /// The cohort's output.
        output: BeaconOutput,
        /// What to announce.
        signal: SignalBytes,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Prepared, PrepareError>>,
    },
    /// The cohort has signed.
    Signed {
        /// The transaction.
        transaction: Transaction,
        /// What its coin holds.
        value: ::bitcoin::Amount,
        /// Told when that is written down.
        kept: oneshot::Sender<()>,
    },
    /// The cohort ended without a transaction.
    CohortFailed {
        /// Why.
        reason: String,
        /// Told when that is written down.
        kept: oneshot::Sender<()>,
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
    /// It cannot be told: what is known of the chain is old.
    #[error("the chain cannot be asked now: {0}")]
    Unreachable(String),
}

/// Why a watch cannot go on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WatchError {
    /// What is not written down must not be done.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The journal holds what is no fact of an announcement.
    #[error("journal stream {stream}: {problem}")]
    Replay {
        /// Which stream.
        stream: StreamId,
        /// What is wrong.
        problem: String,
    },
    /// The operator is stopping. What it is told now has to be told again after a restart.
    #[error("the operator is stopping")]
    Stopping,
}

/// Who waits for a transaction.
struct Waiting {
    output: BeaconOutput,
    signal: SignalBytes,
    answer: oneshot::Sender<Result<Prepared, PrepareError>>,
    until: Instant,
}

/// What a look at the chain shows.
struct Seen {
    activity: Activity,
    since: u32,
    fees: Fees,
}

/// What the chain asks for.
#[derive(Clone, Copy, Debug, Default)]
struct Fees {
    /// Its estimate.
    estimate: Option<FeeRate>,
    /// The rate below which it takes nothing.
    minimum: Option<FeeRate>,
}

/// One announcement and what drives it.
pub struct Watch {
    cohort_id: CohortId,
    machine: Announcement,
    settings: WatchSettings,
    stream: StreamId,
    rng: ChaCha20Rng,
    /// Why the chain could not be asked the last time.
    unreachable: Option<String>,
    /// What it asks for, as of the last time that it could.
    fees: Fees,
    /// The cohort's output, once the host has shown it: what a deposit needs follows from it.
    output: Option<BeaconOutput>,
    /// The deposits that were said to be too small.
    too_small: BTreeSet<OutPoint>,
    /// When the address came to be, if that was in this life.
    begun: Option<Instant>,
    /// Whether what must not be missed was told in this life.
    has_told: bool,
    waiting: Vec<Waiting>,
}

impl Watch {
    /// The stream of a cohort's announcement.
    pub fn stream(cohort_id: &CohortId) -> StreamId {
        StreamId::new(format!("{STREAMS}{cohort_id}"))
    }

    /// The cohort whose announcement a stream is.
    pub fn cohort_of(stream: &StreamId) -> Option<CohortId> {
        stream.as_str().strip_prefix(STREAMS).and_then(|id| CohortId::parse(id).ok())
    }

    /// The announcement of a cohort, as far as the journal knows it.
    ///
    /// # Errors
    /// [`WatchError`] when the journal cannot be read, or holds something else.
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
            has_told: false,
            waiting: Vec::new(),
        })
    }

    /// The announcement.
    pub fn announcement(&self) -> &Announcement {
        &self.machine
    }

    /// Shows the watch its cohort's output, before it is fed the script: so that it can tell what a deposit needs.
    pub async fn know(&mut self, output: BeaconOutput) {
        self.output = Some(output);
        if !self.machine.has_ended()
            && let Ok(fees) = tokio::time::timeout(QUICKLY, self.ask_fees()).await
        {
            self.fees = fees;
        }
    }

    /// What one deposit has to hold, by what the chain asked for last.
    fn need(&self) -> Option<Need> {
        let rules = self.machine.rules();
        let fees = rules.fees.above(self.fees.minimum).unwrap_or(rules.fees);
        Need::of(self.output.as_ref()?, rules, fees.first(self.fees.estimate)).ok()
    }

    /// Says of each deposit once that it does not suffice, while none that does is there.
    fn tell_too_small(&mut self) {
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
            self.tell(AnnouncementNotice::DepositTooSmall {
                cohort_id: self.cohort_id.clone(),
                outpoint: deposit.outpoint,
                value: deposit.value,
                need: NeededSat(need),
            });
        }
    }

    /// The same watch, opened again in the same life: it tells nothing again.
    pub(super) fn has_told(mut self) -> Self {
        self.has_told = true;
        self
    }

    /// Lets `input` happen, and all that follows from it.
    ///
    /// # Errors
    /// [`WatchError`] when the facts cannot be written down; what the machine refuses is returned inside.
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
            let mut told = Vec::new();
            let mut effects = Vec::new();
            let need = self.need();
            for event in &events {
                self.machine.apply(event);
                told.extend(notice::of(&self.cohort_id, self.settings.network, &self.machine, need, event));
                effects.extend(self.machine.effects(event));
            }
            self.settings.claims.note(&self.cohort_id, &self.machine);
            if events.iter().any(|event| matches!(event, AnnouncementEvent::WatchStarted { .. })) {
                self.begun = Some(Instant::now());
                self.has_told = true;
            }
            let records = events.iter().cloned().map(Record::new).collect();
            self.settings.journal.append(&self.stream, records).await?;
            for notice in told {
                self.tell(notice);
            }
            self.tell_too_small();
            for event in &events {
                if let AnnouncementEvent::ForeignSpendSeen { spend, .. } = event {
                    self.look_into(spend).await;
                }
            }
            // Of several, the last one is the whole: it hands in the announcement with its newest child.
            if let Some(Effect::HandIn { transaction, child }) = effects.pop() {
                next = self.hand_in(&transaction, child.as_ref()).await;
            }
        }
        Ok(Ok(()))
    }

    async fn hand_in(&mut self, transaction: &Transaction, child: Option<&Child>) -> Option<Input> {
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
                // The machine hands it in again when it stays out of sight.
                self.unreachable(&error);
                return None;
            }
        };
        Some(Input::HandedIn { txid: signed.as_ref().unwrap_or(transaction).compute_txid(), result })
    }

    /// Asks the chain what happened, and feeds the answer.
    ///
    /// # Errors
    /// As [`Self::feed`].
    pub async fn poll(&mut self) -> Result<(), WatchError> {
        if matches!(self.machine.state(), State::Planned) || self.machine.has_ended() {
            return Ok(());
        }
        let seen = self.ask().await;
        self.take(seen).await
    }

    /// What the chain shows.
    async fn ask(&self) -> Result<Seen, ChainError> {
        let (activity, since) = look(&*self.settings.chain, &self.machine, self.is_young()).await?;
        Ok(Seen { activity, since, fees: self.ask_fees().await })
    }

    /// Whether the address is so new that nothing can have happened to it before the blocks that are read anyway.
    fn is_young(&self) -> bool {
        let others = self.settings.claims.others(&self.cohort_id, self.machine.script());
        // Half of it, should blocks come fast.
        let window = block_time(self.settings.network) * self.machine.rules().window() / 2;
        !others.exist && self.begun.is_some_and(|begun| begun.elapsed() < window)
    }

    /// Feeds what the chain has shown.
    async fn take(&mut self, seen: Result<Seen, ChainError>) -> Result<(), WatchError> {
        match seen {
            Ok(Seen { activity, since, fees }) => {
                if self.unreachable.take().is_some() {
                    self.tell(AnnouncementNotice::ChainAvailable { cohort_id: self.cohort_id.clone() });
                }
                self.fees = fees;
                let Fees { estimate, minimum } = fees;
                let known = self.settings.claims.others(&self.cohort_id, self.machine.script()).transactions;
                // Observations are refused by nothing.
                let _ = self.feed(Input::Observed { activity, since, estimate, minimum, known }).await?;
            }
            Err(error) => self.unreachable(&error),
        }
        Ok(())
    }

    /// What the chain asks for; nothing when that fails, which is what floor and ceiling are for.
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
            self.tell(AnnouncementNotice::ChainUnavailable { cohort_id, problem });
        }
    }

    /// Tells what a foreign spend announces, if that can be read. That it is there was told before: a node may take long.
    async fn look_into(&self, spend: &Spend) {
        let block = spend.place.block().map(|block| &block.hash);
        let found = self.settings.chain.transaction(&spend.by, block).await;
        if let Some(signal) = found.ok().flatten().as_ref().and_then(signal_of) {
            self.tell(AnnouncementNotice::ForeignSignal {
                cohort_id: self.cohort_id.clone(),
                by: spend.by,
                signal,
            });
        }
    }

    /// Tells again what must not be missed, should it have been lost with an earlier life: that funds are wanted, and alarms.
    async fn tell_again(&self) {
        if self.has_told {
            return;
        }
        if let State::Funding { deadline } = self.machine.state() {
            let network = self.settings.network;
            self.tell(notice::funding_wanted(
                &self.cohort_id,
                network,
                self.machine.script(),
                *deadline,
                self.need(),
            ));
        }
        for spend in self.machine.alarms() {
            self.tell(notice::foreign_spend(&self.cohort_id, spend));
        }
        for spend in self.machine.alarms() {
            self.look_into(spend).await;
        }
    }

    fn tell(&self, notice: AnnouncementNotice) {
        // No subscribers is fine.
        let _ = self.settings.notices.send(Arc::new(notice));
    }

    /// Answers those who wait, as far as there is an answer.
    async fn answer_waiting(&mut self) -> Result<(), WatchError> {
        for waiting in std::mem::take(&mut self.waiting) {
            // Whoever asked may have gone; it asks again.
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

    /// Runs until the announcement has ended, or its operator is gone. Requests that wait are served first in any case.
    ///
    /// # Errors
    /// [`WatchError`] when the facts cannot be written down. A new watch goes on from what was.
    pub async fn run(mut self, requests: &mut mpsc::Receiver<Request>) -> Result<Announcement, WatchError> {
        self.tell_again().await;
        let mut poll_at = Instant::now();
        let mut ticked = None;
        while !(self.machine.has_ended() && requests.is_empty()) {
            // One tick for a deadline: one that leads to nothing now leads to something after the next look at the chain.
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
                    // Otherwise it was a nap.
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

    /// What the chain shows, and what was requested meanwhile. None when nobody can request anything any more.
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
            Request::Signed { transaction, value, kept } => {
                let fed = self.feed(Input::Signed { transaction, value }).await?;
                // Whoever asked may have gone; it tells again after a restart.
                let _ = kept.send(());
                fed
            }
            Request::CohortFailed { reason, kept } => {
                let fed = self.feed(Input::CohortFailed { reason }).await?;
                let _ = kept.send(());
                fed
            }
        };
        if let Err(reject) = refused {
            tracing::warn!(cohort_id = %self.cohort_id, %reject, "an announcement refused what its host said");
        }
        Ok(())
    }
}

/// How the streams of announcements begin.
const STREAMS: &str = "announcement/";

/// The signal that a transaction announces, if it is one.
pub fn signal_of(transaction: &Transaction) -> Option<SignalBytes> {
    let script = &transaction.output.last()?.script_pubkey;
    let bytes: [u8; 32] = script.as_bytes().strip_prefix(&[0x6a, 0x20])?.try_into().ok()?;
    Some(SignalBytes::from_bytes(bytes))
}
