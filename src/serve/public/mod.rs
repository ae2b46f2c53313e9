//! What a service shows to everyone: the directory of its open cohorts, standing cohorts and announcements (docs/http.md, "The
//! directory").
//!
//! ```text
//!  adverts of the hub ──▶ directory ──▶ routes: GET /v1/directory
//!  cohorts, history  ──▶     │ joining: the commands     └─▶ page: the same for people
//!  announced: what was final ┘
//! ```
//!
//! It is read from the service at most once a second, whatever is asked, and only when it is asked for.

pub(crate) mod announced;
mod directory;
mod joining;
mod page;
mod routes;

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use actix_web::web::ServiceConfig;

pub use self::page::PageSettings;
pub(crate) use self::{
    announced::Ledger,
    directory::{About, Origins},
};
use self::{directory::Directory, routes::Document};
use super::web::Site;
use crate::actors::transport::{
    connections::{Connections, Proxies},
    http::{self, HttpServer},
};

/// How long a directory is shown before it is read again.
const FRESH: Duration = Duration::from_secs(1);

/// How long reading it may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A directory as it is served.
pub(crate) struct Current {
    directory: Directory,
    document: Document,
    /// The page, once it was asked for; none if it has failed.
    page: OnceLock<Option<Document>>,
    at: Instant,
}

/// What is shown to everyone. Clones share it.
#[derive(Clone)]
pub(crate) struct Public {
    server: HttpServer,
    /// The page for people, if there is one.
    page: Option<Arc<PageSettings>>,
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    about: OnceLock<About>,
    origins: OnceLock<Origins>,
    current: Mutex<Option<Arc<Current>>>,
    /// One request reads; the others wait, or get what was read before.
    reading: tokio::sync::Mutex<()>,
}

impl Public {
    /// Shown beside the routes of `server`, as soon as there are [origins](Self::open).
    pub(crate) fn new(server: HttpServer, page: Option<PageSettings>) -> Self {
        Self { server, page: page.map(Arc::new), inner: Arc::default() }
    }

    /// Sets what the service is; only the first call has an effect.
    pub(crate) fn introduce(&self, about: About) {
        let _ = self.inner.about.set(about);
    }

    /// Sets where the directory comes from; only the first call has an effect.
    pub(crate) fn open(&self, origins: Origins) {
        // What is served stays the same while it is served.
        let _ = self.inner.origins.set(origins);
    }

    fn origins(&self) -> Option<&Origins> {
        self.inner.origins.get()
    }

    fn last(&self) -> MutexGuard<'_, Option<Arc<Current>>> {
        // Each change is one assignment.
        self.inner.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh(&self) -> Option<Arc<Current>> {
        self.last().clone().filter(|current| current.at.elapsed() < FRESH)
    }

    /// The directory of about now; `None` if it cannot be read.
    pub(crate) async fn current(&self) -> Option<Arc<Current>> {
        if let Some(fresh) = self.fresh() {
            return Some(fresh);
        }
        let _turn = match self.inner.reading.try_lock() {
            Ok(turn) => turn,
            Err(_) => {
                let last = self.last().clone();
                if last.is_some() {
                    return last;
                }
                self.inner.reading.lock().await
            }
        };
        // The request before this one may have read it.
        if let Some(fresh) = self.fresh() {
            return Some(fresh);
        }
        let reading = self.origins()?.directory(self.inner.about.get()?, &self.server);
        let directory = tokio::time::timeout(PATIENCE, reading).await.ok()?;
        let document = Document::new(serde_json::to_vec(&directory).ok()?);
        let current = Arc::new(Current { directory, document, page: OnceLock::new(), at: Instant::now() });
        *self.last() = Some(Arc::clone(&current));
        Some(current)
    }
}

/// The routes of the protocol, and what is shown to everyone, if something is.
#[derive(Clone)]
pub(crate) struct PublicSite {
    pub(crate) server: HttpServer,
    pub(crate) public: Option<Public>,
}

impl Site for PublicSite {
    fn connections(&self) -> &Connections {
        self.server.connections()
    }

    fn proxies(&self) -> &Proxies {
        &self.server.config().proxies
    }

    fn mount(&self, app: &mut ServiceConfig) {
        if let Some(public) = &self.public {
            routes::mount(app, public);
        }
        http::configure(&self.server)(app);
        app.default_service(http::not_found(&self.server));
    }
}
