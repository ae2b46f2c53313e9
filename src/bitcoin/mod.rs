//! Bitcoin as the network sees it: the chain that a cohort's beacon lives on, the way of a signal into it, and whether a
//! transaction of ours is valid by BIP-340 and by Bitcoin Core's own consensus code. Building beacon transactions is the
//! protocol crate's part.
//!
//! - [`chain`]: the port, and the three that implement it.
//! - [`announcement`]: a cohort's way from the first deposit to a final signal, as a machine; [`watch`] drives it.
//! - [`claims`]: what the announcements of one address leave to each other.
//! - [`operator`]: the service's policy with a chain behind it; [`offline`] is one without. [`notice`]: what subscribers hear.
//! - [`fees`] and [`change`]: what a transaction pays, and how one that is stuck is paid for.
//! - [`payout`]: where change goes.
//! - [`deposit`]: funding an address from the operator's own wallet, as a PSBT.
//! - [`ledger`]: the coins of an address from block to block.
//! - [`recovery`]: taking coins back when a cohort did not announce.
//! - [`verify`]: two opinions on a signed transaction.

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
