//! The terms of one-time cohorts as settings give them, and drafts of terms, which are read in the same way.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{
    settings::ServeSettings,
    standing,
    values::{Beacon, TimeoutRule},
};
use crate::{
    config::{Period, Span},
    error::ProgramError,
    protocol::{
        cohort::service::rules::{PhaseRule, TimedPhase},
        key::XOnlyKey,
        network::Network,
    },
    serve::terms::{Problem, RoundTerms, Terms, TermsReader},
};

/// How long a cohort waits by default for more than its least number of members: long enough for participants that
/// watch the same advert, and short compared with a round.
const SETTLE: Duration = Duration::from_secs(30);

/// Longer than any program runs.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The keys that are terms of both kinds of cohorts, of one-time ones, and of standing ones.
const OF_BOTH: [&str; 4] = ["beacon", "min-participants", "max-participants", "fallback-threshold"];
const OF_ROUNDS: [&str; 10] = [
    "recovery-key",
    "recovery-sequence",
    "presence-check",
    "on-timeout",
    "reformations",
    "settle",
    "cohort-ttl",
    "phase-timeout",
    "signing-timeout",
    "advert-repeat",
];
const OF_STANDING: [&str; 13] = [
    "min-interval",
    "max-interval",
    "pending-trigger",
    "min-dids",
    "max-dids",
    "updates",
    "registration",
    "absent",
    "respond-time",
    "confirm-time",
    "max-unconfirmed",
    "operator-output",
    "fee-ceiling",
];

/// What terms depend on beside their settings.
#[derive(Clone, Debug)]
pub(super) struct Base {
    /// The key of the recovery leaf, if the settings have none.
    pub(super) recovery_key: XOnlyKey,
    /// How long a beacon address is watched for a deposit, with a chain.
    pub(super) funding_window: Option<Duration>,
}

/// The terms of one-time cohorts that the settings describe.
pub(super) fn round(settings: &ServeSettings, base: &Base) -> Result<RoundTerms, ProgramError> {
    let usage = |problem: String| ProgramError::Usage(problem);
    let mut terms = RoundTerms::new(base.recovery_key);
    let minimum = settings.min_participants.unwrap_or(2);
    terms.beacon = settings.beacon.unwrap_or(Beacon::Cas).beacon_type();
    terms.min_participants = minimum;
    let settle = settings.settle.map_or(SETTLE, |Span(span)| span);
    // Without time for more members, a margin would only make admission depend on chance.
    let margin = if settle.is_zero() { 0 } else { minimum.div_ceil(4) };
    terms.max_is_margin = settings.max_participants.is_none();
    terms.max_participants = settings.max_participants.unwrap_or(minimum.saturating_add(margin));
    terms.fallback_threshold = settings.fallback_threshold;
    terms.recovery_key = settings.recovery_key.unwrap_or(terms.recovery_key);
    terms.recovery_sequence = settings.recovery_sequence.unwrap_or(terms.recovery_sequence);
    let span = |setting: Option<Period>, default| setting.map_or(default, |period: Period| period.0);
    terms.timing.cohort_ttl = span(settings.cohort_ttl, terms.timing.cohort_ttl);
    terms.timing.phase_timeout = span(settings.phase_timeout, terms.timing.phase_timeout);
    terms.timing.signing_timeout = span(settings.signing_timeout, terms.timing.signing_timeout);
    // 0s: advertise once.
    let repeat = settings.advert_repeat.map_or(terms.timing.advert_repeat, |Span(span)| span);
    terms.timing.advert_repeat = if repeat.is_zero() { NEVER } else { repeat };
    if let Some(funding_window) = base.funding_window {
        // Enrollment, updates and verdicts, then the time for funding the address.
        let longest = terms.timing.phase_timeout * 3 + funding_window;
        if settings.cohort_ttl.is_none() {
            terms.timing.cohort_ttl = terms.timing.cohort_ttl.max(longest);
        } else if terms.timing.cohort_ttl <= funding_window {
            let problem = "--cohort-ttl must be longer than --funding-window: a cohort ends with it";
            return Err(usage(problem.to_owned()));
        }
        let rule = terms.rules.rule(TimedPhase::Transaction);
        let rule = PhaseRule { timeout: Some(funding_window), ..rule };
        terms.rules.set(TimedPhase::Transaction, rule).map_err(|error| usage(error.to_string()))?;
    }
    for TimeoutRule(phase, rule) in settings.on_timeout.clone().unwrap_or_default() {
        terms.rules.set(phase, rule).map_err(|error| usage(error.to_string()))?;
    }
    terms.rules.settle = settle;
    terms.rules.reformations = settings.reformations.unwrap_or(terms.rules.reformations);
    terms.rules.presence_check = settings.presence_check.unwrap_or(false);
    Ok(terms)
}

