//! The metrics of a running service, as Prometheus text.
//!
//! [`Metrics`] counts notices; the actors do not know of it. [`journal`] measures a journal, [`sources`] reads counters
//! of other parts, [`http`] has the routes for a Prometheus server and a load balancer. Labels are types, codes, phases
//! and the operator's own relays, never a value that a peer has chosen: no outsider can make the number of series grow.

pub mod http;
pub mod journal;
pub mod sources;

#[cfg(test)]
mod deployed;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use strum::{IntoStaticStr, VariantArray};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use self::sources::Sources;
use crate::{
    actors::{notice::ServiceNotice, runtime::Clock},
    bitcoin::notice::AnnouncementNotice,
    protocol::{cohort::service::phase::PhaseKind, id::CohortId, time::Timestamp},
};

type Labels<const N: usize> = [(&'static str, String); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;
type Histograms<const N: usize> = Family<Labels<N>, Histogram>;

/// The phases of a cohort that are measured, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, VariantArray, IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
enum Stage {
    Enrolling,
    Updates,
    Validating,
    Transaction,
    Presence,
    Signing,
    Fallback,
}

impl Stage {
    /// The phase of a cohort that is continued; `None` of one that has ended, whose end is published once more.
    fn of(phase: PhaseKind) -> Option<Self> {
        Some(match phase {
            PhaseKind::Planned | PhaseKind::Enrolling => Self::Enrolling,
            PhaseKind::CollectingUpdates => Self::Updates,
            PhaseKind::Validating => Self::Validating,
            PhaseKind::AwaitingTransaction => Self::Transaction,
            PhaseKind::CheckingPresence => Self::Presence,
            PhaseKind::Signing => Self::Signing,
            PhaseKind::Completed | PhaseKind::Failed => return None,
        })
    }

    /// Its value of the label `phase`.
    fn label(self) -> [(&'static str, String); 1] {
        let name: &'static str = self.into();
        [("phase", name.to_owned())]
    }
}

/// For phases: from a millisecond, as in a test, to more than four hours.
fn phase_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 4.0, 13))
}

/// For writes: from a tenth of a millisecond to three seconds.
fn journal_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 16))
}

/// The metrics. Clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    sources: Arc<Sources>,
    clock: Clock,
    /// The cohorts that have not ended: the phase, and its start.
    live: Mutex<BTreeMap<CohortId, (Stage, Timestamp)>>,
    cohorts: Family<Labels<1>, Gauge>,
    phase_seconds: Histograms<1>,
    ended: Counters<1>,
    messages: Counters<2>,
    rejections: Counters<1>,
    restarts: Counter,
    recovered: Counter,
    bans: Counter,
    announcements: Counters<1>,
    missed: Counter,
    alarms: Counters<1>,
    journal_seconds: Histograms<1>,
}

