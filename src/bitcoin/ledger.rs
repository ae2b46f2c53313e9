//! The coins of one address, updated at low cost: listed once in full, then followed from block to block.

use std::collections::BTreeMap;

use ::bitcoin::{OutPoint, ScriptBuf, Transaction, Txid};

use super::chain::{Activity, Chain, ChainError, Deposit, Place, Spend, Tip};

/// How far below its last tip a ledger looks again. Deeper reorganizations are not expected.
const OVERLAP: u32 = 6;

/// How far it goes back if its last tip is no longer in the best chain.
const REORGANIZATION: u32 = 100;

/// The most coins that it stores. Any outsider can pay to an address; the largest coins stay.
const MAX_COINS: usize = 256;

/// The coins of one address.
#[derive(Clone, Debug)]
pub struct Ledger {
    script: ScriptBuf,
    look_back: u32,
    /// Whether the first refresh lists the coins.
    is_listed: bool,
    tip: Option<Tip>,
    /// The confirmed deposits.
    deposits: BTreeMap<OutPoint, Deposit>,
    /// The confirmed spends that a reorganization may still undo.
    spends: BTreeMap<OutPoint, Spend>,
}

impl Ledger {
    /// An empty ledger: the first refresh lists the coins, and looks for spends in the last `look_back` blocks.
    pub fn new(script: ScriptBuf, look_back: u32) -> Self {
        Self { script, look_back, is_listed: true, tip: None, deposits: BTreeMap::new(), spends: BTreeMap::new() }
    }

    /// A ledger that continues from the known state at `tip`. It never has to list the coins, which takes a node
    /// minutes.
    pub fn known(
        script: ScriptBuf,
        tip: Tip,
        deposits: impl IntoIterator<Item = Deposit>,
        spends: impl IntoIterator<Item = Spend>,
    ) -> Self {
        let mut ledger = Self::new(script, 0);
        ledger.tip = Some(tip);
        let confirmed = |place: &Place| place.block().is_some();
        let deposits = deposits.into_iter().filter(|deposit| confirmed(&deposit.place));
        ledger.deposits.extend(deposits.map(|deposit| (deposit.outpoint, deposit)));
        let spends = spends.into_iter().filter(|spend| confirmed(&spend.place));
        ledger.spends.extend(spends.map(|spend| (spend.outpoint, spend)));
        ledger
    }

    /// An empty ledger that does not list coins, which takes a node minutes: it follows the last `look_back` blocks,
    /// and all later ones.
    pub fn unlisted(script: ScriptBuf, look_back: u32) -> Self {
        Self { is_listed: false, ..Self::new(script, look_back) }
    }

    /// Queries the chain for changes: the coins that no block has spent, and the spends of the last blocks and of the
    /// mempool.
    ///
    /// # Errors
    /// Those of the chain; the ledger is unchanged then.
    pub async fn refresh(&mut self, chain: &dyn Chain) -> Result<Activity, ChainError> {
        let mut activities = Self::refresh_all(&mut [self], chain).await?;
        activities
            .pop()
            .ok_or_else(|| ChainError::BadAnswer("no activity of a script that was asked for".to_owned()))
    }

    /// The same for several ledgers, in their order. The blocks are read once for all of them.
    ///
    /// # Errors
    /// Like [`Self::refresh`].
    pub async fn refresh_all(ledgers: &mut [&mut Self], chain: &dyn Chain) -> Result<Vec<Activity>, ChainError> {
        // Coins are listed once for all ledgers that need it.
        let unknown = |ledger: &&mut Self| ledger.tip.is_none() && ledger.is_listed;
        let scripts: Vec<_> =
            ledgers.iter().filter(|ledger| unknown(ledger)).map(|ledger| ledger.script.clone()).collect();
        let coins = if scripts.is_empty() { Vec::new() } else { chain.coins_of_all(&scripts).await? };
        let mut coins = coins.into_iter();
        let (mut listed, mut since) = (Vec::with_capacity(ledgers.len()), u32::MAX);
        let mut stands: BTreeMap<u32, bool> = BTreeMap::new();
        for ledger in &*ledgers {
            let (coins, from) = match ledger.tip {
                None => {
                    let coins = if ledger.is_listed { coins.next() } else { None };
                    let tip = match &coins {
                        Some(coins) => coins.tip,
                        None => chain.tip().await?,
                    };
                    (coins, tip.block.height.saturating_sub(ledger.look_back))
                }
                Some(Tip { block, .. }) => {
                    let there = match stands.get(&block.height) {
                        Some(there) => *there,
                        None => {
                            let there = chain.block_hash(block.height).await? == Some(block.hash);
                            *stands.entry(block.height).or_insert(there)
                        }
                    };
                    (None, block.height.saturating_sub(if there { OVERLAP } else { REORGANIZATION }))
                }
            };
            listed.push(coins);
            since = since.min(from);
        }
        let scripts: Vec<_> = ledgers.iter().map(|ledger| ledger.script.clone()).collect();
        let news = chain.activities(&scripts, since).await?;
        let ledgers = ledgers.iter_mut().zip(listed).zip(news);
        Ok(ledgers
            .map(|((ledger, listed), news)| {
                if let Some(listed) = listed {
                    ledger.deposits =
                        listed.deposits.into_iter().map(|deposit| (deposit.outpoint, deposit)).collect();
                }
                ledger.take(news, since)
            })
            .collect())
    }

