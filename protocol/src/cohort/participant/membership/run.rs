//! The cohorts of this run: open sessions, and bounded memory of cohorts in which we take no part. Unauthenticated peers
//! choose how many there are.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::CohortKey;
use crate::{cohort::Advert, id::CohortId};

/// The number of cohorts that are remembered of each kind.
const REMEMBERED: usize = 1024;

/// What a cohort is to us in this run. A cohort has one standing at a time.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Standing {
    /// It has a session.
    Session(Session),
    /// Its session cannot continue until the host is restarted. We have joined it, so our own actions bound their
    /// number.
    Halted,
    /// We did not join it.
    Declined,
    /// It has formed, and we have no session of it: an old advert does not start it again.
    Formed,
    /// Its session is over.
    Over,
}

/// An open session.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Session {
    /// The cohort that replaces this one, as the service claims.
    pub(super) claim: Option<CohortId>,
    /// How it has ended, if its driver has only to stop.
    pub(super) over: Option<Over>,
}

/// How a session has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// We had not joined.
    Declined,
    /// The cohort is over for us.
    Ended,
}

/// The cohorts of this run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Run {
    standings: BTreeMap<CohortKey, Standing>,
    sessions: usize,
    /// The order in which the standings of each bounded kind were recorded.
    declined: VecDeque<CohortKey>,
    formed: VecDeque<CohortKey>,
    over: VecDeque<CohortKey>,
}

impl Run {
    pub(super) fn standing(&self, cohort: &CohortKey) -> Option<&Standing> {
        self.standings.get(cohort)
    }

    pub(super) fn session(&self, cohort: &CohortKey) -> Option<&Session> {
        match self.standings.get(cohort) {
            Some(Standing::Session(session)) => Some(session),
            _ => None,
        }
    }

    fn session_mut(&mut self, cohort: &CohortKey) -> Option<&mut Session> {
        match self.standings.get_mut(cohort) {
            Some(Standing::Session(session)) => Some(session),
            _ => None,
        }
    }

    pub(super) const fn sessions(&self) -> usize {
        self.sessions
    }

    /// Whether a session with a cohort of this identifier is open, at any service.
    pub(super) fn has_session_named(&self, cohort_id: &CohortId) -> bool {
        self.standings
            .iter()
            .any(|(cohort, standing)| cohort.cohort_id == *cohort_id && matches!(standing, Standing::Session(_)))
    }

    pub(super) fn start(&mut self, advert: &Arc<Advert>, over: Option<Over>) {
        let cohort = CohortKey::from(&**advert);
        self.drop_standing(&cohort);
        self.sessions += 1;
        self.standings.insert(cohort, Standing::Session(Session { claim: None, over }));
    }

    pub(super) fn claim(&mut self, cohort: &CohortKey, next: &CohortId) {
        if let Some(session) = self.session_mut(cohort) {
            session.claim = Some(next.clone());
        }
    }

    pub(super) fn end(&mut self, cohort: &CohortKey, over: Over) {
        if let Some(session) = self.session_mut(cohort) {
            session.over = Some(over);
        }
    }

    pub(super) fn close(&mut self, cohort: &CohortKey) {
        if self.session(cohort).is_some() {
            self.drop_standing(cohort);
        }
    }

    /// A cohort that was declined replaces one of ours: its advert may have arrived first, over another transport. It is
    /// considered when the advert is repeated.
    pub(super) fn reconsider(&mut self, cohort: &CohortKey) {
        if matches!(self.standing(cohort), Some(Standing::Declined)) {
            self.drop_standing(cohort);
        }
    }

    /// Records the standing. The oldest cohort of a bounded kind is forgotten.
    pub(super) fn remember(&mut self, cohort: &CohortKey, standing: Standing) {
        self.drop_standing(cohort);
        if let Some(order) = self.order(&standing) {
            order.push_back(cohort.clone());
            if order.len() > REMEMBERED
                && let Some(oldest) = order.pop_front()
            {
                self.standings.remove(&oldest);
            }
        }
        self.standings.insert(cohort.clone(), standing);
    }

    fn drop_standing(&mut self, cohort: &CohortKey) {
        let Some(standing) = self.standings.remove(cohort) else { return };
        if matches!(standing, Standing::Session(_)) {
            self.sessions -= 1;
        }
        if let Some(order) = self.order(&standing) {
            order.retain(|other| other != cohort);
        }
    }

    fn order(&mut self, standing: &Standing) -> Option<&mut VecDeque<CohortKey>> {
        match standing {
            Standing::Session(_) | Standing::Halted => None,
            Standing::Declined => Some(&mut self.declined),
            Standing::Formed => Some(&mut self.formed),
            Standing::Over => Some(&mut self.over),
        }
    }
}
