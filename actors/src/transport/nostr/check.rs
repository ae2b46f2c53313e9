//! Checks whether a relay does what a cohort needs. The check publishes events of the kinds and sizes of a round, of
//! identities that it generates, and reads them back: in an open subscription, and from the relay's stored events.
//!
//! None of the events is an advert, so participants do not mistake a check for a cohort.

use std::{sync::Arc, time::Duration};

use btcr2_aggregation_protocol::{
    id::CohortId,
    identity::Identity,
    key::SecretKey,
    message::{
        Body, Bytes, Message,
        keygen::{CohortOptInAccept, CohortReady},
        update::{SubmitNonIncluded, SubmitUpdate},
    },
    network::Network,
    nostr::{ENCRYPTED_KIND, MAX_PLAINTEXT, PLAIN_KIND, Peer, VerifiedEvent, retract, seal},
};
use futures::future::join_all;
use nostr_sdk::{
    Event, Filter, JsonUtil, Kind, PublicKey, Relay, RelayOptions, RelayPool, RelayUrl, SubscribeOptions,
    SubscriptionId,
    pool::relay::{RelayNotification, ReqExitPolicy},
};
use rand_core::CryptoRng;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    sync::broadcast,
    time::{Instant, timeout},
};

use super::socket::Sockets;
use crate::{runtime::Clock, transport::tls::Trust};

/// The number of messages that a service sends to thirty members in one step of a round.
const BURST: usize = 30;

/// The result for one event.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// What the event represents.
    pub what: String,
    /// Its kind.
    pub kind: u16,
    /// Its size as JSON.
    pub bytes: usize,
    /// Milliseconds until the relay confirmed it.
    pub accepted_ms: Option<u64>,
    /// Milliseconds until a subscriber received it.
    pub delivered_ms: Option<u64>,
    /// Whether the relay still has it, for peers that connect later.
    pub stored: bool,
    /// What failed.
    pub problem: Option<String>,
}

impl Probe {
    /// Whether a cohort could rely on it.
    pub fn passed(&self) -> bool {
        self.accepted_ms.is_some() && self.delivered_ms.is_some() && self.stored && self.problem.is_none()
    }
}

/// The results of a check.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct RelayCheck {
    /// Its address.
    pub url: String,
    /// Milliseconds until the connection was established.
    pub connect_ms: Option<u64>,
    /// Why the connection failed.
    pub problem: Option<String>,
    /// The limits that it states (NIP-11), if it states any.
    pub limits: Option<Value>,
    /// Its own texts: notices, and answers that name no event.
    pub words: Vec<String>,
    /// Whether a subscriber received an event that it had not requested. Such events are ignored; they cost traffic.
    /// `None` if it could not be tested.
    pub over_delivers: Option<bool>,
    /// Whether two connections with subscriptions of the same name each receive their own events. Our subscriptions
    /// have unique names. `None` if it could not be tested.
    pub separates: Option<bool>,
    /// The result for each event.
    pub probes: Vec<Probe>,
    /// Whether it removes an event when its author requests that (NIP-09), as is done with adverts of formed cohorts.
    /// It is not required: a peer that connects later may then only opt in in vain. `None` if there was no event to
    /// test it with.
    pub forgets: Option<bool>,
}

impl RelayCheck {
    /// Whether everything that a cohort needs works.
    pub fn passed(&self) -> bool {
        self.problem.is_none() && !self.probes.is_empty() && self.probes.iter().all(Probe::passed)
    }
}

