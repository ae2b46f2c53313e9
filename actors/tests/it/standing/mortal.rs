//! The death of a party at one of its writes or messages: a journal, a store of boards and a transport that do nothing any more from then on,
//! as if the process had been killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use btcr2_aggregation_actors::{
    journal::{Archived, Journal, JournalError, Record, StreamId},
    standing::boards::{BoardError, BoardStore},
    supervision::End,
    transport::{ConnectError, Connection, Inbox, Outbound, Transport, Unsent},
};
use btcr2_aggregation_protocol::{
    cohort::standing::message::StandingMessage, did::Did, hash::DocumentHash, id::CohortId, identity::Identity,
    message::Body, time::Timestamp,
};
use futures::{FutureExt, future::BoxFuture};
use serde_json::Value;
use tokio::sync::Notify;

/// Where a party is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    /// At its n-th write, before it is durable.
    Unwritten(usize),
    /// After its n-th write, before anything follows from it.
    Written(usize),
    /// At its n-th message, before it is out.
    Unsent(usize),
    /// After its n-th message is out.
    Sent(usize),
}

#[derive(Default)]
struct State {
    is_counting: bool,
    at: Option<Point>,
    writes: usize,
    sends: usize,
    is_dead: bool,
}

/// The fate of one party.
#[derive(Default)]
pub(super) struct Fate {
    state: Mutex<State>,
    died: Notify,
}

/// What becomes of an operation.
enum Verdict {
    Done,
    DoneLast,
    Lost,
}

impl Fate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Counts from now on, and kills there.
    pub(super) fn arm(&self, at: Option<Point>) {
        let mut state = self.state();
        (state.is_counting, state.at) = (true, at);
    }

    /// The party is started again.
    pub(super) fn revive(&self) {
        *self.state() = State::default();
    }

    /// Ready when the party has died.
    pub(super) async fn died(&self) {
        self.died.notified().await;
    }

    pub(super) fn is_dead(&self) -> bool {
        self.state().is_dead
    }

    /// How many writes and messages were counted.
    pub(super) fn counted(&self) -> (usize, usize) {
        let state = self.state();
        (state.writes, state.sends)
    }

    fn verdict(&self, state: &mut State, before: bool, after: bool) -> Verdict {
        if state.is_dead {
            return Verdict::Lost;
        }
        if before || after {
            state.is_dead = true;
            self.died.notify_one();
        }
        match (before, after) {
            (true, _) => Verdict::Lost,
            (false, true) => Verdict::DoneLast,
            (false, false) => Verdict::Done,
        }
    }

    fn write(&self) -> Verdict {
        let mut state = self.state();
        state.writes += usize::from(state.is_counting && !state.is_dead);
        let (at, now) = (state.at, state.writes);
        self.verdict(&mut state, at == Some(Point::Unwritten(now)), at == Some(Point::Written(now)))
    }

    fn send(&self) -> Verdict {
        let mut state = self.state();
        state.sends += usize::from(state.is_counting && !state.is_dead);
        let (at, now) = (state.at, state.sends);
        self.verdict(&mut state, at == Some(Point::Unsent(now)), at == Some(Point::Sent(now)))
    }

    /// A write, whose answer a dead party never gets.
    fn written<T: Send + 'static>(&self, write: impl FnOnce() -> BoxFuture<'static, T>) -> BoxFuture<'static, T> {
        match self.write() {
            Verdict::Done => write(),
            Verdict::DoneLast => {
                // What is in memory is written at the call.
                let _ = write().now_or_never();
                futures::future::pending().boxed()
            }
            Verdict::Lost => futures::future::pending().boxed(),
        }
    }
}

/// The journal of a mortal party.
pub(super) struct MortalJournal(pub(super) Arc<Fate>, pub(super) Arc<dyn Journal>);

impl Journal for MortalJournal {
    fn append(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>> {
        self.0.written(|| self.1.append(stream, records))
    }

    fn read(&self, stream: &StreamId) -> BoxFuture<'static, Result<Vec<Record>, JournalError>> {
        self.1.read(stream)
    }

    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>> {
        self.1.streams()
    }

    fn archive(&self, stream: &StreamId, at: Timestamp) -> BoxFuture<'static, Result<(), JournalError>> {
        self.0.written(|| self.1.archive(stream, at))
    }

    fn archived(&self) -> BoxFuture<'static, Result<Vec<Archived>, JournalError>> {
        self.1.archived()
    }

    fn remove(&self, stream: &StreamId) -> BoxFuture<'static, Result<(), JournalError>> {
        self.0.written(|| self.1.remove(stream))
    }

    fn replace(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>> {
        self.0.written(|| self.1.replace(stream, records))
    }
}

/// The boards of a mortal party.
pub(super) struct MortalBoards(pub(super) Arc<Fate>, pub(super) Arc<dyn BoardStore>);