    /// Applies `news`, which is complete from height `since` on.
    fn take(&mut self, news: Activity, since: u32) -> Activity {
        let below = |place: &Place, height| place.block().is_some_and(|block| block.height < height);
        self.deposits.retain(|_, deposit| below(&deposit.place, since));
        self.spends.retain(|_, spend| below(&spend.place, since));
        let (waiting, confirmed): (Vec<_>, Vec<_>) =
            news.deposits.into_iter().partition(|deposit| deposit.place == Place::Mempool);
        self.deposits.extend(confirmed.into_iter().map(|deposit| (deposit.outpoint, deposit)));
        let (unconfirmed, spent): (Vec<_>, Vec<_>) =
            news.spends.into_iter().partition(|spend| spend.place == Place::Mempool);
        self.spends.extend(spent.into_iter().map(|spend| (spend.outpoint, spend)));
        self.tip = Some(news.tip);

        let unspent = self.deposits.values().filter(|deposit| !self.spends.contains_key(&deposit.outpoint));
        let activity = Activity {
            tip: news.tip,
            deposits: unspent.copied().chain(waiting).collect(),
            spends: self.spends.values().copied().chain(unconfirmed).collect(),
        };
        self.forget(news.tip.block.height.saturating_sub(REORGANIZATION));
        activity
    }

    /// Drops coins that were spent below `settled`, and the smallest coins if there are too many.
    fn forget(&mut self, settled: u32) {
        let gone: Vec<_> = self
            .spends
            .values()
            .filter(|spend| spend.place.block().is_some_and(|block| block.height < settled))
            .map(|spend| spend.outpoint)
            .collect();
        for outpoint in gone {
            self.spends.remove(&outpoint);
            self.deposits.remove(&outpoint);
        }
        while self.deposits.len() > MAX_COINS {
            let smallest =
                self.deposits.values().min_by_key(|deposit| deposit.value).map(|deposit| deposit.outpoint);
            let Some(smallest) = smallest else { break };
            self.deposits.remove(&smallest);
        }
    }
}

/// Reads the spending transactions of `activity` that are not in `known` yet, and drops those from `known` that it no
/// longer lists. A transaction that has left the mempool meanwhile stays missing.
///
/// # Errors
/// Those of the chain; [`ChainError::Unavailable`] for a spend whose block was just reorganized away.
pub async fn read_spenders(
    chain: &dyn Chain,
    activity: &Activity,
    known: &mut BTreeMap<Txid, Transaction>,
) -> Result<(), ChainError> {
    known.retain(|txid, _| activity.spends.iter().any(|spend| spend.by == *txid));
    for spend in &activity.spends {
        if known.contains_key(&spend.by) {
            continue;
        }
        let block = spend.place.block();
        match chain.transaction(&spend.by, block.map(|block| &block.hash)).await? {
            Some(transaction) => {
                known.insert(spend.by, transaction);
            }
            // It has left the mempool since. A transaction leaves a block only by a reorganization.
            None if block.is_none() => {}
            None => {
                let problem = format!("{} is in no block any more", spend.by);
                return Err(ChainError::Unavailable(problem));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ::bitcoin::Amount;

    use super::*;
    use crate::bitcoin::chain::MemoryChain;

    fn script(byte: u8) -> ScriptBuf {
        ScriptBuf::new_op_return([byte])
    }

    fn values(activity: &Activity) -> Vec<Amount> {
        activity.deposits.iter().map(|deposit| deposit.value).collect()
    }

    #[tokio::test]
    async fn what_is_taken_back_is_forgotten_and_what_is_old_is_known() {
        let chain = MemoryChain::new();
        chain.mine(1, &script(1));
        chain.mine(300, &script(2));
        let mut ledger = Ledger::new(script(1), 10);
        assert_eq!(values(&ledger.refresh(&chain).await.unwrap()).len(), 1, "listed, however old");
        chain.mine(12, &script(1));
        assert_eq!(values(&ledger.refresh(&chain).await.unwrap()).len(), 13);
        // Deeper than a regular look.
        chain.take_back(11);
        chain.mine(30, &script(2));
        assert_eq!(values(&ledger.refresh(&chain).await.unwrap()).len(), 2);
        let tip = chain.tip().await.unwrap();
        let mut known = Ledger::known(script(1), tip, ledger.deposits.into_values(), []);
        assert_eq!(values(&known.refresh(&chain).await.unwrap()).len(), 2);
    }

    #[tokio::test]
    async fn several_are_refreshed_as_one_and_not_every_one_is_listed() {
        let chain = MemoryChain::new();
        chain.mine(1, &script(1));
        chain.mine(300, &script(2));
        let (mut one, mut other) = (Ledger::new(script(1), 10), Ledger::unlisted(script(1), 10));
        let activities = Ledger::refresh_all(&mut [&mut one, &mut other], &chain).await.unwrap();
        assert_eq!(activities.iter().map(|one| one.deposits.len()).collect::<Vec<_>>(), [1, 0]);
        assert_eq!(chain.scans(), 1);
        chain.mine(2, &script(1));
        let activities = Ledger::refresh_all(&mut [&mut one, &mut other], &chain).await.unwrap();
        assert_eq!(activities.iter().map(|one| one.deposits.len()).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(chain.scans(), 1);
    }

    #[tokio::test]
    async fn only_so_many_coins_are_remembered() {
        let chain = MemoryChain::new();
        chain.mine(300, &script(1));
        let mut ledger = Ledger::new(script(1), 10);
        ledger.refresh(&chain).await.unwrap();
        assert_eq!(ledger.deposits.len(), MAX_COINS);
    }
}
