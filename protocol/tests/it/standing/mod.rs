//! Standing cohorts: what their peers must agree on, byte for byte, and what a seat refuses.

mod backups;
mod board;
pub mod cohort;
mod cohort_states;
mod hostile;
mod hostile_cohorts;
mod hostile_never;
mod lifecycle;
mod messages;
mod migration;
mod migration_simulation;
mod migration_vectors;
mod migration_world;
mod number_states;
mod output;
mod registration;
mod replacement;
pub mod seat_node;
mod seat_states;
pub mod service_node;
mod simulation;
mod terms;
mod transaction;
mod values;
mod vectors;
pub mod world;
