//! What the policy counts, in the state directory: cohorts in which seats were taken, and announcements that were signed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    actors::{
        runtime::Clock,
        state::{State, Table},
    },
    protocol::{did::Did, id::CohortId, time::Timestamp},
};

/// The table of a member's own data in a state directory.
pub(crate) const TABLE: &str = "member";

const KEY: &str = "tally";
const DAY: Duration = Duration::from_secs(86_400);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Joined {
    seat: String,
    service: Did,
    cohort_id: CohortId,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Counts {
    joined: Vec<Joined>,
    /// The cohorts of which a successor is known: they take no new DIDs, and do not count for the limit of cohorts.
    succeeded: BTreeSet<CohortId>,
    /// The announcements of the last day, by cohort.
    signed: BTreeMap<CohortId, Vec<Timestamp>>,
}

/// The counts. What it answers is stored.
pub(super) struct Tally {
    table: Table,
    clock: Clock,
    counts: Mutex<Counts>,
}

impl Tally {
    pub(super) async fn open(state: &State, clock: Clock) -> Result<Self, String> {
        let table = state.table(TABLE);
        let counts = match table.get(KEY).await.map_err(|error| error.to_string())? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| error.to_string())?,
            None => Counts::default(),
        };
        Ok(Self { table, clock, counts: Mutex::new(counts) })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Each change is one assignment.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn keep(&self, counts: Counts) -> Result<(), String> {
        let bytes = serde_json::to_vec(&counts).map_err(|error| error.to_string())?;
        *self.counts() = counts;
        self.table.put(KEY, bytes).await.map_err(|error| error.to_string())
    }

    /// In how many other cohorts of a service a seed has, or waits for, a seat; without those that have a successor, and the one that
    /// `cohort_id` succeeds.
    pub(super) fn others(&self, seat: &str, service: &Did, cohort_id: &CohortId, old: Option<&CohortId>) -> u32 {
        let counts = self.counts();
        let of = counts.joined.iter().filter(|one| one.seat == seat && one.service == *service);
        let counted = of.filter(|one| {
            one.cohort_id != *cohort_id && old != Some(&one.cohort_id) && !counts.succeeded.contains(&one.cohort_id)
        });
        u32::try_from(counted.count()).unwrap_or(u32::MAX)
    }

    /// Whether a seed has, or waits for, a seat in a cohort.
    pub(super) fn has(&self, seat: &str, service: &Did, cohort_id: &CohortId) -> bool {
        let counts = self.counts();
        counts.joined.iter().any(|one| one.seat == seat && one.service == *service && one.cohort_id == *cohort_id)
    }

    /// A successor of a cohort is known.
    pub(super) async fn is_succeeded(&self, cohort_id: &CohortId) -> Result<(), String> {
        let mut counts = self.counts().clone();
        if counts.succeeded.insert(cohort_id.clone()) {
            self.keep(counts).await?;
        }
        Ok(())
    }

    /// Whether a successor of a cohort is known.
    pub(super) fn has_successor(&self, cohort_id: &CohortId) -> bool {
        self.counts().succeeded.contains(cohort_id)
    }

    pub(super) async fn joins(&self, seat: &str, service: &Did, cohort_id: &CohortId) -> Result<(), String> {
        let mut counts = self.counts().clone();
        let joined = Joined { seat: seat.to_owned(), service: service.clone(), cohort_id: cohort_id.clone() };
        if !counts.joined.contains(&joined) {
            counts.joined.push(joined);
            self.keep(counts).await?;
        }
        Ok(())
    }

    /// The service does not give the seat.
    pub(super) async fn leaves(&self, cohort_id: &CohortId) -> Result<(), String> {
        let mut counts = self.counts().clone();
        counts.joined.retain(|one| one.cohort_id != *cohort_id);
        self.keep(counts).await
    }

    /// How many announcements of a cohort were signed in the last day.
    pub(super) fn signed_today(&self, cohort_id: &CohortId) -> u32 {
        let now = self.clock.now();
        let counts = self.counts();
        let of = counts.signed.get(cohort_id).into_iter().flatten();
        u32::try_from(of.filter(|at| now.since(**at) < DAY).count()).unwrap_or(u32::MAX)
    }

    pub(super) async fn signs(&self, cohort_id: &CohortId) -> Result<(), String> {
        let now = self.clock.now();
        let mut counts = self.counts().clone();
        let times = counts.signed.entry(cohort_id.clone()).or_default();
        times.retain(|at| now.since(*at) < DAY);
        times.push(now);
        self.keep(counts).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::protocol::{identity::Identity, key::SecretKey, network::Network};

    #[tokio::test]
    async fn counts_survive_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let service = Identity::from_key(SecretKey::from_bytes(&[1; 32]).unwrap(), Network::Regtest).did().clone();
        let cohort = |id: &str| CohortId::parse(id).unwrap();
        let state = State::open(dir.path()).unwrap();
        let tally = Tally::open(&state, Clock::system()).await.unwrap();
        tally.joins("home", &service, &cohort("a")).await.unwrap();
        tally.joins("home", &service, &cohort("a")).await.unwrap();
        tally.signs(&cohort("a")).await.unwrap();
        state.close().await;
        let state = State::open(dir.path()).unwrap();
        let tally = Tally::open(&state, Clock::system()).await.unwrap();
        assert_eq!(tally.others("home", &service, &cohort("b"), None), 1);
        assert_eq!(tally.others("home", &service, &cohort("b"), Some(&cohort("a"))), 0, "its successor");
        assert_eq!(tally.others("home", &service, &cohort("a"), None), 0, "the cohort itself");
        assert_eq!(tally.others("work", &service, &cohort("b"), None), 0, "another seed");
        assert!(tally.has("home", &service, &cohort("a")) && !tally.has("work", &service, &cohort("a")));
        assert_eq!((tally.signed_today(&cohort("a")), tally.signed_today(&cohort("b"))), (1, 0));
        assert!(!tally.has_successor(&cohort("a")));
        tally.is_succeeded(&cohort("a")).await.unwrap();
        assert!(tally.has_successor(&cohort("a")));
        assert_eq!(tally.others("home", &service, &cohort("c"), None), 0, "it has a successor");
        tally.leaves(&cohort("a")).await.unwrap();
        assert!(!tally.has("home", &service, &cohort("a")));
        state.close().await;
    }
}
