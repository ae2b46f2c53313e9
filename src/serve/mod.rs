//! The Aggregation Service as a program: a web server, the service behind it, and one cohort after another.
//!
//! [`run`] is the main function; `results` writes what is stored of each cohort.

mod admission;
mod alarm;
mod funds;
mod heads;
mod health;
mod listeners;
mod maturity;
mod operator;
mod results;
mod rounds;
mod standing;
pub(crate) mod tls;
pub(crate) mod web;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use ::bitcoin::Amount;

use self::{
    admission::AdmissionRules,
    alarm::Alarms,
    funds::Funds,
    health::Health,
    listeners::Listeners,
    maturity::MaturityWatch,
    operator::{Operator, Publisher},
    rounds::Rounds,
};
pub use self::{
    alarm::{ALARMS, OnAlarm},
    operator::{ChainConfig, Coins},
    standing::StandingConfig,
    tls::Tls,
};
use crate::{
    actors::{
        announcement::Announcements,
        handle::Service,
        load::Load,
        notice::Notices,
        runtime::Clock,
        seats::{SeatLimits, Seats},
        supervision::Vitals,
        transport::{
            connections::ConnectionLimits,
            contact::Contacts,
            http::{Cors, HttpConfig},
            nostr::{NostrConfig, embedded::RelayLimits},
        },
    },
    cas::Publication,
    error::ProgramError,
    events::Printer,
    metrics::{
        Metrics,
        http::{self as metrics_http, Readiness},
        journal::TimedJournal,
    },
    protocol::{
        beacon::{BeaconRegistry, BeaconType},
        cohort::{
            Timing,
            conditions::Conditions,
            service::{Limits, rules::PhaseRules},
        },
        identity::Identity,
        key::XOnlyKey,
        network::Network,
        output::{RecoverySequence, ScriptTree},
    },
    storage::Storage,
    telemetry::Hangups,
};

/// How many notices the program's own reader may fall behind.
const NOTICES: usize = 1 << 14;

/// How long members with broken connections may take to return for the last messages.
const RETURN: Duration = Duration::from_secs(10);

/// How long the last messages may take to be sent.
const FAREWELL: Duration = Duration::from_secs(1);

/// The configuration of a service.
pub struct ServeConfig {
    /// The identity of the service.
    pub identity: Identity,
    /// The network of its cohorts.
    pub network: Network,
    /// The address to serve HTTP on; `None` for a service that is reached over relays only.
    pub listen: Option<String>,
    /// The address of the metrics and health server, if any. Not to be exposed to the public.
    pub metrics_listen: Option<String>,
    /// What to do with alarms.
    pub on_alarm: Option<OnAlarm>,
    /// The relays to serve over, if any.
    pub nostr: Option<NostrConfig>,
    /// The address of the embedded relay, which is one of the relays to serve over.
    pub embedded_relay: Option<SocketAddr>,
    /// The limits of that relay.
    pub relay_limits: RelayLimits,
    /// Certificate and key, for https.
    pub tls: Option<Tls>,
    /// The source of coins.
    pub coins: Coins,
    /// Where announcements are published before they are signed.
    pub publication: Publication,
    /// How updates are aggregated.
    pub beacon: BeaconType,
    /// The least number of members.
    pub min_participants: u32,
    /// The greatest number of members.
    pub max_participants: u32,
    /// Whether the members above the least number are only a margin, which is reduced to what the transport can carry.
    pub max_is_margin: bool,
    /// k of the fallback leaf.
    pub fallback_threshold: Option<u16>,
    /// The key of the recovery leaf.
    pub recovery_key: XOnlyKey,
    /// Its timelock in blocks.
    pub recovery_sequence: u16,
    /// The time limits of cohorts.
    pub timing: Timing,
    /// The limits on messages and members.
    pub limits: Limits,
    /// The limits of the web server.
    pub http: HttpConfig,
    /// The limits on connections.
    pub connections: ConnectionLimits,
    /// The total number of cohorts.
    pub cohorts: Option<u32>,
    /// The number of cohorts that are advertised at once.
    pub parallel: u32,
    /// Whether to exit when all cohorts have ended.
    pub exit_when_done: bool,
    /// Whether to print JSON.
    pub json: bool,
    /// Whether lines for people start with the time.
    pub times: bool,
    /// Where to write results.
    pub out: Option<PathBuf>,
    /// The directory for all state that must survive a restart.
    pub state: Option<PathBuf>,
    /// The policy for a phase that cannot be completed.
    pub rules: PhaseRules,
    /// A file of admitted DIDs. Without it, and without `invites`, every DID is admitted.
    pub allow_list: Option<PathBuf>,
    /// Whether invites admit.
    pub invites: bool,
    /// The amount that a KEY DID needs at its initial beacon addresses to be admitted without a list entry or an
    /// invite.
    pub admit_funded: Option<Amount>,
    /// Whether a participant is admitted only if its opt-in proves possession of its signing key.
    pub proven_keys_only: bool,
    /// The number of seats of one DID, address or invite.
    pub seats: SeatLimits,
    /// The number of cohorts that may run at once. Above it no cohort is opened.
    pub max_live: u32,
    /// A standing cohort in place of one-time ones.
    pub standing: Option<StandingConfig>,
}

