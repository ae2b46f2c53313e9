//! Bans: members that committed an offence are not admitted for as long as the operator's policy decides, and the
//! evidence.
//!
//! The ban list is in memory. If it must outlive the process, it is also in a database file, which several programs may
//! read and change at the same time: a running service, and the command by which its operator lists, adds and lifts
//! bans.

mod members;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use btcr2_aggregation_protocol::{id::CohortId, invite::InviteId, time::Timestamp};
use serde::{Deserialize, Serialize};

use self::members::{Change, Members};
use crate::{
    shared_table::{Edits, SharedTable, SharedTableError, Stamp, Values},
    subject::{NetworkAddress, Subject},
    transport::Evidence,
};

/// What a member did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Offence {
    /// It sent two different messages for one slot.
    Equivocation,
    /// It sent an invalid partial signature.
    BadPartialSignature,
    /// It did not answer when the cohort waited for it.
    Holdout,
    /// It rejected data that was correct, as far as the service can determine.
    Rejection,
}

/// A recorded offence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The kind of the offence.
    pub offence: Offence,
    /// The cohort in which it happened.
    pub cohort_id: CohortId,
    /// The number, in a standing cohort: each one can have an offence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// When it was detected.
    pub at: Timestamp,
    /// A description, as text.
    pub detail: String,
    /// The address from which the member opted in, if known. It helps an operator to find what several members have in
    /// common.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<NetworkAddress>,
    /// The invite with which it opted in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invite: Option<InviteId>,
    /// The messages that the member signed, as far as they are known. Silence has no evidence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Evidence>,
}

/// A member's record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Conduct {
    /// The offences, oldest first.
    #[serde(default)]
    pub entries: Vec<Entry>,
    /// The end of the ban, if there is one; [`Timestamp::NEVER`] if it is permanent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub banned_until: Option<Timestamp>,
    /// Whether an operator set the ban; then the record is never evicted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_hand: bool,
    /// The operator's reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Conduct {
    /// The end of the ban, if it is banned at `now`.
    pub fn ban(&self, now: Timestamp) -> Option<Timestamp> {
        self.banned_until.filter(|until| now < *until)
    }

    /// Whether this offence in this cohort is recorded.
    fn has(&self, entry: &Entry) -> bool {
        let place = |entry: &Entry| (entry.offence, entry.cohort_id.clone(), entry.number);
        self.entries.iter().any(|known| place(known) == place(entry))
    }
}

/// The end of a ban as text: a date, unless the ban ends only when it is lifted.
pub fn end_of_ban(until: Timestamp) -> String {
    until.to_date().unwrap_or_else(|| "it is lifted".to_owned())
}

/// The policy for bans.
pub trait Bans: Send + Sync {
    /// Judges a member after its latest offence, the last of `entries`. Returns the length of the ban, if there is one.
    fn judge(&self, entries: &[Entry]) -> Option<Duration>;
}

/// A week for an offence that only a broken or hostile program commits, a day for three holdouts in a month.
#[derive(Clone, Copy, Debug, Default)]
pub struct DefaultBans;

impl DefaultBans {
    const HOLDOUTS: usize = 3;
    const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
    const DAY: Duration = Duration::from_secs(24 * 3600);
}

impl Bans for DefaultBans {
    fn judge(&self, entries: &[Entry]) -> Option<Duration> {
        let latest = entries.last()?;
        match latest.offence {
            Offence::Equivocation | Offence::BadPartialSignature => Some(Self::WEEK),
            Offence::Holdout | Offence::Rejection => {
                let recent = entries
                    .iter()
                    .filter(|entry| entry.offence == latest.offence && latest.at.since(entry.at) < Self::MONTH);
                (recent.count() >= Self::HOLDOUTS).then_some(Self::DAY)
            }
        }
    }
}

/// No member is banned; offences are still recorded.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBans;

impl Bans for NoBans {
    fn judge(&self, _: &[Entry]) -> Option<Duration> {
        None
    }
}

/// The ban list cannot be used.
pub type BanBookError = SharedTableError;

/// The file of earlier versions, in the same directory as the database.
const OLD_FILE: &str = "bans.json";

/// The delay before a failed write is repeated.
const RETRY: Duration = Duration::from_secs(5);

/// How long the end of a process waits for pending writes.
const FLUSH: Duration = Duration::from_secs(5);

/// The ban list: offences and bans. Clones share the list.
#[derive(Clone)]
pub struct BanBook(Arc<Book>);

struct Book {
    bans: Arc<dyn Bans>,
    table: Option<SharedTable>,
    memory: Mutex<Memory>,
    written: Condvar,
}

#[derive(Default)]
struct Memory {
    members: Members,
    /// The file's change count when it was last read or written.
    changes: u64,
    stamp: Option<Stamp>,
    /// Changes that are in memory and not yet in the file.
    unwritten: Vec<Change>,
    /// The subjects whose records these changes, and the evictions with them, have changed.
    touched: BTreeSet<Subject>,
    /// Whether a thread is writing.
    is_writing: bool,
}

