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
    transport::{Inbox, link::Link},
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
    links: Vec<Link>,
    services: Vec<Addr<AggregationService>>,
    participants: Vec<Addr<ParticipantActor>>,
}

impl Supervisor {
    /// A root that reports to `vitals`, which other parts of the process may share: see
    /// [`HttpServerParts::vitals`](crate::transport::http::server::HttpServerParts::vitals).
    pub fn reporting_to(vitals: Vitals) -> Self {
        Self { vitals, ..Self::default() }
    }

    /// The services and participants that have ended unexpectedly.
    pub fn vitals(&self) -> Vitals {
        self.vitals.clone()
    }

    fn guard(role: &'static str, did: &Did, ctx: &Context<Self>) -> EndGuard {
        let (supervisor, did) = (ctx.address(), did.clone());
        EndGuard::new(move |end| supervisor.do_send(ChildGone { role, did, end }))
    }

    /// What an actor has sent must leave after its end too.
    fn retain(&mut self, link: Link) -> Link {
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
            let inbox = Inbox::of(service.address().recipient());
            let link = self.retain(Link::waiting(transport, identity, inbox));
            AggregationService::new(settings, link, guard)
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
            let inbox = Inbox::of(participant.address().recipient());
            let link = self.retain(Link::start(transport, identity, inbox));
            ParticipantActor::new(settings, link, guard)
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
        self.links.retain(|link| !link.is_over());
        if let Some(reason) = end.failure() {
            tracing::error!(role, %did, %reason, "an actor has ended unexpectedly");
            self.vitals.record(format!("{role} {did}"), reason.into_owned());
        }
    }
}
