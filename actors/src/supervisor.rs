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

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message as ActixMessage, Recipient};
use btcr2_aggregation_protocol::identity::Identity;

use crate::{
    participant::{ParticipantActor, ParticipantSettings},
    service::{AggregationService, ServiceSettings},
    transport::{Delivery, Outbound, Transport, link::Link},
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

/// Starts an actor whose mailbox holds `capacity` messages from the first on.
///
/// Set when the actor has started, it would be too late for what comes before that: a relay gives a whole round at once to a
/// cohort that is being brought back, and only the first sixteen messages would fit.
pub(crate) fn start_with_mailbox<A: Actor<Context = Context<A>>>(actor: A, capacity: usize) -> Addr<A> {
    A::create(|ctx| {
        ctx.set_mailbox_capacity(capacity);
        actor
    })
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
    name: String,
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
    fn guard(name: String, ctx: &Context<Self>) -> EndGuard {
        let supervisor = ctx.address();
        EndGuard::new(move |end| supervisor.do_send(ChildGone { name, end }))
    }

    fn link(
        &mut self,
        transport: &Arc<dyn Transport>,
        identity: &Identity,
        inbox: Recipient<Delivery>,
    ) -> Recipient<Outbound> {
        let link = Link::new(Arc::clone(transport), identity.clone(), inbox).start();
        self.links.push(link.clone());
        link.recipient()
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;
}

impl Handler<StartService> for Supervisor {
    type Result = Addr<AggregationService>;

    fn handle(&mut self, StartService(settings): StartService, ctx: &mut Self::Context) -> Self::Result {
        let guard = Self::guard(format!("service {}", settings.identity.did()), ctx);
        let (transport, identity) = (Arc::clone(&settings.transport), settings.identity.clone());
        let service = AggregationService::create(|service| {
            let outbound = self.link(&transport, &identity, service.address().recipient());
            AggregationService::new(settings, outbound, guard)
        });
        self.services.push(service.clone());
        service
    }
}

impl Handler<StartParticipant> for Supervisor {
    type Result = Addr<ParticipantActor>;

    fn handle(&mut self, StartParticipant(settings): StartParticipant, ctx: &mut Self::Context) -> Self::Result {
        let guard = Self::guard(format!("participant {}", settings.identity.did()), ctx);
        let (transport, identity) = (Arc::clone(&settings.transport), settings.identity.clone());
        let participant = ParticipantActor::create(|participant| {
            let outbound = self.link(&transport, &identity, participant.address().recipient());
            ParticipantActor::new(settings, outbound, guard)
        });
        self.participants.push(participant.clone());
        participant
    }
}

impl Handler<ChildGone> for Supervisor {
    type Result = ();

    fn handle(&mut self, ChildGone { name, end }: ChildGone, _: &mut Self::Context) {
        self.services.retain(Addr::connected);
        self.participants.retain(Addr::connected);
        self.links.retain(Addr::connected);
        if let Some(reason) = end.failure() {
            tracing::error!(name, reason, "is gone");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sink;

    impl Actor for Sink {
        type Context = Context<Self>;
    }

    #[derive(ActixMessage)]
    #[rtype(result = "()")]
    struct Said;

    impl Handler<Said> for Sink {
        type Result = ();

        fn handle(&mut self, _: Said, _: &mut Self::Context) {}
    }

    #[actix_rt::test]
    async fn a_mailbox_is_as_large_as_it_is_to_be_before_the_actor_has_started() {
        let sink = start_with_mailbox(Sink, 100);
        let taken = (0..200).filter(|_| sink.try_send(Said).is_ok()).count();
        assert_eq!(taken, 100);
    }
}
