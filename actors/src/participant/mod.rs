//! A participant: one identity, and a `ParticipantSessionActor` for each cohort that it considers. Which cohorts those are
//! is decided by the machine of its memberships, which this actor drives, see `memberships`; the sessions that ran when the
//! process ended are restored from the journal, see `recover`.

mod host;
mod memberships;
mod post;
mod recover;
mod session;
mod source;

use std::{collections::BTreeMap, sync::Arc};

use actix::{
    Actor, Addr, Context, Handler, Message as ActixMessage, Supervised, dev::ContextFut, prelude::SendError,
};
use bitcoin::FeeRate;
use btcr2_aggregation_protocol::{
    beacon::BeaconRegistry,
    cohort::{
        Timing,
        event::SessionEnd,
        participant::{
            Advert, ParticipantCohort, ParticipantConfig,
            membership::{CohortKey, Membership, MembershipConfig, MembershipInput, Route},
        },
    },
    error::Reject,
    id::CohortId,
    identity::Identity,
    invite::InviteToken,
    message::Body,
    output::KeyAggregator,
    time::Timestamp,
};

pub(crate) use self::{
    host::{InspectMembership, InspectSession, LeaveCohort, Restored},
    source::SessionJournal,
};
use self::{
    post::{Owner, Seen, SendAgain, SessionMessage},
    session::{ParticipantSessionActor, StartMode},
};
use crate::{
    engine::{Driven, Engine, Replayed},
    journal::{Journal, Retention, StreamId},
    notice::{Notices, ParticipantNotice},
    policy::ParticipantPolicy,
    runtime::{Clock, Randomness},
    span,
    supervision::{EndGuard, InTree, Lease, RestartIntensity, Restarts},
    transport::{Delivery, Receipt, Received, Transport, link::Link, undecodable},
    tree::{self, Row},
};

/// The parts of a participant.
#[derive(Clone)]
pub(crate) struct ParticipantSettings {
    /// Its identity.
    pub(crate) identity: Identity,
    /// How it reaches services.
    pub(crate) transport: Arc<dyn Transport>,
    /// The decisions of its controller.
    pub(crate) policy: Arc<dyn ParticipantPolicy>,
    /// How long it waits for a service.
    pub(crate) timing: Timing,
    /// The highest fee rate of a beacon transaction that it signs, see
    /// [`DEFAULT_MAX_FEE_RATE`](btcr2_aggregation_protocol::output::DEFAULT_MAX_FEE_RATE).
    pub(crate) max_fee_rate: FeeRate,
    /// The maximum number of cohorts that it considers or takes part in at once. Further adverts are ignored until they
    /// are repeated.
    pub(crate) max_sessions: usize,
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
    pub(crate) notices: Notices<ParticipantNotice>,
    /// How often an actor that panics is restarted.
    pub(crate) restarts: RestartIntensity,
    /// What happens to the journal of a session that has ended.
    pub(crate) retention: Retention,
}

impl ParticipantSettings {
    fn config(&self, invite: Option<InviteToken>) -> ParticipantConfig {
        ParticipantConfig {
            did: self.identity.did().clone(),
            participant_key: self.identity.public_key(),
            communication_key: self.identity.public_key(),
            genesis_document: self.identity.genesis_document().cloned(),
            invite,
            timing: self.timing,
            max_fee_rate: self.max_fee_rate,
            beacons: self.beacons.clone(),
            aggregator: Arc::clone(&self.aggregator),
        }
    }
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

/// What a session has journaled; sent before its actor stops.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct SessionProgress {
    pub(crate) advert: Arc<Advert>,
    pub(crate) progress: Progress,
}

/// The progress of a session that concerns its participant.
pub(crate) enum Progress {
    /// It has opted in: what its service sends about the cohort concerns us from now on.
    Joined,
    /// The cohort has formed.
    Formed,
    /// It has ended, for this reason.
    Ended(SessionEnd),
}

/// A session of ours.
struct Child {
    session: Addr<ParticipantSessionActor>,
    /// The session ends when this is dropped.
    _lease: Lease,
}

impl Child {
    /// Sends the session a message of its service. A lost message gets no receipt.
    fn deliver(&self, cohort_id: &CohortId, message: SessionMessage) {
        // A session that has just ended will be reported soon.
        if let Err(SendError::Full(_)) = self.session.try_send(message) {
            tracing::warn!(%cohort_id, "the session's mailbox is full, a message was dropped");
        }
    }
}

