//! Nodes and servers in operation: they start, forbid, prune, read their blocks again, and ask to be left alone.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::announcement_support::{self as announcement, SIGNAL};
use crate::bitcoind_support::{
    Bitcoind, TestChain,
    esplora::{self, EsploraServer, Settings},
    faucet::{Faucet, Wallet},
};
use bitcoin::Amount;
use btcr2_aggregation::{
    bitcoin::{
        announcement::Input,
        chain::{Chain, ChainError, ChainSource, ConfirmationTarget, CoreAuth, CoreChain, EsploraChain},
    },
    protocol::network::Network,
};
use serde_json::json;

#[test]
fn a_cookie_of_an_earlier_run_is_waited_for() {
    actix_rt::System::new().block_on(async {
        let Some(node) = Bitcoind::start("a_cookie_of_an_earlier_run_is_waited_for").await else { return };
        let cookie = crate::support::directory("stale-cookie").join("cookie");
        fs::write(&cookie, "__cookie__:0000").unwrap();
        let chain = CoreChain::new(node.url(), CoreAuth::Cookie(cookie.clone()));
        let error = chain.tip().await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains(cookie.to_str().unwrap()), "{error}");
        fs::copy(node.cookie_file(), &cookie).unwrap();
        chain.tip().await.unwrap();
    });
}

#[test]
fn a_method_that_a_whitelist_lacks_is_named() {
    actix_rt::System::new().block_on(async {
        // The password is "sesame".
        let extra = [
            "-rpcauth=alice:ab12$f70ec4db706d00e1f52ad94a5dab3195db88c33847edc0d5c7a7cacf73a13db4",
            "-rpcwhitelistdefault=0",
            "-rpcwhitelist=alice:getblockhash,getblockchaininfo,getdescriptoractivity",
        ];
        let Some(node) = Bitcoind::start_with("a_method_that_a_whitelist_lacks_is_named", &extra).await else {
            return;
        };
        let source = node.url().replacen("http://", "core=http://alice:sesame@", 1);
        let chain = source.parse::<ChainSource>().unwrap().connect(Network::Regtest).await.unwrap();
        let error = chain.minimum_fee().await.unwrap_err();
        let text = error.to_string();
        assert!(!error.is_transient() && text.contains("forbids getmempoolinfo"), "{text}");
        assert!(text.contains("rpcwhitelist") && !text.contains("sesame"), "{text}");
        let forbidden = chain.fee_estimate(ConfirmationTarget::new(6)).await.unwrap_err();
        assert!(forbidden.to_string().contains("estimatesmartfee"), "{forbidden}");
    });
}

#[test]
fn an_announcement_survives_a_node_that_reads_its_blocks_again() {
    actix_rt::System::new().block_on(async {
        let Some(mut world) = announcement::World::core("reindex").await else { return };
        world.deposit(50_000).await;
        world.mine(1).await;
        let again = async |world: &mut announcement::World| {
            let node = world.blocks.node_mut();
            node.stop().await;
            assert!(world.settings.chain.tip().await.unwrap_err().is_transient());
            world.poll().await;
            world.blocks.node_mut().start_again_with(&["-reindex"]).await;
            // What it has not read yet is not gone.
            let until = Instant::now() + Duration::from_secs(60);
            while world.settings.chain.tip().await.is_err() {
                assert!(Instant::now() < until);
                world.poll().await;
            }
            world.poll().await;
            assert_eq!(world.count("deposit-gone"), 0);
        };
        again(&mut world).await;
        let (transaction, value) = world.prepare().await;
        let txid = transaction.compute_txid();
        world.feed(Input::Signed { transaction, value }).await;
        world.mine(1).await;
        again(&mut world).await;
        assert_eq!(world.announcing().txid, txid);
        world.mine(5).await;
        assert!(world.is_final() && world.watch.announcement().prepared(&SIGNAL).is_none());
    });
}

