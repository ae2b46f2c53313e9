//! What a service does when a phase cannot be completed in time: extend it, take the fallback, form the cohort again
//! without the missing members, or end it.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::cohort::Timing;

/// The timed phases of a cohort, each named after what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimedPhase {
    /// Waits for members.
    Enrollment,
    /// Waits for updates and declines.
    Updates,
    /// Waits for verdicts on the aggregated data. A rejection ends the phase as silence does.
    Validation,
    /// Waits for the operator's transaction.
    Transaction,
    /// Waits for presence confirmations, where they are requested before signing.
    Presence,
    /// Waits for nonces.
    Nonces,
    /// Waits for partial signatures.
    PartialSignatures,
    /// Waits for fallback signatures.
    Fallback,
}

impl TimedPhase {
    /// All timed phases, in the order of a round.
    pub const ALL: [Self; 8] = [
        Self::Enrollment,
        Self::Updates,
        Self::Validation,
        Self::Transaction,
        Self::Presence,
        Self::Nonces,
        Self::PartialSignatures,
        Self::Fallback,
    ];

    /// The phase's name in configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enrollment => "enrollment",
            Self::Updates => "updates",
            Self::Validation => "validation",
            Self::Transaction => "transaction",
            Self::Presence => "presence",
            Self::Nonces => "nonces",
            Self::PartialSignatures => "partial-signatures",
            Self::Fallback => "fallback",
        }
    }

    /// Whether it can fail because of single members, so that a cohort without them could succeed.
    const fn depends_on_members(self) -> bool {
        !matches!(self, Self::Enrollment | Self::Transaction)
    }

    /// Whether members can still take the fallback from this phase.
    const fn leads_to_fallback(self) -> bool {
        matches!(self, Self::Presence | Self::Nonces | Self::PartialSignatures)
    }

    /// Whether it is a phase of the signing session, which is limited by [`Timing::signing_timeout`].
    const fn is_signing(self) -> bool {
        matches!(self, Self::Nonces | Self::PartialSignatures | Self::Fallback)
    }
}

impl fmt::Display for TimedPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TimedPhase {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == text).ok_or_else(|| RuleError::Phase(text.to_owned()))
    }
}

/// What follows when a phase could not be completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The cohort fails.
    Fail,
    /// The cohort fails, and a new one with the same terms is advertised to the members that were not at fault. Not
    /// for enrollment and the wait for the transaction, which fail without a member's fault.
    Reform,
    /// The members are asked for fallback signatures. Only for presence, nonces and partial signatures.
    FallBack,
    /// Signing continues as if every member were present. Only for presence.
    Proceed,
}

impl FromStr for Answer {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        Ok(match text {
            "fail" => Self::Fail,
            "reform" => Self::Reform,
            "fall-back" => Self::FallBack,
            "proceed" => Self::Proceed,
            _ => return Err(RuleError::Answer(text.to_owned())),
        })
    }
}

/// The time limit of a phase, and the answer when it is exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseRule {
    /// The time limit; `None` for that of [`Timing`].
    pub timeout: Option<Duration>,
    /// The number of times that the time limit is extended by its full length before the answer applies. Before
    /// signing, never beyond the cohort's TTL.
    ///
    /// Members are not notified of an extension. A member waits for three of its own phase timeouts (one of the
    /// TypeScript implementation without limit) and is a holdout after that. Long waits are therefore useless unless
    /// the members' timeouts are as long.
    pub extensions: u32,
    /// What follows when the time limit is exceeded.
    pub then: Answer,
}

/// A rule that is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// There is no phase of this name.
    #[error("unknown phase {0}: one of {all} expected", all = TimedPhase::ALL.map(TimedPhase::as_str).join(", "))]
    Phase(String),
    /// There is no answer of this name.
    #[error("unknown answer {0}: one of fail, reform, fall-back, proceed expected")]
    Answer(String),
    /// The answer does not fit the phase.
    #[error("the answer does not fit {phase}: {problem}")]
    Unfit {
        /// The phase.
        phase: TimedPhase,
        /// Why.
        problem: &'static str,
    },
}

/// The rules of a cohort, by phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseRules {
    changed: BTreeMap<TimedPhase, PhaseRule>,
    /// How long a cohort that has its minimum of members waits for more before it forms. The loss of one member then
    /// still leaves enough to form the cohort again. With zero it forms as soon as the host agrees; otherwise the
    /// host is not asked.
    #[serde(default)]
    pub settle: Duration,
    /// The number of times in a row that a cohort may be formed again.
    pub reformations: u32,
    /// Whether to request presence confirmations before signing. Members of the TypeScript implementation do not know
    /// the request. Where there may be such members, the answer to [`TimedPhase::Presence`] must be
    /// [`Answer::Proceed`], after a short timeout.
    pub presence_check: bool,
}

