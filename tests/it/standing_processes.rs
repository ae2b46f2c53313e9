//! Standing cohorts as programs on a node: `serve --standing` and `join --standing`, whose DIDs resolve after every announcement from what their
//! seats have written alone.

mod admission;
mod costs;
mod operator;
pub mod resolving;
mod restored;
mod transfer;
mod world;
mod years;
