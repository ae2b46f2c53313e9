//! Asks the chain about a member's beacons, and says what is new.

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
    /// The transactions that spend from it, as long as the ledger lists them.
    transactions: BTreeMap<Txid, Transaction>,
    /// What was told, as long as it is true.
    told: BTreeSet<(&'static str, Txid, Option<OutPoint>, bool)>,
}

impl Watcher {
    /// Follows nothing yet. Spends are looked for in the last `look_back` blocks, and from then on in every one; warnings
    /// begin `warn_blocks` before a timelock passes.
    pub fn new(chain: Arc<dyn Chain>, look_back: u32, warn_blocks: u32) -> Self {
        Self { chain, warn_blocks, look_back, beacons: BTreeMap::new() }
    }

    /// Follows these beacons, and goes on with those that it followed before.
    pub fn follow(&mut self, beacons: BTreeMap<ScriptBuf, WatchedBeacon>) {
        let mut before = std::mem::take(&mut self.beacons);
        self.beacons = beacons
            .into_iter()
            .map(|(script, beacon)| {
                let followed = match before.remove(&script) {
                    Some(followed) => Followed { beacon, ..followed },
                    None => Followed {
                        // Of a DID's own coins nothing has to be known but what they announce.
                        ledger: match beacon.beacon {
                            Beacon::Cohort(_) => Ledger::new(script.clone(), self.look_back),
                            Beacon::Initial(_) => Ledger::unlisted(script.clone(), self.look_back),
                        },
                        beacon,
                        transactions: BTreeMap::new(),
                        told: BTreeSet::new(),
                    },
                };
                (script, followed)
            })
            .collect();
    }

    /// How many beacons it follows.
    pub fn len(&self) -> usize {
        self.beacons.len()
    }

    /// Whether there is nothing to follow.
    pub fn is_empty(&self) -> bool {
        self.beacons.is_empty()
    }

    /// What is new since the last time.
    ///
    /// # Errors
    /// What the chain says. What was found before that is found again the next time.
    pub async fn poll(&mut self) -> Result<Vec<WatchNotice>, ChainError> {
        let mut found = Vec::new();
        let mut ledgers: Vec<_> = self.beacons.values_mut().map(|followed| &mut followed.ledger).collect();
        let activities = Ledger::refresh_all(&mut ledgers, &*self.chain).await?;
        for (followed, activity) in self.beacons.values_mut().zip(activities) {
            read_spenders(&*self.chain, &activity, &mut followed.transactions).await?;
            let notices = judge(&followed.beacon, &activity, &followed.transactions, self.warn_blocks);
            found.push((followed, notices));
        }
        // Told only when all could be asked: what this returns is all that anybody hears.
        let mut news = Vec::new();
        for (followed, notices) in found {
            let known = std::mem::take(&mut followed.told);
            followed.told = notices.iter().map(WatchNotice::subject).collect();
            news.extend(notices.into_iter().filter(|notice| !known.contains(&notice.subject())));
        }
        Ok(news)
    }
}
