//! The store of the inboxes' messages, so that they survive a restart of the server (port).

use btcr2_aggregation_protocol::{did::Did, message::Message, time::Timestamp};

/// A message that waits in an inbox.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Its number in that inbox, which the recipient's client confirms.
    pub id: u64,
    /// When it was added to the inbox.
    pub at: Timestamp,
    /// The message. Its `from` is an identity of this server and signs it anew whenever it is sent; its `to` owns the
    /// inbox.
    pub message: Message,
}

/// A copy of the inboxes' messages.
///
/// The inboxes do not wait for it: a write is queued and happens in its turn. If the server is killed before that, the
/// lost messages are in the journals of their senders, which send again what is still needed; and a message that was
/// confirmed or dropped just before may be delivered once more, which every recipient accepts.
pub trait InboxStore: Send + Sync {
    /// The highest number that was assigned, according to the store: a server that starts continues after it.
    fn last_id(&self) -> u64;

    /// Stores a message that was added to the inbox of `owner`.
    fn put(&self, owner: &Did, waiting: &Waiting);

    /// Removes a message: it was confirmed, expired, or dropped for lack of space.
    fn remove(&self, owner: &Did, id: u64);

    /// The messages of `from` that were not delivered when the server stopped; returned once. Called when `from`
    /// connects, because they cannot be signed without its key.
    fn take(&self, from: &Did) -> Vec<Waiting>;
}

/// Stores nothing: after a restart the inboxes are empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryInboxes;

impl InboxStore for MemoryInboxes {
    fn last_id(&self) -> u64 {
        0
    }

    fn put(&self, _: &Did, _: &Waiting) {}

    fn remove(&self, _: &Did, _: u64) {}

    fn take(&self, _: &Did) -> Vec<Waiting> {
        Vec::new()
    }
}
