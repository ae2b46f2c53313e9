//! The control API of `serve`: what its operator sees and does over HTTP while it runs.
//!
//! ```text
//!  socket, address ─▶ gate ─▶ routes ─▶ resources ─▶ audit ─▶ handles of the service, orders, stores
//!  local, site        host,   role      one file     before   actors/src/handle, serve/orders,
//!                     token             of each      a change templates, settings, tokens
//!                                                      └──▶ feed ─▶ sse: events, resumed by their ids
//! ```
//!
//! No decision of the protocol is made here: calls translate to the handles of the actors, and their refusals to answers. It is apart
//! from the routes that members use: another socket, another server. Without a token only the owner of the state directory is admitted,
//! over a UNIX socket in it. `openapi.json` describes every route. Beside the API the same listeners serve `pages`, if there are some.

mod answer;
mod audit;
mod call;
mod failures;
mod feed;
mod follow;
mod gate;
mod local;
mod pages;
mod resources;
mod role;
mod routes;
mod settings;
mod shared;
mod site;
mod sse;
mod templates;
mod timeline;
mod tokens;
mod totp;
pub(crate) mod views;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub use self::role::Role;
pub(crate) use self::{
    answer::Refusal,
    audit::{AuditLog, Change, MOST_ENTRIES},
    gate::{Login, LoginRefusal},
    pages::{Pages, Visit, call},
    role::Who,
    routes::BASE,
    settings::Settings,
    shared::{About, Parts, Shared},
    templates::TemplateBook,
    tokens::{TokenBook, check_label},
    totp::TotpSecret,
};
use self::{feed::Feed, gate::Gate, site::ControlSite, sse::Streams};
use crate::{
    actors::{
        standing::notice::StandingNotice,
        transport::connections::{ConnectionLimits, Connections},
    },
    error::ProgramError,
    events::Printer,
    html::session::{SessionLimits, Sessions},
    serve::{
        terms::TermsReader,
        tls::Loaded,
        web::{self, Opening, Running},
    },
};

/// The socket in a state directory.
pub(crate) const SOCKET: &str = "control.sock";

