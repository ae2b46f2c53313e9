//! `join --standing`: seats in standing cohorts, by a fixed policy.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::broadcast::error::RecvError;

use super::{ChainQuestions, JoinConfig, connected, transport};
use crate::{
    actors::{
        handle::Member,
        runtime::{Clock, Randomness},
        standing::{ChainView, MemberSettings, SeatRequest, notice::SeatNotice, policy::SeatPolicy},
        transport::contact::Contacts,
    },
    error::ProgramError,
    events::Printer,
    protocol::{
        cohort::standing::{SeatSeed, StandingPolicy},
        network::Network,
    },
    standing::{
        controller::{ControlledDid, ControllerParts, StandingController},
        resolver::Resolver,
    },
    storage::Storage,
};

/// The settings of seats in standing cohorts.
pub struct StandingJoin {
    /// The secret from which the keys of seats follow.
    pub seed: SeatSeed,
    /// The network.
    pub network: Network,
    /// The DIDs to register.
    pub dids: Vec<ControlledDid>,
    /// What is accepted of terms.
    pub policy: StandingPolicy,
    /// The directory of signed updates.
    pub updates: Option<PathBuf>,
    /// The directory in which every DID has its Sidecar Data.
    pub out: PathBuf,
}

/// Takes part until `stop` is ready.
///
/// # Errors
/// [`ProgramError`] when it cannot start, or a seat cannot continue.
pub async fn run(
    config: &JoinConfig,
    standing: StandingJoin,
    stop: impl Future<Output = ()>,
) -> Result<bool, ProgramError> {
    let printer = Printer::new(config.json).with_times(config.times);
    let clock = Clock::system();
    let lost = "the records of its seats are lost, with what may still be announced of its DIDs";
    let storage = Storage::open(config.state.as_deref(), lost, &printer)?;
    let terms =
        serde_json::to_value(&standing.policy).map_err(|error| ProgramError::Internal(error.to_string()))?;
    storage.check_owner("join-standing", &config.identity, standing.network, terms, &printer).await?;
    let outcome = take_part(config, standing, &storage, clock, &printer, stop).await;
    storage.close().await;
    outcome
}

async fn take_part(
    config: &JoinConfig,
    standing: StandingJoin,
    storage: &Storage,
    clock: Clock,
    printer: &Printer,
    stop: impl Future<Output = ()>,
) -> Result<bool, ProgramError> {
    let Some(ChainQuestions { source, poll, confirmations, look_back }) = config.chain.clone() else {
        return Err(ProgramError::Usage("--standing needs --chain KIND=URL".to_owned()));
    };
    let contacts = Contacts::default();
    let reporting = printer.clone().follow(contacts.subscribe());
    let transport = transport(config, clock, &contacts)?;
    let boards = storage.boards();
    let stores = config.publication.stores.clone();
    let min_conf = config.min_conf.unwrap_or(confirmations).max(1);
    let chain = source.connect(standing.network).await;
    let chain = chain.map_err(|error| ProgramError::Usage(format!("--chain: {error}")))?;
    let controller = StandingController::new(ControllerParts {
        dids: standing.dids,
        service: config.service_did.clone(),
        policy: standing.policy,
        resolver: Resolver { source, stores, min_conf },
        updates: standing.updates,
        out: &standing.out,
        printer: printer.clone(),
    });
    let controller = Arc::new(controller.map_err(ProgramError::Usage)?);
    let policy: Arc<dyn SeatPolicy> = Arc::clone(&controller) as _;
    let mut settings = MemberSettings::new(Arc::new(standing.seed), standing.network, transport, policy);
    settings.boards = Arc::clone(&boards);
    settings.journal = storage.journal();
    (settings.clock, settings.randomness) = (clock, Randomness::System);
    settings.chain = Some(ChainView { min_confirmations: confirmations, poll, look_back, ..ChainView::new(chain) });
    let mut notices = settings.notices.subscribe();
    let member = Member::start(settings).await.map_err(|error| ProgramError::Internal(error.to_string()))?;
    let connected = connected(config.connect_timeout, contacts);
    tokio::pin!(reporting, connected, stop);
    let mut updates = tokio::time::interval(poll);
    loop {
        let notice = tokio::select! {
            notice = notices.recv() => notice,
            never = &mut reporting => match never {},
            problem = &mut connected => {
                printer.warn(&problem);
                return Ok(false);
            }
            gone = member.failed() => {
                return Err(ProgramError::Internal(format!("{gone}; restart with the same --state to continue")));
            }
            // New updates in the directory: the seats claim them.
            _ = updates.tick() => {
                for seat in member.seats().await {
                    // A seat that has just ended needs none.
                    let _ = member.request(&seat.seat, SeatRequest::Claim).await;
                }
                continue;
            }
            () = &mut stop => {
                member.stop().await;
                return Ok(true);
            }
        };
        match notice {
            Ok(notice) => {
                if let SeatNotice::Missed { seat, board_hash, .. } = &*notice {
                    let beacon = member.inspect(seat).await.map(|seat| seat.config().terms.beacon_type);
                    let stored = match (beacon, boards.get(board_hash).await) {
                        (Some(beacon), Ok(Some(bytes))) => controller.store_missed(beacon, &bytes),
                        (_, Err(error)) => Err(error.to_string()),
                        _ => Err("the board is gone".to_owned()),
                    };
                    if let Err(problem) = stored {
                        printer.warn(&format!("what was missed cannot be stored: {problem}"));
                    }
                }
                printer.notice(&*notice, text(&notice));
            }
            Err(RecvError::Lagged(lost)) => printer.missed(lost),
            Err(RecvError::Closed) => return Ok(true),
        }
    }
}

