//! Migration: the successor of a cohort.

use serde::{Deserialize, Serialize};

use crate::{cohort::standing::successor::Successor, id::CohortId};

/// `standing/successor`: to every seat of the old cohort, once the successor has formed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SuccessorFormed {
    /// The old cohort.
    pub cohort_id: CohortId,
    /// The successor.
    pub successor: Box<Successor>,
}
