//! Relays on their own threads, events that a test publishes itself, and recorders of events.

use std::{
    net::SocketAddr,
    sync::mpsc::{Receiver, Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use btcr2_aggregation::actors::transport::nostr::embedded::EmbeddedRelay;
use nostr_sdk::{Client, Event, Filter, RelayPoolNotification};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A relay on a thread of its own, until it is killed.
pub struct Relay {
    address: SocketAddr,
    pub url: String,
    kill: Sender<()>,
    thread: JoinHandle<()>,
}

impl Relay {
    pub fn start(address: SocketAddr) -> Self {
        let (started, relay) = channel();
        let (kill, killed) = channel();
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                // The port of a relay that was killed may stay in use for a moment.
                let relay = loop {
                    match EmbeddedRelay::start(address).await {
                        Ok(relay) => break relay,
                        Err(_) => tokio::task::yield_now().await,
                    }
                };
                started.send((relay.address(), relay.url().to_owned())).unwrap();
                // Or the test is over.
                let _ = tokio::task::spawn_blocking(move || killed.recv()).await.unwrap();
                relay.shutdown().await;
            });
        });
        let (address, url) = relay.recv().unwrap();
        Self { address, url, kill, thread }
    }

    pub fn anywhere() -> Self {
        Self::start(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Kills the relay, which loses all its events.
    pub fn kill(self) -> SocketAddr {
        self.kill.send(()).unwrap();
        self.thread.join().unwrap();
        self.address
    }
}

async fn client(url: &str) -> Client {
    let client = Client::default();
    client.add_relay(url).await.unwrap();
    client.connect().await;
    client.wait_for_connection(Duration::from_secs(30)).await;
    client
}

/// Publishes events as they are, one after the other.
pub fn publish(url: &str, events: &[Event]) {
    runtime().block_on(async {
        let client = client(url).await;
        for event in events {
            // It may refuse: the event was retracted.
            let _ = client.send_event(event).await;
        }
        client.shutdown().await;
    });
}

/// Records every event that is published on a relay, also those that are retracted later.
pub struct Recorder {
    events: Receiver<Event>,
}

impl Recorder {
    pub fn start(url: &str) -> Self {
        let (sender, events) = channel();
        let (ready, is_ready) = channel();
        let url = url.to_owned();
        thread::spawn(move || {
            runtime().block_on(async {
                let client = client(&url).await;
                let mut notifications = client.notifications();
                client.subscribe(Filter::new(), None).await.unwrap();
                while let Ok(notification) = notifications.recv().await {
                    match notification {
                        RelayPoolNotification::Event { event, .. } => {
                            // Unless the recorder was dropped.
                            let _ = sender.send(*event);
                        }
                        RelayPoolNotification::Message {
                            message: nostr_sdk::RelayMessage::EndOfStoredEvents(_),
                            ..
                        } => {
                            let _ = ready.send(());
                        }
                        _ => {}
                    }
                }
            });
        });
        is_ready.recv().unwrap();
        Self { events }
    }

    /// The events up to the first one of which `last` is true.
    pub fn until(&self, last: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.events.recv_timeout(super::PATIENCE).unwrap();
            let done = last(&event);
            events.push(event);
            if done {
                return events;
            }
        }
    }

    /// The events until the partial signature of each of `members` members: the whole round.
    pub fn round(&self, members: usize) -> Vec<Event> {
        let mut events = Vec::new();
        let mut signatures = 0;
        while signatures < members {
            let event = self.events.recv_timeout(super::PATIENCE).unwrap();
            signatures += usize::from(
                event
                    .tags
                    .iter()
                    .any(|tag| tag.content().is_some_and(|content| content.ends_with("/signature_authorization"))),
            );
            events.push(event);
        }
        events
    }
}
