//! The server's limits, each with its reason.

use std::time::Duration;

use btcr2_aggregation_protocol::envelope::CLOCK_SKEW;

use super::store::Rate;
use crate::transport::connections::Proxies;

/// The web pages that may use the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cors {
    /// Any page: `*` if an `Origin` is sent. The server does not use cookies; every request is signed.
    #[default]
    Permissive,
    /// Pages of these origins.
    Allow(Vec<String>),
    /// Pages of the same origin only: no CORS header is sent.
    SameOrigin,
}

/// The limits and settings of a server.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// The maximum size of a request body, in bytes.
    pub max_body: usize,
    /// The maximum difference between a sender's clock and ours.
    pub clock_skew: Duration,
    /// The rate of requests of one verified DID.
    pub did_rate: Rate,
    /// The rate of requests of one client address, counted before any signature is checked. For IPv6 that is a /64, and
    /// its /48 has four times the rate. DIDs that are not members share a part of it: a quarter of the rate, half of
    /// the burst.
    pub address_rate: Rate,
    /// The proxies that are trusted to report their clients' addresses in `Forwarded` or `X-Forwarded-For`.
    pub proxies: Proxies,
    /// Path prefixes that a proxy strips before it forwards requests. Clients sign the path that they request.
    pub stripped_prefixes: Vec<String>,
    /// The maximum number of messages in one inbox. Beyond it messages of ended cohorts are dropped, and then others,
    /// which are sent again when their recipient reads.
    pub inbox_messages: usize,
    /// The maximum size of the bodies in one inbox, in bytes; beyond it messages are dropped likewise.
    pub inbox_bytes: usize,
    /// The maximum size of the bodies in all inboxes, in bytes; beyond it the inbox that gets another message drops
    /// some likewise.
    pub inboxes_bytes: usize,
    /// The maximum number of inboxes. Those that only their owners have opened are evicted for those to which an
    /// identity of this server writes.
    pub inboxes: usize,
    /// How long a message is stored in an inbox.
    pub inbox_ttl: Duration,
    /// The maximum number of streams of one inbox; the oldest is closed for a new one.
    pub streams_per_inbox: usize,
    /// How long a request for the inbox of an EXTERNAL DID whose key is not known waits for its opt-in. It is below the
    /// timeouts of clients and proxies.
    pub early_inbox_wait: Duration,
    /// The maximum number of such waiting requests; others are refused at once.
    pub early_inboxes: usize,
    /// The same for one client address.
    pub early_inboxes_per_address: usize,
    /// The maximum number of advert streams.
    pub advert_streams: usize,
    /// The same for one client address; the oldest is closed for a new one.
    pub advert_streams_per_address: usize,
    /// The time between heartbeat comments on a stream.
    pub heartbeat: Duration,
    /// The maximum number of EXTERNAL DIDs whose keys are stored from their opt-ins; beyond it the oldest are removed.
    /// Members, to which an identity of this server has written, are counted separately, so that unauthenticated peers
    /// cannot evict them.
    pub external_keys: usize,
    /// The web pages that may use the server.
    pub cors: Cors,
}

impl HttpConfig {
    /// The rate of all DIDs together that are not members and send from one client address: a quarter of its rate, half
    /// of its burst. It bounds the signature checks that a peer can cause with made-up DIDs.
    pub(super) fn outsiders_rate(&self) -> Rate {
        let Rate { per_second, burst } = self.address_rate;
        Rate { per_second: per_second.div_ceil(4), burst: burst.div_ceil(2) }
    }

    /// The rate of requests of all addresses of one IPv6 site.
    pub(super) fn site_rate(&self) -> Rate {
        let Rate { per_second, burst } = self.address_rate;
        Rate { per_second: per_second.saturating_mul(4), burst: burst.saturating_mul(4) }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            max_body: 65_536,
            clock_skew: CLOCK_SKEW,
            did_rate: Rate { per_second: 10, burst: 30 },
            address_rate: Rate { per_second: 200, burst: 2_000 },
            proxies: Proxies::None,
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
            advert_streams_per_address: 5_000,
            heartbeat: Duration::from_secs(15),
            external_keys: 20_000,
            cors: Cors::Permissive,
        }
    }
}
