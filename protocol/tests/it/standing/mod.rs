//! Standing cohorts: what their peers must agree on, byte for byte, and what a seat refuses.

mod board;
mod cohort;
mod output;
mod registration;
mod transaction;
mod vectors;
