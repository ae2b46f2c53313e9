//! An operator with a chain: it provides transactions for the service's policy, and follows every announcement to its
//! end.
//!
//! Each announcement has one watch, and only the watch writes to its journal. A caller that finds no running watch
//! looks again and starts one under a lock. Requests are passed to the watch, which is started for them if necessary.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ::bitcoin::ScriptBuf;
use async_trait::async_trait;
use futures::FutureExt;
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    task::JoinHandle,
};

use super::{
    announcement::{Announcement, Input, Rules, State},
    notice::AnnouncementNotice,
    watch::{PrepareError, Request, Watch, WatchError, WatchSettings},
};
use crate::{
    actors::{
        journal::JournalError,
        notice::ServiceNotice,
        policy::{FundedTransaction, PolicyError, ServicePolicy, TransactionRequest},
    },
    protocol::{
        cohort::service::phase::PhaseKind,
        error::{Fatal, Retry},
        id::CohortId,
        output::BeaconOutput,
    },
};

/// How many requests may wait while a watch queries the chain. A cohort makes a handful in total.
const REQUESTS: usize = 16;

/// An operator with a chain. Clones share the state. Its watches run as tasks of the runtime that it is used on.
#[derive(Clone)]
pub struct ChainOperator(Arc<Inner>);

struct Inner {
    settings: WatchSettings,
    rules: Arc<Rules>,
    watches: Mutex<BTreeMap<CohortId, Running>>,
    /// Locked from the check whether a watch runs until it does.
    starting: tokio::sync::Mutex<Starting>,
}

/// Whether watches may be started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Starting {
    /// Not before the claims of previous runs are read: their transactions are not foreign.
    #[default]
    Unread,
    /// Watches may be started.
    Allowed,
    /// The operator has stopped.
    Over,
}

/// The address to watch.
enum Address<'a> {
    Script(ScriptBuf),
    Output(&'a BeaconOutput),
}

/// A watch that runs as a task.
struct Running {
    requests: mpsc::Sender<Request>,
    task: JoinHandle<()>,
}

impl ChainOperator {
    /// An operator that follows `rules`.
    pub fn new(settings: WatchSettings, rules: Rules) -> Self {
        let (rules, watches, starting) = (Arc::new(rules), Mutex::default(), tokio::sync::Mutex::default());
        Self(Arc::new(Inner { settings, rules, watches, starting }))
    }

    /// The settings of its watches.
    pub fn settings(&self) -> &WatchSettings {
        &self.0.settings
    }

    /// The operator's settings for announcements.
    pub fn rules(&self) -> &Arc<Rules> {
        &self.0.rules
    }

