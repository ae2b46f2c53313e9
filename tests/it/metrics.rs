//! `serve --metrics-listen`: what a Prometheus server and a load balancer read.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use crate::support::{PATIENCE, Program, Service, directory, identity, path};
use btcr2_aggregation::{
    actors::runtime::{Clock, Randomness},
    protocol::{
        envelope::SealedEnvelope,
        id::CohortId,
        identity::Identity,
        key::SecretKey,
        message::{Body, Message, update::SubmitNonIncluded},
        network::Network,
    },
};

/// Status line and body.
fn ask(url: &str, request: &str, body: &str) -> (String, String) {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    let head = format!("host: {address}\r\nconnection: close\r\ncontent-length: {length}");
    write!(stream, "{request} HTTP/1.1\r\n{head}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

fn get(url: &str, route: &str) -> (String, String) {
    ask(url, &format!("GET {route}"), "")
}

/// The metrics, once `complete` is true of them.
fn measured(url: &str, complete: impl Fn(&str) -> bool) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        let (_, text) = get(url, "/metrics");
        if complete(&text) {
            return text;
        }
        assert!(Instant::now() < until, "{text}");
    }
}

/// A message of an unauthenticated peer about a cohort that does not exist.
fn unauthenticated(service: &Service) -> String {
    let mut rng = Randomness::System.for_actor("outsider");
    let outsider = Identity::from_key(SecretKey::generate(&mut rng), Network::Regtest);
    let declined = SubmitNonIncluded { cohort_id: CohortId::generate(&mut rng) };
    let message = Message::new(outsider.did().clone(), Some(service.did.parse().unwrap()), Body::from(declined));
    let now = Clock::system().now();
    SealedEnvelope::seal_with_rng(&message, outsider.secret_key(), now, &mut rng).unwrap().to_json()
}

#[test]
fn a_round_is_counted_in_every_family() {
    let directory = directory("metrics");
    let members: Vec<_> = ["one", "two"].iter().map(|name| identity(&directory, name)).collect();
    let fixed = ["--min-participants", "2", "--cohorts", "1", "--metrics-listen", "127.0.0.1:0"];
    let arguments = [&fixed[..], &["--embedded-relay", "127.0.0.1:0"]].concat();
    let mut service = Service::start(&directory, &arguments);
    let url = service.program.event("metrics")["url"].as_str().unwrap().to_owned();
    let relay = service.program.event("serving")["relays"][0].as_str().unwrap().to_owned();

    assert_eq!(get(&url, "/healthz"), ("HTTP/1.1 200 OK".to_owned(), "ok\n".to_owned()));
    assert_eq!(get(&url, "/readyz").0, "HTTP/1.1 200 OK");
    assert_eq!(get(&service.url, "/metrics").0, "HTTP/1.1 404 Not Found", "the metrics are not public");
    assert_eq!(ask(&service.url, "POST /v1/messages", &unauthenticated(&service)).0, "HTTP/1.1 202 Accepted");
    service.program.event("cohort-advertised");
    let enrolling = measured(&url, |text| text.contains("btcr2_cohorts{phase=\"enrolling\"} 1\n"));
    assert!(!enrolling.contains("btcr2_phase_seconds_count"), "no phase is over: {enrolling}");

    let joined: Vec<_> = members.iter().map(|member| service.join(member, &["--add-beacon"])).collect();
    service.program.event("signing-complete");
    let relay_works = format!("btcr2_relay_subscribed{{relay=\"{relay}\"}} 1\n");
    let text = measured(&url, |text| {
        // The last phase ends after the members were notified.
        text.contains("btcr2_cohorts_ended_total") && text.contains(&relay_works)
    });
    let relayed = |family: &str, value: &str| format!("btcr2_relay_{family}{{relay=\"{relay}\"}} {value}");
    for line in [
        // Cohorts by phase, and how long the phases took.
        "btcr2_cohorts_ended_total{outcome=\"key-path\"} 1",
        "btcr2_cohorts{phase=\"signing\"} 0",
        "btcr2_phase_seconds_count{phase=\"enrolling\"} 1",
        "btcr2_phase_seconds_count{phase=\"updates\"} 1",
        "btcr2_phase_seconds_count{phase=\"validating\"} 1",
        "btcr2_phase_seconds_count{phase=\"transaction\"} 1",
        "btcr2_phase_seconds_count{phase=\"signing\"} 1",
        // Messages in and out, by type, and their outcomes.
        "btcr2_messages_received_total{type=\"keygen/cohort_opt_in\"} 2",
        "btcr2_messages_received_total{type=\"update/submit_nonincluded\"} 1",
        "btcr2_messages_sent_total{type=\"update/distribute_aggregated_data\"} 2",
        "btcr2_messages_sent_total{type=\"sign/aggregated_nonce\"} 2",
        "btcr2_messages_total{type=\"sign/nonce_contribution\",outcome=\"accepted\"} 2",
        "btcr2_messages_total{type=\"update/submit_update\",outcome=\"accepted\"} 2",
        // Refusals: the message of the unauthenticated peer, and the request for a route that is not served there.
        "btcr2_rejections_total{code=\"WRONG_COHORT\"} 1",
        "btcr2_http_refusals_total{code=\"not_found\"} 1",
        "btcr2_http_refusals_total{code=\"replay\"} 0",
        // Queues.
        "btcr2_mailbox_messages{actor=\"cohort\"} 0",
        "btcr2_mailbox_messages{actor=\"signing\"} 0",
        "btcr2_inbox_dropped_total 0",
        // Connections to the service and to its relay.
        "btcr2_connections_closed_total{server=\"http\",reason=\"evicted\"} 0",
        "btcr2_connections{server=\"relay\",kind=\"member\"} 1",
        // The relay.
        &relayed("connected", "1"),
        &relayed("connections_total", "1"),
        &relayed("failures_total", "0"),
        // Failures.
        "btcr2_restarts_total 0",
        "btcr2_recovered_cohorts_total 0",
        "btcr2_bans_total 0",
        "btcr2_missed_notices_total 0",
        "# EOF",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
    for family in [
        "btcr2_journal_seconds_count{operation=\"append\"}",
        "btcr2_journal_seconds_bucket{le=\"0.0001\",operation=\"append\"}",
        "btcr2_inboxes ",
        "btcr2_inbox_messages ",
        "btcr2_inbox_bytes ",
        &format!("btcr2_relay_published_total{{relay=\"{relay}\",outcome=\"accepted\"}}"),
    ] {
        assert!(text.contains(&format!("\n{family}")), "{family} is not in {text}");
    }
    let number = |family: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(family)).unwrap();
        line.trim().parse::<f64>().unwrap()
    };
    assert!(number("btcr2_inboxes ") >= 2.0, "each member has its own: {text}");
    assert!(number("btcr2_inbox_messages ") > 0.0, "what members have not confirmed is held: {text}");
    let manual = include_str!("../../docs/operating.md");
    for family in text.lines().filter_map(|line| line.strip_prefix("# TYPE btcr2_")) {
        let name = family.replace(" counter", "_total").replace(" gauge", "").replace(" histogram", "");
        assert!(manual.contains(&format!("`{name}`")), "{name} is not documented");
    }
    assert!(!text.contains("did:btcr2:"), "members are in it");
    drop(joined);
}

