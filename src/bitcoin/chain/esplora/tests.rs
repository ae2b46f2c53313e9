//! What a server lists of the mempool.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
};

use super::*;

/// A server with one address, of whose `all` transactions in the mempool it lists the first 50.
fn server(all: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let transaction = |n: usize| {
            format!(
                r#"{{"txid":"{n:064x}","version":2,"locktime":0,"vin":[],"vout":[],"size":10,"weight":40,"fee":0,
                   "status":{{"confirmed":false}}}}"#
            )
        };
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let request = lines.next().unwrap_or_default();
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let body = match request.split(' ').nth(1).unwrap_or_default() {
                path if path.ends_with("/txs/mempool") => {
                    format!("[{}]", (0..all.min(50)).map(transaction).collect::<Vec<_>>().join(","))
                }
                path if path.ends_with("/txs/chain") => "[]".to_owned(),
                _ => format!(r#"{{"mempool_stats":{{"tx_count":{all}}}}}"#),
            };
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all((head + &body).as_bytes()).unwrap();
        }
    });
    url
}

#[tokio::test]
async fn a_mempool_that_is_not_listed_as_a_whole_is_an_error() {
    for (all, problem) in [(3, None), (50, None), (51, Some("lists 50 of the 51 transactions"))] {
        let read = EsploraChain::new(&server(all)).unwrap().history("aa", 0).await;
        match (read, problem) {
            (Ok(history), None) => assert_eq!(history.len(), all),
            (Err(error), Some(problem)) => assert!(error.to_string().contains(problem), "{error}"),
            (read, _) => panic!("{all}: {:?}", read.map(|history| history.len())),
        }
    }
}
