//! Follows an announcement to its confirmations, and reports what becomes of it.

use std::{collections::BTreeMap, time::Duration};

use ::bitcoin::{OutPoint, ScriptBuf, Transaction, Txid};

use crate::{
    bitcoin::{
        chain::{Chain, ChainError},
        ledger::{Ledger, read_spenders},
        sighting::{Sighting, rival},
    },
    protocol::hash::SignalBytes,
};

/// How many blocks below the tip an announcement that was just sent may already be.
const LOOK_BACK: u32 = 6;

/// What is followed.
#[derive(Clone, Debug)]
pub struct Followed {
    /// The script of the beacon's address.
    pub script: ScriptBuf,
    /// What is announced.
    pub signal: SignalBytes,
    /// The transaction. If it leaves the mempool it is submitted again.
    pub transaction: Transaction,
    /// The height from which on it may be in a block; `None` for one that was just sent.
    pub since: Option<u32>,
}

/// Something that a person wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It waits in the mempool.
    Mempool {
        /// The transaction, which another one may have replaced.
        txid: Txid,
        /// The block that it was in before: a reorganization has undone it.
        was_in: Option<u32>,
    },
    /// It is in a block.
    Block {
        /// The transaction.
        txid: Txid,
        /// The height of the block.
        height: u32,
        /// How many blocks confirm it.
        confirmations: u32,
        /// The height of another block that it was in before.
        was_in: Option<u32>,
    },
    /// It is in no block and not in the mempool, and is submitted again.
    Gone {
        /// The block that it was in before.
        was_in: Option<u32>,
        /// Why the chain does not take it again.
        refused: Option<String>,
    },
    /// Another transaction, which announces something else, spends one of its coins.
    Rival {
        /// That transaction.
        by: Txid,
        /// How many blocks confirm it; 0 in the mempool.
        confirmations: u32,
    },
    /// The chain does not answer.
    Silent(String),
    /// The chain answers again.
    Answers,
}

/// The end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It has the confirmations that were asked for.
    Confirmed {
        /// The transaction.
        txid: Txid,
        /// The height of its block.
        height: u32,
        /// How many blocks confirm it.
        confirmations: u32,
    },
    /// Another transaction has spent one of its coins, with as many confirmations: it will never be confirmed.
    Replaced(Txid),
}

/// Follows the announcement until `needed` blocks confirm it, at least 1, or until it is final that none will. The chain is
/// asked every `poll`.
///
/// # Errors
/// [`ChainError`], when the chain cannot be used: it is asked again while it does not answer.
pub async fn follow(
    chain: &dyn Chain,
    followed: &Followed,
    needed: u32,
    poll: Duration,
    mut report: impl FnMut(&Change),
) -> Result<End, ChainError> {
    let needed = needed.max(1);
    let mut look = Look::default();
    let mut silent = false;
    loop {
        match look.again(chain, followed, needed).await {
            Ok((changes, end)) => {
                if std::mem::take(&mut silent) {
                    report(&Change::Answers);
                }
                changes.iter().for_each(&mut report);
                if let Some(end) = end {
                    return Ok(end);
                }
            }
            Err(error) if !error.is_transient() => return Err(error),
            Err(error) => {
                if !std::mem::replace(&mut silent, true) {
                    report(&Change::Silent(error.to_string()));
                }
            }
        }
        tokio::time::sleep(poll).await;
    }
}

/// What was seen so far.
#[derive(Default)]
struct Look {
    ledger: Option<Ledger>,
    transactions: BTreeMap<Txid, Transaction>,
    last: Option<Change>,
    /// The block that it is in, or was in.
    block: Option<u32>,
}

impl Look {
    async fn again(
        &mut self,
        chain: &dyn Chain,
        followed: &Followed,
        needed: u32,
    ) -> Result<(Vec<Change>, Option<End>), ChainError> {
        let ledger = match &mut self.ledger {
            Some(ledger) => ledger,
            None => self.ledger.insert(begin(chain, followed).await?),
        };
        let activity = ledger.refresh(chain).await?;
        read_spenders(chain, &activity, &mut self.transactions).await?;
        let spends: Vec<OutPoint> = followed.transaction.input.iter().map(|input| input.previous_output).collect();
        let sighting = Sighting::of(&activity, &self.transactions, followed.signal, &spends, needed);
        let was_in = self.block;
        let (change, end) = match sighting {
            Sighting::Block { txid, height, confirmations } => {
                self.block = Some(height);
                let was_in = was_in.filter(|was| *was != height);
                let end = End::Confirmed { txid, height, confirmations };
                (Change::Block { txid, height, confirmations, was_in }, Some(end))
            }
            Sighting::Mempool(txid) => {
                self.block = None;
                // The same place as before is not reported, but the way back into it is.
                let was_in = match (&self.last, was_in) {
                    (Some(Change::Mempool { was_in, .. }), None) => *was_in,
                    (_, was_in) => was_in,
                };
                (Change::Mempool { txid, was_in }, None)
            }
            Sighting::Replaced(by) => (Change::Rival { by, confirmations: needed }, Some(End::Replaced(by))),
            Sighting::Gone => {
                self.block = None;
                (self.gone(chain, followed, rival(&activity, &spends), was_in).await?, None)
            }
        };
        let end = end.filter(|_| sighting.is_settled(needed));
        if self.last.as_ref() == Some(&change) {
            return Ok((Vec::new(), end));
        }
        self.last = Some(change.clone());
        Ok((vec![change], end))
    }

