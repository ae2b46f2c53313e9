//! The Aggregation Service as a program: a web server, the service behind it, and one cohort after another.
//!
//! [`run`] is the whole story, `results` what is kept of each cohort.

mod admission;
mod alarm;
mod doors;
mod funds;
mod heads;
mod health;
mod maturity;
mod operator;
mod results;
mod rounds;
mod tls;
mod web;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use ::bitcoin::Amount;
use actix::Actor;

use self::{
    admission::AdmissionRules,
    alarm::Alarms,
    doors::Doors,
    funds::Funds,
    health::Health,
    maturity::MaturityWatch,
    operator::{Operator, Publisher},
    rounds::Rounds,
};
pub use self::{
    alarm::{ALARMS, OnAlarm},
    operator::{ChainConfig, Coins},
    tls::Tls,
};
use crate::{
    actors::{
        load::Load,
        notice::Notices,
        runtime::{Clock, Randomness},
        seats::{SeatLimits, Seats},
        service::{LiveCohorts, ServiceSettings},
        supervision::RestartIntensity,
        supervisor::{StartService, Supervisor},
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
    keep::Keeping,
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
        output::{MemoizedAggregator, RecoverySequence, ScriptTree},
    },
    steps::Steps,
    telemetry::Hangups,
};

/// How many notices the program's own reader may fall behind.
const NOTICES: usize = 1 << 14;

/// How long members whose connections broke may take to come back for what is said last.
const RETURN: Duration = Duration::from_secs(10);

/// How long what is said last may take to leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// What to serve.
pub struct ServeConfig {
    /// The service.
    pub identity: Identity,
    /// The network of its cohorts.
    pub network: Network,
    /// The address to serve HTTP on; `None` for a service that is reached over relays only.
    pub listen: Option<String>,
    /// The address to serve metrics and health on, if any: not for strangers.
    pub metrics_listen: Option<String>,
    /// What to do when somebody should be woken.
    pub on_alarm: Option<OnAlarm>,
    /// The relays to serve over, if any.
    pub nostr: Option<NostrConfig>,
    /// Where to run a relay of our own, which is one of those to serve over.
    pub embedded_relay: Option<SocketAddr>,
    /// What that relay holds at most.
    pub relay_limits: RelayLimits,
    /// Certificate and key, for https.
    pub tls: Option<Tls>,
    /// Where coins come from.
    pub coins: Coins,
    /// Where announcements are published before they are signed.
    pub publication: Publication,
    /// How updates are aggregated.
    pub beacon: BeaconType,
    /// Fewest members.
    pub min_participants: u32,
    /// Most members.
    pub max_participants: u32,
    /// Whether more than the fewest members are only a margin: then a transport that cannot carry so many makes it smaller.
    pub max_is_margin: bool,
    /// k of the fallback leaf.
    pub fallback_threshold: Option<u16>,
    /// The key of the recovery leaf.
    pub recovery_key: XOnlyKey,
    /// Its timelock in blocks.
    pub recovery_sequence: u16,
    /// How long cohorts wait.
    pub timing: Timing,
    /// What is too much.
    pub limits: Limits,
    /// What the web server allows.
    pub http: HttpConfig,
    /// How many connections there may be.
    pub connections: ConnectionLimits,
    /// How many cohorts to run in all.
    pub cohorts: Option<u32>,
    /// How many to advertise at once.
    pub parallel: u32,
    /// Whether to stop when they have ended.
    pub exit_when_done: bool,
    /// Whether to print JSON.
    pub json: bool,
    /// Whether lines for people begin with the time.
    pub times: bool,
    /// Where to write results.
    pub out: Option<PathBuf>,
    /// The directory in which everything is kept that must outlive the program.
    pub state: Option<PathBuf>,
    /// What to do when a phase cannot be completed.
    pub rules: PhaseRules,
    /// A file of the DIDs that are admitted; without it, and without `invites`, everybody is.
    pub allow_list: Option<PathBuf>,
    /// Whether those are admitted who have an invite.
    pub invites: bool,
    /// How much a KEY DID must have at its initial beacon addresses to be admitted without being listed or invited.
    pub admit_funded: Option<Amount>,
    /// Whether only those are admitted whose opt-in proves possession of the key that they sign with.
    pub proven_keys_only: bool,
    /// How many seats one DID, address or invite may have.
    pub seats: SeatLimits,
    /// How many cohorts may run at once; more are not opened.
    pub max_live: u32,
}

impl ServeConfig {
    /// A service of `identity` on `network` with everything else at its default.
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

/// Which origins a comma separated list names: `*` all, nothing none.
pub fn cors(origins: &str) -> Cors {
    match origins.trim() {
        "*" => Cors::Permissive,
        "" => Cors::SameOrigin,
        list => Cors::Allow(list.split(',').map(|origin| origin.trim().to_owned()).collect()),
    }
}

/// Serves until `stop` is ready, or until all cohorts have ended. Whether all of them were signed.
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
    let keeping = Keeping::open(config.state.as_deref(), lost, &printer)?;
    let terms = serde_json::to_value(&conditions).map_err(|error| ProgramError::Internal(error.to_string()))?;
    keeping.belong_to("serve", &config.identity, config.network, terms, &printer).await?;
    // Reported before anybody is admitted.
    let bans = keeping.bans()?;
    let invites = if config.invites { keeping.invites()? } else { None };
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
    // From here on SIGHUP does not end the program, however long a node takes to come up.
    let hangups = Hangups::new();
    let mut doors = Doors::build(&config, &keeping, clock, &printer, metrics.sources(), &contacts).await?;

