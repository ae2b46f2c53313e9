//! Standing cohorts in the programs (docs/standing.md): the decisions of an operator with a chain, those of a controller, and the files in
//! which a controller's DIDs find their data.

mod controlled;
pub mod controller;
pub mod history;
pub mod operator;
mod registered;
pub mod resolver;
pub mod sidecars;
pub mod updates;
