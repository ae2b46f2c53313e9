//! Who is not admitted: members that did wrong, for as long as the operator's policy says, with the evidence.
//!
//! The book is kept in memory, or in a file that several programs may read and change at the same time: a running service,
//! and the command by which its operator lists, adds and lifts bans.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use btcr2_aggregation_protocol::{did::Did, hash::sha256, id::CohortId, time::Timestamp};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use crate::transport::Evidence;

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
    /// Until when it is banned, if it is: [`Timestamp::NEVER`] for good.
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

/// A book of bans that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct BanBookError {
    path: String,
    problem: String,
}

type Members = BTreeMap<Did, Conduct>;

/// How many members are kept in mind, and how much of each: whoever comes first is forgotten first.
const MOST_MEMBERS: usize = 10_000;
const MOST_ENTRIES: usize = 16;
/// How large a message is kept as evidence, in bytes: of larger ones, only the hash.
const MOST_MESSAGE: usize = 64 << 10;
/// How many bytes of evidence are kept in all: of the oldest offences it is given up first.
const MOST_EVIDENCE: usize = 16 << 20;
/// How long a record without a ban is kept.
const KEPT: Duration = Duration::from_secs(90 * 24 * 3600);

/// What members did, and who is banned. Clones are the same book.
#[derive(Clone)]
pub struct BanBook {
    bans: Arc<dyn Bans>,
    place: Arc<Place>,
}

enum Place {
    Memory(Mutex<Members>),
    File(PathBuf, Mutex<Option<Read>>),
}

/// A file as it was read last.
struct Read {
    modified: SystemTime,
    bytes: u64,
    members: Arc<Members>,
}

impl BanBook {
    /// A book that ends with the process.
    pub fn in_memory(bans: Arc<dyn Bans>) -> Self {
        Self { bans, place: Arc::new(Place::Memory(Mutex::default())) }
    }

    /// The book in the file `path`, which is made when the first offence is recorded.
    pub fn in_file(path: impl Into<PathBuf>, bans: Arc<dyn Bans>) -> Self {
        Self { bans, place: Arc::new(Place::File(path.into(), Mutex::default())) }
    }

    /// Everybody on record.
    ///
    /// # Errors
    /// [`BanBookError`] when the file cannot be read, or is something else.
    pub fn list(&self) -> Result<BTreeMap<Did, Conduct>, BanBookError> {
        self.look_at(Members::clone)
    }

