//! HTTP over loopback: the rate of signed envelopes that a server accepts, compared with the rate at which one core only
//! verifies them; and one message to each of a thousand members who read their inboxes.
//!
//! Client and server share the machine, so elapsed time shows little about either. The server is a separate process, and its
//! processor time, as the operating system reports it, is printed at the end of each group.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

mod server;
#[path = "../../examples/support/mod.rs"]
mod support;

use std::{
    cell::LazyCell,
    num::NonZero,
    sync::Arc,
    time::{Duration, Instant},
};

use btcr2_aggregation::{
    actors::runtime::{Clock, Randomness},
    protocol::{
        beacon::BeaconType,
        envelope::{Expected, ParsedEnvelope, SealedEnvelope},
        identity::Identity,
        message::{
            Message, SharedBody,
            update::{SubmitNonIncluded, SubmitUpdate},
        },
        request_auth::{RequestAuthorization, inbox_path},
        update::{add_beacon_service_patch, build_update, sign_update},
    },
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use futures::{StreamExt, stream};
use server::{MEMBERS, Server, cohort_id, members, service};
use support::memory;
use tokio::{runtime::Runtime, sync::mpsc};

/// How many requests are in flight at once.
const AT_ONCE: usize = 128;

/// The smallest message of a member, and the usual one.
fn bodies(member: &Identity) -> [(&'static str, SharedBody); 2] {
    let (did, cohort_id) = (member.did(), cohort_id());
    let address = "bcrt1pwg6nyy402z0ysd36k7s6uf4zrfxwfk5uatfunud5zg6r7trgpt7s8wlefg";
    let patch = add_beacon_service_patch(did, BeaconType::cas().as_str(), address);
    let update = build_update(&member.initial_document().unwrap(), 1, patch).unwrap();
    let mut rng = Randomness::System.for_actor("update");
    let update = sign_update(&update, did, member.verification_method(), member.secret_key(), &mut rng).unwrap();
    let signed_update = Arc::new(update.value().clone());
    [
        ("non_included", SubmitNonIncluded { cohort_id: cohort_id.clone() }.into()),
        ("update", SubmitUpdate { cohort_id, signed_update }.into()),
    ]
}

/// So many envelopes with this body, by one member after the other.
fn envelopes(members: &[Identity], body: &SharedBody, count: u64) -> Vec<String> {
    let to = service();
    // Not seeded: nonces that repeat are refused.
    let mut rng = Randomness::System.for_actor("envelopes");
    let now = Clock::system().now();
    let seal = |member: &Identity| {
        let message = Message::new(member.did().clone(), Some(to.did().clone()), body.clone());
        SealedEnvelope::seal_with_rng(&message, member.secret_key(), now, &mut rng).unwrap().to_json()
    };
    members.iter().cycle().take(usize::try_from(count).unwrap()).map(seal).collect()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// How often an operation ran, and its processor time.
#[derive(Default)]
struct Account {
    done: u64,
    processor: Duration,
}

impl Account {
    fn per_second(&self) -> f64 {
        self.done as f64 / self.processor.as_secs_f64().max(0.01)
    }
}

fn posts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("http");
    group.sample_size(10).throughput(Throughput::Elements(1));
    let members = members();
    for (name, body) in bodies(&members[0]) {
        let (mut verified, mut posted) = (Account::default(), Account::default());
        group.bench_function(BenchmarkId::new("verify_only", name), |bencher| {
            let envelope = envelopes(&members, &body, 1).remove(0);
            let (key, now) = (members[0].public_key().x_only(), Clock::system().now());
            let expected = Expected { skew: Duration::from_secs(3600), ..Expected::default() };
            bencher.iter_custom(|iterations| {
                let (began, before) = (Instant::now(), memory::processor_time());
                let verify = || {
                    for _ in 0..iterations {
                        ParsedEnvelope::parse(&envelope).unwrap().verify(&key, now, &expected).unwrap();
                    }
                };
                // All processors are busy while the server is measured, and those that share a core slow each other down.
                let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
                std::thread::scope(|scope| (0..processors).for_each(|_| drop(scope.spawn(verify))));
                verified.done += iterations * processors as u64;
                verified.processor += memory::processor_time() - before;
                began.elapsed()
            });
        });
        // Criterion calls this for every sample.
        let started = LazyCell::new(|| {
            (
                Server::start(),
                runtime(),
                btcr2_aggregation::actors::transport::tls::Trust::system().http_client().unwrap().build().unwrap(),
            )
        });
        group.bench_function(BenchmarkId::new("post", name), |bencher| {
            let (server, runtime, client) = &*started;
            let url = format!("{}/v1/messages", server.url);
            bencher.iter_custom(|iterations| {
                let envelopes = envelopes(&members, &body, iterations);
                let (began, before) = (Instant::now(), server.processor_time());
                runtime.block_on(post_all(client, &url, envelopes));
                posted.done += iterations;
                posted.processor += server.processor_time() - before;
                began.elapsed()
            });
        });
        if posted.done > 0 && verified.done > 0 {
            let (posts, verifies) = (posted.per_second(), verified.per_second());
            println!(
                "{name}, {} bytes: {posts:.0} POSTs a second of the server's processor time, {verifies:.0} envelopes only verified a \
                 second of a processor: ratio {:.2}\n",
                envelopes(&members, &body, 1)[0].len(),
                posts / verifies,
            );
        }
    }
    group.finish();
}

async fn post_all(client: &reqwest::Client, url: &str, envelopes: Vec<String>) {
    let posts = stream::iter(envelopes).for_each_concurrent(AT_ONCE, |envelope| async move {
        let answer = client.post(url).body(envelope).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.status());
    });
    posts.await;
}

/// Opens the inbox of `member`, and reports each event in it.
async fn listen(client: &reqwest::Client, url: &str, member: &Identity, events: mpsc::UnboundedSender<()>) {
    let mut rng = Randomness::System.for_actor("inbox");
    let path = inbox_path("", member.did());
    let now = Clock::system().now();
    let authorization = RequestAuthorization::sign(member.did(), member.secret_key(), &path, now, &mut rng);
    let request = client.get(format!("{url}{path}")).header("authorization", authorization.to_string());
    let answer = request.send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    tokio::spawn(async move {
        let mut body = answer.bytes_stream();
        let mut last = 0;
        while let Some(Ok(chunk)) = body.next().await {
            for &byte in &chunk {
                // An event ends with an empty line.
                if (last, byte) == (b'\n', b'\n') {
                    let _ = events.send(());
                }
                last = byte;
            }
        }
    });
}

/// A server, and all members that read their inboxes from it.
fn audience(members: &[Identity]) -> (Server, Runtime, mpsc::UnboundedReceiver<()>) {
    let (server, runtime) = (Server::start(), runtime());
    let (report, events) = mpsc::unbounded_channel();
    runtime.block_on(async {
        let client =
            btcr2_aggregation::actors::transport::tls::Trust::system().http_client().unwrap().build().unwrap();
        for member in members {
            listen(&client, &server.url, member, report.clone()).await;
        }
    });
    (server, runtime, events)
}

fn fan_out(criterion: &mut Criterion) {
    let _ = rlimit::increase_nofile_limit(8192);
    let mut group = criterion.benchmark_group("http");
    group.sample_size(10).throughput(Throughput::Elements(MEMBERS as u64));
    let members = members();
    for (name, keys) in [("opt_in_accept", 0), ("cohort_ready", MEMBERS)] {
        let mut bursts = Account::default();
        let mut resident = 0;
        let mut started = None;
        group.bench_function(BenchmarkId::new("sse_to_1000_inboxes", name), |bencher| {
            let (server, runtime, events) = started.get_or_insert_with(|| audience(&members));
            bencher.iter_custom(|iterations| {
                let (began, before) = (Instant::now(), server.processor_time());
                for _ in 0..iterations {
                    server.burst(keys);
                    runtime.block_on(async {
                        for _ in 0..MEMBERS {
                            events.recv().await.unwrap();
                        }
                    });
                }
                bursts.done += iterations;
                bursts.processor += server.processor_time() - before;
                resident = resident.max(server.resident());
                began.elapsed()
            });
        });
        if bursts.done > 0 {
            println!(
                "{name}: {:.1} ms of the server's processor time for each burst to {MEMBERS} inboxes, {:.0} messages a second \
                 of it; {} MB at most\n",
                bursts.processor.as_secs_f64() * 1e3 / bursts.done as f64,
                bursts.per_second() * MEMBERS as f64,
                resident >> 20,
            );
        }
    }
    group.finish();
}

criterion_group!(benches, posts, fan_out);

fn main() {
    if !server::serve() {
        benches();
        Criterion::default().configure_from_args().final_summary();
    }
}
