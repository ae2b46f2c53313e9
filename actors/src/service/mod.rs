//! The cohorts' supervisor: one Aggregation Service identity, and a `CohortActor` for each of its cohorts.
//!
//! It opens cohorts, routes messages to them by cohort, and observes when one ends; the failure of a cohort affects no
//! other. Cohorts of a previous run are started from the journal before anything else, see `recover`.

mod cohort;
mod host;
mod notices;
mod recover;
mod shared;
mod signing;
mod source;
mod standing;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message as ActixMessage, Supervised, WrapFuture,
    dev::ContextFut, prelude::SendError,
};
use btcr2_aggregation_protocol::{
    beacon::BeaconRegistry,
    cohort::{
        Timing,
        conditions::Conditions,
        service::{
            CohortTerms, Limits, Lineage, ServiceCohort, ServiceConfig, ServiceConfigError, rules::PhaseRules,
        },
    },
    did::Did,
    error::{Reject, RejectCode},
    id::CohortId,
    identity::Identity,
    message::{Body, control::CohortEnded},
    network::Network,
    output::KeyAggregator,
    remembered::Remembered,
    time::Timestamp,
};

pub(crate) use self::{
    cohort::{Advertise, Cancel, Extend, Finalize, Inspect},
    host::{LiveCohorts, ToCohort},
    source::CohortJournal,
    standing::{LiveStanding, OpenStanding, OpenSuccessor, ToStanding},
};
use self::{
    cohort::{Beginning, CohortActor},
    notices::reformed,
    recover::CohortGone,
    shared::{FormAgain, MemberMessage, SendAgain, ServiceShared},
    standing::StandingCohorts,
};
use crate::{
    bans::BanBook,
    deliveries::Deliveries,
    journal::{Journal, Retention},
    load::{Load, Mailbox},
    notice::{Notices, ServiceNotice},
    policy::ServicePolicy,
    runtime::{Clock, Randomness},
    seats::Seats,
    span,
    standing::StandingSettings,
    supervision::{EndGuard, InTree, Lease, RestartIntensity, Restarts},
    transport::{Delivery, Outbound, Transport, link::Link, send_in_turn, undecodable},
    tree::{self, Row},
};

/// The number of ended cohorts that are remembered, so that late messages of their members are not treated as faults.
const REMEMBERED: usize = 1024;

/// How many senders are notified within [`UNKNOWN_PERIOD`] that a cohort is not running here. Any peer can ask.
const MAX_UNKNOWN: u32 = 64;
const UNKNOWN_PERIOD: Duration = Duration::from_secs(60);

/// The parts of an Aggregation Service.
#[derive(Clone)]
pub(crate) struct ServiceSettings {
    /// Its identity: a KEY DID.
    pub(crate) identity: Identity,
    /// How it is reached.
    pub(crate) transport: Arc<dyn Transport>,
    /// The decisions of its operator.
    pub(crate) policy: Arc<dyn ServicePolicy>,
    /// The beacon types that it supports.
    pub(crate) beacons: BeaconRegistry,
    /// The key aggregation: direct, or through a cache shared with others in the process.
    pub(crate) aggregator: Arc<dyn KeyAggregator>,
    /// Where events are stored.
    pub(crate) journal: Arc<dyn Journal>,
    /// The time.
    pub(crate) clock: Clock,
    /// The randomness.
    pub(crate) randomness: Randomness,
    /// Where its notices are published.
    pub(crate) notices: Notices<ServiceNotice>,
    /// Where its messages are counted.
    pub(crate) load: Load,
    /// The ban list.
    pub(crate) bans: BanBook,
    /// The seats of DIDs, addresses and invites.
    pub(crate) seats: Seats,
    /// How often an actor that panics is restarted.
    pub(crate) restarts: RestartIntensity,
    /// What happens to the journal of a cohort that has ended.
    pub(crate) retention: Retention,
    /// What standing cohorts need.
    pub(crate) standing: StandingSettings,
}

