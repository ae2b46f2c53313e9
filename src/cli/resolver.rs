//! `resolver serve`: resolves DIDs for others over HTTP.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Subcommand};

use super::{ChainArg, Events, fail};
use crate::{
    actors::transport::{
        connections::{ConnectionLimits, Prefix, Proxies},
        http::store::Rate,
    },
    cas::{self, Location},
    config::Period,
    error::ProgramError,
    inputs,
    resolve::{
        Given,
        server::{self, ResolverConfig, ResolverLimits},
    },
    serve::{self, Tls},
};

const EXAMPLES: &str = "\
Examples:
  For DIDs of the network of your own node, with a store of announcements and updates:
    btcr2-aggregation resolver serve --chain 'core=http://127.0.0.1:8332?cookie=/home/me/.bitcoin/.cookie' --cas dir=store
  As a driver of the Universal Resolver, for two networks:
    btcr2-aggregation resolver serve --listen 0.0.0.0:8080 --chain esplora=https://esplora.example/api \\
        --chain esplora=https://mutinynet.example/api --metrics-listen 127.0.0.1:9090

Then, with Sidecar Data of the request only for the second:
    curl http://127.0.0.1:8080/1.0/identifiers/did:btcr2:k1q...?versionId=2
    jq '{sidecar: ., minConf: 1}' alice.sidecar.json | curl --data @- http://127.0.0.1:8080/1.0/identifiers/did:btcr2:k1q...

Exit status: 0 when it was stopped by a signal, 1 when it failed, 2 when it was called wrongly.";

/// The arguments of `resolver`.
#[derive(Args, Debug)]
pub(super) struct ResolverArgs {
    #[command(subcommand)]
    command: ResolverCommand,
}

#[derive(Debug, Subcommand)]
enum ResolverCommand {
    /// Serve GET and POST /1.0/identifiers/DID (W3C DID Resolution, HTTP binding), e.g. for the Universal Resolver
    ///
    /// The answer is the whole resolution result (application/did-resolution), or the document alone for a client that
    /// accepts application/did. versionId, versionTime and minConf are parameters of the query, or members of the body of a POST, which can
    /// also have Sidecar Data as its `sidecar`, used for that request only. -h shows the settings that most resolvers need, --help all of
    /// them.
    Serve(Box<ServeArgs>),
}

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
struct ServeArgs {
    /// The address to serve on; port 0 takes a free one and prints it
    #[arg(
        long,
        value_name = "ADDR",
        help_heading = "Transport",
        env = "BTCR2_RESOLVER_LISTEN",
        default_value = "127.0.0.1:8080"
    )]
    listen: String,
    /// Serve https with the certificate chain in this PEM file, the resolver's own certificate first
    ///
    /// Read again, with the key, on SIGHUP.
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Transport",
        env = "BTCR2_TLS_CERT",
        requires = "tls_key",
        hide_short_help = true
    )]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, a PEM file
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Transport",
        env = "BTCR2_TLS_KEY",
        requires = "tls_cert",
        hide_short_help = true
    )]
    tls_key: Option<PathBuf>,
    /// Web origins that may use the resolver, comma separated
    ///
    /// `*` stands for all; an empty list admits pages of the resolver's own origin only.
    #[arg(
        long,
        value_name = "ORIGINS",
        help_heading = "Transport",
        env = "BTCR2_CORS",
        default_value = "*",
        hide_short_help = true
    )]
    cors: String,
    /// Trust the client addresses that a proxy at this address or prefix forwards; may be given several times
    ///
    /// For example 127.0.0.1 or 10.0.0.0/8. Behind a proxy that is not named here, all clients share the limits of one.
    #[arg(
        long,
        value_name = "PREFIX",
        help_heading = "Transport",
        env = "BTCR2_TRUSTED_PROXY",
        value_delimiter = ',',
        hide_short_help = true
    )]
    trusted_proxy: Vec<Prefix>,
    /// Where to read a chain: core=http://user:password@host:port, core=http://host:port?cookie=PATH, or
    /// esplora=https://host/api; may be given once for each network
    ///
    /// The network is that of its first blocks. A node should have -blockfilterindex=1: otherwise each resolution reads every block.
    #[arg(long, value_name = "KIND=URL", help_heading = "Sources", env = "BTCR2_CHAIN", hide_env_values = true)]
    chain: Vec<ChainArg>,
    /// A store of announcements and updates: dir=PATH, or ipfs=URL of an IPFS node's RPC API; may be given several times
    #[arg(long = "cas", value_name = "STORE", help_heading = "Sources")]
    cas: Vec<Location>,
    /// A file of Sidecar Data, which all requests can use; may be given several times
    #[arg(long = "sidecar", value_name = "FILE", help_heading = "Sources", hide_short_help = true)]
    sidecars: Vec<PathBuf>,
    /// A member's state directory, also while `join` uses it; may be given several times
    ///
    /// Its DIDs resolve for everyone who asks. It is read again at each new block.
    #[arg(long = "state", value_name = "DIR", help_heading = "Sources", env = "BTCR2_STATE")]
    states: Vec<PathBuf>,
    /// Serve GET /metrics (Prometheus), /healthz and /readyz on this address, which should not be reachable from the internet
    #[arg(long, value_name = "ADDR", help_heading = "Output", env = "BTCR2_METRICS_LISTEN")]
    metrics_listen: Option<String>,
    /// Print one JSON object a line on standard output instead of text for people
    #[arg(long, value_enum, help_heading = "Output", env = "BTCR2_EVENTS")]
    events: Option<Events>,
    /// How long a request may take, waiting included
    #[arg(long, value_name = "TIME", help_heading = "Limits", default_value = "60s", value_parser = period)]
    timeout: Duration,
    /// Most resolutions at once; other requests wait
    #[arg(
        long, value_name = "N", help_heading = "Limits", default_value_t = ResolverLimits::default().resolutions,
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    max_resolutions: u32,
    /// Most requests at once, a quarter of them from one address; others are refused (503)
    #[arg(
        long, value_name = "N", help_heading = "Limits", default_value_t = ResolverLimits::default().requests,
        value_parser = clap::value_parser!(u32).range(1..=100_000), hide_short_help = true
    )]
    max_requests: u32,
    /// Most bytes in a request body
    #[arg(long, value_name = "BYTES", help_heading = "Limits", default_value_t = ResolverLimits::default().body, hide_short_help = true)]
    max_body: usize,
    /// Most beacon addresses that are looked up for one DID
    #[arg(
        long, value_name = "N", help_heading = "Limits", default_value_t = ResolverLimits::default().addresses, hide_short_help = true
    )]
    max_addresses: usize,
    /// Most bytes of results that are cached for each chain, until its next block; 0 caches nothing
    #[arg(long, value_name = "BYTES", help_heading = "Limits", default_value_t = ResolverLimits::default().cache, hide_short_help = true)]
    cache_bytes: usize,
    /// Requests a second from one address in the long run
    #[arg(
        long, value_name = "N", help_heading = "Limits", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..),
        hide_short_help = true
    )]
    address_rate: u32,
    /// Requests from one address at once
    #[arg(
        long, value_name = "N", help_heading = "Limits", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..),
        hide_short_help = true
    )]
    address_burst: u32,
}