/// Whether the settings describe one-time cohorts, for a service that may also wait for templates.
pub(super) fn describes_rounds(settings: &ServeSettings) -> bool {
    settings.min_participants.is_some()
        || settings.max_participants.is_some()
        || settings.beacon.is_some()
        || settings.cohorts.is_some()
        || settings.parallel.is_some()
        || settings.fallback_threshold.is_some()
}

/// Reads drafts. What a draft does not have is as the command line has it.
pub(super) struct DraftReader {
    pub(super) settings: ServeSettings,
    pub(super) base: Base,
    pub(super) network: Network,
}

impl DraftReader {
    /// The command line's settings, as far as they are terms of this kind of cohort.
    fn defaults(&self, is_standing: bool) -> ServeSettings {
        let given = self.settings.clone();
        let mut defaults = ServeSettings {
            beacon: given.beacon,
            min_participants: given.min_participants,
            max_participants: given.max_participants,
            fallback_threshold: given.fallback_threshold,
            ..ServeSettings::default()
        };
        if given.standing.unwrap_or(false) != is_standing {
            // These numbers are those of the other kind.
            defaults = ServeSettings { beacon: given.beacon, ..ServeSettings::default() };
        }
        if is_standing {
            defaults.standing = Some(true);
            defaults.min_interval = given.min_interval;
            defaults.max_interval = given.max_interval;
            defaults.pending_trigger = given.pending_trigger;
            defaults.min_dids = given.min_dids;
            defaults.max_dids = given.max_dids;
            defaults.updates = given.updates;
            defaults.registration = given.registration;
            defaults.absent = given.absent;
            defaults.respond_time = given.respond_time;
            defaults.confirm_time = given.confirm_time;
            defaults.max_unconfirmed = given.max_unconfirmed;
            defaults.operator_output = given.operator_output;
            defaults.fee_ceiling = given.fee_ceiling;
        } else {
            defaults.recovery_key = given.recovery_key;
            defaults.recovery_sequence = given.recovery_sequence;
            defaults.presence_check = given.presence_check;
            defaults.on_timeout = given.on_timeout;
            defaults.reformations = given.reformations;
            defaults.settle = given.settle;
            defaults.cohort_ttl = given.cohort_ttl;
            defaults.phase_timeout = given.phase_timeout;
            defaults.signing_timeout = given.signing_timeout;
            defaults.advert_repeat = given.advert_repeat;
        }
        defaults
    }
}

fn problem(field: Option<&str>, detail: impl ToString) -> Problem {
    Problem { field: field.map(str::to_owned), detail: detail.to_string() }
}

