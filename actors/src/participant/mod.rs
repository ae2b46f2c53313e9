//! A participant: one identity, and a `ParticipantSessionActor` for each cohort that it is asked to join. The sessions
//! that ran when the process ended are restored from the journal, see `recover`.

mod recover;
mod session;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use actix::{
    Actor, Addr, AsyncContext, Context, Handler, Message as ActixMessage, Recipient, Supervised, dev::ContextFut,
    prelude::SendError,
};
use bitcoin::FeeRate;
use btcr2_aggregation_protocol::{
    beacon::BeaconRegistry,
    cohort::{
        Timing,
        event::SessionEnd,
        participant::{Advert, ParticipantCohort, ParticipantConfig},
    },
    did::Did,
    error::{Reject, RejectCode},
    id::CohortId,
    identity::Identity,
    message::{Body, keygen::CohortAdvert},
    output::KeyAggregator,
    time::Timestamp,
};

use self::{
    recover::SessionGone,
    session::{Leave, Owner, ParticipantSessionActor, Seen, SendAgain, SessionMessage, StartMode},
};
use crate::{
    journal::{Journal, Retention},
    notice::{Notices, ParticipantNotice},
    policy::ParticipantPolicy,
    remembered::Remembered,
    runtime::{Clock, Randomness},
    span,
    supervision::{EndGuard, InTree, Lease, RestartIntensity, Restarts},
    transport::{Delivery, Outbound, Received, Transport, undecodable},
    tree::{self, Row},
};

/// The maximum number of expected successors of our cohorts.
const SUCCESSORS: usize = 64;

/// The number of ended cohorts that are remembered, so that a repeated advert does not start them again.
const REMEMBERED: usize = 1024;

/// The number of remembered cohorts that formed with a previous run of this participant, so that an old advert does not
/// start them again.
const FORMED: usize = 1024;

/// The parts of a participant.
#[derive(Clone)]
pub struct ParticipantSettings {
    /// Its identity.
    pub identity: Identity,
    /// How it reaches services.
    pub transport: Arc<dyn Transport>,
    /// The decisions of its controller.
    pub policy: Arc<dyn ParticipantPolicy>,
    /// How long it waits for a service.
    pub timing: Timing,
    /// The highest fee rate of a beacon transaction that it signs, see
    /// [`DEFAULT_MAX_FEE_RATE`](btcr2_aggregation_protocol::output::DEFAULT_MAX_FEE_RATE).
    pub max_fee_rate: FeeRate,
    /// The maximum number of cohorts that it considers or takes part in at once. Further adverts are ignored until they
    /// are repeated.
    pub max_sessions: usize,
    /// The beacon types that it supports.
    pub beacons: BeaconRegistry,
    /// The key aggregation: direct, or through a cache shared with others in the process.
    pub aggregator: Arc<dyn KeyAggregator>,
    /// Where events are stored.
    pub journal: Arc<dyn Journal>,
    /// The time.
    pub clock: Clock,
    /// The randomness.
    pub randomness: Randomness,
    /// Where its notices are published.
    pub notices: Notices<ParticipantNotice>,
    /// How often an actor that panics is restarted.
    pub restarts: RestartIntensity,
    /// What happens to the journal of a session that has ended.
    pub retention: Retention,
}

/// What the participant's actors share.
pub(crate) struct ParticipantShared {
    pub(crate) identity: Identity,
    pub(crate) config: Arc<ParticipantConfig>,
    pub(crate) policy: Arc<dyn ParticipantPolicy>,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) clock: Clock,
    pub(crate) randomness: Randomness,
    pub(crate) notices: Notices<ParticipantNotice>,
    pub(crate) restarts: RestartIntensity,
}

/// A cohort is identified by its service and its identifier: two services may choose the same identifier.
type CohortKey = (Did, CohortId);

/// The host has stored what it needs of a session that has ended: its journal is archived. Answered when that is
/// durable; if the host closes the state directory before, the end is reported to it again.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "()")]
pub struct ArchiveSession {
    /// The service.
    pub service: Did,
    /// The cohort.
    pub cohort_id: CohortId,
}

/// A session has ended, for this reason; sent before its actor stops.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct SessionOver {
    pub(crate) advert: Arc<Advert>,
    pub(crate) reason: SessionEnd,
}

