//! The contents of the HTTP inboxes, stored over restarts.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use btcr2_aggregation_protocol::{
    did::Did,
    message::{Message, SharedBody},
    time::Timestamp,
};

use super::{Edit, State, StateError, Table};
use crate::transport::http::waiting::{InboxStore, Waiting};

const PAGE: usize = 256;

/// The keys: the highest assigned number; `m`, owner, NUL, number: an entry; `b`, number: a body.
const LAST: &[u8] = b"last";
const ENTRY: u8 = b'm';
const BODY: u8 = b'b';

/// The inboxes' copy in a state directory, with the guarantees of [`InboxStore`]. The inboxes bound its size.
///
/// A body for many recipients, such as a large cohort's announcement, is written once, and is removed with the last
/// message that has it.
pub struct StateInboxes {
    table: Table,
    contents: Mutex<Contents>,
}

#[derive(Default)]
struct Contents {
    last_id: u64,
    last_body: u64,
    entries: HashMap<(Did, u64), u64>,
    bodies: HashMap<u64, Body>,
    by_text: HashMap<Text, u64>,
    /// The entries whose sender has not connected again yet.
    by_sender: BTreeMap<Did, Vec<Waiting>>,
}

/// A body that messages share. It is owned here, so that no other text can have its address.
struct Body {
    body: SharedBody,
    messages: usize,
}

/// The address of a shared body's text, which identifies the body.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Text(usize, usize);

impl Text {
    fn of(body: &SharedBody) -> Self {
        Self(body.json().as_ptr().addr(), body.json().len())
    }
}

impl StateInboxes {
    /// Loads the stored entries, except those that are older than `ttl` at `now`.
    ///
    /// # Errors
    /// When the table cannot be read or written. Entries that are damaged, or are not messages of this program, are
    /// removed and logged.
    pub async fn load(state: &State, now: Timestamp, ttl: Duration) -> Result<Self, StateError> {
        let table = state.table("http-inboxes");
        let mut contents = Contents::default();
        let mut useless = Vec::new();
        match table.get(LAST).await {
            Ok(last) => contents.last_id = last.and_then(|last| number(&last)).unwrap_or(0),
            // The clock is a substitute unless it was set back, and the entries give a lower bound.
            Err(error @ StateError::Damaged { .. }) => {
                tracing::warn!(%error, "the position of the inboxes is not known")
            }
            Err(error) => return Err(error),
        }
        let mut messages: HashMap<u64, Message> = HashMap::new();
        for (key, value) in Self::all(&table, BODY, &mut useless).await? {
            let message = String::from_utf8(value).ok().and_then(|text| Message::from_json(&text).ok());
            match (key.get(1..).and_then(number), message) {
                (Some(number), Some(message)) => {
                    contents.last_body = contents.last_body.max(number);
                    messages.insert(number, message);
                }
                _ => useless.push(key),
            }
        }
        for (key, value) in Self::all(&table, ENTRY, &mut useless).await? {
            let entry = parse_key(&key).zip(parse_value(&value));
            let entry = entry.filter(|(_, (at, ..))| now.since(*at) <= ttl);
            let Some(((owner, id), (at, body, from))) = entry else {
                useless.push(key);
                continue;
            };
            contents.last_id = contents.last_id.max(id);
            let Some(message) = messages.get(&body) else {
                useless.push(key);
                continue;
            };
            let shared = message.body.clone();
            contents.refer(&owner, id, body, &shared);
            let message = Message::new(from.clone(), Some(owner), shared);
            contents.by_sender.entry(from).or_default().push(Waiting { id, at, message });
        }
        useless.extend(
            messages.keys().filter(|number| !contents.bodies.contains_key(*number)).map(|body| body_key(*body)),
        );
        if !useless.is_empty() {
            tracing::warn!(
                count = useless.len(),
                "stored messages are too old, damaged or incomplete, and were dropped"
            );
        }
        table.edit(useless.into_iter().map(Edit::Remove)).await?;
        Ok(Self { table, contents: Mutex::new(contents) })
    }

