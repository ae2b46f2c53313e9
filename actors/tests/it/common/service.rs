//! A service, its subscriber and its events.

use actix::Addr;
use btcr2_aggregation_actors::{
    events::{Event, Events},
    notice::{Notices, ServiceNotice},
    service::{AggregationService, OpenCohort},
};
use btcr2_aggregation_protocol::{did::Did, id::CohortId, identity::Identity};

use super::Ear;

/// A service and its subscriber.
pub struct Service {
    pub identity: Identity,
    pub address: Addr<AggregationService>,
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
        self.address.send(open).await.expect("the service runs").expect("conditions that can be met")
    }
}