/// Checks the relay at `url`, with the certificates of `trust`, waiting up to `patience` for each response.
///
/// # Errors
/// Why `url` cannot be a relay's, or why TLS cannot be set up.
pub async fn check(
    url: &str,
    trust: &Trust,
    clock: Clock,
    patience: Duration,
    rng: &mut (dyn CryptoRng + Send),
) -> Result<RelayCheck, String> {
    let url = RelayUrl::parse(url).map_err(|error| format!("{url}: {error}"))?;
    let sockets = Sockets::new(trust).map_err(|error| error.to_string())?;
    let mut outcome = RelayCheck {
        url: url.to_string(),
        connect_ms: None,
        problem: None,
        limits: limits(&url, trust, patience).await,
        words: Vec::new(),
        over_delivers: None,
        separates: None,
        probes: Vec::new(),
        forgets: None,
    };
    let made_up = |rng: &mut (dyn CryptoRng + Send)| Identity::from_key(SecretKey::generate(rng), Network::Regtest);
    let (from, to) = (made_up(rng), made_up(rng));
    let started = Instant::now();
    let (writer, reader) = match (connect(&url, &sockets, patience).await, connect(&url, &sockets, patience).await)
    {
        (Ok(writer), Ok(reader)) => (writer, reader),
        (Err(problem), _) | (_, Err(problem)) => {
            outcome.problem = Some(problem);
            outcome.words = sockets.words().all();
            return Ok(outcome);
        }
    };
    outcome.connect_ms = Some(millis(started));
    let mut notifications = reader.relay.notifications();
    let own = PublicKey::from_byte_array(to.public_key().x_only().to_bytes());
    let directed = Filter::new().kinds([Kind::TextNote, Kind::GiftWrap]).pubkey(own);
    if let Err(error) = reader.relay.subscribe(directed, SubscribeOptions::default()).await {
        outcome.problem = Some(error.to_string());
        outcome.words = sockets.words().all();
        return Ok(outcome);
    }
    let peer = Peer::new(from.secret_key(), to.public_key().x_only()).map_err(|error| error.to_string())?;
    // The messages that every cohort needs are first: a relay may penalize the size of a later one.
    let (small, large) = round();
    for (what, body) in small {
        let message = Message::new(from.did().clone(), Some(to.did().clone()), body);
        let sealed =
            seal(&message, from.secret_key(), Some(&peer), clock.now(), rng).map_err(|error| error.to_string())?;
        let probe = probe(what, &message, &sealed, &peer, (&writer.relay, &mut notifications), patience).await;
        if probe.stored && outcome.forgets.is_none() {
            let retraction = retract(&[sealed.id], from.secret_key(), clock.now(), rng);
            outcome.forgets = Some(forgets(&sealed, &retraction, &writer.relay, patience).await);
        }
        outcome.probes.push(probe);
    }
    let mut burst = Vec::new();
    for number in 0..BURST {
        let body = SubmitNonIncluded { cohort_id: cohort(&format!("burst-{number}")) };
        let message = Message::new(from.did().clone(), Some(to.did().clone()), body);
        burst.push(
            seal(&message, from.secret_key(), Some(&peer), clock.now(), rng).map_err(|error| error.to_string())?,
        );
    }
    outcome.probes.push(together(&burst, (&writer.relay, &mut notifications), patience).await);
    let other = made_up(rng);
    let note = |to: &Identity, name: &str, rng: &mut (dyn CryptoRng + Send)| {
        let body = CohortOptInAccept { cohort_id: cohort(name) };
        let message = Message::new(from.did().clone(), Some(to.did().clone()), body);
        let peer = Peer::new(from.secret_key(), to.public_key().x_only()).map_err(|error| error.to_string())?;
        seal(&message, from.secret_key(), Some(&peer), clock.now(), rng).map_err(|error| error.to_string())
    };
    let (decoy, marker) = (note(&other, "decoy", rng)?, note(&to, "marker", rng)?);
    outcome.over_delivers = over_delivers((&decoy, &marker), (&writer.relay, &mut notifications), patience).await;
    let notes = [note(&to, "first", rng)?, note(&other, "second", rng)?];
    outcome.separates = separates(&url, &sockets, [&to, &other], &notes, &writer.relay, patience).await;
    for (what, body) in large {
        let message = Message::new(from.did().clone(), Some(to.did().clone()), body);
        let sealed =
            seal(&message, from.secret_key(), Some(&peer), clock.now(), rng).map_err(|error| error.to_string())?;
        outcome
            .probes
            .push(probe(what, &message, &sealed, &peer, (&writer.relay, &mut notifications), patience).await);
    }
    outcome.words = sockets.words().all();
    Ok(outcome)
}

/// Whether a subscriber receives the decoy, which is addressed to another identity, before the marker, which is
/// addressed to it and sent later.
async fn over_delivers(
    (decoy, marker): (&Event, &Event),
    (writer, notifications): Ways<'_>,
    patience: Duration,
) -> Option<bool> {
    timeout(patience, writer.send_event(decoy)).await.ok()?.ok()?;
    timeout(patience, writer.send_event(marker)).await.ok()?.ok()?;
    let mut seen = false;
    let hearing = async {
        loop {
            match notifications.recv().await {
                Ok(RelayNotification::Event { event, .. }) if event.id == marker.id => return Some(()),
                Ok(RelayNotification::Event { event, .. }) => seen |= event.id == decoy.id,
                Err(broadcast::error::RecvError::Closed) => return None,
                _ => {}
            }
        }
    };
    timeout(patience, hearing).await.ok()??;
    Some(seen)
}

