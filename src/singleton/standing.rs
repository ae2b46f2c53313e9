//! Whether resolvers would find an update, and apply it.

use std::sync::Arc;

use crate::{
    controller::{Current, current::Applied},
    protocol::{resolution::BeaconSignal, update::SignedUpdate},
};

/// What there is to do for an update.
#[derive(Clone, Debug)]
pub enum Standing {
    /// It is the next one: it is to be announced.
    Next,
    /// It is announced, in a block.
    Announced {
        /// The signal.
        signal: Arc<BeaconSignal>,
        /// Whether it has the confirmations with which signals count.
        counts: bool,
    },
}

/// Why an update must not be announced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNext {
    /// Another update of its version is announced, or the one before it does not count yet.
    #[error("{0}")]
    Refused(String),
    /// It is too far ahead.
    #[error(
        "it leads to version {target}, and the current version is {version}: resolvers apply version {} next, and a gap is an error \
         for them (LATE_PUBLISHING, rule R-9)", version + 1
    )]
    Ahead {
        /// The version to which it leads.
        target: u64,
        /// The current version.
        version: u64,
    },
    /// Another update of its version may be in a block already. It is the next one otherwise.
    #[error("{0}")]
    Unsettled(String),
    /// It leads to no version.
    #[error("it has no targetVersionId")]
    NoVersion,
}

/// Whether `update` is the one after the `current` document. `min_conf` is the number of confirmations with which signals
/// count.
///
/// # Errors
/// [`NotNext`].
pub fn standing(current: &Current, update: &SignedUpdate, min_conf: u32) -> Result<Standing, NotNext> {
    let target = update.target_version().ok_or(NotNext::NoVersion)?;
    let same = |applied: &&Applied| applied.hash == *update.hash();
    if let Some(applied) = current.applied.iter().find(same) {
        return Ok(Standing::Announced { signal: Arc::clone(&applied.signal), counts: true });
    }
    let young = current.young.iter().flat_map(|young| &young.applied);
    if let Some(applied) = young.clone().find(same) {
        return Ok(Standing::Announced { signal: Arc::clone(&applied.signal), counts: false });
    }
    let place = |applied: &Applied| {
        let BeaconSignal { txid, beacon, .. } = &*applied.signal;
        format!(
            "version {target} is announced already by another update, {} (transaction {txid}, {beacon})",
            applied.hash
        )
    };
    let ends = "two different updates of one version end a DID (LATE_PUBLISHING, rule R-8)";
    if let Some(other) = current.applied.iter().find(|applied| applied.version == target) {
        return Err(NotNext::Refused(format!("{}; {ends}", place(other))));
    }
    if let Some(other) = young.clone().find(|applied| applied.version == target) {
        let (has, text) = (other.signal.block.confirmations, place(other));
        return Err(NotNext::Refused(format!("{text}, with {has} of {min_conf} confirmations; {ends}")));
    }
    if target <= current.version {
        let version = current.version;
        return Err(NotNext::Refused(format!(
            "it leads to version {target}, and the current version is {version}"
        )));
    }
    match &current.young {
        Some(young) if target == young.version + 1 => Err(NotNext::Refused(format!(
            "the version before it, {}, is in a block with {} of {min_conf} confirmations: wait, or start from it (--min-conf 1)",
            young.version, young.confirmations
        ))),
        _ if target > current.version + 1 => Err(NotNext::Ahead { target, version: current.version }),
        _ => match &current.unsettled {
            Some(reason) => Err(NotNext::Unsettled(reason.clone())),
            None => Ok(Standing::Next),
        },
    }
}
