//! The member's page: pages for a browser on the same machine, beside the control socket and by means of its requests.
//!
//! ```text
//!  browser ─▶ site: Host, session, form's token ─▶ pages ─▶ calls ─▶ the answers of the control socket
//!               secrets: one logs in with an address that works once
//! ```
//!
//! The web server has threads of its own, and the agent has one: requests travel through a channel. Nothing can be done here that the socket
//! cannot do. All of it works without a script.

mod calls;
mod pages;
mod secrets;
mod site;

use std::{io::IsTerminal, rc::Rc, sync::Arc};

use zeroize::Zeroizing;

use self::{secrets::Secrets, site::MemberSite};
use super::{config::MemberConfig, control::server::Backend, notice::MemberNotice, report::Reporter};
use crate::{
    actors::{
        runtime::Clock,
        transport::connections::{ConnectionLimits, Connections},
    },
    error::ProgramError,
    html::session::{SessionLimits, Sessions},
    serve::web::{self, Opening, Running},
};

/// How browsers log in.
#[derive(Clone)]
pub(super) struct Access {
    url: String,
    secrets: Secrets,
}

impl Access {
    /// An address by which one logs in once.
    pub(super) fn address(&self) -> Zeroizing<String> {
        // Behind the #: a browser does not send it, so that no log has it.
        Zeroizing::new(format!("{}/login#secret={}", self.url, *self.secrets.make(Clock::system().now())))
    }
}

/// The page, which is about to be opened.
pub(super) struct Bound {
    access: Access,
    opening: Opening,
    waiting: calls::Waiting,
}

/// The page, which is served.
pub(super) struct Serving {
    web: Running,
}

/// Whether the address may be bound.
///
/// # Errors
/// [`ProgramError::Usage`] if other machines reach it.
pub(super) fn check(address: &str) -> Result<(), ProgramError> {
    let what = || format!("--console {address}");
    if !web::is_loopback(address).map_err(|error| ProgramError::Io { what: what(), error })? {
        return Err(ProgramError::Usage(format!(
            "{}: other machines reach this address. Use a loopback address, e.g. 127.0.0.1:8087, and a tunnel (ssh -L)",
            what()
        )));
    }
    Ok(())
}

/// Binds the address.
///
/// # Errors
/// Those of [`check`], and that it cannot be bound.
pub(super) fn bind(address: &str, config: &MemberConfig) -> Result<Bound, ProgramError> {
    check(address)?;
    let secrets = Secrets::default();
    let (calls, waiting) = calls::channel();
    let site = MemberSite(Arc::new(site::Shared {
        calls,
        // The state directory distinguishes agents on one host: browsers send cookies to all ports.
        sessions: Sessions::new("member", &config.state.display().to_string(), false, SessionLimits::default()),
        secrets: secrets.clone(),
        connections: Connections::new(ConnectionLimits::of_files(256)),
        clock: Clock::system(),
        network: config.network,
    }));
    let (bound, opening) = web::bind(None, address, &site)?;
    let access = Access { url: format!("http://{bound}"), secrets };
    Ok(Bound { access, opening, waiting })
}

impl Bound {
    /// How browsers log in.
    pub(super) fn access(&self) -> Access {
        self.access.clone()
    }

    /// Serves, and reports where; the future answers requests.
    pub(super) fn open(
        self,
        backend: Rc<dyn Backend>,
        reporter: &Reporter,
    ) -> (Serving, impl Future<Output = ()> + use<>) {
        reporter.notice(&MemberNotice::ConsoleOpened { url: self.access.url.clone() });
        // The secret is for who has started the agent, and for no log: a terminal is neither a file nor a journal.
        if std::io::stderr().is_terminal() {
            err!("log in once, within a quarter of an hour: {}", *self.access.address());
        }
        (Serving { web: (self.opening)() }, self.waiting.answer(backend))
    }
}

impl Serving {
    /// Refuses new requests, then ends the connections.
    pub(super) async fn stop(self) {
        self.web.stop().await;
    }
}
