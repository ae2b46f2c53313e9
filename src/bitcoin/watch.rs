//! Drives one announcement: polls the chain, journals what the machine decides, hands in what it wants handed in, and tells
//! subscribers. It decides nothing itself.

use std::{sync::Arc, time::Duration};

use ::bitcoin::{FeeRate, Transaction};
use rand_chacha::ChaCha20Rng;
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{
    announcement::{Announcement, AnnouncementEvent, Effect, Input, NotFunded, Prepared, State},
    chain::{Activity, Chain, ChainError, Deposit, Rejection, Spend},
    change::{ChangeKey, Child},
    notice::{self, AnnouncementNotice},
};
use crate::{
    actors::{
        journal::{Journal, JournalError, Record, StreamId},
        runtime::{Clock, Randomness},
    },
    protocol::{
        error::Reject,
        hash::SignalBytes,
        id::CohortId,
        machine::{self, Machine},
        network::Network,
        output::BeaconOutput,
    },
};

/// How far ahead a timer is set at most: a deadline that is "never" is no instant.
const FAR: Duration = Duration::from_secs(24 * 3600);

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
    /// Where to tell what happens.
    pub notices: broadcast::Sender<Arc<AnnouncementNotice>>,
}

/// What a host asks of a watch.
#[derive(Debug)]
pub enum Request {
    /// The transaction that announces `signal`.
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
}

