//! The chain port: the same behaviour of a chain in memory, of a Bitcoin Core node, and of an Esplora server over one.

use std::sync::Arc;

use crate::bitcoind_support::{
    Bitcoind, TestChain,
    esplora::{self, EsploraServer, Settings},
    faucet::{Faucet, Wallet},
};
use bitcoin::{Amount, BlockHash, FeeRate, OutPoint, ScriptBuf, Sequence, Transaction, TxOut, hashes::Hash};
use btcr2_aggregation::{
    bitcoin::{
        chain::{
            Activity, Chain, ChainError, ConfirmationTarget, Deposit, EsploraChain, Place, RejectionKind, Spend,
            TransactionStatus, check_network,
        },
        fees::fee_at,
    },
    protocol::network::Network,
};

/// The chain under test, and the one that makes its blocks.
pub struct World {
    pub chain: Arc<dyn Chain>,
    pub blocks: TestChain,
    pub faucet: Faucet,
    _server: Option<EsploraServer>,
}

impl World {
    pub async fn memory(_name: &str) -> Option<Self> {
        let blocks = TestChain::memory();
        Some(Self { chain: blocks.chain(), faucet: Faucet::new(&blocks, 8).await, blocks, _server: None })
    }

    pub async fn core(name: &str) -> Option<Self> {
        let blocks = TestChain::core(&format!("core-{name}")).await?;
        Some(Self { chain: blocks.chain(), faucet: Faucet::new(&blocks, 8).await, blocks, _server: None })
    }

    pub async fn esplora(name: &str) -> Option<Self> {
        let node = Arc::new(Bitcoind::start(&format!("esplora-{name}")).await?);
        let server = esplora::serve(Arc::clone(&node), Arc::default());
        let blocks = TestChain::Shared(node);
        let chain = Arc::new(EsploraChain::new(&server.url).unwrap());
        Some(Self { chain, faucet: Faucet::new(&blocks, 8).await, blocks, _server: Some(server) })
    }

    pub async fn pay(&mut self, script: &ScriptBuf, sat: u64) -> OutPoint {
        self.faucet.pay(&self.blocks, script, Amount::from_sat(sat)).await
    }

    pub async fn height(&self) -> u32 {
        self.chain.tip().await.unwrap().block.height
    }
}

