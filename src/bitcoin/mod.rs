//! The Bitcoin backend: the chains behind the port, the operator's policy, and the validation of our transactions by
//! BIP-340 and by Bitcoin Core's own consensus code. The protocol crate builds beacon transactions and decides what
//! happens to an announcement ([`announcement`]); the actors crate drives it.
//!
//! - [`chain`]: the port, and the three that implement it.
//! - [`operator`]: the service's policy with a chain; [`offline`] is one without. [`notice`]: what subscribers receive of
//!   announcements.
//! - [`fees`] and [`change`]: what a transaction pays, and how a stuck one is bumped.
//! - [`payout`]: the destination of change.
//! - [`deposit`]: funding an address from the operator's own wallet, as a PSBT.
//! - [`ledger`]: the coins of an address from block to block.
//! - [`recovery`]: recovering coins if a cohort did not announce.
//! - [`sighting`]: where an announcement is, in a block, in the mempool, or replaced.
//! - [`verify`]: two independent validations of a signed transaction.

pub mod chain;
pub mod deposit;
pub mod ledger;
pub mod offline;
pub mod operator;
pub mod payout;
pub mod recovery;
pub mod sighting;
pub mod verify;

pub use crate::{
    actors::announcement::{claims, notice},
    protocol::announcement::{self, change, fees},
};
