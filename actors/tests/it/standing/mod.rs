//! Standing cohorts as actors: formation, registration, announcements, absence, restarts, over each transport.

mod boards;
mod carriers;
mod cohorts;
mod restarts;
mod world;