    /// Until when `did` is banned, at `now`.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub fn banned(&self, did: &Did, now: Timestamp) -> Result<Option<Timestamp>, BanBookError> {
        self.look_at(|members| members.get(did).and_then(|conduct| conduct.ban(now)))
    }

    /// Records what `did` did, once for each cohort and kind, and bans it if the policy says so: until when.
    ///
    /// # Errors
    /// As [`list`](Self::list), or when the file cannot be written.
    pub fn record(&self, did: &Did, entry: Entry) -> Result<Option<Timestamp>, BanBookError> {
        let now = entry.at;
        // Charged again after every restart: nothing is written for that.
        let known = |members: &Members| {
            members.get(did).filter(|conduct| conduct.has(&entry)).map(|conduct| conduct.ban(now))
        };
        if let Some(ban) = self.look_at(known)? {
            return Ok(ban);
        }
        let entry = trimmed(entry);
        self.change(|members| {
            let conduct = members.entry(did.clone()).or_default();
            // Another program may have been first.
            if conduct.has(&entry) {
                return conduct.ban(now);
            }
            conduct.entries.push(entry);
            if conduct.entries.len() > MOST_ENTRIES {
                conduct.entries.remove(0);
            }
            if let Some(term) = self.bans.judge(&conduct.entries) {
                conduct.banned_until = conduct.banned_until.max(Some(now + term));
            }
            let ban = conduct.ban(now);
            forget(members, now, MOST_MEMBERS);
            ban
        })
    }

    /// What `answer` says of those on record.
    fn look_at<T>(&self, answer: impl FnOnce(&Members) -> T) -> Result<T, BanBookError> {
        Ok(match &*self.place {
            Place::Memory(members) => answer(&lock(members)),
            Place::File(path, last) => answer(&*look(path, last)?),
        })
    }

    /// Bans `did` by hand, until `until`.
    ///
    /// # Errors
    /// As [`record`](Self::record).
    pub fn add(&self, did: &Did, until: Timestamp, reason: Option<String>) -> Result<(), BanBookError> {
        self.change(|members| {
            let conduct = members.entry(did.clone()).or_default();
            conduct.banned_until = Some(until);
            conduct.by_hand = true;
            conduct.reason = reason;
        })
    }

    /// Lifts the ban of `did` and strikes its record: whether there was one.
    ///
    /// # Errors
    /// As [`record`](Self::record).
    pub fn lift(&self, did: &Did) -> Result<bool, BanBookError> {
        self.change(|members| members.remove(did).is_some())
    }

    fn change<T>(&self, change: impl FnOnce(&mut Members) -> T) -> Result<T, BanBookError> {
        match &*self.place {
            Place::Memory(members) => Ok(change(&mut lock(members))),
            Place::File(path, _) => {
                // Held until it is closed, so that no change of another program is lost.
                let held = beside(path, "lock");
                let held = OpenOptions::new().write(true).create(true).truncate(false).open(&held);
                let _held =
                    held.and_then(|file| file.lock().map(|()| file)).map_err(|error| refuse(path, error))?;
                let mut members = read(path)?;
                let changed = change(&mut members);
                write(path, &members).map_err(|error| refuse(path, error))?;
                Ok(changed)
            }
        }
    }
}

/// The entry without evidence that is too large to be kept, which its words then tell of.
fn trimmed(mut entry: Entry) -> Entry {
    entry.evidence.retain(|evidence| {
        let text = evidence.text();
        let fits = text.len() <= MOST_MESSAGE;
        if !fits {
            let hash = HEXLOWER.encode(&sha256(text.as_bytes()));
            entry.detail.push_str(&format!("; a message of {} bytes was not kept, SHA-256 {hash}", text.len()));
        }
        fits
    });
    entry
}

fn lock<T>(book: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while the book is half changed.
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refuse(path: &Path, problem: impl ToString) -> BanBookError {
    BanBookError { path: path.display().to_string(), problem: problem.to_string() }
}

/// The book in the file, read again only if the file is another one: every opt-in asks for it. A change always is another
/// file, put in the place of the old one, and seldom made at the same tick of the file system's clock and as long.
fn look(path: &Path, last: &Mutex<Option<Read>>) -> Result<Arc<Members>, BanBookError> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Arc::default()),
        Err(error) => return Err(refuse(path, error)),
    };
    let modified = metadata.modified().map_err(|error| refuse(path, error))?;
    let bytes = metadata.len();
    let mut last = lock(last);
    if let Some(read) = last.as_ref().filter(|read| (read.modified, read.bytes) == (modified, bytes)) {
        return Ok(Arc::clone(&read.members));
    }
    let members = Arc::new(read(path)?);
    *last = Some(Read { modified, bytes, members: Arc::clone(&members) });
    Ok(members)
}

fn read(path: &Path) -> Result<Members, BanBookError> {
    match fs::read(path) {
        Ok(json) => {
            serde_json::from_slice(&json).map_err(|error| refuse(path, format!("not a book of bans: {error}")))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Members::new()),
        Err(error) => Err(refuse(path, error)),
    }
}