impl ServeConfig {
    /// A service of `identity` on `network` with defaults for everything else.
    pub fn new(identity: Identity, network: Network) -> Self {
        let recovery_key = identity.public_key().x_only();
        Self {
            identity,
            network,
            listen: Some("127.0.0.1:8080".to_owned()),
            metrics_listen: None,
            on_alarm: None,
            nostr: None,
            embedded_relay: None,
            relay_limits: RelayLimits::default(),
            tls: None,
            coins: Coins::Offline,
            publication: Publication::default(),
            beacon: BeaconType::cas(),
            min_participants: 2,
            max_participants: 2,
            max_is_margin: false,
            fallback_threshold: None,
            recovery_key,
            recovery_sequence: 4320,
            timing: Timing::default(),
            limits: Limits::default(),
            http: HttpConfig::default(),
            connections: ConnectionLimits::default(),
            cohorts: None,
            parallel: 1,
            exit_when_done: false,
            json: false,
            times: false,
            out: None,
            state: None,
            rules: PhaseRules::default().reforming(),
            allow_list: None,
            invites: false,
            admit_funded: None,
            proven_keys_only: false,
            seats: SeatLimits::default(),
            max_live: 256,
            standing: None,
        }
    }

    fn conditions(&self) -> Result<Conditions, ProgramError> {
        let usage = |problem: String| ProgramError::Usage(problem);
        let recovery_sequence = RecoverySequence::try_from(u64::from(self.recovery_sequence))
            .map_err(|error| usage(error.to_string()))?;
        let script_tree = ScriptTree::FallbackAndRecovery {
            recovery_key: self.recovery_key,
            recovery_sequence,
            fallback_threshold: self.fallback_threshold,
        };
        let mut conditions = Conditions::new(self.beacon.clone(), self.min_participants, script_tree);
        conditions.max_participants = Some(self.max_participants);
        let problems = conditions.problems(&BeaconRegistry::default());
        if problems.is_empty() {
            Ok(conditions)
        } else {
            let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
            Err(usage(problems.join("; ")))
        }
    }
}

/// Parses a comma-separated list of origins: `*` is all, the empty string is none.
pub fn cors(origins: &str) -> Cors {
    match origins.trim() {
        "*" => Cors::Permissive,
        "" => Cors::SameOrigin,
        list => Cors::Allow(list.split(',').map(|origin| origin.trim().to_owned()).collect()),
    }
}

