//! The position that a client confirms to its server: only what is durable here, because the server removes it.

use std::{sync::Arc, time::Duration};

use crate::common::{
    fake_server::{Answer, FakeServer},
    identity,
    peers::{PATIENCE, note, soon},
};
use btcr2_aggregation_actors::{
    runtime::{Clock, Randomness},
    transport::{
        Delivery, Inbox, Received,
        http::{HttpClient, client::Backoff},
        link::Link,
    },
};
use btcr2_aggregation_protocol::{did::Did, envelope::SealedEnvelope, message::Message};
use tokio::sync::mpsc;

fn inbox_event(to: &Did, id: u64, name: &str) -> String {
    let service = identity("service");
    let message = Message::new(service.did().clone(), Some(to.clone()), note(name));
    let mut rng = Randomness::System.for_actor("");
    let now = Clock::system().now();
    let envelope = SealedEnvelope::seal_with_rng(&message, service.secret_key(), now, &mut rng).expect("sealed");
    format!("id: {id}\nevent: message\ndata: {}\n\n", envelope.to_json())
}

struct Client {
    server: FakeServer,
    deliveries: mpsc::Receiver<Delivery>,
    _link: Link,
}

/// A client whose server sends a first and a second event whenever the stream is opened, and then ends it.
fn start() -> Client {
    let server = FakeServer::start();
    let member = identity("member");
    let events = vec![inbox_event(member.did(), 1, "first"), inbox_event(member.did(), 2, "second")];
    server.answer_inbox(vec![Answer::EventsThenEnd(events); 500]);
    let service = Some(identity("service").did().clone());
    let client = HttpClient::new(&server.url(), service, Clock::system(), Randomness::System).expect("a URL");
    let backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_millis(100) };
    let (inbox, deliveries) = Inbox::channel(64);
    let link = Link::start(Arc::new(client.with_backoff(backoff)), member, inbox);
    Client { server, deliveries, _link: link }
}

impl Client {
    /// The next message with that name, its receipt unconfirmed; other messages are moved to `aside`, unconfirmed too.
    async fn next(&mut self, name: &str, aside: &mut Vec<Received>) -> Received {
        loop {
            let delivery = soon(name, self.deliveries.recv()).await.expect("the inbox exists");
            let Delivery::Message(received) = delivery else { panic!("{delivery:?}") };
            if received.body.cohort_id().as_str() == name {
                return received;
            }
            aside.push(received);
        }
    }
}

#[test]
fn what_is_behind_something_that_is_not_safe_is_not_acknowledged() {
    actix_rt::System::new().block_on(async {
        let (mut client, mut aside) = (start(), Vec::new());
        for _ in 0..5 {
            let request = client.server.inbox().await;
            assert_eq!(request.header("last-event-id"), None);
            let second = client.next("second", &mut aside).await;
            second.receipt.confirm();
        }
    });
}

#[test]
fn what_is_safe_is_acknowledged_in_order() {
    actix_rt::System::new().block_on(async {
        let (mut client, mut aside) = (start(), Vec::new());
        let acknowledged = async {
            loop {
                let request = client.server.inbox().await;
                match request.header("last-event-id") {
                    None => client.next("first", &mut aside).await.receipt.confirm(),
                    Some(id) => break id.to_owned(),
                }
            }
        };
        let id = tokio::time::timeout(PATIENCE, acknowledged).await.expect("the first is acknowledged");
        assert_eq!(id, "1", "the second is not safe yet");
    });
}

#[test]
fn what_was_lost_is_handed_over_again_and_not_acknowledged_meanwhile() {
    actix_rt::System::new().block_on(async {
        let (mut client, mut aside) = (start(), Vec::new());
        drop(client.next("first", &mut aside).await);
        // On this stream or the next, it is delivered again without the server.
        let again = client.next("first", &mut aside).await;
        for _ in 0..3 {
            let request = client.server.inbox().await;
            assert_eq!(request.header("last-event-id"), None);
        }
        again.receipt.confirm();
    });
}
