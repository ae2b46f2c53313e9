//! The cost of a flood for an honest peer and for the service: a service as a process, with real sockets.
//!
//! The short form shows that the bounds hold. The long one, `HOSTILE=long cargo test --test it hostile_floods -- --nocapture
//! --test-threads 1`, floods more and for longer, and prints the figures of docs/reliability.md.

mod memory;
mod requests;

use std::{
    fs,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use btcr2_aggregation::{
    actors::{
        runtime::{Clock, Randomness},
        transport::tls::Trust,
    },
    protocol::{
        id::CohortId,
        message::{Bytes, Message, keygen::CohortReady},
        nostr::{Peer, seal},
    },
};
use rcgen::KeyPair;
use rustls::{ClientConnection, StreamOwned, pki_types::ServerName};

use crate::{
    nostr_support,
    support::{Program, Service, did_of, directory, identity, path, process::Usage, verify::participant_result},
};

/// Whether to run the long form.
fn is_long() -> bool {
    std::env::var("HOSTILE").is_ok_and(|form| form == "long")
}

/// A number for each form.
fn scaled<N>(short: N, long: N) -> N {
    if is_long() { long } else { short }
}

/// Opens connections from another address of this machine: on Linux one of 127.0.0.0/8, elsewhere the usual address.
struct Dialer {
    runtime: tokio::runtime::Runtime,
    from: IpAddr,
}

/// The addresses of honest peers, and of others.
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

impl Dialer {
    fn new(from: IpAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { runtime, from }
    }

    fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4()?;
            let _ = socket.bind((self.from, 0).into());
            tokio::time::timeout(Duration::from_secs(1), socket.connect(address)).await?
        })?;
        let socket = socket.into_std()?;
        socket.set_nonblocking(false)?;
        socket.set_nodelay(true)?;
        Ok(socket)
    }
}

