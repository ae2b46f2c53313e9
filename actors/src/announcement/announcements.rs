//! The handle of all announcements of a host.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use actix::{Addr, prelude::SendError};
use btcr2_aggregation_protocol::{
    announcement::{Announcement, AnnouncementEvent, Input, Prepared, Rules, State},
    error::Reject,
    hash::SignalBytes,
    id::CohortId,
    machine,
    output::BeaconOutput,
};
use tokio::{
    sync::{broadcast, oneshot},
    time::Instant,
};

use super::{
    Address, AnnouncementError, AnnouncementSettings, PrepareError,
    actor::{AnnouncementActor, Done, Inspect, PATIENCE, Request, Stop},
    notice::AnnouncementNotice,
    source::AnnouncementJournal,
};
use crate::{
    events::{self, Acks, Events, Source},
    journal::{JournalError, StreamId, StreamKind},
    span,
    supervision::{End, EndGuard, Lease, replay, start_leased},
};

/// How many events other than ends wait for the host.
const EVENTS: usize = 1 << 14;

/// The announcements of a host. Clones share the state. Actors run on the arbiter that starts them, and end with the last
/// clone.
///
/// Each announcement has one actor, and only the actor writes to its journal. A caller that finds no running actor looks
/// again and starts one under a lock.
#[derive(Clone)]
pub struct Announcements(Arc<Inner>);

struct Inner {
    settings: AnnouncementSettings,
    rules: Arc<Rules>,
    running: Mutex<BTreeMap<CohortId, Running>>,
    /// Locked from the check whether an actor runs until it does.
    starting: tokio::sync::Mutex<Starting>,
}

/// Whether actors may be started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Starting {
    /// Not before the claims of previous runs are read: their transactions are not foreign.
    #[default]
    Unread,
    /// They may be started.
    Allowed,
    /// All were stopped.
    Over,
}

struct Running {
    actor: Addr<AnnouncementActor>,
    /// Ready when the actor has ended.
    ended: oneshot::Receiver<()>,
    /// The actor ends when this is dropped.
    _lease: Lease,
}

impl Announcements {
    /// Announcements that follow `rules`.
    pub fn new(settings: AnnouncementSettings, rules: Rules) -> Self {
        let (rules, running, starting) = (Arc::new(rules), Mutex::default(), tokio::sync::Mutex::default());
        Self(Arc::new(Inner { settings, rules, running, starting }))
    }

    /// The settings of all announcements.
    pub fn settings(&self) -> &AnnouncementSettings {
        &self.0.settings
    }

    /// The operator's settings for announcements.
    pub fn rules(&self) -> &Arc<Rules> {
        &self.0.rules
    }

    /// The events: the ends of announcements that are not acknowledged, and everything from now on. An end is delivered at
    /// least once.
    pub fn events(&self) -> Events<AnnouncementNotice> {
        events::follow_from_journal(&self.0.settings.notices, self.source(), EVENTS)
    }

    /// Acknowledges events while another task reads them.
    pub fn acks(&self) -> Acks<AnnouncementNotice> {
        Acks::new(self.source())
    }

    fn source(&self) -> Arc<dyn Source<AnnouncementNotice>> {
        Arc::new(AnnouncementJournal::new(&self.0.settings, &self.0.rules))
    }

    /// Publishes what the host has found out about the address of a cohort.
    pub fn publish(&self, notice: AnnouncementNotice) {
        self.0.settings.notices.publish(notice);
    }

