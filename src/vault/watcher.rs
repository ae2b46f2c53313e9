//! Queries the chain about a member's beacons, and returns new notices.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ::bitcoin::{OutPoint, ScriptBuf, Transaction, Txid};

use super::watch::{Beacon, WatchNotice, WatchedBeacon, judge};
use crate::bitcoin::{
    chain::{Chain, ChainError},
    ledger::{Ledger, read_spenders},
};

/// Follows a member's beacons on one chain.
pub struct Watcher {
    chain: Arc<dyn Chain>,
    warn_blocks: u32,
    look_back: u32,
    beacons: BTreeMap<ScriptBuf, Followed>,
}

struct Followed {
    beacon: WatchedBeacon,
    ledger: Ledger,
    /// The transactions that spend from it, while the ledger lists them.
    transactions: BTreeMap<Txid, Transaction>,
    /// The subjects of the notices that were sent and are still true.
    sent: BTreeSet<(&'static str, Txid, Option<OutPoint>, bool)>,
}

impl Watcher {
    /// Follows nothing yet. Spends are searched in the last `look_back` blocks, and then in every new one. Warnings
    /// start `warn_blocks` before a timelock passes.
    pub fn new(chain: Arc<dyn Chain>, look_back: u32, warn_blocks: u32) -> Self {
        Self { chain, warn_blocks, look_back, beacons: BTreeMap::new() }
    }

    /// Follows these beacons, and continues with those that it already follows.
    pub fn follow(&mut self, beacons: BTreeMap<ScriptBuf, WatchedBeacon>) {
        let mut before = std::mem::take(&mut self.beacons);
        self.beacons = beacons
            .into_iter()
            .map(|(script, beacon)| {
                let followed = match before.remove(&script) {
                    Some(followed) => Followed { beacon, ..followed },
                    None => Followed {
                        // For a DID's own coins only their signals matter.
                        ledger: match beacon.beacon {
                            Beacon::Cohort(_) => Ledger::new(script.clone(), self.look_back),
                            Beacon::Initial(_) => Ledger::unlisted(script.clone(), self.look_back),
                        },
                        beacon,
                        transactions: BTreeMap::new(),
                        sent: BTreeSet::new(),
                    },
                };
                (script, followed)
            })
            .collect();
    }

    /// The number of beacons that it follows.
    pub fn len(&self) -> usize {
        self.beacons.len()
    }

    /// Whether it follows no beacon.
    pub fn is_empty(&self) -> bool {
        self.beacons.is_empty()
    }

    /// The new notices since the last call.
    ///
    /// # Errors
    /// Those of the chain. Results that were found before the error are found again by the next call.
    pub async fn poll(&mut self) -> Result<Vec<WatchNotice>, ChainError> {
        let mut found = Vec::new();
        let mut ledgers: Vec<_> = self.beacons.values_mut().map(|followed| &mut followed.ledger).collect();
        let activities = Ledger::refresh_all(&mut ledgers, &*self.chain).await?;
        for (followed, activity) in self.beacons.values_mut().zip(activities) {
            read_spenders(&*self.chain, &activity, &mut followed.transactions).await?;
            let notices = judge(&followed.beacon, &activity, &followed.transactions, self.warn_blocks);
            found.push((followed, notices));
        }
        // Updated only when all beacons were queried: on an error the caller receives no notices.
        let mut news = Vec::new();
        for (followed, notices) in found {
            let known = std::mem::take(&mut followed.sent);
            followed.sent = notices.iter().map(WatchNotice::subject).collect();
            news.extend(notices.into_iter().filter(|notice| !known.contains(&notice.subject())));
        }
        Ok(news)
    }
}