    async fn all(
        table: &Table,
        prefix: u8,
        damaged: &mut Vec<Vec<u8>>,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StateError> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page = table.scan([prefix], after, PAGE).await?;
            all.extend(page.entries);
            damaged.extend(page.damaged);
            after = page.next;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        // No code panics while the value is partly changed.
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self, edits: Vec<Edit>) {
        // In its turn, without waiting: if it fails, so does the journal, whose actors report it.
        drop(self.table.edit(edits));
    }
}

impl Contents {
    /// Counts a message that has the body.
    fn refer(&mut self, owner: &Did, id: u64, number: u64, body: &SharedBody) {
        self.by_text.insert(Text::of(body), number);
        self.bodies.entry(number).or_insert_with(|| Body { body: body.clone(), messages: 0 }).messages += 1;
        self.entries.insert((owner.clone(), id), number);
    }
}

impl InboxStore for StateInboxes {
    fn last_id(&self) -> u64 {
        self.lock().last_id
    }

    fn put(&self, owner: &Did, waiting: &Waiting) {
        let Waiting { id, at, message } = waiting;
        let mut contents = self.lock();
        let mut edits = Vec::new();
        let number = match contents.by_text.get(&Text::of(&message.body)) {
            Some(number) => *number,
            None => {
                contents.last_body += 1;
                edits.push(Edit::Put(body_key(contents.last_body), message.to_json().into_bytes()));
                contents.last_body
            }
        };
        contents.refer(owner, *id, number, &message.body);
        edits.push(Edit::Put(entry_key(owner, *id), entry_value(*at, number, &message.from)));
        if *id > contents.last_id {
            contents.last_id = *id;
            edits.push(Edit::Put(LAST.to_vec(), id.to_be_bytes().to_vec()));
        }
        self.queue(edits);
    }

    fn remove(&self, owner: &Did, id: u64) {
        let mut contents = self.lock();
        let Some(number) = contents.entries.remove(&(owner.clone(), id)) else { return };
        let mut edits = vec![Edit::Remove(entry_key(owner, id))];
        if let Some(body) = contents.bodies.get_mut(&number) {
            body.messages -= 1;
            if body.messages == 0 {
                let text = Text::of(&body.body);
                contents.bodies.remove(&number);
                contents.by_text.remove(&text);
                edits.push(Edit::Remove(body_key(number)));
            }
        }
        self.queue(edits);
    }

    fn take(&self, from: &Did) -> Vec<Waiting> {
        self.lock().by_sender.remove(from).unwrap_or_default()
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

fn body_key(number: u64) -> Vec<u8> {
    [&[BODY][..], &number.to_be_bytes()].concat()
}

fn entry_key(owner: &Did, id: u64) -> Vec<u8> {
    [&[ENTRY], owner.as_str().as_bytes(), &[0], &id.to_be_bytes()[..]].concat()
}

fn parse_key(key: &[u8]) -> Option<(Did, u64)> {
    let (rest, id) = key.get(1..)?.split_last_chunk()?;
    let owner = std::str::from_utf8(rest.strip_suffix(&[0])?).ok()?;
    Some((Did::parse(owner).ok()?, u64::from_be_bytes(*id)))
}

fn entry_value(at: Timestamp, body: u64, from: &Did) -> Vec<u8> {
    [&at.as_millis().to_be_bytes()[..], &body.to_be_bytes(), from.as_str().as_bytes()].concat()
}

fn parse_value(value: &[u8]) -> Option<(Timestamp, u64, Did)> {
    let (at, rest) = value.split_first_chunk()?;
    let (body, from) = rest.split_first_chunk()?;
    let from = Did::parse(std::str::from_utf8(from).ok()?).ok()?;
    Some((Timestamp::from_millis(u64::from_be_bytes(*at)), u64::from_be_bytes(*body), from))
}
