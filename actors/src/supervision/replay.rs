//! Restores the state of an actor from its journal.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use btcr2_aggregation_protocol::machine::Machine;
use serde::de::DeserializeOwned;

use crate::journal::{Journal, JournalError, StreamId};

/// How many records are decoded on the arbiter's thread: a millisecond's work. The journal of a cohort of a thousand has
/// three thousand.
const INLINE: usize = 128;

/// The events of `stream`, in order; none if there is no such stream.
pub(crate) async fn events<E: Clone + DeserializeOwned + Any + Send>(
    journal: &dyn Journal,
    stream: &StreamId,
) -> Result<Vec<E>, JournalError> {
    let records = journal.read(stream).await?;
    let (named, records_fit) = (stream.clone(), records.len() <= INLINE);
    let decode = move || {
        let problem = |error: serde_json::Error| JournalError { stream: named.clone(), problem: error.to_string() };
        records.iter().map(|record| record.event().map_err(problem)).collect()
    };
    if records_fit {
        return decode();
    }
    match actix_rt::task::spawn_blocking(decode).await {
        Ok(events) => events,
        Err(error) => Err(JournalError { stream: stream.clone(), problem: error.to_string() }),
    }
}

/// Applies past events; `each` is called with every event and its effects.
pub(crate) fn apply<M: Machine>(
    machine: &mut M,
    events: &[M::Event],
    mut each: impl FnMut(&M, &M::Event, &[M::Effect]),
) {
    for event in events {
        machine.apply(event);
        let effects = machine.effects(event);
        each(machine, event, &effects);
    }
}

/// Calls `replay`, which replays one stream, and turns its panic into an error: a damaged stream must not stop the
/// replay of the others. Everything that `replay` owned when it panicked is dropped.
pub(crate) fn caught<T>(replay: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(replay)).map_err(|_| "its journal cannot be replayed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_replay_is_an_error() {
        assert_eq!(caught(|| 1), Ok(1));
        let problem = caught(|| panic!("as this test wants")).map(|()| "nothing");
        assert_eq!(problem, Err("its journal cannot be replayed".to_owned()));
    }
}
