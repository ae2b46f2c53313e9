//! Relays in this process: correct ones, and faulty ones behind a proxy that interprets the messages.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::peers::soon;
use btcr2_aggregation_actors::{
    runtime::{Clock, Randomness},
    transport::nostr::{NostrConfig, NostrTransport, embedded::EmbeddedRelay},
};
use btcr2_aggregation_protocol::nostr::DELETION_KIND;
use futures::{SinkExt, StreamExt};
use nostr_sdk::{Event, Filter, RelayPool};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{broadcast, mpsc},
    time::Instant,
};
use tokio_tungstenite::{accept_async, connect_async, tungstenite::Message as Frame};

pub fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A correct relay.
pub async fn relay() -> EmbeddedRelay {
    EmbeddedRelay::start(loopback()).await.expect("a free port")
}

/// The address of a relay that does not run: a port on which no process listens.
pub async fn absent() -> String {
    let listener = TcpListener::bind(loopback()).await.expect("a free port");
    format!("ws://{}", listener.local_addr().expect("an address"))
}

/// Settings for these relays with delays that are short enough for tests.
pub fn config(urls: &[&str]) -> NostrConfig {
    let mut config = NostrConfig::new(urls.iter().map(|url| (*url).to_owned()));
    config.first_backoff = Duration::from_millis(20);
    config.longest_backoff = Duration::from_millis(200);
    config
}

pub fn transport(config: NostrConfig, clock: Clock) -> NostrTransport {
    NostrTransport::new(config, clock, Randomness::System).expect("relays")
}

