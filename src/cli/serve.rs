//! `serve`: an Aggregation Service as a program.

use std::{convert::Infallible, path::PathBuf, process::ExitCode, str::FromStr, time::Duration};

use ::bitcoin::Amount;
use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::{
    ChainArg, Events, fail, identity_of,
    relay::{RelaySettings, trust},
    singleton::SatPerVb,
};
use crate::{
    actors::{
        seats::SeatLimit,
        transport::connections::{ConnectionLimits, Prefix, Proxies},
    },
    bitcoin::payout,
    cas::{self, Location},
    config::{self, Period, Span, settings},
    error::ProgramError,
    protocol::{
        cohort::service::rules::{PhaseRule, PhaseRules, RuleError, TimedPhase},
        key::XOnlyKey,
        network::Network,
    },
    serve::{self, ChainConfig, Coins, OnAlarm, ServeConfig, Tls},
};

/// How updates are aggregated.
#[derive(Clone, Copy, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Beacon {
    /// A map from each DID to the hash of its update; every member sees every DID in it
    Cas,
    /// A sparse Merkle tree; a member sees its own proof only
    Smt,
}

impl Beacon {
    pub(super) fn beacon_type(self) -> crate::protocol::beacon::BeaconType {
        match self {
            Self::Cas => crate::protocol::beacon::BeaconType::cas(),
            Self::Smt => crate::protocol::beacon::BeaconType::smt(),
        }
    }
}

/// Where coins come from, as it is asked for.
#[derive(Clone, Debug)]
enum Chain {
    Offline,
    Named(ChainArg),
}

impl FromStr for Chain {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "offline" { Self::Offline } else { Self::Named(text.parse()?) })
    }
}