/// A DID controller in all its cohorts.
pub(crate) struct ParticipantActor {
    shared: Arc<ParticipantShared>,
    outbound: Link,
    /// Which cohorts it considers and is in.
    engine: Engine<Membership>,
    membership: Arc<MembershipConfig>,
    sessions: BTreeMap<CohortKey, Child>,
    /// The replayed machines of sessions of previous runs, until they are started.
    replayed: BTreeMap<CohortKey, ParticipantCohort>,
    retention: Retention,
    /// The cohort of the message that is being decided.
    about: Option<CohortId>,
    panicked: bool,
    restarts: Restarts,
    guard: EndGuard,
}

impl ParticipantActor {
    pub(crate) fn new(settings: ParticipantSettings, outbound: Link, guard: EndGuard) -> Self {
        let config = settings.config(settings.policy.invite());
        let ParticipantSettings { identity, policy, timing, journal, clock, .. } = settings;
        let membership = Arc::new(MembershipConfig {
            did: config.did.clone(),
            beacons: config.beacons.clone(),
            max_sessions: settings.max_sessions,
            patience: timing.phase_timeout,
            retains: settings.retention == Retention::UntilArchived,
        });
        let stream = StreamId::of_memberships(identity.did());
        let rng = settings.randomness.for_actor(stream.as_str());
        let machine = Membership::new(Arc::clone(&membership));
        let engine = Engine::new(machine, Arc::clone(&journal), stream, clock, rng);
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
            outbound,
            engine,
            membership,
            sessions: BTreeMap::new(),
            replayed: BTreeMap::new(),
            retention: settings.retention,
            about: None,
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

    fn start_session(&mut self, machine: ParticipantCohort, start: (StartMode, bool), ctx: &Context<Self>) {
        let cohort = CohortKey::from(&**machine.advert());
        let gone = recover::report_end(ctx, cohort.clone());
        let owner = Owner::new(ctx);
        let (shared, outbound) = (Arc::clone(&self.shared), self.outbound.clone());
        let (session, lease) = ParticipantSessionActor::start(machine, start, shared, outbound, owner, gone);
        self.sessions.insert(cohort, Child { session, _lease: lease });
    }

    /// A message, and its time if it was sent before we were connected.
    fn on_message(&mut self, received: Received, stored: Option<Timestamp>, ctx: &mut Context<Self>) {
        let Received { message, receipt, .. } = received;
        let cohort = CohortKey::of_message(&message);
        let input = MembershipInput::Message { message: message.clone(), stored: stored.is_some() };
        let machine = self.engine.machine();
        if matches!(&*message.body, Body::CohortAdvert(_)) && machine.has_formed_without_us(&cohort) {
            let _session = self.span(&cohort.cohort_id).entered();
            tracing::info!(cohort_id = %cohort.cohort_id, "ignored the advert of a cohort that has formed already");
        }
        let receipt = match machine.route(&message) {
            Route::Withheld => return,
            Route::Membership => receipt,
            Route::Session => {
                // Without a receipt if the session has not been started yet: the message is sent again.
                if let Some(child) = self.sessions.get(&cohort) {
                    child.deliver(&cohort.cohort_id, SessionMessage { message, receipt, stored });
                }
                Receipt::default()
            }
        };
        self.about = Some(cohort.cohort_id);
        self.feed_received(input, receipt, ctx);
        self.about = None;
    }
}

impl Actor for ParticipantActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if self.panicked { self.restart_from_journal(ctx) } else { self.recover(ctx) }
    }
}

impl Supervised for ParticipantActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.panicked = true;
        // Their actors stop; the sessions of the same cohorts are started from the journal.
        self.sessions.clear();
        self.replayed.clear();
        self.about = None;
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
                let Some(service) = message.to.clone() else { return };
                let cohort = CohortKey { service, cohort_id: message.body.cohort_id().clone() };
                if let Some(child) = self.sessions.get(&cohort) {
                    post::wait_to_send(self, &child.session, Seen(message), ctx);
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
                for child in self.sessions.values() {
                    post::wait_to_send(self, &child.session, SendAgain, ctx);
                }
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

impl Handler<SessionProgress> for ParticipantActor {
    type Result = ();

    fn handle(&mut self, SessionProgress { advert, progress }: SessionProgress, ctx: &mut Self::Context) {
        let cohort = CohortKey::from(&*advert);
        let input = match progress {
            Progress::Joined => MembershipInput::OptedIn(advert),
            Progress::Formed => MembershipInput::Formed(cohort),
            Progress::Ended(reason) => MembershipInput::SessionEnded { cohort, reason },
        };
        self.feed(input, ctx);
    }
}