    /// All notices from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<AnnouncementNotice>> {
        self.0.settings.notices.subscribe()
    }

    /// Continues every announcement of the journal that has not ended. Returns their cohorts.
    ///
    /// # Errors
    /// [`JournalError`] when the journal cannot be read. A single stream that cannot be read is logged, and does not
    /// affect the others.
    pub async fn resume(&self) -> Result<Vec<CohortId>, JournalError> {
        let mut resumed = Vec::new();
        let starting = self.0.starting.lock().await;
        if *starting == Starting::Over {
            return Ok(resumed);
        }
        for stream in self.0.settings.journal.streams().await? {
            let Some(cohort_id) = Watch::cohort_of(&stream) else { continue };
            if self.running(&cohort_id).is_some() {
                resumed.push(cohort_id);
                continue;
            }
            // Ended announcements are opened too: their transactions are not foreign to the next announcement of the
            // address.
            match self.open(&cohort_id).await {
                Ok(watch) if watch.announcement().has_ended() => {}
                Ok(watch) => {
                    self.start(cohort_id.clone(), watch, None);
                    resumed.push(cohort_id);
                }
                Err(error) => tracing::error!(%cohort_id, %error, "an announcement cannot continue"),
            }
        }
        Ok(resumed)
    }

    /// Watches the beacon address of a cohort that has formed. A second call does nothing.
    ///
    /// # Errors
    /// [`WatchError`].
    pub async fn watch(&self, cohort_id: &CohortId, script: ScriptBuf) -> Result<(), WatchError> {
        self.watch_if_new(cohort_id, Address::Script(script)).await
    }

    /// The same, with the required amounts of a deposit in the notice.
    async fn watch_output(&self, cohort_id: &CohortId, output: &BeaconOutput) -> Result<(), WatchError> {
        self.watch_if_new(cohort_id, Address::Output(output)).await
    }

    async fn watch_if_new(&self, cohort_id: &CohortId, address: Address<'_>) -> Result<(), WatchError> {
        let _starting = self.begin().await?;
        if self.running(cohort_id).is_none() {
            let watch = self.open_at(cohort_id, address).await?;
            self.start(cohort_id.clone(), watch, None);
        }
        Ok(())
    }

    /// Follows a notice of the service: starts to watch, announces a signed transaction, ends a failed announcement.
    /// When it returns, the fact is persisted. A repeated notice has no effect.
    ///
    /// # Errors
    /// [`WatchError`].
    pub async fn follow(&self, step: &ServiceNotice) -> Result<(), WatchError> {
        match step {
            ServiceNotice::KeygenComplete { cohort_id, output, .. } => self.watch_output(cohort_id, output).await,
            ServiceNotice::CohortRecovered { cohort_id, output: Some(output), phase }
                if *phase != PhaseKind::Failed =>
            {
                self.watch_output(cohort_id, output).await
            }
            ServiceNotice::SigningComplete { cohort_id, result, .. } => {
                let (transaction, value) = (result.signed.transaction.clone(), result.signed.value);
                // Also if the announcement had failed: a signed transaction is worth announcing.
                let signed = |persisted| Request::Signed { transaction: transaction.clone(), value, persisted };
                self.deliver(cohort_id, Some(&result.output), signed).await
            }
            ServiceNotice::CohortFailed { cohort_id, reason, .. } => {
                let failed = |persisted| Request::CohortFailed { reason: reason.clone(), persisted };
                self.deliver(cohort_id, None, failed).await
            }
            _ => Ok(()),
        }
    }

    /// Passes a request to the watch of a cohort, and waits until the watch has persisted it. A watch that does not run
    /// is started, unless the cohort never had one and there is no `output` to watch.
    async fn deliver(
        &self,
        cohort_id: &CohortId,
        output: Option<&BeaconOutput>,
        request: impl Fn(oneshot::Sender<()>) -> Request,
    ) -> Result<(), WatchError> {
        loop {
            let (persisted, answer) = oneshot::channel();
            let request = request(persisted);
            let unsent = match self.running(cohort_id) {
                Some(watch) => watch.send(request).await.err().map(|unsent| unsent.0),
                None => Some(request),
            };
            if let Some(request) = unsent
                && !self.start_with(cohort_id, output, request).await?
            {
                return Ok(());
            }
            if answer.await.is_ok() {
                return Ok(());
            }
            // The watch ended as requested, or cannot write.
            tokio::time::sleep(self.0.settings.poll).await;
        }
    }

    /// Starts the watch of a cohort with a first request. Returns whether there is one.
    async fn start_with(
        &self,
        cohort_id: &CohortId,
        output: Option<&BeaconOutput>,
        request: Request,
    ) -> Result<bool, WatchError> {
        let starting = self.begin().await?;
        if let Some(watch) = self.running(cohort_id) {
            drop(starting);
            // A caller whose request does not arrive repeats it.
            let _ = watch.send(request).await;
            return Ok(true);
        }
        let watch = match output {
            Some(output) => self.open_at(cohort_id, Address::Output(output)).await?,
            None => self.open(cohort_id).await?,
        };
        if matches!(watch.announcement().state(), State::Planned) {
            return Ok(false);
        }
        self.start(cohort_id.clone(), watch, Some(request));
        Ok(true)
    }

    /// Locks the start of watches: the caller holds the guard until its watch runs.
    async fn begin(&self) -> Result<tokio::sync::MutexGuard<'_, Starting>, WatchError> {
        let mut starting = self.0.starting.lock().await;
        match *starting {
            Starting::Over => return Err(WatchError::Stopping),
            Starting::Allowed => {}
            Starting::Unread => {
                for stream in self.0.settings.journal.streams().await? {
                    let Some(cohort_id) = Watch::cohort_of(&stream) else { continue };
                    if let Err(error) = self.open(&cohort_id).await {
                        tracing::error!(%cohort_id, %error, "an announcement cannot be read");
                    }
                }
                *starting = Starting::Allowed;
            }
        }
        Ok(starting)
    }

    async fn open(&self, cohort_id: &CohortId) -> Result<Watch, WatchError> {
        let machine = Announcement::new(Arc::clone(&self.0.rules));
        Watch::open(cohort_id.clone(), machine, self.0.settings.clone()).await
    }

    async fn open_at(&self, cohort_id: &CohortId, address: Address<'_>) -> Result<Watch, WatchError> {
        let mut watch = self.open(cohort_id).await?;
        let script = match address {
            Address::Script(script) => script,
            Address::Output(output) => {
                watch.know(output.clone()).await;
                output.script_pubkey().to_owned()
            }
        };
        if let Err(reject) = watch.feed(Input::Watch { script }).await? {
            tracing::warn!(%cohort_id, %reject, "a cohort has another address than it had");
        }
        Ok(watch)
    }

    /// Runs a watch. The caller holds `starting`, and has checked that none runs.
    fn start(&self, cohort_id: CohortId, watch: Watch, first: Option<Request>) {
        let (requests, receiver) = mpsc::channel(REQUESTS);
        if let Some(first) = first {
            // The channel is empty: this is the first request.
            let _ = requests.try_send(first);
        }
        // The task does not own the operator: when the operator is dropped, so are the senders, and the task ends.
        let (settings, rules) = (self.0.settings.clone(), Arc::clone(&self.0.rules));
        let task = tokio::spawn(see_to_the_end(cohort_id.clone(), watch, receiver, settings, rules));
        let mut watches = self.watches();
        watches.retain(|_, watch| !watch.requests.is_closed());
        watches.insert(cohort_id, Running { requests, task });
    }

    fn watches(&self) -> MutexGuard<'_, BTreeMap<CohortId, Running>> {
        // No code panics while it holds the lock.
        self.0.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a cohort's announcement has ended in either way, according to the journal.
    pub async fn has_ended(&self, cohort_id: &CohortId) -> bool {
        match self.running(cohort_id) {
            Some(_) => false,
            None => self.open(cohort_id).await.is_ok_and(|watch| watch.announcement().has_ended()),
        }
    }

    /// Ends all watches after their pending writes. Looks at the chain are cancelled. No watch is started any more; a
    /// new operator continues them by [`Self::resume`].
    pub async fn stop(&self) {
        *self.0.starting.lock().await = Starting::Over;
        let watches = std::mem::take(&mut *self.watches());
        for (cohort_id, Running { requests, task }) in watches {
            drop(requests);
            if let Err(error) = task.await {
                tracing::error!(%cohort_id, %error, "an announcement ended badly");
            }
        }
    }

    fn running(&self, cohort_id: &CohortId) -> Option<mpsc::Sender<Request>> {
        let watches = self.watches();
        watches.get(cohort_id).map(|watch| watch.requests.clone()).filter(|requests| !requests.is_closed())
    }

    /// Whether the request reached the cohort's watch.
    async fn request(&self, cohort_id: &CohortId, request: Request) -> bool {
        let sent = match self.running(cohort_id) {
            Some(watch) => watch.send(request).await.is_ok(),
            None => false,
        };
        if !sent {
            tracing::debug!(%cohort_id, "a request for an announcement that has ended");
        }
        sent
    }
}

