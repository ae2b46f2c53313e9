//! The events of a service, a participant or the announcements as a host receives them: [`Events`].
//!
//! Every event has a [`Cursor`]. An event is *decisive* when a host must not miss it: the output and the end of a cohort,
//! the data and the end of a membership, the end of an announcement. Decisive events are delivered at least once: after a
//! restart, those that the host has not acknowledged are delivered again, from the journal. The acknowledgement of the last
//! event of a cohort archives the journal of the cohort.
//!
//! The other events are transient: they are delivered at most once, and only a bounded number waits for the host. The
//! stream reports how many it has lost as [`Event::Gap`]. A decisive event for which there is no space is read from the
//! journal when the host has read the events before it. So a host that does not read, or does not acknowledge, delays no
//! cohort and does not make the memory grow. Without a journal that outlives the process nothing is read again: a
//! cohort's journal is removed when it ends, and what the host does not read in time is part of a gap.

pub(crate) mod acknowledged;
mod queue;
mod subject;

use std::{collections::VecDeque, sync::Arc};

use futures::{Stream, future::BoxFuture, stream};

use self::queue::{Next, Queue};
pub(crate) use self::subject::{Decisive, Position, Step};
use crate::{
    journal::{JournalError, StreamId},
    notice::Notices,
};

/// The position of an event; acknowledged by the host when it has stored what it needs of the event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(Option<Position>);

impl Cursor {
    /// Whether the event is delivered again after a restart until it, or a later one of its cohort, is acknowledged.
    pub fn is_decisive(&self) -> bool {
        self.0.is_some()
    }
}

/// An item of the stream.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<N> {
    /// A step of a cohort.
    Notice(Arc<N>),
    /// This many events were lost here. Decisive ones among them follow, from the journal.
    Gap(u64),
}

/// The journal behind the events of a service, a participant or the announcements.
pub(crate) trait Source<N>: Send + Sync {
    /// Its streams that are not archived.
    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>>;

    /// The decisive events of a stream, in order.
    fn read(&self, stream: StreamId) -> BoxFuture<'static, Result<Vec<N>, JournalError>>;

    /// The last acknowledged event of each of its streams, as far as that is persisted.
    fn acknowledged(&self) -> BoxFuture<'static, Result<Vec<Position>, JournalError>>;

    /// Persists that the host has acknowledged an event and all earlier ones of its stream. The acknowledgement of the last
    /// event archives the stream, with the streams that belong to it, if the journal shows the end.
    fn acknowledge(&self, position: Position) -> BoxFuture<'static, Result<(), JournalError>>;
}

/// The events of a service, a participant or the announcements, from the start, or from the call that returned this. May be
/// moved to any thread.
pub struct Events<N> {
    queue: Arc<Queue<N>>,
    source: Arc<dyn Source<N>>,
    position: fn(&N) -> Option<Position>,
    /// Whether the queue knows what was acknowledged in previous runs.
    knows_acknowledged: bool,
    /// The streams to read again; `None` when their list is to be read first.
    behind: Option<VecDeque<StreamId>>,
    /// Events that were read again.
    reread: VecDeque<N>,
}

impl<N> Events<N> {
    /// The next event and its cursor; `None` when the service or the participant is gone and all events were read. A
    /// call that is dropped loses no event.
    pub async fn next(&mut self) -> Option<(Cursor, Event<N>)> {
        self.read_acknowledged().await;
        loop {
            while let Some(notice) = self.reread.pop_front() {
                let position = (self.position)(&notice);
                if position.as_ref().is_none_or(|position| self.queue.delivers(position)) {
                    return Some((Cursor(position), Event::Notice(Arc::new(notice))));
                }
            }
            if self.read_again().await {
                continue;
            }
            match self.queue.next().await? {
                Next::Notice(notice, position) => return Some((Cursor(position), Event::Notice(notice))),
                Next::Gap { lost, decisive } => {
                    if decisive {
                        self.behind = None;
                    }
                    return Some((Cursor(None), Event::Gap(lost)));
                }
            }
        }
    }

    /// Reads which events were acknowledged in previous runs, unless that was read before.
    pub(crate) async fn read_acknowledged(&mut self) {
        if self.knows_acknowledged {
            return;
        }
        match self.source.acknowledged().await {
            Ok(positions) => self.queue.acknowledged(&positions),
            Err(error) => tracing::error!(%error, "acknowledged events are delivered again"),
        }
        // Not earlier: this call may be dropped while it waits.
        self.knows_acknowledged = true;
    }

    /// Reads one stream again; returns whether there was one.
    async fn read_again(&mut self) -> bool {
        let Some(behind) = &mut self.behind else {
            self.behind = Some(match self.source.streams().await {
                Ok(streams) => streams.into(),
                Err(error) => {
                    tracing::error!(%error, "events are missing until the next start: the journal cannot be read");
                    VecDeque::new()
                }
            });
            return true;
        };
        let Some(stream) = behind.front().cloned() else { return false };
        match self.source.read(stream.clone()).await {
            Ok(notices) => self.reread.extend(notices),
            // Its actor reports it as lost.
            Err(error) => tracing::error!(%error, "the events of a cohort cannot be read"),
        }
        // Not earlier: this call may be dropped while it waits.
        behind.pop_front();
        true
    }

    /// Acknowledges an event: the host has stored what it needs of it and of all earlier events of its cohort, which are
    /// not delivered again. The last event of a cohort archives the cohort's journal. Ready when that is durable. The
    /// acknowledgement of an event that is not [decisive](Cursor::is_decisive) changes nothing.
    ///
    /// # Errors
    /// When the journal cannot be read or written: the events are delivered again after a restart.
    pub async fn ack(&self, cursor: &Cursor) -> Result<(), JournalError> {
        self.acks().ack(cursor).await
    }

    /// Acknowledges events from elsewhere while the stream is read.
    pub fn acks(&self) -> Acks<N> {
        Acks(Arc::clone(&self.source))
    }

    /// The events as a [`Stream`].
    pub fn into_stream(self) -> impl Stream<Item = (Cursor, Event<N>)> {
        stream::unfold(self, async |mut events| events.next().await.map(|next| (next, events)))
    }
}

/// The events that are published on `notices` from now on; at most `most` transient ones wait.
pub(crate) fn follow<N: Decisive>(notices: &Notices<N>, source: Arc<dyn Source<N>>, most: usize) -> Events<N> {
    let queue = Arc::new(Queue::new(most));
    let sink = Arc::downgrade(&queue);
    notices.add(sink);
    Events {
        queue,
        source,
        position: N::position,
        knows_acknowledged: false,
        behind: Some(VecDeque::new()),
        reread: VecDeque::new(),
    }
}

/// The same, preceded by the decisive events in the journal.
pub(crate) fn follow_from_journal<N: Decisive>(
    notices: &Notices<N>,
    source: Arc<dyn Source<N>>,
    most: usize,
) -> Events<N> {
    Events { behind: None, ..follow(notices, source, most) }
}

/// Acknowledges the events of one source. Clones do the same.
pub struct Acks<N>(Arc<dyn Source<N>>);

impl<N> Clone for Acks<N> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<N> Acks<N> {
    pub(crate) fn new(source: Arc<dyn Source<N>>) -> Self {
        Self(source)
    }

    /// See [`Events::ack`].
    ///
    /// # Errors
    /// Those of [`Events::ack`].
    pub async fn ack(&self, cursor: &Cursor) -> Result<(), JournalError> {
        match &cursor.0 {
            Some(position) => self.0.acknowledge(position.clone()).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