/// The session has opted in, durably: what its service sends about the cohort concerns us from now on.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct SessionJoined(pub(crate) Arc<Advert>);

/// Leave a cohort, in any phase.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "()")]
pub struct LeaveCohort {
    /// The service.
    pub service: Did,
    /// The cohort.
    pub cohort_id: CohortId,
}

/// A session of ours.
struct Child {
    session: Addr<ParticipantSessionActor>,
    /// The session ends when this is dropped.
    _lease: Lease,
    /// We have opted in.
    joined: bool,
    /// It has ended, and we had not joined.
    declined: bool,
    advert: Arc<Advert>,
}

impl Child {
    /// Sends the session a message of its service. A lost message gets no receipt.
    fn deliver(&self, message: SessionMessage) {
        // A session that has just ended will be reported soon.
        if let Err(SendError::Full(_)) = self.session.try_send(message) {
            let cohort_id = &self.advert.cohort_id;
            tracing::warn!(%cohort_id, "the session's mailbox is full, a message was dropped");
        }
    }
}

/// A DID controller in all its cohorts.
pub struct ParticipantActor {
    shared: Arc<ParticipantShared>,
    max_sessions: usize,
    outbound: Recipient<Outbound>,
    sessions: BTreeMap<CohortKey, Child>,
    /// The cohorts that replace ours, with the advert of the replaced one.
    successors: VecDeque<(CohortKey, Arc<Advert>)>,
    retention: Retention,
    ended: Remembered<CohortKey>,
    /// Cohorts that formed with this identity, and of which it has no session any more. Separate from `ended`, because
    /// unauthenticated peers can make this one grow.
    formed: Remembered<CohortKey>,
    /// Cohorts that we did not join: unauthenticated peers choose how many they advertise.
    declined: Remembered<CohortKey>,
    /// Sessions that cannot continue until the host is restarted: messages for them are not accepted. We have joined
    /// them, so our own actions bound their number.
    halted: BTreeSet<CohortKey>,
    panicked: bool,
    restarts: Restarts,
    guard: EndGuard,
}

impl ParticipantActor {
    pub(crate) fn new(settings: ParticipantSettings, outbound: Recipient<Outbound>, guard: EndGuard) -> Self {
        let ParticipantSettings { identity, policy, timing, beacons, aggregator, journal, clock, .. } = settings;
        let config = ParticipantConfig {
            did: identity.did().clone(),
            participant_key: identity.public_key(),
            communication_key: identity.public_key(),
            genesis_document: identity.genesis_document().cloned(),
            invite: policy.invite(),
            timing,
            max_fee_rate: settings.max_fee_rate,
            beacons,
            aggregator,
        };
        let shared = ParticipantShared {
            identity,
            config: Arc::new(config),
            policy,
            journal,
            clock,
            randomness: settings.randomness,
            notices: settings.notices,
            restarts: settings.restarts,
        };
        Self {
            shared: Arc::new(shared),
            max_sessions: settings.max_sessions,
            outbound,
            sessions: BTreeMap::new(),
            successors: VecDeque::new(),
            retention: settings.retention,
            ended: Remembered::new(REMEMBERED),
            formed: Remembered::new(FORMED),
            declined: Remembered::new(REMEMBERED),
            halted: BTreeSet::new(),
            panicked: false,
            restarts: Restarts::default(),
            guard,
        }
    }

    fn reject(&self, cohort_id: Option<&CohortId>, reject: &Reject) {
        let _session = cohort_id.map(|cohort_id| self.span(cohort_id).entered());
        self.shared.notices.publish(ParticipantNotice::rejected(self.shared.identity.did(), cohort_id, reject));
    }

    fn span(&self, cohort_id: &CohortId) -> tracing::Span {
        span::session(cohort_id, self.shared.identity.did())
    }

