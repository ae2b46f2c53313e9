//! Nostr on its bad days, with the programs as processes: a relay that is killed in mid-round, and a forged sender.
#![allow(clippy::unwrap_used)]

mod nostr_support;

use std::{
    net::SocketAddr,
    sync::mpsc::{Sender, channel},
    thread::{self, JoinHandle},
};

use btcr2_aggregation::{
    actors::{
        runtime::{Clock, Randomness},
        transport::nostr::embedded::EmbeddedRelay,
    },
    protocol::{
        id::CohortId,
        message::{Message, update::SubmitNonIncluded},
        nostr::{Peer, seal},
    },
};
use nostr_sdk::Client;
use nostr_support::{Program, Running, identity, join, serve_on};
use serde_json::json;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A relay on a thread of its own, until it is killed.
struct Relay {
    address: SocketAddr,
    url: String,
    kill: Sender<()>,
    thread: JoinHandle<()>,
}

impl Relay {
    fn start(address: SocketAddr) -> Self {
        let (started, relay) = channel();
        let (kill, killed) = channel();
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                // The port of a relay that was killed may be taken for another moment.
                let relay = loop {
                    match EmbeddedRelay::start(address).await {
                        Ok(relay) => break relay,
                        Err(_) => tokio::task::yield_now().await,
                    }
                };
                started.send((relay.address(), relay.url().to_owned())).unwrap();
                tokio::task::spawn_blocking(move || killed.recv()).await.unwrap().unwrap();
                relay.shutdown().await;
            });
        });
        let (address, url) = relay.recv().unwrap();
        Self { address, url, kill, thread }
    }

    fn anywhere() -> Self {
        Self::start(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Kills the relay, with all that it had stored.
    fn kill(self) -> SocketAddr {
        self.kill.send(()).unwrap();
        self.thread.join().unwrap();
        self.address
    }
}

fn members(running: &Running, numbers: std::ops::Range<usize>) -> Vec<Program> {
    let place = ["--relay", running.relay.as_str()];
    numbers.map(|number| join(running, &format!("member {number}"), &place, &["--add-beacon"])).collect()
}

fn completes(running: &mut Running, members: &mut [Program]) {
    let complete = running.service.event("signing-complete");
    assert_eq!(complete["path"], "key-path", "{complete}");
    for member in members {
        assert_eq!(member.event("cohort-complete")["included"], true);
    }
    running.service.succeeds();
}

#[test]
fn a_relay_that_is_killed_and_restarted_in_mid_round_costs_nothing_but_time() {
    for stop_at in ["participant-accepted", "keygen-complete", "signing-started"] {
        let relay = Relay::anywhere();
        let mut running = serve_on(&["--relay", &relay.url], 3, &[]);
        let mut members = members(&running, 0..3);
        running.service.event(stop_at);
        let address = relay.kill();
        let _again = Relay::start(address);
        completes(&mut running, &mut members);
    }
}

#[test]
fn a_forged_sender_is_refused_and_who_signed_is_named() {
    let relay = Relay::anywhere();
    let mut running = serve_on(&["--relay", &relay.url], 3, &[]);
    let mut joined = members(&running, 0..2);
    let cohort_id = running.service.event("participant-accepted")["cohortId"].clone();
    running.service.event("participant-accepted");

    // One member declines in the name of the other.
    let (forger, victim, service) = (identity("member 0"), identity("member 1"), identity("service"));
    let declined = SubmitNonIncluded { cohort_id: CohortId::parse(cohort_id.as_str().unwrap()).unwrap() };
    let message = Message::new(victim.did().clone(), Some(service.did().clone()), declined);
    let mut rng = Randomness::System.for_actor("forger");
    let to = Peer::new(forger.secret_key(), service.public_key().x_only()).unwrap();
    let event = seal(&message, forger.secret_key(), Some(&to), Clock::system().now(), &mut rng).unwrap();
    runtime().block_on(async {
        let client = Client::default();
        client.add_relay(&relay.url).await.unwrap();
        client.connect().await;
        client.send_event(&event).await.unwrap();
    });
    let rejected = running.service.event("message-rejected");
    assert_eq!(rejected["from"], json!(forger.did()), "{rejected}");

    joined.extend(members(&running, 2..3));
    completes(&mut running, &mut joined);
}
