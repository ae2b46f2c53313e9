//! Who is not admitted: members that did wrong, for as long as the operator's policy says, with the evidence.
//!
//! The ban list is in memory, and where it must outlive the process also in a database file, which several programs may read and
//! change at the same time: a running service, and the command by which its operator lists, adds and lifts bans.

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

/// What a member did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Offence {
    /// It said two different things in one place.
    Equivocation,
    /// It sent an invalid partial signature.
    BadPartialSignature,
    /// It kept silent when the cohort waited for it.
    Holdout,
    /// It rejected data that was right, as far as the service can tell.
    Rejection,
}

/// An offence on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// What.
    pub offence: Offence,
    /// In which cohort.
    pub cohort_id: CohortId,
    /// When it was found.
    pub at: Timestamp,
    /// In words.
    pub detail: String,
    /// From where it opted in, where that is known: for an operator who looks for what several members have in common.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<NetworkAddress>,
    /// By which invite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invite: Option<InviteId>,
    /// What the member signed, as far as it is known. Silence has no evidence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Evidence>,
}

/// A member's record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Conduct {
    /// What it did, oldest first.
    #[serde(default)]
    pub entries: Vec<Entry>,
    /// Until when it is banned, if it is: [`Timestamp::NEVER`] permanently.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub banned_until: Option<Timestamp>,
    /// Whether that was by hand: then nothing that others do makes it forgotten.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_hand: bool,
    /// Why, where an operator banned it by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Conduct {
    /// Until when it is banned, at `now`.
    pub fn ban(&self, now: Timestamp) -> Option<Timestamp> {
        self.banned_until.filter(|until| now < *until)
    }

    /// Whether this offence in this cohort is on record.
    fn has(&self, entry: &Entry) -> bool {
        self.entries.iter().any(|known| known.offence == entry.offence && known.cohort_id == entry.cohort_id)
    }
}

/// The end of a ban, for people: a date, unless it ends only when it is lifted.
pub fn end_of_ban(until: Timestamp) -> String {
    until.to_date().unwrap_or_else(|| "it is lifted".to_owned())
}

/// For how long members are not admitted.
pub trait Bans: Send + Sync {
    /// Judges a member after its latest offence, the last of `entries`: for how long it is banned, if at all.
    fn judge(&self, entries: &[Entry]) -> Option<Duration>;
}

/// A week for what only a broken or hostile program does, a day for holding out three times in a month.
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

/// Nobody is banned; offences are still on record.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBans;

impl Bans for NoBans {
    fn judge(&self, _: &[Entry]) -> Option<Duration> {
        None
    }
}

/// A ban list that cannot be used.
pub type BanBookError = SharedTableError;

/// The file of earlier versions, beside the database.
const OLD_FILE: &str = "bans.json";

/// How long what could not be written waits for the next attempt.
const RETRY: Duration = Duration::from_secs(5);

/// How long the end of a process waits for what is not written yet.
const FLUSH: Duration = Duration::from_secs(5);

/// What members did, and who is banned. Clones are the same list.
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
    /// How many changes the file had seen when it was read or written last, and how it looked.
    changes: u64,
    stamp: Option<Stamp>,
    /// What is in memory and not in the file.
    unwritten: Vec<Change>,
    /// Whose records these changes, and what was forgotten with them, have changed.
    touched: BTreeSet<Subject>,
    /// Whether a thread writes.
    is_writing: bool,
}

impl BanBook {
    /// A list that ends with the process.
    pub fn in_memory(bans: Arc<dyn Bans>) -> Self {
        Self::new(bans, None)
    }

    /// The list in the database file `path`, which is made when there is something to write. A list that an earlier version
    /// has left beside it as `bans.json` is imported once.
    ///
    /// # Errors
    /// [`BanBookError`] when the file, or that of an earlier version, is something else.
    pub fn open(path: &Path, bans: Arc<dyn Bans>) -> Result<Self, BanBookError> {
        let book = Self::new(bans, Some(SharedTable::new(path.to_owned())));
        book.refresh()?;
        book.import(&path.with_file_name(OLD_FILE))?;
        Ok(book)
    }

    fn new(bans: Arc<dyn Bans>, table: Option<SharedTable>) -> Self {
        Self(Arc::new(Book { bans, table, memory: Mutex::default(), written: Condvar::new() }))
    }

