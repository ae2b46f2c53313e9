//! `serve --standing`: one standing cohort, which announces for years, and its successor.

mod migration;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::MissedTickBehavior,
};

use self::migration::{Migrations, successor_of, wanted};
use super::{
    ChainConfig, Coins, ServeConfig,
    admission::AdmissionRules,
    alarm::Alarms,
    orders::COMMAND_LINE,
    register::{CohortRecord, Register},
    terms::StandingConfig,
};
use crate::{
    actors::{
        bans::end_of_ban,
        handle::{Service, StandingCohort, StandingError},
        standing::{ChainView, StandingSettings, notice::StandingNotice},
        state::transfer::STANDING_DIDS,
    },
    bitcoin::chain::Chain,
    error::ProgramError,
    events::Printer,
    protocol::cohort::standing::{Absent, Mode, OpportunityKind, StandingTerms, announcement_vsize},
    standing::{
        operator::{Fees, StandingOperator},
        resolver::Resolver,
    },
    storage::Storage,
    telemetry::{Request, Requests},
};

/// The highest fee rate without a chain and without terms, in sat/vB. The terms of each cohort bound it.
const MOST_RATE: u32 = 1_000;

/// How often the service looks whether a migration goes on, without a chain.
const LOOK: Duration = Duration::from_secs(1);

/// The table of the operator's outputs of single cohorts.
const OUTPUTS: &str = "control-outputs";

/// What the service needs for standing cohorts: that of the command line, or any of a control API.
pub(super) async fn settings(
    config: &ServeConfig,
    storage: &Storage,
    chain: Option<Arc<dyn Chain>>,
    admission: AdmissionRules,
) -> Result<(StandingSettings, Arc<StandingOperator>), ProgramError> {
    let standing = config.standing.as_ref();
    let boards = storage.boards();
    let table = storage.state().map(|state| state.table(STANDING_DIDS));
    let chain_config: Option<&ChainConfig> = match &config.coins {
        Coins::Chain(chain) => Some(chain),
        Coins::Offline => None,
    };
    let default = Fees {
        floor: ::bitcoin::FeeRate::BROADCAST_MIN,
        ceiling: ::bitcoin::FeeRate::from_sat_per_vb_u32(
            standing.map_or(MOST_RATE, |standing| standing.terms.max_fee_rate),
        ),
        fixed: None,
        target: 6,
    };
    let fees = chain_config.map_or(default, |chain| Fees {
        floor: chain.fee_floor,
        ceiling: chain.fee_ceiling,
        fixed: chain.fee_rate,
        target: chain.fee_target,
    });
    let mut operator = StandingOperator::new(fees, config.publication.clone(), Arc::clone(&boards), table)
        .with_output(standing.and_then(|standing| standing.output.clone()))
        .with_admission(Arc::new(admission));
    let mut settings = StandingSettings { boards, history: storage.history(), ..StandingSettings::default() };
    if let (Some(chain), Some(chain_config)) = (chain, chain_config) {
        let resolver = Resolver {
            source: chain_config.source.clone(),
            stores: config.publication.stores.clone(),
            min_conf: chain_config.confirmations,
        };
        operator = operator.with_chain(Arc::clone(&chain), resolver);
        let view = ChainView {
            min_confirmations: chain_config.confirmations,
            poll: chain_config.poll,
            patience: u32::from(chain_config.fee_target),
            ..ChainView::new(chain)
        };
        settings.chain = Some(view);
    }
    if let Some(state) = storage.state().filter(|_| config.control.is_some()) {
        operator = operator.with_outputs(state.table(OUTPUTS)).await.map_err(ProgramError::State)?;
    }
    let operator = Arc::new(operator);
    settings.policy = Arc::clone(&operator) as _;
    Ok((settings, operator))
}

/// Prints what a cohort costs and who can end it.
fn explain(terms: &StandingTerms, printer: &Printer) {
    let seats = usize::from(terms.max_participants);
    let spenders = terms.spenders(seats);
    let by_key = announcement_vsize(terms, seats, Mode::Key);
    let sizes = match terms.absent {
        Absent::Wait => format!("{by_key} vB"),
        Absent::Proceed => {
            format!("{by_key} vB by key path, {} vB by fallback", announcement_vsize(terms, seats, Mode::Fallback))
        }
    };
    printer.warn(&format!(
        "{spenders} of {seats} seats together, your own included, can spend the coin and can end every DID of this cohort; fewer can do neither. \
         If more than {} keys are lost, the coin is lost. An announcement takes {sizes}",
        seats - spenders
    ));
}

/// Opens a number because the operator asks for it.
async fn open(service: &Service, request: Request, printer: &Printer) {
    let cohorts = service.standing_cohorts().await;
    for cohort in &cohorts {
        let (signal, kind) = match request {
            Request::Open => {
                let machine = cohort.inspect().await;
                let Some(kind) = machine.and_then(|machine| wanted(&machine, cohorts.len())) else { continue };
                ("SIGUSR1", kind)
            }
            Request::Refresh => ("SIGUSR2", OpportunityKind::Refresh),
        };
        if let Err(error) = cohort.open_now(kind).await {
            let reason = match &error {
                StandingError::Refused(reject) => reject.detail.clone(),
                error => error.to_string(),
            };
            printer.warn(&format!("{signal}: no number was opened: {reason}"));
        }
    }
}