    fn on_advert(&mut self, from: &Did, body: &CohortAdvert, ctx: &mut Context<Self>) {
        let cohort = (from.clone(), body.cohort_id.clone());
        let over = self.ended.contains(&cohort) || self.declined.contains(&cohort);
        if over || self.halted.contains(&cohort) || self.sessions.contains_key(&cohort) {
            return;
        }
        let _session = self.span(&body.cohort_id).entered();
        if self.formed.contains(&cohort) {
            tracing::info!(cohort_id = %body.cohort_id, "ignored the advert of a cohort that has formed already");
            return;
        }
        // A cohort on another network cannot announce anything for this DID.
        if body.network != self.shared.identity.did().network() {
            return;
        }
        let advert = match Advert::read(from, body, &self.shared.config.beacons) {
            Ok(advert) => advert,
            Err(reject) => return self.reject(Some(&body.cohort_id), &reject),
        };
        let rejoins = self.takes_the_place_of_ours(&advert);
        // Before it takes a slot that another cohort could use.
        if !rejoins && !self.shared.policy.considers(&advert) {
            tracing::debug!(cohort_id = %body.cohort_id, "the policy does not consider the advert");
            self.declined.insert(cohort);
            return;
        }
        if self.sessions.len() >= self.max_sessions {
            tracing::debug!(cohort_id = %body.cohort_id, "too many sessions are open, ignored the advert");
            return;
        }
        let advert = Arc::new(advert);
        let machine = ParticipantCohort::new(Arc::clone(&self.shared.config), advert);
        self.start_session(machine, (StartMode::Fresh, rejoins), false, ctx);
    }

    fn start_session(
        &mut self,
        machine: ParticipantCohort,
        start: (StartMode, bool),
        joined: bool,
        ctx: &Context<Self>,
    ) {
        let advert = Arc::clone(machine.advert());
        let cohort = (advert.service.clone(), advert.cohort_id.clone());
        let (participant, ended) = (ctx.address(), cohort.clone());
        let gone = move |end| participant.do_send(SessionGone { cohort: ended, end });
        let owner = Owner { over: ctx.address().recipient(), joined: ctx.address().recipient() };
        let (shared, outbound) = (Arc::clone(&self.shared), self.outbound.clone());
        let (session, lease) = ParticipantSessionActor::start(machine, start, shared, outbound, owner, gone);
        self.sessions.insert(cohort, Child { session, _lease: lease, joined, declined: false, advert });
    }

    /// The cohort `next` takes the place of the one that `ours` advertised.
    fn expect_successor(&mut self, next: CohortId, ours: Arc<Advert>) {
        let next = (ours.service.clone(), next);
        if self.expects(&next) {
            return;
        }
        // Its advert may have arrived first, over another transport: it is considered again when it is repeated.
        self.declined.forget(&next);
        if self.successors.len() >= SUCCESSORS {
            self.successors.pop_front();
        }
        self.successors.push_back((next, ours));
    }

    fn expects(&self, cohort: &CohortKey) -> bool {
        self.successors.iter().any(|(next, _)| next == cohort)
    }

    /// Whether the cohort replaces one that we were in, on the same terms.
    fn takes_the_place_of_ours(&self, advert: &Advert) -> bool {
        self.successors.iter().any(|((service, next), ours)| {
            *service == advert.service
                && *next == advert.cohort_id
                && ours.network == advert.network
                && ours.conditions == advert.conditions
        })
    }

    /// A message, and its time if it was sent before we were connected.
    fn on_message(&mut self, received: Received, stored: Option<Timestamp>, ctx: &mut Context<Self>) {
        let Received { message, receipt, .. } = received;
        if let Body::CohortAdvert(body) = &*message.body {
            receipt.confirm();
            return self.on_advert(&message.from, body, ctx);
        }
        let cohort = (message.from.clone(), message.body.cohort_id().clone());
        if let Some(child) = self.sessions.get(&cohort) {
            // Recorded here before the session has made it durable: the new cohort's advert may be the next message.
            let next = match &*message.body {
                Body::CohortEnded(ended) => ended.next_cohort_id.clone(),
                _ => None,
            };
            // Any peer can advertise a cohort and claim that another one replaces it: the claim only counts for a
            // cohort that we joined.
            let next = next.filter(|_| child.joined);
            let advert = Arc::clone(&child.advert);
            child.deliver(SessionMessage { message, receipt, stored });
            if let Some(next) = next {
                self.expect_successor(next, advert);
            }
            return;
        }
        if self.halted.contains(&cohort) {
            return;
        }
        receipt.confirm();
        if message.body.is_control() {
            // About a cohort in which we take no part any more.
            return;
        }
        if self.ended.contains(&cohort) || self.declined.contains(&cohort) {
            // Late messages of a cohort that has ended for us are not the service's fault.
            return;
        }
        // A cohort that has formed admits no one else: a member that has lost its session would wait in vain.
        if !matches!(&*message.body, Body::CohortOptInAccept(_)) {
            self.formed.insert(cohort.clone());
        }
        if stored.is_some() {
            // Nor are messages of a previous run.
            return;
        }
        let (from, cohort_id) = cohort;
        let known = self.sessions.keys().any(|(_, id)| *id == cohort_id);
        let reject = if known {
            Reject::new(RejectCode::WrongSender, &from, "the sender is not the service of the cohort's advert")
        } else {
            Reject::new(RejectCode::WrongCohort, &from, "we take part in no such cohort")
        };
        self.reject(Some(&cohort_id), &reject);
    }
}

