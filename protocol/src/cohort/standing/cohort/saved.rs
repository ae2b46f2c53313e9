//! The state of a standing cohort in one event, which replaces all earlier ones in its journal: a cohort that has announced for years starts
//! as quickly as a new one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    CohortEvent, Credentials, OpenNumber, Phase, Running, StandingCohort, coins::Coins, moving::Migration,
};
use crate::{
    cohort::standing::{
        number::NumberEnd,
        opportunity::Opportunity,
        roster::{Roster, Row},
        successor::Succession,
        terms::StandingTerms,
    },
    did::Did,
    key::PublicKey,
    output::BeaconOutput,
    time::Timestamp,
};

/// The state of a formed cohort. Rosters are not in it: they follow from the rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedCohort {
    /// The terms of the cohort.
    pub terms: Arc<StandingTerms>,
    /// The service.
    pub service: Did,
    output: BeaconOutput,
    seats: BTreeMap<PublicKey, Did>,
    #[serde(default)]
    credentials: BTreeMap<PublicKey, Credentials>,
    log: Arc<Vec<Row>>,
    sent: usize,
    last: u64,
    open: Option<SavedNumber>,
    pending: BTreeSet<PublicKey>,
    paced: Option<Timestamp>,
    opened: Option<Timestamp>,
    failures: u32,
    by_fallback: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    held: bool,
    coins: Coins,
    ended: Option<(u64, NumberEnd)>,
    #[serde(default)]
    migration: Migration,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    succeeds: Option<Succession>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct SavedNumber {
    opportunity: Arc<Opportunity>,
    by_fallback: bool,
    is_signed: bool,
    pending: BTreeSet<PublicKey>,
}

impl StandingCohort {
    /// The event that leads to this state by itself; none before the cohort has formed.
    pub fn saved(&self) -> Option<CohortEvent> {
        let running = self.running()?.clone();
        let open = running.open.map(|OpenNumber { opportunity, by_fallback, is_signed, pending, .. }| {
            SavedNumber { opportunity, by_fallback, is_signed, pending }
        });
        Some(CohortEvent::Saved(Box::new(SavedCohort {
            terms: Arc::clone(&self.config.terms),
            service: self.config.service.clone(),
            output: running.output,
            seats: running.seats,
            credentials: running.credentials,
            log: Arc::clone(running.roster.log()),
            sent: running.sent,
            last: running.last,
            open,
            pending: running.pending,
            paced: running.paced,
            opened: running.opened,
            failures: running.failures,
            by_fallback: running.by_fallback,
            held: running.held,
            coins: running.coins,
            ended: running.ended,
            migration: running.migration,
            succeeds: self.succeeds.clone(),
        })))
    }

    pub(super) fn restore(&mut self, saved: &SavedCohort) {
        let most = self.config.terms.max_dids_per_participant;
        let roster_of = |rows: &Arc<Vec<Row>>| {
            let roster = Roster::new(self.context(&saved.output), saved.seats.keys().copied(), most);
            Arc::new(roster.after(rows))
        };
        let roster = roster_of(&saved.log);
        let open = saved.open.clone().map(|SavedNumber { opportunity, by_fallback, is_signed, pending }| {
            let at_opening = match saved.log.get(..saved.sent) {
                Some(sent) if sent.len() < saved.log.len() => roster_of(&Arc::new(sent.to_vec())),
                _ => Arc::clone(&roster),
            };
            OpenNumber { opportunity, roster: at_opening, by_fallback, is_signed, pending }
        });
        self.succeeds.clone_from(&saved.succeeds);
        self.phase = Phase::Running(Box::new(Running {
            output: saved.output.clone(),
            seats: saved.seats.clone(),
            credentials: saved.credentials.clone(),
            roster,
            sent: saved.sent,
            last: saved.last,
            open,
            pending: saved.pending.clone(),
            paced: saved.paced,
            opened: saved.opened,
            failures: saved.failures,
            by_fallback: saved.by_fallback,
            held: saved.held,
            coins: saved.coins.clone(),
            ended: saved.ended.clone(),
            migration: saved.migration.clone(),
        }));
    }
}
