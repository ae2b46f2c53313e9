//! Standing cohorts as actors: formation, registration, announcements, absence, restarts, over each transport.

mod admission;
mod boards;
mod carriers;
mod chain;
mod cohorts;
mod costs;
mod crashes;
mod filter;
mod history;
mod holder;
mod hostile;
mod migration;
mod mortal;
mod peers;
mod restarts;
mod scene;
mod world;
