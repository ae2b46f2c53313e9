//! Sources of a chain that cannot be used, answer wrongly, or lack what is newer than they are.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use crate::bitcoind_support::{
    Bitcoind,
    esplora::{self, Settings},
    faucet::Wallet,
};
use bitcoin::FeeRate;
use btcr2_aggregation::{
    bitcoin::chain::{Chain, ChainError, ChainSource, ConfirmationTarget, CoreAuth, CoreChain, EsploraChain},
    protocol::network::Network,
};
use serde_json::{Value, json};

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
        let script = Wallet::new(7).script();
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