    async fn gone(
        &self,
        chain: &dyn Chain,
        followed: &Followed,
        rival: Option<(Txid, u32)>,
        was_in: Option<u32>,
    ) -> Result<Change, ChainError> {
        if let Some((by, confirmations)) = rival {
            return Ok(Change::Rival { by, confirmations });
        }
        let refused = match chain.submit(&followed.transaction).await {
            Ok(()) => None,
            Err(ChainError::Rejected(rejection)) => Some(rejection.reason),
            Err(error) => return Err(error),
        };
        let was_in = match &self.last {
            Some(Change::Gone { was_in: before, .. }) => was_in.or(*before),
            _ => was_in,
        };
        Ok(Change::Gone { was_in, refused })
    }
}

/// A ledger that starts before the announcement. It never lists the coins of the address: only spends matter.
async fn begin(chain: &dyn Chain, followed: &Followed) -> Result<Ledger, ChainError> {
    let tip = chain.tip().await?;
    let mut since = tip;
    let start = followed.since.map_or(tip.block.height, |height| height.min(tip.block.height));
    since.block.height = start.saturating_sub(LOOK_BACK);
    since.block.hash = chain
        .block_hash(since.block.height)
        .await?
        .ok_or_else(|| ChainError::Unavailable(format!("block {} is gone", since.block.height)))?;
    Ok(Ledger::known(followed.script.clone(), since, [], []))
}

#[cfg(test)]
mod tests {
    use ::bitcoin::{
        Amount, FeeRate, ScriptBuf, Sequence, TxOut, Witness, absolute::LockTime, transaction::Version,
    };

    use super::*;
    use crate::{
        bitcoin::chain::MemoryChain,
        protocol::{
            document::{InitialBeacon, InitialBeaconKind},
            key::SecretKey,
            network::Network,
            output::{Change as Destination, Coin, SingletonAnnouncement},
        },
    };

    const SIGNAL: SignalBytes = SignalBytes::from_bytes([7; 32]);

    struct World {
        chain: MemoryChain,
        beacon: InitialBeacon,
        coin: OutPoint,
        followed: Followed,
    }

    impl World {
        async fn new() -> Self {
            let chain = MemoryChain::new();
            let key = SecretKey::from_bytes(&[5; 32]).unwrap().public_key();
            let beacon = InitialBeacon::new(key, Network::Regtest, InitialBeaconKind::P2wpkh);
            let coin = chain.mine(1, &beacon.script_pubkey())[0];
            chain.mine(10, &burn());
            let transaction = announcement(&beacon, coin, 2);
            chain.submit(&transaction).await.unwrap();
            let followed = Followed { script: beacon.script_pubkey(), signal: SIGNAL, transaction, since: None };
            Self { chain, beacon, coin, followed }
        }

        fn txid(&self) -> Txid {
            self.followed.transaction.compute_txid()
        }

        /// Follows it, and does something on the chain at each change.
        async fn follow(&self, needed: u32, mut act: impl FnMut(usize, &MemoryChain)) -> (Vec<Change>, End) {
            let mut changes = Vec::new();
            let poll = Duration::from_secs(30);
            let end = follow(&self.chain, &self.followed, needed, poll, |change| {
                act(changes.len(), &self.chain);
                changes.push(change.clone());
            });
            let end = end.await.unwrap();
            (changes, end)
        }

        fn block(&self, height: u32, confirmations: u32, was_in: Option<u32>) -> Change {
            Change::Block { txid: self.txid(), height, confirmations, was_in }
        }

        fn waits(&self, was_in: Option<u32>) -> Change {
            Change::Mempool { txid: self.txid(), was_in }
        }
    }

    fn burn() -> ScriptBuf {
        ScriptBuf::new_op_return([1])
    }