/// The cohorts of the command line's terms: with a control API (`others`) there are others.
async fn ours(others: Option<&Register>, service: &Service) -> Vec<StandingCohort> {
    let is_ours = |cohort: &StandingCohort| {
        let record = others.and_then(|register| register.get(cohort.id()));
        record.is_none_or(|record| record.template.as_deref() == Some(COMMAND_LINE))
    };
    service.standing_cohorts().await.into_iter().filter(is_ours).collect()
}

/// Advertises the cohort of these terms, or its successor, unless it runs already.
async fn advertise(
    standing: &StandingConfig,
    others: Option<&Register>,
    service: &Service,
) -> Result<(), ProgramError> {
    let terms = standing.terms.clone();
    let opened = match &standing.succeeds {
        None if ours(others, service).await.is_empty() => service.open_standing(terms).await,
        None => return Ok(()),
        Some(old) if successor_of(service, old).await.is_some() => return Ok(()),
        Some(old) => match service.standing_cohorts().await.iter().find(|cohort| cohort.id() == old) {
            Some(old) => service.open_successor(terms, old).await,
            None => {
                let problem = format!("--succeeds {old}: no such cohort is in the state directory");
                return Err(ProgramError::Usage(problem));
            }
        },
    };
    let problem = |error| ProgramError::Usage(format!("the terms of the standing cohort: {error}"));
    let cohort = opened.map_err(problem)?;
    if let Some(register) = others {
        let record = CohortRecord { template: Some(COMMAND_LINE.to_owned()), paused: false };
        register.add(cohort.id(), record).await?;
    }
    Ok(())
}

/// Reports cohorts that continue on other terms than these. A cohort that has a successor is to have others.
async fn compare(standing: &StandingConfig, others: Option<&Register>, service: &Service, printer: &Printer) {
    for cohort in ours(others, service).await {
        let machine = cohort.inspect().await;
        if machine.is_some_and(|machine| *machine.config().terms != standing.terms)
            && successor_of(service, cohort.id()).await.is_none()
        {
            printer.warn(&format!(
                "cohort {} continues on the terms that it was advertised with: they are fixed for the life of its address",
                cohort.id()
            ));
        }
    }
}

/// Runs the cohorts until the service stops: continues those in the journal; advertises `standing`, if there is none. With a control API
/// (`others`) there are others, and one that cannot continue does not end the program. `poll` is the time between two looks at the chain.
pub(super) async fn run(
    standing: Option<&StandingConfig>,
    others: Option<&Register>,
    service: &Service,
    mut notices: broadcast::Receiver<Arc<StandingNotice>>,
    alarms: &Alarms,
    printer: &Printer,
    poll: Option<Duration>,
) -> Result<bool, ProgramError> {
    let mut requests = Requests::new();
    if let Some(standing) = standing {
        explain(&standing.terms, printer);
        advertise(standing, others, service).await?;
        compare(standing, others, service, printer).await;
    }
    for cohort in service.standing_cohorts().await {
        if others.and_then(|register| register.get(cohort.id())).is_some_and(|record| record.paused) {
            // One that has formed has no advert.
            let _ = cohort.advertise(false).await;
        }
    }
    let (mut migrations, mut looks) = (Migrations::default(), tokio::time::interval(poll.unwrap_or(LOOK)));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let notice = tokio::select! {
            notice = notices.recv() => notice,
            request = requests.next() => {
                open(service, request, printer).await;
                continue;
            }
            _ = looks.tick() => {
                migrations.look(service, printer).await;
                continue;
            }
        };
        match notice {
            Ok(notice) => {
                migrations.notice(&notice);
                alarms.standing(&notice, text(&notice));
                if others.is_none()
                    && let StandingNotice::StandingHalted { cohort_id, reason } = &*notice
                {
                    printer.notice(&*notice, text(&notice));
                    return Err(ProgramError::Internal(format!(
                        "standing cohort {cohort_id} cannot continue: {reason}; restart with the same --state"
                    )));
                }
                printer.notice(&*notice, text(&notice));
            }
            Err(RecvError::Lagged(lost)) => printer.missed(lost),
            Err(RecvError::Closed) => return Ok(true),
        }
    }
}

