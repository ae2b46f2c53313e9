//! Standing cohorts as actors: formation, registration, announcements, absence, restarts, over each transport.

mod admission;
mod boards;
mod carriers;
mod cohorts;
mod history;
mod peers;
mod restarts;
mod world;
