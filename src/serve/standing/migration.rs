//! The migration of a cohort to its successor (docs/standing.md, "Migration and exit"): what the service does for it without a request.
//!
//! ```text
//!  the successor has formed ─▶ it is named to the seats of the old cohort
//!  its seats have registered ─▶ a number shows them that k of them have signed that
//!  every DID of the old cohort is registered there ─▶ the move (otherwise SIGUSR1 opens it)
//!  the move is final ─▶ what is left at the old address follows by a refresh
//! ```
//!
//! All of it follows from the state of the two cohorts, so that a service that starts again goes on with it.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::{
    actors::{
        handle::{Service, StandingCohort},
        standing::notice::StandingNotice,
    },
    events::Printer,
    protocol::{
        cohort::standing::{CoinRef, OpportunityKind, cohort::StandingCohort as Machine},
        id::CohortId,
    },
};

/// How long a move could open before it does: seats read what the last number has shown, and resolve their DIDs.
const PREPARATION: Duration = Duration::from_secs(3);

/// A cohort and its successor, as they are now. No snapshot is in it: while one exists, its cohort copies itself at the next step.
struct Pair {
    old: StandingCohort,
    new: StandingCohort,
    has_formed: bool,
    is_named: bool,
    has_moved: bool,
    /// The move is final, and what is left pays for a refresh.
    leaves_coins: bool,
    /// The old cohort has no open number, and no announcement on its way to a block.
    is_quiet: bool,
    coins: Vec<CoinRef>,
    /// Whether a number of the successor is open.
    is_showing: bool,
    /// The rows of both cohorts.
    rows: (u64, u64),
    /// The DIDs of the old cohort, and how many of them are not registered at the successor.
    dids: usize,
    missing: usize,
}

/// How far the migrations of a service are, as far as their cohorts do not know it themselves.
#[derive(Default)]
pub(super) struct Migrations {
    /// The rows of a successor at the last look: a number that shows them waits until no more come.
    rows: BTreeMap<CohortId, u64>,
    /// The rows of a successor that a number has shown to its seats.
    shown: BTreeMap<CohortId, u64>,
    /// Since when the move of a cohort could open.
    ready: BTreeMap<CohortId, Instant>,
    /// With how many rows in both cohorts a move was opened. One that fails is tried again by its cohort.
    opened: BTreeMap<CohortId, (u64, u64)>,
    /// The coins that a refresh was opened for.
    followed: BTreeMap<CohortId, Vec<CoinRef>>,
    /// How many DIDs a move was reported to wait for.
    reported: BTreeMap<CohortId, usize>,
}

fn pair(old: &StandingCohort, was: &Machine, new: &StandingCohort, is: &Machine) -> Pair {
    let (has_moved, coins) = (was.moved().is_some(), was.coins());
    let value = coins.iter().map(|coin| coin.value).sum();
    let is_worth_it = || was.affordable(value).is_some_and(|(_, by_fallback)| by_fallback > 0);
    let rows = |machine: &Machine| machine.roster().map_or(0, |roster| roster.row_count());
    let here = || was.roster().into_iter().flat_map(|roster| roster.registered());
    let is_there = |index| is.roster().is_some_and(|roster| roster.seat_of(index).is_some());
    let missing = || here().filter(|row| !is_there(&row.did_index)).count();
    Pair {
        old: old.clone(),
        new: new.clone(),
        has_formed: is.output().is_some(),
        is_named: was.successor().is_some_and(|named| named.cohort_id == *new.id()),
        has_moved,
        leaves_coins: was.is_move_final() && was.open_number().is_none() && !coins.is_empty() && is_worth_it(),
        is_quiet: was.open_number().is_none() && was.unconfirmed().is_empty(),
        coins,
        is_showing: is.open_number().is_some(),
        rows: (rows(was), rows(is)),
        dids: if has_moved { 0 } else { here().count() },
        missing: if has_moved { 0 } else { missing() },
    }
}

/// The cohorts that run, each with its successor if it has one.
async fn pairs(service: &Service) -> Vec<Pair> {
    let cohorts = service.standing_cohorts().await;
    if cohorts.len() < 2 {
        return Vec::new();
    }
    let mut running = BTreeMap::new();
    for cohort in cohorts {
        if let Some(machine) = cohort.inspect().await {
            running.insert(cohort.id().clone(), (cohort, machine));
        }
    }
    let successors = running.values().filter_map(|(new, is)| {
        let (old, was) = running.get(&is.succeeds()?.cohort_id)?;
        Some(pair(old, was, new, is))
    });
    successors.collect()
}