/// One announcement and what drives it.
pub struct Watch {
    cohort_id: CohortId,
    machine: Announcement,
    settings: WatchSettings,
    stream: StreamId,
    rng: ChaCha20Rng,
    /// Whether the chain could be asked the last time.
    reached: bool,
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
        Ok(Self { cohort_id, machine, settings, stream, rng, reached: true })
    }

    /// The announcement.
    pub fn announcement(&self) -> &Announcement {
        &self.machine
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
            for event in &events {
                self.machine.apply(event);
                told.extend(notice::of(&self.cohort_id, self.settings.network, &self.machine, event));
                effects.extend(self.machine.effects(event));
            }
            let records = events.iter().cloned().map(Record::new).collect();
            self.settings.journal.append(&self.stream, records).await?;
            for notice in told {
                self.tell(notice);
            }
            for event in &events {
                if let AnnouncementEvent::ForeignSpendSeen { spend, .. } = event {
                    self.alarm(spend).await;
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
        let result = match result {
            Ok(()) => Ok(()),
            Err(ChainError::Rejected(rejection)) => Err(rejection),
            Err(error) => {
                // The machine hands it in again when it stays out of sight.
                self.unreachable(&error);
                return None;
            }
        };
        Some(Input::HandedIn { txid: self.whose(transaction, signed.as_ref(), &result), result })
    }

    /// Which of the two a result is about.
    fn whose(
        &self,
        transaction: &Transaction,
        child: Option<&Transaction>,
        result: &Result<(), Rejection>,
    ) -> ::bitcoin::Txid {
        match (child, result) {
            (Some(child), Err(_)) => child.compute_txid(),
            _ => transaction.compute_txid(),
        }
    }

    /// Asks the chain what happened, and feeds the answer.
    ///
    /// # Errors
    /// As [`Self::feed`].
    pub async fn poll(&mut self) -> Result<(), WatchError> {
        if matches!(self.machine.state(), State::Planned) || self.machine.has_ended() {
            return Ok(());
        }
        match self.look().await {
            Ok((activity, since)) => {
                if !self.reached {
                    self.reached = true;
                    self.tell(AnnouncementNotice::ChainAvailable { cohort_id: self.cohort_id.clone() });
                }
                let estimate = self.estimate().await;
                // Observations are refused by nothing.
                let _ = self.feed(Input::Observed { activity, since, estimate }).await?;
            }
            Err(error) => self.unreachable(&error),
        }
        Ok(())
    }

    /// What happened, and from which height on that is all.
    async fn look(&self) -> Result<(Activity, u32), ChainError> {
        let (chain, script) = (&self.settings.chain, self.machine.script());
        let sight = self.machine.sight();
        let window = self.machine.rules().window();
        let Some(from) = sight.rescan_from(window) else {
            // The coins say nothing of spends that a block has already; the blocks do.
            let coins = chain.coins(script).await?;
            let from = coins.tip.block.height.saturating_sub(window);
            let mut activity = chain.activity(script, from).await?;
            let older = |deposit: &Deposit| deposit.place.block().is_some_and(|block| block.height < from);
            activity.deposits.extend(coins.deposits.into_iter().filter(older));
            return Ok((activity, 0));
        };
        // While the tip stands still, only the mempool can have changed.
        let tip = chain.tip().await?;
        if sight.tip == Some(tip) {
            let since = tip.block.height + 1;
            let activity = chain.activity(script, since).await?;
            if activity.tip == tip {
                return Ok((activity, since));
            }
        }
        Ok((chain.activity(script, from).await?, from))
    }

    /// The chain's estimate; none when it fails, which is what floor and ceiling are for.
    async fn estimate(&self) -> Option<FeeRate> {
        let target = self.machine.rules().fees.target();
        match self.settings.chain.fee_estimate(target).await {
            Ok(estimate) => estimate,
            Err(error) => {
                tracing::warn!(cohort_id = %self.cohort_id, %error, "no fee estimate");
                None
            }
        }
    }

    fn unreachable(&mut self, error: &ChainError) {
        tracing::warn!(cohort_id = %self.cohort_id, %error, "the chain does not answer");
        if std::mem::replace(&mut self.reached, false) {
            let (cohort_id, problem) = (self.cohort_id.clone(), error.to_string());
            self.tell(AnnouncementNotice::ChainUnavailable { cohort_id, problem });
        }
    }

    /// Tells of a foreign spend, with the signal in it if it can be read.
    async fn alarm(&self, spend: &Spend) {
        let block = spend.place.block().copied();
        let found = self.settings.chain.transaction(&spend.by, block.as_ref().map(|block| &block.hash)).await;
        let signal = found.ok().flatten().as_ref().and_then(signal_of);
        let cohort_id = self.cohort_id.clone();
        self.tell(AnnouncementNotice::ForeignSpend {
            cohort_id,
            outpoint: spend.outpoint,
            by: spend.by,
            block,
            signal,
        });
    }

    fn tell(&self, notice: AnnouncementNotice) {
        // No subscribers is fine.
        let _ = self.settings.notices.send(Arc::new(notice));
    }

    async fn prepare(
        &mut self,
        output: BeaconOutput,
        signal: SignalBytes,
    ) -> Result<Result<Prepared, PrepareError>, WatchError> {
        self.poll().await?;
        let estimate = self.estimate().await;
        if let State::Failed { failure } = self.machine.state() {
            return Ok(Err(PrepareError::Never(failure.to_string())));
        }
        if let Err(reject) = self.feed(Input::Prepare { output: output.clone(), signal, estimate }).await? {
            return Ok(Err(PrepareError::Never(reject.detail)));
        }
        Ok(match self.machine.prepared(&signal) {
            Some(prepared) => Ok(prepared.clone()),
            None => self.machine.choose(&output, &signal, estimate).map_err(PrepareError::from),
        })
    }

    /// Runs until the announcement has ended, or its operator is gone.
    ///
    /// # Errors
    /// [`WatchError`] when the facts cannot be written down. A new watch goes on from what was.
    pub async fn run(mut self, requests: &mut mpsc::Receiver<Request>) -> Result<Announcement, WatchError> {
        let mut poll_at = Instant::now();
        let mut ticked = None;
        while !self.machine.has_ended() {
            let now = self.settings.clock.now();
            // One tick for a deadline: one that leads to nothing now leads to something after the next look at the chain.
            let deadline = self.machine.deadline().filter(|deadline| ticked != Some(*deadline));
            let due = deadline.map_or(FAR, |deadline| deadline.since(now).min(FAR));
            tokio::select! {
                biased;
                request = requests.recv() => match request {
                    Some(request) => self.serve(request).await?,
                    None => break,
                },
                () = sleep_until(Instant::now() + due) => {
                    ticked = deadline.filter(|deadline| *deadline <= self.settings.clock.now());
                    let _ = self.feed(Input::Tick).await?;
                }
                () = sleep_until(poll_at) => {
                    self.poll().await?;
                    poll_at = Instant::now() + self.settings.poll;
                    ticked = None;
                }
            }
        }
        Ok(self.machine)
    }

    async fn serve(&mut self, request: Request) -> Result<(), WatchError> {
        let refused = match request {
            Request::Prepare { output, signal, answer } => {
                let prepared = self.prepare(output, signal).await?;
                // Whoever asked may have gone; it asks again.
                let _ = answer.send(prepared);
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