impl TermsReader for DraftReader {
    fn read(&self, draft: &Map<String, Value>) -> Result<Terms, Vec<Problem>> {
        let is_standing = match draft.get("standing") {
            None => false,
            Some(Value::Bool(standing)) => *standing,
            Some(_) => return Err(vec![problem(Some("standing"), "true or false expected")]),
        };
        let own: &[&str] = if is_standing { &OF_STANDING } else { &OF_ROUNDS };
        let other: &[&str] = if is_standing { &OF_ROUNDS } else { &OF_STANDING };
        let (mut given, mut problems) = (ServeSettings::default(), Vec::new());
        for (key, value) in draft.iter().filter(|(key, _)| *key != "standing") {
            let name = key.as_str();
            if !OF_BOTH.contains(&name) && !own.contains(&name) {
                let detail = match (other.contains(&name), is_standing) {
                    (true, true) => "not a term of standing cohorts",
                    (true, false) => "a term of standing cohorts only: `\"standing\": true`",
                    (false, _) => {
                        "not a term of a cohort: see `serve --help`, \"Cohort terms\", \"Standing cohorts\" and \"Timing\""
                    }
                };
                problems.push(problem(Some(name), detail));
                continue;
            }
            // One after the other: an error is then that of this key.
            match serde_json::from_value::<ServeSettings>(json!({ name: value })) {
                Ok(one) => given = one.over(given),
                Err(error) => problems.push(problem(Some(name), error)),
            }
        }
        if given.min_participants == Some(0) {
            problems.push(problem(Some("min-participants"), "at least 1 expected"));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let settings = given.over(self.defaults(is_standing));
        let wrong = |error: ProgramError| vec![problem(None, error)];
        if is_standing {
            let standing = standing::config(&settings, self.network).map_err(wrong)?;
            let standing = standing.ok_or_else(|| vec![problem(None, "not a standing cohort")])?;
            return Ok(Terms::Standing(Box::new(standing)));
        }
        let terms = round(&settings, &self.base).map_err(wrong)?;
        terms.conditions()?;
        Ok(Terms::Round(Box::new(terms)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{actors::runtime::Randomness, protocol::key::SecretKey};

    fn read(draft: Value) -> Result<Terms, Vec<Problem>> {
        let key = SecretKey::generate(&mut Randomness::System.for_actor("terms"));
        let base = Base { recovery_key: key.public_key().x_only(), funding_window: None };
        let settings = ServeSettings { settle: Some("0s".parse().unwrap()), ..ServeSettings::default() };
        let reader = DraftReader { settings, base, network: Network::Regtest };
        reader.read(draft.as_object().unwrap())
    }

    #[test]
    fn a_draft_has_the_keys_and_defaults_of_the_command_line() {
        let Ok(Terms::Round(terms)) =
            read(json!({ "min-participants": 3, "beacon": "smt", "phase-timeout": "90s" }))
        else {
            panic!("terms of one-time cohorts expected");
        };
        assert_eq!((terms.min_participants, terms.max_participants), (3, 3));
        assert_eq!(terms.timing.phase_timeout, Duration::from_secs(90));
        let standing = json!({ "standing": true, "min-participants": 3, "min-interval": "10m", "max-dids": 7 });
        let Ok(Terms::Standing(standing)) = read(standing) else { panic!("terms of a standing cohort expected") };
        assert_eq!(standing.terms.min_seconds_between_announcements, 600);
        assert_eq!(standing.terms.max_dids_per_participant, 7);
    }

    #[test]
    fn every_problem_of_a_draft_names_its_key() {
        let draft = json!({
            "min-participants": "three", "phase-timeout": "0s", "identity": "x", "min-dids": 2, "beacon": "none",
        });
        let problems = read(draft).unwrap_err();
        let fields: Vec<_> = problems.iter().map(|problem| problem.field.as_deref().unwrap()).collect();
        assert_eq!(fields, ["min-participants", "phase-timeout", "identity", "min-dids", "beacon"]);
        assert!(problems[3].detail.contains("standing"), "{problems:?}");
        for wrong in [
            json!({ "min-participants": 3, "max-participants": 2 }),
            json!({ "min-participants": 0 }),
            json!({ "recovery-sequence": 0 }),
            json!({ "standing": 1 }),
            json!({ "standing": true, "recovery-sequence": 5 }),
            json!({ "standing": true, "max-unconfirmed": 99 }),
            json!({ "standing": true, "absent": "wait", "fallback-threshold": 2 }),
        ] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
