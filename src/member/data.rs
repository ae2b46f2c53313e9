//! The data of addresses that DIDs have left, or that their cohorts have left: resolvers need those of every later announcement too. Its seats
//! store them as long as they get boards; beside that the agent fetches them from the service, without end, and records since when it cannot.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    config::{SeatSettings, ServiceSettings},
    leaving::Exits,
    notice::MemberNotice,
    report::Reporter,
    settling::Seed,
    tally::TABLE,
};
use crate::{
    actors::{
        runtime::Clock,
        state::{State, StateError, Table},
    },
    controller::CurrentError,
    protocol::{
        beacon::did_index, cohort::standing::seat::Seat, did::Did, hash::DidIndex, id::CohortId, network::Network,
        resolution::ErrorCode, time::Timestamp,
    },
    standing::history::{HistoryClient, OwnSeat},
};

/// The keys of gaps in the member's table begin with it.
const PREFIX: &str = "data/";

/// The pause after a failure, which doubles, and the longest one, also between two successes.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);

/// What cannot be fetched for a DID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gap {
    /// The cohort whose address it was.
    pub cohort_id: CohortId,
    /// Since when.
    pub since: Timestamp,
    /// When it was tried last.
    pub tried: Timestamp,
    /// Why.
    pub problem: String,
    /// Whether resolvers find a signal of which the agent has no data: the DID does not resolve.
    pub is_missing: bool,
}

/// The gaps of a DID in a state directory.
///
/// # Errors
/// [`StateError`] when it cannot be read.
pub(super) async fn gaps(state: &State, did: &Did) -> Result<Vec<Gap>, StateError> {
    let page = state.table(TABLE).scan(format!("{PREFIX}{did}/"), None, usize::MAX).await?;
    Ok(page.entries.iter().filter_map(|(_, value)| serde_json::from_slice(value).ok()).collect())
}

/// What fetches the data of former DIDs.
pub(super) struct Keeping {
    pub(super) seeds: Vec<Seed>,
    pub(super) exits: Arc<Exits>,
    /// The settings of the seeds, by name.
    pub(super) settings: BTreeMap<String, SeatSettings>,
    pub(super) network: Network,
    pub(super) table: Table,
    pub(super) reporter: Reporter,
    pub(super) clock: Clock,
}

/// The DIDs that a seat has in a cohort no more: former ones, and all of them when the cohort has moved.
fn former(machine: &Seat, known: &BTreeMap<DidIndex, Did>) -> Vec<Did> {
    let mut indexes = machine.former_indexes();
    if machine.has_moved() {
        indexes.extend(machine.indexes().copied());
    }
    indexes.iter().filter_map(|index| known.get(index).cloned()).collect()
}

