//! What a standing cohort has announced, stored without end (docs/standing.md, "History"): a port, and what is served of it.
//!
//! It is apart from the journal: a cohort starts from its last state, and forgets announcements that are final.

mod served;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bitcoin::{ScriptBuf, Transaction, Txid};
use btcr2_aggregation_protocol::{
    cohort::standing::{CoinRef, Mode, OpportunityKind, StandingTerms},
    did::Did,
    hash::{DocumentHash, SignalBytes},
    id::CohortId,
    key::PublicKey,
    time::Timestamp,
};
use futures::{FutureExt, future::BoxFuture};
use serde::{Deserialize, Serialize};

pub use self::served::StandingHistory;

/// Why history cannot be stored or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("history: {0}")]
pub struct HistoryError(pub String);

/// A formed cohort.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CohortRecord {
    /// The cohort.
    pub cohort_id: CohortId,
    /// Its service.
    pub service: Did,
    /// Its address.
    pub beacon_address: String,
    /// Its terms.
    pub terms: Arc<StandingTerms>,
    /// The seats and their DIDs, in KeySort order.
    pub seats: Vec<(PublicKey, Did)>,
    /// When it has formed, if that was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formed_at: Option<Timestamp>,
}

impl CohortRecord {
    /// The DID of a seat.
    pub fn did_of(&self, seat: &PublicKey) -> Option<&Did> {
        self.seats.iter().find(|(key, _)| key == seat).map(|(_, did)| did)
    }

    /// Whether a DID has a seat.
    pub fn has(&self, did: &Did) -> bool {
        self.seats.iter().any(|(_, seat)| seat == did)
    }
}

/// What has become of a signed transaction, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It is not final.
    Unconfirmed,
    /// It has the confirmations that make it final here.
    Final,
    /// Another transaction has spent its coin, finally: it can never be mined.
    Void,
}

/// The operator's own output in a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperatorOutput {
    /// Its place.
    pub vout: u32,
    /// Satoshi.
    pub value: u64,
    /// To whom it pays.
    pub script: ScriptBuf,
}

/// What a transaction takes from its coins, beside the change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Paid {
    /// How it is signed.
    pub mode: Mode,
    /// The fee, in satoshi.
    pub fee: u64,
    /// The virtual size when it is signed, in vB.
    pub vsize: u64,
    /// The operator's own output, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<OperatorOutput>,
}

impl Paid {
    /// Of a transaction that spends exactly these coins, and has `vsize` vB when it is signed; `None` if it pays more than they hold.
    pub fn of(transaction: &Transaction, coins: &[CoinRef], mode: Mode, vsize: u64) -> Option<Self> {
        let spent = coins.iter().try_fold(0u64, |sum, coin| sum.checked_add(coin.value))?;
        let paid =
            transaction.output.iter().try_fold(0u64, |sum, output| sum.checked_add(output.value.to_sat()))?;
        // The change is the first output, and the signal the last one.
        let operator = transaction.output.get(1).filter(|output| !output.script_pubkey.is_op_return());
        let operator = operator.map(|output| OperatorOutput {
            vout: 1,
            value: output.value.to_sat(),
            script: output.script_pubkey.clone(),
        });
        Some(Self { mode, fee: spent.checked_sub(paid)?, vsize, operator })
    }
}

/// A number with a signed transaction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announced {
    /// The number.
    pub number: u64,
    /// Its transaction.
    pub txid: Txid,
    /// What that announces; nothing by a refresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<SignalBytes>,
    /// What the transaction does.
    pub kind: OpportunityKind,
    /// What it spends.
    pub coins: Vec<CoinRef>,
    /// Its board.
    pub board_hash: DocumentHash,
    /// What has become of it.
    pub state: Fate,
    /// When its transaction was signed, if that was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// What its transaction takes from the coins, if that was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paid: Option<Paid>,
}

/// Stores what cohorts have announced.
pub trait HistoryStore: Send + Sync {
    /// Stores a formed cohort.
    fn put_cohort(&self, cohort: CohortRecord) -> BoxFuture<'static, Result<(), HistoryError>>;