/// What the operator asks for when a number is to open in this cohort: the move, as long as that is not signed. `None` if it announces no
/// more, or has not formed beside another one.
pub(super) fn wanted(machine: &Machine, cohorts: usize) -> Option<OpportunityKind> {
    if machine.moved().is_some() || machine.output().is_none() && cohorts > 1 {
        return None;
    }
    Some(if machine.successor().is_some() { OpportunityKind::Move } else { OpportunityKind::Announcement })
}

/// The cohort that succeeds another one, if it was advertised before.
pub(super) async fn successor_of(service: &Service, old: &CohortId) -> Option<CohortId> {
    pairs(service).await.into_iter().find(|pair| pair.old.id() == old).map(|pair| pair.new.id().clone())
}

impl Migrations {
    /// What has happened in a cohort.
    pub(super) fn notice(&mut self, notice: &StandingNotice) {
        if let StandingNotice::NumberFailed { cohort_id, .. } = notice {
            // Its seats may not know their rows.
            self.shown.remove(cohort_id);
        }
    }

    /// Does what is due.
    pub(super) async fn look(&mut self, service: &Service, printer: &Printer) {
        for pair in pairs(service).await.into_iter().filter(|pair| pair.has_formed) {
            if pair.has_moved {
                self.follow(&pair).await;
            } else if !pair.is_named {
                if let Err(error) = pair.old.name_successor(&pair.new).await {
                    // E.g. it is busy: at the next look.
                    tracing::debug!(%error, cohort_id = %pair.old.id(), "the successor is not named yet");
                }
            } else if self.has_shown(&pair).await {
                self.open(&pair, printer).await;
            }
        }
    }

    /// Shows the seats of the successor that their rows are registered. Whether all are shown.
    async fn has_shown(&mut self, pair: &Pair) -> bool {
        let (id, (_, now)) = (pair.new.id(), pair.rows);
        let is_still = self.rows.insert(id.clone(), now) == Some(now);
        if self.shown.get(id).is_some_and(|shown| *shown >= now) {
            return !pair.is_showing;
        }
        if is_still && now > 0 && pair.new.open_now(OpportunityKind::Roster).await.is_ok() {
            self.shown.insert(id.clone(), now);
        }
        false
    }

    /// Opens the move when every DID can follow, no announcement is on its way to a block, and the seats have had the time to prepare it.
    async fn open(&mut self, pair: &Pair, printer: &Printer) {
        let &Pair { dids, missing, is_quiet, rows, .. } = pair;
        let id = pair.old.id();
        if missing > 0 && self.reported.insert(id.clone(), missing) != Some(missing) {
            printer.warn(&format!(
                "the move of cohort {id} waits: {missing} of its {dids} DIDs are not registered in cohort {}. SIGUSR1 opens it without them; \
                 they can then leave the old address by their Singletons only",
                pair.new.id()
            ));
        }
        // With the same rows nothing would come of a move that did not before.
        let was_tried = self.opened.get(id) == Some(&rows);
        if missing > 0 || dids == 0 || !is_quiet || pair.coins.is_empty() || was_tried {
            self.ready.remove(id);
            return;
        }
        let since = *self.ready.entry(id.clone()).or_insert_with(Instant::now);
        if since.elapsed() < PREPARATION {
            return;
        }
        match pair.old.open_now(OpportunityKind::Move).await {
            Ok(()) => drop(self.opened.insert(id.clone(), rows)),
            // The terms' time has not passed: at a later look.
            Err(error) => tracing::debug!(%error, cohort_id = %id, "the move does not open yet"),
        }
    }

    /// Lets what is left at the old address follow, when the move is final, if that is worth its cost.
    async fn follow(&mut self, pair: &Pair) {
        let id = pair.old.id();
        if !pair.leaves_coins || self.followed.get(id) == Some(&pair.coins) {
            return;
        }
        match pair.old.open_now(OpportunityKind::Refresh).await {
            Ok(()) => drop(self.followed.insert(id.clone(), pair.coins.clone())),
            Err(error) => tracing::debug!(%error, cohort_id = %id, "what is left does not follow yet"),
        }
    }
}
