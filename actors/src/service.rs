//! The cohorts supervisor: one Aggregation Service identity, and a `CohortActor` for each of its cohorts.
//!
//! It opens cohorts, routes messages to them by cohort, and notices when one ends; a cohort that fails touches no other.

use std::{collections::BTreeMap, sync::Arc};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message as ActixMessage, Recipient};
use btcr2_aggregation_protocol::{
    beacon::BeaconRegistry,
    cohort::{
        Timing,
        conditions::Conditions,
        service::{Limits, ServiceCohort, ServiceConfig, ServiceConfigError},
    },
    error::{Reject, RejectCode},
    id::CohortId,
    identity::Identity,
    message::{Body, DecodeError},
    network::Network,
    output::KeyAggregator,
};

use crate::{
    cohort::{Cancel, CohortActor, CohortMessage, Finalize},
    journal::Journal,
    notice::{Notices, ServiceNotice},
    policy::ServicePolicy,
    remembered::Remembered,
    runtime::{Clock, Randomness},
    supervisor::{End, EndGuard},
    transport::{Delivery, Outbound, Transport},
};

/// How many messages may wait for the service. A sender beyond that waits itself, at its transport.
const MAILBOX: usize = 8192;

/// How many ended cohorts are remembered, so that what their members said too late is not held against them.
const REMEMBERED: usize = 1024;

/// What an Aggregation Service consists of.
#[derive(Clone)]
pub struct ServiceSettings {
    /// Who it is: a KEY DID.
    pub identity: Identity,
    /// How it is reached.
    pub transport: Arc<dyn Transport>,
    /// What its operator decides.
    pub policy: Arc<dyn ServicePolicy>,
    /// The beacon types that it knows.
    pub beacons: BeaconRegistry,
    /// Who aggregates keys: directly, or behind a cache shared with others in the process.
    pub aggregator: Arc<dyn KeyAggregator>,
    /// Where facts are kept.
    pub journal: Arc<dyn Journal>,
    /// The time.
    pub clock: Clock,
    /// The randomness.
    pub randomness: Randomness,
    /// Where its notices are published.
    pub notices: Notices<ServiceNotice>,
}

/// What the service's actors share.
pub(crate) struct ServiceShared {
    pub(crate) identity: Identity,
    pub(crate) policy: Arc<dyn ServicePolicy>,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) clock: Clock,
    pub(crate) randomness: Randomness,
    pub(crate) notices: Notices<ServiceNotice>,
}

/// A cohort to open.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "Result<CohortId, ServiceConfigError>")]
pub struct OpenCohort {
    /// What its advert promises.
    pub conditions: Conditions,
    /// The network of its beacon address.
    pub network: Network,
    /// How long it waits.
    pub timing: Timing,
    /// What is too much.
    pub limits: Limits,
}

/// Form a cohort with the members that it has, without waiting for more.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "()")]
pub struct FinalizeCohort(pub CohortId);

/// End a cohort.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "()")]
pub struct CancelCohort {
    /// Which.
    pub cohort_id: CohortId,
    /// Why, in words.
    pub reason: String,
}

/// The cohorts that are running.
#[derive(Clone, Copy, Debug, ActixMessage)]
#[rtype(result = "Vec<CohortId>")]
pub struct LiveCohorts;

#[derive(ActixMessage)]
#[rtype(result = "()")]
struct CohortGone {
    cohort_id: CohortId,
    end: End,
}

/// An Aggregation Service: the supervisor of its cohorts.
pub struct AggregationService {
    settings: ServiceSettings,
    shared: Arc<ServiceShared>,
    outbound: Recipient<Outbound>,
    cohorts: BTreeMap<CohortId, Addr<CohortActor>>,
    /// How many cohorts were opened, ended ones included.
    opened: u64,
    ended: Remembered<CohortId>,
    _guard: EndGuard,
}

impl AggregationService {
    pub(crate) fn new(settings: ServiceSettings, outbound: Recipient<Outbound>, guard: EndGuard) -> Self {
        let shared = Arc::new(ServiceShared {
            identity: settings.identity.clone(),
            policy: Arc::clone(&settings.policy),
            journal: Arc::clone(&settings.journal),
            clock: settings.clock,
            randomness: settings.randomness,
            notices: settings.notices.clone(),
        });
        let ended = Remembered::new(REMEMBERED);
        Self { settings, shared, outbound, cohorts: BTreeMap::new(), opened: 0, ended, _guard: guard }
    }

    fn reject(&self, cohort_id: Option<&CohortId>, reject: &Reject) {
        self.shared.notices.publish(ServiceNotice::rejected(cohort_id, reject));
    }
}

impl Actor for AggregationService {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<OpenCohort> for AggregationService {
    type Result = Result<CohortId, ServiceConfigError>;

