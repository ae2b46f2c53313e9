//! The drills of docs/member.md as programs on a node: a cohort that moves to one of another size, a seat that leaves, a lost seat key, a service
//! that is gone. After each of them every DID resolves from the files of its agent alone.

mod clock;
mod exit;
mod lost_key;
mod migration;
mod vanished;
pub mod world;
