//! `join --standing`: seats in standing cohorts, by a fixed policy.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::broadcast::error::RecvError;

use super::{ChainQuestions, JoinConfig, connected, transport};
use crate::{
    actors::{
        handle::Member,
        runtime::{Clock, Randomness},
        standing::{
            ChainView, MemberSettings, SeatRequest, boards::BoardStore, notice::SeatNotice, policy::SeatPolicy,
        },
        transport::contact::Contacts,
    },
    costs::SeatCosts,
    error::ProgramError,
    events::Printer,
    protocol::{
        beacon::did_index,
        cohort::standing::{SeatSeed, StandingPolicy, seat::Seat},
        did::Did,
        identity::Identity,
        network::Network,
    },
    standing::{
        controller::{ControlledDid, ControllerParts, StandingController},
        resolver::Resolver,
        updates::UpdateDirectory,
    },
    storage::Storage,
};

/// The settings of seats in standing cohorts.
pub struct StandingJoin {
    /// The secret from which the keys of seats follow.
    pub seed: SeatSeed,
    /// The identity as which seats are asked for, if the service is to know it.
    pub applies_as: Option<Identity>,
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
    /// Whether the state directory was restored from a backup.
    pub restored: bool,
}

/// What stores boards, and what they have of DIDs.
pub(crate) struct Filing<'a> {
    pub(crate) member: &'a Member,
    pub(crate) boards: &'a dyn BoardStore,
    pub(crate) controller: &'a StandingController,
}

impl Filing<'_> {
    /// Stores what seats may not have stored of their last number, because they stopped before they could.
    pub(crate) async fn last_numbers(&self, printer: &Printer) {
        for summary in self.member.seats().await {
            let Some(machine) = self.member.inspect(&summary.seat).await else { continue };
            let number = machine.highest();
            let listed = self.boards.list(&summary.cohort_id, number.saturating_sub(1), BOARDS_OF_NUMBER).await;
            for (_, hash) in listed.unwrap_or_default().into_iter().filter(|(of, _)| *of == number) {
                let Ok(Some(bytes)) = self.boards.get(&hash).await else { continue };
                if let Some(Err(problem)) = self.own(&summary.seat, &machine, number, &bytes) {
                    printer.warn(&format!("number {number}: {problem}"));
                }
            }
        }
    }

    /// Stores what a board has of the seat's DIDs; `None` if the seat's response is not on it, or if it has answered a later number.
    fn own(&self, seat: &Did, machine: &Seat, number: u64, bytes: &Arc<Vec<u8>>) -> Option<Result<(), String>> {
        let board = machine.read_board(bytes).filter(|_| machine.highest() == number)?;
        Some(self.controller.store(seat, number, &board, &machine.own_entries(number)))
    }
}

/// The most boards of one number that are read: a service that starts again may close it once more.
const BOARDS_OF_NUMBER: usize = 8;

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
    let indexes = standing.dids.iter().map(|one| did_index(one.identity.did())).collect();
    let updates = Arc::new(UpdateDirectory::new(standing.updates, indexes, printer.clone()));
    let controller = StandingController::new(ControllerParts {
        dids: standing.dids,
        service: config.service_did.clone(),
        policy: standing.policy,
        invite: config.invite.clone(),
        applies_as: standing.applies_as,
        resolver: Resolver { source, stores, min_conf },
        updates,
        out: &standing.out,
        printer: printer.clone(),
    });
    let costs = storage.state().map(|state| SeatCosts::new(state, clock));
    let controller = Arc::new(controller.map_err(ProgramError::Usage)?.with_costs(costs));
    let policy: Arc<dyn SeatPolicy> = Arc::clone(&controller) as _;
    let mut settings = MemberSettings::new(Arc::new(standing.seed), standing.network, transport, policy);
    settings.boards = Arc::clone(&boards);
    settings.restored = standing.restored;
    settings.journal = storage.journal();
    (settings.clock, settings.randomness) = (clock, Randomness::System);
    settings.chain = Some(ChainView { min_confirmations: confirmations, poll, look_back, ..ChainView::new(chain) });
    let mut notices = settings.notices.subscribe();
    let member = Member::start(settings).await.map_err(|error| ProgramError::Internal(error.to_string()))?;
    if standing.restored && member.seats().await.is_empty() {
        member.stop().await;
        return Err(ProgramError::Usage(
            "--restored: the state directory has no seat: is it the one of the backup?".to_owned(),
        ));
    }
    let filing = Filing { member: &member, boards: &*boards, controller: &controller };
    filing.last_numbers(printer).await;
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
                for number in controller.store_again() {
                    printer.warn(&format!("number {number}: what resolvers need of it is written now"));
                }
                for seat in member.seats().await {
                    let rows = controller.to_prove(&seat.seat);
                    if !rows.is_empty() {
                        let _ = member.request(&seat.seat, SeatRequest::Rows(rows)).await;
                    }
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
                controller.follow(&notice).await;
                printer.notice(&*notice, text(&notice));
            }
            Err(RecvError::Lagged(lost)) => printer.missed(lost),
            Err(RecvError::Closed) => return Ok(true),
        }
    }
}

/// A notice for people.
pub(crate) fn text(notice: &SeatNotice) -> String {
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
        SeatNotice::SuccessorKnown { cohort_id, successor, beacon_address, .. } => {
            format!("cohort {cohort_id} moves to cohort {successor}, {beacon_address}")
        }
        SeatNotice::MovePrepared { successor, registered, left, .. } => format!(
            "{} DIDs are registered at cohort {successor} and move there; {} stay behind",
            registered.len(),
            left.len()
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
        SeatNotice::SeatRestored { cohort_id, coins, .. } => format!(
            "the seat in cohort {cohort_id} was restored from a backup, and may have signed what the backup does not have: until {} coins are \
             spent by final transactions it submits no update but those that the backup shows as submitted. That is stored: start without \
             --restored from now on. The operator ends the wait by a refresh of all coins",
            coins.len()
        ),
        SeatNotice::SeatSettled { cohort_id, .. } => format!(
            "the seat in cohort {cohort_id}: every coin of the time of its restore is spent, updates are submitted again"
        ),
        SeatNotice::CoinSpent { by, .. } => format!("{by} is final"),
        SeatNotice::SeatRejected { from, code, detail, .. } => match from {
            Some(from) => format!("refused a message of {from} ({code}): {detail}"),
            None => format!("refused a message ({code}): {detail}"),
        },
        SeatNotice::SeatHalted { reason, .. } => format!("error: a seat cannot continue: {reason}"),
        other => format!("{other:?}"),
    }
}
