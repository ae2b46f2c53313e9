//! The handle of an Aggregation Service, and of its cohorts.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix::{Actor, Addr};
use btcr2_aggregation_protocol::{
    cohort::{event::CohortFailure, service::ServiceCohort},
    did::Did,
    error::Reject,
    id::CohortId,
    identity::Identity,
    time::Timestamp,
};
use tokio::sync::watch;

use super::{
    StartError,
    builder::shared_setters,
    check_system, ended,
    ends::{Ends, Story},
};
use crate::{
    bans::BanBook,
    events::{self, Acks, Events, Position, Source, Step},
    journal::{JournalError, StreamId},
    load::Load,
    notice::{CohortResult, Notices, ServiceNotice, WeakNotices},
    policy::ServicePolicy,
    seats::Seats,
    service::{
        Advertise, AggregationService, Cancel, CohortJournal, Extend, Finalize, Inspect, LiveCohorts, OpenCohort,
        OpenCohortError, ServiceSettings, ToCohort,
    },
    standing::StandingSettings,
    supervision::{Gone, Vitals},
    supervisor::{StartService, Stop, Supervisor},
    transport::Transport,
};

/// How many transient events wait for the host.
const EVENTS: usize = 1 << 14;

/// Builds a [`Service`]. By default nothing outlives the process: its journal and its ban list are in memory.
pub struct ServiceBuilder {
    settings: ServiceSettings,
    events: usize,
    vitals: Vitals,
}

impl ServiceBuilder {
    shared_setters!(ServiceNotice);

    fn new(settings: ServiceSettings) -> Self {
        Self { settings, events: EVENTS, vitals: Vitals::default() }
    }

    /// Counts the messages there.
    #[must_use]
    pub fn load(mut self, load: Load) -> Self {
        self.settings.load = load;
        self
    }

    /// The ban list.
    #[must_use]
    pub fn bans(mut self, bans: BanBook) -> Self {
        self.settings.bans = bans;
        self
    }

    /// The seats of DIDs, addresses and invites.
    #[must_use]
    pub fn seats(mut self, seats: Seats) -> Self {
        self.settings.seats = seats;
        self
    }

    /// What standing cohorts need: the operator's decisions about them, boards, the chain.
    #[must_use]
    pub fn standing(mut self, standing: StandingSettings) -> Self {
        self.settings.standing = standing;
        self
    }

    /// Records there that the service has ended unexpectedly. Other parts of the process may share it: see
    /// [`HttpServerParts::vitals`](crate::transport::http::server::HttpServerParts::vitals).
    #[must_use]
    pub fn vitals(mut self, vitals: Vitals) -> Self {
        self.vitals = vitals;
        self
    }

    /// Starts the service on this thread's actix `System`. Ready when the cohorts of previous runs are restored.
    ///
    /// # Errors
    /// [`StartError`] without a `System`, or when the service ends at once: e.g. its journal cannot be read.
    pub async fn start(self) -> Result<Service, StartError> {
        check_system()?;
        let Self { mut settings, events: most, vitals } = self;
        settings.notices = settings.notices.child();
        let (notices, load) = (settings.notices.clone(), settings.load.clone());
        let (did, journal) = (settings.identity.did().clone(), CohortJournal::new(&settings));
        let mut events = events::follow(&notices, Arc::new(journal.clone()), most);
        // Before anything is published: what the host acknowledges from now on is delivered on this stream nevertheless.
        events.read_acknowledged().await;
        let ends = Ends::of(&notices);
        let supervisor = Supervisor::reporting_to(vitals.clone()).start();
        let address = supervisor.send(StartService(settings)).await.map_err(|_| ended(&vitals))?;
        // Answered when all cohorts are restored.
        address.send(LiveCohorts).await.map_err(|_| ended(&vitals))?;
        let events = Mutex::new(Some(events));
        // The actors have the notices. Here they would outlive them, and the streams of events would not end.
        let notices = Notices::downgrade(&notices);
        Ok(Service(Arc::new(Inner {
            did,
            supervisor,
            address,
            vitals,
            notices,
            load,
            journal,
            events,
            most,
            ends,
        })))
    }
}

/// A running Aggregation Service. Clones are the same service.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

