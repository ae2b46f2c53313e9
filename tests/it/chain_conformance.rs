//! The chain port: the same behaviour of a chain in memory, of a Bitcoin Core node, and of an Esplora server over one.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use crate::bitcoind_support::{
    Bitcoind, TestChain,
    esplora::{self, EsploraServer, Settings},
    faucet::{Faucet, Wallet},
};
use bitcoin::{Amount, BlockHash, FeeRate, OutPoint, ScriptBuf, Sequence, Transaction, TxOut, hashes::Hash};
use btcr2_aggregation::{
    bitcoin::chain::{
        Activity, Chain, ChainError, ChainSource, ConfirmationTarget, CoreAuth, CoreChain, Deposit, EsploraChain,
        Place, RejectionKind, Spend, TransactionStatus, check_network,
    },
    protocol::network::Network,
};
use serde_json::{Value, json};

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
fn an_esplora_server_is_asked_for_the_rate_of_the_target() {
    actix_rt::System::new().block_on(async {
        let Some(node) = Bitcoind::start("an_esplora_server_is_asked_for_the_rate_of_the_target").await else {
            return;
        };
        let fees = BTreeMap::from([(1, 9.5), (3, 4.0), (144, 1.0), (504, -3.0)]);
        let settings = Settings { fees: Mutex::new(fees), without_packages: true, ..Settings::default() };
        let server = esplora::serve(Arc::new(node), Arc::new(settings));
        let chain = EsploraChain::new(&server.url).unwrap();
        for (target, expected) in [(1, Some(2375)), (2, Some(2375)), (6, Some(1000)), (200, Some(250)), (900, None)]
        {
            let estimate = chain.fee_estimate(ConfirmationTarget::new(target)).await.unwrap();
            assert_eq!(estimate, expected.map(FeeRate::from_sat_per_kwu), "{target}");
        }
    });
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

#[test]
fn a_source_that_cannot_be_used_says_whose_fault_it_is() {
    actix_rt::System::new().block_on(async {
        let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = unused.local_addr().unwrap();
        drop(unused);
        for source in [format!("core=http://u:sesame@{address}"), format!("esplora=http://{address}/api")] {
            let source: ChainSource = source.parse().unwrap();
            let error = source.connect(Network::Regtest).await.unwrap_err();
            assert!(matches!(error, ChainError::Unavailable(_)) && error.is_transient(), "{error}");
            assert!(error.to_string().contains(&address.to_string()) && !error.to_string().contains("sesame"));
        }
        let without_cookie = CoreChain::new(format!("http://{address}"), CoreAuth::Cookie(PathBuf::from("/nowhere")));
        let error = without_cookie.tip().await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("/nowhere"), "{error}");

        let name = "a_source_that_cannot_be_used_says_whose_fault_it_is";
        let extra = ["-rpcauth=alice:7d9ba5ae63c3d4dc30583ff4fe65a67e$9e3634e81c11659e3de036d0bf88f89cd169c1039e6e09607562d54765c649cc"];
        let Some(mut node) = Bitcoind::start_with(name, &extra).await else { return };
        let at = node.url().replacen("http://", "", 1);
        let error = format!("core=http://alice:sesame@{at}").parse::<ChainSource>().unwrap();
        let error = error.connect(Network::Regtest).await.unwrap_err();
        assert!(matches!(error, ChainError::Misconfigured(_)) && !error.is_transient(), "{error}");
        assert!(!error.to_string().contains("sesame"));

        let source: ChainSource = format!("core={}?cookie={}", node.url(), node.cookie_file().display()).parse().unwrap();
        let chain = source.connect(Network::Regtest).await.unwrap();
        assert!(matches!(source.connect(Network::Testnet4).await, Err(ChainError::WrongNetwork { .. })));
        node.stop().await;
        assert!(chain.tip().await.unwrap_err().is_transient());
        // It comes back with another cookie.
        node.start_again().await;
        chain.tip().await.unwrap();
    });
}

