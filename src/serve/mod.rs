//! The Aggregation Service as a program: a web server, the service behind it, and one cohort after another.
//!
//! [`run`] is the whole story, `results` what is kept of each cohort.

mod doors;
mod operator;
mod results;
mod tls;

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use actix::{Actor, Addr};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use self::{
    doors::Doors,
    operator::{Operator, Publisher},
    results::CohortReport,
};
pub use self::{
    operator::{ChainConfig, Coins},
    tls::Tls,
};
use crate::{
    actors::{
        notice::{Notices, ServiceNotice},
        recovery::RestartIntensity,
        runtime::{Clock, Randomness},
        service::{AggregationService, ArchiveCohort, CancelCohort, LiveCohorts, OpenCohort, ServiceSettings},
        supervisor::{StartService, Supervisor},
        transport::{
            http::{Cors, HttpConfig},
            nostr::NostrConfig,
        },
    },
    bitcoin::{notice::AnnouncementNotice, recovery::CohortFile},
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
        id::CohortId,
        identity::Identity,
        key::XOnlyKey,
        network::Network,
        output::{MemoizedAggregator, RecoverySequence, ScriptTree},
    },
};

/// How many notices the program's own reader may fall behind.
const NOTICES: usize = 1 << 14;

/// After cohorts that failed to form: not again at once, forever.
const REOPEN_DELAY: Duration = Duration::from_secs(1);

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
    /// The relays to serve over, if any.
    pub nostr: Option<NostrConfig>,
    /// Where to run a relay of our own, which is one of those to serve over.
    pub embedded_relay: Option<SocketAddr>,
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
    /// How many cohorts to run in all.
    pub cohorts: Option<u32>,
    /// How many to advertise at once.
    pub parallel: u32,
    /// Whether to stop when they have ended.
    pub exit_when_done: bool,
    /// Whether to print JSON.
    pub json: bool,
    /// Where to write results.
    pub out: Option<PathBuf>,
    /// The directory in which everything is kept that must outlive the program.
    pub state: Option<PathBuf>,
    /// What to do when a phase cannot be completed.
    pub rules: PhaseRules,
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
            nostr: None,
            embedded_relay: None,
            tls: None,
            coins: Coins::Offline,
            publication: Publication::default(),
            beacon: BeaconType::cas(),
            min_participants: 2,
            max_participants: 2,
            fallback_threshold: None,
            recovery_key,
            recovery_sequence: 4320,
            timing: Timing::default(),
            limits: Limits::default(),
            http: HttpConfig::default(),
            cohorts: None,
            parallel: 1,
            exit_when_done: false,
            json: false,
            out: None,
            state: None,
            rules: PhaseRules::default().reforming(),
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
    let conditions = config.conditions()?;
    let printer = Printer::new(config.json);
    if let Some(directory) = &config.out {
        std::fs::create_dir_all(directory)
            .map_err(|error| ProgramError::Io { what: directory.display().to_string(), error })?;
    }
    let clock = Clock::system();
    let lost = "cohorts that run are lost, and coins at their addresses come back by recovery only";
    let keeping = Keeping::open(config.state.as_deref(), lost, printer)?;
    let (metrics, readiness) = (Metrics::new(clock), Readiness::default());
    let metrics_server = match &config.metrics_listen {
        Some(address) => {
            let (handle, url) = metrics_http::serve(address, metrics.clone(), readiness.clone())?;
            printer.metrics(&url);
            Some(handle)
        }
        None => None,
    };
    let mut doors = Doors::build(&config, &keeping, clock, printer).await?;

    let operator = Operator::new(&config, keeping.journal(), clock, printer).await?;
    let policy = Publisher { operator: operator.clone(), publication: config.publication.clone(), printer };
    let notices = Notices::new(NOTICES);
    let steps = notices.subscribe();
    let announcements = operator.subscribe();
    let mut journal = keeping.journal();
    if metrics_server.is_some() {
        journal = Arc::new(TimedJournal::new(journal, metrics.clone()));
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
        bans: keeping.bans(),
        restarts: RestartIntensity::default(),
        retention: keeping.retention(),
    };
    let internal = |error: actix::MailboxError| ProgramError::Internal(error.to_string());
    let supervisor = Supervisor::default().start();
    let service = supervisor.send(StartService(settings)).await.map_err(internal)?;
    // Answered when all cohorts of an earlier life are back.
    let recovered = service.send(LiveCohorts).await.map_err(internal)?;
    doors.welcome();
    readiness.set(true);
    printer.serving(config.identity.did(), doors.url.as_deref(), &doors.relays, config.network);
    if matches!(config.coins, Coins::Offline) {
        printer.warn("the coin is made up (--chain offline): nothing is broadcast, nothing is announced");
    }
    let mut rounds = Rounds::new(config, conditions, service, operator.clone(), printer);
    let outcome = tokio::select! {
        outcome = rounds.run(steps, announcements, recovered) => {
            // Members are told that it is over: that has its time to travel.
            tokio::time::sleep(FAREWELL).await;
            outcome
        }
        () = stop => {
            // What is kept goes on when the program is started again.
            if !keeping.is_durable() {
                rounds.cancel();
                tokio::time::sleep(FAREWELL).await;
            }
            Ok(true)
        }
    };
    readiness.set(false);
    // No new work, streams closed, then the connections.
    doors.close().await;
    operator.stop().await;
    keeping.close().await;
    if let Some(server) = metrics_server {
        server.stop(true).await;
    }
    outcome
}

