//! Where a member reports: its output, and the log in its state directory, which `member log` shows.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{notice::MemberNotice, queue::Item};
use crate::{
    actors::{
        runtime::Clock,
        state::{Edit, State, StateError, Table},
    },
    events::Printer,
};

/// The table of the log in a state directory.
pub const TABLE: &str = "member-log";

/// The most entries that are stored.
pub const MOST_ENTRIES: u64 = 2_000;

/// The log. Clones share it.
#[derive(Clone)]
pub struct Log {
    table: Table,
    clock: Clock,
    next: Arc<AtomicU64>,
}

impl Log {
    /// The log in a state directory.
    ///
    /// # Errors
    /// [`StateError`] when it cannot be read.
    pub async fn open(state: &State, clock: Clock) -> Result<Self, StateError> {
        let table = state.table(TABLE);
        let next = numbers(&table).await?.last().map_or(0, |last| last + 1);
        Ok(Self { table, clock, next: Arc::new(AtomicU64::new(next)) })
    }

    /// Adds an entry. One that cannot be stored is lost: it was printed.
    fn add(&self, entry: Value) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let text = json!({ "at": self.clock.now().to_date(), "entry": entry }).to_string();
        let mut edits = vec![Edit::Put(number.to_be_bytes().to_vec(), text.into_bytes())];
        if let Some(old) = number.checked_sub(MOST_ENTRIES) {
            edits.push(Edit::Remove(old.to_be_bytes().to_vec()));
        }
        // Written also when the future is dropped.
        drop(self.table.edit(edits));
    }
}

async fn numbers(table: &Table) -> Result<Vec<u64>, StateError> {
    let page = table.scan(Vec::new(), None, usize::MAX).await?;
    let number = |key: &[u8]| Some(u64::from_be_bytes(key.try_into().ok()?));
    Ok(page.entries.iter().filter_map(|(key, _)| number(key)).collect())
}

/// The last entries of the log in a state directory, the oldest first.
///
/// # Errors
/// [`StateError`] when it cannot be read.
pub async fn entries(state: &State, most: usize) -> Result<Vec<Value>, StateError> {
    let page = state.table(TABLE).scan(Vec::new(), None, usize::MAX).await?;
    let skipped = page.entries.len().saturating_sub(most);
    let read = page.entries.iter().skip(skipped).map(|(_, value)| serde_json::from_slice(value));
    Ok(read.filter_map(Result::ok).collect())
}

/// Prints and logs. Clones share everything.
#[derive(Clone)]
pub struct Reporter {
    printer: Printer,
    log: Log,
    /// The state directory cannot be written to.
    failed: Arc<Notify>,
    /// Something has changed that a backup is to have.
    changed: Arc<Notify>,
}

impl Reporter {
    /// Reports by this printer, and in this log.
    pub fn new(printer: Printer, log: Log) -> Self {
        Self { printer, log, failed: Arc::default(), changed: Arc::default() }
    }

    /// The printer.
    pub fn printer(&self) -> &Printer {
        &self.printer
    }

    /// Reports a notice of the member.
    pub fn notice(&self, notice: &MemberNotice) {
        self.print(notice, notice.text());
        // A backup is not a reason for another one.
        if !matches!(notice, MemberNotice::BackupWritten { .. } | MemberNotice::BackupFailed { .. }) {
            self.changed.notify_one();
        }
    }

    /// Prints and logs a notice of another part.
    pub fn also_logged(&self, notice: &impl Serialize, text: String) {
        self.print(notice, text);
        self.changed.notify_one();
    }

    fn print(&self, notice: &impl Serialize, text: String) {
        match serde_json::to_value(notice) {
            Ok(entry) => self.log.add(entry),
            Err(error) => tracing::error!(%error, "a notice does not serialize"),
        }
        self.printer.notice(notice, text);
    }

    /// Reports how far an update is.
    pub fn update(&self, item: &Item) {
        let place = item.place.as_ref();
        self.notice(&MemberNotice::UpdateStep {
            id: item.id,
            did: item.did.clone(),
            stage: item.stage,
            version_id: item.version.to_string(),
            update: *item.update.hash(),
            cohort_id: place.map(|place| place.cohort_id.clone()),
            number: place.map(|place| place.number),
            reason: item.reason.clone(),
        });
    }

    /// The state directory cannot be written to: the member starts again.
    pub fn storage_failed(&self, problem: &str) {
        self.printer.warn(&format!("the state directory cannot be written to: {problem}"));
        self.failed.notify_one();
    }

    /// Ready when [`storage_failed`](Self::storage_failed) was called.
    pub async fn storage_has_failed(&self) {
        self.failed.notified().await;
    }

    /// Ready when something was reported since the last call.
    pub async fn has_changed(&self) {
        self.changed.notified().await;
    }
}
