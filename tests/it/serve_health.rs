//! Whether a service is ready while its node is unreachable, and whether the alarm command runs then.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};

use crate::bitcoind_support::TestChain;
use crate::support::{PATIENCE, Service, directory, path, run};
use serde_json::Value;

fn ready(url: &str) -> String {
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < patience, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn readiness_follows_node_and_state_and_raises_alarms() {
    actix_rt::System::new().block_on(async {
        let Some(mut blocks) = TestChain::core("readiness-follows").await else { return };
        blocks.mine(1).await;
        let directory = directory("readiness-follows");
        let node = blocks.node();
        let chain = format!("core={}?cookie={}", node.url(), node.cookie_file().display());
        let (state, alarms) = (path(&directory, "state"), path(&directory, "alarms"));
        let on_alarm = format!("cat >> {alarms}");
        let fixed = ["--chain", &chain, "--chain-poll", "200ms", "--state", &state, "--min-participants", "2"];
        let more = ["--metrics-listen", "127.0.0.1:0", "--on-alarm", &on_alarm];
        let mut service = Service::start(&directory, &[&fixed[..], &more].concat());
        let url = service.program.event("metrics")["url"].as_str().unwrap().to_owned();
        until("it is ready", || ready(&url).starts_with("HTTP/1.1 200"));

        blocks.node_mut().stop().await;
        until("not without its node", || {
            let answer = ready(&url);
            answer.starts_with("HTTP/1.1 503") && answer.contains("\nchain: ")
        });
        let woken = || fs::read_to_string(&alarms).unwrap_or_default();
        until("the alarm command runs", || woken().ends_with('\n'));
        let alarm: Value = serde_json::from_str(woken().lines().next().unwrap()).unwrap();
        assert_eq!(alarm["event"], "not-ready", "{alarm}");
        assert!(alarm["problems"][0].as_str().unwrap().starts_with("chain: "), "{alarm}");
        blocks.node_mut().start_again().await;
        until("it is ready again", || ready(&url).starts_with("HTTP/1.1 200"));

        // A state directory that cannot be written: there is a file in its place.
        let moved = path(&directory, "moved");
        fs::rename(Path::new(&state), &moved).unwrap();
        until("not without its state directory", || ready(&url).contains("\nstate: "));
        fs::rename(&moved, &state).unwrap();
        until("it is ready once more", || ready(&url).starts_with("HTTP/1.1 200"));
        assert_eq!(woken().lines().count(), 2, "once for each time: {}", woken());
    });
}

#[test]
fn a_service_without_any_of_its_relays_is_not_ready() {
    let directory = directory("readiness-relays");
    // No program listens on port 9. HTTP is served as well, but does not help members on relays.
    let relays = ["--relay", "ws://127.0.0.1:9", "--metrics-listen", "127.0.0.1:0"];
    let mut service = Service::start(&directory, &relays);
    let url = service.program.event("metrics")["url"].as_str().unwrap().to_owned();
    // Connections end and are made again: some seconds without one are tolerated.
    assert!(ready(&url).starts_with("HTTP/1.1 200"));
    until("not without its relays", || ready(&url).contains("\nrelays: no relay is connected"));
}

#[test]
fn the_change_destination_is_checked_at_the_start() {
    let directory = directory("change-checked");
    let identity = crate::support::identity(&directory, "service");
    let state = path(&directory, "state");
    let serve = |change: &str| {
        let chain = ["--chain", "core=http://u:p@127.0.0.1:9", "--state", &state, "--listen", "127.0.0.1:0"];
        run(&[&["serve", "--identity", &identity, "--change", change], &chain[..]].concat())
    };
    for (change, part) in [
        ("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", "another network"),
        ("wpkh(02)", "public key"),
        ("multi(1,02)", "one key"),
    ] {
        let refused = serve(change);
        assert!(refused.usage().contains("--change") && refused.usage().contains(part), "{refused:?}");
    }
}