/// Whether two connections that use the same name for different subscriptions each receive what they requested.
async fn separates(
    url: &RelayUrl,
    sockets: &Sockets,
    readers: [&Identity; 2],
    notes: &[Event; 2],
    writer: &Relay,
    patience: Duration,
) -> Option<bool> {
    let mut connections = Vec::new();
    for reader in readers {
        let connection = connect(url, sockets, patience).await.ok()?;
        let notifications = connection.relay.notifications();
        let own = PublicKey::from_byte_array(reader.public_key().x_only().to_bytes());
        let filter = Filter::new().kind(Kind::TextNote).pubkey(own);
        let name = SubscriptionId::new("btcr2-check");
        connection.relay.subscribe_with_id(name, filter, SubscribeOptions::default()).await.ok()?;
        connections.push((connection, notifications));
    }
    for note in notes {
        timeout(patience, writer.send_event(note)).await.ok()?.ok()?;
    }
    for ((_connection, notifications), note) in connections.iter_mut().zip(notes) {
        if !matches!(timeout(patience, arrival(notifications, note)).await, Ok(Some(_))) {
            return Some(false);
        }
    }
    Some(true)
}

/// A connection that ends when this is dropped.
struct Connection {
    relay: Relay,
    _pool: RelayPool,
}

async fn connect(url: &RelayUrl, sockets: &Sockets, patience: Duration) -> Result<Connection, String> {
    let pool = RelayPool::builder().websocket_transport(sockets.clone()).build();
    let text = |error: nostr_sdk::pool::pool::Error| error.to_string();
    pool.add_relay(url, RelayOptions::default().reconnect(false)).await.map_err(text)?;
    let relay = pool.relay(url).await.map_err(text)?;
    relay.try_connect(patience).await.map_err(|error| error.to_string())?;
    Ok(Connection { relay, _pool: pool })
}

fn cohort(name: &str) -> CohortId {
    CohortId::parse(&format!("relay-check-{name}")).expect("a short name of visible characters")
}

/// Messages, and what they represent.
type Samples = Vec<(String, Body)>;

/// Messages of each kind: in the sizes of small cohorts, and of larger ones.
fn round() -> (Samples, Samples) {
    let small = vec![
        ("keygen, small (an acceptance)".to_owned(), Body::from(CohortOptInAccept { cohort_id: cohort("accept") })),
        ("encrypted, small (a vote)".to_owned(), SubmitNonIncluded { cohort_id: cohort("vote") }.into()),
    ];
    let mut round = Vec::new();
    for keys in [100, 500] {
        let key = SecretKey::from_bytes(&[1; 32]).expect("1 < 0x0101... < n").public_key();
        let cohort_keys = vec![Bytes(key.to_bytes()); keys];
        let body = CohortReady { cohort_id: cohort("ready"), beacon_address: "-".to_owned(), cohort_keys };
        round.push((format!("keygen, the keys of {keys} members"), body.into()));
    }
    for (what, bytes) in [
        ("encrypted, an update or 50 CAS members", 6_000),
        ("encrypted, 250 CAS members", 30_000),
        ("encrypted, the largest CAS cohort", MAX_PLAINTEXT - 1_000),
    ] {
        let signed_update = Arc::new(json!({ "filler": "x".repeat(bytes) }));
        round.push((what.to_owned(), SubmitUpdate { cohort_id: cohort("data"), signed_update }.into()));
    }
    (small, round)
}

type Ways<'a> = (&'a Relay, &'a mut broadcast::Receiver<RelayNotification>);

