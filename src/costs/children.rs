//! Children that bump announcements: what they have paid, from the chain.
//!
//! The operator bumps in a wallet of its own, so that no record here shows it. A spend of the operator's output is a bump only if it is in the
//! block of the announcement, or waits with it: a later one is the wallet's own business.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{OutPoint, ScriptBuf, Transaction, Txid};

use super::facts::{ChildFee, CohortFacts};
use crate::{
    actors::standing::history::Fate,
    bitcoin::chain::{Activity, Chain, ChainError, Place},
};

/// Looks for the children of all numbers, in the blocks from height `since` on. What cannot be seen there stays unknown.
///
/// # Errors
/// Those of the chain.
pub async fn find(cohorts: &mut [CohortFacts], chain: &dyn Chain, since: u32) -> Result<(), ChainError> {
    let numbers = || cohorts.iter().flat_map(|cohort| &cohort.numbers).filter(|number| number.state != Fate::Void);
    let operator = |number: &super::NumberFacts| number.paid.as_ref()?.operator.clone();
    let scripts: BTreeSet<ScriptBuf> = numbers().filter_map(operator).map(|output| output.script).collect();
    let scripts: Vec<ScriptBuf> = scripts.into_iter().collect();
    if scripts.is_empty() {
        return Ok(());
    }
    // Those that are unspent are known of any age.
    let listed = chain.coins_of_all(&scripts).await?;
    let seen = chain.activities(&scripts, since).await?;
    let unspent: BTreeSet<OutPoint> = listed.iter().flat_map(|one| &one.deposits).map(|one| one.outpoint).collect();
    let known = Known::of(&seen, cohorts);
    let mut fees: BTreeMap<Txid, Option<u64>> = BTreeMap::new();
    // A child that spends several outputs is the child of the last one: its fee counts for all from which that descends.
    let mut counted = BTreeSet::new();
    for cohort in cohorts {
        for number in cohort.numbers.iter_mut().rev() {
            let Some(output) = number.paid.as_ref().and_then(|paid| paid.operator.as_ref()) else { continue };
            let outpoint = OutPoint::new(number.txid, output.vout);
            if let Some((by, place)) = known.spends.get(&outpoint) {
                let Some(parent) = known.places.get(&number.txid) else { continue };
                if parent != place || !counted.insert(*by) {
                    number.child = ChildFee::None;
                    continue;
                }
                let fee = match fees.get(by) {
                    Some(fee) => *fee,
                    None => {
                        let fee = known.fee(chain, by, place).await?;
                        fees.insert(*by, fee);
                        fee
                    }
                };
                number.child = fee.map_or(ChildFee::Unknown, |fee| ChildFee::Paid(fee, *by));
            } else if unspent.contains(&outpoint) {
                number.child = ChildFee::None;
            }
        }
    }
    Ok(())
}

/// What is known of the operator's outputs, and of what else pays to the same scripts.
struct Known {
    spends: BTreeMap<OutPoint, (Txid, Place)>,
    places: BTreeMap<Txid, Place>,
    values: BTreeMap<OutPoint, u64>,
}

impl Known {
    fn of(seen: &[Activity], cohorts: &[CohortFacts]) -> Self {
        let mut known = Self { spends: BTreeMap::new(), places: BTreeMap::new(), values: BTreeMap::new() };
        for activity in seen {
            for deposit in &activity.deposits {
                known.places.insert(deposit.outpoint.txid, deposit.place);
                known.values.insert(deposit.outpoint, deposit.value.to_sat());
            }
            for spend in &activity.spends {
                known.spends.insert(spend.outpoint, (spend.by, spend.place));
            }
        }
        for number in cohorts.iter().flat_map(|cohort| &cohort.numbers) {
            if let Some(output) = number.paid.as_ref().and_then(|paid| paid.operator.as_ref()) {
                known.values.insert(OutPoint::new(number.txid, output.vout), output.value);
            }
        }
        known
    }

    /// The fee of a child; `None` if the value of an input cannot be found.
    async fn fee(&self, chain: &dyn Chain, txid: &Txid, place: &Place) -> Result<Option<u64>, ChainError> {
        let Some(child) = chain.transaction(txid, place.block().map(|block| &block.hash)).await? else {
            return Ok(None);
        };
        let mut spent = 0u64;
        for input in &child.input {
            let outpoint = input.previous_output;
            let value = match self.values.get(&outpoint) {
                Some(value) => Some(*value),
                // A node without an index knows only what waits.
                None => value_of(chain.transaction(&outpoint.txid, None).await.ok().flatten(), outpoint.vout),
            };
            let Some(sum) = value.and_then(|value| spent.checked_add(value)) else { return Ok(None) };
            spent = sum;
        }
        let paid: u64 = child.output.iter().map(|output| output.value.to_sat()).sum();
        Ok(spent.checked_sub(paid))
    }
}

fn value_of(transaction: Option<Transaction>, vout: u32) -> Option<u64> {
    let transaction = transaction?;
    let output = transaction.output.get(usize::try_from(vout).ok()?)?;
    Some(output.value.to_sat())
}
