//! The durable queue of a member's updates. An update is in it from the moment on at which its controller has added it, until
//! resolvers return it, or it is refused or cancelled.
//!
//! ```text
//!  queued ─▶ submitted ─▶ approved ─▶ announced ─▶ confirmed ─▶ resolvable
//!    │ ▲         │            │            │
//!    │ └─────────┴────────────┴────────────┘  the number has failed, or its coin was spent by another transaction: the identical update again
//!    ├─▶ refused     it cannot be made on the document that is current now
//!    └─▶ cancelled   as long as it was not submitted
//! ```

mod change;
mod item;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bitcoin::Txid;

pub use self::{
    change::{Change, ChangeError},
    item::{Item, NewItem, Place, Stage},
};
use crate::{
    actors::{
        runtime::Clock,
        state::{Edit, State, Table},
    },
    protocol::{
        beacon::did_index,
        did::Did,
        hash::{DidIndex, DocumentHash},
        id::CohortId,
        update::SignedUpdate,
    },
};

/// The table of the queue in a state directory.
pub const TABLE: &str = "member-queue";

/// The most updates that wait, and the most of one DID.
pub const MOST_OPEN: usize = 10_000;
/// See [`MOST_OPEN`].
pub const MOST_OF_DID: usize = 100;

/// How many that are over are remembered.
const MOST_OVER: usize = 1_000;

/// Why the queue does not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The update is not one that can be announced.
    #[error("{0}")]
    Refused(String),
    /// Too many updates wait.
    #[error("{0} updates wait already: no more are taken")]
    Full(usize),
    /// There is no such update.
    #[error("there is no update {0} in the queue")]
    Unknown(u64),
    /// It may be announced already.
    #[error("update {0} is in the response to a number: it may be announced already, and cannot be taken back")]
    Submitted(u64),
    /// It is over.
    #[error("update {0} is over: {1}")]
    Over(u64, Stage),
    /// It is not stored. Nothing has changed.
    #[error("the queue cannot be stored: {0}")]
    Storage(String),
}

/// The queue. What it answers is stored.
pub struct Queue {
    table: Table,
    clock: Clock,
    items: Mutex<BTreeMap<u64, Item>>,
}

fn key(id: u64) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}