#[test]
fn a_service_is_ready_only_while_it_serves() {
    let directory = directory("readiness");
    // A node that accepts connections and never sends anything.
    let node = TcpListener::bind("127.0.0.1:0").unwrap();
    let chain = format!("core=http://user:password@{}", node.local_addr().unwrap());
    let (file, state) = (identity(&directory, "service"), path(&directory, "state"));
    let fixed = ["serve", "--identity", &file, "--listen", "127.0.0.1:0", "--events", "json"];
    let waiting = ["--metrics-listen", "127.0.0.1:0", "--chain", &chain, "--state", &state];
    let mut program = Program::start(&[&fixed[..], &waiting].concat());
    let url = program.event("metrics")["url"].as_str().unwrap().to_owned();
    assert_eq!(get(&url, "/healthz").0, "HTTP/1.1 200 OK");
    assert_eq!(get(&url, "/readyz"), ("HTTP/1.1 503 Service Unavailable".to_owned(), "not ready\n".to_owned()));
    program.signal("-TERM");
    assert!(program.ends_well());

    let mut service = Service::start(&directory, &["--metrics-listen", "127.0.0.1:0"]);
    let url = service.program.event("metrics")["url"].as_str().unwrap().to_owned();
    assert_eq!(get(&url, "/readyz").0, "HTTP/1.1 200 OK");
    service.program.signal("-TERM");
    // It answers while it notifies its members of the stop.
    let until = Instant::now() + PATIENCE;
    while get(&url, "/readyz").0 != "HTTP/1.1 503 Service Unavailable" {
        assert!(Instant::now() < until, "it is ready although it stops");
    }
    assert!(service.program.ends_well());
}

#[test]
fn refusals_of_a_flood_are_counted() {
    let directory = directory("metrics-flood");
    let fixed = ["--metrics-listen", "127.0.0.1:0", "--address-rate", "1", "--address-burst", "4"];
    let mut service = Service::start(&directory, &fixed);
    let url = service.program.event("metrics")["url"].as_str().unwrap().to_owned();
    let silent = TcpStream::connect(service.address()).unwrap();
    let mut stream = TcpStream::connect(service.address()).unwrap();
    stream.write_all(b"GET /v1/adverts HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let lines = [
        "btcr2_connections{server=\"http\",kind=\"opening\"} 1\n",
        "btcr2_connections{server=\"http\",kind=\"open\"} 1\n",
        "btcr2_advert_streams 1\n",
        "btcr2_http_limited_total{limit=\"address\"} 0\n",
    ];
    measured(&url, |text| lines.iter().all(|line| text.contains(line)));
    let mut garbage = TcpStream::connect(service.address()).unwrap();
    garbage.write_all(b"\x16\x03\x01 no HTTP\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = garbage.read_to_end(&mut answer);
    let statuses: Vec<_> = (0..6).map(|_| ask(&service.url, "POST /v1/messages", "x").0).collect();
    let refused = statuses.iter().filter(|status| status.starts_with("HTTP/1.1 429")).count();
    assert!(refused >= 2, "{statuses:?}");
    let limited = format!("btcr2_http_limited_total{{limit=\"address\"}} {refused}\n");
    measured(&url, |text| {
        text.contains(&limited)
            && text.contains("btcr2_connections_closed_total{server=\"http\",reason=\"malformed\"} 1\n")
    });
    drop((silent, stream));
    measured(&url, |text| text.contains("btcr2_connections{server=\"http\",kind=\"open\"} 0\n"));
}
