//! The supervision tree: one row for each kind of actor.
//!
//! ```text
//! Supervisor ─┬─ Service ───────── Cohort ─ SigningSession
//!             ├─ Participant ───── ParticipantSession
//!             └─ Link ──┬───────── connection: Memory, HttpConnection, Endpoint, NostrConnection ─ Relay
//!                       └───────── Combined ─ LinkInbox, Link ─ ...
//! Hub (one for each HTTP server) ─ Inbox
//! Announcement (one for each announcement that has not ended)
//! ```
//!
//! Every actor is started by `supervision::start`, which takes the mailbox's bound from the actor's row.

/// What happens to an actor that panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// It retains its address and its mailbox, and replays its journal.
    ReplaysJournal,
    /// It retains its address and its mailbox, and starts again with its initial settings.
    BeginsAgain,
    /// Its parent starts another one, after a pause.
    ByParent,
    /// It ends, and its parent continues without it.
    Never,
}

/// What happens to a message when a mailbox is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The sender waits.
    SenderWaits,
    /// The message is dropped, which is logged. Its sender gets no receipt, and sends it again.
    Lost,
    /// The mailbox accepts it: the number of messages in flight is bounded elsewhere.
    Taken,
}

/// A kind of actor and its policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// The names of the actors that start it; empty for the root.
    pub parents: &'static [&'static str],
    /// The bound of its mailbox.
    pub mailbox: usize,
    /// What happens when its mailbox is full.
    pub when_full: WhenFull,
    /// What happens when it panics.
    pub restart: Restart,
    /// The journal stream that it writes, if any.
    pub journal: Option<&'static str>,
    /// The span of its log lines.
    pub span: &'static str,
}

/// The root: it starts services and participants, and observes their end.
pub const SUPERVISOR: Row = Row {
    name: "Supervisor",
    parents: &[],
    mailbox: 16,
    when_full: WhenFull::SenderWaits,
    restart: Restart::Never,
    journal: None,
    span: "none",
};

/// An Aggregation Service.
pub const SERVICE: Row = Row {
    name: "Service",
    parents: &["Supervisor"],
    mailbox: 8192,
    when_full: WhenFull::SenderWaits,
    restart: Restart::ReplaysJournal,
    journal: None,
    span: "service",
};

/// A cohort at its service.
pub const COHORT: Row = Row {
    name: "Cohort",
    parents: &["Service"],
    mailbox: 4096,
    when_full: WhenFull::Lost,
    restart: Restart::ReplaysJournal,
    journal: Some("cohort/COHORT"),
    span: "cohort",
};

/// A cohort's signing session at its service.
pub const SIGNING_SESSION: Row = Row {
    name: "SigningSession",
    parents: &["Cohort"],
    mailbox: 4096,
    when_full: WhenFull::Lost,
    restart: Restart::ReplaysJournal,
    journal: Some("signing/SESSION"),
    span: "signing",
};

/// A DID controller in all its cohorts. Its sessions wait too, when they report their progress.
pub const PARTICIPANT: Row = Row {
    name: "Participant",
    parents: &["Supervisor"],
    mailbox: 1024,
    when_full: WhenFull::SenderWaits,
    restart: Restart::ReplaysJournal,
    journal: Some("membership/DID"),
    span: "participant",
};

/// A participant in one cohort. `when_full` is for messages of its service; its participant waits with its own.
pub const PARTICIPANT_SESSION: Row = Row {
    name: "ParticipantSession",
    parents: &["Participant"],
    // A service sends seven messages in a round.
    mailbox: 64,
    when_full: WhenFull::Lost,
    restart: Restart::ReplaysJournal,
    journal: Some("participant/DID/SERVICE/COHORT"),
    span: "session",
};

/// The announcement of a cohort. The host owns it, see [`Announcements`](crate::announcement::Announcements).
pub const ANNOUNCEMENT: Row = Row {
    name: "Announcement",
    parents: &[],
    // The host makes a handful of requests for each cohort.
    mailbox: 16,
    when_full: WhenFull::SenderWaits,
    restart: Restart::ReplaysJournal,
    journal: Some("announcement/COHORT"),
    span: "announcement",
};