/// A notice for people.
fn text(notice: &SeatNotice) -> String {
    match notice {
        SeatNotice::OfferDeclined { service, cohort_id, reasons } => {
            format!("cohort {cohort_id} of {service} is not joined: {}", reasons.join("; "))
        }
        SeatNotice::SeatAsked { service, cohort_id, .. } => {
            format!("asked {service} for a seat in cohort {cohort_id}")
        }
        SeatNotice::SeatAccepted { cohort_id, .. } => {
            format!("the service has promised a seat in cohort {cohort_id}")
        }
        SeatNotice::SeatNotGiven { cohort_id, reason, .. } => format!("no seat in cohort {cohort_id}: {reason}"),
        SeatNotice::SeatFormed { cohort_id, beacon_address, seats, spenders, .. } => format!(
            "cohort {cohort_id} has formed of {seats} seats at {beacon_address}: {spenders} of them together, the operator's included, can spend \
             the coin and can end every DID of the cohort"
        ),
        SeatNotice::SeatRecovered { cohort_id, number, .. } => {
            format!("the seat in cohort {cohort_id} continues after number {number}")
        }
        SeatNotice::SeatRestarted { cohort_id, restarts, .. } => {
            format!("the seat in cohort {cohort_id} was restarted after a fault ({restarts} in this minute)")
        }
        SeatNotice::RowsAcknowledged { indexes, from_number, .. } => format!(
            "the service has registered {} DIDs, from number {from_number} on: no document may list the beacon for them yet",
            indexes.len()
        ),
        SeatNotice::NotRegistered { refused, .. } => {
            let each: Vec<_> = refused.iter().map(|(index, why)| format!("{index}: {why}")).collect();
            format!("not registered: {}", each.join("; "))
        }
        SeatNotice::Registered { registered, released, .. } => format!(
            "enough seats have signed that {} DIDs are this seat's: their documents may list the beacon now ({} released)",
            registered.len(),
            released.len()
        ),
        SeatNotice::Responded { number, updates, .. } => {
            format!("number {number}: responded with {updates} updates")
        }
        SeatNotice::UpdatesRefused { number, reason, .. } => {
            format!("number {number}: no update is submitted: {reason}")
        }
        SeatNotice::SeatSigned { number, txid, .. } => format!("number {number}: signed {txid}"),
        SeatNotice::SeatRefusedToSign { number, reason, .. } => format!("number {number}: not signed: {reason}"),
        SeatNotice::Announced { number, txid, .. } => {
            format!("number {number}: {txid} is signed; it counts for resolvers when it is in a block, deep enough")
        }
        SeatNotice::Missed { number, txid, .. } => {
            format!("number {number}: {txid} was announced without this seat; its board is stored")
        }
        SeatNotice::CoinSpent { by, .. } => format!("{by} is final"),
        SeatNotice::SeatRejected { from, code, detail, .. } => match from {
            Some(from) => format!("refused a message of {from} ({code}): {detail}"),
            None => format!("refused a message ({code}): {detail}"),
        },
        SeatNotice::SeatHalted { reason, .. } => format!("error: a seat cannot continue: {reason}"),
        other => format!("{other:?}"),
    }
}
