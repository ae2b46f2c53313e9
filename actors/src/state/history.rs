//! What standing cohorts have announced, in a state directory.

use btcr2_aggregation_protocol::{hash::SignalBytes, id::CohortId};
use futures::{FutureExt, future::BoxFuture};
use serde::{Serialize, de::DeserializeOwned};

use super::{Edit, State, StateError, Table};
use crate::standing::history::{Announced, CohortRecord, Fate, HistoryError, HistoryStore};

/// Cohorts by their identifier, numbers by cohort and number, and numbers by cohort and signal.
#[derive(Clone)]
pub struct StateHistory {
    cohorts: Table,
    numbers: Table,
    signals: Table,
}

impl StateHistory {
    /// The history in `state`.
    pub fn new(state: &State) -> Self {
        Self {
            cohorts: state.table("standing-cohorts"),
            numbers: state.table("standing-announced"),
            signals: state.table("standing-signals"),
        }
    }
}

/// With its length: no identifier is the beginning of another one.
fn prefix(cohort_id: &CohortId) -> Vec<u8> {
    let id = cohort_id.as_str().as_bytes();
    [&(id.len() as u64).to_be_bytes(), id].concat()
}

fn key(cohort_id: &CohortId, number: u64) -> Vec<u8> {
    [prefix(cohort_id), number.to_be_bytes().to_vec()].concat()
}

fn failed(error: StateError) -> HistoryError {
    HistoryError(error.to_string())
}

impl StateHistory {
    /// All formed cohorts.
    ///
    /// # Errors
    /// When the table, or an entry of it, cannot be read.
    pub async fn cohorts(&self) -> Result<Vec<CohortRecord>, HistoryError> {
        let (mut cohorts, mut after) = (Vec::new(), None);
        loop {
            let page = self.cohorts.scan(Vec::new(), after, PAGE).await.map_err(failed)?;
            if let Some(key) = page.damaged.first() {
                return Err(HistoryError(format!("the entry {key:02x?} is damaged")));
            }
            let Some((last, _)) = page.entries.last() else { return Ok(cohorts) };
            after = Some(last.clone());
            for (_, value) in &page.entries {
                cohorts.push(read(value)?);
            }
        }
    }
}

/// How many cohorts are read at once.
const PAGE: usize = 256;

fn written(value: &impl Serialize) -> Result<Vec<u8>, HistoryError> {
    serde_json::to_vec(value).map_err(|error| HistoryError(error.to_string()))
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, HistoryError> {
    serde_json::from_slice(bytes).map_err(|error| HistoryError(format!("an entry cannot be read: {error}")))
}

async fn get<T: DeserializeOwned>(table: &Table, key: Vec<u8>) -> Result<Option<T>, HistoryError> {
    table.get(key).await.map_err(failed)?.map(|bytes| read(&bytes)).transpose()
}

impl HistoryStore for StateHistory {
    fn put_cohort(&self, cohort: CohortRecord) -> BoxFuture<'static, Result<(), HistoryError>> {
        let table = self.cohorts.clone();
        async move { table.put(prefix(&cohort.cohort_id), written(&cohort)?).await.map_err(failed) }.boxed()
    }

    fn cohort(&self, cohort_id: &CohortId) -> BoxFuture<'static, Result<Option<CohortRecord>, HistoryError>> {
        let (table, key) = (self.cohorts.clone(), prefix(cohort_id));
        async move { get(&table, key).await }.boxed()
    }

    fn put(&self, cohort_id: &CohortId, announced: Announced) -> BoxFuture<'static, Result<(), HistoryError>> {
        let (numbers, signals) = (self.numbers.clone(), self.signals.clone());
        let (key, prefix) = (key(cohort_id, announced.number), prefix(cohort_id));
        async move {
            if get::<Announced>(&numbers, key.clone()).await?.is_some() {
                return Ok(());
            }
            // Before the number: a number that is there is found by its signal.
            if let Some(signal) = &announced.signal {
                let by_signal = [&prefix[..], signal.as_bytes()].concat();
                signals
                    .edit([Edit::Put(by_signal, announced.number.to_be_bytes().to_vec())])
                    .await
                    .map_err(failed)?;
            }
            numbers.put(key, written(&announced)?).await.map_err(failed)
        }
        .boxed()
    }

    fn settle(
        &self,
        cohort_id: &CohortId,
        number: u64,
        state: Fate,
    ) -> BoxFuture<'static, Result<(), HistoryError>> {
        let (numbers, key) = (self.numbers.clone(), key(cohort_id, number));
        async move {
            match get::<Announced>(&numbers, key.clone()).await? {
                Some(known) if known.state != state => {
                    numbers.put(key, written(&Announced { state, ..known })?).await.map_err(failed)
                }
                _ => Ok(()),
            }
        }
        .boxed()
    }

    fn get(
        &self,
        cohort_id: &CohortId,
        number: u64,
    ) -> BoxFuture<'static, Result<Option<Announced>, HistoryError>> {
        let (numbers, key) = (self.numbers.clone(), key(cohort_id, number));
        async move { get(&numbers, key).await }.boxed()
    }

    fn by_signal(
        &self,
        cohort_id: &CohortId,
        signal: &SignalBytes,
    ) -> BoxFuture<'static, Result<Option<Announced>, HistoryError>> {
        let (this, cohort_id) = (self.clone(), cohort_id.clone());
        let by_signal = [&prefix(&cohort_id)[..], signal.as_bytes()].concat();
        async move {
            let Some(number) = this.signals.get(by_signal).await.map_err(failed)? else { return Ok(None) };
            let number = number.try_into().map_err(|_| HistoryError("an entry cannot be read".to_owned()))?;
            get(&this.numbers, key(&cohort_id, u64::from_be_bytes(number))).await
        }
        .boxed()
    }

    fn list(
        &self,
        cohort_id: &CohortId,
        after: u64,
        most: usize,
    ) -> BoxFuture<'static, Result<Vec<Announced>, HistoryError>> {
        let (numbers, prefix, after) = (self.numbers.clone(), prefix(cohort_id), key(cohort_id, after));
        async move {
            let page = numbers.scan(prefix, Some(after), most).await.map_err(failed)?;
            if let Some(key) = page.damaged.first() {
                return Err(HistoryError(format!("the entry {key:02x?} is damaged")));
            }
            page.entries.iter().map(|(_, value)| read(value)).collect()
        }
        .boxed()
    }
}
