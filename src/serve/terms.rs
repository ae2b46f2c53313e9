//! The terms of cohorts, as the command line and the templates of the control API give them.

use std::fmt;

use ::bitcoin::TxOut;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::protocol::{
    beacon::{BeaconRegistry, BeaconType},
    cohort::{Timing, conditions::Conditions, service::rules::PhaseRules, standing::StandingTerms},
    id::CohortId,
    key::XOnlyKey,
    output::{RecoverySequence, ScriptTree},
};

/// A standing cohort to serve.
#[derive(Clone, Debug, PartialEq)]
pub struct StandingConfig {
    /// Its terms.
    pub terms: StandingTerms,
    /// The operator's own output in every announcement.
    pub output: Option<TxOut>,
    /// The cohort of this service that it succeeds.
    pub succeeds: Option<CohortId>,
}

/// The terms of one-time cohorts.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundTerms {
    /// How updates are aggregated.
    pub beacon: BeaconType,
    /// The least number of members.
    pub min_participants: u32,
    /// The greatest number of members.
    pub max_participants: u32,
    /// Whether the members above the least number are only a margin, which is reduced to what the transport can carry.
    pub max_is_margin: bool,
    /// k of the fallback leaf.
    pub fallback_threshold: Option<u16>,
    /// The key of the recovery leaf.
    pub recovery_key: XOnlyKey,
    /// Its timelock in blocks.
    pub recovery_sequence: u16,
    /// The time limits.
    pub timing: Timing,
    /// The policy for a phase that cannot be completed.
    pub rules: PhaseRules,
}

/// A problem of terms, or of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The field, if it is one field's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong, and what is expected.
    pub detail: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) => write!(f, "{field}: {}", self.detail),
            None => f.write_str(&self.detail),
        }
    }
}

impl RoundTerms {
    /// Cohorts of two members, which `recovery_key` can recover, with defaults for everything else.
    pub fn new(recovery_key: XOnlyKey) -> Self {
        Self {
            beacon: BeaconType::cas(),
            min_participants: 2,
            max_participants: 2,
            max_is_margin: false,
            fallback_threshold: None,
            recovery_key,
            recovery_sequence: 4320,
            timing: Timing::default(),
            rules: PhaseRules::default().reforming(),
        }
    }

    /// The conditions of their adverts.
    ///
    /// # Errors
    /// Every contradiction in the terms.
    pub fn conditions(&self) -> Result<Conditions, Vec<Problem>> {
        let recovery_sequence = RecoverySequence::try_from(u64::from(self.recovery_sequence)).map_err(|error| {
            vec![Problem { field: Some("recovery-sequence".to_owned()), detail: error.to_string() }]
        })?;
        let script_tree = ScriptTree::FallbackAndRecovery {
            recovery_key: self.recovery_key,
            recovery_sequence,
            fallback_threshold: self.fallback_threshold,
        };
        let mut conditions = Conditions::new(self.beacon.clone(), self.min_participants, script_tree);
        conditions.max_participants = Some(self.max_participants);
        let problems = conditions.problems(&BeaconRegistry::default());
        if problems.is_empty() {
            return Ok(conditions);
        }
        let problem = |problem: &crate::protocol::cohort::conditions::ConditionProblem| Problem {
            field: Some(problem.field.to_owned()),
            detail: problem.problem.clone(),
        };
        Err(problems.iter().map(problem).collect())
    }
}

/// Terms of either kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Terms {
    /// Of one-time cohorts.
    Round(Box<RoundTerms>),
    /// Of a standing cohort.
    Standing(Box<StandingConfig>),
}

/// Reads terms as the command line reads them.
pub trait TermsReader: Send + Sync {
    /// The terms of a draft: an object with the keys of `serve --config` that are terms of a cohort. Those that are missing have the
    /// command line's defaults.
    ///
    /// # Errors
    /// Every problem that was found, each with its key where it is one key's.
    fn read(&self, draft: &Map<String, Value>) -> Result<Terms, Vec<Problem>>;
}