    /// All notices from now on, for measurements: a subscriber that falls behind loses some.
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
        for cohort_id in self.cohorts().await? {
            if self.running(&cohort_id).is_some() {
                resumed.push(cohort_id);
                continue;
            }
            // Ended announcements are read too: their transactions are not foreign to the next announcement of the
            // address.
            match self.read_claims(&cohort_id).await {
                Ok(machine) if machine.has_ended() => {}
                Ok(machine) => {
                    self.start(cohort_id.clone(), machine, VecDeque::new());
                    resumed.push(cohort_id);
                }
                Err(error) => tracing::error!(%cohort_id, %error, "an announcement cannot continue"),
            }
        }
        Ok(resumed)
    }

    /// Watches the beacon address of a cohort that has formed. When it returns, that is persisted. A second call has no
    /// effect.
    ///
    /// # Errors
    /// [`AnnouncementError`].
    pub async fn watch(&self, cohort_id: &CohortId, address: Address) -> Result<(), AnnouncementError> {
        let watch = |done| Request::Watch { address: address.clone(), done };
        // A rejection is logged: the cohort has another address than it had.
        let _ = self.persist(cohort_id, Some(&address), watch).await?;
        Ok(())
    }

    /// Feeds an input to the announcement of a cohort. When it returns, the consequences are persisted, and transactions
    /// submitted. An announcement that does not run is started, unless the cohort never had one and there is no `output`
    /// to watch.
    ///
    /// # Errors
    /// [`AnnouncementError`]. A rejection by the machine is the inner result.
    pub async fn feed(
        &self,
        cohort_id: &CohortId,
        output: Option<&BeaconOutput>,
        input: Input,
    ) -> Result<Result<(), Reject>, AnnouncementError> {
        let address = output.cloned().map(Address::Output);
        self.persist(cohort_id, address.as_ref(), |done| Request::Feed { input: input.clone(), done }).await
    }

    /// Looks at the chain now. Returns when the consequences are persisted.
    ///
    /// # Errors
    /// [`AnnouncementError`].
    pub async fn look(&self, cohort_id: &CohortId) -> Result<(), AnnouncementError> {
        // A look is never rejected.
        let _ = self.persist(cohort_id, None, |done| Request::Look { done }).await?;
        Ok(())
    }

    /// The transaction that announces `signal`, from a coin of `output`. Waits ten minutes for a coin.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub async fn prepare(
        &self,
        cohort_id: &CohortId,
        output: &BeaconOutput,
        signal: SignalBytes,
    ) -> Result<Prepared, PrepareError> {
        let (address, until) = (Address::Output(output.clone()), Instant::now() + PATIENCE);
        loop {
            let (answer, answered) = oneshot::channel();
            let request = Request::Prepare { output: output.clone(), signal, answer };
            self.deliver(cohort_id, Some(&address), request).await?;
            if let Ok(answer) = answered.await {
                return answer;
            }
            // The actor has ended permanently, or it has restarted without the request.
            match self.read(cohort_id).await?.state() {
                State::Failed { failure } => return Err(PrepareError::Never(failure.to_string())),
                State::Final { txid, .. } => {
                    return Err(PrepareError::Never(format!("{txid} announced this cohort's signal")));
                }
                _ if Instant::now() >= until => return Err(AnnouncementError::StoodStill.into()),
                _ => tokio::time::sleep(self.0.settings.poll).await,
            }
        }
    }

    /// The announcement of a cohort as it is now.
    ///
    /// # Errors
    /// [`AnnouncementError`] when it does not run, and its journal cannot be read.
    pub async fn inspect(&self, cohort_id: &CohortId) -> Result<Arc<Announcement>, AnnouncementError> {
        if let Some(actor) = self.running(cohort_id)
            && let Ok(machine) = actor.send(Inspect).await
        {
            return Ok(machine);
        }
        self.read(cohort_id).await.map(Arc::new)
    }

    /// Whether a cohort's announcement has ended in either way, according to the journal.
    pub async fn has_ended(&self, cohort_id: &CohortId) -> bool {
        match self.running(cohort_id) {
            Some(_) => false,
            None => self.read(cohort_id).await.is_ok_and(|machine| machine.has_ended()),
        }
    }

    /// Ends all actors after their pending writes. Looks at the chain are cancelled. No actor is started any more; new
    /// `Announcements` continue by [`Self::resume`].
    pub async fn stop(&self) {
        *self.0.starting.lock().await = Starting::Over;
        let running = std::mem::take(&mut *self.lock());
        for Running { actor, ended, _lease } in running.into_values() {
            // It may have ended meanwhile.
            let _ = actor.send(Stop).await;
            let _ = ended.await;
        }
    }

    /// Makes a request that is answered when it is persisted. If it is lost with its actor, it is made again.
    async fn persist(
        &self,
        cohort_id: &CohortId,
        address: Option<&Address>,
        request: impl Fn(Done) -> Request,
    ) -> Result<Result<(), Reject>, AnnouncementError> {
        loop {
            let (done, answered) = oneshot::channel();
            if !self.deliver(cohort_id, address, request(done)).await? {
                return Ok(Ok(()));
            }
            if let Ok(result) = answered.await {
                return Ok(result);
            }
            // The actor ended, or cannot write.
            tokio::time::sleep(self.0.settings.poll).await;
        }
    }

    /// Sends a request to the actor of a cohort. Returns whether there is one: it is started if necessary, unless the
    /// cohort never had one and there is no `address` to watch.
    async fn deliver(
        &self,
        cohort_id: &CohortId,
        address: Option<&Address>,
        request: Request,
    ) -> Result<bool, AnnouncementError> {
        let Some(request) = self.send(cohort_id, request).await else { return Ok(true) };
        let _starting = self.begin().await?;
        let Some(request) = self.send(cohort_id, request).await else { return Ok(true) };
        let machine = self.read_claims(cohort_id).await?;
        if matches!(machine.state(), State::Planned) && address.is_none() {
            return Ok(false);
        }
        let mut requests = VecDeque::from([request]);
        if let Some(address) = address.filter(|_| !matches!(requests.front(), Some(Request::Watch { .. }))) {
            // The first request is served after it.
            let (done, _) = oneshot::channel();
            requests.push_front(Request::Watch { address: address.clone(), done });
        }
        self.start(cohort_id.clone(), machine, requests);
        Ok(true)
    }

    /// Sends a request to the running actor of a cohort, when its mailbox has room. Returns the request if there is no
    /// such actor.
    async fn send(&self, cohort_id: &CohortId, request: Request) -> Option<Request> {
        let Some(actor) = self.running(cohort_id) else { return Some(request) };
        match actor.try_send(request) {
            Ok(()) => None,
            Err(SendError::Closed(request)) => Some(request),
            Err(SendError::Full(request)) => {
                // An actor that ends drops the request, and the requester notices.
                let _ = actor.send(request).await;
                None
            }
        }
    }

    /// Locks the start of actors: the caller holds the guard until its actor runs.
    async fn begin(&self) -> Result<tokio::sync::MutexGuard<'_, Starting>, AnnouncementError> {
        let mut starting = self.0.starting.lock().await;
        match *starting {
            Starting::Over => return Err(AnnouncementError::Stopping),
            Starting::Allowed => {}
            Starting::Unread => {
                for cohort_id in self.cohorts().await? {
                    if let Err(error) = self.read_claims(&cohort_id).await {
                        tracing::error!(%cohort_id, %error, "an announcement cannot be read");
                    }
                }
                *starting = Starting::Allowed;
            }
        }
        Ok(starting)
    }

    /// The cohorts whose announcement has a live stream: those that have not ended, and those whose end is not acknowledged.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn cohorts(&self) -> Result<Vec<CohortId>, JournalError> {
        let streams = self.0.settings.journal.streams().await?;
        let cohort_of = |stream: StreamId| match stream.kind() {
            StreamKind::Announcement(cohort_id) => Some(cohort_id),
            _ => None,
        };
        Ok(streams.into_iter().filter_map(cohort_of).collect())
    }

    /// The announcement of a cohort, according to the journal.
    async fn read(&self, cohort_id: &CohortId) -> Result<Announcement, AnnouncementError> {
        let stream = StreamId::of_announcement(cohort_id);
        let events: Vec<AnnouncementEvent> = replay::events(&*self.0.settings.journal, &stream).await?;
        let rules = Arc::clone(&self.0.rules);
        replay::caught(|| machine::replay(Announcement::new(rules), &events))
            .map_err(|problem| AnnouncementError::Replay { stream, problem })
    }

    /// The same, and records its claims. The caller holds `starting`: a running actor records newer ones.
    async fn read_claims(&self, cohort_id: &CohortId) -> Result<Announcement, AnnouncementError> {
        let machine = self.read(cohort_id).await?;
        self.0.settings.claims.note(cohort_id, &machine);
        Ok(machine)
    }

    /// Starts an actor. The caller holds `starting`, and has checked that none runs.
    fn start(&self, cohort_id: CohortId, machine: Announcement, requests: VecDeque<Request>) {
        let (has_ended, ended) = oneshot::channel();
        let (owner, of) = (Arc::downgrade(&self.0), cohort_id.clone());
        let gone = move |end: End| {
            Inner::gone(&owner, &of, &end);
            drop(has_ended);
        };
        let settings = self.0.settings.clone();
        let (actor, _lease) = start_leased(span::announcement(&cohort_id), |_, leased| {
            AnnouncementActor::new(cohort_id.clone(), machine, settings, requests, EndGuard::leased(leased, gone))
        });
        let mut running = self.lock();
        running.retain(|_, running| running.actor.connected());
        running.insert(cohort_id, Running { actor, ended, _lease });
    }

    fn running(&self, cohort_id: &CohortId) -> Option<Addr<AnnouncementActor>> {
        self.lock().get(cohort_id).map(|running| running.actor.clone()).filter(Addr::connected)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<CohortId, Running>> {
        // No code panics while it holds the lock.
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// An actor has ended. If its announcement had not, no other actor replaces it.
    fn gone(owner: &Weak<Self>, cohort_id: &CohortId, end: &End) {
        if let (Some(owner), Some(reason)) = (owner.upgrade(), end.failure()) {
            tracing::error!(%cohort_id, %reason, "an announcement has ended unexpectedly");
            owner.settings.vitals.record(format!("announcement {cohort_id}"), reason.into_owned());
        }
    }
}