/// Why a cohort cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenCohortError {
    /// Participants could not accept its advert.
    #[error(transparent)]
    Config(#[from] ServiceConfigError),
    /// An append to the journal failed: no cohort can be promised anything until the host is restarted.
    #[error("the journal has failed; no cohort can be opened until the service is started again")]
    JournalFailed,
    /// The terms of a standing cohort contradict each other.
    #[error("{0}")]
    Standing(String),
    /// The service has stopped.
    #[error("the service has stopped")]
    Stopped,
}

/// A cohort to open.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "Result<CohortId, OpenCohortError>")]
pub struct OpenCohort {
    /// The conditions of its advert.
    pub conditions: Conditions,
    /// The network of its beacon address.
    pub network: Network,
    /// Its deadlines.
    pub timing: Timing,
    /// Its limits.
    pub limits: Limits,
    /// What happens when a phase cannot be completed.
    pub rules: PhaseRules,
}

/// An Aggregation Service: the supervisor of its cohorts.
pub(crate) struct AggregationService {
    settings: ServiceSettings,
    shared: Arc<ServiceShared>,
    cohort_journal: CohortJournal,
    /// Our link to the transport, which connects when the cohorts are restored.
    link: Link,
    cohorts: BTreeMap<CohortId, Child>,
    standing: StandingCohorts,
    /// The number of cohorts opened, ended ones included.
    opened: u64,
    ended: Remembered<CohortId>,
    /// Cohorts that cannot continue until the host is restarted: nothing may be promised for them, nor withdrawn. They
    /// are our own, so the host bounds their number.
    halted: BTreeSet<CohortId>,
    /// Whether an append of a cohort's event has failed.
    journal_failed: bool,
    /// The senders that were notified that a cohort is not running here, with the cohort.
    notified_unknown: Remembered<(Did, CohortId)>,
    /// The start of the current period, and the number of senders notified in it.
    unknown_period: (Timestamp, u32),
    panicked: bool,
    restarts: Restarts,
    guard: EndGuard,
}

/// A cohort of ours.
struct Child {
    cohort: Addr<CohortActor>,
    /// The cohort's actor stops when this is dropped.
    _lease: Lease,
}

impl AggregationService {
    pub(crate) fn new(settings: ServiceSettings, link: Link, guard: EndGuard) -> Self {
        let shared = Arc::new(ServiceShared {
            identity: settings.identity.clone(),
            policy: Arc::clone(&settings.policy),
            journal: Arc::clone(&settings.journal),
            clock: settings.clock,
            randomness: settings.randomness,
            notices: settings.notices.clone(),
            load: settings.load.clone(),
            bans: settings.bans.clone(),
            seats: settings.seats.clone(),
            restarts: settings.restarts,
            deliveries: Deliveries::new(settings.transport.reports_delivery()),
        });
        Self {
            cohort_journal: CohortJournal::new(&settings),
            standing: StandingCohorts::new(&settings),
            settings,
            shared,
            link,
            cohorts: BTreeMap::new(),
            opened: 0,
            ended: Remembered::new(REMEMBERED),
            halted: BTreeSet::new(),
            journal_failed: false,
            notified_unknown: Remembered::new(REMEMBERED),
            unknown_period: (Timestamp::default(), 0),
            panicked: false,
            restarts: Restarts::default(),
            guard,
        }
    }

    fn reject(&self, cohort_id: Option<&CohortId>, reject: &Reject) {
        let _cohort = cohort_id.map(|cohort_id| span::cohort(cohort_id).entered());
        self.shared.notices.publish(ServiceNotice::rejected(cohort_id, reject));
    }

    fn machine(&self, terms: Arc<CohortTerms>) -> Result<ServiceCohort, ServiceConfigError> {
        ServiceCohort::new(Arc::new(ServiceConfig {
            terms,
            beacons: self.settings.beacons.clone(),
            aggregator: Arc::clone(&self.settings.aggregator),
        }))
    }

    fn start_cohort(&mut self, beginning: Beginning, ctx: &Context<Self>) {
        let (service, cohort_id) = (ctx.address(), beginning.cohort_id().clone());
        let ended = cohort_id.clone();
        // An unbounded send: there is one for each cohort.
        let gone = move |end| service.do_send(CohortGone { cohort_id: ended, end });
        let (shared, outbound) = (Arc::clone(&self.shared), self.link.clone());
        let successors = ctx.address().recipient();
        let (cohort, lease) = CohortActor::start(beginning, shared, outbound, successors, gone);
        self.cohorts.insert(cohort_id, Child { cohort, _lease: lease });
    }

