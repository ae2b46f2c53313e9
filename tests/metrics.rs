//! `serve --metrics-listen`: what a Prometheus server and a load balancer are told.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use std::time::Instant;

use support::{PATIENCE, Service, directory, identity};

/// Status line and body.
fn get(url: &str, route: &str) -> (String, String) {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {route} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[test]
fn a_round_is_counted_and_health_is_told() {
    let directory = directory("metrics");
    let members: Vec<_> = ["one", "two"].iter().map(|name| identity(&directory, name)).collect();
    let arguments = ["--min-participants", "2", "--cohorts", "1", "--metrics-listen", "127.0.0.1:0"];
    let mut service = Service::start(&directory, &arguments);
    let url = service.program.event("metrics")["url"].as_str().unwrap().to_owned();

    assert_eq!(get(&url, "/healthz"), ("HTTP/1.1 200 OK".to_owned(), "ok\n".to_owned()));
    assert_eq!(get(&url, "/readyz").0, "HTTP/1.1 200 OK");
    assert_eq!(get(&service.url, "/metrics").0, "HTTP/1.1 404 Not Found", "strangers are not told");

    let joined: Vec<_> = members.iter().map(|member| service.join(member, &["--add-beacon"])).collect();
    service.program.event("signing-complete");
    let until = Instant::now() + PATIENCE;
    let text = loop {
        let (_, text) = get(&url, "/metrics");
        if text.contains("btcr2_cohorts_ended_total") {
            break text;
        }
        assert!(Instant::now() < until, "{text}");
    };
    for line in [
        "btcr2_cohorts_ended_total{outcome=\"key-path\"} 1",
        "btcr2_cohorts{phase=\"signing\"} 0",
        "btcr2_messages_total{type=\"nonce\",outcome=\"accepted\"} 2",
        "btcr2_messages_total{type=\"update\",outcome=\"accepted\"} 2",
        "btcr2_phase_seconds_count{phase=\"signing\"} 1",
        "# EOF",
    ] {
        assert!(text.lines().any(|told| told == line), "{line} is not in {text}");
    }
    assert!(text.contains("btcr2_journal_seconds_count{operation=\"append\"}"), "{text}");
    assert!(!text.contains("did:btcr2:"), "members are in it");
    drop(joined);
}
