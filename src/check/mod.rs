//! The health of a DID, as its controller has to know it: whether it resolves now and will, what may still be announced, what
//! its beacons depend on, and what would be lost with the state directory.
//!
//! [`evaluate`] is pure: it judges a [`View`], which the [`Inspector`] reads from the chain, the stores and the vault. The
//! commands `check` and `watch --check` print the [`Report`].
//!
//! ```text
//!  Inspector ── resolutions, coins, vault, backups, keys ──▶ View ── evaluate ──▶ Report
//!                                                                     │ resolution   does it resolve, and with what data
//!                                                                     │ updates      what is possibly announced
//!                                                                     │ beacons      coins, keys, trust in operators
//!                                                                     │ safety       the vault, its backup, the signing key
//!                                                                     │ member       what an agent has recorded
//! ```

mod beacons;
mod changes;
mod inspect;
mod member;
mod mempool;
mod report;
mod resolution;
mod safety;
#[cfg(test)]
mod tests;
mod updates;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ::bitcoin::{Address, Txid};
use serde_json::Value;

pub use self::{
    beacons::{BeaconState, CoinState, Operator},
    changes::{Changes, CheckNotice},
    inspect::{InspectError, Inspection, Inspector},
    report::{About, Code, Finding, Report, Status},
    updates::{UpdateStanding, UpdateState},
};
pub(crate) use self::{
    changes::label,
    inspect::{read_backup, read_files, read_member},
    resolution::{hashes, who_may_have},
};
use crate::{
    bitcoin::chain::{Activity, Tip},
    member::health::Records,
    protocol::{
        did::Did,
        hash::{DocumentHash, SignalBytes},
        id::CohortId,
        key::PublicKey,
        resolution::{BeaconKind, Resolution},
        time::Timestamp,
        update::SignedUpdate,
    },
    vault::{VaultContents, backups::Backup},
};

/// What counts as healthy.
#[derive(Clone, Debug)]
pub struct Terms {
    /// How many confirmations a signal needs to count (rule R-2).
    pub min_conf: u32,
    /// How many blocks before a timelock passes to warn.
    pub warn_blocks: u32,
    /// The greatest age of a backup; `None` for any, as long as it is complete.
    pub max_backup_age: Option<Duration>,
    /// The cohorts whose updates will never be announced, according to the controller (`singleton`: those without a cohort).
    pub superseded: Vec<CohortId>,
    /// Warnings that the controller accepts: they do not count.
    pub accepted: BTreeSet<Code>,
}

/// A signal in the mempool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnconfirmedSignal {
    /// The beacon's address.
    pub address: Address,
    /// The type of the beacon.
    pub kind: BeaconKind,
    /// The transaction.
    pub txid: Txid,
    /// What it announces.
    pub bytes: SignalBytes,
}

/// What the chain and the stores show.
#[derive(Clone, Debug)]
pub struct ChainView {
    /// The tip; `None` if no address was read.
    pub tip: Option<Tip>,
    /// The resolution with [`Terms::min_conf`] confirmations.
    pub settled: Resolution,
    /// The resolution with one confirmation.
    pub young: Resolution,
    /// The updates that are at hand, by their hash.
    pub updates: BTreeMap<DocumentHash, SignedUpdate>,
    /// The coins and spends of every address that was scanned, by address; or why they are not known.
    pub coins: Result<BTreeMap<String, Activity>, String>,
    /// The signals in the mempool; empty if the coins are not known.
    pub unconfirmed: Vec<UnconfirmedSignal>,
    /// The resolution with one confirmation, as it would be if all of the mempool's signals were in the next block; `None` without
    /// such signals.
    pub next: Option<Resolution>,
    /// The failures of content stores.
    pub problems: Vec<String>,
}

/// Everything that is judged.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The identifier.
    pub did: &'a Did,
    /// The present time.
    pub now: Timestamp,
    /// What counts as healthy.
    pub terms: &'a Terms,
    /// What the chain shows, or why that is not known.
    pub chain: Result<&'a ChainView, &'a str>,
    /// The vault's entries of the DID; `None` without a state directory.
    pub vault: Option<&'a VaultContents>,
    /// What is recorded of the vault's backups; `None` if it is not in a state directory, but in an exported file.
    pub backup: Option<&'a Backup>,
    /// The keys of the identity file; `None` without one.
    pub keys: Option<&'a [PublicKey]>,
    /// What the agent has recorded whose state directory it is; `None` of another one.
    pub member: Option<&'a Records>,
}

impl View<'_> {
    /// The newest document that the chain shows, with its version and whether it is deactivated: with one confirmation, if
    /// that resolves.
    fn current(&self) -> Option<(&Value, u64, bool)> {
        let chain = self.chain.ok()?;
        let resolved = chain.young.outcome.as_ref().or(chain.settled.outcome.as_ref()).ok()?;
        Some((&resolved.document, resolved.metadata.version_id, resolved.metadata.deactivated))
    }
}

/// The health of the DID.
pub fn evaluate(view: &View<'_>) -> Report {
    let mut report = Report::new(view.did.clone(), view.now);
    match view.chain {
        Ok(chain) => {
            report.height = chain.tip.map(|tip| tip.block.height);
            resolution::evaluate(view, chain, &mut report);
            updates::evaluate(view, chain, &mut report);
            beacons::evaluate(view, chain, &mut report);
        }
        Err(problem) => report.add(
            Finding::new(Code::Chain, Status::Unknown, format!("the chain cannot be read: {problem}"))
                .advice("nothing is known of the DID until the chain answers: check --chain, and the node"),
        ),
    }
    safety::evaluate(view, &mut report);
    member::evaluate(view, &mut report);
    report.accept(&view.terms.accepted);
    report
}