impl Keeping {
    /// Fetches for as long as it is polled.
    pub(super) async fn follow(&self) {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            pause = match self.once().await {
                Ok(true) => LONGEST_PAUSE,
                Ok(false) => (pause * 2).min(LONGEST_PAUSE),
                Err(problem) => return self.reporter.storage_failed(&problem),
            };
        }
    }

    /// Fetches what is there. Whether everything is complete.
    async fn once(&self) -> Result<bool, String> {
        let mut is_complete = true;
        for seed in &self.seeds {
            for (cohort_id, service, dids) in self.wanted(seed).await {
                match self.fetch(seed, service.as_ref(), &cohort_id, &dids).await {
                    Ok(()) => self.complete(&cohort_id, &dids).await?,
                    Err(problem) => {
                        is_complete = false;
                        self.incomplete(seed, &cohort_id, &dids, &problem).await?;
                    }
                }
            }
        }
        Ok(is_complete)
    }

    /// The cohorts of which a seed has former DIDs: by its seats, and those whose seat is lost.
    async fn wanted(&self, seed: &Seed) -> Vec<(CohortId, Option<Did>, Vec<Did>)> {
        let (mut wanted, mut seen, known) = (Vec::new(), BTreeSet::new(), seed.controller.indexes());
        for seat in seed.member.seats().await {
            let Some(machine) = seed.member.inspect(&seat.seat).await else { continue };
            wanted.push((seat.cohort_id.clone(), Some(seat.service), former(&machine, &known)));
            seen.insert(seat.cohort_id);
        }
        let mut lost: BTreeMap<CohortId, Vec<Did>> = BTreeMap::new();
        for exit in self.exits.all() {
            if known.contains_key(&did_index(&exit.did)) && !seen.contains(&exit.cohort_id) {
                lost.entry(exit.cohort_id).or_default().push(exit.did);
            }
        }
        wanted.extend(lost.into_iter().map(|(cohort_id, dids)| (cohort_id, None, dids)));
        wanted.retain(|(.., dids)| !dids.is_empty());
        wanted
    }

    /// Fetches from the first service that has the cohort; over relays seats ask for boards themselves.
    ///
    /// # Errors
    /// Why that is not complete, in words.
    pub(super) async fn fetch(
        &self,
        seed: &Seed,
        service: Option<&Did>,
        cohort_id: &CohortId,
        dids: &[Did],
    ) -> Result<(), String> {
        let Some(settings) = self.settings.get(&seed.name) else { return Ok(()) };
        let may_have = |settings: &&ServiceSettings| match (service, &settings.did) {
            (Some(wanted), Some(did)) => wanted == did,
            _ => true,
        };
        let mut problem = None;
        for service in settings.services.iter().filter(may_have) {
            let Some(url) = &service.url else { continue };
            let updates = dids.iter().flat_map(|did| {
                let known = seed.controller.known_updates(&did_index(did)).into_iter();
                known.map(|update| (did.clone(), update))
            });
            let own =
                OwnSeat { seed: Arc::clone(&settings.seed), network: self.network, updates: updates.collect() };
            let client = HistoryClient::new(url, cohort_id.clone(), &service.trust);
            let client = client.map_err(|error| error.to_string())?;
            match seed.controller.fetch(&client, dids, &own).await {
                Ok(fetched) if fetched.private.is_empty() => return Ok(()),
                Ok(fetched) => {
                    let numbers: BTreeSet<u64> = fetched.private.iter().map(|(number, ..)| *number).collect();
                    problem = Some(format!("{url} does not give the proofs of numbers {numbers:?} to this seat"));
                }
                Err(error) => problem = Some(error.to_string()),
            }
        }
        problem.map_or(Ok(()), Err)
    }

    fn key(did: &Did, cohort_id: &CohortId) -> String {
        format!("{PREFIX}{did}/{cohort_id}")
    }

    async fn known(&self, did: &Did, cohort_id: &CohortId) -> Result<Option<Gap>, String> {
        let known = self.table.get(Self::key(did, cohort_id)).await.map_err(|error| error.to_string())?;
        Ok(known.and_then(|value| serde_json::from_slice(&value).ok()))
    }

    async fn complete(&self, cohort_id: &CohortId, dids: &[Did]) -> Result<(), String> {
        let mut ended = Vec::new();
        for did in dids {
            if self.known(did, cohort_id).await?.is_some() {
                self.table.remove(Self::key(did, cohort_id)).await.map_err(|error| error.to_string())?;
                ended.push(did.clone());
            }
        }
        if !ended.is_empty() {
            self.reporter.notice(&MemberNotice::DataComplete { cohort_id: cohort_id.clone(), dids: ended });
        }
        Ok(())
    }

    async fn incomplete(
        &self,
        seed: &Seed,
        cohort_id: &CohortId,
        dids: &[Did],
        problem: &str,
    ) -> Result<(), String> {
        let mut begun = Vec::new();
        for did in dids {
            let now = self.clock.now();
            let known = self.known(did, cohort_id).await?;
            let is_missing = match seed.controller.current(did).await {
                Ok(current) => current.unsettled.is_some(),
                Err(CurrentError::Unresolved { code, .. }) => code == ErrorCode::MissingUpdateData,
                Err(_) => false,
            };
            if known.is_none() {
                begun.push(did.clone());
            }
            let gap = Gap {
                cohort_id: cohort_id.clone(),
                since: known.map_or(now, |known| known.since),
                tried: now,
                problem: problem.to_owned(),
                is_missing,
            };
            let value = serde_json::to_vec(&gap).map_err(|error| error.to_string())?;
            self.table.put(Self::key(did, cohort_id), value).await.map_err(|error| error.to_string())?;
        }
        if !begun.is_empty() {
            let (cohort_id, problem) = (cohort_id.clone(), problem.to_owned());
            self.reporter.notice(&MemberNotice::DataIncomplete { cohort_id, dids: begun, problem });
        }
        Ok(())
    }
}
