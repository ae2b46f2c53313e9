//! What a participant knows of the cohorts that it joined: journaled, and bounded by its own actions.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{CohortKey, MembershipEvent};
use crate::{cohort::Advert, remembered::Remembered, time::Timestamp};

/// The maximum number of expected successors of our cohorts.
const SUCCESSORS: usize = 64;

/// The number of ended cohorts that are remembered, so that a repeated advert does not start them again.
const ENDED: usize = 1024;

/// The cohorts that we joined.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Facts {
    joined: BTreeMap<CohortKey, Joined>,
    ended: Remembered<CohortKey>,
    successors: VecDeque<Successor>,
}

/// A cohort that we joined, and that is not over for us.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Joined {
    /// Its advert.
    pub advert: Arc<Advert>,
    /// Whether it has formed.
    pub formed: bool,
}

/// A cohort that replaces one of ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Successor {
    /// The cohort.
    pub cohort: CohortKey,
    /// The advert of the one that it replaces.
    pub replaced: Arc<Advert>,
    /// Until when it is awaited: without it, or another cohort, we are left without one.
    pub until: Option<Timestamp>,
}

impl Default for Facts {
    fn default() -> Self {
        Self { joined: BTreeMap::new(), ended: Remembered::new(ENDED), successors: VecDeque::new() }
    }
}

impl Facts {
    /// The cohorts that we joined, and that are not over for us.
    pub fn joined(&self) -> impl Iterator<Item = (&CohortKey, &Joined)> {
        self.joined.iter()
    }

    /// Whether we joined the cohort, and it is not over for us.
    pub fn is_joined(&self, cohort: &CohortKey) -> bool {
        self.joined.contains_key(cohort)
    }

    /// Whether we were in the cohort, as far as that is remembered.
    pub fn has_ended(&self, cohort: &CohortKey) -> bool {
        self.ended.contains(cohort)
    }

    /// The awaited successors of our cohorts, and until when they are awaited.
    pub fn awaited(&self) -> impl Iterator<Item = (&CohortKey, Timestamp)> {
        self.successors.iter().filter_map(|successor| Some((&successor.cohort, successor.until?)))
    }

    /// Whether nothing is left but the memory of what has ended.
    pub fn are_settled(&self) -> bool {
        self.joined.is_empty() && self.successors.is_empty()
    }

    /// The number of facts.
    pub fn len(&self) -> usize {
        self.joined.len() + self.ended.iter().count() + self.successors.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn joined_of(&self, cohort: &CohortKey) -> Option<&Joined> {
        self.joined.get(cohort)
    }

    /// The successor that this cohort is.
    pub(super) fn expects(&self, cohort: &CohortKey) -> Option<&Successor> {
        self.successors.iter().find(|successor| successor.cohort == *cohort)
    }

    pub(super) fn apply(&mut self, event: &MembershipEvent) {
        match event {
            MembershipEvent::CohortJoined { advert, .. } => {
                let cohort = CohortKey::from(&**advert);
                self.successors.retain(|successor| successor.cohort != cohort);
                self.ended.forget(&cohort);
                self.joined.insert(cohort, Joined { advert: Arc::clone(advert), formed: false });
            }
            MembershipEvent::CohortFormed { cohort, .. } => {
                if let Some(joined) = self.joined.get_mut(cohort) {
                    joined.formed = true;
                }
            }
            MembershipEvent::CohortEnded { cohort, successor, .. } => {
                self.joined.remove(cohort);
                self.ended.insert(cohort.clone());
                if let Some(successor) = successor {
                    self.expect(successor.clone());
                }
            }
            MembershipEvent::SuccessorMissed { cohort, .. } => {
                for successor in self.successors.iter_mut().filter(|successor| successor.cohort == *cohort) {
                    successor.until = None;
                }
            }
            MembershipEvent::CohortLost { cohort, .. } => {
                self.joined.remove(cohort);
            }
            MembershipEvent::Compacted(facts) => *self = (**facts).clone(),
            _ => {}
        }
    }

    fn expect(&mut self, successor: Successor) {
        self.successors.retain(|other| other.cohort != successor.cohort);
        if self.successors.len() >= SUCCESSORS {
            self.successors.pop_front();
        }
        self.successors.push_back(successor);
    }
}

/// The format of [`Facts`] in the journal.
#[derive(Serialize, Deserialize)]
struct Stored {
    joined: Vec<Joined>,
    ended: Vec<CohortKey>,
    successors: Vec<Successor>,
}

impl From<Facts> for Stored {
    fn from(facts: Facts) -> Self {
        Self {
            ended: facts.ended.iter().cloned().collect(),
            joined: facts.joined.into_values().collect(),
            successors: facts.successors.into(),
        }
    }
}

impl From<Stored> for Facts {
    fn from(stored: Stored) -> Self {
        let mut facts = Self::default();
        for joined in stored.joined {
            facts.joined.insert(CohortKey::from(&*joined.advert), joined);
        }
        for cohort in stored.ended {
            facts.ended.insert(cohort);
        }
        stored.successors.into_iter().for_each(|successor| facts.expect(successor));
        facts
    }
}
