//! The server's limits, each with its reason.

use std::time::Duration;

use btcr2_aggregation_protocol::envelope::CLOCK_SKEW;

use super::store::Rate;
use crate::transport::connections::Proxies;

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
    /// How often one client address may ask, counted before any signature is checked. Of IPv6 that is a /64, and its /48 has four
    /// times as much. DIDs that nobody here has written to share a part of it: a quarter of the rate, half of the burst.
    pub address_rate: Rate,
    /// Which proxies are believed when they name their clients' addresses in `Forwarded` or `X-Forwarded-For`.
    pub proxies: Proxies,
    /// Path prefixes that a proxy strips before it passes requests on. Clients sign the path as they ask for it.
    pub stripped_prefixes: Vec<String>,
    /// Most messages that wait in one inbox. Beyond that those of ended cohorts are dropped, and then others, which are made
    /// again when their recipient reads.
    pub inbox_messages: usize,
    /// Most bytes of bodies that wait in one inbox; beyond that, likewise.
    pub inbox_bytes: usize,
    /// Most bytes of bodies that wait in all inboxes; beyond that an inbox that gets another message makes room, likewise.
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
    /// Most of them of one client address; the oldest is closed for a new one.
    pub advert_streams_per_address: usize,
    /// Between heartbeat comments on a stream.
    pub heartbeat: Duration,
    /// Most EXTERNAL DIDs whose keys are remembered from their opt-ins; beyond that the oldest are forgotten. Members,
    /// whom somebody who lives here has written to, are counted by themselves, so that strangers cannot push them out.
    pub external_keys: usize,
    /// Which web pages may talk to the server.
    pub cors: Cors,
}

impl HttpConfig {
    /// How often DIDs that are no members may send from one client address, all together: a quarter of its rate, half of its
    /// burst. Checking their signatures is the most that somebody who makes up DIDs can have done here.
    pub(super) fn strangers_rate(&self) -> Rate {
        let Rate { per_second, burst } = self.address_rate;
        Rate { per_second: per_second.div_ceil(4), burst: burst.div_ceil(2) }
    }

    /// How often all addresses of one IPv6 site may ask.
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
