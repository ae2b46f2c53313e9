//! Candidates that wait for the operator's decision.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use tokio::sync::oneshot;

use crate::protocol::{did::Did, id::CohortId, time::Timestamp};

/// The most candidates that wait. Each cohort bounds its own; above this none is taken on.
const MOST: usize = 1_000;

/// A candidate that waits.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Candidate {
    /// Its number; in this run of the service only.
    pub(crate) id: u64,
    /// The cohort that it wants to join.
    pub(crate) cohort_id: CohortId,
    /// Its DID; of a seat that of the seat.
    pub(crate) did: Did,
    /// The DID as which it applies for a seat, if it has shown one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) applies_as: Option<Did>,
    /// Since when it waits, in milliseconds since the Unix epoch.
    pub(crate) since: Timestamp,
}

#[derive(Default)]
struct Waiting {
    last: u64,
    candidates: BTreeMap<u64, (Candidate, oneshot::Sender<Result<(), String>>)>,
}

/// The candidates that wait. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Desk(Arc<Mutex<Waiting>>);

/// Removes its candidate when the cohort does not wait for it any more.
struct Entry {
    desk: Desk,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.desk.lock().candidates.remove(&self.id);
    }
}

impl Desk {
    /// Waits for the operator's decision: an error refuses the candidate, with the reason.
    pub(crate) async fn ask(
        &self,
        cohort_id: &CohortId,
        did: &Did,
        applies_as: Option<&Did>,
        now: Timestamp,
    ) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let entry = {
            let mut waiting = self.lock();
            if waiting.candidates.len() >= MOST {
                return Err("too many candidates wait for the operator; try the next cohort".to_owned());
            }
            waiting.last += 1;
            let id = waiting.last;
            let (cohort_id, did, applies_as) = (cohort_id.clone(), did.clone(), applies_as.cloned());
            waiting.candidates.insert(id, (Candidate { id, cohort_id, did, applies_as, since: now }, answer));
            Entry { desk: self.clone(), id }
        };
        let decided = answered.await;
        drop(entry);
        decided.unwrap_or_else(|_| Err("the operator has not decided".to_owned()))
    }

    /// Those that wait, the one that waits longest first.
    pub(crate) fn list(&self) -> Vec<Candidate> {
        self.lock().candidates.values().map(|(candidate, _)| candidate.clone()).collect()
    }

    /// Decides about a candidate; returns it, if it still waits.
    pub(crate) fn decide(&self, id: u64, decision: Result<(), String>) -> Option<Candidate> {
        let (candidate, answer) = self.lock().candidates.remove(&id)?;
        // The cohort may have ended in this moment.
        answer.send(decision).ok().map(|()| candidate)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Each change is one call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        actors::runtime::Randomness,
        protocol::{key::SecretKey, network::Network},
    };

    #[actix_rt::test]
    async fn a_candidate_waits_until_it_is_decided_or_gone() {
        let mut rng = Randomness::System.for_actor("desk");
        let did = Did::from_key(SecretKey::generate(&mut rng).public_key(), Network::Regtest);
        let cohort_id = CohortId::generate(&mut rng);
        let (desk, now) = (Desk::default(), Timestamp::from_secs(1));
        let operator = async {
            while desk.list().len() < 2 {
                tokio::task::yield_now().await;
            }
            let ids: Vec<u64> = desk.list().iter().map(|candidate| candidate.id).collect();
            assert!(desk.decide(ids[0], Ok(())).is_some() && desk.decide(ids[0], Ok(())).is_none());
            assert!(desk.decide(ids[1], Err("no".to_owned())).is_some());
        };
        let asked = || desk.ask(&cohort_id, &did, None, now);
        let (first, second, ()) = tokio::join!(asked(), asked(), operator);
        assert_eq!((first, second), (Ok(()), Err("no".to_owned())));
        let mut gone = Box::pin(asked());
        assert!(futures::poll!(gone.as_mut()).is_pending() && desk.list().len() == 1);
        drop(gone);
        assert!(desk.list().is_empty());
    }
}
