//! Admission of DIDs that have coins, which makes identities by the thousand expensive.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ::bitcoin::{Amount, ScriptBuf};
use lru::LruCache;
use tokio::sync::{mpsc, oneshot};

use crate::{
    actors::runtime::Clock,
    bitcoin::chain::{Activity, Chain, ChainError},
    protocol::{
        did::Did,
        output::{InitialBeacon, InitialBeaconKind},
        time::Timestamp,
    },
};

/// How many DIDs one request to the chain asks for. A node without an address index scans its whole UTXO set for each
/// request, however many scripts the request names.
const AT_ONCE: usize = 256;

/// How many DIDs may wait for a request in progress.
const WAITING: usize = 1024;

/// How many answers are cached.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1 << 14).expect("is not zero");

/// How long the cached answer of a DID with enough coins is valid.
const GOOD_FOR: Duration = Duration::from_secs(600);

/// How long the cached answer of a DID with too few coins is valid. Repeated opt-ins then do not occupy a node.
const POOR_FOR: Duration = Duration::from_secs(60);

/// Admits DIDs whose initial beacon addresses hold enough confirmed coins. Clones share the cache. When the last one is
/// dropped, the task that queries the chain ends.
#[derive(Clone)]
pub(super) struct Funds {
    minimum: Amount,
    clock: Clock,
    known: Arc<Mutex<LruCache<Did, Known>>>,
    questions: mpsc::Sender<Question>,
}

/// The coins of a DID, and when the chain was queried.
#[derive(Clone, Copy)]
struct Known {
    held: Amount,
    at: Timestamp,
}

struct Question {
    scripts: [ScriptBuf; 3],
    answer: oneshot::Sender<Result<Amount, ChainError>>,
}

/// Why a DID is not admitted by its coins.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotFunded {
    #[error("the initial beacon addresses of this DID hold {} sat of the {} sat, confirmed, that this service asks for", .held.to_sat(), .minimum.to_sat())]
    TooLittle { held: Amount, minimum: Amount },
    /// Several EXTERNAL DIDs can name the same address: its coins prove nothing about any of them.
    #[error("this service admits KEY DIDs that have coins, and this DID is EXTERNAL")]
    External,
    #[error("the chain cannot be queried now for the coins of this DID; try the next cohort")]
    Unknown,
}

impl Funds {
    /// The amount.
    pub(super) fn minimum(&self) -> Amount {
        self.minimum
    }

    /// Admits DIDs that have at least `minimum` on `chain`. Must be called within a runtime: it spawns the task that
    /// queries the chain.
    pub(super) fn new(minimum: Amount, chain: Arc<dyn Chain>, clock: Clock) -> Self {
        let (questions, asked) = mpsc::channel(WAITING);
        actix_rt::spawn(ask(chain, asked));
        Self { minimum, clock, known: Arc::new(Mutex::new(LruCache::new(REMEMBERED))), questions }
    }

    /// Whether `did` could be admitted, as far as the cache knows.
    pub(super) fn screen(&self, did: &Did) -> Result<(), NotFunded> {
        if did.key().is_none() {
            return Err(NotFunded::External);
        }
        self.known(did).map_or(Ok(()), |held| self.judge(held))
    }

    /// Whether `did` has enough. Queries the chain unless the cache has the answer.
    pub(super) async fn check(&self, did: &Did) -> Result<(), NotFunded> {
        let beacon = |kind| InitialBeacon::of(did, kind).map(|beacon| beacon.script_pubkey());
        let [Some(first), Some(second), Some(third)] = InitialBeaconKind::ALL.map(beacon) else {
            return Err(NotFunded::External);
        };
        if let Some(held) = self.known(did) {
            return self.judge(held);
        }
        let (answer, answered) = oneshot::channel();
        let question = Question { scripts: [first, second, third], answer };
        // A candidate that finds the queue full is refused instead of queued: outsiders must not fill the memory.
        self.questions.try_send(question).map_err(|_| NotFunded::Unknown)?;
        match answered.await {
            Ok(Ok(held)) => {
                self.lock().put(did.clone(), Known { held, at: self.clock.now() });
                self.judge(held)
            }
            Ok(Err(error)) => {
                tracing::warn!(%did, %error, "the coins of a candidate are not known");
                Err(NotFunded::Unknown)
            }
            Err(_) => Err(NotFunded::Unknown),
        }
    }

    fn judge(&self, held: Amount) -> Result<(), NotFunded> {
        let minimum = self.minimum;
        if held >= minimum { Ok(()) } else { Err(NotFunded::TooLittle { held, minimum }) }
    }

