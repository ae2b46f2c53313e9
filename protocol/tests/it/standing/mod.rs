//! Standing cohorts: what their peers must agree on, byte for byte, and what a seat refuses.

mod board;
pub mod cohort;
mod hostile;
mod hostile_cohorts;
mod lifecycle;
mod output;
mod registration;
pub mod seat_node;
pub mod service_node;
mod simulation;
mod transaction;
mod vectors;
pub mod world;
