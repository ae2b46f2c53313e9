//! Bringing actors back: their facts from the journal, and how often that may be tried.

use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use btcr2_aggregation_protocol::{cohort::event::ServiceEvent, machine::Machine, time::Timestamp};
use serde::de::DeserializeOwned;

use crate::{
    journal::{Journal, JournalError, StreamId},
    signing::SigningSessionActor,
};

/// The facts of `stream`, in order; none when there is no such stream.
pub(crate) async fn facts<E: Clone + DeserializeOwned + Any>(
    journal: &dyn Journal,
    stream: &StreamId,
) -> Result<Vec<E>, JournalError> {
    let problem = |error: serde_json::Error| JournalError { stream: stream.clone(), problem: error.to_string() };
    let records = journal.read(stream).await?;
    records.iter().map(|record| record.event().map_err(problem)).collect()
}

/// The signing sessions that a cohort's facts tell of.
pub(crate) async fn sessions_of(journal: &dyn Journal, cohort: &StreamId) -> Result<Vec<StreamId>, JournalError> {
    let facts = facts::<ServiceEvent>(journal, cohort).await?;
    let sessions = facts.iter().filter_map(|fact| match fact {
        ServiceEvent::SigningStarted { session_id, .. } => Some(SigningSessionActor::stream(session_id)),
        _ => None,
    });
    Ok(sessions.collect())
}

/// Applies facts of the past; `each` sees every one with the effects that it had then.
pub(crate) fn replay<M: Machine>(
    machine: &mut M,
    facts: &[M::Event],
    mut each: impl FnMut(&M, &M::Event, &[M::Effect]),
) {
    for fact in facts {
        machine.apply(fact);
        let effects = machine.effects(fact);
        each(machine, fact, &effects);
    }
}

/// Calls what replays one stream. Whoever brings back many must not fall over one: what panicked there was in the hands of
/// `replay` only, and is dropped.
pub(crate) fn caught<T>(replay: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(replay)).map_err(|_| "its journal cannot be replayed".to_owned())
}

/// How often an actor that panics is replaced before its cohort is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartIntensity {
    /// So many times,
    pub most: usize,
    /// within this time.
    pub within: Duration,
}

impl Default for RestartIntensity {
    /// 5 in a minute.
    fn default() -> Self {
        Self { most: 5, within: Duration::from_secs(60) }
    }
}

/// The latest restarts of one actor.
#[derive(Clone, Debug, Default)]
pub(crate) struct Restarts(VecDeque<Timestamp>);

impl Restarts {
    const FIRST_BACKOFF: Duration = Duration::from_millis(50);

    /// Notes that the actor is to be restarted at `now`: after which pause, or `None` when that was too often.
    pub(crate) fn next(&mut self, now: Timestamp, intensity: RestartIntensity) -> Option<Duration> {
        while self.0.front().is_some_and(|at| now.since(*at) >= intensity.within) {
            self.0.pop_front();
        }
        if self.0.len() >= intensity.most {
            return None;
        }
        // What failed once may have met with bad luck; what fails again is given time.
        let pause = match u32::try_from(self.0.len()) {
            Ok(0) => Duration::ZERO,
            Ok(before) => Self::FIRST_BACKOFF * 2_u32.saturating_pow(before.min(8) - 1),
            Err(_) => intensity.within,
        };
        self.0.push_back(now);
        Some(pause)
    }

    /// How many there were lately.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_that_panics_in_replay_is_only_its_own_affair() {
        assert_eq!(caught(|| 1), Ok(1));
        let problem = caught(|| panic!("as this test wants")).map(|()| "nothing");
        assert_eq!(problem, Err("its journal cannot be replayed".to_owned()));
    }

    #[test]
    fn restarts_become_rarer_and_end() {
        let intensity = RestartIntensity::default();
        let mut restarts = Restarts::default();
        let start = Timestamp::from_secs(1_000);
        let pauses: Vec<_> = (0..6).map(|_| restarts.next(start, intensity)).collect();
        let millis = |pause: Option<Duration>| pause.map(|pause| pause.as_millis());
        assert_eq!(
            pauses.into_iter().map(millis).collect::<Vec<_>>(),
            [Some(0), Some(50), Some(100), Some(200), Some(400), None]
        );
        // A minute later all is forgotten.
        assert_eq!(restarts.next(start + intensity.within, intensity), Some(Duration::ZERO));
    }
}