fn period(text: &str) -> Result<Duration, String> {
    text.parse().map(|Period(time)| time)
}

pub(super) fn main(args: &ResolverArgs) -> ExitCode {
    let ResolverCommand::Serve(args) = &args.command;
    let outcome = config(args).and_then(|config| {
        crate::telemetry::raise_open_files();
        super::block_on(async { server::run(config, crate::telemetry::stop_signal()).await })
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn config(args: &ServeArgs) -> Result<ResolverConfig, ProgramError> {
    if args.chain.is_empty() {
        return Err(ProgramError::Usage(
            "no chain: updates are announced on Bitcoin: --chain core=URL or --chain esplora=URL".to_owned(),
        ));
    }
    let chains = args.chain.iter().map(|chain| chain.source().cloned());
    let chains =
        chains.collect::<Result<_, _>>().map_err(|error| ProgramError::Usage(format!("--chain: {error}")))?;
    let stores = args.cas.iter().map(|location| location.store(cas::DEFAULT_TIMEOUT));
    let stores = stores.collect::<Result<_, _>>().map_err(|error| ProgramError::Usage(format!("--cas {error}")))?;
    let mut given = Given::default();
    for path in &args.sidecars {
        let refuse = |problem: String| ProgramError::Usage(format!("--sidecar {problem}"));
        let value = inputs::json(path).map_err(|error| refuse(error.to_string()))?;
        let name = path.display().to_string();
        given.add(value, &name).map_err(|error| refuse(format!("{name}: {error}")))?;
    }
    let proxies =
        if args.trusted_proxy.is_empty() { Proxies::None } else { Proxies::At(args.trusted_proxy.clone()) };
    Ok(ResolverConfig {
        listen: args.listen.clone(),
        tls: args.tls_cert.clone().zip(args.tls_key.clone()).map(|(certificate, key)| Tls { certificate, key }),
        metrics_listen: args.metrics_listen.clone(),
        chains,
        stores,
        given,
        states: args.states.clone(),
        limits: ResolverLimits {
            resolutions: args.max_resolutions,
            requests: args.max_requests,
            body: args.max_body,
            timeout: args.timeout,
            addresses: args.max_addresses,
            cache: args.cache_bytes,
            ..ResolverLimits::default()
        },
        rate: Rate { per_second: args.address_rate, burst: args.address_burst },
        proxies,
        cors: serve::cors(&args.cors),
        connections: ConnectionLimits::of_files(crate::telemetry::open_files()),
        json: matches!(args.events, Some(Events::Json)),
    })
}