/// An identity's permanent endpoint on a transport, which outlives its connections.
pub const LINK: Row = Row {
    name: "Link",
    parents: &["Supervisor", "Combined"],
    mailbox: 8192,
    when_full: WhenFull::Taken,
    restart: Restart::BeginsAgain,
    journal: None,
    span: "link",
};

/// An identity's connection in one process.
pub const MEMORY_CONNECTION: Row = Row {
    name: "MemoryConnection",
    parents: &["Link"],
    mailbox: 8192,
    when_full: WhenFull::Lost,
    restart: Restart::BeginsAgain,
    journal: None,
    span: "connection",
};

/// An identity's connection to an HTTP server.
pub const HTTP_CONNECTION: Row = Row {
    name: "HttpConnection",
    parents: &["Link"],
    mailbox: 1024,
    when_full: WhenFull::SenderWaits,
    restart: Restart::ByParent,
    journal: None,
    span: "connection",
};

/// The connection of an identity that is served by an HTTP server of this process.
pub const ENDPOINT: Row = Row {
    name: "Endpoint",
    parents: &["Link"],
    mailbox: 8192,
    when_full: WhenFull::Taken,
    restart: Restart::BeginsAgain,
    journal: None,
    span: "connection",
};

/// The data that an HTTP server serves to readers: the adverts and the inboxes.
pub const HUB: Row = Row {
    name: "Hub",
    parents: &[],
    mailbox: 8192,
    when_full: WhenFull::Taken,
    restart: Restart::BeginsAgain,
    journal: None,
    span: "hub",
};

/// One identity's messages at an HTTP server.
pub const INBOX: Row = Row {
    name: "Inbox",
    parents: &["Hub"],
    // Until it has started: after that as many as it may hold (`HttpConfig::inbox_messages`), but 16 or more.
    mailbox: 1024,
    when_full: WhenFull::Taken,
    restart: Restart::BeginsAgain,
    journal: None,
    span: "inbox",
};

/// An identity's connection to several relays.
pub const NOSTR_CONNECTION: Row = Row {
    name: "NostrConnection",
    parents: &["Link"],
    mailbox: 1024,
    when_full: WhenFull::SenderWaits,
    restart: Restart::ByParent,
    journal: None,
    span: "connection",
};

/// A Nostr connection's connection to one relay.
pub const RELAY: Row = Row {
    name: "Relay",
    parents: &["NostrConnection"],
    mailbox: 16,
    when_full: WhenFull::Taken,
    restart: Restart::ByParent,
    journal: None,
    span: "relay",
};

/// An identity's connection over several transports at once.
pub const COMBINED: Row = Row {
    name: "Combined",
    parents: &["Link"],
    mailbox: 1024,
    when_full: WhenFull::SenderWaits,
    restart: Restart::BeginsAgain,
    journal: None,
    span: "connection",
};

/// The receiving end of one of the transports of a combined connection.
pub const LINK_INBOX: Row = Row {
    name: "LinkInbox",
    parents: &["Combined"],
    mailbox: 1,
    when_full: WhenFull::SenderWaits,
    restart: Restart::Never,
    journal: None,
    span: "connection",
};

/// Every row, parents before their children.
pub const ROWS: [&Row; 17] = [
    &SUPERVISOR,
    &SERVICE,
    &COHORT,
    &SIGNING_SESSION,
    &PARTICIPANT,
    &PARTICIPANT_SESSION,
    &LINK,
    &COMBINED,
    &LINK_INBOX,
    &MEMORY_CONNECTION,
    &HTTP_CONNECTION,
    &ENDPOINT,
    &NOSTR_CONNECTION,
    &RELAY,
    &HUB,
    &INBOX,
    &ANNOUNCEMENT,
];

#[cfg(test)]
mod tests;
