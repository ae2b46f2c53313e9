//! The root of the tree: it starts services and participants, each with its link to a transport.

use std::sync::Arc;

use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message as ActixMessage};
use btcr2_aggregation_protocol::{did::Did, key::KeyError};

use crate::{
    participant::{ParticipantActor, ParticipantSettings},
    service::{AggregationService, ServiceSettings},
    span,
    standing::member::{MemberActor, MemberSettings},
    supervision::{End, EndGuard, InTree, Lease, Leased, Vitals, start_leased},
    transport::{Inbox, link::Link},
    tree::{self, Row},
};

/// Start an Aggregation Service.
#[derive(ActixMessage)]
#[rtype(result = "Addr<AggregationService>")]
pub(crate) struct StartService(pub(crate) ServiceSettings);

/// Start a participant.
#[derive(ActixMessage)]
#[rtype(result = "Addr<ParticipantActor>")]
pub(crate) struct StartParticipant(pub(crate) ParticipantSettings);

/// Start a member of standing cohorts.
#[derive(ActixMessage)]
#[rtype(result = "Result<Addr<MemberActor>, KeyError>")]
pub(crate) struct StartMember(pub(crate) MemberSettings);

/// Stop, with all services and participants.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct Stop;

#[derive(ActixMessage)]
#[rtype(result = "()")]
struct ChildGone {
    role: &'static str,
    did: Did,
    end: End,
}

/// The root of the tree.
#[derive(Default)]
pub(crate) struct Supervisor {
    vitals: Vitals,
    links: Vec<Link>,
    services: Vec<(Addr<AggregationService>, Lease)>,
    participants: Vec<(Addr<ParticipantActor>, Lease)>,
    members: Vec<(Addr<MemberActor>, Lease)>,
}

impl Supervisor {
    /// A root that reports to `vitals`, which other parts of the process may share: see
    /// [`HttpServerParts::vitals`](crate::transport::http::server::HttpServerParts::vitals).
    pub(crate) fn reporting_to(vitals: Vitals) -> Self {
        Self { vitals, ..Self::default() }
    }

    /// The services and participants that have ended unexpectedly.
    pub(crate) fn vitals(&self) -> Vitals {
        self.vitals.clone()
    }

    fn guard(role: &'static str, did: &Did, leased: Leased, ctx: &Context<Self>) -> EndGuard {
        let (supervisor, did) = (ctx.address(), did.clone());
        // An unbounded send: there is one for each child.
        EndGuard::leased(leased, move |end| supervisor.do_send(ChildGone { role, did, end }))
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
        let (transport, identity) = (Arc::clone(&settings.transport), settings.identity.clone());
        let did = settings.identity.did().clone();
        let (service, lease) = start_leased(span::service(&did), |service: &mut Context<_>, leased| {
            let guard = Self::guard("service", &did, leased, ctx);
            let link = self.retain(Link::waiting(transport, identity, Inbox::of(service.address().recipient())));
            AggregationService::new(settings, link, guard)
        });
        self.services.push((service.clone(), lease));
        service
    }
}

impl Handler<StartParticipant> for Supervisor {
    type Result = Addr<ParticipantActor>;

    fn handle(&mut self, StartParticipant(settings): StartParticipant, ctx: &mut Self::Context) -> Self::Result {
        let (transport, identity) = (Arc::clone(&settings.transport), settings.identity.clone());
        let did = settings.identity.did().clone();
        let (participant, lease) = start_leased(span::participant(&did), |participant: &mut Context<_>, leased| {
            let guard = Self::guard("participant", &did, leased, ctx);
            let link = self.retain(Link::start(transport, identity, Inbox::of(participant.address().recipient())));
            ParticipantActor::new(settings, link, guard)
        });
        self.participants.push((participant.clone(), lease));
        participant
    }
}

impl Handler<StartMember> for Supervisor {
    type Result = Result<Addr<MemberActor>, KeyError>;

    fn handle(&mut self, StartMember(settings): StartMember, ctx: &mut Self::Context) -> Self::Result {
        let identity = settings.listener()?;
        let (transport, did) = (Arc::clone(&settings.transport), identity.did().clone());
        let (member, lease) = start_leased(span::member(&did), |member: &mut Context<_>, leased| {
            let guard = Self::guard("member", &did, leased, ctx);
            let link = self.retain(Link::waiting(transport, identity, Inbox::of(member.address().recipient())));
            MemberActor::new(settings, link, guard)
        });
        self.members.push((member.clone(), lease));
        Ok(member)
    }
}

impl Handler<Stop> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        // Each ends before it runs anything else; events that were appended to the journal become durable nevertheless.
        self.services.clear();
        self.participants.clear();
        self.members.clear();
        self.links.clear();
        ctx.stop();
    }
}

impl Handler<ChildGone> for Supervisor {
    type Result = ();

    fn handle(&mut self, ChildGone { role, did, end }: ChildGone, _: &mut Self::Context) {
        self.services.retain(|(service, _)| service.connected());
        self.participants.retain(|(participant, _)| participant.connected());
        self.members.retain(|(member, _)| member.connected());
        self.links.retain(|link| !link.is_over());
        if let Some(reason) = end.failure() {
            tracing::error!(role, %did, %reason, "an actor has ended unexpectedly");
            self.vitals.record(format!("{role} {did}"), reason.into_owned());
        }
    }
}