impl Metrics {
    /// Metrics without any measurement.
    pub fn new(clock: Clock) -> Self {
        let mut registry = Registry::with_prefix("btcr2");
        let cohorts = Family::<Labels<1>, Gauge>::default();
        let phase_seconds = Histograms::new_with_constructor(phase_buckets as fn() -> Histogram);
        let journal_seconds = Histograms::new_with_constructor(journal_buckets as fn() -> Histogram);
        let (ended, messages, rejections) = (Counters::default(), Counters::default(), Counters::default());
        let (restarts, recovered, bans, missed) =
            (Counter::default(), Counter::default(), Counter::default(), Counter::default());
        let (announcements, alarms) = (Counters::default(), Counters::default());
        registry.register("cohorts", "Cohorts that have not ended, by phase", cohorts.clone());
        registry.register_with_unit(
            "phase",
            "Duration of phases that have ended",
            Unit::Seconds,
            phase_seconds.clone(),
        );
        registry.register("cohorts_ended", "Cohorts that have ended, by how", ended.clone());
        registry.register(
            "messages",
            "Outcomes of messages: of members' when they are accepted, of the service's when they are lost",
            messages.clone(),
        );
        registry.register("rejections", "Messages that were refused, by code", rejections.clone());
        registry.register("restarts", "Actors that panicked and were restarted", restarts.clone());
        registry.register("recovered_cohorts", "Cohorts restored from the journal", recovered.clone());
        registry.register("bans", "Members that were banned", bans.clone());
        registry.register("announcements", "Steps of announcements on the chain, by event", announcements.clone());
        registry.register("alarms", "Alarms that were raised, by kind", alarms.clone());
        registry.register("missed_notices", "Notices that came too fast to be counted", missed.clone());
        registry.register_with_unit(
            "journal",
            "Latency of the journal, by operation",
            Unit::Seconds,
            journal_seconds.clone(),
        );
        let sources = Arc::<Sources>::default();
        registry.register_collector(Box::new(Arc::clone(&sources)));
        for phase in Stage::VARIANTS {
            cohorts.get_or_create(&phase.label()).set(0);
        }
        Self(Arc::new(Inner {
            registry,
            sources,
            clock,
            live: Mutex::default(),
            cohorts,
            phase_seconds,
            ended,
            messages,
            rejections,
            restarts,
            recovered,
            bans,
            announcements,
            missed,
            alarms,
            journal_seconds,
        }))
    }

    /// The sources of further metrics.
    pub fn sources(&self) -> &Sources {
        &self.0.sources
    }