impl<'de> Deserialize<'de> for Chain {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Any text will do here: an error of this place would show the file's line, and a password with it.
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Runs an Aggregation Service over HTTP, over Nostr relays, or both. Each flag can also be given as an environment variable (shown with it) or as a key
/// of the same name in the file of --config; flags come before variables, variables before the file.
#[derive(Args, Debug)]
pub(super) struct ServeArgs {
    /// A TOML file of settings
    #[arg(long, value_name = "FILE", env = "BTCR2_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: ServeSettings,
}

/// How long a cohort waits for more than its fewest members, by default: long enough for whoever watches the same advert, and
/// short beside what a round takes.
const SETTLE: Duration = Duration::from_secs(30);

/// Longer than any program runs.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

settings! {
    /// What `serve` can be told.
    struct ServeSettings {
        /// The service's identity file (a KEY DID), see `identity new`
        #[arg(long, value_name = "FILE", env = "BTCR2_IDENTITY")]
        identity: PathBuf,
        /// Take the service's secret key from this environment variable instead of a file
        #[arg(long, value_name = "VAR", env = "BTCR2_SECRET_ENV")]
        secret_env: String,
        /// A Nostr relay, wss://...; may be given several times, or as a comma separated list
        #[arg(long, value_name = "URL", value_delimiter = ',', env = "BTCR2_RELAY")]
        relay: Vec<String>,
        /// Run a relay in this process too, and serve over it; port 0 takes a free one and prints it
        #[arg(long, value_name = "ADDR", env = "BTCR2_EMBEDDED_RELAY", value_parser = crate::inputs::socket_address)]
        embedded_relay: std::net::SocketAddr,
        /// With --relay: trust wss relays only by the certificates in this PEM file, instead of the system's authorities
        #[arg(long, value_name = "FILE", env = "BTCR2_TLS_CA")]
        tls_ca: PathBuf,
        /// With --relay: read adverts that are at most this old; 0s for all that the relays keep [default: 5m]
        #[arg(long, value_name = "TIME", env = "BTCR2_LOOK_BACK")]
        look_back: Span,
        /// With --relay: how long a relay may take to connect [default: 10s]
        #[arg(long, value_name = "TIME", env = "BTCR2_RELAY_TIMEOUT")]
        relay_timeout: Period,
        /// With --relay: how long a relay may take to say what became of an event, at most 10s [default: 10s]
        #[arg(long, value_name = "TIME", env = "BTCR2_PUBLISH_TIMEOUT")]
        publish_timeout: Period,
        /// With --relay: how long to wait before a second attempt to connect or to publish; doubles from then on [default: 1s]
        #[arg(long, value_name = "TIME", env = "BTCR2_RELAY_RETRY")]
        relay_retry: Period,
        /// The address to serve HTTP on; port 0 takes a free one and prints it. With relays, HTTP is served only if this is given
        /// [default: 127.0.0.1:8080]
        #[arg(long, value_name = "ADDR", env = "BTCR2_LISTEN")]
        listen: String,
        /// The Bitcoin network [default: the identity's]
        #[arg(long, value_name = "N", env = "BTCR2_NETWORK")]
        network: Network,
        /// How updates are aggregated [default: cas]
        #[arg(long, value_enum, env = "BTCR2_BEACON")]
        beacon: Beacon,
        /// Fewest members of a cohort [default: 2]
        #[arg(long, value_name = "N", env = "BTCR2_MIN_PARTICIPANTS")]
        min_participants: u32,
        /// Most members of a cohort; reaching it forms the cohort [default: a quarter more than --min-participants, at least one
        /// more, so that the cohort can do without one; with --settle 0s: --min-participants]
        #[arg(long, value_name = "N", env = "BTCR2_MAX_PARTICIPANTS")]
        max_participants: u32,
        /// How long a cohort that has --min-participants waits for more, up to --max-participants; 0s forms it at once [default: 30s]
        #[arg(long, value_name = "TIME", env = "BTCR2_SETTLE")]
        settle: Span,
        /// How many signatures the fallback path takes [default: all members but one]
        #[arg(long, value_name = "K", env = "BTCR2_FALLBACK_THRESHOLD")]
        fallback_threshold: u16,
        /// The x-only key (64 hex characters) that can recover the coin after the timelock [default: the identity's key]
        #[arg(long, value_name = "KEY", env = "BTCR2_RECOVERY_KEY", value_parser = crate::inputs::x_only_key)]
        recovery_key: XOnlyKey,
        /// The timelock of the recovery, in blocks, 1 to 65535 [default: 4320, about 30 days]
        #[arg(long, value_name = "BLOCKS", env = "BTCR2_RECOVERY_SEQUENCE")]
        recovery_sequence: u16,
        /// How long a cohort may take from its advert to the start of signing [default: 1day]
        #[arg(long, value_name = "TIME", env = "BTCR2_COHORT_TTL")]
        cohort_ttl: Period,
        /// How long members may take in each phase before signing [default: 1h]
        #[arg(long, value_name = "TIME", env = "BTCR2_PHASE_TIMEOUT")]
        phase_timeout: Period,
        /// How long members may take for nonces, for partial signatures and for fallback signatures, each [default: 10m]
        #[arg(long, value_name = "TIME", env = "BTCR2_SIGNING_TIMEOUT")]
        signing_timeout: Period,
        /// How often an advert is repeated; 0s for once only [default: 1m]
        #[arg(long, value_name = "TIME", env = "BTCR2_ADVERT_REPEAT")]
        advert_repeat: Span,
        /// How many cohorts to run in all, with --state counted over restarts until all are done; without it, the next is advertised
        /// whenever one has formed
        #[arg(long, value_name = "N", env = "BTCR2_COHORTS")]
        cohorts: u32,
        /// How many cohorts are advertised at once [default: 1]
        #[arg(long, value_name = "M", env = "BTCR2_PARALLEL")]
        parallel: u32,
        /// Where coins come from: core=http://USER:PASSWORD@HOST:PORT or core=http://HOST:PORT?cookie=FILE, a Bitcoin Core node;
        /// esplora=URL; or `offline`, made up: for demonstrations and tests, never on bitcoin
        #[arg(long, value_name = "CHAIN", env = "BTCR2_CHAIN", hide_env_values = true)]
        chain: Chain,
        /// With a chain: how often it is asked [default: 30s]
        #[arg(long, value_name = "TIME", env = "BTCR2_CHAIN_POLL")]
        chain_poll: Period,
        /// With a chain: how long a beacon address is watched for a deposit [default: 1day]
        #[arg(long, value_name = "TIME", env = "BTCR2_FUNDING_WINDOW")]
        funding_window: Period,
        /// With a chain: how many confirmations a deposit needs before members sign [default: 1]
        #[arg(long, value_name = "N", env = "BTCR2_FUNDING_CONFIRMATIONS")]
        funding_confirmations: u32,
        /// With a chain: how many confirmations make an announcement final [default: 6]
        #[arg(long, value_name = "N", env = "BTCR2_CONFIRMATIONS")]
        confirmations: u32,
        /// With a chain: the lowest fee rate, in sat/vB, at least 1 [default: 1]
        #[arg(long, value_name = "RATE", env = "BTCR2_FEE_FLOOR")]
        fee_floor: SatPerVb,
        /// With a chain: the highest fee rate, bumps included, in sat/vB [default: 100]
        #[arg(long, value_name = "RATE", env = "BTCR2_FEE_CEILING")]
        fee_ceiling: SatPerVb,
        /// With a chain: the fee rate to begin with, in sat/vB, whatever the chain estimates; bumps go on from there
        #[arg(long, value_name = "RATE", env = "BTCR2_FEE_RATE")]
        fee_rate: SatPerVb,
        /// With a chain: in how many blocks an announcement is to be confirmed [default: 6]
        #[arg(long, value_name = "BLOCKS", env = "BTCR2_FEE_TARGET")]
        fee_target: u16,
        /// With a chain: how many blocks before a coin can be recovered to warn of it [default: 144]
        #[arg(long, value_name = "BLOCKS", env = "BTCR2_WARN_BLOCKS")]
        warn_blocks: u32,
        /// With a chain: where the change of announcements goes: an address, a descriptor of one key (wpkh(KEY), tr(KEY), addr(...)),
        /// or `beacon`, for the members' next cohort. Only from its own key can the service bump [default: the identity's key, tr(KEY)]
        #[arg(long, value_name = "ADDRESS|DESCRIPTOR|beacon", env = "BTCR2_CHANGE")]
        change: String,
        /// Publish announcement maps in this store before they are signed, dir=PATH or ipfs=URL; may be given several times
        #[arg(long, value_name = "STORE", value_delimiter = ',', env = "BTCR2_CAS")]
        cas: Vec<Location>,
        /// With --cas: sign although a store failed
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_CAS_OPTIONAL")]
        cas_optional: bool,
        /// Exit when --cohorts cohorts have ended: with 0 if all were signed, and with a chain announced, else with 1
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_EXIT_WHEN_DONE")]
        exit_when_done: bool,
        /// Print one JSON object a line on standard output instead of text for people
        #[arg(long, value_enum, env = "BTCR2_EVENTS")]
        events: Events,
        /// Begin each line for people with the time (UTC). With --events json every event has it anyway
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_TIMES")]
        times: bool,
        /// Write each cohort's transaction, announcement and proofs into this directory
        #[arg(long, value_name = "DIR", env = "BTCR2_OUT")]
        out: PathBuf,
        /// Store everything that must outlive the program in this directory: started again with it, all cohorts go on. The directory
        /// belongs to one command, DID and network
        #[arg(long, value_name = "DIR", env = "BTCR2_STATE")]
        state: PathBuf,
        /// What to do when a phase cannot be completed, PHASE=ANSWER[,extend=N][,after=TIME]; may be given several times.
        /// Phases: enrollment, updates, validation, transaction, presence, nonces, partial-signatures, fallback. Answers: fail;
        /// reform (a new cohort without those who were missing); fall-back (from presence, nonces and partial signatures);
        /// proceed (from presence). First the phase is given N times more time, TIME instead of its usual one
        /// [default: reform for updates, validation and fallback; fall-back for nonces and partial-signatures; proceed for
        /// presence; else fail]
        #[arg(long, value_name = "RULE", env = "BTCR2_ON_TIMEOUT", value_delimiter = ';', verbatim_doc_comment)]
        on_timeout: Vec<TimeoutRule>,
        /// How many times in a row a cohort is formed again [default: 3]
        #[arg(long, value_name = "N", env = "BTCR2_REFORMATIONS")]
        reformations: u32,
        /// Admit the DIDs in this file, one a line, # begins a comment. It is read again when it changes, and on SIGHUP. Without it,
        /// --invites and --admit-funded everybody is admitted
        #[arg(long, value_name = "FILE", env = "BTCR2_ALLOW_LIST")]
        allow_list: PathBuf,
        /// Admit who has an invite that was made with `invites new` for this --state; with --allow-list, those beside the listed
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_INVITES")]
        invites: bool,
        /// With a chain: admit KEY DIDs whose initial beacon addresses hold at least SAT satoshi, confirmed; with --allow-list and
        /// --invites, beside the listed and the invited
        #[arg(long, value_name = "SAT", env = "BTCR2_ADMIT_FUNDED", value_parser = clap::value_parser!(u64).range(1..))]
        admit_funded: u64,
        /// Admit only who signs with the key by which it authenticates, so that the opt-in proves possession of it. Ours do; version 1
        /// allows another key, of which nothing is proven before it signs
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_PROVEN_KEYS_ONLY")]
        proven_keys_only: bool,
        /// Most cohorts that run at once, formed or not; the next is advertised when one of them has ended [default: 256]
        #[arg(long, value_name = "N", env = "BTCR2_MAX_LIVE_COHORTS", value_parser = clap::value_parser!(u32).range(1..))]
        max_live_cohorts: u32,
        /// Most cohorts that one DID is in at a time, and with /M in how many that have not formed [default: 64/16]
        #[arg(long, value_name = "N[/M]", env = "BTCR2_DID_SEATS")]
        did_seats: SeatsArg,
        /// The same of one network address (of IPv6 its /64), over HTTP. This machine's own is not counted: behind a proxy, use
        /// --trust-forwarded [default: 1024/256]
        #[arg(long, value_name = "N[/M]", env = "BTCR2_ADDRESS_SEATS")]
        address_seats: SeatsArg,
        /// The same of all who come by one invite [default: as many as it admits]
        #[arg(long, value_name = "N[/M]", env = "BTCR2_INVITE_SEATS")]
        invite_seats: SeatsArg,
        /// For how long who opted in and then did not fetch what it was asked over HTTP is not admitted again: its DID at once, its
        /// network address and its invite when three members of them did so; 0s for never [default: 10m]
        #[arg(long, value_name = "TIME", env = "BTCR2_COOL_DOWN")]
        cool_down: Span,
        /// Ask all members for a sign of life before signing, so that a dead one is found first. Members that run another
        /// implementation do not answer
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_PRESENCE_CHECK")]
        presence_check: bool,
        /// Most bytes in a request body [default: 65536]
        #[arg(long, value_name = "BYTES", env = "BTCR2_MAX_BODY")]
        max_body: usize,
        /// Most bytes of canonical JSON in an update [default: as many as in a body, 262144 at most]
        #[arg(long, value_name = "BYTES", env = "BTCR2_MAX_UPDATE")]
        max_update: usize,
        /// Requests a second that one verified DID may make in the long run [default: 10]
        #[arg(long, value_name = "N", env = "BTCR2_DID_RATE")]
        did_rate: u32,
        /// Requests that one verified DID may make at once [default: 30]
        #[arg(long, value_name = "N", env = "BTCR2_DID_BURST")]
        did_burst: u32,
        /// Requests a second from one address in the long run, counted before any signature is checked [default: 200]
        #[arg(long, value_name = "N", env = "BTCR2_ADDRESS_RATE")]
        address_rate: u32,
        /// Requests from one address at once [default: 2000]
        #[arg(long, value_name = "N", env = "BTCR2_ADDRESS_BURST")]
        address_burst: u32,
        /// Serve GET /metrics (Prometheus), /healthz and /readyz on this address: not one that strangers reach
        #[arg(long, value_name = "ADDR", env = "BTCR2_METRICS_LISTEN")]
        metrics_listen: String,
        /// Wake somebody: run this command by the shell with the alarm as a line of JSON on its standard input, its kind in
        /// $BTCR2_ALARM and its text in $BTCR2_ALARM_TEXT; or, where this is a web address, post the alarm there. Which events are
        /// alarms: docs/operating.md
        #[arg(long, value_name = "COMMAND|URL", env = "BTCR2_ON_ALARM", hide_env_values = true)]
        on_alarm: OnAlarm,
        /// Web origins that may talk to the service, comma separated; `*` for all, empty for none but its own [default: *]
        #[arg(long, value_name = "ORIGINS", env = "BTCR2_CORS")]
        cors: String,
        /// Believe the client addresses that a proxy forwards, whoever connects: only where nothing but the proxy can. Otherwise
        /// --trusted-proxy
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_TRUST_FORWARDED")]
        trust_forwarded: bool,
        /// Believe the client addresses that a proxy at this address or prefix forwards, 127.0.0.1 or 10.0.0.0/8; may be given
        /// several times
        #[arg(long, value_name = "PREFIX", value_delimiter = ',', env = "BTCR2_TRUSTED_PROXY")]
        trusted_proxy: Vec<String>,
        /// A path prefix that a proxy strips before it passes requests on
        #[arg(long, value_name = "PATH", env = "BTCR2_STRIPPED_PREFIX")]
        stripped_prefix: String,
        /// The PEM file of the TLS certificate chain; without it, plain HTTP
        #[arg(long, value_name = "FILE", env = "BTCR2_TLS_CERT")]
        tls_cert: PathBuf,
        /// The PEM file of the TLS private key
        #[arg(long, value_name = "FILE", env = "BTCR2_TLS_KEY")]
        tls_key: PathBuf,
    }
}

/// A limit of seats: `64/16`, or `64`.
#[derive(Clone, Copy, Debug)]
struct SeatsArg(SeatLimit);

impl FromStr for SeatsArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.trim().parse() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!("{text}: a number of cohorts expected, or two: 64/16 say")),
        };
        let (cohorts, pending) = text.split_once('/').unwrap_or((text, text));
        Ok(Self(SeatLimit { cohorts: number(cohorts)?, pending: number(pending)? }))
    }
}