impl BoardStore for MortalBoards {
    fn put(
        &self,
        cohort_id: &CohortId,
        number: u64,
        hash: &DocumentHash,
        bytes: Arc<Vec<u8>>,
    ) -> BoxFuture<'static, Result<(), BoardError>> {
        self.0.written(|| self.1.put(cohort_id, number, hash, bytes))
    }

    fn get(&self, hash: &DocumentHash) -> BoxFuture<'static, Result<Option<Arc<Vec<u8>>>, BoardError>> {
        self.1.get(hash)
    }

    fn list(
        &self,
        cohort_id: &CohortId,
        after: u64,
        most: usize,
    ) -> BoxFuture<'static, Result<Vec<(u64, DocumentHash)>, BoardError>> {
        self.1.list(cohort_id, after, most)
    }
}

/// A transport whose messages are recorded, and lost once its party is dead.
pub(super) struct MortalTransport {
    pub(super) fate: Arc<Fate>,
    pub(super) transcript: Arc<Transcript>,
    pub(super) inner: Arc<dyn Transport>,
}

#[async_trait]
impl Transport for MortalTransport {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        let onward = self.inner.connect(identity, inbox).await?;
        let (fate, transcript) = (Arc::clone(&self.fate), Arc::clone(&self.transcript));
        Ok(Box::new(Mouth { by: identity.did().clone(), fate, transcript, onward }))
    }
}

struct Mouth {
    by: Did,
    fate: Arc<Fate>,
    transcript: Arc<Transcript>,
    onward: Box<dyn Connection>,
}

#[async_trait]
impl Connection for Mouth {
    fn try_send(&self, outbound: Outbound) -> Result<(), Unsent> {
        let (Outbound::Direct { body, .. } | Outbound::Broadcast { body }) = &outbound else {
            return self.onward.try_send(outbound);
        };
        if let Verdict::Lost = self.fate.send() {
            return Ok(());
        }
        self.transcript.sent(&self.by, body);
        self.onward.try_send(outbound)
    }

    async fn ended(&self) -> End {
        self.onward.ended().await
    }
}

/// What one party has sent for one number.
#[derive(Default)]
struct Said {
    responses: BTreeSet<DocumentHash>,
    nonces: BTreeSet<Vec<u8>>,
    partials: BTreeSet<String>,
    fallbacks: BTreeSet<String>,
    opened: BTreeSet<String>,
    requests: BTreeSet<String>,
}

/// Everything that all parties have sent, in all their lives.
#[derive(Default)]
pub(super) struct Transcript(Mutex<BTreeMap<(CohortId, Did, u64), Said>>);

fn text(value: &impl serde::Serialize) -> String {
    // Compared only: the order of fields does not matter.
    serde_json::to_value(value).map(|value: Value| value.to_string()).unwrap()
}

impl Transcript {
    fn sent(&self, by: &Did, body: &Body) {
        let Body::Standing(message) = body else { return };
        let mut all = self.0.lock().unwrap();
        let mut said = |number: u64, note: &dyn Fn(&mut Said)| {
            note(all.entry((message.cohort_id().clone(), by.clone(), number)).or_default());
        };
        match &**message {
            StandingMessage::ResponsePart(part) => said(part.number, &|said| {
                said.responses.insert(part.response_hash);
                said.nonces.extend(part.nonce_contributions.iter().flatten().map(|nonce| nonce.0.to_vec()));
            }),
            StandingMessage::Confirmation(confirmation) => said(confirmation.number, &|said| {
                said.partials.extend(confirmation.partial_signatures.iter().map(text));
                said.fallbacks.extend(confirmation.fallback_signatures.iter().map(text));
            }),
            StandingMessage::ConfirmationRequest(request) => said(request.number, &|said| {
                said.requests.insert(text(request));
            }),
            // A seat returns an opportunity of the service as evidence.
            StandingMessage::OpportunityOpened(opened) => said(opened.opportunity.number, &|said| {
                said.opened.insert(text(&opened.opportunity));
            }),
            _ => {}
        }
    }

    /// The hashes of the responses of a seat to a number.
    pub(super) fn responses(&self, by: &Did, number: u64) -> BTreeSet<DocumentHash> {
        let all = self.0.lock().unwrap();
        let of = all.iter().filter(|((_, did, of), _)| (did, *of) == (by, number));
        of.flat_map(|(_, said)| said.responses.clone()).collect()
    }

    /// Nothing was said twice with other words, and no nonce is one of two numbers.
    pub(super) fn check(&self) {
        let mut nonces = BTreeSet::new();
        for ((_, did, number), said) in &*self.0.lock().unwrap() {
            let counts = [
                ("responses", said.responses.len()),
                ("signatures", said.partials.len() + said.fallbacks.len()),
                ("opportunities", said.opened.len()),
                ("requests", said.requests.len()),
            ];
            for (what, count) in counts {
                assert!(count <= 1, "{did} has sent {count} {what} for number {number}");
            }
            for nonce in &said.nonces {
                assert!(nonces.insert(nonce.clone()), "{did}: a nonce of number {number} was sent before");
            }
        }
    }
}
