//! How one-time cohorts have ended, for the operator: the last ones, persisted. The results of all of them are in `--out`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};

use super::register::{entries, put, remove};
use crate::{
    actors::{
        runtime::Clock,
        state::{State, Table},
    },
    bitcoin::notice::AnnouncementNotice,
    error::ProgramError,
    protocol::id::CohortId,
};

/// The table in a state directory.
const ENDS: &str = "control-ends";

/// The most ends.
const MOST: usize = 1_000;

/// The ends. Clones share them.
#[derive(Clone)]
pub(crate) struct Ends(Arc<Inner>);

struct Inner {
    table: Table,
    known: Mutex<BTreeMap<String, Value>>,
}

impl Ends {
    pub(super) async fn open(state: &State) -> Result<Self, ProgramError> {
        let table = state.table(ENDS);
        let known = Mutex::new(entries(&table).await?);
        Ok(Self(Arc::new(Inner { table, known })))
    }

    /// A cohort has ended; durable when this returns. An end that is known is not changed: it may be reported again after a restart.
    pub(super) async fn add(
        &self,
        cohort_id: &CohortId,
        template: Option<String>,
        mut end: Value,
    ) -> Result<(), ProgramError> {
        if self.lock().contains_key(cohort_id.as_str()) {
            return Ok(());
        }
        (end["cohortId"], end["endedAt"], end["template"]) =
            (json!(cohort_id), json!(Clock::system().now()), json!(template));
        put(&self.0.table, cohort_id.as_str(), &end).await?;
        let dropped = {
            let mut known = self.lock();
            known.insert(cohort_id.as_str().to_owned(), end);
            let oldest = known.iter().min_by_key(|(_, end)| end["endedAt"].as_u64()).map(|(id, _)| id.clone());
            let dropped = oldest.filter(|_| known.len() > MOST);
            if let Some(dropped) = &dropped {
                known.remove(dropped);
            }
            dropped
        };
        match dropped {
            Some(dropped) => remove(&self.0.table, &dropped).await,
            None => Ok(()),
        }
    }

    /// What has become of a cohort's announcement, if its end is known.
    pub(super) async fn announced(&self, step: &AnnouncementNotice) -> Result<(), ProgramError> {
        let announcement = match step {
            AnnouncementNotice::AnnouncementFinal { txid, block, fee, child_fee, .. } => json!({
                "state": "final", "txid": txid, "height": block.height, "fee": (*fee + *child_fee).to_sat(),
            }),
            AnnouncementNotice::AnnouncementFailed { reason, left, .. } => {
                json!({ "state": "failed", "reason": reason, "left": left.to_sat() })
            }
            _ => return Ok(()),
        };
        let id = step.cohort_id().as_str();
        let Some(mut end) = self.lock().get(id).cloned() else { return Ok(()) };
        end["announcement"] = announcement;
        put(&self.0.table, id, &end).await?;
        self.lock().insert(id.to_owned(), end);
        Ok(())
    }

    /// How a cohort ended.
    pub(crate) fn get(&self, cohort_id: &CohortId) -> Option<Value> {
        self.lock().get(cohort_id.as_str()).cloned()
    }

    /// All of them, the last first.
    pub(crate) fn list(&self) -> Vec<Value> {
        let mut ends: Vec<Value> = self.lock().values().cloned().collect();
        ends.sort_by_key(|end| std::cmp::Reverse(end["endedAt"].as_u64()));
        ends
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Value>> {
        // Each change is one call.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