    /// Opens a cohort on these terms.
    fn open(&mut self, terms: CohortTerms, ctx: &Context<Self>) -> Result<CohortId, OpenCohortError> {
        if self.journal_failed {
            return Err(OpenCohortError::JournalFailed);
        }
        let cohort_id = terms.cohort_id.clone();
        let machine = self.machine(Arc::new(terms))?;
        self.start_cohort(Beginning::fresh(machine), ctx);
        Ok(cohort_id)
    }

    /// Opens the cohort that replaces another one.
    fn form_again(&mut self, terms: &CohortTerms, ctx: &Context<Self>) {
        let cohort_id = terms.cohort_id.clone();
        let _cohort = span::cohort(&cohort_id).entered();
        match self.open(terms.clone(), ctx) {
            Ok(_) => {
                if let Some(notice) = reformed(terms) {
                    self.shared.notices.publish(notice);
                }
            }
            // The terms were valid before.
            Err(error) => tracing::error!(%cohort_id, %error, "a cohort could not be formed again"),
        }
    }

    /// Notifies the sender of a message to a cohort that is not running here; once for each sender and cohort.
    fn notify_unknown(&mut self, to: &Did, cohort_id: &CohortId) {
        let now = self.shared.clock.now();
        if now.since(self.unknown_period.0) >= UNKNOWN_PERIOD {
            self.unknown_period = (now, 0);
        }
        if self.unknown_period.1 >= MAX_UNKNOWN || !self.notified_unknown.insert((to.clone(), cohort_id.clone())) {
            return;
        }
        self.unknown_period.1 += 1;
        let body = CohortEnded {
            cohort_id: cohort_id.clone(),
            code: CohortEnded::UNKNOWN.to_owned(),
            reason: "no such cohort is running here".to_owned(),
            at_fault: false,
            next_cohort_id: None,
            signed: None,
            opt_in: None,
        };
        let until = Some(now + UNKNOWN_PERIOD);
        self.shared.load.send(Outbound::Direct { to: to.clone(), body: body.into(), until }, &self.link);
    }
}

impl Actor for AggregationService {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if self.panicked { self.restart(ctx) } else { self.recover_all(ctx) }
    }
}

impl Supervised for AggregationService {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.panicked = true;
        // Their actors stop; the actors of the same cohorts are started from the journal.
        self.cohorts.clear();
        self.standing.clear();
    }
}

impl InTree for AggregationService {
    const ROW: &'static Row = &tree::SERVICE;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

impl Handler<OpenCohort> for AggregationService {
    type Result = Result<CohortId, OpenCohortError>;

    fn handle(&mut self, mut open: OpenCohort, ctx: &mut Self::Context) -> Self::Result {
        let wanted = open.conditions.max_participants.unwrap_or(open.conditions.min_participants) as usize;
        if let Some(limit) = self.settings.transport.member_limit(&open.conditions.beacon_type, wanted) {
            open.conditions.limit_members(limit).map_err(ServiceConfigError::from)?;
        }
        // One generator for each cohort: with a single one, a repeated run would depend on the order of the requests.
        // The number is never reused: under a seed, the number of an ended cohort would give its identifier again.
        let mut rng = self.shared.randomness.for_actor(&format!("cohort number {}", self.opened));
        self.opened += 1;
        let terms = CohortTerms {
            service: self.settings.identity.did().clone(),
            service_key: self.settings.identity.public_key(),
            cohort_id: CohortId::generate(&mut rng),
            network: open.network,
            conditions: open.conditions,
            timing: open.timing,
            limits: open.limits,
            rules: open.rules,
            lineage: Lineage::default(),
        };
        self.open(terms, ctx)
    }
}

impl Handler<FormAgain> for AggregationService {
    type Result = ();