impl Default for PhaseRules {
    /// Fall back when nonces or partial signatures are missing, proceed when presence confirmations are, fail
    /// otherwise; no presence check.
    fn default() -> Self {
        Self { changed: BTreeMap::new(), settle: Duration::ZERO, reformations: 3, presence_check: false }
    }
}

/// The longest grace period after the service was down.
const GRACE: Duration = Duration::from_secs(60);

impl PhaseRules {
    /// The rule for `phase`.
    pub fn rule(&self, phase: TimedPhase) -> PhaseRule {
        let then = match phase {
            TimedPhase::Nonces | TimedPhase::PartialSignatures => Answer::FallBack,
            TimedPhase::Presence => Answer::Proceed,
            _ => Answer::Fail,
        };
        self.changed.get(&phase).copied().unwrap_or(PhaseRule { timeout: None, extensions: 0, then })
    }

    /// Sets the rule for `phase`.
    ///
    /// # Errors
    /// [`RuleError::Unfit`] when its answer does not fit the phase.
    pub fn set(&mut self, phase: TimedPhase, rule: PhaseRule) -> Result<(), RuleError> {
        let unfit = |problem| Err(RuleError::Unfit { phase, problem });
        match rule.then {
            Answer::FallBack if !phase.leads_to_fallback() => unfit("there is nothing to fall back to"),
            Answer::Proceed if phase != TimedPhase::Presence => unfit("it cannot continue without its members"),
            Answer::Reform if !phase.depends_on_members() => unfit("it does not depend on single members"),
            _ => {
                self.changed.insert(phase, rule);
                Ok(())
            }
        }
    }

    /// The same rules, but the cohort is formed again in every phase that depends on members.
    #[must_use]
    pub fn reforming(mut self) -> Self {
        for phase in [TimedPhase::Updates, TimedPhase::Validation, TimedPhase::Fallback] {
            let rule = self.rule(phase);
            self.changed.insert(phase, PhaseRule { then: Answer::Reform, ..rule });
        }
        self
    }

    /// The same rules, but a cohort that has its minimum of members waits for `settle` for more.
    #[must_use]
    pub fn settling(self, settle: Duration) -> Self {
        Self { settle, ..self }
    }

    /// The time limit of `phase`, without extensions.
    pub fn timeout(&self, phase: TimedPhase, timing: &Timing) -> Duration {
        let usual = if phase.is_signing() { timing.signing_timeout } else { timing.phase_timeout };
        self.rule(phase).timeout.unwrap_or(usual)
    }

    /// The grace period of members after the service was down at the end of `phase`: as long as the phase, at most
    /// one minute.
    pub fn grace(&self, phase: TimedPhase, timing: &Timing) -> Duration {
        self.timeout(phase, timing).min(GRACE)
    }

    /// The longest duration of `phase`, extensions included.
    pub fn longest(&self, phase: TimedPhase, timing: &Timing) -> Duration {
        self.timeout(phase, timing).saturating_mul(self.rule(phase).extensions.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_fit_their_phases() {
        let mut rules = PhaseRules::default();
        let rule = |then| PhaseRule { timeout: None, extensions: 0, then };
        for phase in TimedPhase::ALL {
            assert!(rules.set(phase, rule(Answer::Fail)).is_ok());
            let reforms = !matches!(phase, TimedPhase::Enrollment | TimedPhase::Transaction);
            assert_eq!(rules.set(phase, rule(Answer::Reform)).is_ok(), reforms, "{phase}");
            let falls_back =
                matches!(phase, TimedPhase::Presence | TimedPhase::Nonces | TimedPhase::PartialSignatures);
            assert_eq!(rules.set(phase, rule(Answer::FallBack)).is_ok(), falls_back, "{phase}");
            assert_eq!(rules.set(phase, rule(Answer::Proceed)).is_ok(), phase == TimedPhase::Presence, "{phase}");
            assert_eq!(phase.as_str().parse(), Ok(phase));
        }
    }

    #[test]
    fn a_phase_waits_by_its_own_rule() {
        let timing = Timing::default();
        let mut rules = PhaseRules::default();
        assert_eq!(rules.timeout(TimedPhase::Updates, &timing), timing.phase_timeout);
        assert_eq!(rules.timeout(TimedPhase::Nonces, &timing), timing.signing_timeout);
        let minute = Duration::from_secs(60);
        let rule = PhaseRule { timeout: Some(minute), extensions: 2, then: Answer::Fail };
        rules.set(TimedPhase::Updates, rule).unwrap();
        assert_eq!(rules.timeout(TimedPhase::Updates, &timing), minute);
        assert_eq!(rules.longest(TimedPhase::Updates, &timing), 3 * minute);
    }
}