    /// A formed cohort.
    fn cohort(&self, cohort_id: &CohortId) -> BoxFuture<'static, Result<Option<CohortRecord>, HistoryError>>;

    /// Stores a number, unless one is stored: it has one transaction. Durable when the future is ready.
    fn put(&self, cohort_id: &CohortId, announced: Announced) -> BoxFuture<'static, Result<(), HistoryError>>;

    /// Stores what has become of a number; nothing if it is not known.
    fn settle(
        &self,
        cohort_id: &CohortId,
        number: u64,
        state: Fate,
    ) -> BoxFuture<'static, Result<(), HistoryError>>;

    /// A number.
    fn get(&self, cohort_id: &CohortId, number: u64)
    -> BoxFuture<'static, Result<Option<Announced>, HistoryError>>;

    /// The last number with this signal.
    fn by_signal(
        &self,
        cohort_id: &CohortId,
        signal: &SignalBytes,
    ) -> BoxFuture<'static, Result<Option<Announced>, HistoryError>>;

    /// The numbers above `after`, in their order, at most `most`.
    fn list(
        &self,
        cohort_id: &CohortId,
        after: u64,
        most: usize,
    ) -> BoxFuture<'static, Result<Vec<Announced>, HistoryError>>;
}

#[derive(Default)]
struct Stored {
    cohorts: BTreeMap<CohortId, CohortRecord>,
    numbers: BTreeMap<(CohortId, u64), Announced>,
}

/// History in memory, for tests and simulations. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryHistory(Arc<Mutex<Stored>>);

impl MemoryHistory {
    fn lock(&self) -> MutexGuard<'_, Stored> {
        // Each change is one call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ready<T: Send + 'static>(value: T) -> BoxFuture<'static, Result<T, HistoryError>> {
    futures::future::ready(Ok(value)).boxed()
}

impl HistoryStore for MemoryHistory {
    fn put_cohort(&self, cohort: CohortRecord) -> BoxFuture<'static, Result<(), HistoryError>> {
        self.lock().cohorts.insert(cohort.cohort_id.clone(), cohort);
        ready(())
    }

    fn cohort(&self, cohort_id: &CohortId) -> BoxFuture<'static, Result<Option<CohortRecord>, HistoryError>> {
        ready(self.lock().cohorts.get(cohort_id).cloned())
    }

    fn put(&self, cohort_id: &CohortId, announced: Announced) -> BoxFuture<'static, Result<(), HistoryError>> {
        self.lock().numbers.entry((cohort_id.clone(), announced.number)).or_insert(announced);
        ready(())
    }

    fn settle(
        &self,
        cohort_id: &CohortId,
        number: u64,
        state: Fate,
    ) -> BoxFuture<'static, Result<(), HistoryError>> {
        if let Some(known) = self.lock().numbers.get_mut(&(cohort_id.clone(), number)) {
            known.state = state;
        }
        ready(())
    }

    fn get(
        &self,
        cohort_id: &CohortId,
        number: u64,
    ) -> BoxFuture<'static, Result<Option<Announced>, HistoryError>> {
        ready(self.lock().numbers.get(&(cohort_id.clone(), number)).cloned())
    }

    fn by_signal(
        &self,
        cohort_id: &CohortId,
        signal: &SignalBytes,
    ) -> BoxFuture<'static, Result<Option<Announced>, HistoryError>> {
        let stored = self.lock();
        let mut of_cohort =
            stored.numbers.iter().filter(|((of, _), _)| of == cohort_id).map(|(_, announced)| announced);
        ready(of_cohort.rfind(|announced| announced.signal == Some(*signal)).cloned())
    }

    fn list(
        &self,
        cohort_id: &CohortId,
        after: u64,
        most: usize,
    ) -> BoxFuture<'static, Result<Vec<Announced>, HistoryError>> {
        let stored = self.lock();
        let Some(from) = after.checked_add(1) else { return ready(Vec::new()) };
        let range = stored.numbers.range((cohort_id.clone(), from)..=(cohort_id.clone(), u64::MAX));
        ready(range.take(most).map(|(_, announced)| announced.clone()).collect())
    }
}
