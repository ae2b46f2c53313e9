//! What is settled of the updates that a member has approved: which are in force, and which never will be.
//!
//! The vault has what was approved in a cohort; whether it was announced, the chain shows. What was found out once, or
//! stated by the controller, is stored beside it, so that the next run and the other commands know it too.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    actors::state::vault::VaultEntry,
    protocol::{hash::DocumentHash, id::CohortId, update::SignedUpdate},
};

/// What is settled of one update in one cohort. The same update may have been approved in several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settled {
    /// The cohort; `singleton` stands for an update that was prepared without one.
    pub cohort_id: CohortId,
    /// The update's hash.
    pub update: DocumentHash,
    /// What is settled.
    pub outcome: Settlement,
}

/// The name that stands for the cohort of an update that is announced without one.
pub(crate) const ALONE: &str = "singleton";

impl Settled {
    /// Whether it states that this update, prepared without a cohort, will never be announced.
    pub(crate) fn drops_alone(&self, update: &SignedUpdate) -> bool {
        self.outcome == Settlement::Superseded && self.cohort_id.as_str() == ALONE && self.update == *update.hash()
    }
}

/// How it was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Settlement {
    /// A resolution has applied it.
    InForce,
    /// It will never be announced, or no resolver would apply it any more: by a statement of its controller, because its coin
    /// was spent by another transaction, or because resolvers have applied another update of its version.
    Superseded,
}

/// What is known of an update that was approved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnnouncementState {
    /// Its transaction is confirmed, or a resolution has applied it.
    Announced,
    /// It may be announced at any time, or be already.
    PossiblyAnnounced,
    /// See [`Settlement::Superseded`].
    Superseded,
}

impl fmt::Display for AnnouncementState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Announced => "announced",
            Self::PossiblyAnnounced => "possibly announced",
            Self::Superseded => "superseded",
        })
    }
}

impl AnnouncementState {
    /// The state of the update in a vault's entry; `None` if the member declined there.
    pub fn of_entry(entry: &VaultEntry, settled: &[Settled]) -> Option<Self> {
        let update = entry.record.update.as_ref()?;
        Some(Self::of(&entry.record.cohort_id, update, entry.confirmed_height.is_some(), settled))
    }

    /// The state of an update that was approved in that cohort, and whether its transaction is confirmed.
    pub fn of(cohort_id: &CohortId, update: &SignedUpdate, confirmed: bool, settled: &[Settled]) -> Self {
        let about = settled.iter().rfind(|known| known.cohort_id == *cohort_id && known.update == *update.hash());
        match about.map(|known| known.outcome) {
            Some(Settlement::InForce) => Self::Announced,
            Some(Settlement::Superseded) => Self::Superseded,
            None if confirmed => Self::Announced,
            None => Self::PossiblyAnnounced,
        }
    }
}