/// A notice for people.
fn text(notice: &StandingNotice) -> String {
    match notice {
        StandingNotice::StandingAdvertised { cohort_id } => {
            format!("standing cohort {cohort_id} is advertised")
        }
        StandingNotice::SeatAdmitted { seat, .. } => format!("{seat} has a seat"),
        StandingNotice::SeatRefused { seat, reason, .. } => format!("{seat} has no seat: {reason}"),
        StandingNotice::SeatBanned { seat, offence, until, .. } => format!(
            "{seat} is admitted to no other cohort until {}: {}",
            end_of_ban(*until),
            serde_json::to_value(offence).ok().as_ref().and_then(|offence| offence.as_str()).unwrap_or_default()
        ),
        StandingNotice::StandingFormed { cohort_id, beacon_address, seats } => {
            format!("standing cohort {cohort_id} has formed of {seats} seats; send a deposit to {beacon_address}")
        }
        StandingNotice::SuccessorNamed { cohort_id, successor, beacon_address } => {
            format!("standing cohort {cohort_id} moves to cohort {successor}, {beacon_address}")
        }
        StandingNotice::StandingRecovered { cohort_id, beacon_address, number } => match beacon_address {
            Some(address) => {
                format!("standing cohort {cohort_id} continues at {address} after number {number}")
            }
            None => format!("standing cohort {cohort_id} continues to wait for seats"),
        },
        StandingNotice::StandingRestarted { cohort_id, restarts } => {
            format!("standing cohort {cohort_id} was restarted after a fault ({restarts} in this minute)")
        }
        StandingNotice::RowsSettled { seat, registered, refused, .. } => match refused.first() {
            Some((index, why)) => {
                format!("{seat}: {registered} DIDs registered, {} refused, e.g. {index}: {why}", refused.len())
            }
            None => format!("{seat}: {registered} DIDs registered"),
        },
        StandingNotice::CoinArrived { outpoint, value, .. } => {
            format!("a coin of {value} sat is final: {outpoint}")
        }
        StandingNotice::NumberOpened { number, kind, .. } => match kind {
            OpportunityKind::Announcement => format!("number {number} is open: seats are asked for updates"),
            OpportunityKind::Refresh => format!("number {number} is open: it joins coins, and announces nothing"),
            OpportunityKind::Move => {
                format!(
                    "number {number} is open: seats are asked for updates that move their DIDs to the successor"
                )
            }
            OpportunityKind::Roster => {
                format!("number {number} is open: it shows the seats what is registered, and announces nothing")
            }
        },
        StandingNotice::ResponseRefused { number, seat, reason, .. } => {
            format!("number {number}: the response of seat {seat} does not count: {reason}")
        }
        StandingNotice::NumberIdle { number, absent, .. } => {
            format!("number {number}: no seat has an update ({} were silent)", absent.len())
        }
        StandingNotice::NumberFailed { number, reason, absent, refused, .. } => {
            let refusals: Vec<_> = refused.iter().map(|(seat, why)| format!("{seat}: {why}")).collect();
            let refusals = if refusals.is_empty() { String::new() } else { format!("; {}", refusals.join("; ")) };
            format!(
                "number {number} has failed, the next one spends the same coin: {reason} ({} were silent{refusals})",
                absent.len()
            )
        }
        StandingNotice::NumberSigned { number, txid, mode, absent, balance, announcements_left, .. } => format!(
            "number {number} is signed by {}, {} seats were silent: {txid}; {balance} sat are left, for about {} announcements by key path, or {} \
             by fallback",
            match mode {
                Mode::Key => "all seats",
                Mode::Fallback => "fallback",
            },
            absent.len(),
            announcements_left.0,
            announcements_left.1
        ),
        StandingNotice::BalanceLow {
            beacon_address, balance, announcements_left: (by_key, by_fallback), ..
        } => {
            format!(
                "warning: {balance} sat are left, for {by_key} announcements by key path, or {by_fallback} by fallback: send a deposit to \
                 {beacon_address}, which is joined with them when it is final"
            )
        }
        StandingNotice::NumberUnconfirmed {
            number, txid, blocks, fee_rate, last_number, bump, bump_value, ..
        } => {
            let waits = format!(
                "warning: number {number} ({txid}, {fee_rate} sat/vB) is in none of the last {blocks} blocks"
            );
            let of_chain = match last_number > number {
                true => format!(" of number {last_number}, the last that descends from it,"),
                false => String::new(),
            };
            match (bump, bump_value) {
                (Some(bump), Some(value)) => format!(
                    "{waits}: to bump it, spend your output {bump} ({value} sat){of_chain} in your wallet, with other coins of yours and a fee \
                     that pays for all of them; never spend a coin of the cohort another time"
                ),
                _ => format!(
                    "{waits}; it has no output of yours that could pay for it (--operator-output): it waits until fees fall"
                ),
            }
        }
        StandingNotice::SubmissionFailed { txid, problem, .. } => {
            format!("warning: {txid} was not accepted, and is submitted again: {problem}")
        }
        StandingNotice::NumberConfirmed { number, .. } => format!("number {number} is final"),
        StandingNotice::NumbersVoid { numbers, by, .. } => {
            format!(
                "warning: {by} has spent the coin of numbers {numbers:?}: they can never be mined, and are announced again"
            )
        }
        StandingNotice::StandingRejected { from, code, detail, .. } => match from {
            Some(from) => format!("refused a message of {from} ({code}): {detail}"),
            None => format!("refused a message ({code}): {detail}"),
        },
        StandingNotice::StandingCancelled { cohort_id, reason } => {
            format!("standing cohort {cohort_id} is cancelled: {reason}")
        }
        StandingNotice::StandingHalted { cohort_id, reason } => {
            format!("error: standing cohort {cohort_id} cannot continue: {reason}")
        }
        other => format!("{other:?}"),
    }
}