    let mut journal = keeping.journal();
    if metrics_server.is_some() {
        journal = Arc::new(TimedJournal::new(journal, metrics.clone()));
    }
    tokio::pin!(stop);
    // A node may take long to come up; whoever waits for it may stop waiting.
    let operator = tokio::select! {
        operator = Operator::new(&config, Arc::clone(&journal), clock, &printer) => operator?,
        () = &mut stop => return Ok(true),
    };
    let funds = match (&operator, config.admit_funded) {
        (Operator::Chain(operator), Some(minimum)) => {
            Some(Funds::new(minimum, Arc::clone(&operator.settings().chain), clock))
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
    let steps = Steps::of(notices.subscribe());
    let announcements = operator.subscribe().map(Steps::of);
    let load = Load::default();
    if metrics_server.is_some() {
        metrics.sources().load(load.clone());
        actix_rt::spawn(metrics.clone().follow(notices.subscribe()));
        if let Some(steps) = operator.subscribe() {
            actix_rt::spawn(metrics.follow_announcements(steps));
        }
    }
    let settings = ServiceSettings {
        identity: config.identity.clone(),
        transport: Arc::clone(&doors.transport),
        policy: Arc::new(policy),
        beacons: BeaconRegistry::default(),
        aggregator: Arc::new(MemoizedAggregator::default()),
        journal,
        clock,
        randomness: Randomness::System,
        notices,
        load,
        bans: bans.clone(),
        seats: Seats::new(config.seats),
        restarts: RestartIntensity::default(),
        retention: keeping.retention(),
    };
    let internal = |error: actix::MailboxError| ProgramError::Internal(error.to_string());
    let supervisor = Supervisor::default();
    let vitals = supervisor.vitals();
    let supervisor = supervisor.start();
    let service = supervisor.send(StartService(settings)).await.map_err(internal)?;
    // Answered when all cohorts of an earlier life are back.
    let recovered = service.send(LiveCohorts).await.map_err(internal)?;
    doors.welcome();
    readiness.set(true);
    printer.serving(config.identity.did(), doors.url.as_deref(), &doors.relays, config.network);
    if matches!(config.coins, Coins::Offline) {
        printer.warn("the coin is made up (--chain offline): nothing is broadcast, nothing is announced");
    }
    let maturity = match (&operator, &config.coins) {
        (Operator::Chain(operator), Coins::Chain(chain)) => {
            let watch = MaturityWatch::new(operator.clone(), config.out.clone(), chain.warn_blocks);
            Some(actix_rt::spawn(watch.run()))
        }
        _ => None,
    };
    let (alarms, giving) = Alarms::start(config.on_alarm.clone(), printer.clone());
    let chain = match (&operator, &config.coins) {
        (Operator::Chain(operator), Coins::Chain(chain)) => {
            Some((Arc::clone(&operator.settings().chain), chain.poll))
        }
        _ => None,
    };
    let health = Health {
        readiness: readiness.clone(),
        alarms: alarms.clone(),
        chain,
        relays: doors.nostr.clone(),
        state: config.state.clone(),
    };
    let health = actix_rt::spawn(health.watch());
    let mut rounds =
        Rounds::new(config, conditions, service, operator.clone(), keeping.clone(), printer.clone(), alarms);
    let outcome = tokio::select! {
        never = reporting => match never {},
        // Nothing that is waited for would ever happen.
        gone = vitals.failed() => {
            readiness.set(false);
            Err(ProgramError::Internal(format!("{gone}; started again with the same --state, it goes on where it was")))
        }
        never = tls::reload(doors.tls.clone(), admission, hangups, printer) => match never {},
        outcome = rounds.run(steps, announcements, recovered) => {
            readiness.set(false);
            rounds.settled().await;
            // Members are told that it is over: that has its time to travel.
            tokio::time::sleep(FAREWELL).await;
            doors.heard(RETURN).await;
            outcome
        }
        () = &mut stop => {
            readiness.set(false);
            rounds.settled().await;
            // What is kept goes on when the program is started again.
            if !keeping.is_durable() {
                rounds.cancel();
                tokio::time::sleep(FAREWELL).await;
            }
            Ok(true)
        }
    };
    health.abort();
    // No new work, streams closed, then the connections.
    doors.close().await;
    if let Some(maturity) = maturity {
        maturity.abort();
    }
    operator.stop().await;
    if !bans.flush() {
        tracing::warn!("offences of the last seconds may be missing in the ban list");
    }
    drop(rounds);
    // Whoever could still raise an alarm is gone.
    let _ = health.await;
    giving.finish().await;
    keeping.close().await;
    if let Some(server) = metrics_server {
        server.stop().await;
    }
    outcome
}
