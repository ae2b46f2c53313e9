//! The root of the tree: it starts services and participants, each with its link to a transport.

use std::sync::Arc;

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message as ActixMessage};
use btcr2_aggregation_protocol::did::Did;

pub use crate::supervision::{End, EndGuard};
use crate::{
    participant::{ParticipantActor, ParticipantSettings},
    service::{AggregationService, ServiceSettings},
    span,
    supervision::{InTree, Vitals, start},
    transport::link::Link,
    tree::{self, Row},
};

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
    vitals: Vitals,
    links: Vec<Addr<Link>>,
    services: Vec<Addr<AggregationService>>,
    participants: Vec<Addr<ParticipantActor>>,
}

impl Supervisor {
    /// The services and participants that have ended unexpectedly.
    pub fn vitals(&self) -> Vitals {
        self.vitals.clone()
    }

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

impl InTree for Supervisor {
    const ROW: &'static Row = &tree::SUPERVISOR;
}

impl Handler<StartService> for Supervisor {
    type Result = Addr<AggregationService>;

    fn handle(&mut self, StartService(settings): StartService, ctx: &mut Self::Context) -> Self::Result {
        let guard = Self::guard("service", settings.identity.did(), ctx);
        let (transport, identity) = (Arc::clone(&settings.transport), settings.identity.clone());
        let service = start(span::service(settings.identity.did()), |service: &mut Context<AggregationService>| {
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
        let did = settings.identity.did().clone();
        let participant = start(span::participant(&did), |participant: &mut Context<ParticipantActor>| {
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
            tracing::error!(role, %did, %reason, "an actor has ended unexpectedly");
            self.vitals.record(format!("{role} {did}"), reason.into_owned());
        }
    }
}
