//! One identity on several transports at once, e.g. HTTP and Nostr.
//!
//! A broadcast is sent on all of them, and messages are received from all of them. A message to one peer is sent on the
//! transport from which that peer's last message was received, or on all of them if there was none. Each transport has
//! its own link, so that an unavailable transport does not delay the others.

use std::{
    num::NonZero,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use btcr2_aggregation_protocol::{beacon::BeaconType, did::Did, identity::Identity, message::Body};
use lru::LruCache;
use serde_json::Value;

use super::{ConnectError, Connection, Delivery, Inbox, Outbound, Transport, Unsent, link::Link};
use crate::supervision::End;

/// The maximum number of peers whose transport is remembered; messages to older peers are sent on all transports again.
const MOST_PEERS: NonZero<usize> = NonZero::new(20_000).expect("not zero");

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
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        let last = Arc::new(LastTransports::new());
        let connected = self.0.iter().enumerate().map(|(number, transport)| {
            let last = Arc::clone(&last);
            let inbox = inbox.clone().map(move |delivery| {
                // Only a new message shows where a peer is now; a stored one shows where it was.
                if let Delivery::Message(message) = &delivery {
                    last.note(&message.from, number);
                }
                delivery
            });
            (Arc::clone(transport), Link::start(Arc::clone(transport), identity.clone(), inbox))
        });
        let links = connected.collect();
        Ok(Box::new(Combined { links, last }))
    }

    fn introduce(&self, did: &Did, genesis_document: &Value) {
        self.0.iter().for_each(|transport| transport.introduce(did, genesis_document));
    }

    fn reports_delivery(&self) -> bool {
        self.0.iter().all(|transport| transport.reports_delivery())
    }

    fn message_limit(&self) -> Option<usize> {
        // A seat may be reached over any of them.
        self.0.iter().filter_map(|transport| transport.message_limit()).min()
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
struct LastTransports(Mutex<LruCache<Did, usize>>);

impl LastTransports {
    fn new() -> Self {
        Self(Mutex::new(LruCache::new(MOST_PEERS)))
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<Did, usize>> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, peer: &Did, transport: usize) {
        self.lock().put(peer.clone(), transport);
    }

    fn of(&self, peer: &Did) -> Option<usize> {
        self.lock().peek(peer).copied()
    }
}

/// The connection of one identity: a link for each transport.
struct Combined {
    links: Vec<(Arc<dyn Transport>, Link)>,
    last: Arc<LastTransports>,
}

impl Combined {
    /// The links of the transports that can carry what is sent to all: of an advert, only those that can carry its
    /// cohort, unless none can.
    fn carriers(&self, outbound: &Outbound) -> Vec<&Link> {
        let all = || self.links.iter().map(|(_, link)| link).collect();
        let Outbound::Broadcast { body } = outbound else { return all() };
        let Body::CohortAdvert(advert) = &**body else { return all() };
        let members = advert.max_participants.unwrap_or(advert.min_participants) as usize;
        let carries = |transport: &Arc<dyn Transport>| {
            transport.member_limit(&advert.beacon_type, members).is_none_or(|limit| limit >= members)
        };
        let carriers: Vec<_> =
            self.links.iter().filter(|(transport, _)| carries(transport)).map(|(_, link)| link).collect();
        if carriers.is_empty() { all() } else { carriers }
    }
}

#[async_trait]
impl Connection for Combined {
    fn try_send(&self, outbound: Outbound) -> Result<(), Unsent> {
        let only = match &outbound {
            Outbound::Direct { to, .. } => self.last.of(to).and_then(|number| self.links.get(number)),
            Outbound::Broadcast { .. } | Outbound::WithdrawAdvert { .. } => None,
        };
        // Each link has space: it drops the oldest of too many messages.
        match only {
            Some((_, link)) => link.send(outbound),
            None => self.carriers(&outbound).into_iter().for_each(|link| link.send(outbound.clone())),
        }
        Ok(())
    }

    async fn ended(&self) -> End {
        // Each link connects again by itself.
        std::future::pending().await
    }
}
