//! A journal whose behaviour a test controls.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use btcr2_aggregation_actors::journal::{Archived, Journal, JournalError, MemoryJournal, Record, StreamId};
use btcr2_aggregation_protocol::time::Timestamp;
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::Semaphore;

/// The result of an append.
pub enum Act {
    Pass,
    /// The caller panics, and nothing is stored.
    PanicBefore,
    /// The caller panics, and everything is stored.
    PanicAfter,
    Fail,
    /// It is stored and answered when the gate is opened.
    Hold(Arc<Semaphore>),
}

type Decide = dyn FnMut(&StreamId, &str) -> Act + Send;

/// A journal in memory. A test decides each append, by the stream and the contents of the records.
#[derive(Clone)]
pub struct Rigged {
    stored: MemoryJournal,
    /// Whether removed streams remain.
    remembers: Arc<AtomicBool>,
    decide: Arc<Mutex<Box<Decide>>>,
}

impl Rigged {
    pub fn new(decide: impl FnMut(&StreamId, &str) -> Act + Send + 'static) -> Self {
        let decide: Box<Decide> = Box::new(decide);
        Self { stored: MemoryJournal::new(), remembers: Arc::default(), decide: Arc::new(Mutex::new(decide)) }
    }

    /// While `remembers`, removed streams remain, as if every program had been killed just before the removal.
    pub fn remember(&self, remembers: bool) {
        self.remembers.store(remembers, Ordering::SeqCst);
    }

    /// A journal that panics the first `times` times that `event` is appended to a stream with that prefix, and the
    /// number of panics that are left.
    pub fn panicking(prefix: &str, event: &str, times: usize, stored: bool) -> (Self, Arc<Mutex<usize>>) {
        let left = Arc::new(Mutex::new(times));
        let (prefix, event, counted) = (prefix.to_owned(), format!("\"{event}\""), Arc::clone(&left));
        let rigged = Self::new(move |stream, records| {
            let mut left = counted.lock().expect("no code panics with the lock");
            if *left == 0 || !stream.as_str().starts_with(&prefix) || !records.contains(&event) {
                return Act::Pass;
            }
            *left -= 1;
            if stored { Act::PanicAfter } else { Act::PanicBefore }
        });
        (rigged, left)
    }
}

impl Journal for Rigged {
    fn append(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>> {
        let act = (self.decide.lock().expect("no code panics with the lock"))(stream, &format!("{records:?}"));
        match act {
            Act::Pass => self.stored.append(stream, records),
            Act::PanicBefore => panic!("the journal panics, as this test wants"),
            Act::PanicAfter => {
                drop(self.stored.append(stream, records));
                panic!("the journal panics, as this test wants")
            }
            Act::Fail => {
                let error = JournalError { stream: stream.clone(), problem: "the disk is full".to_owned() };
                futures::future::ready(Err(error)).boxed()
            }
            Act::Hold(gate) => {
                let (stored, stream) = (self.stored.clone(), stream.clone());
                async move {
                    gate.acquire().await.expect("the gate exists").forget();
                    stored.append(&stream, records).await
                }
                .boxed()
            }
        }
    }

    fn read(&self, stream: &StreamId) -> BoxFuture<'static, Result<Vec<Record>, JournalError>> {
        self.stored.read(stream)
    }

    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>> {
        self.stored.streams()
    }

    fn archive(&self, stream: &StreamId, at: Timestamp) -> BoxFuture<'static, Result<(), JournalError>> {
        self.stored.archive(stream, at)
    }

    fn archived(&self) -> BoxFuture<'static, Result<Vec<Archived>, JournalError>> {
        self.stored.archived()
    }

    fn remove(&self, stream: &StreamId) -> BoxFuture<'static, Result<(), JournalError>> {
        if self.remembers.load(Ordering::SeqCst) {
            return futures::future::ready(Ok(())).boxed();
        }
        self.stored.remove(stream)
    }
}