struct Inner {
    did: Did,
    supervisor: Addr<Supervisor>,
    address: Addr<AggregationService>,
    vitals: Vitals,
    notices: WeakNotices<ServiceNotice>,
    load: Load,
    journal: CohortJournal,
    /// The events from the start, until the host takes them.
    events: Mutex<Option<Events<ServiceNotice>>>,
    most: usize,
    ends: Arc<Ends<ServiceNotice>>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Service").field(&self.0.did).finish()
    }
}

impl Service {
    /// A service of `identity`, reached over `transport`, with the decisions of `policy`.
    pub fn builder(
        identity: Identity,
        transport: Arc<dyn Transport>,
        policy: Arc<dyn ServicePolicy>,
    ) -> ServiceBuilder {
        ServiceBuilder::new(ServiceSettings::new(identity, transport, policy))
    }

    pub(super) fn address(&self) -> &Addr<AggregationService> {
        &self.0.address
    }

    /// Its DID.
    pub fn did(&self) -> &Did {
        &self.0.did
    }

    /// Advertises a cohort.
    ///
    /// # Errors
    /// [`OpenCohortError`] when participants could not accept it, or when the service cannot promise anything.
    pub async fn open(&self, terms: OpenCohort) -> Result<Cohort, OpenCohortError> {
        let cohort_id = self.0.address.send(terms).await.map_err(|_| OpenCohortError::Stopped)??;
        Ok(self.cohort(&cohort_id))
    }

    /// A cohort of this service: one that runs, or one that has ended and whose last event is not acknowledged.
    pub fn cohort(&self, cohort_id: &CohortId) -> Cohort {
        let story = self.0.ends.follow(&StreamId::of_cohort(cohort_id));
        Cohort { service: self.clone(), cohort_id: cohort_id.clone(), story }
    }

    /// The cohorts that are running; none when the service has stopped.
    pub async fn cohorts(&self) -> Vec<Cohort> {
        let running = self.0.address.send(LiveCohorts).await.unwrap_or_default();
        running.iter().map(|cohort_id| self.cohort(cohort_id)).collect()
    }

    /// The service's events. The first call returns all events since the start. Every further call returns a stream of
    /// its own, which begins with the decisive events that are not acknowledged.
    pub fn events(&self) -> Events<ServiceNotice> {
        let taken = self.0.events.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.unwrap_or_else(|| {
            // A service that has stopped publishes nothing more.
            let notices = self.0.notices.upgrade().unwrap_or_else(|| Notices::new(1));
            events::follow_from_journal(&notices, self.source(), self.0.most)
        })
    }

    /// Acknowledges events while another task reads them.
    pub fn acks(&self) -> Acks<ServiceNotice> {
        Acks::new(self.source())
    }

    fn source(&self) -> Arc<dyn Source<ServiceNotice>> {
        Arc::new(self.0.journal.clone())
    }

    /// The counts of its messages.
    pub fn load(&self) -> &Load {
        &self.0.load
    }

    /// Ready when the service, or another part that shares its [vitals](ServiceBuilder::vitals), has ended unexpectedly: it
    /// cannot continue until it is started again.
    pub async fn failed(&self) -> Gone {
        self.0.vitals.failed().await
    }

    /// Whether it has not ended unexpectedly.
    pub fn is_alive(&self) -> bool {
        self.0.vitals.gone().is_none()
    }

    /// Stops the service: its cohorts continue when it is started again with the same journal. Members are not notified;
    /// to end cohorts instead, [cancel](Cohort::cancel) them first. Waiting for an outcome ends.
    pub async fn stop(&self) {
        // It may have stopped before.
        let _ = self.0.supervisor.send(Stop).await;
    }
}

/// Why a cohort has no result.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CohortError {
    /// It ended without a transaction.
    #[error("the cohort failed with {code}: {reason}")]
    #[non_exhaustive]
    Failed {
        /// The reason as a code.
        code: &'static str,
        /// The reason in words.
        reason: String,
        /// The reason.
        failure: CohortFailure,
        /// The cohort that replaces it, if there is one.
        next: Option<CohortId>,
    },
    /// It is not running, and the journal has no end of it.
    #[error("no such cohort is running, and the journal has no end of it")]
    Unknown,
    /// The service has stopped.
    #[error("the service has stopped")]
    Stopped,
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// A cohort of a [`Service`]. Clones are the same cohort.
#[derive(Clone)]
pub struct Cohort {
    service: Service,
    cohort_id: CohortId,
    story: watch::Receiver<Story<ServiceNotice>>,
}

