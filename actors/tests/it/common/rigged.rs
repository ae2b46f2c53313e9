//! A journal that does what a test wants.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use btcr2_aggregation_actors::journal::{Archived, Journal, JournalError, MemoryJournal, Record, StreamId};
use btcr2_aggregation_protocol::time::Timestamp;
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::Semaphore;

/// What becomes of an append.
pub enum Act {
    Pass,
    /// The caller panics, and nothing is kept.
    PanicBefore,
    /// The caller panics, and everything is kept.
    PanicAfter,
    Fail,
    /// It is kept, and answered, when the gate is opened.
    Hold(Arc<Semaphore>),
}

type Decide = dyn FnMut(&StreamId, &str) -> Act + Send;

/// A journal in memory whose appends a test decides about, from the stream and what is in the records.
#[derive(Clone)]
pub struct Rigged {
    kept: MemoryJournal,
    /// Whether what is removed stays.
    remembers: Arc<AtomicBool>,
    decide: Arc<Mutex<Box<Decide>>>,
}

impl Rigged {
    pub fn new(decide: impl FnMut(&StreamId, &str) -> Act + Send + 'static) -> Self {
        let decide: Box<Decide> = Box::new(decide);
        Self { kept: MemoryJournal::new(), remembers: Arc::default(), decide: Arc::new(Mutex::new(decide)) }
    }

    /// What is removed stays while `remembers`: as if every program had been killed just before.
    pub fn remember(&self, remembers: bool) {
        self.remembers.store(remembers, Ordering::SeqCst);
    }

    /// A journal that panics the first `times` times that `event` is appended to a stream of that prefix, and whether
    /// it has done so.
    pub fn panicking(prefix: &str, event: &str, times: usize, kept: bool) -> (Self, Arc<Mutex<usize>>) {
        let left = Arc::new(Mutex::new(times));
        let (prefix, event, counted) = (prefix.to_owned(), format!("\"{event}\""), Arc::clone(&left));
        let rigged = Self::new(move |stream, records| {
            let mut left = counted.lock().expect("nobody panics with the lock");
            if *left == 0 || !stream.as_str().starts_with(&prefix) || !records.contains(&event) {
                return Act::Pass;
            }
            *left -= 1;
            if kept { Act::PanicAfter } else { Act::PanicBefore }
        });
        (rigged, left)
    }
}

impl Journal for Rigged {
    fn append(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>> {
        let act = (self.decide.lock().expect("nobody panics with the lock"))(stream, &format!("{records:?}"));
        match act {
            Act::Pass => self.kept.append(stream, records),
            Act::PanicBefore => panic!("the journal panics, as this test wants"),
            Act::PanicAfter => {
                drop(self.kept.append(stream, records));
                panic!("the journal panics, as this test wants")
            }
            Act::Fail => {
                let error = JournalError { stream: stream.clone(), problem: "the disk is full".to_owned() };
                futures::future::ready(Err(error)).boxed()
            }
            Act::Hold(gate) => {
                let (kept, stream) = (self.kept.clone(), stream.clone());
                async move {
                    gate.acquire().await.expect("the gate is there").forget();
                    kept.append(&stream, records).await
                }
                .boxed()
            }
        }
    }

    fn read(&self, stream: &StreamId) -> BoxFuture<'static, Result<Vec<Record>, JournalError>> {
        self.kept.read(stream)
    }

    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>> {
        self.kept.streams()
    }

    fn archive(&self, stream: &StreamId, at: Timestamp) -> BoxFuture<'static, Result<(), JournalError>> {
        self.kept.archive(stream, at)
    }

    fn archived(&self) -> BoxFuture<'static, Result<Vec<Archived>, JournalError>> {
        self.kept.archived()
    }

    fn remove(&self, stream: &StreamId) -> BoxFuture<'static, Result<(), JournalError>> {
        if self.remembers.load(Ordering::SeqCst) {
            return futures::future::ready(Ok(())).boxed();
        }
        self.kept.remove(stream)
    }
}
