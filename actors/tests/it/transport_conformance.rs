//! The transport conformance suite: the guarantees for every user of a transport, as functions over a [`Net`], run for
//! each transport.

#[path = "../../../tests/it/support/proxy.rs"]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "shared with the process tests")]
mod proxy;

mod plain;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::common::{
    identity,
    peers::{Peer, advert, large, name_of, note, soon},
    randomness, relays, settle,
};
use actix_web::{App, HttpServer as WebServer};
use async_trait::async_trait;
use btcr2_aggregation_actors::{
    runtime::{Clock, Randomness},
    transport::{
        Delivery, Inbox, Transport,
        http::{self, HttpClient, HttpConfig, HttpServer, client::Backoff, server::HttpServerParts, store::Rate},
        link::Link,
        memory::MemoryTransport,
        nostr::{NostrTransport, embedded::EmbeddedRelay},
        tls::Trust,
    },
};
use btcr2_aggregation_protocol::{
    did::Did, envelope::SealedEnvelope, hash::sha256, identity::Identity, jcs, message::Message, nostr,
};
use proxy::Proxy;
use serde_json::{Value, json};

/// A network with space for one service and some participants.
#[async_trait(?Send)]
trait Net: Sized {
    /// Whether a peer that connects later receives live adverts at once, not only by their repeat.
    const KEEPS_ADVERTS: bool;
    /// The error for a message that is too large, if there is a limit.
    const TOO_LARGE: Option<&str>;
    /// Whether a participant is notified that no identity with that DID is connected.
    const KNOWS_WHO_IS_THERE: bool;
    /// Whether messages that a broken connection delays arrive in the order in which they were sent.
    const ORDER_SURVIVES_BREAKS: bool;

    async fn start(participants: &[Identity]) -> Self;
    /// The transport of the service.
    fn service(&self) -> Arc<dyn Transport>;
    /// The transport of the participant.
    fn participant(&self, did: &Did) -> Arc<dyn Transport>;
    /// Breaks the participant's connection, once.
    fn cut(&self, did: &Did);
    /// Waits until all started peers are connected.
    async fn ready(&self) {
        settle().await;
    }
    /// Tries to have messages of `attacker` delivered to `to` as those of `victim`.
    async fn spoof(&self, attacker: &Identity, victim: &Did, to: &Did);
}

struct Memory(MemoryTransport);

#[async_trait(?Send)]
impl Net for Memory {
    const KEEPS_ADVERTS: bool = false;
    const TOO_LARGE: Option<&str> = None;
    const KNOWS_WHO_IS_THERE: bool = true;
    const ORDER_SURVIVES_BREAKS: bool = true;

    async fn start(_: &[Identity]) -> Self {
        Self(MemoryTransport::new())
    }

    fn service(&self) -> Arc<dyn Transport> {
        Arc::new(self.0.clone())
    }

    fn participant(&self, _: &Did) -> Arc<dyn Transport> {
        Arc::new(self.0.clone())
    }

    fn cut(&self, did: &Did) {
        self.0.sever(did);
    }

    async fn spoof(&self, attacker: &Identity, victim: &Did, to: &Did) {
        let text = Message::new(victim.clone(), Some(to.clone()), note("spoofed")).to_json();
        self.0.inject(attacker.did(), to, &text);
    }
}

struct Plain(plain::Office);

#[async_trait(?Send)]
impl Net for Plain {
    const KEEPS_ADVERTS: bool = false;
    const TOO_LARGE: Option<&str> = None;
    const KNOWS_WHO_IS_THERE: bool = true;
    const ORDER_SURVIVES_BREAKS: bool = true;

    async fn start(_: &[Identity]) -> Self {
        Self(plain::Office::default())
    }

    fn service(&self) -> Arc<dyn Transport> {
        Arc::new(self.0.clone())
    }

    fn participant(&self, _: &Did) -> Arc<dyn Transport> {
        Arc::new(self.0.clone())
    }

    fn cut(&self, did: &Did) {
        self.0.cut(did);
    }

    async fn spoof(&self, attacker: &Identity, victim: &Did, to: &Did) {
        let text = Message::new(victim.clone(), Some(to.clone()), note("spoofed")).to_json();
        self.0.post(attacker.did(), to, text.into());
    }
}

struct Http {
    server: HttpServer,
    url: String,
    participants: BTreeMap<Did, (HttpClient, Proxy)>,
}

#[async_trait(?Send)]
impl Net for Http {
    const KEEPS_ADVERTS: bool = true;
    const TOO_LARGE: Option<&str> = Some("payload_too_large");
    const KNOWS_WHO_IS_THERE: bool = true;
    const ORDER_SURVIVES_BREAKS: bool = true;

