//! Nostr (wire format, section 6): an identity's connection to a set of relays.
//!
//! ```text
//! Link ─ NostrConnection ─┬─ RelayActor wss://a   started again, with backoff, whenever its connection ends
//!                         └─ RelayActor wss://b
//! ```
//!
//! `connection` is where everything is decided: what is published and again published, which of the events that arrive
//! is new, whose it is, and whether it is a message. A `relay` is one connection to one relay: it opens the two
//! subscriptions, hands on what arrives, and says what became of each event. What an event is, is the protocol's
//! [`nostr`](btcr2_aggregation_protocol::nostr) codec.

pub mod check;
mod config;
mod connection;
pub mod embedded;
mod outbox;
mod reader;
mod relay;
mod report;
mod socket;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use actix::Recipient;
use async_trait::async_trait;
use btcr2_aggregation_protocol::{
    beacon::BeaconType,
    did::Did,
    document::{self, DocumentError},
    identity::Identity,
    key::PublicKey,
    nostr::max_members,
};
use nostr_sdk::RelayUrl;
use serde_json::Value;

pub use self::{
    config::{NostrConfig, NostrConfigError},
    report::RelayReport,
};
use self::{connection::NostrConnection, report::Reports, socket::Sockets};
use super::{ConnectError, Delivery, Disconnected, Outbound, Transport};
use crate::{
    runtime::{Clock, Randomness},
    span,
    supervisor::EndGuard,
};

/// The transport of identities that meet on relays. Clones are the same transport.
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
}

/// The keys of EXTERNAL DIDs that the host vouches for. Clones are the same; the connections read them, so that one that is
/// replaced leaves nobody unknown.
#[derive(Clone, Default)]
struct Introduced(Arc<Mutex<BTreeMap<Did, PublicKey>>>);

impl Introduced {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Did, PublicKey>> {
        // Nothing panics while it holds the lock.
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
        Ok(Self(Arc::new(Inner { config, urls, sockets, clock, randomness, introduced, reports })))
    }

    /// Lets an EXTERNAL DID authenticate before its opt-in, on every connection: its genesis document is configured, not
    /// shown.
    ///
    /// # Errors
    /// [`DocumentError`] when the document is not the DID's.
    pub fn introduce(&self, did: &Did, genesis_document: &Value) -> Result<(), DocumentError> {
        let (_, key) = document::genesis_key(did, Some(genesis_document))?;
        self.0.introduced.insert(did, key);
        Ok(())
    }

    /// What each relay has done so far, for all identities on this transport.
    pub fn relays(&self) -> Vec<RelayReport> {
        self.0.reports.all()
    }
}

#[async_trait]
impl Transport for NostrTransport {
    async fn connect(
        &self,
        identity: &Identity,
        inbox: Recipient<Delivery>,
        keeper: Recipient<Disconnected>,
        connection: u64,
    ) -> Result<Recipient<Outbound>, ConnectError> {
        let guard = EndGuard::new(move |end| keeper.do_send(Disconnected { connection, end }));
        let name = format!("nostr connection {} {connection}", identity.did());
        let connection = NostrConnection::new(Arc::clone(&self.0), identity.clone(), inbox, name, guard);
        Ok(span::start_in(span::connection("nostr", identity.did()), |_| connection).recipient())
    }

    fn introduce(&self, did: &Did, genesis_document: &Value) {
        if let Err(error) = Self::introduce(self, did, genesis_document) {
            tracing::warn!(%did, %error, "a member that was known before is not known any more");
        }
    }

    fn member_limit(&self, beacon_type: &BeaconType) -> Option<usize> {
        max_members(beacon_type)
    }
}
