//! Exhaustive exploration of the real machines: every order of packets, and every placement of losses, repeats, crashes, refusals,
//! absences and deadlines, as far as a configuration allows each of them.
//!
//! The explorer is our own and not `stateright`: what we want to know of every state is that each run from it ends, which its
//! `eventually` does not decide where runs meet again; and its states are hashed whole, where ours share what a process does
//! with an input, and with it the signatures.

mod explorer;
mod process;
mod signing;
mod standing;
mod state;
mod watch;

use self::process::{Broken, Explored};

/// Where a host has its secret nonces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NonceStore {
    /// In memory, each for one use.
    Memory,
    /// In a file, from which it does not remove them: wrong.
    File,
}

/// Whether the long form is wanted: `EXPLORE=long`.
fn is_long() -> bool {
    std::env::var_os("EXPLORE").is_some_and(|form| form == "long")
}

/// Explores, prints how much there was, and fails on a violation, or if there was less than a real exploration has.
fn report(name: &str, at_least: usize, explore: impl FnOnce() -> Result<Explored, Broken>) {
    let explored = explore().unwrap_or_else(|broken| panic!("{name}: {broken:#?}"));
    let Explored { states, transitions, locals, ends } = explored;
    println!("{name}: {states} states, {transitions} transitions, {locals} of single processes");
    for (end, times) in ends {
        println!("    {times} x {end}");
    }
    assert!(states >= at_least, "{name}: only {states} states");
}