/// Waits until this many connections of the transport are made and have received all stored events.
pub async fn subscribed(transport: &NostrTransport, connections: u64) {
    soon("the subscriptions to the relays", async {
        while transport.relays().iter().any(|relay| relay.subscribed < connections) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// The fault of a relay.
#[derive(Clone, Copy)]
pub enum Mood {
    /// It confirms every event, and drops every second one.
    Drops,
    /// All of its answers are delayed by this time.
    Late(Duration),
    /// It refuses every event.
    Refuses,
    /// It accepts everything and answers nothing.
    Hangs,
    /// It does not remove events on request.
    Keeps,
    /// It does not report the end of its stored events.
    Endless,
    /// It refuses events of this type, like a relay that only accepts small events.
    RefusesType(&'static str),
    /// It answers each event with a notice.
    Notices,
    /// It sends every event to every client, under any of its subscriptions.
    OverDelivers,
}

/// A relay with a fault, in front of a correct one. It counts the received events.
pub struct Moody {
    pub url: String,
    pub events: Arc<AtomicUsize>,
    /// The identifiers of all subscriptions, with repetitions.
    pub subscriptions: Arc<Mutex<Vec<String>>>,
    /// Their filters.
    pub filters: Arc<Mutex<Vec<Value>>>,
}

/// The state that the connections to one proxy share.
#[derive(Clone)]
struct Shared {
    mood: Mood,
    events: Arc<AtomicUsize>,
    subscriptions: Arc<Mutex<Vec<String>>>,
    filters: Arc<Mutex<Vec<Value>>>,
    everything: broadcast::Sender<Value>,
}

impl Moody {
    pub async fn start(relay: &EmbeddedRelay, mood: Mood) -> Self {
        let listener = TcpListener::bind(loopback()).await.expect("a free port");
        let url = format!("ws://{}", listener.local_addr().expect("an address"));
        let events = Arc::new(AtomicUsize::new(0));
        let target = relay.url().to_owned();
        let subscriptions = Arc::<Mutex<Vec<String>>>::default();
        let filters = Arc::<Mutex<Vec<Value>>>::default();
        let (everything, _) = broadcast::channel(1024);
        let shared = Shared {
            mood,
            events: Arc::clone(&events),
            subscriptions: Arc::clone(&subscriptions),
            filters: Arc::clone(&filters),
            everything,
        };
        actix_rt::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                actix_rt::spawn(serve(client, target.clone(), shared.clone()));
            }
        });
        Self { url, events, subscriptions, filters }
    }
}

async fn serve(client: TcpStream, target: String, shared: Shared) {
    let mood = shared.mood;
    let Ok(client) = accept_async(client).await else { return };
    let Ok((relay, _)) = connect_async(target).await else { return };
    let (mut to_client, mut from_client) = client.split();
    let (mut to_relay, mut from_relay) = relay.split();
    let (sender, mut queue) = mpsc::unbounded_channel::<(Instant, Frame)>();
    let late = if let Mood::Late(time) = mood { time } else { Duration::ZERO };
    let (answers, more) = (sender.clone(), sender.clone());
    let (own, mut everything) = (Arc::new(Mutex::new(Vec::<String>::new())), shared.everything.subscribe());
    let asked = Arc::clone(&own);
    let inward = async move {
        while let Some(Ok(frame)) = from_client.next().await {
            if let Some(value) = frame.to_text().ok().and_then(|text| serde_json::from_str::<Value>(text).ok()) {
                match value[0].as_str() {
                    Some("REQ") => {
                        let id = value[1].as_str().unwrap_or_default().to_owned();
                        shared.subscriptions.lock().unwrap().push(id.clone());
                        shared.filters.lock().unwrap().push(value[2].clone());
                        asked.lock().unwrap().push(id);
                    }
                    Some("EVENT") => drop(shared.everything.send(value[1].clone())),
                    _ => {}
                }
            }
            match own_answer(&frame, mood, &shared.events) {
                Some(answer) => drop(answers.send((Instant::now(), answer))),
                None => {
                    if to_relay.send(frame).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    let outward = async move {
        while let Some(Ok(frame)) = from_relay.next().await {
            if sender.send((Instant::now() + late, frame)).is_err() {
                return;
            }
        }
    };
    let too_much = async move {
        while let Ok(event) = everything.recv().await {
            if let Mood::OverDelivers = mood {
                for id in own.lock().unwrap().iter() {
                    let frame = Frame::text(json!(["EVENT", id, event]).to_string());
                    let _ = more.send((Instant::now(), frame));
                }
            }
        }
    };
    let speaking = async move {
        while let Some((when, frame)) = queue.recv().await {
            tokio::time::sleep_until(when).await;
            let unsaid = match mood {
                Mood::Hangs => true,
                Mood::Endless => frame.to_text().is_ok_and(|text| text.starts_with("[\"EOSE\"")),
                _ => false,
            };
            if !unsaid && to_client.send(frame).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { () = inward => {}, () = outward => {}, () = speaking => {}, () = too_much => {} }
}

/// The proxy's own answer to an event, which it then does not forward to the relay.
fn own_answer(frame: &Frame, mood: Mood, events: &AtomicUsize) -> Option<Frame> {
    let Frame::Text(text) = frame else { return None };
    let value: Value = serde_json::from_str(text.as_str()).ok()?;
    if value[0] != "EVENT" {
        return None;
    }
    let number = events.fetch_add(1, Ordering::SeqCst);
    let answer = match mood {
        Mood::Drops if number.is_multiple_of(2) => json!(["OK", value[1]["id"], true, ""]),
        Mood::Keeps if value[1]["kind"] == DELETION_KIND => json!(["OK", value[1]["id"], true, ""]),
        Mood::RefusesType(kind) if text.contains(kind) => {
            json!(["OK", value[1]["id"], false, "invalid: event too large"])
        }
        Mood::Notices => json!(["NOTICE", "not\u{1b}[31m today"]),
        Mood::Refuses => json!(["OK", value[1]["id"], false, "blocked: not today"]),
        _ => return None,
    };
    Some(Frame::text(answer.to_string()))
}

/// Publishes events as their authors would, without any transport of ours.
pub async fn publish(url: &str, events: &[Event]) {
    let pool = RelayPool::new();
    pool.add_relay(url, nostr_sdk::RelayOptions::default()).await.expect("a URL");
    pool.connect().await;
    pool.wait_for_connection(Duration::from_secs(10)).await;
    for event in events {
        let output = pool.send_event(event).await.expect("sent");
        assert_eq!(output.success.len(), 1, "{output:?}");
    }
    pool.shutdown().await;
}

/// All events that the relay has stored.
pub async fn history(url: &str) -> Vec<Event> {
    let pool = RelayPool::new();
    pool.add_relay(url, nostr_sdk::RelayOptions::default()).await.expect("a URL");
    pool.connect().await;
    let events = pool
        .fetch_events(Filter::new(), Duration::from_secs(10), nostr_sdk::pool::relay::ReqExitPolicy::ExitOnEOSE)
        .await
        .expect("events");
    pool.shutdown().await;
    events.into_iter().collect()
}