impl Actor for ParticipantActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if self.panicked { self.restart(ctx) } else { self.recover_all(ctx) }
    }
}

impl Supervised for ParticipantActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.panicked = true;
        // Their actors stop; the sessions of the same cohorts are started from the journal.
        self.sessions.clear();
    }
}

impl InTree for ParticipantActor {
    const ROW: &'static Row = &tree::PARTICIPANT;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

impl Handler<Delivery> for ParticipantActor {
    type Result = ();

    fn handle(&mut self, delivery: Delivery, ctx: &mut Self::Context) {
        match delivery {
            Delivery::Message(received) => self.on_message(received, None, ctx),
            Delivery::Stored { message, said } => self.on_message(message, Some(said), ctx),
            Delivery::Own(message) => {
                let service = message.to.clone();
                let cohort = service.map(|service| (service, message.body.cohort_id().clone()));
                if let Some(child) = cohort.and_then(|cohort| self.sessions.get(&cohort)) {
                    child.session.do_send(Seen(message));
                }
            }
            Delivery::Undecodable { from, error } => {
                if let Some(reject) = undecodable(&from, &error) {
                    self.reject(None, &reject);
                }
            }
            Delivery::Unverified { reason } => {
                let did = self.shared.identity.did().clone();
                self.shared.notices.publish(ParticipantNotice::MessageUnverified { did, reason });
            }
            Delivery::Interrupted { .. } => {
                self.sessions.values().for_each(|child| child.session.do_send(SendAgain));
            }
            // A participant blames no peer, and sends by itself what its service still needs.
            Delivery::Missed { .. } | Delivery::Delivered { .. } | Delivery::Delayed { .. } => {}
            Delivery::Undeliverable { body, reason, .. } => {
                let _session = self.span(body.cohort_id()).entered();
                self.shared.notices.publish(ParticipantNotice::MessageUndelivered {
                    did: self.shared.identity.did().clone(),
                    cohort_id: body.cohort_id().clone(),
                    kind: body.short_type(),
                    reason,
                });
            }
        }
    }
}

impl Handler<LeaveCohort> for ParticipantActor {
    type Result = ();

    fn handle(&mut self, LeaveCohort { service, cohort_id }: LeaveCohort, _: &mut Self::Context) {
        if let Some(child) = self.sessions.get(&(service, cohort_id)) {
            child.session.do_send(Leave);
        }
    }
}

impl Handler<SessionJoined> for ParticipantActor {
    type Result = ();

    fn handle(&mut self, SessionJoined(advert): SessionJoined, _: &mut Self::Context) {
        if let Some(child) = self.sessions.get_mut(&(advert.service.clone(), advert.cohort_id.clone())) {
            child.joined = true;
        }
    }
}

impl Handler<SessionOver> for ParticipantActor {
    type Result = ();

    fn handle(&mut self, SessionOver { advert, reason }: SessionOver, ctx: &mut Self::Context) {
        let cohort = (advert.service.clone(), advert.cohort_id.clone());
        match reason {
            // Any peer can advertise: nothing is stored of a cohort in which we take no part.
            SessionEnd::NotJoined => {
                self.put_away(&cohort, Retention::Forget, ctx);
                if let Some(child) = self.sessions.get_mut(&cohort) {
                    child.declined = true;
                }
            }
            SessionEnd::EndedByService { next: Some(next), .. }
                if self.sessions.get(&cohort).is_some_and(|child| child.joined) =>
            {
                self.expect_successor(next, advert);
            }
            _ => {}
        }
    }
}