/// Runs a watch until its announcement has ended. A watch that cannot write its events, or panics, restarts from the
/// persisted events.
async fn see_to_the_end(
    cohort_id: CohortId,
    mut watch: Watch,
    mut requests: mpsc::Receiver<Request>,
    settings: WatchSettings,
    rules: Arc<Rules>,
) {
    loop {
        // The watch is dropped with its state, whatever state a panic has left it in.
        let problem = match AssertUnwindSafe(watch.run(&mut requests)).catch_unwind().await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it panicked".to_owned(),
        };
        tracing::error!(%cohort_id, problem, "an announcement restarts from its journal");
        watch = loop {
            tokio::time::sleep(settings.poll).await;
            if requests.is_closed() {
                return;
            }
            let machine = Announcement::new(Arc::clone(&rules));
            match Watch::open(cohort_id.clone(), machine, settings.clone()).await {
                Ok(watch) => break watch.already_notified(),
                Err(error) => tracing::error!(%cohort_id, %error, "an announcement stands still"),
            }
        };
    }
}

#[async_trait]
impl ServicePolicy for ChainOperator {
    async fn beacon_transaction(&self, request: &TransactionRequest) -> Result<FundedTransaction, PolicyError> {
        let TransactionRequest { cohort_id, output, signal, .. } = request;
        let retry = |problem: &dyn std::fmt::Display| PolicyError::Retry(Retry(problem.to_string()));
        self.watch_output(cohort_id, output).await.map_err(|error| retry(&error))?;
        let (answer, answered) = oneshot::channel();
        let wanted = Request::Prepare { output: output.clone(), signal: *signal, answer };
        self.request(cohort_id, wanted).await;
        match answered.await {
            Ok(Ok(prepared)) => {
                Ok(FundedTransaction { transaction: prepared.transaction, value: prepared.coin.value })
            }
            Ok(Err(problem @ (PrepareError::NotFunded(_) | PrepareError::Unreachable(_)))) => Err(retry(&problem)),
            Ok(Err(PrepareError::Never(problem))) => Err(Fatal(problem).into()),
            // The watch has ended, permanently or for a reason that a repeated request may overcome.
            Err(_) => match self.open(cohort_id).await.map_err(|error| retry(&error))?.announcement().state() {
                State::Failed { failure } => Err(Fatal(failure.to_string()).into()),
                State::Final { txid, .. } => Err(Fatal(format!("{txid} announced this cohort's signal")).into()),
                _ => Err(retry(&"the announcement stood still")),
            },
        }
    }
}
