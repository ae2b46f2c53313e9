//! The same over HTTP and over Nostr.

use std::{sync::Arc, time::Duration};

use actix_web::{App, HttpServer as WebServer};
use btcr2_aggregation_actors::{
    runtime::{Clock, Randomness},
    transport::{
        Transport,
        http::{
            HttpConfig, HttpServer,
            client::{Backoff, HttpClient},
            configure,
            server::HttpServerParts,
        },
        nostr::{NostrConfig, NostrTransport, embedded::EmbeddedRelay},
    },
};
use btcr2_aggregation_protocol::cohort::standing::StandingBeacon;

use super::world::{World, terms};

/// DIDs of each seat: more rows than an opportunity carries, so that seats fetch them.
const DIDS: usize = 100;

async fn two_announcements(server: Arc<dyn Transport>, client: Arc<dyn Transport>, beacon: StandingBeacon) {
    let mut world = World::with_dids(Clock::system(), server, client, 3, DIDS);
    let mut terms = terms(beacon, 3);
    terms.min_seconds_between_announcements = 1;
    world.form(terms).await;
    for round in 0..2 {
        world.wants(round, 0).await;
        let (number, transaction) = world.signed().await;
        assert_eq!(number, round as u64 + 1);
        assert_eq!(transaction.input[0].witness.len(), 1, "by key path");
    }
}

#[actix_rt::test]
async fn a_standing_cohort_announces_over_http() {
    let server = HttpServer::start(HttpServerParts::new(HttpConfig::default(), Clock::system()));
    let mounted = server.clone();
    let web = WebServer::new(move || App::new().configure(configure(&mounted)));
    let web = web.workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", web.addrs()[0]);
    actix_rt::spawn(web.run());
    let backoff = Backoff { first: Duration::from_millis(10), longest: Duration::from_millis(100) };
    let client = HttpClient::new(&url, None, Clock::system(), Randomness::System).unwrap();
    two_announcements(Arc::new(server), Arc::new(client.with_backoff(backoff)), StandingBeacon::Smt).await;
}

#[actix_rt::test]
async fn a_standing_cohort_announces_over_nostr() {
    let relay = EmbeddedRelay::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let transport = || {
        let config = NostrConfig::new(vec![relay.url().to_owned()]);
        Arc::new(NostrTransport::new(config, Clock::system(), Randomness::System).unwrap())
    };
    two_announcements(transport(), transport(), StandingBeacon::Cas).await;
}