    async fn start(participants: &[Identity]) -> Self {
        let many = Rate { per_second: 100_000, burst: 100_000 };
        let config = HttpConfig { did_rate: many, address_rate: many, ..HttpConfig::default() };
        let server = HttpServer::start(HttpServerParts::new(config, Clock::system()));
        let mounted = server.clone();
        let web = WebServer::new(move || App::new().configure(http::configure(&mounted)))
            .workers(1)
            .disable_signals()
            .bind("127.0.0.1:0")
            .expect("a free port");
        let address = web.addrs()[0];
        actix_rt::spawn(web.run());
        // Short, so that the tests are.
        let backoff = Backoff { first: Duration::from_millis(20), longest: Duration::from_millis(200) };
        let connected = participants.iter().map(|participant| {
            let proxy = Proxy::to(address);
            let client = HttpClient::new(&proxy.url(), None, Clock::system(), Randomness::System).expect("a URL");
            (participant.did().clone(), (client.with_backoff(backoff), proxy))
        });
        Self { server, url: format!("http://{address}"), participants: connected.collect() }
    }

    fn service(&self) -> Arc<dyn Transport> {
        Arc::new(self.server.clone())
    }

    fn participant(&self, did: &Did) -> Arc<dyn Transport> {
        Arc::new(self.participants[did].0.clone())
    }

    fn cut(&self, did: &Did) {
        self.participants[did].1.cut();
    }

    async fn spoof(&self, attacker: &Identity, victim: &Did, to: &Did) {
        let mut rng = randomness("spoof").for_actor("spoof");
        let message = Message::new(victim.clone(), Some(to.clone()), note("spoofed"));
        let (key, now) = (attacker.secret_key(), Clock::system().now());
        let by_the_victim = SealedEnvelope::seal_with_rng(&message, key, now, &mut rng).expect("sealed").to_json();
        // Signed validly by the attacker, with a message inside that names the victim.
        let mut inside: Value = serde_json::from_str(&by_the_victim).expect("JSON");
        inside["from"] = json!(attacker.did());
        inside.as_object_mut().expect("an envelope").remove("sig");
        let digest = sha256(&jcs::canonicalize(&inside).expect("canonical"));
        inside["sig"] = json!(key.sign(&digest, &mut rng).to_string());
        for (body, code) in [(by_the_victim, "invalid_envelope"), (inside.to_string(), "sender_mismatch")] {
            let request = Trust::system()
                .http_client()
                .expect("a client")
                .build()
                .expect("a client")
                .post(format!("{}/v1/messages", self.url))
                .body(body);
            let answer = request.send().await.expect("an answer").text().await.expect("text");
            assert_eq!(answer, json!({ "error": code }).to_string());
        }
    }
}

struct Nostr {
    relay: EmbeddedRelay,
    service: NostrTransport,
    participants: BTreeMap<Did, (NostrTransport, Proxy)>,
}

#[async_trait(?Send)]
impl Net for Nostr {
    const KEEPS_ADVERTS: bool = true;
    const TOO_LARGE: Option<&str> = Some("NIP-44 encrypts at most");
    const KNOWS_WHO_IS_THERE: bool = false;
    const ORDER_SURVIVES_BREAKS: bool = false;

    async fn start(participants: &[Identity]) -> Self {
        let relay = relays::relay().await;
        let clock = Clock::system();
        let service = relays::transport(relays::config(&[relay.url()]), clock);
        let connected = participants.iter().map(|participant| {
            let proxy = Proxy::to(relay.address());
            let url = proxy.url().replace("http://", "ws://");
            (participant.did().clone(), (relays::transport(relays::config(&[&url]), clock), proxy))
        });
        Self { participants: connected.collect(), relay, service }
    }

    fn service(&self) -> Arc<dyn Transport> {
        Arc::new(self.service.clone())
    }

    fn participant(&self, did: &Did) -> Arc<dyn Transport> {
        Arc::new(self.participants[did].0.clone())
    }

    fn cut(&self, did: &Did) {
        self.participants[did].1.cut();
    }

    async fn ready(&self) {
        for transport in std::iter::once(&self.service).chain(self.participants.values().map(|(nostr, _)| nostr)) {
            relays::subscribed(transport, 1).await;
        }
    }

    async fn spoof(&self, attacker: &Identity, victim: &Did, to: &Did) {
        let mut rng = randomness("spoof").for_actor("spoof");
        let message = Message::new(victim.clone(), Some(to.clone()), note("spoofed"));
        let key = to.key().expect("a KEY DID").x_only();
        let peer = btcr2_aggregation_protocol::nostr::Peer::new(attacker.secret_key(), key).expect("keys");
        let now = Clock::system().now();
        let event = nostr::seal(&message, attacker.secret_key(), Some(&peer), now, &mut rng).expect("sealed");
        relays::publish(self.relay.url(), &[event]).await;
    }
}