/// The next step of an announcement; never, where there is no chain.
async fn next(
    announcements: &mut Option<Receiver<Arc<AnnouncementNotice>>>,
) -> Result<Arc<AnnouncementNotice>, RecvError> {
    match announcements {
        Some(announcements) => announcements.recv().await,
        None => std::future::pending().await,
    }
}

/// The cohorts, one after another.
struct Rounds {
    config: ServeConfig,
    conditions: Conditions,
    service: Addr<AggregationService>,
    printer: Printer,
    /// How many were opened.
    opened: u32,
    /// Those that still admit.
    enrolling: BTreeSet<CohortId>,
    /// Those that have not ended.
    live: BTreeSet<CohortId>,
    /// How many ended with a transaction that was verified.
    signed: u32,
    operator: Operator,
    /// Those whose announcement is not final yet.
    announcing: BTreeSet<CohortId>,
    /// How many of those that were signed were not announced.
    unannounced: u32,
}

impl Rounds {
    fn new(
        config: ServeConfig,
        conditions: Conditions,
        service: Addr<AggregationService>,
        operator: Operator,
        printer: Printer,
    ) -> Self {
        Self {
            config,
            conditions,
            service,
            printer,
            opened: 0,
            enrolling: BTreeSet::new(),
            live: BTreeSet::new(),
            signed: 0,
            operator,
            announcing: BTreeSet::new(),
            unannounced: 0,
        }
    }

    /// Runs cohorts until all that were asked for have ended, if that ends the program. Whether all were signed.
    async fn run(
        &mut self,
        mut steps: Receiver<Arc<ServiceNotice>>,
        mut announcements: Option<Receiver<Arc<AnnouncementNotice>>>,
        recovered: Vec<CohortId>,
    ) -> Result<bool, ProgramError> {
        // They count as opened, and each says in which phase it is before new ones are opened beside it.
        self.opened = u32::try_from(recovered.len()).unwrap_or(u32::MAX);
        self.live.extend(recovered.iter().cloned());
        let mut silent: BTreeSet<CohortId> = recovered.into_iter().collect();
        while !silent.is_empty() {
            let Ok(step) = steps.recv().await else { break };
            if let ServiceNotice::CohortRecovered { cohort_id, .. }
            | ServiceNotice::CohortFailed { cohort_id, .. } = &*step
            {
                silent.remove(cohort_id);
            }
            self.follow(&step).await?;
        }
        if let Operator::Chain(operator) = &self.operator {
            operator.resume().await.map_err(|error| ProgramError::State(error.to_string()))?;
        }
        loop {
            self.open().await?;
            let ended = self.live.is_empty() && self.announcing.is_empty();
            if self.config.exit_when_done && ended && Some(self.opened) == self.config.cohorts {
                return Ok(self.signed == self.opened && self.unannounced == 0);
            }
            let lagged = tokio::select! {
                step = steps.recv() => match step {
                    Ok(step) => { self.follow(&step).await?; continue }
                    Err(lagged) => lagged,
                },
                step = next(&mut announcements) => match step {
                    Ok(step) => { self.follow_announcement(&step); continue }
                    Err(lagged) => lagged,
                },
            };
            match lagged {
                RecvError::Lagged(missed) => self.printer.warn(&format!("{missed} events were not shown")),
                RecvError::Closed => return Err(ProgramError::Internal("the actors are gone".to_owned())),
            }
        }
    }

