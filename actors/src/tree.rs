//! The supervision tree: one row for each kind of actor.
//!
//! ```text
//! Supervisor ─┬─ Service ─────┬─── Cohort ─ SigningSession
//!             │               └─── StandingCohort ─┬─ Number
//!             │                                    └─ CoinWatch
//!             ├─ Participant ───── ParticipantSession
//!             ├─ Member ────────── Seat ─ CoinWatch
//!             └─ Link ──────────── connection: MemoryConnection, HttpConnection, NostrConnection ─ Relay, TaskConnection
//! Hub (one for each HTTP server) ─ Inbox
//! Announcement (one for each announcement that has not ended)
//! ```
//!
//! The way of a message out of a service has no other stations than these: a service, a cohort or a session sends on its
//! link, which passes the message to the connection without a mailbox in between. The connection of an identity of an
//! HTTP server of this process is the mailbox of the hub; a combined connection is one link for each transport.
//!
//! Every actor is started by `supervision::start`, which takes the mailbox's bound from the actor's row. A sender that
//! waits has space for one message beyond it. Only the notification that a child or a connection has ended is accepted in
//! any case: there is one for each, and their number has a bound.

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

/// A standing cohort at its service.
pub const STANDING_COHORT: Row = Row {
    name: "StandingCohort",
    parents: &["Service"],
    mailbox: 4096,
    when_full: WhenFull::Lost,
    restart: Restart::ReplaysJournal,
    journal: Some("standing/COHORT"),
    span: "standing",
};

/// One number of a standing cohort: an opportunity and its signing session.
pub const NUMBER: Row = Row {
    name: "Number",
    parents: &["StandingCohort"],
    mailbox: 4096,
    when_full: WhenFull::Lost,
    restart: Restart::ReplaysJournal,
    journal: Some("number/NUMBER/COHORT"),
    span: "number",
};

/// Looks at the chain for one beacon address, for a standing cohort or for a seat. Its owner sends it what to submit.
pub const COIN_WATCH: Row = Row {
    name: "CoinWatch",
    parents: &["StandingCohort", "Seat"],
    mailbox: 16,
    when_full: WhenFull::SenderWaits,
    restart: Restart::BeginsAgain,
    journal: Some("watch/OWNER"),
    span: "that of its owner",
};

/// A member of standing cohorts: reads adverts.
pub const MEMBER: Row = Row {
    name: "Member",
    parents: &["Supervisor"],
    mailbox: 1024,
    when_full: WhenFull::SenderWaits,
    restart: Restart::ReplaysJournal,
    journal: None,
    span: "member",
};

/// A seat in one standing cohort.
pub const SEAT: Row = Row {
    name: "Seat",
    parents: &["Member"],
    // A service sends a handful of messages in a number, and the parts of a board one after the other.
    mailbox: 256,
    when_full: WhenFull::SenderWaits,
    restart: Restart::ReplaysJournal,
    journal: Some("seat/DID"),
    span: "seat",
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

/// Connects an identity on a transport, again and again. It receives no messages: the bound is that of the messages that
/// wait for a connection, or for space in it, and the oldest are dropped.
pub const LINK: Row = Row {
    name: "Link",
    parents: &["Supervisor", "Member", "Link"],
    mailbox: 8192,
    when_full: WhenFull::Lost,
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

/// A connection that is one task: of a custom transport, see `transport::connection::spawn`. Its queue is as long as the
/// transport wants it; if it is full, messages wait in the link.
pub const TASK_CONNECTION: Row = Row {
    name: "TaskConnection",
    parents: &["Link"],
    mailbox: 1,
    when_full: WhenFull::SenderWaits,
    restart: Restart::ByParent,
    journal: None,
    span: "link",
};

/// The data that an HTTP server serves to readers: the adverts and the inboxes.
///
/// Its senders wait: requests in the web server, and the messages of its identities in their links.
pub const HUB: Row = Row {
    name: "Hub",
    parents: &[],
    mailbox: 8192,
    when_full: WhenFull::SenderWaits,
    restart: Restart::BeginsAgain,
    journal: None,
    span: "hub",
};

/// One identity's messages at an HTTP server. It never waits for its reader, so the hub waits for it.
pub const INBOX: Row = Row {
    name: "Inbox",
    parents: &["Hub"],
    // Until it has started: after that as many as it may hold (`HttpConfig::inbox_messages`), but 16 or more.
    mailbox: 1024,
    when_full: WhenFull::SenderWaits,
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

/// A Nostr connection's connection to one relay. An event for which there is no space counts as refused, and is published
/// again later.
pub const RELAY: Row = Row {
    name: "Relay",
    parents: &["NostrConnection"],
    // Until it has started: after that as many as the outbox of its connection has (`NostrConfig::outbox`), but 16 or more.
    mailbox: 16,
    when_full: WhenFull::Lost,
    restart: Restart::ByParent,
    journal: None,
    span: "relay",
};

/// Every row, parents before their children.
pub const ROWS: [&Row; 20] = [
    &SUPERVISOR,
    &SERVICE,
    &COHORT,
    &SIGNING_SESSION,
    &PARTICIPANT,
    &PARTICIPANT_SESSION,
    &STANDING_COHORT,
    &NUMBER,
    &MEMBER,
    &SEAT,
    &COIN_WATCH,
    &LINK,
    &MEMORY_CONNECTION,
    &HTTP_CONNECTION,
    &TASK_CONNECTION,
    &NOSTR_CONNECTION,
    &RELAY,
    &HUB,
    &INBOX,
    &ANNOUNCEMENT,
];

#[cfg(test)]
mod tests;
