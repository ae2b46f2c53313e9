//! The supervisor tree, and the guard by which a child's end is known however it ends.
//!
//! ```text
//! Supervisor ─┬─ links ───────────── connection actor, connected again when it ends
//!             ├─ AggregationService ─ CohortActor ─ SigningSessionActor
//!             └─ ParticipantActor ─── ParticipantSessionActor
//! ```
//!
//! actix restarts an actor only after it stopped itself, with its old state; a panic in a handler ends it silently. So every
//! child holds an [`EndGuard`], which tells its parent when the child is dropped, and whether by a panic.

use std::sync::Arc;

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message as ActixMessage};
use btcr2_aggregation_protocol::did::Did;

use crate::{
    participant::{ParticipantActor, ParticipantSettings},
    service::{AggregationService, ServiceSettings},
    span,
    transport::link::Link,
};

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It had done what it was there for.
    Finished,
    /// It stopped before that.
    Stopped,
    /// It stopped because the journal would not take its facts.
    JournalFailed,
    /// It panicked.
    Panicked,
}

impl End {
    /// What went wrong, if anything did.
    pub fn failure(self) -> Option<&'static str> {
        match self {
            Self::Finished => None,
            Self::Stopped => Some("the actor stopped"),
            Self::JournalFailed => Some("the journal failed"),
            Self::Panicked => Some("the actor panicked"),
        }
    }
}

/// Tells a parent, once, that the actor holding it is gone.
pub struct EndGuard {
    tell: Option<Box<dyn FnOnce(End)>>,
    /// How the actor ends unless it panics.
    end: End,
}

impl EndGuard {
    /// A guard that calls `tell` when it is dropped.
    pub fn new(tell: impl FnOnce(End) + 'static) -> Self {
        Self { tell: Some(Box::new(tell)), end: End::Stopped }
    }

    /// The actor has done what it was there for; its end is none to worry about.
    pub fn finish(&mut self) {
        self.end = End::Finished;
    }

    /// The actor stops because the journal failed.
    pub(crate) fn journal_failed(&mut self) {
        self.end = End::JournalFailed;
    }
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        let end = if std::thread::panicking() { End::Panicked } else { self.end };
        if let Some(tell) = self.tell.take() {
            tell(end);
        }
    }
}

/// Start an Aggregation Service.
#[derive(ActixMessage)]
#[rtype(result = "Addr<AggregationService>")]
pub struct StartService(pub ServiceSettings);

/// Start a participant.
#[derive(ActixMessage)]
#[rtype(result = "Addr<ParticipantActor>")]
pub struct StartParticipant(pub ParticipantSettings);

#[derive(ActixMessage)]
#[rtype(result = "()")]
struct ChildGone {
    role: &'static str,
    did: Did,
    end: End,
}

/// The root of the tree.
#[derive(Default)]
pub struct Supervisor {
    links: Vec<Addr<Link>>,
    services: Vec<Addr<AggregationService>>,
    participants: Vec<Addr<ParticipantActor>>,
}

impl Supervisor {
    fn guard(role: &'static str, did: &Did, ctx: &Context<Self>) -> EndGuard {
        let (supervisor, did) = (ctx.address(), did.clone());
        EndGuard::new(move |end| supervisor.do_send(ChildGone { role, did, end }))
    }

    fn link(&mut self, link: Link) -> Addr<Link> {
        let link = link.start_in_span();
        self.links.push(link.clone());
        link
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;
}

impl Handler<StartService> for Supervisor {
    type Result = Addr<AggregationService>;

    fn handle(&mut self, StartService(settings): StartService, ctx: &mut Self::Context) -> Self::Result {
        let guard = Self::guard("service", settings.identity.did(), ctx);
        let (transport, identity) = (Arc::clone(&settings.transport), settings.identity.clone());
        let service = span::start_in(span::service(settings.identity.did()), |service| {
            let link = self.link(Link::waiting(transport, identity, service.address().recipient()));
            AggregationService::new(settings, &link, guard)
        });
        self.services.push(service.clone());
        service
    }
}

impl Handler<StartParticipant> for Supervisor {
    type Result = Addr<ParticipantActor>;

    fn handle(&mut self, StartParticipant(settings): StartParticipant, ctx: &mut Self::Context) -> Self::Result {
        let guard = Self::guard("participant", settings.identity.did(), ctx);
        let (transport, identity) = (Arc::clone(&settings.transport), settings.identity.clone());
        let participant = span::start_in(span::participant(settings.identity.did()), |participant| {
            let link = self.link(Link::new(transport, identity, participant.address().recipient()));
            ParticipantActor::new(settings, link.recipient(), guard)
        });
        self.participants.push(participant.clone());
        participant
    }
}

impl Handler<ChildGone> for Supervisor {
    type Result = ();

    fn handle(&mut self, ChildGone { role, did, end }: ChildGone, _: &mut Self::Context) {
        self.services.retain(Addr::connected);
        self.participants.retain(Addr::connected);
        self.links.retain(Addr::connected);
        if let Some(reason) = end.failure() {
            tracing::error!(role, %did, reason, "is gone");
        }
    }
}