/// A service and `n` participants, all connected.
async fn connected<N: Net>(n: usize) -> (N, Peer, Vec<Peer>) {
    let identities: Vec<_> = (0..n).map(|index| identity(&format!("participant {index}"))).collect();
    let net = N::start(&identities).await;
    let service = Peer::start(identity("service"), net.service());
    let start = |identity: Identity| Peer::start(identity.clone(), net.participant(identity.did()));
    let participants = identities.into_iter().map(start).collect();
    net.ready().await;
    (net, service, participants)
}

async fn messages_are_delivered_both_ways<N: Net>() {
    let (_net, mut service, mut participants) = connected::<N>(2).await;
    for participant in &mut participants {
        let (question, answer) = (large("question", 20_000), large("answer", 20_000));
        participant.send(service.did(), question.clone());
        let received = service.receive().await;
        assert_eq!(received, Message::new(participant.did().clone(), Some(service.did().clone()), question));
        service.send(participant.did(), answer.clone());
        let received = participant.receive().await;
        assert_eq!(received, Message::new(service.did().clone(), Some(participant.did().clone()), answer));
    }
}

async fn the_order_of_each_sender_is_preserved<N: Net>() {
    let (_net, mut service, mut participants) = connected::<N>(3).await;
    for number in 0..30 {
        for participant in &participants {
            participant.send(service.did(), note(number));
            service.send(participant.did(), note(number));
        }
    }
    let mut received = BTreeMap::<Did, Vec<String>>::new();
    for _ in 0..90 {
        let message = service.receive().await;
        received.entry(message.from.clone()).or_default().push(name_of(&message));
    }
    let in_order: Vec<_> = (0..30).map(|number| number.to_string()).collect();
    for participant in &mut participants {
        assert_eq!(received[participant.did()], in_order);
        for number in &in_order {
            assert_eq!(name_of(&participant.receive().await), *number);
        }
    }
}

async fn adverts_reach_current_and_later_participants<N: Net>() {
    let (net, service, mut participants) = connected::<N>(3).await;
    let body = advert(&service.identity, "offer");
    service.broadcast(body.clone());
    for participant in &mut participants {
        assert_eq!(participant.receive().await, Message::new(service.did().clone(), None, body.clone()));
    }
    // The same identities, with new connections.
    for participant in &participants {
        let mut late = Peer::start(participant.identity.clone(), net.participant(participant.did()));
        net.ready().await;
        if !N::KEEPS_ADVERTS {
            service.broadcast(body.clone());
        }
        assert_eq!(name_of(&late.receive().await), "offer");
    }
}

/// Removes repeats: a message without an answer may have been sent again.
fn without_repeats(names: &[String]) -> Vec<String> {
    let mut names = names.to_vec();
    names.dedup();
    names
}

async fn nothing_is_lost_when_connections_break<N: Net>() {
    let (net, mut service, mut participants) = connected::<N>(1).await;
    let participant = &mut participants[0];
    let did = participant.did().clone();
    let (mut to_service, mut to_participant) = (Vec::new(), Vec::new());
    for number in 0..40 {
        if number % 8 == 4 {
            net.cut(&did);
            // In half of the cases the break is detected before the next message is sent.
            if number % 16 == 4 {
                settle().await;
            }
        }
        participant.send(service.did(), note(number));
        service.send(&did, note(number));
        // So that cuts happen both with and without messages in transit.
        if number % 8 == 2 {
            while !to_service.contains(&number.to_string()) {
                to_service.push(name_of(&service.receive().await));
            }
        }
    }
    if !N::ORDER_SURVIVES_BREAKS {
        // All messages arrive; unconfirmed ones may arrive twice.
        let different = |names: &[String]| names.iter().collect::<BTreeSet<_>>().len();
        while different(&to_service) < 40 {
            to_service.push(name_of(&service.receive().await));
        }
        while different(&to_participant) < 40 {
            to_participant.push(name_of(&participant.receive().await));
        }
        let in_order = |mut names: Vec<String>| {
            names.sort_by_key(|name| name.parse::<u32>().expect("a number"));
            names.dedup();
            names
        };
        (to_service, to_participant) = (in_order(to_service), in_order(to_participant));
    }
    while to_service.last().is_none_or(|last| last != "39") {
        to_service.push(name_of(&service.receive().await));
    }
    while to_participant.last().is_none_or(|last| last != "39") {
        to_participant.push(name_of(&participant.receive().await));
    }
    let all: Vec<_> = (0..40).map(|number| number.to_string()).collect();
    assert_eq!(without_repeats(&to_service), all);
    assert_eq!(to_participant, all);
}

