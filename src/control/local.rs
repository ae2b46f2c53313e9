//! The API over the socket in the state directory, for the directory's owner alone.
#![cfg(unix)]

use std::{
    io,
    path::{Path, PathBuf},
};

use actix_http::{HttpService, Protocol, error::DispatchError};
use actix_server::{Server, ServerHandle};
use actix_service::{IntoServiceFactory, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::{App, dev::AppConfig};
use tokio::net::UnixStream;

use super::site::{ControlSite, Peer};
use crate::{error::ProgramError, serve::web::Site, socket};

/// The most connections at once.
const MOST_CONNECTIONS: usize = 64;

/// The open socket. It is removed when this is dropped.
pub(super) struct Local {
    handle: ServerHandle,
    path: PathBuf,
}

impl Local {
    /// Serves the API on a socket at `path`.
    pub(super) fn open(path: &Path, site: &ControlSite) -> Result<Self, ProgramError> {
        let io_error = |error| ProgramError::Io { what: format!("the control socket {}", path.display()), error };
        let (listener, owner) = socket::listen(path).map_err(io_error)?;
        let site = site.clone();
        let server = Server::build()
            .workers(1)
            .max_concurrent_connections(MOST_CONNECTIONS)
            .shutdown_timeout(1)
            .disable_signals()
            .listen_uds("control", listener, move || pipeline(&site, owner))
            .map_err(io_error)?
            .run();
        let handle = server.handle();
        actix_rt::spawn(server);
        Ok(Self { handle, path: path.to_owned() })
    }

    /// Refuses new connections, then ends the others.
    pub(super) async fn stop(self) {
        self.handle.stop(true).await;
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn pipeline(
    site: &ControlSite,
    owner: u32,
) -> impl ServiceFactory<UnixStream, Config = (), Response = (), Error = DispatchError, InitError = ()> + use<> {
    let mounted = site.clone();
    let app = App::new().configure(move |app| mounted.mount(app));
    let web = HttpService::build()
        .on_connect_ext(|socket: &UnixStream, data: &mut actix_http::Extensions| {
            if let Ok(peer) = socket.peer_cred() {
                data.insert(Peer(peer.uid()));
            }
        })
        .finish(map_config(
            IntoServiceFactory::into_factory(app)
                .map_err(|error: actix_web::Error| error.as_response_error().error_response()),
            |()| AppConfig::default(),
        ));
    fn_service(move |stream: UnixStream| async move {
        match socket::refusal(stream.peer_cred(), owner) {
            None => Ok((stream, Protocol::Http1, None)),
            Some(problem) => {
                tracing::warn!(problem, "a connection to the control socket is refused");
                Err(DispatchError::Io(io::Error::new(io::ErrorKind::PermissionDenied, problem)))
            }
        }
    })
    .and_then(web)
}
