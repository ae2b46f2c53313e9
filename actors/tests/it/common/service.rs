//! A service, its subscriber and its events.

use std::sync::Arc;

use btcr2_aggregation_actors::{
    bans::BanBook,
    events::{Event, Events},
    handle,
    journal::Journal,
    load::Load,
    notice::{Notices, ServiceNotice},
    policy::ServicePolicy,
    runtime::{Clock, Randomness},
    seats::Seats,
    service::{OpenCohort, OpenCohortError},
    transport::Transport,
};
use btcr2_aggregation_protocol::{
    beacon::BeaconRegistry, did::Did, id::CohortId, identity::Identity, output::KeyAggregator,
};

use super::{Ear, WAITING};

/// The settings of a service, which a test may change before it starts the service.
#[derive(Clone)]
pub struct ServiceSettings {
    pub identity: Identity,
    pub transport: Arc<dyn Transport>,
    pub policy: Arc<dyn ServicePolicy>,
    pub beacons: BeaconRegistry,
    pub aggregator: Arc<dyn KeyAggregator>,
    pub journal: Arc<dyn Journal>,
    /// Whether the journal of an ended cohort is removed.
    pub is_transient: bool,
    pub clock: Clock,
    pub randomness: Randomness,
    pub notices: Notices<ServiceNotice>,
    pub load: Load,
    pub bans: BanBook,
    pub seats: Seats,
}

impl ServiceSettings {
    /// Starts the service; ready when its cohorts are restored.
    pub async fn start(self) -> Service {
        let Self { identity, transport, policy, journal, notices, .. } = self;
        let ear = Ear::new(&notices);
        let builder = handle::Service::builder(identity.clone(), transport, policy);
        let builder = if self.is_transient { builder.transient_journal(journal) } else { builder.journal(journal) };
        let builder = builder.beacons(self.beacons).aggregator(self.aggregator).clock(self.clock);
        let builder = builder.randomness(self.randomness).notices(notices.clone()).load(self.load);
        let builder = builder.bans(self.bans).seats(self.seats).waiting_events(WAITING);
        let handle = builder.start().await.expect("it starts");
        let events = handle.events();
        Service { identity, handle, notices, ear, events }
    }
}

/// A service and its subscriber.
pub struct Service {
    pub identity: Identity,
    pub handle: handle::Service,
    pub notices: Notices<ServiceNotice>,
    pub ear: Ear<ServiceNotice>,
    pub events: Events<ServiceNotice>,
}

/// Reads the events up to the first that `is_last` selects, and acknowledges it.
pub async fn acknowledge<N>(events: &mut Events<N>, mut is_last: impl FnMut(&N) -> bool) {
    loop {
        let (cursor, event) = events.next().await.expect("it runs");
        if matches!(event, Event::Notice(notice) if is_last(&notice)) {
            return events.ack(&cursor).await.expect("the journal works");
        }
    }
}

impl Service {
    /// Acknowledges the end of the cohort.
    pub async fn acknowledge_end(&mut self, cohort: &CohortId) {
        acknowledge(&mut self.events, |notice| {
            matches!(notice, ServiceNotice::SigningComplete { .. } | ServiceNotice::CohortFailed { .. })
                && notice.cohort_id() == Some(cohort)
        })
        .await;
    }

    pub fn did(&self) -> &Did {
        self.identity.did()
    }

    pub async fn open(&self, open: OpenCohort) -> CohortId {
        self.handle.open(open).await.expect("conditions that can be met").id().clone()
    }

    /// Why such a cohort cannot be opened.
    pub async fn refuses(&self, open: OpenCohort) -> OpenCohortError {
        self.handle.open(open).await.expect_err("it is refused")
    }

    /// The cohorts that are running.
    pub async fn live(&self) -> Vec<CohortId> {
        self.handle.cohorts().await.iter().map(|cohort| cohort.id().clone()).collect()
    }

    /// Ends the cohort.
    pub async fn cancel(&self, cohort: &CohortId, reason: &str) {
        self.handle.cohort(cohort).cancel(reason).await;
    }
}