    fn known(&self, did: &Did) -> Option<Amount> {
        let Known { held, at } = *self.lock().get(did)?;
        let valid = if held >= self.minimum { GOOD_FOR } else { POOR_FOR };
        (self.clock.now().since(at) < valid).then_some(held)
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<Did, Known>> {
        // No code panics while the data is half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers questions in batches of all that wait, until the last sender is dropped.
async fn ask(chain: Arc<dyn Chain>, mut asked: mpsc::Receiver<Question>) {
    let mut questions = Vec::new();
    while asked.recv_many(&mut questions, AT_ONCE).await > 0 {
        // A question whose cohort has ended is dropped without a query.
        questions.retain(|question| !question.answer.is_closed());
        let scripts: Vec<ScriptBuf> = questions.iter().flat_map(|question| question.scripts.clone()).collect();
        if scripts.is_empty() {
            continue;
        }
        let found = chain.coins_of_all(&scripts).await;
        for (number, question) in questions.drain(..).enumerate() {
            let range = number * question.scripts.len()..(number + 1) * question.scripts.len();
            let held = match &found {
                Ok(activities) => activities
                    .get(range)
                    .map(|own| own.iter().map(confirmed).sum())
                    .ok_or_else(|| ChainError::BadAnswer("fewer answers than questions".to_owned())),
                Err(error) => Err(error.clone()),
            };
            // The receiver may be gone.
            let _ = question.answer.send(held);
        }
    }
}

/// The confirmed balance of a script, without coins that a transaction in the mempool spends.
fn confirmed(activity: &Activity) -> Amount {
    let is_spent = |outpoint| activity.spends.iter().any(|spend| spend.outpoint == outpoint);
    let deposits = activity.deposits.iter().filter(|deposit| deposit.place.block().is_some());
    deposits.filter(|deposit| !is_spent(deposit.outpoint)).map(|deposit| deposit.value).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ::bitcoin::{Transaction, TxOut, absolute::LockTime, transaction::Version};
    use futures::future::join_all;

    use super::*;
    use crate::{
        bitcoin::chain::MemoryChain,
        protocol::{document, identity::Identity, key::SecretKey, network::Network},
    };

    const MINIMUM: Amount = Amount::from_sat(5_000);

    fn did(number: u8) -> Did {
        let secret = SecretKey::from_bytes(&[number; 32]).unwrap();
        Identity::from_key(secret, Network::Regtest).did().clone()
    }

    /// Pays to one of the addresses of `did`, in the next block.
    fn pay(chain: &MemoryChain, did: &Did, kind: InitialBeaconKind, value: Amount) {
        let script_pubkey = InitialBeacon::of(did, kind).unwrap().script_pubkey();
        let output = vec![TxOut { value, script_pubkey }];
        let payment = Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: Vec::new(), output };
        chain.mine_with(1, &[payment]);
    }

    #[actix_rt::test]
    async fn the_coins_of_all_three_addresses_count_together() {
        let chain = MemoryChain::new();
        let funds = Funds::new(MINIMUM, Arc::new(chain.clone()), Clock::system());
        pay(&chain, &did(1), InitialBeaconKind::P2pkh, Amount::from_sat(2_000));
        pay(&chain, &did(1), InitialBeaconKind::P2tr, Amount::from_sat(3_000));
        pay(&chain, &did(2), InitialBeaconKind::P2wpkh, Amount::from_sat(4_999));
        assert_eq!(funds.check(&did(1)).await, Ok(()));
        let held = Amount::from_sat(4_999);
        assert_eq!(funds.check(&did(2)).await, Err(NotFunded::TooLittle { held, minimum: MINIMUM }));
        // Both are cached now.
        assert_eq!(funds.screen(&did(1)), Ok(()));
        assert!(funds.screen(&did(2)).is_err());
        assert_eq!(chain.scans(), 6);
        assert_eq!(funds.check(&did(1)).await, Ok(()));
        assert_eq!(chain.scans(), 6);
    }

    #[actix_rt::test]
    async fn external_dids_are_not_admitted_by_coins() {
        let funds = Funds::new(MINIMUM, Arc::new(MemoryChain::new()), Clock::system());
        let genesis = document::genesis_document(&did(1).key().unwrap(), Network::Regtest);
        let external = document::external_did(&genesis, Network::Regtest).unwrap();
        assert_eq!(funds.screen(&external), Err(NotFunded::External));
        assert_eq!(funds.check(&external).await, Err(NotFunded::External));
    }

    #[actix_rt::test]
    async fn what_the_chain_cannot_answer_is_asked_again() {
        let chain = MemoryChain::new();
        let funds = Funds::new(MINIMUM, Arc::new(chain.clone()), Clock::system());
        pay(&chain, &did(1), InitialBeaconKind::P2tr, MINIMUM);
        chain.set_reachable(false);
        assert_eq!(funds.check(&did(1)).await, Err(NotFunded::Unknown));
        chain.set_reachable(true);
        assert_eq!(funds.check(&did(1)).await, Ok(()));
    }

    #[actix_rt::test]
    async fn no_more_dids_wait_than_there_is_room_for() {
        let funds = Funds::new(MINIMUM, Arc::new(MemoryChain::new()), Clock::system());
        let many = u16::try_from(WAITING + 10).unwrap();
        let dids: BTreeSet<Did> = (1..=many)
            .map(|number| {
                let mut bytes = [7; 32];
                bytes[..2].copy_from_slice(&number.to_be_bytes());
                Identity::from_key(SecretKey::from_bytes(&bytes).unwrap(), Network::Regtest).did().clone()
            })
            .collect();
        let answers = join_all(dids.iter().map(|did| funds.check(did))).await;
        let turned_away = answers.iter().filter(|answer| **answer == Err(NotFunded::Unknown)).count();
        assert_eq!(turned_away, 10);
    }
}
