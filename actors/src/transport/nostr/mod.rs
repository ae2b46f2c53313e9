//! Nostr (wire format, section 6): an identity's connection to a set of relays.
//!
//! ```text
//! Link ─ NostrConnection ─┬─ RelayActor wss://a   started again, with backoff, whenever its connection ends
//!                         └─ RelayActor wss://b
//! ```
//!
//! `connection` makes all decisions: which events are published, and published again, which received events are new,
//! who sent them, and whether they are messages. A `relay` is one connection to one relay: it opens the two
//! subscriptions, passes on the received events, and reports the relay's answer to each published event. The protocol's
//! [`nostr`](btcr2_aggregation_protocol::nostr) codec defines the events.

pub mod check;
mod config;
mod connection;
pub mod embedded;
mod noted;
mod outbox;
mod reader;
mod relay;
mod report;
mod signer;
mod socket;
mod stored;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use btcr2_aggregation_protocol::{
    beacon::BeaconType,
    did::Did,
    document::{self, DocumentError},
    identity::Identity,
    key::PublicKey,
    message::keygen::CohortAdvert,
    nostr::EventLimits,
};
use nostr_sdk::RelayUrl;
use serde_json::Value;

pub use self::{
    config::{NostrConfig, NostrConfigError},
    report::RelayReport,
};
use self::{connection::NostrConnection, report::Reports, socket::Sockets};
use super::{
    ConnectError, Connection, Inbox, Transport,
    connection::{ActorConnection, Ended},
};
use crate::{
    runtime::{Clock, Randomness},
    span,
    supervision::start,
};

/// The transport of identities that communicate over relays. Clones share it.
#[derive(Clone)]
pub struct NostrTransport(Arc<Inner>);

struct Inner {
    config: NostrConfig,
    urls: Vec<RelayUrl>,
    sockets: Sockets,
    clock: Clock,
    randomness: Randomness,
    introduced: Introduced,
    reports: Reports,
    limits: Mutex<Vec<EventLimits>>,
    /// The number of connections so far.
    connections: AtomicU64,
}

impl Inner {
    /// The known limits of each relay, in the order of the configuration.
    fn limits(&self) -> MutexGuard<'_, Vec<EventLimits>> {
        // No code panics while it holds the lock.
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an advert is published to this relay: if another relay can carry the cohort and this one cannot, it is
    /// not.
    fn carries(&self, relay: usize, advert: &CohortAdvert) -> bool {
        let members = advert.max_participants.unwrap_or(advert.min_participants) as usize;
        let carries =
            |limits: &EventLimits| limits.max_members(&advert.beacon_type).is_none_or(|limit| limit >= members);
        let limits = self.limits();
        limits.get(relay).is_none_or(carries) || !limits.iter().any(carries)
    }

    /// A relay has refused an event because of its size.
    fn was_too_large(&self, relay: usize, bytes: usize) {
        if let Some(limits) = self.limits().get_mut(relay) {
            let most = bytes.saturating_sub(1);
            limits.message_bytes = Some(limits.message_bytes.map_or(most, |known| known.min(most)));
        }
    }
}

/// Whether a relay's text is about the size of an event.
fn is_about_size(reason: &str) -> bool {
    let reason = reason.to_lowercase();
    ["too large", "too big", "too long", "size", "length", "exceed"].iter().any(|word| reason.contains(word))
}

/// The timeout for relays to state their limits.
const STATING: Duration = Duration::from_secs(3);

/// The keys of EXTERNAL DIDs that the host has introduced. Clones share them; connections read them, so that the next
/// connection has them too.
#[derive(Clone, Default)]
struct Introduced(Arc<Mutex<BTreeMap<Did, PublicKey>>>);

impl Introduced {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Did, PublicKey>> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, did: &Did, key: PublicKey) {
        self.lock().insert(did.clone(), key);
    }

    fn key_of(&self, did: &Did) -> Option<PublicKey> {
        self.lock().get(did).copied()
    }
}

