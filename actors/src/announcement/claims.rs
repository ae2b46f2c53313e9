//! The coins and transactions of a beacon address, by announcement.
//!
//! An address follows from the members' keys and the terms alone: the same members in the next cohort have the same
//! address. An announcement must therefore know which transactions the other announcements of its address have signed
//! (they are not foreign), and which coins they will spend (they are not free). The claims are not persisted: they are
//! read from the journals before the first announcement starts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bitcoin::{OutPoint, Script, ScriptBuf, Txid};
use btcr2_aggregation_protocol::{announcement::Announcement, id::CohortId};

/// For how many blocks the transactions of an announcement are stored after its end: longer than any look goes back.
const REMEMBERED: u32 = 2016;

/// The claims of all announcements of an operator.
#[derive(Debug, Default)]
pub struct Claims {
    by_cohort: Mutex<BTreeMap<CohortId, Claim>>,
    choosing: Mutex<()>,
}

#[derive(Debug)]
struct Claim {
    script: ScriptBuf,
    /// The transactions that its members were asked to sign.
    transactions: BTreeSet<Txid>,
    /// The coin that it will spend.
    coin: Option<OutPoint>,
    /// The height at which it ended.
    ended: Option<u32>,
}

/// The claims of the other announcements of an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Whether there are any.
    pub exist: bool,
    /// The transactions that their members were asked to sign.
    pub transactions: BTreeSet<Txid>,
    /// The coins that they will spend.
    pub coins: BTreeSet<OutPoint>,
}

impl Claims {
    /// Records the present claims of an announcement.
    pub fn note(&self, cohort_id: &CohortId, announcement: &Announcement) {
        if announcement.script().is_empty() {
            return;
        }
        let height = announcement.sight().tip.map_or(0, |tip| tip.block.height);
        let claim = Claim {
            script: announcement.script().clone(),
            transactions: announcement.asked_for().clone(),
            coin: announcement.coin(),
            ended: announcement.has_ended().then_some(height),
        };
        let mut claims = self.claims();
        claims.insert(cohort_id.clone(), claim);
        // The use of an address is never forgotten: it may have coins of any age.
        let old = |claim: &&mut Claim| claim.ended.is_some_and(|ended| ended.saturating_add(REMEMBERED) < height);
        claims.values_mut().filter(old).for_each(|claim| claim.transactions.clear());
    }

    /// The claims of announcements other than `cohort_id` at `script`.
    pub fn others(&self, cohort_id: &CohortId, script: &Script) -> Others {
        let mut others = Others::default();
        for (_, claim) in self.claims().iter().filter(|(id, claim)| *id != cohort_id && *claim.script == *script) {
            others.exist = true;
            others.transactions.extend(&claim.transactions);
            others.coins.extend(&claim.coin);
        }
        others
    }

    /// Locked from the query for other claims until the choice is recorded, so that two announcements do not choose the
    /// same coin.
    pub(super) fn choose(&self) -> MutexGuard<'_, ()> {
        // It guards no data.
        self.choosing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claims(&self) -> MutexGuard<'_, BTreeMap<CohortId, Claim>> {
        // No code panics while it holds the lock.
        self.by_cohort.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