/// A node that answers by `answers`, given the method and its arguments: with a result, or with a code and a message.
pub fn stub_node(answers: impl Fn(&str, &Value) -> Result<Value, (i32, &'static str)> + Send + 'static) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("core=http://u:p@{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut line, mut length) = (String::new(), 0);
            while stream.read_line(&mut line).unwrap() > 2 {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let request: Value = serde_json::from_slice(&body).unwrap();
            let mut answer = match answers(request["method"].as_str().unwrap(), &request["params"]) {
                Ok(result) => json!({ "result": result, "error": null }),
                Err((code, message)) => json!({ "result": null, "error": { "code": code, "message": message } }),
            };
            answer["id"] = request["id"].clone();
            answer["jsonrpc"] = json!("2.0");
            let body = answer.to_string();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            stream.get_mut().write_all((head + &body).as_bytes()).unwrap();
        }
    });
    url
}

#[test]
fn a_node_that_cannot_be_used_is_refused_at_the_start() {
    actix_rt::System::new().block_on(async {
        let genesis = bitcoin::constants::genesis_block(bitcoin::Network::Testnet4).block_hash();
        let connect = async |results: Value| {
            let answers =
                move |method: &str, _: &Value| results.get(method).cloned().ok_or((-32601, "Method not found"));
            let source: ChainSource = stub_node(answers).parse().unwrap();
            source.connect(Network::Testnet4).await
        };
        let old = connect(json!({ "getblockhash": genesis })).await.unwrap_err();
        assert!(!old.is_transient() && old.to_string().contains("29 or newer"), "{old}");
        let mut fit = json!({
            "getblockhash": genesis,
            "getdescriptoractivity": { "activity": [] },
            "getblockchaininfo": {
                "chain": "testnet4", "blocks": 7, "headers": 28, "bestblockhash": genesis, "mediantime": 1,
                "initialblockdownload": true, "verificationprogress": 0.25,
            },
        });
        let syncing = connect(fit.clone()).await.unwrap_err();
        assert!(syncing.is_transient() && syncing.to_string().contains("7 of 28 blocks, 25.0 %"), "{syncing}");
        fit["getblockchaininfo"]["initialblockdownload"] = json!(false);
        connect(fit).await.unwrap();
    });
}

#[test]
fn a_node_that_fails_on_the_way_is_not_asked_for_the_same_blocks_again() {
    actix_rt::System::new().block_on(async {
        const TIP: u64 = 150;
        let hash = |height: u64| format!("{height:064x}");
        let read = Arc::new(Mutex::new(BTreeMap::<String, u32>::new()));
        let calls = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&read);
        let answers = move |method: &str, arguments: &Value| match method {
            "getblockchaininfo" => Ok(json!({
                "chain": "regtest", "blocks": TIP, "headers": TIP, "bestblockhash": hash(TIP), "mediantime": 1,
                "initialblockdownload": true, "verificationprogress": 1.0, "pruneheight": 97,
            })),
            "getblockhash" => Ok(json!(hash(arguments[0].as_u64().unwrap()))),
            _ => {
                let mut calls = calls.lock().unwrap();
                *calls += 1;
                match *calls {
                    3 => Err((-28, "busy")),
                    5 => Err((-1, "Block not available (pruned data)")),
                    _ => {
                        for hash in arguments[0].as_array().unwrap() {
                            *counted.lock().unwrap().entry(hash.as_str().unwrap().to_owned()).or_default() += 1;
                        }
                        Ok(json!({ "activity": [] }))
                    }
                }
            }
        };
        let url = stub_node(answers).replace("core=http://u:p@", "http://");
        let login = CoreAuth::Password { user: "u".to_owned(), password: "p".to_owned().into() };
        let chain = CoreChain::new(url, login);
        let script = member().script();
        assert!(chain.activity(&script, 1).await.unwrap_err().is_transient());
        assert_eq!(read.lock().unwrap().len(), 96);
        let pruned = chain.activity(&script, 1).await.unwrap_err();
        assert!(matches!(pruned, ChainError::Pruned(_)) && !pruned.is_transient());
        assert!(pruned.to_string().contains("it has blocks 97 to 150"), "{pruned}");
        chain.activity(&script, 1).await.unwrap();
        let read = read.lock().unwrap();
        assert_eq!((read.len(), read.values().max()), (150, Some(&1)));
    });
}