/// Runs a test on each kind of chain. `World` and `run` have to be in scope.
macro_rules! on_every_chain {
    ($($name:ident)*) => {
        mod memory { $(#[test] fn $name() { super::run(stringify!($name), super::World::memory, super::$name); })* }
        mod core { $(#[test] fn $name() { super::run(stringify!($name), super::World::core, super::$name); })* }
        mod esplora_server {
            $(#[test] fn $name() { super::run(stringify!($name), super::World::esplora, super::$name); })*
        }
    };
}

pub(crate) use on_every_chain;

pub fn run<'a, W, T>(name: &'a str, world: impl FnOnce(&'a str) -> W, test: impl FnOnce(World) -> T)
where
    W: Future<Output = Option<World>>,
    T: Future<Output = ()>,
{
    actix_rt::System::new().block_on(async {
        if let Some(world) = world(name).await {
            test(world).await;
        }
    });
}

on_every_chain! {
    the_network_is_told_by_its_blocks
    blocks_are_found_by_height_and_hash
    a_deposit_is_seen_in_the_mempool_and_then_in_its_block
    a_spend_is_seen_with_the_transaction_that_made_it
    a_block_that_is_taken_back_returns_its_transactions_to_the_mempool
    a_transaction_has_a_place
    a_transaction_is_taken_as_often_as_it_is_handed_in
    a_refusal_says_why
    who_pays_more_replaces_who_pays_less
    a_package_is_taken_as_a_whole
    a_long_history_is_read_to_its_end
    several_scripts_are_read_at_once
    a_chain_without_traffic_estimates_no_fee
}

fn member() -> Wallet {
    Wallet::new(3)
}

fn only<T: Copy>(items: &[T]) -> T {
    let [item] = items else { panic!("{} items", items.len()) };
    *item
}

/// What `wallet` got at `outpoint`, less a fee, to `script`.
fn forward(wallet: &Wallet, outpoint: OutPoint, sat: u64, fee: u64, script: ScriptBuf) -> Transaction {
    let output = TxOut { value: Amount::from_sat(sat - fee), script_pubkey: script };
    wallet.spend(&[(outpoint, Amount::from_sat(sat))], vec![output])
}

async fn the_network_is_told_by_its_blocks(world: World) {
    check_network(&*world.chain, Network::Regtest).await.unwrap();
    for other in [Network::Bitcoin, Network::Signet, Network::Mutinynet, Network::Testnet3, Network::Testnet4] {
        let error = check_network(&*world.chain, other).await.unwrap_err();
        assert!(matches!(error, ChainError::WrongNetwork { expected, .. } if expected == other), "{error}");
        assert!(!error.is_transient());
    }
}

async fn blocks_are_found_by_height_and_hash(world: World) {
    let before = world.chain.tip().await.unwrap();
    world.blocks.mine(2).await;
    let tip = world.chain.tip().await.unwrap();
    assert_eq!(tip.block.height, before.block.height + 2);
    assert_eq!((tip.depth(&tip.block), tip.depth(&before.block), before.depth(&tip.block)), (1, 3, 0));
    let header = world.chain.header(&tip.block.hash).await.unwrap().unwrap();
    assert_eq!(header.block_hash(), tip.block.hash);
    assert!(tip.median_time <= header.time && tip.median_time >= before.median_time);
    assert_eq!(world.chain.block_hash(tip.block.height).await.unwrap(), Some(tip.block.hash));
    assert_eq!(world.chain.block_hash(tip.block.height + 1).await.unwrap(), None);
    assert_eq!(world.chain.header(&BlockHash::from_byte_array([7; 32])).await.unwrap(), None);
}

async fn a_deposit_is_seen_in_the_mempool_and_then_in_its_block(mut world: World) {
    let script = member().script();
    let since = world.height().await;
    let nothing = |activity: Activity| assert_eq!((activity.deposits, activity.spends), (vec![], vec![]));
    nothing(world.chain.coins(&script).await.unwrap());
    nothing(world.chain.activity(&script, since).await.unwrap());

    let outpoint = world.pay(&script, 50_000).await;
    let mut expected = Deposit::new(outpoint, Amount::from_sat(50_000), Place::Mempool);
    assert_eq!(only(&world.chain.coins(&script).await.unwrap().deposits), expected);
    assert_eq!(only(&world.chain.activity(&script, since + 10).await.unwrap().deposits), expected);

    world.blocks.mine(3).await;
    let block = world.chain.block_hash(since + 1).await.unwrap().unwrap();
    expected.place = Place::Block(btcr2_aggregation::bitcoin::chain::BlockId { height: since + 1, hash: block });
    for activity in
        [world.chain.coins(&script).await.unwrap(), world.chain.activity(&script, since + 1).await.unwrap()]
    {
        assert_eq!((only(&activity.deposits), activity.tip.block.height), (expected, since + 3));
    }
    nothing(world.chain.activity(&script, since + 2).await.unwrap());
}

async fn a_spend_is_seen_with_the_transaction_that_made_it(mut world: World) {
    let wallet = member();
    let script = wallet.script();
    let old = world.pay(&script, 50_000).await;
    world.blocks.mine(1).await;
    let since = world.height().await + 1;
    let spending = forward(&wallet, old, 50_000, 500, Wallet::new(4).script());
    world.chain.submit(&spending).await.unwrap();
    let mut expected = Spend { outpoint: old, by: spending.compute_txid(), place: Place::Mempool };
    let activity = world.chain.activity(&script, since).await.unwrap();
    assert_eq!((activity.deposits, only(&activity.spends)), (vec![], expected));
    // A coin that a transaction in the mempool spends is a coin until a block has that transaction.
    let coins = world.chain.coins(&script).await.unwrap();
    assert_eq!((only(&coins.deposits).outpoint, only(&coins.spends)), (old, expected));

    world.blocks.mine(1).await;
    let tip = world.chain.tip().await.unwrap();
    expected.place = Place::Block(tip.block);
    let activity = world.chain.activity(&script, since).await.unwrap();
    assert_eq!((activity.deposits, only(&activity.spends)), (vec![], expected));
    let coins = world.chain.coins(&script).await.unwrap();
    assert_eq!((coins.deposits, coins.spends), (vec![], vec![]));
}

async fn several_scripts_are_read_at_once(mut world: World) {
    let since = world.height().await + 1;
    let wallets = [Wallet::new(3), Wallet::new(4), Wallet::new(5)];
    let paid = world.pay(&wallets[0].script(), 50_000).await;
    world.pay(&wallets[1].script(), 60_000).await;
    world.blocks.mine(1).await;
    let spending = forward(&wallets[0], paid, 50_000, 500, wallets[1].script());
    world.chain.submit(&spending).await.unwrap();
    let scripts = wallets.map(|wallet| wallet.script());
    let together = world.chain.activities(&scripts, since).await.unwrap();
    assert_eq!(together.iter().map(|one| one.deposits.len()).collect::<Vec<_>>(), [1, 2, 0]);
    for (script, activity) in scripts.iter().zip(together) {
        assert_eq!(world.chain.activity(script, since).await.unwrap(), activity);
    }
    assert_eq!(world.chain.activities(&[], since).await.unwrap(), []);
    // The coins of all of them too.
    let coins = world.chain.coins_of_all(&scripts).await.unwrap();
    assert_eq!(
        coins.iter().map(|one| (one.deposits.len(), one.spends.len())).collect::<Vec<_>>(),
        [(1, 1), (2, 0), (0, 0)]
    );
    for (script, activity) in scripts.iter().zip(coins) {
        assert_eq!(world.chain.coins(script).await.unwrap(), activity);
    }
}

async fn a_block_that_is_taken_back_returns_its_transactions_to_the_mempool(mut world: World) {
    let script = member().script();
    let outpoint = world.pay(&script, 50_000).await;
    world.blocks.mine(2).await;
    let old = world.chain.tip().await.unwrap();
    world.blocks.take_back(2).await;
    let tip = world.chain.tip().await.unwrap();
    assert_eq!(tip.block.height, old.block.height - 2);
    let deposit = only(&world.chain.activity(&script, tip.block.height).await.unwrap().deposits);
    assert_eq!((deposit.outpoint, deposit.place), (outpoint, Place::Mempool));
    assert_eq!(only(&world.chain.coins(&script).await.unwrap().deposits), deposit);

    world.blocks.mine_empty(1).await;
    world.blocks.mine(1).await;
    let deposit = only(&world.chain.activity(&script, tip.block.height).await.unwrap().deposits);
    let new = world.chain.tip().await.unwrap();
    assert_eq!(deposit.place, Place::Block(new.block));
    assert_ne!(new.block.hash, old.block.hash);
}

async fn a_transaction_has_a_place(mut world: World) {
    let payment = world.faucet.payment(&member().script(), Amount::from_sat(50_000));
    let (txid, since) = (payment.compute_txid(), world.height().await);
    let chain = Arc::clone(&world.chain);
    assert_eq!(chain.status(&txid, since).await.unwrap(), TransactionStatus::Unknown);
    assert_eq!(chain.transaction(&txid, None).await.unwrap(), None);
    chain.submit(&payment).await.unwrap();
    assert_eq!(chain.status(&txid, since).await.unwrap(), TransactionStatus::At(Place::Mempool));
    assert_eq!(chain.transaction(&txid, None).await.unwrap().as_ref(), Some(&payment));
    world.blocks.mine(1).await;
    let block = chain.tip().await.unwrap().block;
    world.blocks.mine(2).await;
    assert_eq!(chain.status(&txid, since).await.unwrap(), TransactionStatus::At(Place::Block(block)));
    assert_eq!(chain.transaction(&txid, Some(&block.hash)).await.unwrap(), Some(payment));
}

async fn a_transaction_is_taken_as_often_as_it_is_handed_in(mut world: World) {
    let payment = world.faucet.payment(&member().script(), Amount::from_sat(50_000));
    world.chain.submit(&payment).await.unwrap();
    world.chain.submit(&payment).await.unwrap();
    world.blocks.mine(1).await;
    world.chain.submit(&payment).await.unwrap();
}

async fn a_refusal_says_why(mut world: World) {
    let wallet = member();
    let coin = world.pay(&wallet.script(), 50_000).await;
    let refused = |result: Result<(), ChainError>| match result {
        Err(ChainError::Rejected(rejection)) => (rejection.kind, rejection.reason),
        other => panic!("{other:?}"),
    };
    let free = forward(&wallet, coin, 50_000, 0, wallet.script());
    let (kind, reason) = refused(world.chain.submit(&free).await);
    assert_eq!(kind, RejectionKind::FeeTooLow, "{reason}");
    let missing = OutPoint { vout: 1000, ..coin };
    let (kind, reason) =
        refused(world.chain.submit(&forward(&wallet, missing, 50_000, 500, wallet.script())).await);
    assert_eq!(kind, RejectionKind::InputsSpent, "{reason}");
    let burning = forward(&wallet, coin, 60_000, 500, wallet.script());
    let (kind, reason) = refused(world.chain.submit(&burning).await);
    assert_eq!(kind, RejectionKind::Other, "{reason}");

    world.blocks.mine(1).await;
    let waiting = forward(&wallet, coin, 50_000, 500, wallet.script());
    let waiting = wallet.sign(waiting, &[Amount::from_sat(50_000)], Sequence::from_height(3));
    for _ in 0..2 {
        let (kind, reason) = refused(world.chain.submit(&waiting).await);
        assert_eq!(kind, RejectionKind::NotFinal, "{reason}");
        world.blocks.mine(1).await;
    }
    world.chain.submit(&waiting).await.unwrap();
    world.blocks.mine(1).await;
    let (kind, reason) = refused(world.chain.submit(&forward(&wallet, coin, 50_000, 900, wallet.script())).await);
    assert_eq!(kind, RejectionKind::InputsSpent, "{reason}");
}

async fn who_pays_more_replaces_who_pays_less(mut world: World) {
    let wallet = member();
    let coin = world.pay(&wallet.script(), 50_000).await;
    world.blocks.mine(1).await;
    let first = forward(&wallet, coin, 50_000, 500, wallet.script());
    world.chain.submit(&first).await.unwrap();
    let same = forward(&wallet, coin, 50_000, 500, Wallet::new(4).script());
    let Err(ChainError::Rejected(rejection)) = world.chain.submit(&same).await else { panic!() };
    assert_eq!(rejection.kind, RejectionKind::FeeTooLow, "{rejection}");
    let more = forward(&wallet, coin, 50_000, 2_000, Wallet::new(4).script());
    world.chain.submit(&more).await.unwrap();
    assert_eq!(world.blocks.mempool().await, [more.compute_txid()]);
    let spends = world.chain.activity(&wallet.script(), world.height().await + 1).await.unwrap().spends;
    assert_eq!(only(&spends).by, more.compute_txid());

    // The chain states how much more a replacement has to pay, or the usual amount suffices.
    let stated = world.chain.replacement_increment().await.unwrap();
    let increment = fee_at(stated.unwrap_or(FeeRate::BROADCAST_MIN), more.vsize() as u64).to_sat();
    if stated.is_some() {
        let little = forward(&wallet, coin, 50_000, 2_000 + increment - 1, wallet.script());
        let Err(ChainError::Rejected(rejection)) = world.chain.submit(&little).await else { panic!() };
        assert_eq!(rejection.kind, RejectionKind::FeeTooLow, "{rejection}");
    }
    let enough = forward(&wallet, coin, 50_000, 2_000 + increment, wallet.script());
    world.chain.submit(&enough).await.unwrap();
    assert_eq!(world.blocks.mempool().await, [enough.compute_txid()]);
}

async fn a_package_is_taken_as_a_whole(mut world: World) {
    let wallet = member();
    let coin = world.pay(&wallet.script(), 50_000).await;
    world.blocks.mine(1).await;
    let parent = forward(&wallet, coin, 50_000, 120, wallet.script());
    let change = OutPoint { txid: parent.compute_txid(), vout: 0 };
    let child = forward(&wallet, change, 49_880, 5_000, wallet.script());
    world.chain.submit_package(&parent, &child).await.unwrap();
    world.chain.submit_package(&parent, &child).await.unwrap();
    let mut expected = [parent.compute_txid(), child.compute_txid()];
    let mut mempool = world.blocks.mempool().await;
    expected.sort();
    mempool.sort();
    assert_eq!(mempool, expected);
    // A child that pays more takes the place of the first one.
    let richer = forward(&wallet, change, 49_880, 9_000, wallet.script());
    world.chain.submit_package(&parent, &richer).await.unwrap();
    assert!(world.blocks.mempool().await.contains(&richer.compute_txid()));
    assert!(!world.blocks.mempool().await.contains(&child.compute_txid()));
    let poorer = forward(&wallet, change, 49_880, 200, wallet.script());
    assert!(matches!(world.chain.submit_package(&parent, &poorer).await, Err(ChainError::Rejected(_))));
    world.blocks.mine(1).await;
    assert!(world.blocks.mempool().await.is_empty());
}

async fn a_long_history_is_read_to_its_end(mut world: World) {
    let script = member().script();
    let since = world.height().await + 1;
    for sat in 1..=7 {
        world.pay(&script, 10_000 * sat).await;
        world.blocks.mine(1).await;
    }
    let values = |activity: Activity| {
        let mut values: Vec<_> = activity.deposits.iter().map(|deposit| deposit.value.to_sat() / 10_000).collect();
        values.sort_unstable();
        values
    };
    assert_eq!(values(world.chain.coins(&script).await.unwrap()), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(values(world.chain.activity(&script, since).await.unwrap()), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(values(world.chain.activity(&script, since + 4).await.unwrap()), [5, 6, 7]);
}

async fn a_chain_without_traffic_estimates_no_fee(world: World) {
    assert_eq!(world.chain.fee_estimate(ConfirmationTarget::new(6)).await.unwrap(), None);
}

#[test]
fn a_server_without_packages_gets_one_transaction_after_the_other() {
    actix_rt::System::new().block_on(async {
        let name = "a_server_without_packages_gets_one_transaction_after_the_other";
        let Some(node) = Bitcoind::start(name).await else { return };
        let node = Arc::new(node);
        let settings = Settings { without_packages: true, ..Settings::default() };
        let server = esplora::serve(Arc::clone(&node), Arc::new(settings));
        let blocks = TestChain::Shared(node);
        let chain = Arc::new(EsploraChain::new(&server.url).unwrap());
        let faucet = Faucet::new(&blocks, 8).await;
        a_package_is_taken_as_a_whole(World { chain, blocks, faucet, _server: Some(server) }).await;
    });
}
