//! The Bitcoin backend: the chain of a cohort's beacon, the way of a signal into it, and the validation of our
//! transactions by BIP-340 and by Bitcoin Core's own consensus code. The protocol crate builds beacon transactions.
//!
//! - [`chain`]: the port, and the three that implement it.
//! - [`announcement`]: a cohort's announcement from the first deposit to a final signal, as a state machine;
//!   [`watch`] drives it.
//! - [`claims`]: the coins and transactions of the announcements of one address.
//! - [`operator`]: the service's policy with a chain; [`offline`] is one without. [`notice`]: what subscribers receive.
//! - [`fees`] and [`change`]: what a transaction pays, and how a stuck one is bumped.
//! - [`payout`]: the destination of change.
//! - [`deposit`]: funding an address from the operator's own wallet, as a PSBT.
//! - [`ledger`]: the coins of an address from block to block.
//! - [`recovery`]: recovering coins if a cohort did not announce.
//! - [`verify`]: two independent validations of a signed transaction.

pub mod announcement;
pub mod chain;
pub mod change;
pub mod claims;
pub mod deposit;
pub mod fees;
pub mod ledger;
mod look;
pub mod notice;
pub mod offline;
pub mod operator;
pub mod payout;
pub mod recovery;
pub mod verify;
pub mod watch;
