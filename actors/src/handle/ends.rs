//! The decisive notices of the cohorts for whose outcome a host may wait.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{
    events::{Decisive, Step},
    journal::StreamId,
    notice::{Notices, Sink},
};

/// How many cohorts are followed for which the host has no handle yet.
const MOST_UNASKED: usize = 16;

/// The decisive notices of one cohort so far.
pub(super) type Story<N> = Vec<Arc<N>>;

/// Follows the cohorts of a service, or the memberships of a participant.
pub(super) struct Ends<N> {
    followed: Mutex<Followed<N>>,
    /// The first one that began.
    first: watch::Sender<Option<StreamId>>,
    closed: watch::Sender<bool>,
}

struct Followed<N> {
    stories: BTreeMap<StreamId, watch::Sender<Story<N>>>,
    /// The latest ones for which there may be no handle.
    unasked: VecDeque<(StreamId, watch::Receiver<Story<N>>)>,
    closed: bool,
}

impl<N: Decisive> Ends<N> {
    /// Follows everything that is published on `notices` from now on.
    pub(super) fn of(notices: &Notices<N>) -> Arc<Self> {
        let followed = Followed { stories: BTreeMap::new(), unasked: VecDeque::new(), closed: false };
        let ends = Arc::new(Self {
            followed: Mutex::new(followed),
            first: watch::Sender::new(None),
            closed: watch::Sender::new(false),
        });
        let sink = Arc::downgrade(&ends);
        notices.add(sink);
        ends
    }

    fn lock(&self) -> MutexGuard<'_, Followed<N>> {
        // No code panics while it holds the lock.
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The notices about a cohort; those before this call only if it is one of the latest.
    pub(super) fn follow(&self, stream: &StreamId) -> watch::Receiver<Story<N>> {
        self.lock().follow(stream)
    }

    /// Ready when nothing is published any more.
    pub(super) async fn closed(&self) {
        // The sender is in `self`: there is no error.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Changes when the first one has begun.
    pub(super) fn first(&self) -> watch::Receiver<Option<StreamId>> {
        self.first.subscribe()
    }
}

impl<N> Followed<N> {
    fn follow(&mut self, stream: &StreamId) -> watch::Receiver<Story<N>> {
        if self.closed {
            return watch::Sender::new(Vec::new()).subscribe();
        }
        self.stories.retain(|_, story| story.receiver_count() > 0);
        self.stories.entry(stream.clone()).or_insert_with(|| watch::Sender::new(Vec::new())).subscribe()
    }
}

impl<N: Decisive> Sink<N> for Ends<N> {
    fn receive(&self, notice: &Arc<N>) {
        let Some(position) = notice.position() else { return };
        let mut followed = self.lock();
        if !followed.stories.contains_key(&position.stream) {
            let story = followed.follow(&position.stream);
            followed.unasked.push_back((position.stream.clone(), story));
            if followed.unasked.len() > MOST_UNASKED {
                followed.unasked.pop_front();
            }
        }
        if let Some(story) = followed.stories.get(&position.stream) {
            story.send_modify(|story| story.push(Arc::clone(notice)));
        }
        drop(followed);
        if position.step == Step::Began {
            self.first.send_if_modified(|first| {
                let is_first = first.is_none();
                first.get_or_insert(position.stream);
                is_first
            });
        }
    }

    fn close(&self) {
        let mut followed = self.lock();
        followed.closed = true;
        // This notifies those that wait.
        followed.stories.clear();
        followed.unasked.clear();
        self.closed.send_replace(true);
    }
}
