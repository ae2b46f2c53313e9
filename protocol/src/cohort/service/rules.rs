//! What a service does when a phase cannot be completed in time: wait longer, take the fallback, form the cohort again
//! without those who were missing, or give up.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::cohort::Timing;

/// The waits of a cohort, by what is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimedPhase {
    /// For members.
    Enrollment,
    /// For updates and refusals.
    Updates,
    /// For verdicts on the aggregated data. A rejection ends the phase as much as silence does.
    Validation,
    /// For the operator's transaction.
    Transaction,
    /// For signs of life, where they are asked for before signing.
    Presence,
    /// For nonces.
    Nonces,
    /// For partial signatures.
    PartialSignatures,
    /// For fallback signatures.
    Fallback,
}

impl TimedPhase {
    /// All of them, in the order of a round.
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

    /// Its name in configuration.
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

    /// Whether it can fail because of single members, without whom another cohort could do better.
    const fn depends_on_members(self) -> bool {
        !matches!(self, Self::Enrollment | Self::Transaction)
    }

    /// Whether members can still be led to the fallback from here.
    const fn leads_to_fallback(self) -> bool {
        matches!(self, Self::Presence | Self::Nonces | Self::PartialSignatures)
    }

    /// Whether it is a phase of the signing session, which counts by [`Timing::signing_timeout`].
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
    /// The cohort fails, and a new one with the same terms is advertised to the members that were not at fault. Only
    /// where members can be: not from enrollment, nor from waiting for the transaction.
    Reform,
    /// The members are asked for fallback signatures. Only from presence, nonces and partial signatures.
    FallBack,
    /// Signing goes on as if everybody were there. Only from presence.
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

/// How long a phase is waited for, and what then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseRule {
    /// How long; `None` as long as [`Timing`] says.
    pub timeout: Option<Duration>,
    /// How many more times as long, before the answer is given. Before signing, never beyond the cohort's TTL.
    ///
    /// Members are not told of it. One of ours waits for three of its own phase timeouts (the TypeScript implementation: for
    /// ever) and is a holdout after that, so long waits gain nothing unless the members' timeouts are as long.
    pub extensions: u32,
    /// The answer.
    pub then: Answer,
}

/// A rule that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// There is no such phase.
    #[error("{0} is no phase that is waited for; one of {all}", all = TimedPhase::ALL.map(TimedPhase::as_str).join(", "))]
    Phase(String),
    /// There is no such answer.
    #[error("{0} is no answer; one of fail, reform, fall-back, proceed")]
    Answer(String),
    /// The answer does not fit the phase.
    #[error("{phase} cannot be answered like that: {problem}")]
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
    /// How long a cohort that has its fewest members waits for more before it forms. Then one that is lost does not leave too
    /// few to form it again. Zero forms it as soon as the host agrees; otherwise the host is not asked.
    #[serde(default)]
    pub settle: Duration,
    /// How many times in a row a cohort may be formed again.
    pub reformations: u32,
    /// Whether to ask for signs of life before signing. Members of the TypeScript implementation do not know the question, so
    /// where there may be any the answer to [`TimedPhase::Presence`] must be [`Answer::Proceed`], after a short timeout.
    pub presence_check: bool,
}

impl Default for PhaseRules {
    /// Fall back when nonces or partial signatures are missing, proceed when signs of life are, fail otherwise; no presence check.
    fn default() -> Self {
        Self { changed: BTreeMap::new(), settle: Duration::ZERO, reformations: 3, presence_check: false }
    }
}

/// The longest that a phase is put off after the service was down.
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
            Answer::Proceed if phase != TimedPhase::Presence => unfit("it cannot go on without its members"),
            Answer::Reform if !phase.depends_on_members() => unfit("there is no member to do without"),
            _ => {
                self.changed.insert(phase, rule);
                Ok(())
            }
        }
    }

    /// The same rules, but the cohort is formed again wherever members are what is missing.
    #[must_use]
    pub fn reforming(mut self) -> Self {
        for phase in [TimedPhase::Updates, TimedPhase::Validation, TimedPhase::Fallback] {
            let rule = self.rule(phase);
            self.changed.insert(phase, PhaseRule { then: Answer::Reform, ..rule });
        }
        self
    }

    /// The same rules, but a cohort that has its fewest members waits so long for more.
    #[must_use]
    pub fn settling(self, settle: Duration) -> Self {
        Self { settle, ..self }
    }

    /// How long `phase` is waited for, once.
    pub fn timeout(&self, phase: TimedPhase, timing: &Timing) -> Duration {
        let usual = if phase.is_signing() { timing.signing_timeout } else { timing.phase_timeout };
        self.rule(phase).timeout.unwrap_or(usual)
    }

    /// How long members are given, after the service was down at the end of `phase`, to answer what it asks again: as long as
    /// the phase, and a minute at most.
    pub fn grace(&self, phase: TimedPhase, timing: &Timing) -> Duration {
        self.timeout(phase, timing).min(GRACE)
    }

    /// How long `phase` can take, extensions included.
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
