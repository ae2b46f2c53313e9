//! The cost of a cohort for its service alone: every envelope in and out over the HTTP routes, without sockets, in
//! lock-step with members whose own work is not counted.
//!
//! First every member opens its inbox. In each step, the messages of all members are written and signed beforehand. The
//! clock runs from the first request until every member's stream has the resulting events: routes, signature checks,
//! journal, aggregation, signing, events. `floor` is the part of it that is curve work, which no service can avoid.
//!
//! `cargo run --release --example coordinator -- --sizes 100,1000`

#[path = "support/mod.rs"]
mod support;

use std::{
    cell::RefCell,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix_web::{
    App,
    body::{BoxBody, MessageBody},
    dev::{Service, ServiceResponse},
    http::header::AUTHORIZATION,
    test::{self, TestRequest},
    web::Bytes,
};
use async_trait::async_trait;
use btcr2_aggregation::{
    actors::{
        handle,
        notice::{Notices, ServiceNotice},
        runtime::Clock,
        service::OpenCohort,
        supervision::End,
        transport::{
            ConnectError, Connection, Delivery, Inbox, Outbound, Transport, Unsent,
            http::{self, HttpConfig, HttpServer, server::HttpServerParts, store::Rate},
        },
    },
    bitcoin::offline::OfflineOperator,
    protocol::{
        beacon::BeaconType,
        envelope::{ParsedEnvelope, SealedEnvelope},
        identity::Identity,
        message::Message,
        output::MemoizedAggregator,
        request_auth::{RequestAuthorization, inbox_path},
    },
};
use clap::Parser;
use futures::{StreamExt, stream};
use rand_chacha::ChaCha20Rng;
use support::{Joiner, NETWORK, Outcome, conditions, floor::coordinator_floor, identity, memory, seeded};
use tokio::sync::{broadcast::Receiver, mpsc};

/// Measures the cost of cohorts for their service.
#[derive(Parser)]
struct Args {
    /// How many members
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000])]
    sizes: Vec<usize>,
    /// Announce a CAS map instead of a sparse Merkle tree
    #[arg(long)]
    cas: bool,
    /// Print the cost of each step
    #[arg(long)]
    steps: bool,
}

/// How many requests run concurrently.
const AT_ONCE: usize = 32;

/// A step: the messages of the members, and the number of events that each member receives for it.
const STEPS: [(&str, usize); 5] = [
    ("opt-ins", 2),
    ("updates", 1),
    ("verdicts", 1),
    ("nonces", 1),
    // The result of these is in the service's notices.
    ("partial signatures", 0),
];

/// The members' end of the wire: seals and queues their messages, and delivers the messages to them.
struct Desk {
    clock: Clock,
    queue: mpsc::UnboundedSender<String>,
    inboxes: Mutex<Vec<Inbox>>,
}

#[async_trait]
impl Transport for Desk {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner).push(inbox);
        let rng = Mutex::new(seeded(1).for_actor(identity.did().as_str()));
        Ok(Box::new(Pen { identity: identity.clone(), clock: self.clock, queue: self.queue.clone(), rng }))
    }
}

struct Pen {
    identity: Identity,
    clock: Clock,
    queue: mpsc::UnboundedSender<String>,
    rng: Mutex<ChaCha20Rng>,
}

#[async_trait]
impl Connection for Pen {
    fn try_send(&self, outbound: Outbound) -> Result<(), Unsent> {
        let Outbound::Direct { to, body, .. } = outbound else { return Ok(()) };
        let message = Message::new(self.identity.did().clone(), Some(to), body);
        let key = self.identity.secret_key();
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(envelope) = SealedEnvelope::seal_with_rng(&message, key, self.clock.now(), &mut *rng) {
            // No receiver is left when the measurement is over.
            let _ = self.queue.send(envelope.to_json());
        }
        Ok(())
    }

    async fn ended(&self) -> End {
        std::future::pending().await
    }
}

/// The received pieces of a stream, up to the end of an event.
type Event = Vec<Bytes>;

/// The events of a stream, each as the received pieces. Heartbeats are omitted.
fn events(body: BoxBody) -> impl stream::Stream<Item = Event> {
    let mut body = Box::pin(body);
    let pieces =
        stream::poll_fn(move |cx| Pin::as_mut(&mut body).poll_next(cx)).filter_map(async |piece| piece.ok());
    stream::unfold(Box::pin(pieces), async |mut pieces| {
        let mut event = Event::new();
        while let Some(piece) = pieces.next().await {
            let ends = piece.ends_with(b"\n\n");
            // A piece from the middle of an event may start with a colon too.
            if !event.is_empty() || !piece.starts_with(b":") {
                event.push(piece);
                if ends {
                    return Some((event, pieces));
                }
            }
        }
        None
    })
}

fn message(event: &Event) -> Outcome<Message> {
    let text = String::from_utf8(event.concat())?;
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).ok_or("an event without data")?;
    Ok(ParsedEnvelope::parse(data)?.message()?)
}