impl BanBook {
    /// A list that is not stored.
    pub fn in_memory(bans: Arc<dyn Bans>) -> Self {
        Self::new(bans, None)
    }

    /// The list in the database file `path`, which is created on the first write. A list that an earlier version left
    /// in the same directory as `bans.json` is imported once.
    ///
    /// # Errors
    /// [`BanBookError`] when the database or the file of the earlier version is not a ban list.
    pub fn open(path: &Path, bans: Arc<dyn Bans>) -> Result<Self, BanBookError> {
        let book = Self::new(bans, Some(SharedTable::new(path.to_owned())));
        book.refresh()?;
        book.import(&path.with_file_name(OLD_FILE))?;
        Ok(book)
    }

    fn new(bans: Arc<dyn Bans>, table: Option<SharedTable>) -> Self {
        Self(Arc::new(Book { bans, table, memory: Mutex::default(), written: Condvar::new() }))
    }

    /// All records.
    ///
    /// # Errors
    /// [`BanBookError`] when the file has changed and cannot be read.
    pub fn list(&self) -> Result<BTreeMap<Subject, Conduct>, BanBookError> {
        self.refresh()?;
        Ok(self.0.lock().members.all().clone())
    }

    /// The end of the ban of `subject`, if it is banned at `now`.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub fn banned(&self, subject: impl Into<Subject>, now: Timestamp) -> Result<Option<Timestamp>, BanBookError> {
        self.refresh()?;
        Ok(self.known_ban(&[subject.into()], now))
    }

    /// The end of the ban of one of `subjects`, according to what is in memory. Does not read the file.
    pub fn known_ban(&self, subjects: &[Subject], now: Timestamp) -> Option<Timestamp> {
        let memory = self.0.lock();
        subjects.iter().filter_map(|subject| memory.members.all().get(subject)?.ban(now)).max()
    }

    /// Records an offence of `subject`, once for each cohort and kind, and bans it if the policy decides so. Returns
    /// the end of the ban. The file is written soon, on a separate thread: the caller does not wait for the disk.
    pub fn record(&self, subject: impl Into<Subject>, entry: Entry) -> Option<Timestamp> {
        self.record_all(vec![(subject.into(), entry)]).pop().flatten()
    }

    /// Records offences, as [`record`](Self::record) does; returns the end of each ban, in the same order.
    pub fn record_all(&self, offences: Vec<(Subject, Entry)>) -> Vec<Option<Timestamp>> {
        let at: Vec<_> = offences.iter().map(|(subject, entry)| (subject.clone(), entry.at)).collect();
        let mut memory = self.0.lock();
        // The same offence is charged again after every restart; nothing is written for that.
        let is_new = |(subject, entry): &(Subject, Entry)| {
            memory.members.all().get(subject).is_none_or(|conduct| !conduct.has(entry))
        };
        let news: Vec<_> =
            offences.into_iter().filter(is_new).map(|(subject, entry)| Change::Record(subject, entry)).collect();
        if !news.is_empty() {
            memory.apply_all(news, &*self.0.bans, self.0.table.is_some());
            if self.0.table.is_some() && !std::mem::replace(&mut memory.is_writing, true) {
                let book = Arc::clone(&self.0);
                std::thread::spawn(move || book.write_all());
            }
        }
        let conduct_of = |subject| memory.members.all().get(subject);
        at.iter().map(|(subject, at)| conduct_of(subject).and_then(|conduct| conduct.ban(*at))).collect()
    }

    /// Bans `subject` until `until`, on the operator's request. The ban is durable when this returns.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn add(
        &self,
        subject: impl Into<Subject>,
        until: Timestamp,
        reason: Option<String>,
    ) -> Result<(), BanBookError> {
        self.change(vec![Change::Add { subject: subject.into(), until, reason }])
    }

    /// Lifts the ban of `subject` and removes its record; returns whether there was a record. Durable when this
    /// returns.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn lift(&self, subject: impl Into<Subject>) -> Result<bool, BanBookError> {
        let subject = subject.into();
        self.refresh()?;
        if !self.0.lock().members.all().contains_key(&subject) {
            return Ok(false);
        }
        self.change(vec![Change::Lift(subject)]).map(|()| true)
    }

    /// Waits, for a few seconds at most, until everything is written; returns whether it is.
    pub fn flush(&self) -> bool {
        let waiting = |memory: &mut Memory| memory.is_writing;
        let waited = self.0.written.wait_timeout_while(self.0.lock(), FLUSH, waiting);
        !waited.unwrap_or_else(PoisonError::into_inner).0.is_writing
    }

    /// Whether another program has changed the file since it was read.
    pub fn is_stale(&self) -> bool {
        let Some(table) = &self.0.table else { return false };
        let stamp = self.0.lock().stamp;
        table.stamp().map_or(true, |found| Some(found) != stamp)
    }

    /// Reads the file if another program has changed it.
    ///
    /// # Errors
    /// [`BanBookError`] when it cannot be read.
    pub fn refresh(&self) -> Result<(), BanBookError> {
        let Some(table) = &self.0.table else { return Ok(()) };
        // A thread that writes reads it too.
        if !self.is_stale() || self.0.lock().is_writing {
            return Ok(());
        }
        let contents = table.read()?;
        let members = parse(&contents.values).map_err(|problem| table.refuse(problem))?;
        let mut memory = self.0.lock();
        if memory.is_writing {
            return Ok(());
        }
        (memory.changes, memory.stamp) = (contents.changes, Some(contents.stamp));
        memory.replace(members, &*self.0.bans);
        Ok(())
    }

    /// Applies changes that are durable when this returns.
    fn change(&self, changes: Vec<Change>) -> Result<(), BanBookError> {
        self.refresh()?;
        let has_file = self.0.table.is_some();
        let mut memory = self.0.lock();
        memory.apply_all(changes, &*self.0.bans, has_file);
        if !has_file {
            return Ok(());
        }
        while memory.is_writing {
            memory = self.0.written.wait(memory).unwrap_or_else(PoisonError::into_inner);
        }
        memory.is_writing = true;
        drop(memory);
        let outcome = self.0.write_once();
        let mut memory = self.0.lock();
        if outcome.is_ok() && !memory.unwritten.is_empty() {
            // An offence that was recorded in the meantime saw that a thread is writing, and started none of its own.
            let book = Arc::clone(&self.0);
            std::thread::spawn(move || book.write_all());
        } else {
            memory.is_writing = false;
            self.0.written.notify_all();
        }
        outcome
    }

    /// Imports the list of an earlier version.
    fn import(&self, old: &Path) -> Result<(), BanBookError> {
        let beside = SharedTable::new(old.to_owned());
        let json = match fs::read(old) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(beside.refuse(error)),
        };
        let members: BTreeMap<Subject, Conduct> = serde_json::from_slice(&json).map_err(|error| {
            beside.refuse(format!(
                "not a ban list of an earlier version: {error}; restore it, or move it away to start without it"
            ))
        })?;
        self.change(members.into_iter().map(|(subject, conduct)| Change::Import(subject, conduct)).collect())?;
        let mut imported = old.as_os_str().to_owned();
        imported.push(".imported");
        fs::rename(old, imported).map_err(|error| beside.refuse(error))
    }
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, Memory> {
        // No code panics while the value is partly changed.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes until nothing is left to write.
    fn write_all(&self) {
        loop {
            let outcome = self.write_once();
            let mut memory = self.lock();
            if memory.unwritten.is_empty() {
                memory.is_writing = false;
                self.written.notify_all();
                return;
            }
            drop(memory);
            if let Err(error) = outcome {
                tracing::error!(%error, "offences could not be written to the ban list yet");
                std::thread::sleep(RETRY);
            }
        }
    }

    /// Writes pending changes. Changes that another program wrote in the meantime remain: ours are applied to them.
    fn write_once(&self) -> Result<(), SharedTableError> {
        let Some(table) = &self.table else { return Ok(()) };
        let (changes, touched, known) = {
            let mut memory = self.lock();
            (std::mem::take(&mut memory.unwritten), std::mem::take(&mut memory.touched), memory.changes)
        };
        let written = table.change(known, |found| {
            let found = found.map(parse).transpose()?;
            let Some(mut members) = found else { return Ok((self.lock().edits(&touched), None)) };
            let mut touched = BTreeSet::new();
            members.apply_all(changes.iter().cloned(), &*self.bans, &mut touched);
            let edits = members.edits(&touched);
            Ok((edits, Some(members)))
        });
        let mut memory = self.lock();
        match written {
            Ok((found, count, stamp)) => {
                (memory.changes, memory.stamp) = (count, Some(stamp));
                if let Some(members) = found {
                    memory.replace(members, &*self.bans);
                }
                Ok(())
            }
            Err(error) => {
                let later = std::mem::replace(&mut memory.unwritten, changes);
                memory.unwritten.extend(later);
                memory.touched.extend(touched);
                Err(error)
            }
        }
    }
}

impl Memory {
    fn apply_all(&mut self, changes: Vec<Change>, bans: &dyn Bans, is_written: bool) {
        if !is_written {
            return self.members.apply_all(changes, bans, &mut BTreeSet::new());
        }
        self.unwritten.extend(changes.iter().cloned());
        self.members.apply_all(changes, bans, &mut self.touched);
    }

    /// Replaces the records by the file's, with those of our changes that the file does not have.
    fn replace(&mut self, members: Members, bans: &dyn Bans) {
        self.members = members;
        self.members.apply_all(self.unwritten.iter().cloned(), bans, &mut self.touched);
    }

    fn edits(&self, touched: &BTreeSet<Subject>) -> Edits {
        self.members.edits(touched)
    }
}

fn parse(values: &Values) -> Result<Members, String> {
    let parse = |(key, value): (&String, &Vec<u8>)| {
        let subject = key.parse::<Subject>().map_err(|error| error.to_string())?;
        let conduct = serde_json::from_slice(value).map_err(|error| error.to_string())?;
        Ok((subject, conduct))
    };
    values
        .iter()
        .map(parse)
        .collect::<Result<_, String>>()
        .map(Members::new)
        .map_err(|problem| format!("not a ban list: {problem}"))
}