/// Connections that are opened in the background, and send `data`, until this is dropped.
struct Flood {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Flood {
    /// Opens so many a second, of which the latest `kept` stay open.
    fn start(from: IpAddr, address: SocketAddr, a_second: u32, kept: usize, data: &'static [u8]) -> Self {
        let (stop, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&opened));
        let thread = thread::spawn(move || {
            let dialer = Dialer::new(from);
            let mut sockets = std::collections::VecDeque::new();
            let started = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let due = (started.elapsed().as_secs_f64() * f64::from(a_second)) as usize;
                while counted.load(Ordering::Relaxed) < due {
                    if let Ok(mut socket) = dialer.connect(address) {
                        let _ = socket.write_all(data);
                        sockets.push_back(socket);
                    }
                    if sockets.len() > kept {
                        sockets.pop_front();
                    }
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        Self { stop, opened, thread: Some(thread) }
    }

    fn wait_for(&self, opened: usize) {
        let until = Instant::now() + crate::support::PATIENCE;
        while self.opened.load(Ordering::Relaxed) < opened {
            assert!(Instant::now() < until, "the flood itself is too slow");
            thread::yield_now();
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How long a handshake and an answer take.
fn handshake(address: SocketAddr, trust: &Trust) -> Duration {
    let started = Instant::now();
    let name = ServerName::try_from("localhost").unwrap();
    let client = ClientConnection::new(Arc::new(trust.client_config().unwrap()), name).unwrap();
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut stream = StreamOwned::new(client, socket);
    let request = "GET /v1/.well-known/aggregation HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    started.elapsed()
}

fn longest(address: SocketAddr, trust: &Trust) -> Duration {
    (0..20).map(|_| handshake(address, trust)).max().unwrap()
}

/// A certificate for `localhost` as flags of `serve`, and the trust that a client needs for it.
fn certificate(directory: &Path) -> ([String; 4], Trust) {
    let key = KeyPair::generate().unwrap();
    let names = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = names.self_signed(&key).unwrap().pem();
    let (chain, secret) = (path(directory, "chain.pem"), path(directory, "key.pem"));
    fs::write(&chain, &certificate).unwrap();
    fs::write(&secret, key.serialize_pem()).unwrap();
    let trust = Trust::only(certificate.as_bytes()).unwrap();
    (["--tls-cert".to_owned(), chain, "--tls-key".to_owned(), secret], trust)
}

#[test]
fn silent_connections_delay_no_handshake() {
    let directory = directory("silent-connections");
    let (flags, trust) = certificate(&directory);
    let service = Service::start(&directory, &flags.each_ref().map(String::as_str));
    let calm = longest(service.address(), &trust);
    let flood = Flood::start(HERE, service.address(), 400, 700, b"");
    flood.wait_for(scaled(1_200, 8_000));
    let flooded = longest(service.address(), &trust);
    println!("| handshake and answer, at most; 400 silent connections a second | {calm:?} | {flooded:?} |");
    assert!(flooded < Duration::from_secs(1), "{flooded:?}");
}

#[test]
fn a_late_head_of_a_later_request_closes_its_connection() {
    let directory = directory("late-head");
    let service = Service::start(&directory, &[]);
    let mut socket = TcpStream::connect(service.address()).unwrap();
    let request = b"GET /v1/.well-known/aggregation HTTP/1.1\r\nHost: localhost\r\n\r\n";
    socket.write_all(request).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        let mut chunk = [0; 1_024];
        let length = socket.read(&mut chunk).unwrap();
        answer.extend_from_slice(&chunk[..length]);
    }
    // Longer than the time after which an idle connection is closed.
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let began = Instant::now();
    socket.write_all(&request[..20]).unwrap();
    let mut rest = Vec::new();
    // A time in the past does not close a connection.
    let end = socket.read_to_end(&mut rest);
    assert!(rest.is_empty());
    assert!(end.as_ref().map_or_else(|error| error.kind() == io::ErrorKind::ConnectionReset, |_| true), "{end:?}");
    let elapsed = began.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(40)).contains(&elapsed), "{elapsed:?}");
}

#[test]
fn silent_connections_leave_files_for_members() {
    figures("silent TCP connections", |address, a_second, kept| Flood::start(HERE, address, a_second, kept, b""));
}

#[test]
fn malformed_connections_leave_files_for_members() {
    figures("connections that send garbage", |address, a_second, kept| {
        Flood::start(HERE, address, a_second, kept, b"\xff\x00garbage\r\n\r\n")
    });
}

#[test]
fn advert_streams_leave_files_for_members() {
    // More would use up the requests of the address, and leave too few to its honest peers.
    let (from, what) = scaled((HERE, "advert streams"), (ELSEWHERE, "advert streams from another address"));
    figures(what, |address, a_second, kept| {
        let request = b"GET /v1/adverts HTTP/1.1\r\nHost: localhost\r\n\r\n";
        Flood::start(from, address, a_second, kept, request)
    });
}

/// A cohort of three without a flood, and under one of so many connections a second, of which so many stay open.
fn figures(what: &str, flood: impl Fn(SocketAddr, u32, usize) -> Flood) {
    // A small limit shows the same as a large one, and takes fewer sockets here.
    let (files, a_second, kept) = scaled((256, 300, 600), (4_096, 1_100, 6_000));
    let name = what.replace(' ', "-");
    let calm = round_of_three(&format!("{name}-calm"), files, |_| ());
    let flooded = round_of_three(&name, files, |address| {
        let flood = flood(address, a_second, kept);
        flood.wait_for(scaled(500, 8_000));
        flood
    });
    print_figures(&format!("{a_second} {what} a second, `ulimit -n {files}`"), &calm, &flooded);
    if let Some((before, during)) = flooded.before.zip(flooded.during) {
        // An eighth, 64 at least, is the operator's, and a quarter of the rest the members', who use some of that now.
        let files = files as usize;
        let others = (files - (files / 8).clamp(64, 1_024)) * 3 / 4;
        assert!(during.files <= before.files + others + 20, "{during:?} after {before:?}");
    }
}

/// A cohort of three at a service: how long it took, and the service's usage before it and at the end.
struct Round {
    taken: Duration,
    before: Option<Usage>,
    during: Option<Usage>,
}

fn print_figures(what: &str, calm: &Round, flooded: &Round) {
    let more = flooded.during.zip(flooded.before).map(|(during, before)| {
        let share = (during.cpu - before.cpu).as_secs_f64();
        (during.resident.saturating_sub(before.resident), during.files, share)
    });
    let (kilobytes, files, cpu) = more.unwrap_or_default();
    let (calm, flooded) = (calm.taken, flooded.taken);
    println!("| {what} | {calm:.2?} | {flooded:.2?} | {kilobytes} kB more | {files} files | {cpu:.2} s CPU |");
}

/// A cohort of three at a service that may open so many files, with a flood that continues until it is complete.
fn round_of_three<F>(name: &str, files: u32, flood: impl FnOnce(SocketAddr) -> F) -> Round {
    let directory = directory(name);
    let service = identity(&directory, "service");
    let out = path(&directory, "out");
    let mut command = Command::new("sh");
    let limited = format!("ulimit -n {files} && exec \"$@\"");
    command.args(["-c", &limited, "sh", env!("CARGO_BIN_EXE_btcr2-aggregation"), "serve"]);
    command.args(["--identity", &service, "--listen", "127.0.0.1:0", "--chain", "offline", "--events", "json"]);
    command.args(["--min-participants", "3", "--settle", "0s", "--cohorts", "1", "--out", &out]);
    let mut serve = Program::launch(command);
    let url = serve.event("serving")["url"].as_str().unwrap().to_owned();
    let address = url.strip_prefix("http://").unwrap().parse().unwrap();
    let before = serve.usage();
    let flood = flood(address);
    let members: Vec<_> = (0..3).map(|index| identity(&directory, &format!("member-{index}"))).collect();
    let started = Instant::now();
    let joined: Vec<_> =
        members.iter().map(|member| crate::support::join(&url, member, &["--add-beacon"])).collect();
    let results: Vec<_> = joined.into_iter().map(Program::result).collect();
    let taken = started.elapsed();
    let result = serve.event("result");
    let during = serve.usage();
    drop(flood);
    for (joined, member) in results.iter().zip(&members) {
        participant_result(joined, &did_of(member), &result);
    }
    Round { taken, before, during }
}

#[test]
fn a_flooded_relay_serves_its_members() {
    let calm = nostr_round(&[]).0;
    let flooder = nostr_support::identity("flooder");
    let to = nostr_support::identity("service");
    let peer = Peer::new(flooder.secret_key(), to.public_key().x_only()).unwrap();
    let mut rng = Randomness::System.for_actor("flood");
    let key = flooder.public_key();
    // As large as the largest message of a cohort, all by one author: 50 MB, or 250.
    let count = scaled(600, 3_000);
    let events: Vec<_> = (0..count)
        .map(|number| {
            let body = CohortReady {
                cohort_id: CohortId::parse(&format!("flood-{number}")).unwrap(),
                beacon_address: "-".to_owned(),
                cohort_keys: vec![Bytes(key.to_bytes()); 1_000],
            };
            let message = Message::new(flooder.did().clone(), Some(to.did().clone()), body);
            let now = Clock::system().now();
            seal(&message, flooder.secret_key(), Some(&peer), now, &mut rng).unwrap()
        })
        .collect();
    let (flooded, grown) = nostr_round(&events);
    let more = grown.unwrap_or_default();
    println!(
        "| {count} events of 85 kB by one author on the embedded relay | {calm:.2?} | {flooded:.2?} | {more} kB more |"
    );
    assert!(grown.is_none_or(|grown| grown < 30_000), "{grown:?} kB");
}

/// A cohort of two over an embedded relay that has received these events before: its time, and the memory of the events.
fn nostr_round(events: &[nostr_sdk::Event]) -> (Duration, Option<u64>) {
    let mut running = nostr_support::serve(2, &[]);
    let before = running.service.resident();
    nostr_support::relay::publish(&running.relay, events);
    let grown = running.service.resident().zip(before).map(|(after, before)| after.saturating_sub(before));
    let started = Instant::now();
    let place = ["--relay", &running.relay];
    let mut members =
        ["first", "second"].map(|name| nostr_support::join(&running, name, &place, &["--add-beacon"]));
    running.service.succeeds();
    members.iter_mut().for_each(nostr_support::Program::succeeds);
    (started.elapsed(), grown)
}
