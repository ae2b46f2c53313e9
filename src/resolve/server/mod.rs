//! A resolver over HTTP: the HTTP(S) binding of DID Resolution, usable as a driver of the Universal Resolver.
//!
//! ```text
//!  request ─ rate, share ─▶ DID, options, Sidecar Data ─▶ tip ─▶ cache ─▶ resolution ─▶ status and form
//!            routes, shares  request                     work    cache    work           answer
//! ```
//!
//! Everything that a client can make grow is bounded: bodies, requests and resolutions at once, time, beacon addresses, results
//! in the cache. Sidecar Data of a request is used for that request only.

mod answer;
mod cache;
mod chains;
mod local;
mod measures;
mod request;
mod routes;
mod shares;
mod work;

use std::{
    convert::Infallible,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{runtime::Handle, sync::Semaphore};

use self::{
    chains::Chains,
    local::Local,
    measures::{Measures, Shown},
    routes::ResolverSite,
    shares::Shares,
    work::Problems,
};
use super::Given;
use crate::{
    actors::{
        runtime::Clock,
        transport::{
            connections::{ConnectionLimits, Connections, Proxies},
            http::{
                Cors,
                store::{MemoryRates, Rate},
            },
        },
    },
    bitcoin::chain::ChainSource,
    cas::Cas,
    error::ProgramError,
    events::Printer,
    metrics::http::{self as metrics_http, Readiness},
    protocol::network::Network,
    serve::{
        Tls,
        tls::{Loaded, reload_certificate},
        web,
    },
    telemetry::Hangups,
};

/// The interval of the checks of chains.
const PROBE: Duration = Duration::from_secs(5);

/// The time limit for the tip of a chain in such a check.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long requests that have begun may take when the program stops.
const FAREWELL: Duration = Duration::from_secs(10);

/// The limits of a resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolverLimits {
    /// The most resolutions at once; other requests wait.
    pub resolutions: u32,
    /// The most requests at once, of which a quarter for one network address; others are refused.
    pub requests: u32,
    /// The most requests with a body at once, of which a quarter for one network address.
    pub bodies: u32,
    /// The largest body, in bytes.
    pub body: usize,
    /// How long a request may take, waiting included.
    pub timeout: Duration,
    /// The most beacon addresses that are looked up for one DID.
    pub addresses: usize,
    /// The most bytes of results in the cache of each chain; 0 for no cache.
    pub cache: usize,
}

impl Default for ResolverLimits {
    fn default() -> Self {
        Self {
            resolutions: 8,
            requests: 256,
            bodies: 32,
            body: 1 << 20,
            timeout: Duration::from_secs(60),
            addresses: 100,
            cache: 64 << 20,
        }
    }
}

/// The configuration of a resolver.
pub struct ResolverConfig {
    /// The address to serve on.
    pub listen: String,
    /// Certificate and key for https; without them it serves plain HTTP.
    pub tls: Option<Tls>,
    /// The address of the metrics and health server, if any. Not to be exposed to the public.
    pub metrics_listen: Option<String>,
    /// The chains, one of each network.
    pub chains: Vec<ChainSource>,
    /// Content stores.
    pub stores: Vec<Arc<dyn Cas>>,
    /// Sidecar Data of the operator.
    pub given: Given,
    /// State directories of members.
    pub states: Vec<PathBuf>,
    /// The limits.
    pub limits: ResolverLimits,
    /// The rate of requests of one address; for IPv6 a /64, and its /48 has four times the rate.
    pub rate: Rate,
    /// The proxies that report the addresses of clients.
    pub proxies: Proxies,
    /// The web pages that may use the resolver.
    pub cors: Cors,
    /// The limits on sockets.
    pub connections: ConnectionLimits,
    /// Whether to print JSON.
    pub json: bool,
}

/// What all requests share.
struct Shared {
    chains: Chains,
    local: Local,
    limits: ResolverLimits,
    resolutions: Arc<Semaphore>,
    requests: Shares,
    bodies: Shares,
    rate: Rate,
    rates: MemoryRates,
    proxies: Proxies,
    cors: Cors,
    connections: Connections,
    measures: Measures,
    problems: Problems,
    readiness: Readiness,
    clock: Clock,
    runtime: Handle,
    stopping: AtomicBool,
}