    /// Opens cohorts until enough are advertised, or enough were opened.
    async fn open(&mut self) -> Result<(), ProgramError> {
        let parallel = usize::try_from(self.config.parallel).unwrap_or(usize::MAX);
        while self.enrolling.len() < parallel && self.config.cohorts.is_none_or(|most| self.opened < most) {
            let open = OpenCohort {
                conditions: self.conditions.clone(),
                network: self.config.network,
                timing: self.config.timing,
                limits: self.config.limits,
                rules: self.config.rules.clone(),
            };
            let opened =
                self.service.send(open).await.map_err(|error| ProgramError::Internal(error.to_string()))?;
            let cohort_id = opened.map_err(|error| ProgramError::Usage(error.to_string()))?;
            self.opened += 1;
            self.enrolling.insert(cohort_id.clone());
            self.live.insert(cohort_id);
        }
        Ok(())
    }

    fn follow_announcement(&mut self, step: &AnnouncementNotice) {
        self.printer.announcement_step(step);
        match step {
            AnnouncementNotice::AnnouncementFinal { cohort_id, .. } => {
                self.announcing.remove(cohort_id);
            }
            AnnouncementNotice::AnnouncementFailed { cohort_id, .. } => {
                if self.announcing.remove(cohort_id) {
                    self.unannounced += 1;
                }
            }
            _ => {}
        }
    }

    async fn follow(&mut self, step: &ServiceNotice) -> Result<(), ProgramError> {
        self.printer.service_step(step);
        if let Operator::Chain(operator) = &self.operator {
            if let ServiceNotice::SigningComplete { cohort_id, .. } = step {
                self.announcing.insert(cohort_id.clone());
            }
            operator.follow(step).await.map_err(|error| ProgramError::State(error.to_string()))?;
        }
        match step {
            ServiceNotice::CohortRecovered { cohort_id, phase: "enrolling" } => {
                self.enrolling.insert(cohort_id.clone());
            }
            ServiceNotice::KeygenComplete { cohort_id, output, .. } => {
                self.enrolling.remove(cohort_id);
                if let Some(directory) = &self.config.out {
                    let file = CohortFile { cohort_id: cohort_id.clone(), output: (**output).clone() };
                    results::write_output(directory, &file).map_err(|error| ProgramError::Io {
                        what: format!("writing results to {}", directory.display()),
                        error,
                    })?;
                }
            }
            ServiceNotice::SigningComplete { cohort_id, result, .. } => {
                self.live.remove(cohort_id);
                let report = CohortReport::new(cohort_id, result);
                if report.verified() {
                    self.signed += 1;
                }
                if let Some(directory) = &self.config.out {
                    report.write_to(directory).map_err(|error| ProgramError::Io {
                        what: format!("writing results to {}", directory.display()),
                        error,
                    })?;
                }
                self.printer.result(&report.to_json(), &report.to_text());
                self.service.do_send(ArchiveCohort(cohort_id.clone()));
            }
            ServiceNotice::CohortFailed { cohort_id, reason, code, next, .. } => {
                self.live.remove(cohort_id);
                let was_enrolling = self.enrolling.remove(cohort_id);
                match next {
                    Some(next) => {
                        self.live.insert(next.clone());
                        self.enrolling.insert(next.clone());
                    }
                    None if was_enrolling => tokio::time::sleep(REOPEN_DELAY).await,
                    None => {}
                }
                let result = serde_json::json!({
                    "event": "result", "ok": false, "cohortId": cohort_id, "code": code, "reason": reason, "next": next,
                });
                self.printer.result(&result, &format!("cohort {cohort_id} failed: {reason}"));
                self.service.do_send(ArchiveCohort(cohort_id.clone()));
            }
            _ => {}
        }
        Ok(())
    }

    /// Ends what has not ended, because the program is to stop.
    fn cancel(&self) {
        for cohort_id in &self.live {
            let reason = "the service is stopping".to_owned();
            self.service.do_send(CancelCohort { cohort_id: cohort_id.clone(), reason });
        }
    }
}