/// Puts a whole book in the place of the old one: nobody reads half of it, and a crash leaves one or the other.
fn write(path: &Path, members: &Members) -> io::Result<()> {
    let new = beside(path, "new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec_pretty(members)?)?;
    file.sync_all()?;
    fs::rename(new, path)
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(what);
    name.into()
}

/// Forgets those without a ban whose last offence is long ago, and the longest silent ones when there are too many.
fn forget(members: &mut Members, now: Timestamp, most: usize) {
    let last = |conduct: &Conduct| conduct.entries.last().map_or(Timestamp::default(), |entry| entry.at);
    members.retain(|_, conduct| conduct.ban(now).is_some() || now.since(last(conduct)) < KEPT);
    while members.len() > most {
        // Those without a ban first. An operator's bans are as many as the operator made.
        let evictable = members.iter().filter(|(_, conduct)| !conduct.by_hand || conduct.ban(now).is_none());
        let oldest = evictable.min_by_key(|(_, conduct)| (conduct.ban(now).is_some(), last(conduct)));
        let oldest = oldest.map(|(did, _)| did.clone());
        let Some(oldest) = oldest else { break };
        members.remove(&oldest);
    }
    let mut evidence: Vec<_> = members
        .values_mut()
        .flat_map(|conduct| &mut conduct.entries)
        .filter(|entry| !entry.evidence.is_empty())
        .collect();
    let size = |entry: &Entry| entry.evidence.iter().map(|evidence| evidence.text().len()).sum::<usize>();
    let mut bytes: usize = evidence.iter().map(|entry| size(entry)).sum();
    evidence.sort_by_key(|entry| entry.at);
    for entry in evidence {
        if bytes <= MOST_EVIDENCE {
            break;
        }
        bytes -= size(entry);
        entry.evidence.clear();
    }
}

#[cfg(test)]
mod tests {
    use btcr2_aggregation_protocol::{identity::Identity, key::SecretKey, network::Network};

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_750_000_000);

    fn did(byte: u8) -> Did {
        let key = SecretKey::from_bytes(&[byte; 32]).expect("a key");
        Identity::from_key(key, Network::Regtest).did().clone()
    }

    fn conduct(at: Timestamp, banned: bool, by_hand: bool) -> Conduct {
        let cohort_id = CohortId::parse("c").expect("a name");
        let entry = Entry { offence: Offence::Holdout, cohort_id, at, detail: String::new(), evidence: Vec::new() };
        Conduct { entries: vec![entry], banned_until: banned.then_some(Timestamp::NEVER), by_hand, reason: None }
    }

    #[test]
    fn who_is_not_banned_is_forgotten_first_and_whom_an_operator_banned_never() {
        let day = Duration::from_secs(24 * 3600);
        let mut members = Members::from([
            (did(1), conduct(NOW - day * 9, true, true)),
            (did(2), conduct(NOW - day * 8, true, false)),
            (did(3), conduct(NOW - day * 7, false, false)),
            (did(4), conduct(NOW, false, false)),
        ]);
        let left = |members: &mut Members, most| {
            forget(members, NOW, most);
            (1..=4).filter(|byte| members.contains_key(&did(*byte))).collect::<Vec<_>>()
        };
        assert_eq!(left(&mut members, 3), [1, 2, 4]);
        assert_eq!(left(&mut members, 2), [1, 2]);
        assert_eq!(left(&mut members, 1), [1]);
        assert_eq!(left(&mut members, 0), [1]);
    }

    #[test]
    fn of_a_message_that_is_too_large_the_hash_is_kept() {
        let book = BanBook::in_memory(std::sync::Arc::new(NoBans));
        let mut entry = conduct(NOW, false, false).entries.remove(0);
        let (small, large) = ("x".repeat(MOST_MESSAGE), "x".repeat(MOST_MESSAGE + 1));
        entry.evidence = [&small, &large].map(|text| Evidence::Envelope(text.as_str().into())).to_vec();
        book.record(&did(1), entry).expect("a book in memory");
        let entry = &book.list().expect("a book in memory")[&did(1)].entries[0];
        assert_eq!(entry.evidence, [Evidence::Envelope(small.as_str().into())]);
        assert!(entry.detail.contains("SHA-256"), "{}", entry.detail);
    }
}