    fn handle(&mut self, FormAgain(terms): FormAgain, ctx: &mut Self::Context) {
        let cohort_id = terms.cohort_id.clone();
        if self.cohorts.contains_key(&cohort_id) || self.ended.contains(&cohort_id) {
            return;
        }
        let reading = self.shared.journal.read(&CohortActor::stream(&cohort_id));
        // Only a bounded number of ended cohorts is remembered; the journal has all. Other messages wait, or the cohort
        // could be opened twice.
        ctx.wait(reading.into_actor(self).map(move |read, service, ctx| match read {
            Ok(records) if records.is_empty() => service.form_again(&terms, ctx),
            Ok(_) => {}
            Err(error) => tracing::error!(%cohort_id, %error, "a cohort could not be formed again"),
        }));
    }
}

impl Handler<Delivery> for AggregationService {
    type Result = ();

    fn handle(&mut self, delivery: Delivery, ctx: &mut Self::Context) {
        let (message, stored) = match delivery {
            Delivery::Message(received) => (received, false),
            // Its time does not matter: an identifier is never reused, so a message that names a cohort was sent after
            // its start.
            Delivery::Stored { message, .. } => (message, true),
            // A service sends no nonces.
            Delivery::Own(_) => return,
            Delivery::Undecodable { from, error } => {
                if let Some(reject) = undecodable(&from, &error) {
                    self.reject(None, &reject);
                }
                return;
            }
            Delivery::Unverified { reason } => {
                // Without a peer: the DID that it names has not sent it.
                let reject = Reject { code: RejectCode::WrongSender, peer: None, detail: reason };
                return self.reject(None, &reject);
            }
            Delivery::Delivered { to, cohort_id, kind } => {
                return self.shared.deliveries.delivered(&cohort_id, &to, kind);
            }
            Delivery::Delayed { to, cohort_id, kind, reason } => {
                return self.shared.deliveries.delayed(&cohort_id, &to, kind, reason);
            }
            Delivery::Missed { to, cohort_id } => {
                self.standing.send_again(Some(&cohort_id), Some(&to), ctx);
                if let Some(child) = self.cohorts.get(&cohort_id) {
                    send_in_turn(&child.cohort, SendAgain(Some(to)), ctx);
                }
                return;
            }
            Delivery::Interrupted { to } => {
                self.standing.send_again(None, to.as_ref(), ctx);
                for child in self.cohorts.values() {
                    send_in_turn(&child.cohort, SendAgain(to.clone()), ctx);
                }
                return;
            }
            Delivery::Undeliverable { to, body, reason } => {
                let cohort_id = body.cohort_id().clone();
                let kind = body.short_type();
                self.shared.deliveries.delayed(&cohort_id, &to, kind, reason.clone());
                let _cohort = span::cohort(&cohort_id).entered();
                return self.shared.notices.publish(ServiceNotice::MessageUndelivered {
                    cohort_id,
                    to,
                    kind,
                    reason,
                });
            }
        };
        self.shared.load.count_received(message.body.short_type());
        if matches!(&*message.body, Body::Standing(_)) {
            if let Some(reject) = self.standing.deliver(message) {
                self.standing.reject(&reject);
            }
            return;
        }
        let cohort_id = message.body.cohort_id().clone();
        let Some(child) = self.cohorts.get(&cohort_id) else {
            if self.halted.contains(&cohort_id) {
                return;
            }
            message.receipt.clone().confirm();
            // Another service's adverts are not a fault.
            if stored || message.body.is_control() || matches!(&*message.body, Body::CohortAdvert(_)) {
                return;
            }
            self.notify_unknown(&message.from, &cohort_id);
            if self.ended.contains(&cohort_id) {
                // Late messages of an ended cohort are not a fault either.
                return;
            }
            let detail = "no such cohort is running here";
            return self.reject(Some(&cohort_id), &Reject::new(RejectCode::WrongCohort, &message.from, detail));
        };
        // A cohort that has just ended will be reported soon. Without a receipt the sender sends the message again.
        let message = MemberMessage::to(Mailbox::Cohort, message, &self.shared.load);
        if let Err(SendError::Full(message)) = child.cohort.try_send(message) {
            let from = &message.received.from;
            tracing::warn!(%cohort_id, %from, "the cohort's mailbox is full, a message was dropped");
        }
    }
}
