//! Resolution (rules R and C of the edition of October 2026), through the public machine alone.

mod cohorts;
mod discovery;
mod errors;
mod history;
mod hostile;
mod options;
mod properties;
mod signal_data;
mod suite;
mod traps;
mod vectors;
mod versions;
mod world;