    /// The current Prometheus text.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.0.registry);
        text
    }

    /// Counts the notices until every sender is dropped.
    pub async fn follow(self, mut steps: Receiver<Arc<ServiceNotice>>) {
        while let Some(step) = self.next(&mut steps).await {
            self.observe(&step);
        }
    }

    /// Counts the notices of announcements until every sender is dropped.
    pub async fn follow_announcements(self, mut steps: Receiver<Arc<AnnouncementNotice>>) {
        while let Some(step) = self.next(&mut steps).await {
            self.observe_announcement(&step);
        }
    }

    async fn next<N: Clone>(&self, steps: &mut Receiver<N>) -> Option<N> {
        loop {
            match steps.recv().await {
                Ok(step) => return Some(step),
                Err(RecvError::Lagged(missed)) => drop(self.0.missed.inc_by(missed)),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Counts a notice of the service.
    pub fn observe(&self, step: &ServiceNotice) {
        use ServiceNotice as N;
        match step {
            N::CohortAdvertised { cohort_id } | N::CohortReformed { cohort_id, .. } => {
                self.begin(cohort_id, Stage::Enrolling);
            }
            N::KeygenComplete { cohort_id, .. } => self.enter(cohort_id, Stage::Updates),
            N::DataDistributed { cohort_id, .. } => self.enter(cohort_id, Stage::Validating),
            N::ValidationComplete { cohort_id } => self.enter(cohort_id, Stage::Transaction),
            N::PresenceRequested { cohort_id } => self.enter(cohort_id, Stage::Presence),
            N::SigningStarted { cohort_id, .. } => self.enter(cohort_id, Stage::Signing),
            N::FallbackStarted { cohort_id, .. } => self.enter(cohort_id, Stage::Fallback),
            N::SigningComplete { cohort_id, path, .. } => self.end(cohort_id, path.to_string()),
            N::CohortFailed { cohort_id, code, .. } => self.end(cohort_id, (*code).to_owned()),
            N::CohortRecovered { cohort_id, phase, .. } => {
                if let Some(phase) = Stage::of(*phase) {
                    self.0.recovered.inc();
                    self.begin(cohort_id, phase);
                }
            }
            N::CohortRestarted { .. } => drop(self.0.restarts.inc()),
            N::MemberBanned { .. } => drop(self.0.bans.inc()),
            N::ParticipantAccepted { .. } => self.message("keygen/cohort_opt_in", "accepted"),
            N::ParticipantRefused { .. } => self.message("keygen/cohort_opt_in", "refused"),
            N::UpdateReceived { included: true, .. } => self.message("update/submit_update", "accepted"),
            N::UpdateReceived { .. } => self.message("update/submit_nonincluded", "accepted"),
            N::ValidationReceived { approved: true, .. } => self.message("update/validation_ack", "approved"),
            N::ValidationReceived { .. } => self.message("update/validation_ack", "disapproved"),
            N::NonceReceived { .. } => self.message("sign/nonce_contribution", "accepted"),
            N::PartialSignatureReceived { .. } => self.message("sign/signature_authorization", "accepted"),
            N::FallbackSignatureReceived { .. } => self.message("sign/fallback_signature", "accepted"),
            N::PresenceConfirmed { .. } => self.message("control/presence", "accepted"),
            N::MessageUndelivered { kind, .. } => self.message(kind, "undelivered"),
            N::MessageRejected { code, .. } => {
                self.0.rejections.get_or_create(&[("code", code.to_string())]).inc();
            }
            // What has no metric.
            _ => {}
        }
    }

    /// Counts a notice of an announcement.
    pub fn observe_announcement(&self, step: &AnnouncementNotice) {
        let event: &'static str = step.into();
        self.0.announcements.get_or_create(&[("event", event.to_owned())]).inc();
    }

    /// Shows these kinds of alarms from the start: Prometheus does not see the first increase of a counter that begins with it.
    pub fn expect_alarms(&self, kinds: &[&str]) {
        for kind in kinds {
            drop(self.0.alarms.get_or_create(&[("alarm", (*kind).to_owned())]));
        }
    }

    /// Counts an alarm.
    pub fn alarm(&self, kind: &str) {
        self.0.alarms.get_or_create(&[("alarm", kind.to_owned())]).inc();
    }

    /// `kind` is the message's type in the wire format.
    fn message(&self, kind: &str, outcome: &str) {
        let labels = [("type", kind.to_owned()), ("outcome", outcome.to_owned())];
        self.0.messages.get_or_create(&labels).inc();
    }

    /// Adds a cohort in this phase. A known cohort that was restored after a panic stays in its known phase.
    fn begin(&self, cohort_id: &CohortId, phase: Stage) {
        let now = self.0.clock.now();
        let mut live = self.live();
        if !live.contains_key(cohort_id) {
            live.insert(cohort_id.clone(), (phase, now));
            self.gauge(phase).inc();
        }
    }

    /// The cohort enters this phase. Two actors report a cohort that signs: a late notice of one must not add the
    /// cohort again after the other has reported its end.
    fn enter(&self, cohort_id: &CohortId, phase: Stage) {
        let now = self.0.clock.now();
        if let Some(known) = self.live().get_mut(cohort_id).filter(|(before, _)| *before != phase) {
            self.left(std::mem::replace(known, (phase, now)), now);
            self.gauge(phase).inc();
        }
    }

    /// The cohort has ended. The end of a cohort that ended before the start is repeated, and not counted.
    fn end(&self, cohort_id: &CohortId, outcome: String) {
        let before = self.live().remove(cohort_id);
        if let Some(before) = before {
            self.left(before, self.0.clock.now());
            self.0.ended.get_or_create(&[("outcome", outcome)]).inc();
        }
    }

    fn left(&self, (phase, since): (Stage, Timestamp), now: Timestamp) {
        self.gauge(phase).dec();
        let seconds = now.as_millis().saturating_sub(since.as_millis()) as f64 / 1000.0;
        self.0.phase_seconds.get_or_create(&phase.label()).observe(seconds);
    }

    fn gauge(&self, phase: Stage) -> Gauge {
        self.0.cohorts.get_or_create_owned(&phase.label())
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<CohortId, (Stage, Timestamp)>> {
        // No code panics while it holds the lock.
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::protocol::error::RejectCode;

    fn cohort(name: &str) -> CohortId {
        CohortId::parse(name).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_cohort_is_counted_in_its_phase_until_it_ends() {
        let metrics = Metrics::new(Clock::starting_at(Clock::system().now()));
        let cohort_id = cohort("11111111-1111-4111-8111-111111111111");
        metrics.observe(&ServiceNotice::CohortAdvertised { cohort_id: cohort_id.clone() });
        assert!(metrics.to_text().contains("btcr2_cohorts{phase=\"enrolling\"} 1\n"));

        tokio::time::advance(std::time::Duration::from_secs(10)).await;
        let failure = crate::protocol::cohort::event::CohortFailure::EnrollmentExpired { admitted: 0 };
        metrics.observe(&ServiceNotice::CohortFailed {
            cohort_id,
            code: failure.code(),
            reason: failure.to_string(),
            failure,
            next: None,
        });
        let text = metrics.to_text();
        assert!(text.contains("btcr2_cohorts{phase=\"enrolling\"} 0\n"), "{text}");
        assert!(text.contains("btcr2_phase_seconds_sum{phase=\"enrolling\"} 10.0\n"), "{text}");
        assert!(text.contains("btcr2_cohorts_ended_total{outcome="), "{text}");
    }

    #[tokio::test]
    async fn what_is_told_after_the_end_begins_no_cohort_and_an_end_counts_once() {
        let metrics = Metrics::new(Clock::system());
        let cohort_id = cohort("22222222-2222-4222-8222-222222222222");
        let failure = crate::protocol::cohort::event::CohortFailure::EnrollmentExpired { admitted: 0 };
        let failed = ServiceNotice::CohortFailed {
            cohort_id: cohort_id.clone(),
            code: failure.code(),
            reason: failure.to_string(),
            failure,
            next: None,
        };
        metrics.observe(&ServiceNotice::CohortAdvertised { cohort_id: cohort_id.clone() });
        metrics.observe(&failed);
        metrics.observe(&ServiceNotice::PresenceRequested { cohort_id });
        metrics.observe(&failed);
        let text = metrics.to_text();
        assert!(text.contains("btcr2_cohorts{phase=\"presence\"} 0\n"), "{text}");
        let ended = text.lines().find(|line| line.starts_with("btcr2_cohorts_ended_total{"));
        assert!(ended.is_some_and(|line| line.ends_with(" 1")), "{text}");
    }

    #[tokio::test]
    async fn a_cohort_that_is_brought_back_goes_on_in_the_phase_that_it_was_in() {
        let metrics = Metrics::new(Clock::system());
        let cohort_id = cohort("33333333-3333-4333-8333-333333333333");
        let recovered = || ServiceNotice::CohortRecovered {
            cohort_id: cohort_id.clone(),
            phase: PhaseKind::Validating,
            output: None,
        };
        metrics.observe(&recovered());
        assert!(metrics.to_text().contains("btcr2_cohorts{phase=\"validating\"} 1\n"));
        metrics.observe(&ServiceNotice::PresenceRequested { cohort_id: cohort_id.clone() });
        metrics.observe(&recovered());
        let text = metrics.to_text();
        assert!(text.contains("btcr2_cohorts{phase=\"validating\"} 0\n"), "{text}");
        assert!(text.contains("btcr2_cohorts{phase=\"presence\"} 1\n"), "{text}");
    }

    #[tokio::test]
    async fn rejections_are_counted_by_code() {
        let metrics = Metrics::new(Clock::system());
        let rejected = |code| ServiceNotice::MessageRejected {
            cohort_id: None,
            from: None,
            code,
            detail: "the text of a peer".to_owned(),
        };
        metrics.observe(&rejected(RejectCode::NotAMember));
        metrics.observe(&rejected(RejectCode::NotAMember));
        let text = metrics.to_text();
        assert!(
            text.contains(&format!("btcr2_rejections_total{{code=\"{}\"}} 2\n", RejectCode::NotAMember)),
            "{text}"
        );
        assert!(!text.contains("the text of a peer"));
    }
}