impl<'de> Deserialize<'de> for SeatsArg {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A rule of `--on-timeout`.
#[derive(Clone, Debug)]
struct TimeoutRule(TimedPhase, PhaseRule);

impl FromStr for TimeoutRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',').map(str::trim);
        let rule = parts.next().and_then(|rule| rule.split_once('='));
        let (phase, then) = rule.ok_or("PHASE=ANSWER expected, `updates=reform` say")?;
        let phase: TimedPhase = phase.parse().map_err(|error: RuleError| error.to_string())?;
        let then = then.parse().map_err(|error: RuleError| error.to_string())?;
        let mut rule = PhaseRule { timeout: None, extensions: 0, then };
        for part in parts {
            match part.split_once('=') {
                Some(("extend", times)) => {
                    rule.extensions = times.parse().map_err(|_| format!("extend={times}: a number expected"))?;
                }
                Some(("after", time)) => {
                    let span: Period = time.parse().map_err(|error| format!("after={time}: {error}"))?;
                    rule.timeout = Some(span.0);
                }
                _ => return Err(format!("{part}: extend=N or after=TIME expected")),
            }
        }
        PhaseRules::default().set(phase, rule).map_err(|error| error.to_string())?;
        Ok(Self(phase, rule))
    }
}

impl<'de> Deserialize<'de> for TimeoutRule {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

pub(super) fn main(args: ServeArgs) -> ExitCode {
    let outcome = config(args).and_then(|config| {
        crate::telemetry::raise_open_files();
        super::block_on(async { serve::run(config, crate::telemetry::stop_signal()).await })
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => fail(&error),
    }
}

fn config(args: ServeArgs) -> Result<ServeConfig, ProgramError> {
    let usage = |problem: &str| ProgramError::Usage(problem.to_owned());
    let file = match &args.config {
        Some(path) => config::read(path).map_err(|error| ProgramError::Usage(error.to_string()))?,
        None => ServeSettings::default(),
    };
    let mut file: ServeSettings = file;
    if args.settings.identity.is_some() || args.settings.secret_env.is_some() {
        // One choice in two settings: who chooses one has not chosen the file's other.
        (file.identity, file.secret_env) = (None, None);
    }
    let settings = args.settings.over(file);
    // None by default: a made-up coin announces nothing, and has to be asked for by name.
    let coins = match settings.chain {
        Some(Chain::Offline) => Coins::Offline,
        Some(Chain::Named(named)) => {
            let source = named.source().map_err(|error| usage(&format!("--chain: offline, or {error}")))?;
            let mut chain = ChainConfig::new(source.clone());
            let span = |setting: Option<Period>, default| setting.map_or(default, |period: Period| period.0);
            chain.poll = span(settings.chain_poll, chain.poll);
            chain.funding_window = span(settings.funding_window, chain.funding_window);
            chain.funding_confirmations = settings.funding_confirmations.unwrap_or(chain.funding_confirmations);
            chain.confirmations = settings.confirmations.unwrap_or(chain.confirmations);
            chain.fee_floor = settings.fee_floor.map_or(chain.fee_floor, |rate| rate.0);
            chain.fee_ceiling = settings.fee_ceiling.map_or(chain.fee_ceiling, |rate| rate.0);
            chain.fee_rate = settings.fee_rate.map(|rate| rate.0);
            chain.fee_target = settings.fee_target.unwrap_or(chain.fee_target);
            chain.warn_blocks = settings.warn_blocks.unwrap_or(chain.warn_blocks);
            Coins::Chain(Box::new(chain))
        }
        None => {
            return Err(usage(
                "no chain: --chain core=URL or --chain esplora=URL, or `--chain offline` for a made-up coin \
                 (demonstrations and tests)",
            ));
        }
    };
    let identity = identity_of(settings.identity.as_deref(), settings.secret_env.as_deref(), settings.network)
        .map_err(|error| ProgramError::Usage(error.to_string()))?;
    let network = settings.network.unwrap_or(identity.did().network());
    let minimum = settings.min_participants.unwrap_or(2);
    let tls = match (settings.tls_cert, settings.tls_key) {
        (Some(certificate), Some(key)) => Some(Tls { certificate, key }),
        (None, None) => None,
        _ => return Err(usage("--tls-cert and --tls-key go together")),
    };
    let mut config = ServeConfig::new(identity, network);
    let relays = RelaySettings {
        relays: settings.relay.unwrap_or_default(),
        look_back: settings.look_back,
        timeout: settings.relay_timeout,
        publish_timeout: settings.publish_timeout,
        retry: settings.relay_retry,
        trust: trust(settings.tls_ca.as_deref()).map_err(ProgramError::Usage)?,
    };
    config.embedded_relay = settings.embedded_relay;
    config.nostr = relays.config(config.embedded_relay.is_some()).map_err(ProgramError::Usage)?;
    // Over relays alone nothing needs to be open to the network here.
    if config.nostr.is_none() || settings.listen.is_some() {
        config.listen = settings.listen.or(config.listen);
    } else {
        config.listen = None;
    }
    config.metrics_listen = settings.metrics_listen;
    config.on_alarm = settings.on_alarm;
    config.tls = tls;
    config.coins = coins;
    config.publication.hold_on_failure = !settings.cas_optional.unwrap_or(false);
    for location in settings.cas.unwrap_or_default() {
        let store = location.store(cas::DEFAULT_TIMEOUT).map_err(|error| ProgramError::Usage(error.to_string()))?;
        config.publication.stores.push(store);
    }
    config.beacon = settings.beacon.unwrap_or(Beacon::Cas).beacon_type();
    config.min_participants = minimum;
    let settle = settings.settle.map_or(SETTLE, |Span(span)| span);
    // Without time for more members to come, room for them would only leave to chance who gets in.
    let margin = if settle.is_zero() { 0 } else { minimum.div_ceil(4) };
    config.max_is_margin = settings.max_participants.is_none();
    config.max_participants = settings.max_participants.unwrap_or(minimum.saturating_add(margin));
    config.fallback_threshold = settings.fallback_threshold;
    config.recovery_key = settings.recovery_key.unwrap_or(config.recovery_key);
    config.recovery_sequence = settings.recovery_sequence.unwrap_or(config.recovery_sequence);
    let span = |setting: Option<Period>, default| setting.map_or(default, |period: Period| period.0);
    config.timing.cohort_ttl = span(settings.cohort_ttl, config.timing.cohort_ttl);
    config.timing.phase_timeout = span(settings.phase_timeout, config.timing.phase_timeout);
    config.timing.signing_timeout = span(settings.signing_timeout, config.timing.signing_timeout);
    // 0s: once and not again.
    let repeat = settings.advert_repeat.map_or(config.timing.advert_repeat, |Span(span)| span);
    config.timing.advert_repeat = if repeat.is_zero() { NEVER } else { repeat };
    if let (Coins::Chain(chain), Some(change)) = (&mut config.coins, &settings.change) {
        let change =
            payout::change(change, network).map_err(|problem| usage(&format!("--change {change}: {problem}")))?;
        chain.change = Some(change);
    }
    if let Coins::Chain(chain) = &config.coins.clone() {
        if settings.state.is_none() {
            return Err(usage(
                "--chain needs --state DIR: without it a killed service would lose track of real coins",
            ));
        }
        // Enrollment, updates and verdicts, and then the operator may take as long as it may take to fund the address.
        let longest = config.timing.phase_timeout * 3 + chain.funding_window;
        if settings.cohort_ttl.is_none() {
            config.timing.cohort_ttl = config.timing.cohort_ttl.max(longest);
        } else if config.timing.cohort_ttl <= chain.funding_window {
            return Err(usage("--cohort-ttl must be longer than --funding-window: a cohort ends with it"));
        }
        let rule = config.rules.rule(TimedPhase::Transaction);
        let rule = PhaseRule { timeout: Some(chain.funding_window), ..rule };
        config.rules.set(TimedPhase::Transaction, rule).map_err(|error| ProgramError::Usage(error.to_string()))?;
    }
    config.cohorts = settings.cohorts;
    config.parallel = settings.parallel.unwrap_or(1).max(1);
    config.exit_when_done = settings.exit_when_done.unwrap_or(false);
    config.json = matches!(settings.events, Some(Events::Json));
    config.times = settings.times.unwrap_or(false);
    config.out = settings.out;
    config.state = settings.state;
    for TimeoutRule(phase, rule) in settings.on_timeout.unwrap_or_default() {
        config.rules.set(phase, rule).map_err(|error| ProgramError::Usage(error.to_string()))?;
    }
    config.rules.settle = settle;
    config.rules.reformations = settings.reformations.unwrap_or(config.rules.reformations);
    config.allow_list = settings.allow_list;
    config.invites = settings.invites.unwrap_or(false);
    config.admit_funded = settings.admit_funded.map(Amount::from_sat);
    config.proven_keys_only = settings.proven_keys_only.unwrap_or(false);
    config.max_live = settings.max_live_cohorts.unwrap_or(config.max_live);
    let seats = |setting: Option<SeatsArg>, default| setting.map_or(default, |SeatsArg(limit)| limit);
    config.seats.did = seats(settings.did_seats, config.seats.did);
    config.seats.address = seats(settings.address_seats, config.seats.address);
    config.seats.invite = seats(settings.invite_seats, config.seats.invite);
    config.seats.cool_down = settings.cool_down.map_or(config.seats.cool_down, |Span(time)| time);
    config.rules.presence_check = settings.presence_check.unwrap_or(false);
    let http = &mut config.http;
    http.max_body = settings.max_body.unwrap_or(http.max_body);
    // What no body can carry is not promised. Over relays messages are no larger than the default body either.
    let update_bytes = config.limits.update_bytes.min(http.max_body);
    config.limits.update_bytes = settings.max_update.unwrap_or(update_bytes);
    http.did_rate.per_second = settings.did_rate.unwrap_or(http.did_rate.per_second);
    http.did_rate.burst = settings.did_burst.unwrap_or(http.did_rate.burst);
    http.address_rate.per_second = settings.address_rate.unwrap_or(http.address_rate.per_second);
    http.address_rate.burst = settings.address_burst.unwrap_or(http.address_rate.burst);
    let proxies = settings.trusted_proxy.unwrap_or_default();
    let proxies = proxies.iter().map(|prefix| prefix.parse()).collect::<Result<Vec<Prefix>, _>>();
    let proxies = proxies.map_err(|error| ProgramError::Usage(format!("--trusted-proxy {error}")))?;
    http.proxies = match settings.trust_forwarded {
        // Who names proxies believes nobody else.
        _ if !proxies.is_empty() => Proxies::At(proxies),
        Some(true) => Proxies::All,
        _ => Proxies::None,
    };
    let files = crate::telemetry::open_files();
    // A relay has sockets of its own.
    config.relay_limits.sockets = ConnectionLimits::of_files(files / 4);
    let files = if config.embedded_relay.is_some() { files - files / 4 } else { files };
    let limits = ConnectionLimits::of_files(files);
    // Streams of adverts are nobody's in particular.
    http.advert_streams = http.advert_streams.min(limits.strangers / 2);
    http.advert_streams_per_address = http.advert_streams_per_address.min(http.advert_streams / 4);
    config.connections = limits;
    let http = &mut config.http;
    http.stripped_prefixes.extend(settings.stripped_prefix);
    if let Some(origins) = settings.cors {
        http.cors = serve::cors(&origins);
    }
    if config.exit_when_done && config.cohorts.is_none() {
        return Err(usage("--exit-when-done needs --cohorts, or it would never be done"));
    }
    Ok(config)
}
