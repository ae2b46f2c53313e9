//! `GET /metrics`, `GET /healthz` and `GET /readyz`, on a separate address: they show details of the operation that are
//! not public.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use actix_web::{
    App, HttpResponse, HttpServer as WebServer,
    dev::ServerHandle,
    web::{self, Data, ServiceConfig},
};

use super::Metrics;
use crate::error::ProgramError;

/// The content type of the text format.
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether the service accepts requests, and can work. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    takes_requests: bool,
    problems: BTreeMap<&'static str, String>,
}

impl Readiness {
    /// Sets whether the service accepts requests.
    pub fn set(&self, takes_requests: bool) {
        self.state().takes_requests = takes_requests;
    }

    /// Sets the present problem of a part, or `None`.
    pub fn report(&self, part: &'static str, problem: Option<String>) {
        let mut state = self.state();
        match problem {
            Some(problem) => drop(state.problems.insert(part, problem)),
            None => drop(state.problems.remove(part)),
        }
    }

    /// The present problems, each with its part.
    pub fn problems(&self) -> Vec<String> {
        self.state().problems.iter().map(|(part, problem)| format!("{part}: {problem}")).collect()
    }

    /// Whether `/readyz` answers that it is ready.
    pub fn is_ready(&self) -> bool {
        let state = self.state();
        state.takes_requests && state.problems.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `/metrics` shows.
pub trait Exposition: Clone + Send + 'static {
    /// The current Prometheus text.
    fn to_text(&self) -> String;
}

impl Exposition for Metrics {
    fn to_text(&self) -> String {
        Self::to_text(self)
    }
}

/// The routes, for a host that mounts them itself.
pub fn configure<M: Exposition>(metrics: M, readiness: Readiness) -> impl FnOnce(&mut ServiceConfig) {
    move |config| {
        config
            .app_data(Data::new(metrics))
            .app_data(Data::new(readiness))
            .route("/metrics", web::get().to(text::<M>))
            .route("/healthz", web::get().to(health))
            .route("/readyz", web::get().to(ready));
    }
}

async fn text<M: Exposition>(metrics: Data<M>) -> HttpResponse {
    HttpResponse::Ok().content_type(TEXT).body(metrics.to_text())
}

/// The process runs: an answer is the proof.
async fn health() -> &'static str {
    "ok\n"
}

/// The program has started (all cohorts of the previous run are restored), is not stopping, and nothing that it needs has a problem.
async fn ready(readiness: Data<Readiness>) -> HttpResponse {
    if readiness.is_ready() {
        return HttpResponse::Ok().body("ready\n");
    }
    let problems: String = readiness.problems().iter().map(|problem| format!("{problem}\n")).collect();
    HttpResponse::ServiceUnavailable().body(format!("not ready\n{problems}"))
}

/// A running web server. It stops when this is dropped or stopped.
pub struct Serving(ServerHandle);

impl Serving {
    /// Waits until the server has stopped.
    pub async fn stop(self) {
        self.0.stop(true).await;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // The server stops at once; only its end is not awaited.
        drop(self.0.stop(false));
    }
}

/// Serves the routes on `address` until the returned guard is dropped. Also returns the URL.
///
/// # Errors
/// [`ProgramError::Io`] when the address cannot be listened on.
pub fn serve<M: Exposition>(
    address: &str,
    metrics: M,
    readiness: Readiness,
) -> Result<(Serving, String), ProgramError> {
    let app = move || App::new().configure(configure(metrics.clone(), readiness.clone()));
    let web = WebServer::new(app)
        .workers(1)
        .disable_signals()
        .shutdown_timeout(1)
        .bind(address)
        .map_err(|error| ProgramError::Io { what: format!("listening on {address}"), error })?;
    let bound = *web.addrs().first().ok_or_else(|| ProgramError::Internal("no address is bound".to_owned()))?;
    let running = web.run();
    let handle = running.handle();
    actix_rt::spawn(running);
    Ok((Serving(handle), format!("http://{bound}")))
}