/// Where the API is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// On the socket in the state directory alone.
    State,
    /// On a socket at this path.
    Socket(PathBuf),
    /// At this address, and on the socket in the state directory.
    Address(String),
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Self::Socket(path.into())),
            None if text.is_empty() => {
                Err("an address, e.g. 127.0.0.1:8081, or the path of a socket expected".to_owned())
            }
            None if text == "socket" => Ok(Self::State),
            None if text.contains('/') => Ok(Self::Socket(text.into())),
            None => Ok(Self::Address(text.to_owned())),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Listen {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <String as serde::Deserialize>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The configuration of the API.
#[derive(Clone)]
pub struct ControlConfig {
    /// Where it is served.
    pub listen: Listen,
    /// Whether an address that other machines reach is allowed; with TLS only.
    pub remote: bool,
    /// The names by which it may be called, beside `localhost` and addresses.
    pub hosts: Vec<String>,
    /// Reads templates as the command line is read.
    pub reader: Arc<dyn TermsReader>,
    /// How long a session of the console may be idle; `None` if there is no console.
    pub console: Option<Duration>,
}

impl ControlConfig {
    /// The address to serve at, and whether by TLS.
    ///
    /// # Errors
    /// [`ProgramError::Usage`] if other machines reach it, and that is not allowed, or not by TLS.
    pub(crate) fn address(&self, has_tls: bool) -> Result<Option<(&str, bool)>, ProgramError> {
        let Listen::Address(address) = &self.listen else { return Ok(None) };
        let io_error = |error| ProgramError::Io { what: format!("--control {address}"), error };
        if web::is_loopback(address).map_err(io_error)? {
            return Ok(Some((address, false)));
        }
        if !self.remote {
            return Err(ProgramError::Usage(format!(
                "--control {address}: other machines reach this address. Use a loopback address, e.g. 127.0.0.1:8081, and a tunnel \
                 (ssh -L); or allow it with --control-remote, --tls-cert and --tls-key"
            )));
        }
        if !has_tls {
            return Err(ProgramError::Usage(format!(
                "--control {address}: tokens would be readable on the network: --tls-cert and --tls-key are needed"
            )));
        }
        Ok(Some((address, true)))
    }
}

/// The API of a service, which is about to be opened.
pub(crate) struct Control {
    site: ControlSite,
    socket: PathBuf,
    address: Option<(String, Opening)>,
}

/// The API of a service that runs.
pub(crate) struct Serving {
    shared: Arc<Shared>,
    #[cfg(unix)]
    local: local::Local,
    web: Option<Running>,
}

/// The stores of the API in a state directory.
pub(crate) struct Stores {
    pub(crate) directory: PathBuf,
    pub(crate) templates: TemplateBook,
    pub(crate) settings: Settings,
}

impl Control {
    /// Binds the address, if there is one. Nothing is served before [`open`](Self::open). `pages` are served if there is a console.
    pub(crate) fn bind(
        config: &ControlConfig,
        tls: Option<&Loaded>,
        stores: Stores,
        parts: Parts,
        pages: Arc<dyn Pages>,
    ) -> Result<Self, ProgramError> {
        let Stores { directory, templates, settings } = stores;
        let state = |error: crate::actors::shared_table::SharedTableError| ProgramError::State(error.to_string());
        let tokens = TokenBook::open(&directory).map_err(state)?;
        let audit = AuditLog::open(&directory);
        audit.page(None, 1).map_err(state)?;
        let clock = parts.clock;
        let by_tls = config.address(tls.is_some())?.is_some_and(|(_, by_tls)| by_tls);
        let did = parts.service.did().to_string();
        let sessions = config.console.map(|idle| {
            Sessions::new("btcr2-console", &did, by_tls, SessionLimits { idle, ..SessionLimits::default() })
        });
        let shared = Arc::new(Shared {
            parts,
            gate: Gate::new(tokens.clone(), config.hosts.clone(), sessions.clone()),
            sessions,
            tokens,
            audit,
            templates,
            settings,
            feed: Feed::new(clock),
            streams: Streams::default(),
            connections: Connections::new(ConnectionLimits::of_files(1024)),
            stopping: AtomicBool::new(false),
            changing: tokio::sync::Mutex::default(),
        });
        let pages = shared.sessions.is_some().then_some(pages);
        let site = ControlSite { shared: Arc::clone(&shared), pages };
        let address = match config.address(tls.is_some())? {
            Some((address, by_tls)) => {
                let (bound, open) = web::bind(tls.filter(|_| by_tls), address, &site)?;
                let scheme = if by_tls { "https" } else { "http" };
                Some((format!("{scheme}://{bound}"), open))
            }
            None => None,
        };
        let socket = match &config.listen {
            Listen::Socket(path) => path.clone(),
            Listen::State | Listen::Address(_) => directory.join(SOCKET),
        };
        Ok(Self { site, socket, address })
    }

    /// Serves, and follows the events of the service from now on.
    pub(crate) fn open(
        self,
        standing: tokio::sync::broadcast::Receiver<Arc<StandingNotice>>,
        printer: &Printer,
    ) -> Result<Serving, ProgramError> {
        let Self { site, socket, address } = self;
        let (shared, has_console) = (Arc::clone(&site.shared), site.pages.is_some());
        follow::all(&shared, standing);
        #[cfg(unix)]
        let local = local::Local::open(&socket, &site)?;
        let (url, web) = match address {
            Some((url, open)) => (Some(url), Some(open())),
            None => (None, None),
        };
        let console = url.as_ref().filter(|_| has_console).map(|url| format!("{url}/console/"));
        printer.controlled(cfg!(unix).then_some(socket.as_path()), url.as_deref(), console.as_deref());
        Ok(Serving {
            shared,
            #[cfg(unix)]
            local,
            web,
        })
    }
}

impl Serving {
    /// Refuses new calls, ends the streams, then the connections.
    pub(crate) async fn stop(self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.shared.feed.close();
        #[cfg(unix)]
        self.local.stop().await;
        if let Some(web) = self.web {
            web.stop().await;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;
    use crate::serve::terms::{Problem, Terms};

    struct NoTerms;

    impl TermsReader for NoTerms {
        fn read(&self, _: &Map<String, Value>) -> Result<Terms, Vec<Problem>> {
            Err(Vec::new())
        }
    }

    #[test]
    fn other_machines_reach_it_only_if_allowed_and_by_tls() {
        let config = |listen: &str, remote| ControlConfig {
            listen: listen.parse().unwrap(),
            remote,
            hosts: Vec::new(),
            reader: Arc::new(NoTerms),
            console: None,
        };
        for loopback in ["127.0.0.1:0", "[::1]:8081", "127.8.9.1:1"] {
            assert_eq!(config(loopback, false).address(true).unwrap(), Some((loopback, false)));
        }
        for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:8081"] {
            let refused = |remote, has_tls| config(open, remote).address(has_tls).unwrap_err().to_string();
            assert!(refused(false, true).contains("--control-remote"), "{open}");
            assert!(refused(true, false).contains("--tls-cert"), "{open}");
            assert_eq!(config(open, true).address(true).unwrap(), Some((open, true)));
        }
        let of = |text: &str| text.parse::<Listen>();
        assert_eq!(of("socket"), Ok(Listen::State));
        assert_eq!(of("/run/x.sock"), Ok(Listen::Socket("/run/x.sock".into())));
        assert_eq!(of("unix:x.sock"), Ok(Listen::Socket("x.sock".into())));
        assert!(of("").is_err());
        assert_eq!(config("socket", false).address(false).unwrap(), None);
    }
}