struct Row {
    steps: Vec<(&'static str, Duration)>,
    floor: Duration,
}

impl Row {
    fn total(&self) -> Duration {
        self.steps.iter().map(|(_, time)| *time).sum()
    }
}

async fn measure(members: usize, beacon: BeaconType) -> Outcome<Row> {
    let clock = Clock::system();
    let randomness = seeded(members as u64);
    let unlimited = Rate { per_second: 1_000_000, burst: 1_000_000 };
    let config = HttpConfig { did_rate: unlimited, address_rate: unlimited, ..HttpConfig::default() };
    let server = HttpServer::start(HttpServerParts::new(config, clock));
    let app = test::init_service(App::new().configure(http::configure(&server))).await;

    let (queue, mut written) = mpsc::unbounded_channel();
    let desk = Arc::new(Desk { clock, queue, inboxes: Mutex::default() });
    let identities: Vec<_> = (0..members).map(|number| identity(randomness, &format!("member {number}"))).collect();
    let aggregator = Arc::new(MemoizedAggregator::default());
    for me in &identities {
        let policy = Joiner { identity: me.clone(), randomness };
        let member = handle::Participant::builder(me.clone(), desk.clone(), Arc::new(policy));
        member.aggregator(aggregator.clone()).randomness(randomness).start().await?;
    }
    let me = identity(randomness, "service");
    let all = Notices::new(1 << 17);
    let mut notices = all.subscribe();
    let service = handle::Service::builder(me.clone(), Arc::new(server.clone()), Arc::new(OfflineOperator));
    // The service has its own cache: it must not profit from the members' computations.
    let service = service.aggregator(Arc::new(MemoizedAggregator::default())).notices(all).start().await?;

    let mut rng = seeded(2).for_actor("inboxes");
    let mut streams = stream::SelectAll::new();
    let mut requests = Vec::new();
    for member in &identities {
        let path = inbox_path("", member.did());
        let auth = RequestAuthorization::sign(member.did(), member.secret_key(), &path, clock.now(), &mut rng);
        requests.push(TestRequest::get().uri(&path).insert_header((AUTHORIZATION, auth.to_string())).to_request());
    }
    let began = memory::processor_time();
    for (number, request) in requests.into_iter().enumerate() {
        let body = granted(app.call(request).await)?;
        streams.push(Box::pin(events(body).map(move |event| (number, event))));
    }
    let mut steps = vec![("inboxes", memory::processor_time() - began)];
    let request = TestRequest::get().uri("/v1/adverts").to_request();
    let mut adverts = Box::pin(events(granted(app.call(request).await)?));
    let conditions = conditions(beacon.clone(), u32::try_from(members)?, me.public_key().x_only())?;
    service.open(OpenCohort::new(conditions, NETWORK)).await?;
    let advert = adverts.next().await.ok_or("no advert")?;
    let mut received: Vec<(usize, Event)> = (0..members).map(|number| (number, advert.clone())).collect();

    for (name, follow) in STEPS {
        for (number, event) in received.drain(..) {
            let to = desk.inboxes.lock().unwrap_or_else(PoisonError::into_inner)[number].clone();
            to.deliver(Delivery::Message(message(&event)?.into())).await?;
        }
        let mut envelopes = Vec::new();
        while envelopes.len() < members {
            envelopes.push(written.recv().await.ok_or("the members are gone")?);
        }

        let began = memory::processor_time();
        let refused = RefCell::new(None);
        let posting = stream::iter(envelopes).for_each_concurrent(AT_ONCE, async |envelope| {
            let request = TestRequest::post().uri("/v1/messages").set_payload(envelope).to_request();
            if let Err(error) = granted(app.call(request).await) {
                *refused.borrow_mut() = Some(error);
            }
        });
        let following = async {
            while received.len() < members * follow {
                received.extend(streams.next().await);
            }
            if follow == 0 {
                signed(&mut notices).await?;
            }
            Outcome::Ok(())
        };
        futures::join!(posting, following).1?;
        if let Some(refused) = refused.into_inner() {
            return Err(format!("{name}: {refused}").into());
        }
        steps.push((name, memory::processor_time() - began));
    }
    server.shutdown().await;

    let floor = coordinator_floor(&identities, &beacon, |work| {
        let began = memory::processor_time();
        work()?;
        Ok(memory::processor_time() - began)
    })?;
    Ok(Row { steps, floor })
}

/// Waits for the end of the cohort.
async fn signed(notices: &mut Receiver<Arc<ServiceNotice>>) -> Outcome<()> {
    loop {
        match &*notices.recv().await? {
            ServiceNotice::SigningComplete { .. } => return Ok(()),
            ServiceNotice::CohortFailed { reason, .. } => return Err(reason.clone().into()),
            _ => {}
        }
    }
}

/// The body of an answer, if the request succeeded.
fn granted(answer: Result<ServiceResponse, actix_web::Error>) -> Outcome<BoxBody> {
    let answer = answer.map_err(|error| error.to_string())?;
    if answer.status().is_success() { Ok(answer.into_body()) } else { Err(answer.status().to_string().into()) }
}

fn main() -> Outcome<()> {
    let args = Args::parse();
    println!("| n | service | floor | ratio | for each member |");
    println!("|--:|--:|--:|--:|--:|");
    for &members in &args.sizes {
        let beacon = if args.cas { BeaconType::cas() } else { BeaconType::smt() };
        let row = actix_rt::System::new().block_on(measure(members, beacon))?;
        let (service, floor) = (row.total().as_secs_f64(), row.floor.as_secs_f64());
        println!(
            "| {members} | {:.1} ms | {:.1} ms | {:.2} | {:.1} µs |",
            service * 1e3,
            floor * 1e3,
            service / floor,
            service * 1e6 / members as f64,
        );
        if args.steps {
            for (name, time) in row.steps {
                println!("|  | {name}: {:.1} ms | | | |", time.as_secs_f64() * 1e3);
            }
        }
    }
    Ok(())
}
