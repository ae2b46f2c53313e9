//! The embedded relay states its limits (NIP-11), and enforces exactly those.

use btcr2_aggregation_actors::{
    runtime::Clock,
    transport::{
        Transport,
        nostr::embedded::{EmbeddedRelay, RelayLimits},
    },
};
use btcr2_aggregation_protocol::beacon::BeaconType;
use futures::{SinkExt, StreamExt};
use nostr_sdk::{EventBuilder, Keys};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message as Frame};

use crate::common::relays::{config, loopback, transport};

/// The information document, and its headers.
async fn information(relay: &EmbeddedRelay) -> (reqwest::header::HeaderMap, Value) {
    let url = relay.url().replacen("ws", "http", 1);
    let client = reqwest::Client::builder().tls_backend_preconfigured(client_config()).build().unwrap();
    let answer = client.get(url).header("accept", "application/nostr+json").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let headers = answer.headers().clone();
    (headers, serde_json::from_str(&answer.text().await.unwrap()).unwrap())
}

fn client_config() -> rustls::ClientConfig {
    btcr2_aggregation_actors::transport::tls::Trust::system().client_config().unwrap()
}

struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    async fn connect(relay: &EmbeddedRelay) -> Self {
        Self(connect_async(relay.url()).await.unwrap().0)
    }

    /// The relay's next message; `None` when it closes the connection.
    async fn receive(&mut self) -> Option<Value> {
        loop {
            match self.0.next().await {
                Some(Ok(Frame::Text(text))) => return Some(serde_json::from_str(&text).unwrap()),
                Some(Ok(Frame::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    async fn send(&mut self, what: &Value) -> Option<Value> {
        // A message that is too long may end the connection before all of it is written.
        let _ = self.0.send(Frame::text(what.to_string())).await;
        self.receive().await
    }

    async fn publish(&mut self, content: &str) -> Value {
        let event = EventBuilder::text_note(content).sign_with_keys(&Keys::generate()).unwrap();
        self.send(&json!(["EVENT", event])).await.expect("an answer")
    }
}

#[actix_rt::test]
async fn what_the_relay_states_is_what_it_enforces() {
    let limits = RelayLimits { events: 7, ..RelayLimits::default() };
    let relay = EmbeddedRelay::start_with(loopback(), limits, &[]).await.unwrap();
    let (headers, stated) = information(&relay).await;
    assert_eq!(headers["content-type"], "application/nostr+json");
    assert_eq!(headers["access-control-allow-origin"], "*");
    assert_eq!(stated["supported_nips"], json!([1, 9, 11]));
    assert!(stated["name"].is_string() && stated["version"].is_string());
    let stated = &stated["limitation"];
    let number = |name: &str| usize::try_from(stated[name].as_u64().unwrap_or_else(|| panic!("{name}"))).unwrap();
    for name in ["auth_required", "payment_required", "restricted_writes"] {
        assert_eq!(stated[name], false);
    }

    let mut client = Client::connect(&relay).await;
    let most = number("max_content_length");
    assert_eq!(client.publish(&"x".repeat(most)).await[2], true);
    let refused = client.publish(&"x".repeat(most + 1)).await;
    assert!(refused[2] == false && refused[3].as_str().unwrap().contains("too long"), "{refused}");

    let name = "s".repeat(number("max_subid_length"));
    // Without a limit in the filter the default applies, and a larger one is reduced to the maximum.
    for number in 0..10 {
        client.publish(&number.to_string()).await;
    }
    for (filter, most) in [(json!({}), number("default_limit")), (json!({ "limit": 1_000 }), number("max_limit"))] {
        let mut received = client.send(&json!(["REQ", name, filter])).await.unwrap();
        let mut events = 0;
        while received[0] == "EVENT" {
            events += 1;
            received = client.receive().await.unwrap();
        }
        assert_eq!(received[0], "EOSE");
        assert_eq!(events, most);
    }
    let longer = client.send(&json!(["REQ", format!("{name}s"), { "kinds": [7] }])).await.unwrap();
    assert_eq!(longer[0], "CLOSED");
    for number in 1..number("max_subscriptions") {
        let received = client.send(&json!(["REQ", number.to_string(), { "kinds": [7] }])).await.unwrap();
        assert_eq!(received[0], "EOSE");
    }
    let received = client.send(&json!(["REQ", "one more", { "kinds": [7] }])).await.unwrap();
    assert_eq!(received[0], "CLOSED");

    let most = number("max_message_length");
    // At the maximum length it is an invalid event, at which the relay closes the connection as well; it has read it
    // then.
    let filled = |length: usize| {
        let event = EventBuilder::text_note("").sign_with_keys(&Keys::generate()).unwrap();
        let mut text = json!(["EVENT", event]).to_string();
        text.extend(std::iter::repeat_n(' ', length - text.len()));
        text
    };
    let mut client = Client::connect(&relay).await;
    client.0.send(Frame::text(filled(most))).await.unwrap();
    assert_eq!(client.receive().await.expect("an answer")[2], true);
    let _ = client.0.send(Frame::text(filled(most + 1))).await;
    assert_eq!(client.receive().await, None);
    relay.shutdown().await;
}

#[actix_rt::test]
async fn reconciliation_requests_are_refused() {
    let relay = EmbeddedRelay::start(loopback()).await.unwrap();
    let mut client = Client::connect(&relay).await;
    assert_eq!(client.send(&json!(["NEG-OPEN", "a", {}, "6100000200"])).await, None);
    relay.shutdown().await;
}

#[actix_rt::test]
async fn our_own_client_learns_the_limits() {
    let limits = RelayLimits { event_bytes: 20_000, ..RelayLimits::default() };
    let relay = EmbeddedRelay::start_with(loopback(), limits, &[]).await.unwrap();
    let transport = transport(config(&[relay.url()]), Clock::system());
    let cas = BeaconType::cas();
    let unknown = transport.member_limit(&cas, 1_000).unwrap();
    transport.learn().await;
    let known = transport.member_limit(&cas, 1_000).unwrap();
    assert!(known > 10 && known < unknown / 2, "{known} instead of {unknown}");
    assert_eq!(relay.connections().malformed, 0);
    relay.shutdown().await;
}