impl Queue {
    /// The queue in a state directory.
    ///
    /// # Errors
    /// [`QueueError::Storage`] when it cannot be read.
    pub async fn open(state: &State, clock: Clock) -> Result<Self, QueueError> {
        let table = state.table(TABLE);
        let failed = |error: &dyn std::fmt::Display| QueueError::Storage(error.to_string());
        let (mut items, mut after) = (BTreeMap::new(), None);
        loop {
            let page = table.scan(Vec::new(), after, 500).await.map_err(|error| failed(&error))?;
            if let Some(damaged) = page.damaged.first() {
                return Err(failed(&format!("the entry {damaged:02x?} is damaged")));
            }
            for (_, value) in &page.entries {
                let item: Item = serde_json::from_slice(value).map_err(|error| failed(&error))?;
                items.insert(item.id, item);
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        Ok(Self { table, clock, items: Mutex::new(items) })
    }

    fn items(&self) -> MutexGuard<'_, BTreeMap<u64, Item>> {
        // Each change is one call.
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores changed items, then has them.
    async fn keep(&self, changed: Vec<Item>) -> Result<(), QueueError> {
        let failed = |error: String| QueueError::Storage(error);
        let mut edits = Vec::with_capacity(changed.len());
        for item in &changed {
            let value = serde_json::to_vec(item).map_err(|error| failed(error.to_string()))?;
            edits.push(Edit::Put(key(item.id), value));
        }
        let forgotten: Vec<u64> = {
            let items = self.items();
            let over = items.values().filter(|item| item.stage.is_over()).map(|item| item.id);
            let over: Vec<u64> = over.collect();
            over.iter().take(over.len().saturating_sub(MOST_OVER)).copied().collect()
        };
        edits.extend(forgotten.iter().map(|id| Edit::Remove(key(*id))));
        self.table.edit(edits).await.map_err(|error| failed(error.to_string()))?;
        let mut items = self.items();
        forgotten.iter().for_each(|id| drop(items.remove(id)));
        items.extend(changed.into_iter().map(|item| (item.id, item)));
        Ok(())
    }

    /// All items, in their order.
    pub fn list(&self) -> Vec<Item> {
        self.items().values().cloned().collect()
    }

    /// One of them.
    pub fn get(&self, id: u64) -> Option<Item> {
        self.items().get(&id).cloned()
    }

    /// Those that are not over.
    pub fn open_items(&self) -> Vec<Item> {
        self.items().values().filter(|item| !item.stage.is_over()).cloned().collect()
    }

    /// Adds an update.
    ///
    /// # Errors
    /// [`QueueError`]. The same update again gives the item that it has already.
    pub async fn add(&self, new: NewItem) -> Result<Item, QueueError> {
        self.insert(new, false).await
    }

    /// Adds an update that the DID's own Singleton beacon announces: from now on it may be announced, and no other one of its version is
    /// submitted.
    ///
    /// # Errors
    /// [`QueueError`], as for [`Self::add`].
    pub async fn add_by_singleton(&self, new: NewItem) -> Result<Item, QueueError> {
        self.insert(new, true).await
    }

    async fn insert(&self, new: NewItem, by_singleton: bool) -> Result<Item, QueueError> {
        let refuse = |problem: &str| QueueError::Refused(problem.to_owned());
        let version = new.update.target_version().ok_or_else(|| refuse("the update has no targetVersionId"))?;
        let of = new.update.value().pointer("/proof/invocationTarget").and_then(serde_json::Value::as_str);
        if of != Some(new.did.as_str()) {
            return Err(refuse("the update is one of another DID"));
        }
        let (id, now) = {
            let items = self.items();
            let same = |item: &&Item| item.update.hash() == new.update.hash() && !item.stage.is_over();
            if let Some(known) = items.values().find(same) {
                return Ok(known.clone());
            }
            let open = || items.values().filter(|item| !item.stage.is_over());
            for (count, most) in
                [(open().count(), MOST_OPEN), (open().filter(|item| item.did == new.did).count(), MOST_OF_DID)]
            {
                if count >= most {
                    return Err(QueueError::Full(count));
                }
            }
            (items.keys().next_back().map_or(1, |last| last + 1), self.clock.now())
        };
        let item = Item {
            id,
            did: new.did,
            change: new.change,
            update: new.update,
            version,
            allow_risky: new.allow_risky,
            stage: if by_singleton { Stage::Submitted } else { Stage::Queued },
            may_be_announced: by_singleton,
            by_singleton,
            place: None,
            reason: None,
            rebuilt: 0,
            added_at: now,
            submitted_at: by_singleton.then_some(now),
            changed_at: now,
        };
        self.keep(vec![item.clone()]).await?;
        Ok(item)
    }

    /// Takes back an update that was not submitted.
    ///
    /// # Errors
    /// [`QueueError`].
    pub async fn cancel(&self, id: u64) -> Result<Item, QueueError> {
        let mut item = self.get(id).ok_or(QueueError::Unknown(id))?;
        if item.stage.is_over() {
            return Err(QueueError::Over(id, item.stage));
        }
        if item.may_be_announced {
            return Err(QueueError::Submitted(id));
        }
        self.move_to(&mut item, Stage::Cancelled, None);
        self.keep(vec![item.clone()]).await?;
        Ok(item)
    }

    fn move_to(&self, item: &mut Item, stage: Stage, reason: Option<String>) {
        (item.stage, item.reason, item.changed_at) = (stage, reason, self.clock.now());
    }

    /// Changes items, and gives those that have changed.
    async fn change(&self, change: impl Fn(&mut Item) -> bool) -> Result<Vec<Item>, QueueError> {
        let mut changed: Vec<Item> = self.open_items();
        changed.retain_mut(|item| change(item));
        if !changed.is_empty() {
            let now = self.clock.now();
            changed.iter_mut().for_each(|item| item.changed_at = now);
            self.keep(changed.clone()).await?;
        }
        Ok(changed)
    }

    /// An item as the agent has changed it.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub async fn put(&self, mut item: Item) -> Result<(), QueueError> {
        item.changed_at = self.clock.now();
        self.keep(vec![item]).await
    }

    /// These updates are in the response to a number. They may be announced when this is ready.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub async fn submitted(
        &self,
        cohort_id: &CohortId,
        number: u64,
        updates: &[DocumentHash],
    ) -> Result<Vec<Item>, QueueError> {
        let now = self.clock.now();
        let place = Place { cohort_id: cohort_id.clone(), number, txid: None };
        self.change(|item| {
            let is_one = updates.contains(item.update.hash());
            if is_one {
                (item.stage, item.may_be_announced, item.reason) = (Stage::Submitted, true, None);
                item.place = Some(place.clone());
                item.submitted_at.get_or_insert(now);
            }
            is_one
        })
        .await
    }

