//! Bitcoin as the network sees it: the chain that a cohort's beacon lives on, and whether a transaction of ours is valid by
//! BIP-340 and by Bitcoin Core's own consensus code. Building beacon transactions is the protocol crate's part.
//!
//! - [`chain`]: the port, and the three that implement it.
//! - [`fees`]: what a transaction pays.
//! - [`offline`] and [`verify`]: an operator without a chain, and two opinions on a signed transaction.

pub mod chain;
pub mod fees;
pub mod offline;
pub mod verify;