async fn no_sender_can_be_impersonated<N: Net>() {
    let (net, mut service, participants) = connected::<N>(2).await;
    let (attacker, victim) = (&participants[0], &participants[1]);
    net.spoof(&attacker.identity, victim.did(), service.did()).await;
    attacker.send(service.did(), note("honest"));
    loop {
        match service.next().await {
            Delivery::Message(message) => {
                assert_eq!(message.from, *attacker.did(), "{message:?}");
                assert_eq!(name_of(&message), "honest");
                break;
            }
            // The attempt may be reported, in the attacker's own name.
            Delivery::Undecodable { from, .. } => assert_eq!(from, *attacker.did()),
            Delivery::Unverified { .. } => {}
            other @ (Delivery::Own(_)
            | Delivery::Undeliverable { .. }
            | Delivery::Missed { .. }
            | Delivery::Interrupted { .. }
            | Delivery::Delivered { .. }
            | Delivery::Delayed { .. }
            | Delivery::Stored { .. }) => {
                panic!("{other:?}")
            }
        }
    }
}

async fn an_unknown_recipient_is_reported_and_delays_nothing<N: Net>() {
    let (_net, mut service, mut participants) = connected::<N>(1).await;
    let participant = &mut participants[0];
    let outsider = identity("outsider");
    participant.send(outsider.did(), note("lost"));
    participant.send(service.did(), note("found"));
    if N::KNOWS_WHO_IS_THERE {
        let (to, body, _) = participant.undelivered().await;
        assert_eq!((to, body), (outsider.did().clone(), note("lost")));
    }
    assert_eq!(name_of(&service.receive().await), "found");
    // A message to a DID that never connected has no effect on others, whether it is stored or not.
    service.send(outsider.did(), note("lost"));
    service.send(participant.did(), note("found"));
    assert_eq!(name_of(&participant.receive().await), "found");
}

async fn a_too_large_message_is_reported_and_delays_nothing<N: Net>() {
    let (_net, mut service, mut participants) = connected::<N>(1).await;
    let participant = &mut participants[0];
    participant.send(service.did(), note("before"));
    participant.send(service.did(), large("large", 300_000));
    participant.send(service.did(), note("behind"));
    assert_eq!(name_of(&service.receive().await), "before");
    if let Some(expected) = N::TOO_LARGE {
        let (to, body, reason) = participant.undelivered().await;
        assert_eq!((&to, body.cohort_id().as_str()), (service.did(), "large"));
        assert!(reason.contains(expected), "{reason}");
    } else {
        assert_eq!(service.receive().await.body, large("large", 300_000));
    }
    assert_eq!(name_of(&service.receive().await), "behind");
}

async fn a_peer_that_never_reads_delays_no_other<N: Net>() {
    let identities = [identity("stuck"), identity("reader")];
    let net = N::start(&identities).await;
    let mut service = Peer::start(identity("service"), net.service());
    let [stuck, reader] = identities;
    let transport = net.participant(stuck.did());
    // An inbox that accepts one message, and that its owner never reads.
    let (inbox, _unread) = Inbox::channel(1);
    let _stuck = Link::start(transport, stuck.clone(), inbox);
    let mut reader = Peer::start(reader.clone(), net.participant(reader.did()));
    settle().await;
    service.send(reader.did(), note("ready"));
    assert_eq!(name_of(&reader.receive().await), "ready");
    // More than all buffers together can contain.
    let filler = large("filler", 60_000);
    for number in 0..100 {
        for _ in 0..6 {
            service.send(stuck.did(), filler.clone());
        }
        service.send(reader.did(), note(number));
        reader.send(service.did(), note(number));
        assert_eq!(name_of(&reader.receive().await), number.to_string());
        assert_eq!(name_of(&service.receive().await), number.to_string());
    }
}

/// Runs every test of the suite as a separate test.
macro_rules! suite {
    ($module:ident, $net:ty: $($test:ident,)*) => {
        mod $module {
            $(#[test]
            fn $test() {
                actix_rt::System::new().block_on(super::soon("the test", super::$test::<$net>()));
            })*
        }
    };
}

macro_rules! suites {
    ($($module:ident: $net:ty,)*) => {
        $(suite! { $module, $net:
            messages_are_delivered_both_ways,
            the_order_of_each_sender_is_preserved,
            adverts_reach_current_and_later_participants,
            nothing_is_lost_when_connections_break,
            no_sender_can_be_impersonated,
            an_unknown_recipient_is_reported_and_delays_nothing,
            a_too_large_message_is_reported_and_delays_nothing,
            a_peer_that_never_reads_delays_no_other,
        })*
    };
}

suites! {
    over_memory: super::Memory,
    over_a_plain_type: super::Plain,
    over_http: super::Http,
    over_nostr: super::Nostr,
}
