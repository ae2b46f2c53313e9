//! What a client of `resolver serve` cannot do: exhaust it, or learn where its operator's servers are; and how it stops.

use std::time::{Duration, Instant};

use crate::{
    resolve_cli::Author,
    resolver_support::{Explorer, Resolver},
    support::PATIENCE,
};
use btcr2_aggregation::protocol::{document, network::Network};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[actix_rt::test]
async fn hostile_bodies_are_refused() {
    let explorer = Explorer::start();
    let resolver = Resolver::start(&explorer, &["--max-body", "100000", "--timeout", "2s"]).await;
    let author = Author::key("hostile");
    let did = author.did();
    let deep = format!("{{\"sidecar\":{{\"updates\":{}", "[".repeat(90_000));
    for body in
        [deep.as_str(), "{", "[]", "\"text\"", "{\"sidecar\":7}", "\u{0}", "{\"versionId\":{}}", "{\"updates\":[]}"]
    {
        let answer = resolver.post(did, body.to_owned()).await;
        assert_eq!((answer.status.as_u16(), answer.error().as_str()), (400, "INVALID_OPTIONS"), "{answer:?}");
    }
    // Objects that nest as deep as JSON may, and entries of any kind, are data that nothing refers to.
    let nested = format!("{}{}", "[".repeat(100), "]".repeat(100));
    let odd = format!("{{\"sidecar\":{{\"updates\":[{nested},null,7],\"smtProofs\":[{{\"id\":{nested}}}]}}}}");
    assert_eq!(resolver.post(did, odd).await.status, 200);
    assert_eq!(resolver.post(did, "").await.status, 200);
    for size in [100_001, 300_000] {
        let answer = resolver.post(did, " ".repeat(size)).await;
        assert_eq!((answer.status.as_u16(), answer.error().as_str()), (413, "INVALID_OPTIONS"), "{size}");
    }
    // One that stops in the middle.
    let address = resolver.url.strip_prefix("http://").unwrap();
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head = format!("POST /1.0/identifiers/{did} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{");
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = socket.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(resolver.get(did).await.status, 200);
}

#[actix_rt::test]
async fn one_address_has_its_rate() {
    let explorer = Explorer::start();
    let limits = ["--address-rate", "1", "--address-burst", "3", "--trusted-proxy", "127.0.0.1"];
    let resolver = Resolver::start(&explorer, &limits).await;
    let path = format!("/1.0/identifiers/{}", Author::key("rate").did());
    let from = async |client: &str| {
        let request = resolver.request(reqwest::Method::GET, &path).header("x-forwarded-for", client);
        crate::resolver_support::answered(request).await
    };
    let begun = Instant::now();
    let mut statuses = Vec::new();
    for _ in 0..20 {
        statuses.push(from("192.0.2.1").await);
    }
    let refused = statuses.iter().filter(|answer| answer.status == 429).count();
    let most = usize::try_from(3 + begun.elapsed().as_secs() + 1).unwrap();
    assert!(statuses[0].status == 200 && refused >= 20 - most, "{refused} of 20");
    let one = statuses.iter().find(|answer| answer.status == 429).unwrap();
    assert!(one.headers.contains_key("retry-after") && one.error() == "INTERNAL_ERROR", "{one:?}");
    assert_eq!(from("192.0.2.2").await.status, 200, "another client of the same proxy");
}

#[actix_rt::test]
async fn a_slow_chain_holds_up_a_part_of_the_requests_only() {
    let explorer = Explorer::start();
    let limits =
        ["--max-requests", "8", "--max-resolutions", "1", "--timeout", "3s", "--trusted-proxy", "127.0.0.1"];
    let resolver = Resolver::start(&explorer, &limits).await;
    let fast = Author::key("fast");
    let path = format!("/1.0/identifiers/{}", fast.did());
    let from = async |client: &str, path: &str| {
        let request = resolver.request(reqwest::Method::GET, path).header("x-forwarded-for", client);
        crate::resolver_support::answered(request).await
    };
    assert_eq!(from("192.0.2.2", &path).await.status, 200);
    explorer.set_open(false);
    let slow = format!("/1.0/identifiers/{}", Author::key("slow").did());
    // A quarter of eight: the third is refused while two wait.
    let begun = Instant::now();
    let waiting = async { futures::join!(from("192.0.2.1", &slow), from("192.0.2.1", &slow)) };
    let beside = async {
        resolver.metric_reaches("btcr2_resolver_requests_in_progress", 2.0).await;
        let refused = from("192.0.2.1", &slow).await;
        assert_eq!((refused.status.as_u16(), refused.error().as_str()), (503, "INTERNAL_ERROR"));
        // Another client still has what is in the cache.
        assert_eq!(from("192.0.2.2", &path).await.status, 200);
    };
    let ((one, two), ()) = futures::join!(waiting, beside);
    assert_eq!((one.status.as_u16(), two.status.as_u16()), (504, 504), "{one:?} {two:?}");
    assert!(begun.elapsed() < PATIENCE);
    explorer.set_open(true);
    assert_eq!(from("192.0.2.1", &slow).await.status, 200, "when the chain answers again");
}

