//! The chain port: the signals of scripts (rules T-1 to T-3), on every kind of chain.

use std::sync::{Arc, Mutex};

use crate::bitcoind_support::{
    Bitcoind, TestChain,
    esplora::{self, Settings},
    faucet::{Faucet, Wallet},
};
use crate::chain_conformance::{World, on_every_chain, run};
use crate::chain_sources::stub_node;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxOut, consensus::encode::serialize_hex};
use btcr2_aggregation::{
    bitcoin::chain::{Chain, ChainError, CoreAuth, CoreChain, EsploraChain, SignalSeen, Signals},
    protocol::hash::SignalBytes,
};
use serde_json::{Value, json};

on_every_chain! {
    a_signal_is_seen_behind_thirty_payments
    only_a_spend_whose_last_output_is_a_signal_is_one
    a_transaction_is_one_signal_of_each_script_it_spends
    a_signal_is_in_a_block
}

const COIN: u64 = 50_000;

fn signal(byte: u8) -> TxOut {
    TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::new_op_return([byte; 32]) }
}

fn change(sat: u64) -> TxOut {
    TxOut { value: Amount::from_sat(sat), script_pubkey: Wallet::new(9).script() }
}

async fn signals(chain: &dyn Chain, wallet: &Wallet) -> Signals {
    let mut signals = chain.signals(&[wallet.script()], 0).await.unwrap();
    assert_eq!(signals.len(), 1);
    signals.remove(0)
}

fn bytes(signals: &Signals) -> Vec<u8> {
    let one = |signal: &SignalSeen| {
        assert_eq!(signal.bytes, SignalBytes::from_bytes([signal.bytes.as_bytes()[0]; 32]));
        signal.bytes.as_bytes()[0]
    };
    signals.seen.iter().map(one).collect()
}

impl World {
    /// So many coins of the wallet, in a block.
    async fn coins(&mut self, wallet: &Wallet, count: usize) -> Vec<OutPoint> {
        let mut coins = Vec::new();
        for _ in 0..count {
            coins.push(self.pay(&wallet.script(), COIN).await);
        }
        self.blocks.mine(1).await;
        coins
    }

    /// Spends one coin of the wallet to these outputs, in a block.
    async fn spend(&self, wallet: &Wallet, coin: OutPoint, outputs: Vec<TxOut>) -> Transaction {
        let transaction = wallet.spend(&[(coin, Amount::from_sat(COIN))], outputs);
        self.blocks.mine_with(1, std::slice::from_ref(&transaction)).await;
        transaction
    }
}

async fn a_signal_is_seen_behind_thirty_payments(mut world: World) {
    let wallet = Wallet::new(3);
    let coins = world.coins(&wallet, 1).await;
    let announced = world.spend(&wallet, coins[0], vec![change(40_000), signal(1)]).await;
    let height = world.height().await;
    // A server lists the newest first, and so the signal last.
    world.faucet = Faucet::new(&world.blocks, 30).await;
    for _ in 0..30 {
        world.pay(&wallet.script(), COIN).await;
    }
    world.blocks.mine(1).await;
    let found = signals(&*world.chain, &wallet).await;
    assert_eq!(bytes(&found), [1]);
    assert_eq!((found.seen[0].txid, found.seen[0].block.height), (announced.compute_txid(), height));
    assert_eq!(found.tip, world.chain.tip().await.unwrap());
    // What is older than what is asked for is left out.
    assert!(world.chain.signals(&[wallet.script()], height + 1).await.unwrap()[0].seen.is_empty());
    assert_eq!(bytes(&world.chain.signals(&[wallet.script()], height).await.unwrap()[0]), [1]);
}

async fn only_a_spend_whose_last_output_is_a_signal_is_one(mut world: World) {
    let wallet = Wallet::new(3);
    // To the address, with the output of a signal: a payment proves nothing.
    let (other, paid) = (Wallet::new(4), TxOut { value: Amount::from_sat(30_000), script_pubkey: wallet.script() });
    let foreign = world.coins(&other, 1).await;
    world.spend(&other, foreign[0], vec![paid, signal(1)]).await;
    let coins = world.coins(&wallet, 5).await;
    // The last output decides, whatever the others are.
    world.spend(&wallet, coins[0], vec![signal(2), change(40_000)]).await;
    world.spend(&wallet, coins[1], vec![signal(3), change(40_000), signal(4)]).await;
    // Exactly a push of 32 bytes: not fewer, not by OP_PUSHDATA1, and nothing behind it.
    let short = ScriptBuf::new_op_return([5; 31]);
    let pushed = ScriptBuf::from_bytes([&[0x6a, 0x4c, 32], [6; 32].as_slice()].concat());
    let longer = ScriptBuf::from_bytes([&[0x6a, 32], [7; 32].as_slice(), &[0]].concat());
    for (coin, script_pubkey) in coins[2..].iter().zip([short, pushed, longer]) {
        world.spend(&wallet, *coin, vec![change(40_000), TxOut { value: Amount::ZERO, script_pubkey }]).await;
    }
    assert_eq!(bytes(&signals(&*world.chain, &wallet).await), [4]);
    assert_eq!(bytes(&signals(&*world.chain, &other).await), [1], "whose coin is spent, announces");
}