impl Shared {
    fn new(config: ResolverConfig, readiness: Readiness) -> Self {
        let ResolverConfig { chains, stores, given, states, limits, rate, proxies, cors, connections, .. } = config;
        let resolutions = usize::try_from(limits.resolutions).unwrap_or(1);
        Self {
            chains: Chains::new(chains, stores, limits.addresses, limits.cache),
            local: Local::new(given, states),
            limits,
            resolutions: Arc::new(Semaphore::new(resolutions.clamp(1, Semaphore::MAX_PERMITS))),
            requests: Shares::new(limits.requests),
            bodies: Shares::new(limits.bodies),
            rate,
            rates: MemoryRates::default(),
            proxies,
            cors,
            connections: Connections::new(connections),
            measures: Measures::new(),
            problems: Problems::default(),
            readiness,
            clock: Clock::system(),
            runtime: Handle::current(),
            stopping: AtomicBool::new(false),
        }
    }

    /// Connects chains that are not connected, and checks the others. Repeats without end.
    async fn watch(&self) -> Infallible {
        loop {
            tokio::time::sleep(PROBE).await;
            let unconnected = self.chains.connect().await;
            let mut problems: Vec<_> = unconnected.iter().map(|(name, error)| format!("{name}: {error}")).collect();
            for chain in self.chains.connected() {
                match tokio::time::timeout(PATIENCE, chain.sources.chain.tip()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => problems.push(format!("{}: {error}", chain.network)),
                    Err(_) => problems.push(format!("{}: no answer within {PATIENCE:?}", chain.network)),
                }
            }
            self.report(problems);
        }
    }

    fn report(&self, problems: Vec<String>) {
        self.readiness.report("chain", (!problems.is_empty()).then(|| problems.join("; ")));
    }
}

/// Serves until `stop` is ready.
///
/// # Errors
/// [`ProgramError`] when it cannot start.
pub async fn run(config: ResolverConfig, stop: impl Future<Output = ()>) -> Result<(), ProgramError> {
    let hangups = Hangups::new();
    let printer = Printer::new(config.json);
    let readiness = Readiness::default();
    let (listen, metrics_listen) = (config.listen.clone(), config.metrics_listen.clone());
    let tls = config.tls.as_ref().map(Loaded::new).transpose()?;
    let shared = Arc::new(Shared::new(config, readiness.clone()));
    let metrics_server = match &metrics_listen {
        Some(address) => {
            let (serving, url) = metrics_http::serve(address, Shown(Arc::clone(&shared)), readiness.clone())?;
            printer.metrics(&url);
            Some(serving)
        }
        None => None,
    };
    let unconnected = shared.chains.connect().await;
    for (name, error) in &unconnected {
        if !error.is_transient() {
            return Err(ProgramError::Usage(format!("--chain {name}: {error}")));
        }
        printer.warn(&format!("--chain {name}: {error}; this is tried again until it succeeds"));
    }
    shared.report(unconnected.into_iter().map(|(name, error)| format!("{name}: {error}")).collect());
    let (address, open) = web::bind(tls.as_ref(), &listen, &ResolverSite(Arc::clone(&shared)))?;
    let running = open();
    readiness.set(true);
    let networks: Vec<Network> = shared.chains.connected().map(|chain| chain.network).collect();
    let scheme = if tls.is_some() { "https" } else { "http" };
    printer.resolving(&format!("{scheme}://{address}"), &networks);
    tokio::select! {
        () = stop => {}
        never = shared.watch() => match never {},
        never = reload(tls, hangups, &printer) => match never {},
    }
    readiness.set(false);
    shared.stopping.store(true, Ordering::Relaxed);
    shared.requests.idle(FAREWELL).await;
    running.stop().await;
    if let Some(server) = metrics_server {
        server.stop().await;
    }
    Ok(())
}

/// Reloads the certificate on each SIGHUP, for as long as the program runs.
async fn reload(tls: Option<Loaded>, mut hangups: Hangups, printer: &Printer) -> Infallible {
    loop {
        hangups.next().await;
        match &tls {
            Some(loaded) => reload_certificate(loaded.clone(), printer).await,
            None => printer.nothing_reloaded(
                "there is no TLS certificate (--tls-cert); state directories are read again at each block, other files once",
            ),
        }
    }
}