#[actix_rt::test]
async fn a_document_of_many_addresses_is_not_looked_up() {
    let explorer = Explorer::start();
    let resolver = Resolver::start(&explorer, &["--max-addresses", "10"]).await;
    let owner = Author::key("many");
    let mut genesis = document::genesis_document(&owner.key.public_key(), Network::Regtest);
    for number in 0..20 {
        let address = Author::key(&format!("many {number}")).beacon().address().to_string();
        let service = json!({
            "id": format!("did:btcr2:_#b{number}"), "type": "CASBeacon", "serviceEndpoint": format!("bitcoin:{address}"),
        });
        genesis["service"].as_array_mut().unwrap().push(service);
    }
    let did = document::external_did(&genesis, Network::Regtest).unwrap();
    let body = json!({ "sidecar": { "genesisDocument": genesis } }).to_string();
    let answer = resolver.post(did.as_str(), body).await;
    assert_eq!((answer.status.as_u16(), answer.error().as_str()), (500, "INTERNAL_ERROR"), "{answer:?}");
    assert!(answer.body.contains("more than 10 beacon addresses"), "{answer:?}");
    assert_eq!(explorer.histories(), 0);
}

#[actix_rt::test]
async fn a_chain_out_of_reach_is_not_shown_to_clients() {
    let explorer = Explorer::start();
    explorer.set_reachable(false);
    let resolver = Resolver::start(&explorer, &[]).await;
    assert_eq!(resolver.resolving["networks"], json!([]));
    let author = Author::key("reach");
    let early = resolver.get(author.did()).await;
    assert_eq!((early.status.as_u16(), early.error().as_str()), (503, "INTERNAL_ERROR"));
    let not_ready = resolver.page("/readyz").await;
    assert!(not_ready.starts_with("not ready\nchain: ") && not_ready.contains(&explorer.url), "{not_ready}");
    assert_eq!(resolver.page("/healthz").await, "ok\n");

    explorer.set_reachable(true);
    let until = Instant::now() + PATIENCE;
    while resolver.page("/readyz").await != "ready\n" {
        assert!(Instant::now() < until);
        actix_rt::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(resolver.get(author.did()).await.status, 200);
    // It was connected, and is lost: what was resolved before is not served without a look at the tip.
    explorer.set_reachable(false);
    let lost = resolver.get(author.did()).await;
    assert_eq!((lost.status.as_u16(), lost.error().as_str()), (500, "INTERNAL_ERROR"));
    let port = explorer.url.rsplit(':').next().unwrap();
    assert!(!lost.body.contains(port) && lost.body.contains("try again later"), "{lost:?}");
}

#[cfg(unix)]
#[actix_rt::test]
async fn requests_that_have_begun_are_answered_before_the_end() {
    let explorer = Explorer::start();
    let resolver = Resolver::start(&explorer, &[]).await;
    explorer.set_open(false);
    let (author, other) = (Author::key("begun"), Author::key("late"));
    let begun = resolver.get(author.did());
    let beside = async {
        resolver.metric_reaches("btcr2_resolver_requests_in_progress", 1.0).await;
        resolver.program.signal("-TERM");
        let until = Instant::now() + PATIENCE;
        while resolver.page("/readyz").await == "ready\n" {
            assert!(Instant::now() < until);
        }
        assert_eq!(resolver.get(other.did()).await.status, 503);
        explorer.set_open(true);
    };
    let (answer, ()) = futures::join!(begun, beside);
    assert_eq!((answer.status.as_u16(), &answer.json()["didDocument"]), (200, &author.documents[0]));
    let program = resolver.program;
    let (status, _, errors) = actix_rt::task::spawn_blocking(move || program.end()).await.unwrap();
    assert_eq!(status, Some(0), "{errors}");
}