async fn a_transaction_is_one_signal_of_each_script_it_spends(mut world: World) {
    let (first, second) = (Wallet::new(3), Wallet::new(4));
    let coins = world.coins(&first, 2).await;
    let other = world.coins(&second, 1).await;
    let values = [Amount::from_sat(COIN); 3];
    let inputs: Vec<_> = [coins, other].concat().into_iter().zip(values).collect();
    let unsigned = first.spend(&inputs, vec![change(100_000), signal(1)]);
    // Each key signs its inputs; the scripts that the others' sighash commits to are those of both.
    let both = spend_of_both(&first, &second, unsigned, &values);
    world.blocks.mine_with(1, std::slice::from_ref(&both)).await;
    let scripts = [first.script(), second.script(), Wallet::new(5).script()];
    let found = world.chain.signals(&scripts, 0).await.unwrap();
    assert_eq!(found.iter().map(bytes).collect::<Vec<_>>(), [vec![1], vec![1], vec![]]);
    assert!(found[..2].iter().all(|signals| signals.seen[0].txid == both.compute_txid()));
    assert_eq!(world.chain.signals(&[], 0).await.unwrap(), []);
}

/// The last input is the second wallet's.
fn spend_of_both(first: &Wallet, second: &Wallet, unsigned: Transaction, values: &[Amount]) -> Transaction {
    let last = unsigned.input.len() - 1;
    let scripts: Vec<_> =
        (0..=last).map(|index| if index == last { second.script() } else { first.script() }).collect();
    let mut signed = first.sign_with(unsigned, values, &scripts, Sequence::MAX);
    signed.input[last].witness =
        second.sign_with(signed.clone(), values, &scripts, Sequence::MAX).input[last].witness.clone();
    signed
}

async fn a_signal_is_in_a_block(mut world: World) {
    let wallet = Wallet::new(3);
    let coins = world.coins(&wallet, 2).await;
    let announcing =
        |coin, byte| wallet.spend(&[(coin, Amount::from_sat(COIN))], vec![change(40_000), signal(byte)]);
    world.chain.submit(&announcing(coins[0], 1)).await.unwrap();
    assert!(signals(&*world.chain, &wallet).await.seen.is_empty());

    world.blocks.mine(1).await;
    let tip = world.chain.tip().await.unwrap();
    let found = signals(&*world.chain, &wallet).await;
    let [seen] = found.seen.as_slice() else { panic!("{found:?}") };
    assert_eq!((seen.block, found.tip.depth(&seen.block)), (tip.block, 1));
    // What the tip and the header say, which are other questions.
    let header = world.chain.header(&tip.block.hash).await.unwrap().unwrap();
    assert_eq!((seen.times.time, seen.times.mediantime), (header.time, tip.median_time));
    assert!(seen.times.mediantime < seen.times.time, "{seen:?}");

    world.blocks.mine_with(3, &[announcing(coins[1], 2)]).await;
    let found = signals(&*world.chain, &wallet).await;
    assert_eq!(bytes(&found), [1, 2]);
    assert_eq!(found.seen.iter().map(|one| found.tip.depth(&one.block)).collect::<Vec<_>>(), [4, 3]);
    // Taken back, both wait for a block again.
    world.blocks.take_back(4).await;
    assert!(signals(&*world.chain, &wallet).await.seen.is_empty());
}

#[test]
fn a_chain_without_old_blocks_is_an_error() {
    actix_rt::System::new().block_on(async {
        let TestChain::Memory(chain) = TestChain::memory() else { unreachable!() };
        chain.mine(10, &Wallet::new(7).script());
        chain.set_pruned_below(5);
        let error = chain.signals(&[Wallet::new(3).script()], 0).await.unwrap_err();
        assert!(matches!(error, ChainError::Pruned(_)), "{error}");
        chain.signals(&[Wallet::new(3).script()], 5).await.unwrap();
    });
}

#[test]
fn a_server_that_hides_what_is_spent_is_asked_for_it() {
    actix_rt::System::new().block_on(async {
        let name = "a_server_that_hides_what_is_spent_is_asked_for_it";
        let Some(node) = Bitcoind::start(name).await else { return };
        let node = Arc::new(node);
        let settings = Settings { hides_prevouts: true, ..Settings::default() };
        let server = esplora::serve(Arc::clone(&node), Arc::new(settings));
        let blocks = TestChain::Shared(node);
        let chain = EsploraChain::new(&server.url).unwrap();
        let (mut faucet, wallet) = (Faucet::new(&blocks, 1).await, Wallet::new(3));
        let coin = faucet.pay(&blocks, &wallet.script(), Amount::from_sat(COIN)).await;
        blocks.mine(1).await;
        let announcing = wallet.spend(&[(coin, Amount::from_sat(COIN))], vec![change(40_000), signal(1)]);
        blocks.mine_with(1, &[announcing]).await;
        assert_eq!(bytes(&signals(&chain, &wallet).await), [1]);
    });
}