    fn announcement(beacon: &InitialBeacon, coin: OutPoint, rate: u32) -> Transaction {
        let coin = Coin { outpoint: coin, value: Amount::from_btc(50.0).unwrap() };
        let (rate, change) = (FeeRate::from_sat_per_vb_u32(rate), Destination::Beacon);
        let made = SingletonAnnouncement::of_signal(beacon.clone(), &[coin], SIGNAL, rate, &change).unwrap();
        made.sign(&SecretKey::from_bytes(&[5; 32]).unwrap(), &mut rand()).unwrap()
    }

    fn rand() -> rand_chacha::ChaCha20Rng {
        rand_chacha::rand_core::SeedableRng::seed_from_u64(1)
    }

    /// A payment of the same coin, which announces nothing.
    fn payment(coin: OutPoint) -> Transaction {
        let input = ::bitcoin::TxIn {
            previous_output: coin,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::MAX,
            witness: Witness::new(),
        };
        let output = TxOut { value: Amount::from_sat(100_000), script_pubkey: burn() };
        Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![input],
            output: vec![output.clone(), output],
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_confirmation_is_reported_until_there_are_enough() {
        let world = World::new().await;
        let (changes, end) = world.follow(3, |_, chain| drop(chain.mine(1, &burn()))).await;
        let blocks = (1..=3).map(|confirmations| world.block(12, confirmations, None));
        assert_eq!(changes, [world.waits(None)].into_iter().chain(blocks).collect::<Vec<_>>());
        assert_eq!(end, End::Confirmed { txid: world.txid(), height: 12, confirmations: 3 });
    }

    #[tokio::test(start_paused = true)]
    async fn a_reorganization_is_reported_as_what_it_is() {
        let world = World::new().await;
        let (changes, end) = world
            .follow(2, |step, chain| match step {
                0 => drop(chain.mine(1, &burn())),
                1 => {
                    chain.take_back(1);
                    chain.mine_with(2, &[]);
                }
                _ => drop(chain.mine(1, &burn())),
            })
            .await;
        let expected = [
            world.waits(None),
            world.block(12, 1, None),
            world.waits(Some(12)),
            world.block(14, 1, None),
            world.block(14, 2, None),
        ];
        assert_eq!(changes, expected);
        assert_eq!(end, End::Confirmed { txid: world.txid(), height: 14, confirmations: 2 });
    }

    #[tokio::test(start_paused = true)]
    async fn a_transaction_that_vanishes_is_sent_again() {
        let world = World::new().await;
        let txid = world.txid();
        let (changes, _) = world
            .follow(1, |step, chain| match step {
                0 => chain.evict(&txid),
                1 => {}
                _ => drop(chain.mine(1, &burn())),
            })
            .await;
        let gone = Change::Gone { was_in: None, refused: None };
        assert_eq!(changes, [world.waits(None), gone, world.waits(None), world.block(12, 1, None)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_replacement_with_the_same_signal_is_the_announcement() {
        let world = World::new().await;
        let bumped = announcement(&world.beacon, world.coin, 9);
        let (changes, end) = world.follow(1, |_, chain| chain.mine_with(1, std::slice::from_ref(&bumped))).await;
        let txid = bumped.compute_txid();
        assert_ne!(txid, world.txid());
        assert_eq!(changes[1..], [Change::Block { txid, height: 12, confirmations: 1, was_in: None }]);
        assert_eq!(end, End::Confirmed { txid, height: 12, confirmations: 1 });
    }

    #[tokio::test(start_paused = true)]
    async fn another_transaction_of_the_coin_ends_it_when_it_is_deep() {
        let world = World::new().await;
        let other = payment(world.coin);
        let (changes, end) = world
            .follow(2, |step, chain| match step {
                0 => chain.mine_with(1, std::slice::from_ref(&other)),
                _ => drop(chain.mine(1, &burn())),
            })
            .await;
        let by = other.compute_txid();
        let rival = |confirmations| Change::Rival { by, confirmations };
        assert_eq!(changes, [world.waits(None), rival(1), rival(2)]);
        assert_eq!(end, End::Replaced(by));
    }

    #[tokio::test(start_paused = true)]
    async fn a_chain_that_does_not_answer_is_asked_again() {
        let world = World::new().await;
        world.chain.set_reachable(false);
        let (changes, _) = world
            .follow(1, |step, chain| match step {
                0 => chain.set_reachable(true),
                1 => {}
                _ => drop(chain.mine(1, &burn())),
            })
            .await;
        assert!(matches!(changes[..2], [Change::Silent(_), Change::Answers]), "{changes:?}");
        assert_eq!(changes[2..], [world.waits(None), world.block(12, 1, None)]);
    }
}