/// One address for two nodes, which take turns: after some connections the next one has its turn.
fn in_turns(ports: [String; 2]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (turn, client) in listener.incoming().enumerate() {
            let client = client.unwrap();
            let Ok(node) = TcpStream::connect(ports[turn / 25 % 2].trim_start_matches("http://")) else { continue };
            for (mut from, mut to) in [(client.try_clone().unwrap(), node.try_clone().unwrap()), (node, client)] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    url
}

#[test]
fn two_nodes_behind_one_address_are_survived() {
    actix_rt::System::new().block_on(async {
        let login = "-rpcauth=alice:ab12$f70ec4db706d00e1f52ad94a5dab3195db88c33847edc0d5c7a7cacf73a13db4";
        let Some(first) = Bitcoind::start_with("two-nodes-first", &[login]).await else { return };
        let second = Bitcoind::start_with("two-nodes-second", &[login]).await.unwrap();
        let url = in_turns([first.url(), second.url()]);
        let mut world = announcement::World::on(TestChain::Core(first)).await;
        // The second one has all blocks but the last `behind`.
        let follow = async |world: &announcement::World, behind: u64| {
            let node = world.blocks.node();
            let tip = node.rpc("getblockcount", json!([])).await.as_u64().unwrap();
            let known = second.rpc("getblockcount", json!([])).await.as_u64().unwrap();
            for height in known + 1..=tip - behind {
                let hash = node.rpc("getblockhash", json!([height])).await;
                second.rpc("submitblock", json!([node.rpc("getblock", json!([hash, 0])).await])).await;
            }
        };
        follow(&world, 0).await;
        let auth = CoreAuth::Password { user: "alice".to_owned(), password: "sesame".to_owned().into() };
        world.settings.chain = Arc::new(CoreChain::new(url, auth));
        world.watch = announcement::open(&world.rules, &world.settings).await;

        let script = world.beacon.output.script_pubkey().to_owned();
        world.faucet.pay(&world.blocks, &script, Amount::from_sat(50_000)).await;
        world.blocks.mine(1).await;
        let until = Instant::now() + Duration::from_secs(60);
        while world.choose(SIGNAL, None).is_err() {
            assert!(Instant::now() < until, "the deposit");
            world.poll().await;
        }
        // The other one is a block behind: what it does not have yet is not gone.
        for _ in 0..12 {
            world.poll().await;
        }
        assert_eq!(world.count("deposit-gone"), 0);
        follow(&world, 0).await;
        let (transaction, value) = world.prepare().await;
        let txid = transaction.compute_txid();
        world.feed(Input::Signed { transaction, value }).await;
        while !world.blocks.mempool().await.contains(&txid) {
            assert!(Instant::now() < until, "it reaches the other node");
            world.poll().await;
        }
        for _ in 0..6 {
            world.blocks.mine(1).await;
            follow(&world, 1).await;
            world.poll().await;
        }
        follow(&world, 0).await;
        while !world.is_final() {
            assert!(Instant::now() < until, "final");
            world.poll().await;
        }
        assert_eq!((world.count("announcement-final"), world.count("announcement-failed")), (1, 0));
        assert_eq!((world.count("announcement-unconfirmed"), world.count("foreign-spend")), (0, 0));
    });
}

/// A node, and a server over it that has some limits.
async fn server(name: &str, settings: Settings) -> Option<(EsploraServer, Arc<Settings>, TestChain, Faucet)> {
    let node = Arc::new(Bitcoind::start(name).await?);
    let settings = Arc::new(settings);
    let server = esplora::serve(Arc::clone(&node), Arc::clone(&settings));
    let blocks = TestChain::Shared(node);
    let faucet = Faucet::new(&blocks, 6).await;
    Some((server, settings, blocks, faucet))
}

#[test]
fn more_coins_than_a_server_lists_are_found_in_the_history() {
    actix_rt::System::new().block_on(async {
        let name = "more_coins_than_a_server_lists_are_found_in_the_history";
        let settings = Settings { most_coins: Some(3), ..Settings::default() };
        let Some((server, _, blocks, mut faucet)) = server(name, settings).await else { return };
        let wallet = Wallet::new(31);
        let mut coins = Vec::new();
        for sat in [10_000, 20_000, 30_000, 40_000, 50_000] {
            coins.push((faucet.pay(&blocks, &wallet.script(), Amount::from_sat(sat)).await, Amount::from_sat(sat)));
            blocks.mine(1).await;
        }
        let chain = EsploraChain::new(&server.url).unwrap();
        let values = async || {
            let activity = chain.coins(&wallet.script()).await.unwrap();
            let mut values: Vec<_> = activity.deposits.iter().map(|coin| coin.value.to_sat()).collect();
            values.sort_unstable();
            (values, activity.spends.len())
        };
        assert_eq!(values().await, (vec![10_000, 20_000, 30_000, 40_000, 50_000], 0));
        // A coin that a block spends is gone; a coin that the mempool spends is not.
        let spend = wallet.spend(
            &[coins[0]],
            vec![bitcoin::TxOut { value: Amount::from_sat(9_000), script_pubkey: Wallet::new(32).script() }],
        );
        chain.submit(&spend).await.unwrap();
        assert_eq!(values().await, (vec![10_000, 20_000, 30_000, 40_000, 50_000], 1));
        blocks.mine(1).await;
        assert_eq!(values().await, (vec![20_000, 30_000, 40_000, 50_000], 0));
    });
}

#[test]
fn a_history_whose_pages_do_not_turn_is_an_error() {
    actix_rt::System::new().block_on(async {
        let name = "a_history_whose_pages_do_not_turn_is_an_error";
        let settings = Settings { turns_no_page: true, ..Settings::default() };
        let Some((server, _, blocks, mut faucet)) = server(name, settings).await else { return };
        let script = Wallet::new(31).script();
        for _ in 0..4 {
            faucet.pay(&blocks, &script, Amount::from_sat(10_000)).await;
            blocks.mine(1).await;
        }
        let chain = EsploraChain::new(&server.url).unwrap();
        let error = chain.activity(&script, 0).await.unwrap_err();
        assert!(error.to_string().contains("an earlier one had"), "{error}");
    });
}

#[test]
fn a_server_that_wants_a_pause_gets_it() {
    actix_rt::System::new().block_on(async {
        let name = "a_server_that_wants_a_pause_gets_it";
        let Some((server, settings, ..)) = server(name, Settings::default()).await else { return };
        let chain = EsploraChain::new(&server.url).unwrap();
        let busy = |times, pause| *settings.busy.lock().unwrap() = (times, pause);
        busy(2, Some(1));
        let began = std::time::Instant::now();
        chain.tip().await.unwrap();
        assert!(began.elapsed() >= Duration::from_secs(2));
        // Longer than one wants to wait: an error, for the whole of that time and without asking.
        busy(1, Some(3600));
        for _ in 0..2 {
            let error = chain.tip().await.unwrap_err();
            assert!(error.is_transient() && error.to_string().contains("a pause of 3"), "{error}");
        }
        assert_eq!(*settings.busy.lock().unwrap(), (0, Some(3600)));
        // Who does not say how long is asked only so often.
        let chain = EsploraChain::new(&server.url).unwrap();
        busy(u32::MAX, Some(0));
        assert!(matches!(chain.tip().await, Err(ChainError::Unavailable(problem)) if problem.contains("429")));
        assert!(u32::MAX - settings.busy.lock().unwrap().0 < 10);
    });
}