    /// The seat has signed a number, or it is announced (`stage`).
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub async fn signed(
        &self,
        cohort_id: &CohortId,
        number: u64,
        txid: Txid,
        stage: Stage,
    ) -> Result<Vec<Item>, QueueError> {
        self.change(|item| {
            let is_newer = item.stage < stage;
            let here = item.place.as_mut().filter(|place| place.cohort_id == *cohort_id && place.number == number);
            match here {
                Some(place) if is_newer => {
                    (place.txid, item.stage) = (Some(txid), stage);
                    true
                }
                _ => false,
            }
        })
        .await
    }

    /// That transaction is final.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub async fn confirmed(&self, by: Txid) -> Result<Vec<Item>, QueueError> {
        self.change(|item| {
            let is_one =
                item.stage < Stage::Confirmed && item.place.as_ref().is_some_and(|place| place.txid == Some(by));
            if is_one {
                item.stage = Stage::Confirmed;
            }
            is_one
        })
        .await
    }

    /// Resolvers return these updates of a DID, by their hashes.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub async fn resolved(&self, did: &Did, applied: &[DocumentHash]) -> Result<Vec<Item>, QueueError> {
        self.change(|item| {
            let is_one = item.did == *did && applied.contains(item.update.hash());
            if is_one {
                (item.stage, item.reason) = (Stage::Resolvable, None);
            }
            is_one
        })
        .await
    }

    /// The announcement of these cannot be mined any more: they are submitted again, unchanged.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub async fn void(&self, ids: &[u64]) -> Result<Vec<Item>, QueueError> {
        self.change(|item| {
            let is_one = ids.contains(&item.id) && item.stage == Stage::Announced;
            if is_one {
                item.stage = Stage::Queued;
                item.reason = Some("its announcement was replaced by another transaction".to_owned());
            }
            is_one
        })
        .await
    }

    /// The DIDs of which an update waits for a number.
    pub fn waiting(&self) -> BTreeSet<DidIndex> {
        let items = self.items();
        let waiting = items.values().filter(|item| item.stage.is_waiting() && !item.by_singleton);
        waiting.map(|item| did_index(&item.did)).collect()
    }

    /// The update of a DID that its own Singleton beacon announces, and that resolvers do not return yet.
    pub fn by_singleton(&self, index: &DidIndex) -> Option<Item> {
        let items = self.items();
        let mut open = items.values().filter(|item| item.by_singleton && !item.stage.is_over());
        open.find(|item| did_index(&item.did) == *index).cloned()
    }

    /// The updates of a DID, also those that are over.
    pub fn updates_of(&self, index: &DidIndex) -> Vec<SignedUpdate> {
        self.items()
            .values()
            .filter(|item| did_index(&item.did) == *index)
            .map(|item| item.update.clone())
            .collect()
    }
}
