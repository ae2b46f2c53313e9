//! An Aggregation Service inside of another web service: its scope beside the host's routes, the host's policy, and the
//! notices of its cohorts in the host's log. It stops without breaking a round.
//!
//! `cargo run --release --example embed` runs one cohort of two members over HTTP and stops; with `-- --wait` it serves until
//! Ctrl-C; with `-- --tokio` the host runs tokio's runtime with many threads, and the actors a thread of their own.

#[path = "support/mod.rs"]
mod support;

use std::{error::Error, sync::Arc, time::Duration};

use actix::{Actor, Addr};
use actix_web::{
    App, HttpResponse, HttpServer as WebServer,
    dev::ServerHandle,
    web::{self, Data},
};
use async_trait::async_trait;
use btcr2_aggregation::{
    actors::{
        notice::ServiceNotice,
        participant::ParticipantSettings,
        policy::{CohortView, FundedTransaction, PolicyError, ServicePolicy, TransactionRequest},
        runtime::{Clock, Randomness},
        service::{AggregationService, CancelCohort, LiveCohorts, OpenCohort, ServiceSettings},
        supervisor::{StartParticipant, StartService, Supervisor},
        transport::http::{self, HttpClient, HttpConfig, HttpServer, server::HttpServerParts},
    },
    bitcoin::offline::OfflineOperator,
    metrics::{
        Metrics,
        http::{self as metrics_http, Readiness},
    },
    protocol::{beacon::BeaconType, cohort::Member, did::Did, network::Network},
};
use support::{Joiner, NETWORK, Outcome, conditions, identity};
use tokio::sync::{
    broadcast::{Receiver, error::RecvError},
    oneshot,
};

/// The host's policy: customers only.
struct CustomersOnly;

#[async_trait]
impl ServicePolicy for CustomersOnly {
    async fn admit(&self, _: &CohortView, candidate: &Member) -> Result<(), String> {
        let is_customer = candidate.did.network() == Network::Regtest;
        if is_customer { Ok(()) } else { Err("customers only".to_owned()) }
    }

    async fn beacon_transaction(&self, request: &TransactionRequest) -> Result<FundedTransaction, PolicyError> {
        // A host with a wallet gets the transaction from it here; "not yet" is `Retry`.
        OfflineOperator.beacon_transaction(request).await
    }
}

/// The notices of the service.
type Steps = Receiver<Arc<ServiceNotice>>;

/// A service and its routes. All of it can be used from any thread.
struct Aggregation {
    service: Addr<AggregationService>,
    did: Did,
    supervisor: Addr<Supervisor>,
    http: HttpServer,
    readiness: Readiness,
    web: ServerHandle,
    url: String,
}

/// Starts the actors on the calling thread, and the host's web server.
async fn start() -> Outcome<(Aggregation, Steps)> {
    let clock = Clock::system();
    let http = HttpServer::start(HttpServerParts::new(HttpConfig::default(), clock));
    let me = identity(Randomness::System, "service");
    let settings = ServiceSettings::new(me.clone(), Arc::new(http.clone()), Arc::new(CustomersOnly));
    let (steps, did) = (settings.notices.subscribe(), me.did().clone());
    let (metrics, readiness) = (Metrics::new(clock), Readiness::default());
    metrics.sources().load(settings.load.clone());
    metrics.sources().http(http.clone());
    actix_rt::spawn(metrics.clone().follow(settings.notices.subscribe()));
    let supervisor = Supervisor::default().start();
    let service = supervisor.send(StartService(settings)).await?;

    // Answered when the cohorts of the previous run are restored, if there is a journal with any.
    service.send(LiveCohorts).await?;
    readiness.set(true);
    let (mounted, shared, ready) = (http.clone(), Data::new(service.clone()), readiness.clone());
    let app = move || {
        let app = App::new().app_data(shared.clone()).route("/status", web::get().to(status));
        // A path that the host's proxy does not expose.
        let internal = web::scope("/internal").configure(metrics_http::configure(metrics.clone(), ready.clone()));
        app.service(internal).configure(http::configure(&mounted))
    };
    let server = WebServer::new(app).workers(1).disable_signals().bind("127.0.0.1:0")?;
    let url = format!("http://{}", server.addrs()[0]);
    let running = server.run();
    let web = running.handle();
    actix_rt::spawn(running);

    let open = OpenCohort::new(conditions(BeaconType::cas(), 2, me.public_key().x_only())?, NETWORK);
    service.send(open).await??;
    println!("the host's own route   {url}/status");
    println!("the aggregation scope  {url}/v1");
    println!("metrics and health     {url}/internal/metrics");
    println!("the service            {did}");
    Ok((Aggregation { service, did, supervisor, http, readiness, web, url }, steps))
}

