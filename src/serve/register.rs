//! Which template each running cohort is of, and whether its advert is paused: what the cohort itself does not know.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::ends::Ends;
use crate::{
    actors::state::{State, StateError, Table},
    error::ProgramError,
    protocol::id::CohortId,
};

/// The table of cohorts, and that of the numbers of cohorts that each template has opened.
const COHORTS: &str = "control-cohorts";
const OPENED: &str = "control-opened";

/// The most entries of a page.
const PAGE: usize = 1_000;

/// What is recorded of a cohort.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CohortRecord {
    /// The template that it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) template: Option<String>,
    /// Whether its advert is paused.
    #[serde(default)]
    pub(crate) paused: bool,
}

/// The records of running cohorts. Clones share them.
#[derive(Clone)]
pub(crate) struct Register(Arc<Inner>);

struct Inner {
    cohorts: Table,
    opened: Table,
    known: Mutex<Known>,
    ends: Ends,
}

#[derive(Default)]
struct Known {
    cohorts: BTreeMap<String, CohortRecord>,
    opened: BTreeMap<String, u32>,
}

fn refuse(error: &StateError) -> ProgramError {
    ProgramError::State(error.to_string())
}

/// Every entry of a table, by its key.
pub(crate) async fn entries<T: for<'de> Deserialize<'de>>(
    table: &Table,
) -> Result<BTreeMap<String, T>, ProgramError> {
    let mut found = BTreeMap::new();
    let mut after = None;
    loop {
        let page = table.scan(Vec::new(), after, PAGE).await.map_err(|error| refuse(&error))?;
        for (key, value) in page.entries {
            let key = String::from_utf8_lossy(&key).into_owned();
            let value = serde_json::from_slice(&value)
                .map_err(|error| ProgramError::State(format!("its record {key} cannot be read: {error}")))?;
            found.insert(key, value);
        }
        after = page.next;
        if after.is_none() {
            return Ok(found);
        }
    }
}

/// Writes an entry of a table.
pub(crate) async fn put<T: Serialize>(table: &Table, key: &str, value: &T) -> Result<(), ProgramError> {
    let value = serde_json::to_vec(value).map_err(|error| ProgramError::Internal(error.to_string()))?;
    table.put(key, value).await.map_err(|error| refuse(&error))
}

/// Removes an entry of a table.
pub(crate) async fn remove(table: &Table, key: &str) -> Result<(), ProgramError> {
    table.remove(key).await.map_err(|error| refuse(&error))
}

impl Register {
    /// The records in a state directory.
    pub(crate) async fn open(state: &State) -> Result<Self, ProgramError> {
        let (cohorts, opened) = (state.table(COHORTS), state.table(OPENED));
        let known = Known { cohorts: entries(&cohorts).await?, opened: entries(&opened).await? };
        Ok(Self(Arc::new(Inner { cohorts, opened, known: Mutex::new(known), ends: Ends::open(state).await? })))
    }

    /// How cohorts have ended.
    pub(crate) fn ends(&self) -> &Ends {
        &self.0.ends
    }

    /// The record of a cohort.
    pub(crate) fn get(&self, cohort_id: &CohortId) -> Option<CohortRecord> {
        self.lock().cohorts.get(cohort_id.as_str()).cloned()
    }

    /// How many cohorts of a template were opened.
    pub(crate) fn opened(&self, template: &str) -> u32 {
        self.lock().opened.get(template).copied().unwrap_or(0)
    }

    /// A cohort was opened; durable when this returns.
    pub(crate) async fn add(&self, cohort_id: &CohortId, record: CohortRecord) -> Result<(), ProgramError> {
        if let Some(template) = &record.template {
            let opened = {
                let mut known = self.lock();
                let opened = known.opened.entry(template.clone()).or_default();
                *opened = opened.saturating_add(1);
                *opened
            };
            put(&self.0.opened, template, &opened).await?;
        }
        self.set(cohort_id, record).await
    }

    /// Replaces the record of a cohort; durable when this returns.
    pub(crate) async fn set(&self, cohort_id: &CohortId, record: CohortRecord) -> Result<(), ProgramError> {
        self.lock().cohorts.insert(cohort_id.as_str().to_owned(), record.clone());
        put(&self.0.cohorts, cohort_id.as_str(), &record).await
    }

    /// The cohort `next` replaces another one, and is of the same template.
    pub(crate) async fn replace(&self, cohort_id: &CohortId, next: Option<&CohortId>) -> Result<(), ProgramError> {
        let record = self.lock().cohorts.remove(cohort_id.as_str());
        if let (Some(next), Some(record)) = (next, record) {
            self.set(next, CohortRecord { paused: false, ..record }).await?;
        }
        remove(&self.0.cohorts, cohort_id.as_str()).await
    }

    /// A template was removed: its cohorts are of none, and its count begins anew.
    pub(crate) async fn forget(&self, template: &str) -> Result<(), ProgramError> {
        self.lock().opened.remove(template);
        remove(&self.0.opened, template).await
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Each change is one call.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
