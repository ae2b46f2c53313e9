//! Where what the inboxes hold is kept, so that it survives a restart of the server (port).

use btcr2_aggregation_protocol::{did::Did, message::Message, time::Timestamp};

/// A message that waits in an inbox.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Its number in that inbox, which the recipient's client counts by.
    pub id: u64,
    /// When it was put there.
    pub at: Timestamp,
    /// The message; its `from` lives on this server and signs it anew whenever it is sent, its `to` owns the inbox.
    pub message: Message,
}

/// A copy of what the inboxes hold.
///
/// The inboxes do not wait for it: a write is handed in and happens in its turn. What is lost when the server is killed
/// before that are messages whose sender's journal is ahead of them, and who says again what it still owes; and what was
/// confirmed or dropped just before may be delivered once more, which no recipient minds.
pub trait InboxStore: Send + Sync {
    /// The highest number that was given out as far as the store knows: a server that starts counts on behind it.
    fn last_id(&self) -> u64;

    /// Keeps a message that was put into the inbox of `owner`.
    fn put(&self, owner: &Did, waiting: &Waiting);

    /// Forgets a message: it was confirmed, or was too old or too much.
    fn remove(&self, owner: &Did, id: u64);

    /// What `from` had said when the server was stopped and is still to be delivered; given out once. Asked when `from`
    /// connects, for without its key nothing of it can be sent.
    fn take(&self, from: &Did) -> Vec<Waiting>;
}

/// Nothing is kept: after a restart the inboxes are empty.
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
