//! The Aggregation Service as a program: a web server, the service behind it, and one cohort after another.
//!
//! [`run`] is the main function; `results` writes what is stored of each cohort.

mod admission;
pub(crate) mod alarm;
pub(crate) mod body;
mod config;
pub(crate) mod desk;
mod ends;
mod funds;
mod heads;
mod health;
mod listeners;
mod maturity;
mod opening;
mod operator;
pub(crate) mod orders;
mod public;
pub(crate) mod register;
mod results;
mod rounds;
mod several;
mod standing;
pub(crate) mod switches;
pub mod terms;
pub(crate) mod tls;
pub(crate) mod web;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use self::{
    admission::AdmissionRules,
    alarm::Alarms,
    desk::Desk,
    funds::Funds,
    health::Health,
    listeners::Listeners,
    maturity::MaturityWatch,
    operator::{Operator, Publisher},
    orders::{COMMAND_LINE, Series},
    public::{Ledger, Origins},
    register::Register,
    rounds::{RoundParts, Rounds},
    switches::Switches,
};
pub use self::{
    alarm::{ALARMS, OnAlarm},
    config::ServeConfig,
    operator::{ChainConfig, Coins},
    public::PageSettings,
    several::run_all,
    terms::{RoundTerms, StandingConfig},
    tls::Tls,
};
use crate::{
    actors::{
        announcement::Announcements,
        handle::Service,
        load::Load,
        notice::Notices,
        runtime::Clock,
        seats::Seats,
        supervision::Vitals,
        transport::{
            contact::Contacts,
            http::{Cors, history::History},
        },
    },
    console::Console,
    control::{About, Control, Parts, Settings, Stores, TemplateBook},
    error::ProgramError,
    events::Printer,
    metrics::{
        Metrics,
        http::{self as metrics_http, Readiness},
        journal::TimedJournal,
    },
    protocol::network::Network,
    storage::Storage,
    telemetry::Hangups,
};

/// How many notices the program's own reader may fall behind.
const NOTICES: usize = 1 << 14;

/// How long members with broken connections may take to return for the last messages.
const RETURN: Duration = Duration::from_secs(10);

