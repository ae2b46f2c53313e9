//! HTTP (wire format, section 5): a scope that mounts into any actix-web `App`, and the client's connection.
//!
//! On the server's side [`server::HttpServer`] is the transport of the identities of the server: `gate` checks
//! requests, [`connections`](super::connections) limits connections, `seats` limits the requests that wait for an
//! opt-in, `hub` owns the adverts and one `inbox` actor for each recipient, `routes` translates, and
//! [`history`] serves what standing cohorts have announced; [`store`] and
//! [`waiting`] have the state that must be remembered, also over a restart if the host stores it. On the client's side
//! [`client::HttpClient`] is the transport of an identity that talks to one server.

mod adverts;
pub mod client;
pub mod config;
pub mod cors;
mod directory;
mod gate;
pub mod history;
mod hub;
mod inbox;
mod refusal;
mod report;
mod routes;
mod seats;
pub mod server;
pub mod store;
mod stream;
pub mod waiting;

pub use self::{
    client::HttpClient,
    config::{Cors, HttpConfig},
    refusal::Refusal,
    report::{HttpReport, Limit},
    routes::{admit, configure, not_found, refuse},
    server::HttpServer,
};
