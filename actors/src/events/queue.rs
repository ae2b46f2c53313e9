//! The events that wait for a host.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::{Decisive, Position, Step};
use crate::{journal::StreamId, notice::Sink};

/// How many decisive events may wait: each has the whole result of a cohort. There is always space for them beside the
/// transient ones.
const MOST_DECISIVE: usize = 256;

/// How many cohorts are remembered whose decisive events were delivered. Events of older ones are delivered once more if
/// they are read again.
const MOST_DELIVERED: usize = 4096;

/// The next item for the host.
pub(super) enum Next<N> {
    /// A notice, and its position if it is decisive.
    Notice(Arc<N>, Option<Position>),
    /// This many notices were dropped, decisive ones among them or not.
    Gap { lost: u64, decisive: bool },
}

/// A queue of notices: published by actors, read by the host.
pub(super) struct Queue<N> {
    most: usize,
    waiting: Mutex<Waiting<N>>,
    changed: Notify,
}

struct Waiting<N> {
    items: VecDeque<Next<N>>,
    /// The number of decisive events among them.
    decisive: usize,
    delivered: Delivered,
    closed: bool,
}

impl<N> Queue<N> {
    /// A queue for at most `most` transient notices; half of them may be such as anyone can cause.
    pub(super) fn new(most: usize) -> Self {
        let waiting =
            Waiting { items: VecDeque::new(), decisive: 0, delivered: Delivered::default(), closed: false };
        Self { most, waiting: Mutex::new(waiting), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<N>> {
        // No code panics while it holds the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host has acknowledged these events in previous runs: they are not delivered again.
    pub(super) fn acknowledged(&self, positions: &[Position]) {
        let delivered = &mut self.lock().delivered;
        for position in positions {
            delivered.insert(position);
        }
    }

    /// Whether a decisive event that was read again has not been delivered yet; from now on it has.
    pub(super) fn delivers(&self, position: &Position) -> bool {
        let delivered = &mut self.lock().delivered;
        let is_repeated = position.step.is_repeatable() && delivered.steps.contains_key(&position.stream);
        !is_repeated && delivered.insert(position)
    }

    /// Waits for the next item; `None` after the last one.
    pub(super) async fn next(&self) -> Option<Next<N>> {
        loop {
            let changed = self.changed.notified();
            {
                let mut waiting = self.lock();
                while let Some(next) = waiting.items.pop_front() {
                    if let Next::Notice(_, Some(position)) = &next {
                        waiting.decisive -= 1;
                        if !waiting.delivered.insert(position) {
                            continue;
                        }
                    }
                    return Some(next);
                }
                if waiting.closed {
                    return None;
                }
            }
            changed.await;
        }
    }
}

impl<N: Decisive> Sink<N> for Queue<N> {
    fn receive(&self, notice: &Arc<N>) {
        let position = notice.position();
        let mut waiting = self.lock();
        let has_space = match &position {
            Some(_) => waiting.decisive < MOST_DECISIVE,
            None if notice.is_caused_by_anyone() => waiting.items.len() - waiting.decisive < self.most / 2,
            None => waiting.items.len() - waiting.decisive < self.most,
        };
        if has_space {
            waiting.decisive += usize::from(position.is_some());
            waiting.items.push_back(Next::Notice(Arc::clone(notice), position));
        } else if let Some(Next::Gap { lost, decisive }) = waiting.items.back_mut() {
            *lost += 1;
            *decisive |= position.is_some();
        } else {
            waiting.items.push_back(Next::Gap { lost: 1, decisive: position.is_some() });
        }
        drop(waiting);
        self.changed.notify_one();
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }
}

/// The decisive events that were delivered: the latest step of each of the latest cohorts.
#[derive(Default)]
struct Delivered {
    steps: BTreeMap<StreamId, Step>,
    order: VecDeque<StreamId>,
}

impl Delivered {
    /// Records an event; returns whether it is new.
    fn insert(&mut self, position: &Position) -> bool {
        let Position { stream, step } = position;
        match self.steps.get_mut(stream) {
            Some(last) if *last >= *step => step.is_repeatable(),
            Some(last) => {
                *last = *step;
                true
            }
            None => {
                self.steps.insert(stream.clone(), *step);
                self.order.push_back(stream.clone());
                if self.order.len() > MOST_DELIVERED
                    && let Some(oldest) = self.order.pop_front()
                {
                    self.steps.remove(&oldest);
                }
                true
            }
        }
    }
}
