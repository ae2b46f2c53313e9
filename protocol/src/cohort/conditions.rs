//! A cohort's conditions: what an advert promises, validated once and typed from then on.

use serde::{Deserialize, Serialize};

use crate::{
    beacon::{BeaconRegistry, BeaconType},
    id::CohortId,
    key::{PublicKey, XOnlyKey},
    message::{
        Bytes,
        keygen::{CohortAdvert, Cost, FundingModel},
    },
    network::Network,
    output::{RecoverySequence, ScriptTree},
};

/// A condition that no cohort can meet, or that this implementation refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConditionProblem {
    /// The field of the advert.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

/// The conditions of a cohort. Valid for every beacon registry that knows [`Conditions::beacon_type`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// How updates are aggregated.
    pub beacon_type: BeaconType,
    /// The least number of members, at least 1.
    pub min_participants: u32,
    /// The greatest number of members, not below the least.
    pub max_participants: Option<u32>,
    /// The least number of DIDs of one participant.
    pub min_dids_per_participant: Option<u32>,
    /// The greatest number of DIDs of one participant.
    pub max_dids_per_participant: Option<u32>,
    /// The price of joining.
    pub cost_of_enrollment: Option<Cost>,
    /// The price of each announcement.
    pub cost_per_announcement: Option<Cost>,
    /// The shortest time between announcements, in seconds.
    pub min_seconds_between_announcements: Option<u32>,
    /// The longest time between announcements, in seconds.
    pub max_seconds_between_announcements: Option<u32>,
    /// The number of pending updates that triggers an announcement.
    pub pending_update_trigger: Option<u32>,
    /// Who pays; absent means the operator.
    pub funding_model: Option<FundingModel>,
    /// The leaves of the beacon output.
    pub script_tree: ScriptTree,
}

/// The transport cannot carry the announcement of a cohort of this size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a {beacon_type} cohort of {asked} members cannot be served over this transport: the announcement would not fit \
     into one message beyond {limit} members (an SMT beacon has no such limit; a relay's own limits are in `relay check`)"
)]
pub struct TooManyMembers {
    /// The beacon.
    pub beacon_type: BeaconType,
    /// The number of members that the cohort could have.
    pub asked: u32,
    /// The number of members that the transport can carry.
    pub limit: usize,
}

impl Conditions {
    /// The required conditions: beacon type, size, and the leaves of the output. All others are absent.
    pub fn new(beacon_type: BeaconType, min_participants: u32, script_tree: ScriptTree) -> Self {
        Self {
            beacon_type,
            min_participants,
            max_participants: None,
            min_dids_per_participant: None,
            max_dids_per_participant: None,
            cost_of_enrollment: None,
            cost_per_announcement: None,
            min_seconds_between_announcements: None,
            max_seconds_between_announcements: None,
            pending_update_trigger: None,
            funding_model: None,
            script_tree,
        }
    }

    /// Limits the cohort to what its transport can carry. Without a maximum of its own it gets `limit`, which its
    /// advert then shows.
    ///
    /// # Errors
    /// [`TooManyMembers`] when the cohort's minimum or maximum is above `limit`.
    pub fn limit_members(&mut self, limit: usize) -> Result<(), TooManyMembers> {
        let most = u32::try_from(limit).unwrap_or(u32::MAX);
        let asked = self.max_participants.unwrap_or(most).max(self.min_participants);
        if asked > most {
            let beacon_type = self.beacon_type.clone();
            return Err(TooManyMembers { beacon_type, asked, limit });
        }
        self.max_participants = Some(asked);
        Ok(())
    }

    /// Reads the conditions of an advert.
    ///
    /// # Errors
    /// All problems of the conditions, at least one.
    pub fn from_advert(advert: &CohortAdvert, beacons: &BeaconRegistry) -> Result<Self, Vec<ConditionProblem>> {
        let script_tree = script_tree(advert).map_err(|problem| vec![problem])?;
        let conditions = Self {
            beacon_type: advert.beacon_type.clone(),
            min_participants: advert.min_participants,
            max_participants: advert.max_participants,
            min_dids_per_participant: advert.min_dids_per_participant,
            max_dids_per_participant: advert.max_dids_per_participant,
            cost_of_enrollment: advert.cost_of_enrollment.clone(),
            cost_per_announcement: advert.cost_per_announcement.clone(),
            min_seconds_between_announcements: advert.min_seconds_between_announcements,
            max_seconds_between_announcements: advert.max_seconds_between_announcements,
            pending_update_trigger: advert.pending_update_trigger,
            funding_model: advert.funding_model,
            script_tree,
        };
        let problems = conditions.problems(beacons);
        if problems.is_empty() { Ok(conditions) } else { Err(problems) }
    }