/// Serves until `stop` is ready, or until all cohorts have ended. Returns whether all of them were signed.
///
/// # Errors
/// [`ProgramError`] when it cannot start.
pub async fn run(config: ServeConfig, stop: impl Future<Output = ()>) -> Result<bool, ProgramError> {
    if config.network == Network::Bitcoin && matches!(config.coins, Coins::Offline) {
        let problem =
            "--chain offline is refused on bitcoin: its coin is made up, and members would announce nothing";
        return Err(ProgramError::Usage(problem.to_owned()));
    }
    if config.admit_funded.is_some() && matches!(config.coins, Coins::Offline) {
        let problem = "--admit-funded needs a chain that can be asked for coins: --chain core=URL or esplora=URL";
        return Err(ProgramError::Usage(problem.to_owned()));
    }
    let conditions = config.conditions()?;
    let printer = Printer::new(config.json).with_times(config.times);
    if let Some(directory) = &config.out {
        std::fs::create_dir_all(directory)
            .map_err(|error| ProgramError::Io { what: directory.display().to_string(), error })?;
    }
    let clock = Clock::system();
    let lost = "cohorts that run are lost, and coins at their addresses come back by recovery only";
    let storage = Storage::open(config.state.as_deref(), lost, &printer)?;
    let terms = serde_json::to_value(&conditions).map_err(|error| ProgramError::Internal(error.to_string()))?;
    storage.check_owner("serve", &config.identity, config.network, terms, &printer).await?;
    // An error is reported before any member is admitted.
    let bans = storage.bans()?;
    let invites = if config.invites { storage.invites()? } else { None };
    if config.invites && invites.is_none() {
        return Err(ProgramError::Usage("--invites needs --state DIR, where `invites new` puts them".to_owned()));
    }
    let proven = config.proven_keys_only;
    let admission = AdmissionRules::new(config.allow_list.as_deref(), invites, proven, clock, printer.clone())?;
    let (metrics, readiness) = (Metrics::new(clock), Readiness::default());
    let metrics_server = match &config.metrics_listen {
        Some(address) => {
            let (serving, url) = metrics_http::serve(address, metrics.clone(), readiness.clone())?;
            printer.metrics(&url);
            Some(serving)
        }
        None => None,
    };
    let contacts = Contacts::default();
    let reporting = printer.clone().follow(contacts.subscribe());
    // From here on SIGHUP does not end the program, even if a node is slow to start.
    let hangups = Hangups::new();
    // Of the supervisor, and of the HTTP server: without one of their actors the process is not ready.
    let vitals = Vitals::default();
    let mut listeners =
        Listeners::build(&config, &storage, clock, &printer, metrics.sources(), &contacts, &vitals).await?;

    let mut journal = storage.journal();
    if metrics_server.is_some() {
        journal = Arc::new(TimedJournal::new(journal, metrics.clone()));
    }
    tokio::pin!(stop);
    // A node may be slow to start; the operator can stop the program meanwhile.
    let operator = tokio::select! {
        operator = Operator::new(&config, Arc::clone(&journal), clock, vitals.clone(), &printer) => operator?,
        () = &mut stop => return Ok(true),
    };
    let funds = match (&operator, config.admit_funded) {
        (Operator::Chain(operator), Some(minimum)) => {
            Some(Funds::new(minimum, Arc::clone(&operator.announcements().settings().chain), clock))
        }
        _ => None,
    };
    let admission = admission.or_funded(funds);
    let publication = config.publication.clone();
    let policy = Publisher {
        operator: operator.clone(),
        publication,
        printer: printer.clone(),
        admission: admission.clone(),
    };
    let notices = Notices::new(NOTICES);
    let announcements = operator.announcements().map(Announcements::events);
    let load = Load::default();
    if metrics_server.is_some() {
        metrics.sources().load(load.clone());
        actix_rt::spawn(metrics.clone().follow(notices.subscribe()));
        if let Some(announcements) = operator.announcements() {
            actix_rt::spawn(metrics.follow_announcements(announcements.subscribe()));
        }
    }
    let builder = Service::builder(config.identity.clone(), Arc::clone(&listeners.transport), Arc::new(policy));
    let builder = if storage.is_durable() { builder.journal(journal) } else { builder.transient_journal(journal) };
    let builder = builder.vitals(vitals.clone());
    let builder =
        builder.clock(clock).notices(notices).load(load).bans(bans.clone()).seats(Seats::new(config.seats));
    let chain_of = |operator: &Operator| match operator {
        Operator::Chain(operator) => Some(Arc::clone(&operator.announcements().settings().chain)),
        Operator::Offline => None,
    };
    let standing = config.standing.clone();
    let standing = standing.map(|standing| {
        let settings = standing::settings(&config, &standing, &storage, chain_of(&operator), admission.clone());
        listeners.serve_history(Arc::new(settings.served_history()));
        (standing, settings)
    });
    let builder = match &standing {
        Some((_, settings)) => builder.standing(settings.clone()),
        None => builder,
    };
    // Before the start, so that none is missed.
    let standing = standing.map(|(standing, settings)| (standing, settings.notices.subscribe()));
    let service = builder.start().await.map_err(|error| ProgramError::Internal(error.to_string()))?;
    listeners.open();
    readiness.set(true);
    printer.serving(config.identity.did(), listeners.url.as_deref(), &listeners.relays, config.network);
    if matches!(config.coins, Coins::Offline) {
        printer.warn("the coin is made up (--chain offline): nothing is broadcast, nothing is announced");
    }
    let maturity = match (&operator, &config.coins) {
        (Operator::Chain(operator), Coins::Chain(chain)) => {
            let watch = MaturityWatch::new(operator.announcements().clone(), config.out.clone(), chain.warn_blocks);
            Some(actix_rt::spawn(watch.run()))
        }
        _ => None,
    };
    let (alarms, alarm_task) = Alarms::start(config.on_alarm.clone(), printer.clone());
    let chain = match (&operator, &config.coins) {
        (Operator::Chain(operator), Coins::Chain(chain)) => {
            Some((Arc::clone(&operator.announcements().settings().chain), chain.poll))
        }
        _ => None,
    };
    let health = Health {
        readiness: readiness.clone(),
        alarms: alarms.clone(),
        chain,
        relays: listeners.nostr.clone(),
        state: config.state.clone(),
    };
    let health = actix_rt::spawn(health.watch());
    let (of_standing, standing_printer, of_alarms) = (service.clone(), printer.clone(), alarms.clone());
    let poll = match &config.coins {
        Coins::Chain(chain) => Some(chain.poll),
        Coins::Offline => None,
    };
    let is_standing = standing.is_some();
    let standing = async move {
        match standing {
            Some((standing, notices)) => {
                standing::run(&standing, &of_standing, notices, &of_alarms, &standing_printer, poll).await
            }
            None => std::future::pending().await,
        }
    };
    let mut rounds = Rounds::new(
        config,
        conditions,
        service.clone(),
        operator.clone(),
        storage.clone(),
        printer.clone(),
        alarms,
    );
    let outcome = tokio::select! {
        never = reporting => match never {},
        // The cohorts would wait without end.
        gone = service.failed() => {
            readiness.set(false);
            Err(ProgramError::Internal(format!("{gone}; restart with the same --state to continue")))
        }
        never = tls::reload(listeners.tls.clone(), admission, hangups, printer) => match never {},
        outcome = standing => {
            readiness.set(false);
            outcome
        }
        outcome = rounds.run(announcements), if !is_standing => {
            readiness.set(false);
            rounds.settled().await;
            // The end is sent to the members: give the messages time to leave.
            tokio::time::sleep(FAREWELL).await;
            listeners.wait_for_members(RETURN).await;
            outcome
        }
        () = &mut stop => {
            readiness.set(false);
            rounds.settled().await;
            // Persisted cohorts continue at the next start.
            if !storage.is_durable() {
                rounds.cancel().await;
                tokio::time::sleep(FAREWELL).await;
            }
            Ok(true)
        }
    };
    health.abort();
    // Refuse new work, close the streams, then the connections.
    listeners.close().await;
    if let Some(maturity) = maturity {
        maturity.abort();
    }
    operator.stop().await;
    if !bans.flush() {
        tracing::warn!("offences of the last seconds may be missing in the ban list");
    }
    drop(rounds);
    // All senders of alarms are dropped.
    let _ = health.await;
    alarm_task.finish().await;
    storage.close().await;
    if let Some(server) = metrics_server {
        server.stop().await;
    }
    outcome
}
