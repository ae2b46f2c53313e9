//! From the request for a seat to the formed cohort.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Decided, Seat, SeatEffect, SeatEvent, Seated, ends::Ends, record::Record};
use crate::{
    cohort::standing::{
        context_of,
        message::{MAX_PEERS, SeatOptIn, SeatRefused, StandingReady},
        roster::Roster,
    },
    did::Did,
    error::{Reject, RejectCode},
    output::BeaconOutput,
    time::Timestamp,
};

/// What has become of the request for the seat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Enrolment {
    /// Nothing was asked for.
    New,
    /// It was asked for.
    Asked(SeatOptIn),
    /// The service has promised it, if the cohort forms.
    Accepted(SeatOptIn),
    /// The service does not give it.
    Refused(String),
}

impl Seat {
    /// What has become of the request for the seat.
    pub const fn enrolment(&self) -> &Enrolment {
        &self.enrolment
    }

    pub(super) fn on_opt_in(&self, now: Timestamp, opt_in: &SeatOptIn) -> Decided {
        // A refused seat may ask again, e.g. with an invite.
        let may_ask = matches!(self.enrolment, Enrolment::New | Enrolment::Refused(_));
        if !may_ask || self.seated.is_some() {
            return Err(Reject::out_of_phase("opt-in", "asked before"));
        }
        let (terms, service) = (self.config.terms.clone(), self.config.service.clone());
        Ok(vec![SeatEvent::OptedIn { at: now, terms, service, opt_in: opt_in.clone() }])
    }

    pub(super) fn on_accept(&self, now: Timestamp) -> Vec<SeatEvent> {
        match self.enrolment {
            Enrolment::Asked(_) => vec![SeatEvent::Accepted { at: now }],
            _ => Vec::new(),
        }
    }

    pub(super) fn on_refused(&self, now: Timestamp, refused: &SeatRefused) -> Vec<SeatEvent> {
        match self.enrolment {
            // A promised seat too: the operator has cancelled the cohort before it has formed.
            Enrolment::Asked(_) | Enrolment::Accepted(_) => {
                let reason = crate::text::shown_within(&refused.reason, 200).into_owned();
                vec![SeatEvent::Refused { at: now, reason }]
            }
            _ => Vec::new(),
        }
    }

    /// The cohort's keys. The seat derives the address itself.
    pub(super) fn on_ready(&self, now: Timestamp, ready: &StandingReady) -> Decided {
        if !ready.cohort_keys.contains(&self.config.seat) {
            return Err(self.reject(RejectCode::AddressMismatch, "the cohort's keys lack this seat's"));
        }
        let seats = ready.cohort_keys.len();
        let (least, most) = (self.config.terms.min_participants, self.config.terms.max_participants);
        if !(usize::from(least)..=usize::from(most)).contains(&seats) {
            return Err(self.reject(RejectCode::UnacceptableTerms, "not as many seats as the terms have"));
        }
        if let Some(objection) = self.config.policy.objections(&self.config.terms, Some(seats)).first() {
            return Err(self.reject(RejectCode::UnacceptableTerms, objection));
        }
        let output = super::super::output_of(&self.config.terms, &ready.cohort_keys, &*self.config.aggregator)
            .map_err(|error| self.reject(RejectCode::AddressMismatch, error))?;
        if output.address() != ready.beacon_address {
            return Err(self.reject(RejectCode::AddressMismatch, "the address does not follow from the keys"));
        }
        let peers = self.on_peers(now, &[], ready);
        Ok(std::iter::once(SeatEvent::Formed { at: now, output }).chain(peers).collect())
    }

    /// The seats that the service names, if it names others than before.
    pub(super) fn on_peers(&self, now: Timestamp, known: &[Did], ready: &StandingReady) -> Option<SeatEvent> {
        let peers: Vec<Did> = ready.peers.iter().take(MAX_PEERS).cloned().collect();
        (!peers.is_empty() && peers != known).then_some(SeatEvent::PeersLearned { at: now, peers })
    }

    pub(super) fn apply_enrolment(&mut self, event: &SeatEvent) {
        match (event, &self.enrolment) {
            (SeatEvent::OptedIn { opt_in, .. }, _) => self.enrolment = Enrolment::Asked(opt_in.clone()),
            (SeatEvent::Accepted { .. }, Enrolment::Asked(opt_in)) => {
                self.enrolment = Enrolment::Accepted(opt_in.clone());
            }
            (SeatEvent::Refused { reason, .. }, _) => self.enrolment = Enrolment::Refused(reason.clone()),
            _ => {}
        }
    }

    /// The request again: a service journals it when it has admitted the seat only.
    pub(super) fn ask_again(&self) -> Vec<SeatEffect> {
        match &self.enrolment {
            Enrolment::Asked(opt_in) | Enrolment::Accepted(opt_in) => vec![SeatEffect::Send(opt_in.clone().into())],
            Enrolment::New | Enrolment::Refused(_) => Vec::new(),
        }
    }

    /// The seat of a cohort that has just formed with this output.
    pub(super) fn seated_with(&self, output: &BeaconOutput) -> Seated {
        let config = &self.config;
        let context = context_of(&config.terms, &config.service, &config.cohort_id, output);
        let most = config.terms.max_dids_per_participant;
        let roster = Roster::new(context, output.keys().iter().copied(), most);
        Seated {
            output: output.clone(),
            roster: Arc::new(roster),
            asked: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            missed: None,
            current: None,
            record: Record::default(),
            registered: BTreeSet::new(),
            destination: None,
            ends: Ends::default(),
            peers: Vec::new(),
        }
    }
}
