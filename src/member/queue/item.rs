//! An update in the queue.

use std::{fmt, time::Duration};

use bitcoin::Txid;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::change::Change;
use crate::protocol::{did::Did, id::CohortId, time::Timestamp, update::SignedUpdate};

/// How far an update is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// It waits for a number.
    Queued,
    /// It is in the response to a number: from now on it may be announced.
    Submitted,
    /// The seat has signed the announcement.
    Approved,
    /// The announcement is signed by enough seats.
    Announced,
    /// The announcement is final on the chain.
    Confirmed,
    /// Resolvers return it.
    Resolvable,
    /// It cannot be announced.
    Refused,
    /// Its controller has taken it back.
    Cancelled,
}

impl Stage {
    /// Whether nothing more happens to it.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Resolvable | Self::Refused | Self::Cancelled)
    }

    /// Whether it waits for a number, or for the end of one.
    pub const fn is_waiting(self) -> bool {
        matches!(self, Self::Queued | Self::Submitted | Self::Approved)
    }

    /// As it is stored and shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Submitted => "submitted",
            Self::Approved => "approved",
            Self::Announced => "announced",
            Self::Confirmed => "confirmed",
            Self::Resolvable => "resolvable",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The number in which an update was submitted last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The number.
    pub number: u64,
    /// The announcement, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub txid: Option<Txid>,
}

/// What is to be put into the queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewItem {
    /// The DID.
    pub did: Did,
    /// What it changes.
    pub change: Change,
    /// The update, signed for the document that was current.
    pub update: SignedUpdate,
    /// Whether it may leave the DID without a key or a beacon: its controller has confirmed that.
    #[serde(default)]
    pub allow_risky: bool,
}

/// An update in the queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    /// Its number in this queue.
    pub id: u64,
    /// The DID.
    pub did: Did,
    /// What it changes.
    pub change: Change,
    /// The signed update, as it would be announced now.
    pub update: SignedUpdate,
    /// The version to which that leads.
    pub version: u64,
    /// See [`NewItem`].
    pub allow_risky: bool,
    /// How far it is.
    pub stage: Stage,
    /// Whether this very update was submitted: no other one of its version is, until the chain shows one.
    pub may_be_announced: bool,
    /// Whether the DID's own Singleton beacon announces it: it is submitted to no cohort.
    #[serde(default)]
    pub by_singleton: bool,
    /// Where it was submitted last.
    pub place: Option<Place>,
    /// Why it is refused, or waits.
    pub reason: Option<String>,
    /// How often it was made again on a newer document.
    pub rebuilt: u32,
    /// When it came.
    pub added_at: Timestamp,
    /// When it was submitted first.
    pub submitted_at: Option<Timestamp>,
    /// When its stage changed last.
    pub changed_at: Timestamp,
}

impl Item {
    /// Whether it counts for what a DID may submit in a day.
    pub fn was_submitted_within(&self, now: Timestamp, time: Duration) -> bool {
        self.submitted_at.is_some_and(|at| now.since(at) < time)
    }

    /// What is shown of it: everything but the update itself.
    pub fn summary(&self) -> Value {
        let mut shown = json!({
            "id": self.id,
            "did": self.did,
            "stage": self.stage,
            "versionId": self.version.to_string(),
            "update": self.update.hash(),
            "mayBeAnnounced": self.may_be_announced,
            "rebuilt": self.rebuilt,
            "addedAt": self.added_at.to_date(),
            "changedAt": self.changed_at.to_date(),
        });
        if self.by_singleton {
            shown["bySingleton"] = json!(true);
        }
        if let Some(place) = &self.place {
            shown["cohortId"] = json!(place.cohort_id);
            shown["number"] = json!(place.number);
            if let Some(txid) = &place.txid {
                shown["txid"] = json!(txid);
            }
        }
        if let Some(reason) = &self.reason {
            shown["reason"] = json!(reason);
        }
        shown
    }
}
