//! HTTP over loopback: signed envelopes as fast as they are taken, beside how fast one core only verifies them.
//!
//! Client and server share the machine; the client only sends what was sealed before.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

#[path = "../examples/support/mod.rs"]
mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Actor, Context, Handler};
use actix_web::{App, HttpServer as WebServer};
use btcr2_aggregation::{
    actors::{
        runtime::{Clock, Randomness},
        transport::{
            Delivery, Disconnected, Transport,
            http::{self, HttpConfig, HttpServer, server::HttpServerParts, store::Rate},
        },
    },
    protocol::{
        envelope::{Expected, ParsedEnvelope, SealedEnvelope},
        id::CohortId,
        identity::Identity,
        message::{Body, Message, update::SubmitNonIncluded},
    },
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::{StreamExt, stream};
use support::{identity, seeded};

/// How many requests are under way at once.
const AT_ONCE: usize = 32;

/// Takes every message, and says so.
struct Sink;

impl Actor for Sink {
    type Context = Context<Self>;
}

impl Handler<Delivery> for Sink {
    type Result = ();

    fn handle(&mut self, delivery: Delivery, _: &mut Self::Context) {
        if let Delivery::Message(received) = delivery {
            received.receipt.confirm();
        }
    }
}

impl Handler<Disconnected> for Sink {
    type Result = ();

    fn handle(&mut self, _: Disconnected, _: &mut Self::Context) {}
}

fn envelopes(from: &Identity, to: &Identity, count: u64) -> Vec<String> {
    let body = Body::from(SubmitNonIncluded { cohort_id: CohortId::generate(&mut seeded(1).for_actor("cohort")) });
    let message = Message::new(from.did().clone(), Some(to.did().clone()), body);
    // Not seeded: nonces that repeat are refused.
    let mut rng = Randomness::System.for_actor("envelopes");
    let now = Clock::system().now();
    let seal = |_| SealedEnvelope::seal_with_rng(&message, from.secret_key(), now, &mut rng).unwrap().to_json();
    (0..count).map(seal).collect()
}

async fn post_all(count: u64) -> Duration {
    let clock = Clock::system();
    let unlimited = Rate { per_second: 1_000_000, burst: 1_000_000 };
    let config = HttpConfig { did_rate: unlimited, address_rate: unlimited, ..HttpConfig::default() };
    let server = HttpServer::start(HttpServerParts::new(config, clock));
    let (from, to) = (identity(seeded(1), "from"), identity(seeded(1), "to"));
    let sink = Sink.start();
    let _connection = server.connect(&to, sink.clone().recipient(), sink.recipient(), 0).await.unwrap();
    let mounted = server.clone();
    let web = WebServer::new(move || App::new().configure(http::configure(&mounted)))
        .workers(1)
        .disable_signals()
        .bind("127.0.0.1:0")
        .unwrap();
    let url = Arc::new(format!("http://{}/v1/messages", web.addrs()[0]));
    let running = web.run();
    let handle = running.handle();
    actix_rt::spawn(running);
    let envelopes = envelopes(&from, &to, count);
    let client = reqwest::Client::new();
    let began = Instant::now();
    stream::iter(envelopes)
        .for_each_concurrent(AT_ONCE, |envelope| {
            let (client, url) = (client.clone(), Arc::clone(&url));
            async move {
                let answer = client.post(url.as_str()).body(envelope).send().await.unwrap();
                assert!(answer.status().is_success(), "{}", answer.status());
            }
        })
        .await;
    let elapsed = began.elapsed();
    server.shutdown().await;
    handle.stop(false).await;
    elapsed
}

fn http(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("http");
    group.sample_size(10).throughput(Throughput::Elements(1));
    group.bench_function("verify_only", |bencher| {
        let (from, to) = (identity(seeded(1), "from"), identity(seeded(1), "to"));
        let envelope = envelopes(&from, &to, 1).remove(0);
        let (key, now) = (from.public_key().x_only(), Clock::system().now());
        let expected = Expected { skew: Duration::from_secs(3600), ..Expected::default() };
        bencher.iter(|| ParsedEnvelope::parse(&envelope).unwrap().verify(&key, now, &expected).unwrap());
    });
    group.bench_function("post", |bencher| {
        bencher.iter_custom(|iterations| actix_rt::System::new().block_on(post_all(iterations)));
    });
    group.finish();
}

criterion_group!(benches, http);
criterion_main!(benches);