async fn probe(
    what: String,
    message: &Message,
    event: &Event,
    peer: &Peer,
    (writer, notifications): Ways<'_>,
    patience: Duration,
) -> Probe {
    let kind = event.kind.as_u16();
    debug_assert!(kind == PLAIN_KIND || kind == ENCRYPTED_KIND);
    let bytes = event.as_json().len();
    let mut probe =
        Probe { what, kind, bytes, accepted_ms: None, delivered_ms: None, stored: false, problem: None };
    let started = Instant::now();
    match timeout(patience, writer.send_event(event)).await {
        Ok(Ok(_)) => probe.accepted_ms = Some(millis(started)),
        Ok(Err(error)) => probe.problem = Some(error.to_string()),
        Err(_) => probe.problem = Some("no answer in time".to_owned()),
    }
    if probe.problem.is_some() {
        return probe;
    }
    match timeout(patience, arrival(notifications, event)).await {
        Ok(Some(arrived)) => {
            probe.delivered_ms = Some(millis(started));
            // The conversation key is the same in both directions.
            let conversation = || Ok::<_, ()>(peer.conversation.clone());
            let read = VerifiedEvent::verify(&arrived).and_then(|event| event.message(|_| conversation()));
            match read {
                Ok(read) if read == *message => {}
                Ok(_) => probe.problem = Some("the relay delivered something else".to_owned()),
                Err(error) => probe.problem = Some(format!("delivered, but: {error}")),
            }
        }
        Ok(None) | Err(_) => probe.problem = Some("accepted, but not delivered to a subscriber in time".to_owned()),
    }
    probe.stored = has(writer, event, patience).await == Some(true);
    if !probe.stored && probe.problem.is_none() {
        probe.problem = Some("accepted, but not stored".to_owned());
    }
    probe
}

/// Whether the relay has an event; `None` if it does not answer.
async fn has(relay: &Relay, event: &Event, patience: Duration) -> Option<bool> {
    let found = relay.fetch_events(Filter::new().id(event.id), patience, ReqExitPolicy::ExitOnEOSE).await.ok()?;
    Some(found.into_iter().any(|found| found.id == event.id))
}

/// Whether the relay removes an event that it has.
async fn forgets(event: &Event, retraction: &Event, relay: &Relay, patience: Duration) -> bool {
    let accepted = timeout(patience, relay.send_event(retraction)).await.is_ok_and(|sent| sent.is_ok());
    accepted && has(relay, event, patience).await == Some(false)
}

/// Waits for an event to arrive.
async fn arrival(notifications: &mut broadcast::Receiver<RelayNotification>, expected: &Event) -> Option<Event> {
    loop {
        match notifications.recv().await {
            Ok(RelayNotification::Event { event, .. }) if event.id == expected.id => return Some(*event),
            Err(broadcast::error::RecvError::Closed) => return None,
            _ => {}
        }
    }
}

/// Many events at once, to test whether the relay limits the rate of a service.
async fn together(events: &[Event], (writer, notifications): Ways<'_>, patience: Duration) -> Probe {
    let started = Instant::now();
    let bytes = events.iter().map(|event| event.as_json().len()).sum();
    let answers = join_all(events.iter().map(|event| timeout(patience, writer.send_event(event)))).await;
    let refused = answers.into_iter().filter_map(|answer| match answer {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("no answer in time".to_owned()),
    });
    let refused: Vec<_> = refused.collect();
    let accepted_ms = refused.is_empty().then(|| millis(started));
    let mut missing: Vec<_> = events.iter().map(|event| event.id).collect();
    let expected = events.len() - refused.len();
    let hearing = async {
        while events.len() - missing.len() < expected {
            match notifications.recv().await {
                Ok(RelayNotification::Event { event, .. }) => missing.retain(|id| *id != event.id),
                Err(broadcast::error::RecvError::Closed) => return false,
                _ => {}
            }
        }
        true
    };
    let delivered = timeout(patience, hearing).await.unwrap_or(false);
    let problem = match refused.first() {
        Some(reason) => Some(format!("{} of {} refused: {reason}", refused.len(), events.len())),
        None if !delivered => Some("accepted, but not all delivered to a subscriber in time".to_owned()),
        None => None,
    };
    Probe {
        what: format!("encrypted, {} at once", events.len()),
        kind: ENCRYPTED_KIND,
        bytes,
        accepted_ms,
        delivered_ms: (delivered && refused.is_empty()).then(|| millis(started)),
        stored: refused.is_empty(),
        problem,
    }
}

/// The limits in the relay's information document (NIP-11).
pub(super) async fn limits(url: &RelayUrl, trust: &Trust, patience: Duration) -> Option<Value> {
    let address = url.to_string().replacen("ws", "http", 1);
    let client = trust.http_client().ok()?.build().ok()?;
    let request = client.get(address).header("accept", "application/nostr+json").timeout(patience);
    let text = request.send().await.ok()?.text().await.ok()?;
    let document: Value = serde_json::from_str(&text).ok()?;
    document.get("limitation").cloned()
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