/// How long the last messages may take to be sent.
const FAREWELL: Duration = Duration::from_secs(1);

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
    let conditions = config.terms.conditions().map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        ProgramError::Usage(problems.join("; "))
    })?;
    if let Some(control) = &config.control {
        control.address(config.tls.is_some())?;
    }
    let printer = Printer::new(config.json).with_times(config.times).named(config.name.as_deref());
    if let Some(directory) = &config.out {
        std::fs::create_dir_all(directory)
            .map_err(|error| ProgramError::Io { what: directory.display().to_string(), error })?;
    }
    let clock = Clock::system();
    let lost = "cohorts that run are lost, and coins at their addresses come back by recovery only";
    let storage = Storage::open(config.state.as_deref(), lost, &printer)?;
    let terms = match config.advertises || config.standing.is_some() {
        true => serde_json::to_value(&conditions).map_err(|error| ProgramError::Internal(error.to_string()))?,
        false => serde_json::json!({}),
    };
    storage.check_owner("serve", &config.identity, config.network, terms, &printer).await?;
    // An error is reported before any member is admitted.
    let bans = storage.bans()?;
    let wants_invites = config.invites || config.control.is_some();
    let invites = if wants_invites { storage.invites()? } else { None };
    if config.invites && invites.is_none() {
        return Err(ProgramError::Usage("--invites needs --state DIR, where `invites new` puts them".to_owned()));
    }
    let (switches, desk) = (Switches::new(config.values()), Desk::default());
    let stores = match (&config.control, storage.state()) {
        (Some(control), Some(state)) => {
            let settings = Settings::open(state, config.values(), switches.clone()).await?;
            let templates = TemplateBook::open(state, Arc::clone(&control.reader), config.described()).await?;
            Some((Stores { directory: state.dir().to_owned(), templates, settings }, Register::open(state).await?))
        }
        (Some(_), None) => {
            let problem = "--control needs --state DIR, for its socket, tokens, templates and audit log";
            return Err(ProgramError::Usage(problem.to_owned()));
        }
        (None, _) => None,
    };
    let of_admission = (switches.clone(), desk.clone());
    let admission =
        AdmissionRules::new(config.allow_list.as_deref(), invites.clone(), of_admission, clock, printer.clone())?;
    let ledger = Ledger::open(storage.state()).await?;
    let (metrics, readiness) = (Metrics::new(clock), Readiness::default());
    metrics.sources().readiness(readiness.clone());
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
    let unit = config.unit.clone();
    let _added = unit.as_ref().map(|unit| unit.add(config.name.as_deref(), readiness.clone(), vitals.clone()));
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
    if metrics_server.is_some() || config.control.is_some() {
        metrics.sources().load(load.clone());
        actix_rt::spawn(metrics.clone().follow(notices.subscribe()));
        if let Some(announcements) = operator.announcements() {
            actix_rt::spawn(metrics.clone().follow_announcements(announcements.subscribe()));
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
    let mut history: Option<Arc<dyn History>> = None;
    let standing = match config.standing.is_some() || config.control.is_some() {
        true => {
            let chain = chain_of(&operator);
            let (settings, operator) = standing::settings(&config, &storage, chain, admission.clone()).await?;
            history = Some(Arc::new(settings.served_history()));
            Some((settings, operator))
        }
        false => None,
    };
    if let Some(history) = &history {
        listeners.serve_history(Arc::clone(history));
    }
    let builder = match &standing {
        Some((settings, _)) => builder.standing(settings.clone()),
        None => builder,
    };
    // Before the start, so that none is missed.
    let subscribe = |settings: &crate::actors::standing::StandingSettings| settings.notices.subscribe();
    let (allow_list, config_url) = (config.allow_list.clone(), config.public_url.clone());
    let has_page = config.public_page.is_some();
    let standing_notices = standing.as_ref().map(|(settings, _)| (subscribe(settings), subscribe(settings)));
    let service = builder.start().await.map_err(|error| ProgramError::Internal(error.to_string()))?;
    listeners.show(Origins {
        service: service.clone(),
        announcements: operator.announcements().cloned(),
        history,
        ledger: ledger.clone(),
        admission: admission.clone(),
    });
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
    let alarms = alarms.counted(metrics.clone());
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
    let mut series = BTreeMap::new();
    if config.advertises {
        let is_paused = stores.as_ref().is_some_and(|(stores, _)| stores.templates.is_paused(COMMAND_LINE));
        let (terms, parallel, cohorts) = (config.terms.clone(), config.parallel, config.cohorts);
        series.insert(COMMAND_LINE.to_owned(), Series { terms, parallel, cohorts, is_paused });
    }
    let (mut control, mut of_rounds) = (None, None);
    let (notices_of_feed, notices_of_run) = standing_notices.unzip();
    if let (Some(config), Some((stores, register)), Some((settings, standing)), Some(invites)) =
        (&config.control, stores, &standing, invites)
    {
        let (of_templates, unreadable) = stores.templates.series();
        series.extend(of_templates);
        for (name, problems) in unreadable {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            printer.warn(&format!("template {name} is not advertised: {}", problems.join("; ")));
        }
        let (orders, ordered) = tokio::sync::mpsc::channel(orders::BACKLOG);
        of_rounds = Some((register.clone(), ordered));
        let url = config_url.or_else(|| listeners.url.clone());
        let about = About {
            network: service.did().network(),
            page: url.clone().filter(|_| has_page),
            url,
            relays: listeners.relays.clone(),
            allow_list: allow_list.map(|path| path.display().to_string()),
        };
        let parts = Parts {
            about,
            service: service.clone(),
            standing: Arc::clone(standing),
            history: Arc::clone(&settings.history),
            announcements: operator.announcements().cloned(),
            bans: bans.clone(),
            invites,
            desk,
            alarms: alarms.log(),
            register,
            orders,
            metrics: metrics.clone(),
            readiness: readiness.clone(),
            clock,
        };
        let pages = Arc::new(Console);
        control = Some(Control::bind(config, listeners.tls.as_ref(), stores, parts, pages)?);
    }
    let (of_standing, standing_printer, of_alarms) = (service.clone(), printer.clone(), alarms.clone());
    let poll = match &config.coins {
        Coins::Chain(chain) => Some(chain.poll),
        Coins::Offline => None,
    };
    let (standing_terms, others) =
        (config.standing.clone(), of_rounds.as_ref().map(|(register, _)| register.clone()));
    let runs_rounds = config.standing.is_none() || config.control.is_some();
    let standing = async move {
        match notices_of_run {
            Some(notices) => {
                let (terms, others) = (standing_terms.as_ref(), others.as_ref());
                standing::run(terms, others, &of_standing, notices, &of_alarms, &standing_printer, poll).await
            }
            None => std::future::pending().await,
        }
    };
    let mut rounds = Rounds::new(RoundParts {
        config,
        series,
        service: service.clone(),
        operator: operator.clone(),
        storage: storage.clone(),
        printer: printer.clone(),
        alarms,
        switches,
        control: of_rounds,
        ledger,
    })?;
    // Behind the rounds, which take the service's events from its start on.
    let control = match (control, notices_of_feed) {
        (Some(control), Some(notices)) => Some(control.open(notices, &printer)?),
        _ => None,
    };
    let outcome = tokio::select! {
        never = reporting => match never {},
        // The cohorts would wait without end.
        gone = service.failed() => {
            readiness.set(false);
            Err(ProgramError::Internal(format!("{gone}; restart with the same --state to continue")))
        }
        never = tls::reload(listeners.tls.clone(), admission, hangups, printer.clone(), unit) => match never {},
        outcome = standing => {
            readiness.set(false);
            outcome
        }
        outcome = rounds.run(announcements), if runs_rounds => {
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
    if let Some(control) = control {
        control.stop().await;
    }
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
