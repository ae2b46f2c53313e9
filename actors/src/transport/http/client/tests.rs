//! The restart of a connection whose actor fails.

use std::time::Duration;

use actix::{Actor, ActorContext, Addr};
use actix_web::{App, HttpServer as WebServer};
use btcr2_aggregation_protocol::{
    id::CohortId,
    key::SecretKey,
    message::{Body, update::SubmitNonIncluded},
    network::Network,
};
use tokio::sync::mpsc;

use super::*;
use crate::transport::{
    Delivery, Outbound,
    http::{HttpConfig, HttpServer, configure, server::HttpServerParts},
    link::Link,
};

/// Fail: by a panic, or by stopping.
#[derive(actix::Message)]
#[rtype(result = "()")]
struct Fail {
    panic: bool,
}

impl actix::Handler<Fail> for HttpConnection {
    type Result = ();

    fn handle(&mut self, Fail { panic }: Fail, ctx: &mut Self::Context) {
        assert!(!panic, "as the test wants it");
        ctx.stop();
    }
}

/// The client's transport, and the connections that it has made.
struct Watched(HttpClient, Arc<Mutex<Vec<Addr<HttpConnection>>>>);

#[async_trait]
impl Transport for Watched {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        let (guard, ended) = Ended::guard();
        let name = lock(&self.1).len().to_string();
        let actor = HttpConnection::new(self.0.clone(), identity.clone(), inbox, name, guard).start();
        lock(&self.1).push(actor.clone());
        Ok(ActorConnection::boxed(actor.recipient(), ended))
    }
}

/// Passes the names of received messages on.
async fn read(mut deliveries: mpsc::Receiver<Delivery>, names: mpsc::UnboundedSender<String>) {
    while let Some(delivery) = deliveries.recv().await {
        // Deliveries, and the failure of the connection, are reported as well.
        if let Delivery::Delivered { .. } | Delivery::Interrupted { .. } = delivery {
            continue;
        }
        let Delivery::Message(message) = delivery else { panic!("{delivery:?}") };
        message.receipt.clone().confirm();
        names.send(message.body.cohort_id().as_str().to_owned()).expect("the test listens");
    }
}

fn link(identity: &Identity, transport: impl Transport + 'static) -> (Link, mpsc::UnboundedReceiver<String>) {
    let (sender, names) = mpsc::unbounded_channel();
    let (inbox, deliveries) = Inbox::channel(64);
    actix_rt::spawn(read(deliveries, sender));
    (Link::start(Arc::new(transport), identity.clone(), inbox), names)
}

fn send(from: &Link, to: &Identity, name: &str) {
    let body = Body::from(SubmitNonIncluded { cohort_id: CohortId::parse(name).expect("a name") });
    from.send(Outbound::Direct { to: to.did().clone(), body: body.into(), until: None });
}

async fn received(inbox: &mut mpsc::UnboundedReceiver<String>) -> String {
    tokio::time::timeout(Duration::from_secs(30), inbox.recv()).await.expect("in time").expect("the inbox is there")
}

#[test]
fn a_connection_that_fails_is_replaced_and_the_next_goes_on() {
    actix_rt::System::new().block_on(async {
        let [service, member] = ["service", "member"].map(|name| {
            Identity::from_key(SecretKey::generate(&mut Randomness::System.for_actor(name)), Network::Regtest)
        });
        let server = HttpServer::start(HttpServerParts::new(HttpConfig::default(), Clock::system()));
        let (from_service, mut at_service) = link(&service, server.clone());
        let mounted = server.clone();
        let web = WebServer::new(move || App::new().configure(configure(&mounted))).workers(1).disable_signals();
        let web = web.bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", web.addrs()[0]);
        actix_rt::spawn(web.run());
        let backoff = Backoff { first: Duration::from_millis(10), longest: Duration::from_millis(50) };
        let client = HttpClient::new(&url, None, Clock::system(), Randomness::System).expect("a URL");
        let connections = Arc::default();
        let (from_member, mut at_member) =
            link(&member, Watched(client.with_backoff(backoff), Arc::clone(&connections)));

        for (turn, panic) in [(0, true), (1, false), (2, true)] {
            let [before, meanwhile, after] = ["before", "meanwhile", "after"].map(|when| format!("{when}-{turn}"));
            send(&from_member, &service, &before);
            assert_eq!(received(&mut at_service).await, before);
            send(&from_service, &member, &before);
            assert_eq!(received(&mut at_member).await, before, "and no message of an earlier turn is repeated");

            let failing = lock(&connections).last().expect("a connection").clone();
            failing.do_send(Fail { panic });
            send(&from_service, &member, &meanwhile);
            while failing.connected() {
                tokio::task::yield_now().await;
            }
            send(&from_member, &service, &after);
            assert_eq!(received(&mut at_member).await, meanwhile);
            let mut next = received(&mut at_service).await;
            if next == before {
                // The connection failed before it had the answer: the server accepts a repetition.
                next = received(&mut at_service).await;
            }
            assert_eq!(next, after);
        }
        assert_eq!(lock(&connections).len(), 4);
    });
}