    /// The advert of a cohort with these conditions.
    pub fn to_advert(&self, cohort_id: CohortId, network: Network, service_key: &PublicKey) -> CohortAdvert {
        let (recovery_key, recovery_sequence, fallback_threshold) = match &self.script_tree {
            // `problems` refuses the second: version 1 cannot state it.
            ScriptTree::KeyPathOnly | ScriptTree::FallbackOnly { .. } => (None, None, None),
            ScriptTree::FallbackAndRecovery { recovery_key, recovery_sequence, fallback_threshold } => (
                Some(recovery_key.to_string()),
                Some(u32::from(recovery_sequence.blocks())),
                fallback_threshold.map(u32::from),
            ),
        };
        CohortAdvert {
            cohort_id,
            network,
            communication_pk: Bytes(service_key.to_bytes()),
            beacon_type: self.beacon_type.clone(),
            min_participants: self.min_participants,
            max_participants: self.max_participants,
            min_dids_per_participant: self.min_dids_per_participant,
            max_dids_per_participant: self.max_dids_per_participant,
            cost_of_enrollment: self.cost_of_enrollment.clone(),
            cost_per_announcement: self.cost_per_announcement.clone(),
            min_seconds_between_announcements: self.min_seconds_between_announcements,
            max_seconds_between_announcements: self.max_seconds_between_announcements,
            pending_update_trigger: self.pending_update_trigger,
            funding_model: self.funding_model,
            recovery_key,
            recovery_sequence,
            fallback_threshold,
        }
    }

    /// All problems of these conditions. A service checks its own conditions before it advertises them.
    pub fn problems(&self, beacons: &BeaconRegistry) -> Vec<ConditionProblem> {
        let mut problems = Vec::new();
        let mut refuse = |wrong: bool, field: &'static str, problem: &str| {
            if wrong {
                problems.push(ConditionProblem { field, problem: problem.to_owned() });
            }
        };
        let below = |max: Option<u32>, min: Option<u32>| matches!((max, min), (Some(max), Some(min)) if max < min);

        refuse(beacons.get(&self.beacon_type).is_none(), "beaconType", "not a beacon type known here");
        refuse(self.min_participants == 0, "minParticipants", "at least 1 expected");
        refuse(
            below(self.max_participants, Some(self.min_participants)),
            "maxParticipants",
            "below minParticipants",
        );
        refuse(
            below(self.max_dids_per_participant, self.min_dids_per_participant),
            "maxDidsPerParticipant",
            "below minDidsPerParticipant",
        );
        refuse(
            below(self.max_seconds_between_announcements, self.min_seconds_between_announcements),
            "maxSecondsBetweenAnnouncements",
            "below minSecondsBetweenAnnouncements",
        );
        for (field, cost) in
            [("costOfEnrollment", &self.cost_of_enrollment), ("costPerAnnouncement", &self.cost_per_announcement)]
        {
            if let Some(cost) = cost {
                let amount = cost.amount.as_f64().unwrap_or(f64::NAN);
                refuse(!(amount.is_finite() && amount >= 0.0), field, "the amount must not be negative");
                refuse(cost.unit.is_empty(), field, "the unit is empty");
            }
        }
        refuse(
            self.funding_model == Some(FundingModel::ParticipantFunded),
            "fundingModel",
            "participant-funded is not supported",
        );
        refuse(
            matches!(self.script_tree, ScriptTree::FallbackOnly { .. }),
            "fallbackThreshold",
            "a fallback without a recovery key is for standing cohorts only",
        );
        if let ScriptTree::FallbackAndRecovery { fallback_threshold: Some(threshold), .. } = &self.script_tree {
            refuse(*threshold == 0, "fallbackThreshold", "at least 1 expected");
            refuse(
                self.max_participants.is_some_and(|max| u32::from(*threshold) > max),
                "fallbackThreshold",
                "above maxParticipants",
            );
        }
        problems
    }

    /// Whether a cohort of `members` satisfies the minimum and the maximum.
    pub fn admits_size(&self, members: usize) -> bool {
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        members >= self.min_participants && self.max_participants.is_none_or(|max| members <= max)
    }
}

fn script_tree(advert: &CohortAdvert) -> Result<ScriptTree, ConditionProblem> {
    let problem = |field, problem: String| ConditionProblem { field, problem };
    let (Some(key), Some(sequence)) = (&advert.recovery_key, advert.recovery_sequence) else {
        return Ok(ScriptTree::KeyPathOnly);
    };
    let recovery_key: XOnlyKey =
        key.parse().map_err(|error| problem("recoveryKey", format!("64 hex characters expected: {error}")))?;
    let recovery_sequence = RecoverySequence::try_from(u64::from(sequence))
        .map_err(|error| problem("recoverySequence", error.to_string()))?;
    let fallback_threshold = advert
        .fallback_threshold
        .map(u16::try_from)
        .transpose()
        .map_err(|_| problem("fallbackThreshold", "at most 65535 expected".to_owned()))?;
    Ok(ScriptTree::FallbackAndRecovery { recovery_key, recovery_sequence, fallback_threshold })
}