impl NostrTransport {
    /// A transport with these settings.
    ///
    /// # Errors
    /// [`NostrConfigError`] when there is no relay, or one is not a relay's URL.
    pub fn new(config: NostrConfig, clock: Clock, randomness: Randomness) -> Result<Self, NostrConfigError> {
        let urls = config.urls()?;
        let sockets = Sockets::new(&config.trust)?;
        let reports = Reports::new(&urls);
        let introduced = Introduced::default();
        let limits = Mutex::new(vec![EventLimits::default(); urls.len()]);
        let connections = AtomicU64::new(0);
        let inner = Inner { config, urls, sockets, clock, randomness, introduced, reports, limits, connections };
        Ok(Self(Arc::new(inner)))
    }

    /// Asks the relays for their stated limits (NIP-11), so that a cohort that none of them can carry is refused when
    /// it is opened. Limits that they do not state within three seconds, or at all, are only known after a refusal.
    pub async fn learn(&self) {
        let patience = STATING.min(self.0.config.connect_timeout);
        let asking = self.0.urls.iter().map(|url| check::limits(url, &self.0.config.trust, patience));
        let stated = futures::future::join_all(asking).await;
        for ((url, stated), known) in self.0.urls.iter().zip(stated).zip(self.0.limits().iter_mut()) {
            let Some(stated) = stated else { continue };
            let number = |name: &str| {
                // Some state 0, or -1, for no limit.
                let number = stated.get(name).and_then(Value::as_u64).filter(|number| *number > 0);
                number.and_then(|number| usize::try_from(number).ok())
            };
            *known = EventLimits {
                message_bytes: number("max_message_length"),
                content_chars: number("max_content_length"),
            };
            let asks = |name: &str| stated.get(name).and_then(Value::as_bool) == Some(true);
            for name in ["payment_required", "restricted_writes"] {
                if asks(name) {
                    tracing::warn!(
                        relay = report::shown(url),
                        limit = name,
                        "a relay states that writing to it is restricted"
                    );
                }
            }
        }
    }

    /// Lets an EXTERNAL DID authenticate before its opt-in, on every connection: its genesis document comes from the
    /// configuration.
    ///
    /// # Errors
    /// [`DocumentError`] when the document is not the DID's.
    pub fn introduce(&self, did: &Did, genesis_document: &Value) -> Result<(), DocumentError> {
        let (_, key) = document::genesis_key(did, Some(genesis_document))?;
        self.0.introduced.insert(did, key);
        Ok(())
    }

    /// The counts of each relay so far, for all identities on this transport.
    pub fn relays(&self) -> Vec<RelayReport> {
        self.0.reports.all()
    }
}

#[async_trait]
impl Transport for NostrTransport {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        let number = self.0.connections.fetch_add(1, Ordering::Relaxed);
        let name = format!("nostr connection {} {number}", identity.did());
        let (guard, ended) = Ended::guard();
        let connection = NostrConnection::new(Arc::clone(&self.0), identity.clone(), inbox, name, guard);
        let connection = start(span::connection("nostr", identity.did()), |_| connection);
        Ok(ActorConnection::boxed(connection.recipient(), ended))
    }

    fn reports_delivery(&self) -> bool {
        true
    }

    fn introduce(&self, did: &Did, genesis_document: &Value) {
        if let Err(error) = Self::introduce(self, did, genesis_document) {
            tracing::warn!(%did, %error, "the genesis document of a restored member is not valid");
        }
    }

    fn message_limit(&self) -> Option<usize> {
        // One relay that carries the largest message is enough.
        self.0.limits().iter().map(EventLimits::longest_text).max()
    }

    fn member_limit(&self, beacon_type: &BeaconType, _: usize) -> Option<usize> {
        // One relay that carries a cohort is enough. If one has no limit, neither has the cohort.
        let mut most = Some(0);
        for limits in self.0.limits().iter() {
            most = limits.max_members(beacon_type).and_then(|limit| Some(most?.max(limit)));
            most?;
        }
        most
    }
}
