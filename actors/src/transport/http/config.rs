//! The server's limits, each with its reason.

use std::time::Duration;

use btcr2_aggregation_protocol::envelope::CLOCK_SKEW;

use super::store::Rate;

/// Which web pages may talk to the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cors {
    /// Any page: `*` when an `Origin` is sent. Nothing here relies on cookies, every request is signed.
    #[default]
    Permissive,
    /// Pages of these origins.
    Allow(Vec<String>),
    /// Pages of the same origin only: no CORS header at all.
    SameOrigin,
}

/// What the server allows.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Most bytes in a request body.
    pub max_body: usize,
    /// How far a sender's clock may be from ours.
    pub clock_skew: Duration,
    /// How often one verified DID may send.
    pub did_rate: Rate,
    /// How often one client address may ask, counted before any signature is checked.
    pub address_rate: Rate,
    /// Whether the client's address is what `Forwarded` or `X-Forwarded-For` says: only behind a proxy that sets them.
    pub trust_forwarded: bool,
    /// Path prefixes that a proxy strips before it passes requests on. Clients sign the path as they ask for it.
    pub stripped_prefixes: Vec<String>,
    /// Most messages that wait in one inbox; beyond that the oldest are dropped.
    pub inbox_messages: usize,
    /// Most bytes of bodies that wait in one inbox; beyond that the oldest are dropped.
    pub inbox_bytes: usize,
    /// Most bytes of bodies that wait in all inboxes; beyond that an inbox that gets another message drops its oldest.
    pub inboxes_bytes: usize,
    /// Most inboxes. Those that only their owners have opened make room for those that somebody here writes to.
    pub inboxes: usize,
    /// How long a message waits in an inbox.
    pub inbox_ttl: Duration,
    /// Most streams that one inbox feeds at once; the oldest is closed for a new one.
    pub streams_per_inbox: usize,
    /// How long a request for the inbox of an EXTERNAL DID whose key is not known waits for its opt-in. Shorter than clients and
    /// proxies wait for an answer.
    pub early_inbox_wait: Duration,
    /// Most requests that wait so; others are refused at once.
    pub early_inboxes: usize,
    /// Most of them from one client address.
    pub early_inboxes_per_address: usize,
    /// Most advert streams.
    pub advert_streams: usize,
    /// Between heartbeat comments on a stream.
    pub heartbeat: Duration,
    /// Most EXTERNAL DIDs whose keys are remembered from their opt-ins; beyond that the oldest are forgotten. Members,
    /// whom somebody who lives here has written to, are counted by themselves, so that strangers cannot push them out.
    pub external_keys: usize,
    /// Which web pages may talk to the server.
    pub cors: Cors,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            max_body: 65_536,
            clock_skew: CLOCK_SKEW,
            did_rate: Rate { per_second: 10, burst: 30 },
            address_rate: Rate { per_second: 200, burst: 2_000 },
            trust_forwarded: false,
            stripped_prefixes: Vec::new(),
            inbox_messages: 256,
            inbox_bytes: 16 << 20,
            inboxes_bytes: 1 << 30,
            inboxes: 20_000,
            inbox_ttl: Duration::from_secs(24 * 3600),
            streams_per_inbox: 4,
            early_inbox_wait: Duration::from_secs(20),
            early_inboxes: 512,
            early_inboxes_per_address: 128,
            advert_streams: 20_000,
            heartbeat: Duration::from_secs(15),
            external_keys: 20_000,
            cors: Cors::Permissive,
        }
    }
}
