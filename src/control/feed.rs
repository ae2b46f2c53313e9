//! The last events of the service, numbered, for readers that come, fall behind, and come again.
//!
//! An event's id is `RUN-NUMBER`: numbers begin anew with each run of the service. A reader that names the last id that it has seen gets
//! what came after it; if that is not in memory any more, or is of another run, a `gap` event with the number of lost events first, if
//! that is known. The ends of cohorts that a previous run has not stored are among the events of the next one.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use actix_web::web::Bytes;
use data_encoding::HEXLOWER;
use rand_chacha::rand_core::RngCore;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::timeline::Timelines;
use crate::{
    actors::runtime::{Clock, Randomness},
    output::bound,
    protocol::text::MOST_SHOWN,
};

/// The most events in memory, and their most bytes.
const MOST: usize = 4_096;
const MOST_BYTES: usize = 4 << 20;

/// The most events in one piece of a stream.
const BATCH: usize = 64;

/// The events. Clones share them.
#[derive(Clone)]
pub(crate) struct Feed(Arc<Inner>);

struct Inner {
    run: String,
    clock: Clock,
    timelines: Timelines,
    ring: Mutex<Ring>,
    /// The number of the last event; changes with each one, and ends when the service stops.
    changed: Mutex<Option<watch::Sender<u64>>>,
    changes: watch::Receiver<u64>,
}

#[derive(Default)]
struct Ring {
    last: u64,
    bytes: usize,
    events: VecDeque<(u64, Bytes)>,
}

impl Feed {
    pub(crate) fn new(clock: Clock) -> Self {
        let mut run = [0; 4];
        Randomness::System.for_actor("control events").fill_bytes(&mut run);
        let (changed, changes) = watch::channel(0);
        let (ring, changed) = (Mutex::default(), Mutex::new(Some(changed)));
        let timelines = Timelines::default();
        Self(Arc::new(Inner { run: HEXLOWER.encode(&run), clock, timelines, ring, changed, changes }))
    }

    /// What has happened in each cohort.
    pub(crate) fn timelines(&self) -> &Timelines {
        &self.0.timelines
    }

    /// Adds an event: an object with `event`.
    pub(crate) fn push(&self, event: &impl Serialize) {
        let Ok(mut event) = serde_json::to_value(event) else { return };
        bound(&mut event, MOST_SHOWN);
        let at = self.0.clock.now();
        if let Value::Object(fields) = &mut event {
            fields.shift_insert(fields.len().min(1), "at".to_owned(), at.as_millis().into());
        }
        self.0.timelines.take(&event);
        let mut ring = self.lock();
        ring.last += 1;
        let number = ring.last;
        let text = Bytes::from(format!("id: {}-{number}\ndata: {event}\n\n", self.0.run));
        ring.bytes += text.len();
        ring.events.push_back((number, text));
        while ring.events.len() > MOST || ring.bytes > MOST_BYTES {
            let Some((_, dropped)) = ring.events.pop_front() else { break };
            ring.bytes -= dropped.len();
        }
        drop(ring);
        if let Some(changed) = &*self.0.changed.lock().unwrap_or_else(PoisonError::into_inner) {
            changed.send_replace(number);
        }
    }

    /// The service stops: streams end.
    pub(crate) fn close(&self) {
        self.0.changed.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Reads from the event after `last` on, an id; from now on without one.
    pub(crate) fn read_from(&self, last: Option<&str>) -> Reader {
        let ring = self.lock();
        let (next, gap) = match last {
            None => (ring.last + 1, false),
            Some(id) => match self.number(id).filter(|number| *number <= ring.last) {
                Some(number) => (number + 1, false),
                // Of another run: all that there is.
                None => (ring.events.front().map_or(ring.last + 1, |(number, _)| *number), true),
            },
        };
        drop(ring);
        Reader { feed: self.clone(), next, gap, changes: self.0.changes.clone() }
    }

    fn number(&self, id: &str) -> Option<u64> {
        id.trim().strip_prefix(&self.0.run)?.strip_prefix('-')?.parse().ok()
    }

    fn gap(&self, lost: Option<u64>) -> Bytes {
        Bytes::from(format!("data: {}\n\n", json!({ "event": "gap", "at": self.0.clock.now(), "lost": lost })))
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // No code panics while the value is partly changed.
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader of the events.
pub(crate) struct Reader {
    feed: Feed,
    /// The number of the next event.
    next: u64,
    /// Whether an unknown number of events was lost before it.
    gap: bool,
    changes: watch::Receiver<u64>,
}

impl Reader {
    /// The next events, as many as are there and fit into a piece; `None` if there is none now.
    pub(crate) fn next(&mut self) -> Option<Bytes> {
        let mut piece = Vec::new();
        if std::mem::take(&mut self.gap) {
            piece.extend_from_slice(&self.feed.gap(None));
        }
        let ring = self.feed.lock();
        let first = ring.events.front().map_or(ring.last + 1, |(number, _)| *number);
        if first > self.next {
            piece.extend_from_slice(&self.feed.gap(Some(first - self.next)));
            self.next = first;
        }
        let skipped = usize::try_from(self.next - first).unwrap_or(usize::MAX);
        for (number, text) in ring.events.iter().skip(skipped).take(BATCH) {
            piece.extend_from_slice(text);
            self.next = number + 1;
        }
        (!piece.is_empty()).then(|| piece.into())
    }

    /// Waits for more; `false` if the service stops.
    pub(crate) async fn changed(&mut self) -> bool {
        self.changes.changed().await.is_ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn texts(reader: &mut Reader) -> Vec<Value> {
        let mut found = Vec::new();
        while let Some(piece) = reader.next() {
            let text = std::str::from_utf8(&piece).unwrap().to_owned();
            found.extend(text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()));
        }
        found
    }

    #[actix_rt::test]
    async fn a_reader_resumes_and_learns_of_what_it_has_lost() {
        let feed = Feed::new(Clock::system());
        let mut live = feed.read_from(None);
        let push = |number: u64| feed.push(&json!({ "event": "step", "number": number }));
        (1..=3).for_each(push);
        assert_eq!(texts(&mut live).len(), 3);
        let id = |number: u64| format!("{}-{number}", feed.0.run);
        assert_eq!(texts(&mut feed.read_from(Some(&id(1)))).len(), 2);
        assert!(texts(&mut feed.read_from(Some(&id(3)))).is_empty());
        let other = texts(&mut feed.read_from(Some("0-2")));
        assert_eq!((&other[0]["event"], &other[0]["lost"], other.len()), (&json!("gap"), &Value::Null, 4));
        (4..=10_000).for_each(push);
        let late = texts(&mut live);
        assert_eq!((&late[0]["event"], &late[0]["lost"]), (&json!("gap"), &json!(10_000 - MOST as u64 - 3)));
        assert_eq!((late.len(), &late[1]["number"]), (MOST + 1, &json!(10_000 - MOST as u64 + 1)));
        feed.close();
        assert!(!live.changed().await || !live.changed().await, "the stream ends");
    }
}