    fn handle(&mut self, mut open: OpenCohort, ctx: &mut Self::Context) -> Self::Result {
        if let Some(limit) = self.settings.transport.member_limit(&open.conditions.beacon_type) {
            open.conditions.limit_members(limit)?;
        }
        // One generator a cohort: were it one for all, a repeated run would depend on the order of the requests only.
        // By a number that is never given twice: under a seed, the number of an ended cohort would be its identifier again.
        let mut rng = self.shared.randomness.for_actor(&format!("cohort number {}", self.opened));
        self.opened += 1;
        let cohort_id = CohortId::generate(&mut rng);
        let config = ServiceConfig {
            service: self.settings.identity.did().clone(),
            service_key: self.settings.identity.public_key(),
            cohort_id: cohort_id.clone(),
            network: open.network,
            conditions: open.conditions,
            timing: open.timing,
            limits: open.limits,
            beacons: self.settings.beacons.clone(),
            aggregator: Arc::clone(&self.settings.aggregator),
        };
        let machine = ServiceCohort::new(Arc::new(config))?;
        let (service, id) = (ctx.address(), cohort_id.clone());
        let guard = EndGuard::new(move |end| service.do_send(CohortGone { cohort_id: id, end }));
        let cohort = CohortActor::new(machine, Arc::clone(&self.shared), self.outbound.clone(), guard);
        self.cohorts.insert(cohort_id.clone(), cohort.start());
        Ok(cohort_id)
    }
}

impl Handler<Delivery> for AggregationService {
    type Result = ();

    fn handle(&mut self, delivery: Delivery, _: &mut Self::Context) {
        let (message, stored) = match delivery {
            Delivery::Message(message) => (message, false),
            // Whenever it was said: an identifier is never given twice, so what names a cohort came after it.
            Delivery::Stored { message, .. } => (message, true),
            Delivery::Undecodable { from, error } => {
                if let Some(reject) = undecodable(&from, &error) {
                    self.reject(None, &reject);
                }
                return;
            }
            Delivery::Unverified { reason } => {
                // In nobody's name: the one that it names has not said it.
                let reject = Reject { code: RejectCode::WrongSender, peer: None, detail: reason };
                return self.reject(None, &reject);
            }
            Delivery::Undeliverable { to, body, reason } => {
                let cohort_id = body.cohort_id().clone();
                let kind = body.short_type();
                return self.shared.notices.publish(ServiceNotice::MessageUndelivered {
                    cohort_id,
                    to,
                    kind,
                    reason,
                });
            }
        };
        let cohort_id = message.body.cohort_id().clone();
        let Some(cohort) = self.cohorts.get(&cohort_id) else {
            if stored || self.ended.contains(&cohort_id) || matches!(&*message.body, Body::CohortAdvert(_)) {
                // Late messages of a cohort that is over, and another service's adverts, are nobody's fault.
                return;
            }
            let detail = "no such cohort is running here";
            return self.reject(Some(&cohort_id), &Reject::new(RejectCode::WrongCohort, &message.from, detail));
        };
        let from = message.from.clone();
        if let Err(error) = cohort.try_send(CohortMessage(message)) {
            tracing::warn!(%cohort_id, %from, %error, "the cohort's mailbox is full, a message is lost");
        }
    }
}

/// The refusal of something that is no message. Types of later versions are passed over, as version 1 says.
pub(crate) fn undecodable(from: &btcr2_aggregation_protocol::did::Did, error: &DecodeError) -> Option<Reject> {
    let code = match error {
        DecodeError::UnknownType(_) => return None,
        DecodeError::Version(_) => RejectCode::WrongVersion,
        DecodeError::Field { .. } => RejectCode::Malformed,
    };
    Some(Reject::new(code, from, error))
}

impl Handler<FinalizeCohort> for AggregationService {
    type Result = ();

    fn handle(&mut self, FinalizeCohort(cohort_id): FinalizeCohort, _: &mut Self::Context) {
        if let Some(cohort) = self.cohorts.get(&cohort_id) {
            cohort.do_send(Finalize);
        }
    }
}

impl Handler<CancelCohort> for AggregationService {
    type Result = ();

    fn handle(&mut self, CancelCohort { cohort_id, reason }: CancelCohort, _: &mut Self::Context) {
        if let Some(cohort) = self.cohorts.get(&cohort_id) {
            cohort.do_send(Cancel(reason));
        }
    }
}

impl Handler<LiveCohorts> for AggregationService {
    type Result = actix::MessageResult<LiveCohorts>;

    fn handle(&mut self, _: LiveCohorts, _: &mut Self::Context) -> Self::Result {
        actix::MessageResult(self.cohorts.keys().cloned().collect())
    }
}

impl Handler<CohortGone> for AggregationService {
    type Result = ();

    fn handle(&mut self, CohortGone { cohort_id, end }: CohortGone, _: &mut Self::Context) {
        self.cohorts.remove(&cohort_id);
        self.ended.insert(cohort_id.clone());
        if let Some(reason) = end.failure() {
            tracing::error!(%cohort_id, reason, "a cohort's actor ended before its cohort");
            // Which would have withdrawn its advert itself.
            self.outbound.do_send(Outbound::WithdrawAdvert { cohort_id: cohort_id.clone() });
            let failure =
                btcr2_aggregation_protocol::cohort::event::CohortFailure::Internal { reason: reason.to_owned() };
            self.shared.notices.publish(ServiceNotice::CohortFailed {
                cohort_id,
                code: failure.code(),
                reason: failure.to_string(),
                failure,
            });
        }
    }
}
