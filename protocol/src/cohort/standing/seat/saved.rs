//! The state of a seat in one event, which replaces all earlier ones in its journal.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Current, Enrolment, Seat, SeatEvent, Seated, Stage, ends::Ends, moving::Destination, record::Record};
use crate::{
    cohort::standing::{
        context_of,
        message::AskedRow,
        opportunity::Opportunity,
        response::Response,
        roster::{Roster, Row},
        terms::StandingTerms,
    },
    did::Did,
    hash::{DidIndex, DocumentHash},
    id::CohortId,
    output::BeaconOutput,
};

/// The state of a seat of a formed cohort. Rosters are not in it: they follow from the rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedSeat {
    /// The terms of the cohort.
    pub terms: Arc<StandingTerms>,
    /// The service.
    pub service: Did,
    cohort_id: CohortId,
    enrolment: Enrolment,
    output: BeaconOutput,
    asked: Vec<AskedRow>,
    acknowledged: BTreeMap<DidIndex, (u64, u64)>,
    missed: Option<Arc<Opportunity>>,
    current: Option<SavedCurrent>,
    record: Record,
    log: Arc<Vec<Row>>,
    registered: BTreeSet<DidIndex>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    destination: Option<Destination>,
    #[serde(default)]
    ends: Ends,
    #[serde(default)]
    peers: Vec<Did>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct SavedCurrent {
    opportunity: Arc<Opportunity>,
    updates: Vec<(DidIndex, u64, DocumentHash)>,
    given: Vec<(Did, Option<Value>)>,
    response: Option<Arc<Response>>,
    stage: Stage,
}

impl SavedSeat {
    /// The cohort.
    pub const fn cohort_id(&self) -> &CohortId {
        &self.cohort_id
    }

    /// The cohort's output.
    pub const fn output(&self) -> &BeaconOutput {
        &self.output
    }
}

impl Seat {
    /// The event that leads to this state by itself; none before the cohort has formed.
    pub fn saved(&self) -> Option<SeatEvent> {
        let seated = self.seated.clone()?;
        let current = seated.current.map(|Current { opportunity, updates, given, response, stage, .. }| {
            SavedCurrent { opportunity, updates, given, response, stage }
        });
        Some(SeatEvent::Saved(Box::new(SavedSeat {
            terms: Arc::clone(&self.config.terms),
            service: self.config.service.clone(),
            cohort_id: self.config.cohort_id.clone(),
            enrolment: self.enrolment.clone(),
            output: seated.output,
            asked: seated.asked.into_values().collect(),
            acknowledged: seated.acknowledged,
            missed: seated.missed,
            current,
            record: seated.record,
            log: Arc::clone(seated.roster.log()),
            registered: seated.registered,
            destination: seated.destination,
            ends: seated.ends,
            peers: seated.peers,
        })))
    }

    pub(super) fn restore(&mut self, saved: &SavedSeat) {
        let config = &self.config;
        let roster_of = |rows: &Arc<Vec<Row>>| {
            let context = context_of(&config.terms, &config.service, &config.cohort_id, &saved.output);
            let keys = saved.output.keys().iter().copied();
            let roster = Roster::new(context, keys, config.terms.max_dids_per_participant).after(rows);
            config.boards.shared(Arc::new(roster))
        };
        let roster = roster_of(&saved.log);
        let current = saved.current.clone().map(|current| {
            let rows = usize::try_from(current.opportunity.row_count).ok().and_then(|count| saved.log.get(..count));
            let at_opening = match rows {
                Some(rows) if rows.len() < saved.log.len() => roster_of(&Arc::new(rows.to_vec())),
                _ => Arc::clone(&roster),
            };
            let SavedCurrent { opportunity, updates, given, response, stage } = current;
            Current { opportunity, roster: at_opening, updates, given, response, stage }
        });
        self.enrolment = saved.enrolment.clone();
        self.seated = Some(Seated {
            output: saved.output.clone(),
            roster,
            asked: saved.asked.iter().map(|row| ((row.did_index, row.serial), row.clone())).collect(),
            acknowledged: saved.acknowledged.clone(),
            missed: saved.missed.clone(),
            current,
            record: saved.record.clone(),
            registered: saved.registered.clone(),
            destination: saved.destination.clone(),
            ends: saved.ends.clone(),
            peers: saved.peers.clone(),
        });
    }
}
