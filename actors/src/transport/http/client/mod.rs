//! The client: an identity's connection to one server.
//!
//! [`HttpClient`] is the transport; `connection` the actor that sends and delivers, `answer` what a server's answer to a message
//! means, `stream` how its events are read, `backoff` how long it waits between attempts.

mod answer;
mod backoff;
mod comments;
mod connection;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use actix::Recipient;
use async_trait::async_trait;
use btcr2_aggregation_protocol::{did::Did, identity::Identity};
use reqwest::{
    Client, StatusCode, Url,
    redirect::{Attempt, Policy},
};

pub use self::backoff::Backoff;
use self::connection::{HttpConnection, Job};
use crate::{
    runtime::{Clock, Randomness},
    span,
    supervision::{EndGuard, start},
    transport::{
        ConnectError, Delivery, Disconnected, Outbound, Transport,
        contact::Contacts,
        tls::{TlsError, Trust},
    },
};

/// How long a connection may take to come about, with TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a request may take, its answer included. Streams have no end, but must begin in that time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A stream that brings nothing for so long, not even a heartbeat, is taken for dead: a peer that vanished without a word
/// would otherwise be waited for forever.
const STALLED: Duration = Duration::from_secs(90);

/// How a client reaches its server. Clones are the same client.
#[derive(Clone)]
pub struct HttpClient {
    http: Client,
    base: Url,
    service: Option<Did>,
    clock: Clock,
    randomness: Randomness,
    backoff: Backoff,
    contacts: Contacts,
    places: Arc<Mutex<BTreeMap<Did, Arc<Mutex<Place>>>>>,
}

/// What outlives an identity's connection: if its actor fails, the next one goes on from here.
#[derive(Default)]
struct Place {
    /// What is to be sent; the first may be under way.
    queue: VecDeque<Job>,
    /// What of the inbox is safe here.
    read: ReadUpTo,
    /// The event of the inbox that was last refused for its age.
    stale_event_id: Option<String>,
}

/// Up to where the inbox was read: the server forgets what it is told to be safe here, and nothing else would bring it back
/// to a member that crashed before it was.
#[derive(Default)]
struct ReadUpTo {
    /// The last event before which all is safe.
    safe: Option<String>,
    /// The events behind it, in order: each with its number among all, and whether it is safe itself.
    behind: VecDeque<(u64, String, bool)>,
    next: u64,
}

impl ReadUpTo {
    /// The stream is opened again behind what is safe: everything else comes once more.
    fn reopen(&mut self) -> Option<String> {
        self.behind.clear();
        self.safe.clone()
    }

    /// An event was handed over: its number.
    fn began(&mut self, id: String) -> u64 {
        self.next += 1;
        self.behind.push_back((self.next, id, false));
        self.next
    }

    /// What follows from the event of that number is durable. Of a stream that was opened again since it means nothing.
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

/// A server's address, or a certificate to trust it by, that cannot be one.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{url}: {problem}")]
pub struct BaseUrlError {
    url: String,
    problem: String,
}

impl HttpClient {
    /// A client of the server at `base`, `https://example.org` or `https://example.org/agg` say. With `service`, nobody else
    /// is listened to; without, the adverts of any service there are.
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
        let (backoff, contacts, places) = (Backoff::default(), Contacts::default(), Arc::default());
        Ok(Self { http, base: parsed, service, clock, randomness, backoff, contacts, places })
    }

    /// This client, waiting between attempts as `backoff` says.
    #[must_use]
    pub fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// This client, reporting to `contacts` whether the server can be reached.
    #[must_use]
    pub fn with_contacts(mut self, contacts: Contacts) -> Self {
        self.contacts = contacts;
        self
    }

    /// This client, trusting over TLS whom `trust` says.
    ///
    /// # Errors
    /// [`BaseUrlError`] when TLS cannot be set up so.
    pub fn trusting(mut self, trust: &Trust) -> Result<Self, BaseUrlError> {
        self.http = client(trust).map_err(|problem| BaseUrlError { url: self.base.to_string(), problem })?;
        Ok(self)
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url
    }

    fn place(&self, did: &Did) -> Arc<Mutex<Place>> {
        Arc::clone(lock(&self.places).entry(did.clone()).or_default())
    }
}

fn client(trust: &Trust) -> Result<Client, String> {
    let builder = trust.http_client().map_err(|error: TlsError| error.to_string())?;
    let builder = builder.connect_timeout(CONNECT_TIMEOUT).read_timeout(STALLED);
    let built = builder.redirect(Policy::custom(redirect)).build();
    built.map_err(|error| stream::describe(&error))
}

/// How many redirects of one request are followed.
const REDIRECTS: usize = 5;

/// Follows only what repeats the request as it is, at the same origin: another one was not chosen by the user, and 301, 302 and
/// 303 turn a POST into a GET. What is not followed is an answer like others, and reported.
fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let repeats = matches!(attempt.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
    let here = attempt.previous().last().is_some_and(|from| from.origin() == attempt.url().origin());
    if repeats && here && attempt.previous().len() <= REDIRECTS { attempt.follow() } else { attempt.stop() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in these is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Transport for HttpClient {
    async fn connect(
        &self,
        identity: &Identity,
        inbox: Recipient<Delivery>,
        keeper: Recipient<Disconnected>,
        connection: u64,
    ) -> Result<Recipient<Outbound>, ConnectError> {
        let guard = EndGuard::new(move |end| keeper.do_send(Disconnected { connection, end }));
        let name = format!("http connection {} {} {connection}", self.base, identity.did());
        let connection = HttpConnection::new(self.clone(), identity.clone(), inbox, name, guard);
        Ok(start(span::connection("http", identity.did()), |_| connection).recipient())
    }
}
