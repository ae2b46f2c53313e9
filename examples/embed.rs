//! An Aggregation Service inside of another web service: its scope beside the host's routes, the host's policy, and the
//! events of its cohorts in the host's log. It stops without breaking a round.
//!
//! `cargo run --release --example embed` runs one cohort of two members over HTTP and stops. With `-- --tokio` the host
//! runs tokio's runtime with many threads, and the actors a thread of their own.

#[path = "support/mod.rs"]
mod support;

use std::{sync::Arc, time::Duration};

use actix_web::{App, HttpServer as WebServer, dev::ServerHandle, web};
use async_trait::async_trait;
use btcr2_aggregation::{
    actors::{
        events::Event,
        handle::{ActorThread, Service},
        notice::ServiceNotice,
        policy::{CohortView, FundedTransaction, PolicyError, ServicePolicy, TransactionRequest},
        runtime::{Clock, Randomness},
        service::OpenCohort,
        transport::http::{self, HttpConfig, HttpServer, server::HttpServerParts},
    },
    bitcoin::offline::OfflineOperator,
    protocol::{beacon::BeaconType, cohort::Member, network::Network},
};
use support::{NETWORK, Outcome, conditions, identity, join_over_http};

/// The host's policy: customers only.
struct CustomersOnly;

#[async_trait]
impl ServicePolicy for CustomersOnly {
    async fn admit(&self, _: &CohortView, candidate: &Member) -> Result<(), String> {
        if candidate.did.network() == Network::Regtest { Ok(()) } else { Err("customers only".to_owned()) }
    }

    async fn beacon_transaction(&self, request: &TransactionRequest) -> Result<FundedTransaction, PolicyError> {
        // A host with a wallet gets the transaction from it here; "not yet" is `Retry`. See examples/regtest.rs.
        OfflineOperator.beacon_transaction(request).await
    }
}

/// The host's own route, which queries the service.
async fn status(service: web::Data<Service>) -> String {
    format!("{:?}", service.cohorts().await)
}

/// Starts the service on this thread, and the host's web server with the service's scope.
async fn start() -> Outcome<(Service, HttpServer, ServerHandle, String)> {
    let http = HttpServer::start(HttpServerParts::new(HttpConfig::default(), Clock::system()));
    let me = identity(Randomness::System, "service");
    let terms = OpenCohort::new(conditions(BeaconType::cas(), 2, me.public_key().x_only())?, NETWORK);
    let service = Service::builder(me, Arc::new(http.clone()), Arc::new(CustomersOnly)).start().await?;
    service.open(terms).await?;
    let (mounted, shared) = (http.clone(), web::Data::new(service.clone()));
    let app = move || {
        let app = App::new().app_data(shared.clone()).route("/status", web::get().to(status));
        app.configure(http::configure(&mounted))
    };
    let server = WebServer::new(app).workers(1).disable_signals().bind("127.0.0.1:0")?;
    let url = format!("http://{}", server.addrs()[0]);
    let running = server.run();
    let web = running.handle();
    actix_rt::spawn(running);
    Ok((service, http, web, url))
}

/// Logs the events, and acknowledges what was logged, until a cohort has ended.
async fn log(service: &Service) -> Outcome<()> {
    let mut events = service.events();
    while let Some((cursor, event)) = events.next().await {
        let Event::Notice(notice) = event else { continue };
        println!("{}", serde_json::to_string(&*notice)?);
        events.ack(&cursor).await?;
        if matches!(*notice, ServiceNotice::SigningComplete { .. } | ServiceNotice::CohortFailed { .. }) {
            break;
        }
    }
    Ok(())
}

/// The main function of the host. The actors run on `thread`; handles are used from anywhere.
async fn host(thread: ActorThread) -> Outcome<()> {
    let (service, http, web, url) = thread.run(start).await??;
    let did = service.did().clone();
    thread.run(|| join_over_http(url, did, &["alice", "bob"])).await??;
    tokio::select! {
        logged = log(&service) => logged?,
        _ = tokio::signal::ctrl_c() => {}
    }
    // The members are notified, then the streams end, then the connections.
    for cohort in service.cohorts().await {
        cohort.cancel("the host stops").await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    service.stop().await;
    http.shutdown().await;
    web.stop(true).await;
    Ok(thread.stop()?)
}

fn main() -> Outcome<()> {
    if std::env::args().any(|argument| argument == "--tokio") {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        return runtime.block_on(async { host(ActorThread::start().await?).await });
    }
    actix_rt::System::new().block_on(async { host(ActorThread::current()?).await })
}