#[test]
fn a_node_finds_its_blocks_by_filters() {
    actix_rt::System::new().block_on(async {
        let name = "a_node_finds_its_blocks_by_filters";
        let Some(node) = Bitcoind::start_with(name, &["-blockfilterindex=1"]).await else { return };
        let blocks = TestChain::Core(node);
        let (mut faucet, wallet) = (Faucet::new(&blocks, 2).await, Wallet::new(3));
        let mut announced = Vec::new();
        for byte in [1, 2] {
            let coin = faucet.pay(&blocks, &wallet.script(), Amount::from_sat(COIN)).await;
            blocks.mine(70).await;
            let announcing = wallet.spend(&[(coin, Amount::from_sat(COIN))], vec![change(40_000), signal(byte)]);
            blocks.mine_with(1, std::slice::from_ref(&announcing)).await;
            announced.push(announcing.compute_txid());
        }
        // The index follows the chain in its own time.
        blocks.node().rpc("syncwithvalidationinterfacequeue", json!([])).await;
        let index = blocks.node().rpc("getindexinfo", json!([])).await;
        let tip = blocks.chain().tip().await.unwrap().block.height;
        assert!(tip > 240 && index["basic block filter index"]["best_block_height"] == tip, "{index}");
        let scripts = [wallet.script(), Wallet::new(4).script()];
        let found = blocks.chain().signals(&scripts, 0).await.unwrap();
        assert_eq!(found[0].seen.iter().map(|signal| signal.txid).collect::<Vec<_>>(), announced);
        assert!(found[1].seen.is_empty());
    });
}

/// A node of 1000 blocks, with or without filters of all of them, that records which blocks it was asked to read.
fn filtering_node(filtered_to: u32, asked: &Arc<Mutex<Vec<String>>>) -> CoreChain {
    const TIP: u32 = 1000;
    let hash = |height: u32| format!("{height:064x}");
    let announcing = Wallet::new(3).spend(&[(OutPoint::null(), Amount::from_sat(COIN))], vec![signal(1)]);
    let asked = Arc::clone(asked);
    let answers = move |method: &str, arguments: &Value| match method {
        "getblockchaininfo" => Ok(json!({
            "chain": "regtest", "blocks": TIP, "headers": TIP, "bestblockhash": hash(TIP), "mediantime": 1,
            "initialblockdownload": false, "verificationprogress": 1.0,
        })),
        "getindexinfo" => Ok(json!({
            "basic block filter index": { "synced": true, "best_block_height": filtered_to },
        })),
        "scanblocks" => Ok(json!({
            "from_height": 0, "to_height": arguments[3], "relevant_blocks": [hash(77)], "completed": true,
        })),
        "getblockhash" => Ok(json!(hash(u32::try_from(arguments[0].as_u64().unwrap()).unwrap()))),
        "getblockheader" => Ok(json!({ "time": 8, "mediantime": 7 })),
        "getrawtransaction" => Ok(json!(serialize_hex(&announcing))),
        _ => {
            let blocks: Vec<String> = serde_json::from_value(arguments[0].clone()).unwrap();
            let script = Wallet::new(3).script();
            let spend = json!({
                "type": "spend", "spend_txid": announcing.compute_txid(), "spend_vin": 0,
                "prevout_txid": announcing.compute_txid(), "prevout_vout": 1, "amount": 1.0,
                "prevout_spk": { "hex": script }, "blockhash": hash(77), "height": 77,
            });
            let activity = if blocks.contains(&hash(77)) { vec![spend] } else { Vec::new() };
            asked.lock().unwrap().extend(blocks);
            Ok(json!({ "activity": activity }))
        }
    };
    let url = stub_node(answers).replace("core=http://u:p@", "http://");
    CoreChain::new(url, CoreAuth::Password { user: "u".to_owned(), password: "p".to_owned().into() })
}

#[test]
fn a_node_without_filters_of_all_blocks_reads_every_block() {
    actix_rt::System::new().block_on(async {
        for (filtered_to, read) in [(1000, 1), (999, 1001)] {
            let asked = Arc::new(Mutex::new(Vec::new()));
            let chain = filtering_node(filtered_to, &asked);
            let found = signals(&chain, &Wallet::new(3)).await;
            assert_eq!(bytes(&found), [1]);
            let SignalSeen { block, times, .. } = found.seen[0];
            assert_eq!((block.height, times.time, times.mediantime), (77, 8, 7));
            assert_eq!(asked.lock().unwrap().len(), read);
        }
    });
}
