//! One identity on several transports at once, e.g. HTTP and Nostr.
//!
//! A broadcast is sent on all of them, and messages are received from all of them. A message to one peer is sent on the
//! transport from which that peer's last message was received, or on all of them if there was none. Each transport has
//! its own link, so that an unavailable transport does not delay the others.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message as ActixMessage, Recipient,
    Supervised, WeakAddr, dev::ContextFut,
};
use async_trait::async_trait;
use btcr2_aggregation_protocol::{beacon::BeaconType, did::Did, identity::Identity, message::Body};
use serde_json::Value;

use super::{ConnectError, Delivery, Disconnected, Outbound, Transport, link::Link};
use crate::{
    span,
    supervision::{EndGuard, InTree, start},
    tree::{self, Row},
};

/// The maximum number of peers whose transport is remembered; messages to older peers are sent on all transports again.
const MOST_PEERS: usize = 20_000;

/// Several transports as one.
#[derive(Clone)]
pub struct CombinedTransport(Vec<Arc<dyn Transport>>);

impl CombinedTransport {
    /// Combines these transports; [`None`] if there are none.
    pub fn new(transports: Vec<Arc<dyn Transport>>) -> Option<Self> {
        if transports.is_empty() { None } else { Some(Self(transports)) }
    }
}

#[async_trait]
impl Transport for CombinedTransport {
    async fn connect(
        &self,
        identity: &Identity,
        inbox: Recipient<Delivery>,
        keeper: Recipient<Disconnected>,
        connection: u64,
    ) -> Result<Recipient<Outbound>, ConnectError> {
        let guard = EndGuard::new(move |end| keeper.do_send(Disconnected { connection, end }));
        let (transports, identity) = (self.0.clone(), identity.clone());
        let combined = Combined {
            transports,
            identity,
            inbox,
            links: Vec::new(),
            last: LastTransports::default(),
            _guard: guard,
        };
        let span = span::connection("combined", combined.identity.did());
        Ok(start(span, |_| combined).recipient())
    }

    fn introduce(&self, did: &Did, genesis_document: &Value) {
        self.0.iter().for_each(|transport| transport.introduce(did, genesis_document));
    }

    fn reports_delivery(&self) -> bool {
        self.0.iter().all(|transport| transport.reports_delivery())
    }

    fn member_limit(&self, beacon_type: &BeaconType, wanted: usize) -> Option<usize> {
        // A cohort is advertised only where it can be carried, and the transports of its future members are not known.
        let limits: Vec<_> = self.0.iter().map(|transport| transport.member_limit(beacon_type, wanted)).collect();
        let suffices = |limit: &Option<usize>| limit.is_none_or(|limit| limit >= wanted);
        if limits.iter().any(suffices) {
            limits.into_iter().filter(suffices).flatten().min()
        } else {
            limits.into_iter().flatten().max()
        }
    }
}

/// The transports from which peers' last messages were received.
#[derive(Default)]
struct LastTransports {
    on: BTreeMap<Did, usize>,
    order: VecDeque<Did>,
}

impl LastTransports {
    fn note(&mut self, peer: &Did, transport: usize) {
        if self.on.insert(peer.clone(), transport).is_none() {
            self.order.push_back(peer.clone());
        }
        if self.order.len() > MOST_PEERS
            && let Some(oldest) = self.order.pop_front()
        {
            self.on.remove(&oldest);
        }
    }
}

/// The connection of one identity.
struct Combined {
    transports: Vec<Arc<dyn Transport>>,
    identity: Identity,
    inbox: Recipient<Delivery>,
    links: Vec<Addr<Link>>,
    last: LastTransports,
    _guard: EndGuard,
}

impl Combined {
    /// Which of the transports can carry the cohort that is advertised; all of them if none can, or if it is not an
    /// advert.
    fn carriers(&self, outbound: &Outbound) -> Vec<bool> {
        let all = || vec![true; self.transports.len()];
        let Outbound::Broadcast { body } = outbound else { return all() };
        let Body::CohortAdvert(advert) = &**body else { return all() };
        let members = advert.max_participants.unwrap_or(advert.min_participants) as usize;
        let carries = |transport: &Arc<dyn Transport>| {
            transport.member_limit(&advert.beacon_type, members).is_none_or(|limit| limit >= members)
        };
        let carriers: Vec<_> = self.transports.iter().map(carries).collect();
        if carriers.contains(&true) { carriers } else { all() }
    }
}

/// The inbox of one of the links; its deliveries come from that transport.
struct LinkInbox {
    combined: WeakAddr<Combined>,
    transport: usize,
}

/// A delivery of one of the transports.
#[derive(ActixMessage)]
#[rtype(result = "()")]
struct Arrived {
    delivery: Delivery,
    transport: usize,
}

impl Actor for LinkInbox {
    type Context = Context<Self>;
}

impl InTree for LinkInbox {
    const ROW: &'static Row = &tree::LINK_INBOX;
}

impl Handler<Delivery> for LinkInbox {
    type Result = ();

    fn handle(&mut self, delivery: Delivery, ctx: &mut Self::Context) {
        let Some(combined) = self.combined.upgrade() else { return ctx.stop() };
        let arrived = combined.send(Arrived { delivery, transport: self.transport });
        // One after the other, and only when there is space: the transport waits.
        ctx.wait(actix::fut::wrap_future(async move {
            let _ = arrived.await;
        }));
    }
}

impl Actor for Combined {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // After a panic they are there.
        for (transport, port) in self.transports.iter().enumerate().skip(self.links.len()) {
            let inbox = LinkInbox { combined: ctx.address().downgrade(), transport };
            let inbox = start(tracing::Span::current(), |_| inbox);
            self.links.push(Link::new(Arc::clone(port), self.identity.clone(), inbox.recipient()).start_in_span());
        }
    }
}

impl Supervised for Combined {}

impl InTree for Combined {
    const ROW: &'static Row = &tree::COMBINED;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

impl Handler<Arrived> for Combined {
    type Result = ();

    fn handle(&mut self, Arrived { delivery, transport }: Arrived, ctx: &mut Self::Context) {
        // Only a new message shows where a peer is now; a stored one shows where it was.
        if let Delivery::Message(message) = &delivery {
            self.last.note(&message.from, transport);
        }
        let delivered = self.inbox.send(delivery);
        ctx.wait(actix::fut::wrap_future::<_, Self>(delivered).map(|delivered, _, ctx: &mut Context<Self>| {
            if delivered.is_err() {
                ctx.stop();
            }
        }));
    }
}

impl Handler<Outbound> for Combined {
    type Result = ();

    fn handle(&mut self, outbound: Outbound, _: &mut Self::Context) {
        let only = match &outbound {
            Outbound::Direct { to, .. } => self.last.on.get(to).and_then(|transport| self.links.get(*transport)),
            Outbound::Broadcast { .. } | Outbound::WithdrawAdvert { .. } => None,
        };
        let carriers = self.carriers(&outbound);
        // An unbounded send: a link bounds the messages that wait for its connection.
        match only {
            Some(link) => link.do_send(outbound),
            None => {
                let links = self.links.iter().zip(carriers).filter(|(_, carries)| *carries);
                links.for_each(|(link, _)| link.do_send(outbound.clone()));
            }
        }
    }
}
