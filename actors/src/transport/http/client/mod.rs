//! The client: an identity's connection to one server.
//!
//! [`HttpClient`] is the transport; `connection` the actor that sends and delivers, `answer` the meaning of a server's
//! answers, `stream` its event streams.

mod answer;
mod comments;
mod connection;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use btcr2_aggregation_protocol::{did::Did, identity::Identity, time::Timestamp};
use reqwest::{
    Client, StatusCode, Url,
    redirect::{Attempt, Policy},
};

use self::connection::{HttpConnection, Job};
pub use crate::backoff::Backoff;
use crate::{
    runtime::{Clock, Randomness},
    span,
    supervision::start,
    transport::{
        ConnectError, Connection, Inbox, Transport,
        connection::{ActorConnection, Ended},
        contact::Contacts,
        tls::{TlsError, Trust},
    },
};

/// The timeout for establishing a connection, including TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The timeout for a request, including its answer. A stream does not end, but must begin in that time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A stream without any data for this long, not even a heartbeat, is considered dead: a peer that vanished silently
/// would otherwise be waited for without limit.
const STALLED: Duration = Duration::from_secs(90);

/// The client of one server. Clones share it.
#[derive(Clone)]
pub struct HttpClient {
    http: Client,
    base: Url,
    service: Option<Did>,
    clock: Clock,
    randomness: Randomness,
    backoff: Backoff,
    contacts: Contacts,
    slots: Arc<Mutex<BTreeMap<Did, Arc<Mutex<Slot>>>>>,
    /// The number of connections so far.
    connections: Arc<AtomicU64>,
}

/// The state that outlives an identity's connection: if its actor fails, the next one continues from it.
#[derive(Default)]
struct Slot {
    /// The messages to send; the first may be in progress.
    queue: VecDeque<Job>,
    /// The position up to which the inbox's messages are durable here.
    read: ReadUpTo,
    /// The event of the inbox that was last refused for its age.
    stale_event_id: Option<String>,
}

/// The position up to which the inbox was read. The server removes everything that is reported as durable, and could
/// not send it again to a member that crashed too early.
#[derive(Default)]
struct ReadUpTo {
    /// The last event such that it and all events before it are durable.
    safe: Option<String>,
    /// The events after it, in order: each with its sequence number, and whether it is durable itself.
    behind: VecDeque<(u64, String, bool)>,
    next: u64,
}

impl ReadUpTo {
    /// The stream is opened again after the durable events: all later ones are sent once more.
    fn reopen(&mut self) -> Option<String> {
        self.behind.clear();
        self.safe.clone()
    }

    /// An event was delivered; returns its sequence number.
    fn began(&mut self, id: String) -> u64 {
        self.next += 1;
        self.behind.push_back((self.next, id, false));
        self.next
    }

    /// The events that the message with this number caused are durable. Ignored if the stream was opened again since.
    fn over(&mut self, number: u64) {
        if let Some((.., over)) = self.behind.iter_mut().find(|(other, ..)| *other == number) {
            *over = true;
        }
        while let Some((_, id, true)) = self.behind.front_mut() {
            self.safe = Some(std::mem::take(id));
            self.behind.pop_front();
        }
    }
}

/// The server's address, or a certificate to trust, is not valid.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{url}: {problem}")]
pub struct BaseUrlError {
    url: String,
    problem: String,
}

impl HttpClient {
    /// A client of the server at `base`, e.g. `https://example.org` or `https://example.org/agg`. With `service`,
    /// messages of other services are ignored; without it, the adverts of all services are read.
    ///
    /// # Errors
    /// [`BaseUrlError`] when `base` is not an http(s) URL.
    pub fn new(
        base: &str,
        service: Option<Did>,
        clock: Clock,
        randomness: Randomness,
    ) -> Result<Self, BaseUrlError> {
        let refuse = |problem: &str| BaseUrlError { url: base.to_owned(), problem: problem.to_owned() };
        let parsed = Url::parse(base).map_err(|error| refuse(&error.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(refuse("an http or https URL expected"));
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(refuse("a URL without query and fragment expected"));
        }
        let http = client(&Trust::system()).map_err(|error| refuse(&error))?;
        let (backoff, contacts) = (Backoff::default(), Contacts::default());
        let (slots, connections) = Default::default();
        Ok(Self { http, base: parsed, service, clock, randomness, backoff, contacts, slots, connections })
    }

    /// This client, with the delays of `backoff` between attempts.
    #[must_use]
    pub fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// This client, which reports to `contacts` whether the server can be reached.
    #[must_use]
    pub fn with_contacts(mut self, contacts: Contacts) -> Self {
        self.contacts = contacts;
        self
    }

    /// This client, with the certificates of `trust` for TLS.
    ///
    /// # Errors
    /// [`BaseUrlError`] when TLS cannot be set up.
    pub fn trusting(mut self, trust: &Trust) -> Result<Self, BaseUrlError> {
        self.http = client(trust).map_err(|problem| BaseUrlError { url: self.base.to_string(), problem })?;
        Ok(self)
    }

    /// Compares the clocks. A server refuses what was signed at another time, and a proxy in front of it may hide why.
    fn compares_clocks(&self, response: &reqwest::Response) {
        let date = response.headers().get(reqwest::header::DATE).and_then(|date| date.to_str().ok());
        let time = date.and_then(|date| httpdate::parse_http_date(date).ok());
        let theirs = time.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        if let Some(theirs) = theirs {
            let theirs = Timestamp::from_secs(theirs.as_secs());
            self.contacts.has_time(self.base.as_str(), theirs, self.clock.now());
        }
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url
    }

    fn slot(&self, did: &Did) -> Arc<Mutex<Slot>> {
        Arc::clone(lock(&self.slots).entry(did.clone()).or_default())
    }
}

fn client(trust: &Trust) -> Result<Client, String> {
    let builder = trust.http_client().map_err(|error: TlsError| error.to_string())?;
    let builder = builder.connect_timeout(CONNECT_TIMEOUT).read_timeout(STALLED);
    let built = builder.redirect(Policy::custom(redirect)).build();
    built.map_err(|error| stream::describe(&error))
}

/// The maximum number of redirects of one request.
const REDIRECTS: usize = 5;

/// Follows only redirects that repeat the request unchanged, at the same origin: the user did not choose another
/// origin, and 301, 302 and 303 turn a POST into a GET. Any other redirect is reported as an answer.
fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let repeats = matches!(attempt.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
    let here = attempt.previous().last().is_some_and(|from| from.origin() == attempt.url().origin());
    if repeats && here && attempt.previous().len() <= REDIRECTS { attempt.follow() } else { attempt.stop() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The values in these mutexes are consistent between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Transport for HttpClient {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let name = format!("http connection {} {} {number}", self.base, identity.did());
        let (guard, ended) = Ended::guard();
        let connection = HttpConnection::new(self.clone(), identity.clone(), inbox, name, guard);
        let connection = start(span::connection("http", identity.did()), |_| connection);
        Ok(ActorConnection::boxed(connection.recipient(), ended))
    }
}