    /// Everybody on record.
    ///
    /// # Errors
    /// [`BanBookError`] when the file has changed and cannot be read.
    pub fn list(&self) -> Result<BTreeMap<Subject, Conduct>, BanBookError> {
        self.refresh()?;
        Ok(self.0.lock().members.all().clone())
    }

    /// Until when `subject` is banned, at `now`.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub fn banned(&self, subject: impl Into<Subject>, now: Timestamp) -> Result<Option<Timestamp>, BanBookError> {
        self.refresh()?;
        Ok(self.known_ban(&[subject.into()], now))
    }

    /// Until when one of `subjects` is banned, as far as it was read: without a look at the file.
    pub fn known_ban(&self, subjects: &[Subject], now: Timestamp) -> Option<Timestamp> {
        let memory = self.0.lock();
        subjects.iter().filter_map(|subject| memory.members.all().get(subject)?.ban(now)).max()
    }

    /// Records what `subject` did, once for each cohort and kind, and bans it if the policy says so: until when. The file is
    /// written on a thread of its own, soon: nobody waits for the disk here.
    pub fn record(&self, subject: impl Into<Subject>, entry: Entry) -> Option<Timestamp> {
        let (subject, now) = (subject.into(), entry.at);
        let mut memory = self.0.lock();
        // Charged again after every restart: nothing is written for that.
        let known = memory.members.all().get(&subject).filter(|conduct| conduct.has(&entry));
        if let Some(conduct) = known {
            return conduct.ban(now);
        }
        memory.apply(Change::Record(subject.clone(), entry), &*self.0.bans, self.0.table.is_some());
        let ban = memory.members.all().get(&subject).and_then(|conduct| conduct.ban(now));
        if self.0.table.is_some() && !std::mem::replace(&mut memory.is_writing, true) {
            let book = Arc::clone(&self.0);
            std::thread::spawn(move || book.write_all());
        }
        ban
    }

    /// Bans `subject` by hand, until `until`. It is written when this returns.
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

    /// Lifts the ban of `subject` and strikes its record: whether there was one. It is written when this returns.
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

    /// Waits, for a few seconds at most, until everything is written: whether it is.
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

    /// Reads the file, if another program has changed it.
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

    /// Makes changes that are written when this returns.
    fn change(&self, changes: Vec<Change>) -> Result<(), BanBookError> {
        self.refresh()?;
        let has_file = self.0.table.is_some();
        let mut memory = self.0.lock();
        for change in changes {
            memory.apply(change, &*self.0.bans, has_file);
        }
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
            // What was recorded meanwhile found a writer, and left it to that.
            let book = Arc::clone(&self.0);
            std::thread::spawn(move || book.write_all());
        } else {
            memory.is_writing = false;
            self.0.written.notify_all();
        }
        outcome
    }

    /// Takes over the list of an earlier version.
    fn import(&self, old: &Path) -> Result<(), BanBookError> {
        let beside = SharedTable::new(old.to_owned());
        let json = match fs::read(old) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(beside.refuse(error)),
        };
        let members: BTreeMap<Subject, Conduct> = serde_json::from_slice(&json).map_err(|error| {
            beside.refuse(format!(
                "not a ban list of an earlier version: {error}; restore it, or move it away to begin without it"
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
        // Nothing panics while it is half changed.
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
                tracing::error!(%error, "offences are not written to the ban list yet");
                std::thread::sleep(RETRY);
            }
        }
    }

    /// Writes what is not written. What another program has written meanwhile stays: our changes are made to that.
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
            for change in &changes {
                members.apply(change.clone(), &*self.bans, &mut touched);
            }
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
    fn apply(&mut self, change: Change, bans: &dyn Bans, is_written: bool) {
        if !is_written {
            return self.members.apply(change, bans, &mut BTreeSet::new());
        }
        self.unwritten.push(change.clone());
        self.members.apply(change, bans, &mut self.touched);
    }

    /// Goes on with what the file has, and with our changes that it does not have.
    fn replace(&mut self, members: Members, bans: &dyn Bans) {
        self.members = members;
        for change in &self.unwritten {
            self.members.apply(change.clone(), bans, &mut self.touched);
        }
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