/// The host's own route, which queries the service.
async fn status(service: Data<Addr<AggregationService>>) -> HttpResponse {
    match service.send(LiveCohorts).await {
        Ok(cohorts) => HttpResponse::Ok().json(cohorts),
        Err(_) => HttpResponse::ServiceUnavailable().finish(),
    }
}

/// Two customers, on other machines in practice.
async fn customers(aggregation: &Aggregation) -> Outcome<()> {
    for name in ["alice", "bob"] {
        let me = identity(Randomness::System, name);
        let service = aggregation.did.clone();
        let client = HttpClient::new(&aggregation.url, Some(service), Clock::system(), Randomness::System)?;
        let policy = Joiner { identity: me.clone(), randomness: Randomness::System };
        let settings = ParticipantSettings::new(me, Arc::new(client), Arc::new(policy));
        aggregation.supervisor.send(StartParticipant(settings)).await?;
    }
    Ok(())
}

/// Writes the notices to the host's log until a cohort has ended, or without end.
async fn log(mut steps: Steps, wait: bool) {
    loop {
        match steps.recv().await {
            Ok(step) => {
                let ended =
                    matches!(*step, ServiceNotice::SigningComplete { .. } | ServiceNotice::CohortFailed { .. });
                println!("{}", serde_json::to_string(&*step).unwrap_or_default());
                if ended && !wait {
                    return;
                }
            }
            // The log is slow; no other task waits for it.
            Err(RecvError::Lagged(missed)) => println!("{missed} steps were not logged"),
            Err(RecvError::Closed) => return,
        }
    }
}

/// Sends the reason to the members, and gives the last messages time to leave; then ends the streams, then the
/// connections.
async fn stop(aggregation: Aggregation) -> Outcome<()> {
    let Aggregation { service, http, readiness, web, .. } = aggregation;
    readiness.set(false);
    for cohort_id in service.send(LiveCohorts).await? {
        service.send(CancelCohort { cohort_id, reason: "the host stops".to_owned() }).await?;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    http.shutdown().await;
    web.stop(true).await;
    println!("stopped: members were notified, and every stream and connection has ended");
    Ok(())
}

/// The main function of the host: it is the same wherever the actors run.
async fn host((aggregation, steps): (Aggregation, Steps), wait: bool) -> Outcome<()> {
    customers(&aggregation).await?;
    let log = tokio::spawn(log(steps, wait));
    tokio::select! {
        logged = log => logged?,
        _ = tokio::signal::ctrl_c() => {}
    }
    stop(aggregation).await
}

/// A host on actix: one thread for everything.
fn host_on_actix(wait: bool) -> Outcome<()> {
    actix_rt::System::new().block_on(async { host(start().await?, wait).await })
}

/// A host on a runtime with many threads. Actors live on the thread of their `System`; an address is used from anywhere.
fn host_on_tokio(wait: bool) -> Outcome<()> {
    let (started, aggregation) = oneshot::channel();
    let actors = std::thread::spawn(move || {
        let runner = actix_rt::System::new();
        let outcome = runner.block_on(async { start().await.map_err(|error| error.to_string()) });
        // Fails only when the host is gone.
        let _ = started.send((actix_rt::System::current(), outcome));
        runner.run()
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (system, outcome) = runtime.block_on(aggregation)?;
    let outcome = match outcome {
        Ok(aggregation) => runtime.block_on(host(aggregation, wait)),
        Err(error) => Err(error.into()),
    };
    system.stop();
    actors.join().map_err(|_| "the actors' thread panicked")??;
    outcome
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if has("--tokio") { host_on_tokio(has("--wait")) } else { host_on_actix(has("--wait")) }
}
