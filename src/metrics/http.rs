//! `GET /metrics`, `GET /healthz` and `GET /readyz`: on an address of their own, for they tell an operator what strangers
//! need not know.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
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

/// Whether the service takes requests. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// It does, or does not any more.
    pub fn set(&self, is_ready: bool) {
        self.0.store(is_ready, Ordering::Relaxed);
    }
}

/// The routes, for a host that mounts them itself.
pub fn configure(metrics: Metrics, readiness: Readiness) -> impl FnOnce(&mut ServiceConfig) {
    move |config| {
        config
            .app_data(Data::new(metrics))
            .app_data(Data::new(readiness))
            .route("/metrics", web::get().to(text))
            .route("/healthz", web::get().to(health))
            .route("/readyz", web::get().to(ready));
    }
}

async fn text(metrics: Data<Metrics>) -> HttpResponse {
    HttpResponse::Ok().content_type(TEXT).body(metrics.to_text())
}

/// The process lives: whoever can answer does.
async fn health() -> &'static str {
    "ok\n"
}

/// All cohorts of an earlier life are back, and the service has not begun to stop.
async fn ready(readiness: Data<Readiness>) -> HttpResponse {
    if readiness.0.load(Ordering::Relaxed) {
        HttpResponse::Ok().body("ready\n")
    } else {
        HttpResponse::ServiceUnavailable().body("not ready\n")
    }
}

/// A web server that answers until this is dropped, or stopped.
pub struct Serving(ServerHandle);

impl Serving {
    /// Waits until it answers nobody any more.
    pub async fn stop(self) {
        self.0.stop(true).await;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Told at once; what is not awaited is the end.
        drop(self.0.stop(false));
    }
}

/// Serves the routes on `address`, for as long as what is returned is kept. And its URL.
///
/// # Errors
/// [`ProgramError::Io`] when the address cannot be listened on.
pub fn serve(address: &str, metrics: Metrics, readiness: Readiness) -> Result<(Serving, String), ProgramError> {
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