impl fmt::Debug for Cohort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cohort").field(&self.cohort_id).finish()
    }
}

impl Cohort {
    /// Its identifier.
    pub fn id(&self) -> &CohortId {
        &self.cohort_id
    }

    /// Waits for the end of the cohort: its result, whose signatures are verified, or why there is none. Can be called
    /// at any time and more than once.
    ///
    /// # Errors
    /// [`CohortError`] when the cohort failed, or when its end is not known.
    pub async fn outcome(&self) -> Result<Arc<CohortResult>, CohortError> {
        let mut story = self.story.clone();
        if let Some(end) = end_in(&story.borrow_and_update()) {
            return end;
        }
        let running = self.address().send(LiveCohorts).await.map_err(|_| CohortError::Stopped)?;
        if !running.contains(&self.cohort_id) {
            // It may have ended meanwhile.
            if let Some(end) = end_in(&story.borrow_and_update()) {
                return end;
            }
            let end = self.service.0.journal.clone().end(&self.cohort_id).await?;
            return end.as_ref().and_then(outcome).unwrap_or(Err(CohortError::Unknown));
        }
        loop {
            if story.changed().await.is_err() {
                return Err(CohortError::Stopped);
            }
            if let Some(end) = end_in(&story.borrow_and_update()) {
                return end;
            }
        }
    }

    /// Forms the cohort with its current members, without waiting for more.
    pub async fn finalize(&self) {
        // A cohort that is not running has formed, or has ended.
        let _ = self.address().send(ToCohort(self.cohort_id.clone(), Finalize)).await;
    }

    /// Gives the current phase `by` more time, and returns its new deadline. Never beyond the cohort's time limit, and not while its
    /// members sign. `None` if the cohort is not running.
    ///
    /// # Errors
    /// Why the phase cannot have more time.
    pub async fn extend(&self, by: Duration) -> Option<Result<Timestamp, Reject>> {
        self.address().send(ToCohort(self.cohort_id.clone(), Extend(by))).await.ok().flatten()
    }

    /// Withdraws the advert until it is advertised again, or advertises it again. Participants that have seen the advert may still opt in.
    /// It is advertised after a restart. Does nothing once it has formed.
    pub async fn advertise(&self, advertised: bool) {
        // A cohort that is not running has no advert.
        let _ = self.address().send(ToCohort(self.cohort_id.clone(), Advertise(advertised))).await;
    }

    /// Ends the cohort; its members receive the reason.
    pub async fn cancel(&self, reason: impl Into<String>) {
        let cancel = ToCohort(self.cohort_id.clone(), Cancel(reason.into()));
        // A cohort that is not running has ended.
        let _ = self.address().send(cancel).await;
    }

    /// The host has stored what it needs of the [outcome](Self::outcome): acknowledges the end of the cohort, as
    /// [`Events::ack`] does. Does nothing if the journal has no end of it.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub async fn acknowledge(&self) -> Result<(), JournalError> {
        let end = Position { stream: StreamId::of_cohort(&self.cohort_id), step: Step::Ended };
        self.service.source().acknowledge(end).await
    }

    /// A snapshot of the cohort's machine; `None` if it is not running. A snapshot does not change, and while it exists
    /// the next step of the cohort copies the whole state: drop it when it was read.
    pub async fn inspect(&self) -> Option<Arc<ServiceCohort>> {
        self.address().send(ToCohort(self.cohort_id.clone(), Inspect)).await.ok().flatten()
    }

    fn address(&self) -> &Addr<AggregationService> {
        &self.service.0.address
    }
}

fn end_in(story: &Story<ServiceNotice>) -> Option<Result<Arc<CohortResult>, CohortError>> {
    story.iter().find_map(|notice| outcome(notice))
}

/// The outcome in the notice of an end.
fn outcome(notice: &ServiceNotice) -> Option<Result<Arc<CohortResult>, CohortError>> {
    match notice {
        ServiceNotice::SigningComplete { result, .. } => Some(Ok(Arc::clone(result))),
        ServiceNotice::CohortFailed { code, reason, failure, next, .. } => Some(Err(CohortError::Failed {
            code,
            reason: reason.clone(),
            failure: failure.clone(),
            next: next.clone(),
        })),
        _ => None,
    }
}
