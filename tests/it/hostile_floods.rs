//! What a flood from one address costs an honest peer: a service as a process, with real sockets. Everybody has the same address here,
//! which is the worst case.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
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
    support::{Program, Service, did_of, directory, identity, path, verify::participant_result},
};

/// Connections that are opened in the background, and say what `say` says, until this is dropped.
struct Flood {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Flood {
    /// So many a second, of which the latest `kept` stay open.
    fn start(address: SocketAddr, a_second: u32, kept: usize, say: &'static [u8]) -> Self {
        let (stop, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&opened));
        let thread = thread::spawn(move || {
            let mut sockets = std::collections::VecDeque::new();
            let started = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let due = (started.elapsed().as_secs_f64() * f64::from(a_second)) as usize;
                while counted.load(Ordering::Relaxed) < due {
                    if let Ok(mut socket) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
                        let _ = socket.write_all(say);
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

#[test]
fn silent_connections_delay_no_handshake() {
    let directory = directory("silent-connections");
    let key = KeyPair::generate().unwrap();
    let names = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = names.self_signed(&key).unwrap().pem();
    let (chain, secret) = (path(&directory, "chain.pem"), path(&directory, "key.pem"));
    fs::write(&chain, &certificate).unwrap();
    fs::write(&secret, key.serialize_pem()).unwrap();
    let service = Service::start(&directory, &["--tls-cert", &chain, "--tls-key", &secret]);
    let trust = Trust::only(certificate.as_bytes()).unwrap();
    let calm = longest(service.address(), &trust);
    let flood = Flood::start(service.address(), 400, 700, b"");
    flood.wait_for(1_200);
    let flooded = longest(service.address(), &trust);
    println!("handshake and answer, at most: {calm:?}, with 400 silent connections a second: {flooded:?}");
    assert!(flooded < Duration::from_secs(1), "{flooded:?}");
}

#[test]
fn advert_streams_leave_files_for_members() {
    let calm = round_of_three("advert-streams-calm", 0);
    let flooded = round_of_three("advert-streams", 300);
    println!("a cohort of three: {calm:?}, with 300 advert streams a second: {flooded:?}");
}

/// How long a cohort of three takes at a service that may open 256 files, while somebody opens so many streams of adverts a second.
fn round_of_three(name: &str, a_second: u32) -> Duration {
    let directory = directory(name);
    let service = identity(&directory, "service");
    let out = path(&directory, "out");
    // A small limit is as good as a large one, and takes fewer sockets here.
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 256 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_btcr2-aggregation"), "serve"]);
    command.args(["--identity", &service, "--listen", "127.0.0.1:0", "--chain", "offline", "--events", "json"]);
    command.args([
        "--min-participants",
        "3",
        "--settle",
        "0s",
        "--cohorts",
        "1",
        "--exit-when-done",
        "--out",
        &out,
    ]);
    let mut serve = Program::launch(command);
    let url = serve.event("serving")["url"].as_str().unwrap().to_owned();
    let address = url.strip_prefix("http://").unwrap().parse().unwrap();
    let request = b"GET /v1/adverts HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let flood = Flood::start(address, a_second, 600, request);
    if a_second > 0 {
        flood.wait_for(500);
    }
    let members: Vec<_> = (0..3).map(|index| identity(&directory, &format!("member-{index}"))).collect();
    let started = Instant::now();
    let joined: Vec<_> =
        members.iter().map(|member| crate::support::join(&url, member, &["--add-beacon"])).collect();
    // The service itself stays for a while, for members that may come back.
    let results: Vec<_> = joined.into_iter().map(Program::result).collect();
    let taken = started.elapsed();
    let result = serve.result();
    for (joined, member) in results.iter().zip(&members) {
        participant_result(joined, &did_of(member), &result);
    }
    taken
}

#[test]
fn a_flooded_relay_serves_its_members() {
    let calm = nostr_round(&[]).0;
    let flooder = nostr_support::identity("flooder");
    let to = nostr_support::identity("service");
    let peer = Peer::new(flooder.secret_key(), to.public_key().x_only()).unwrap();
    let mut rng = Randomness::System.for_actor("flood");
    let key = flooder.public_key();
    // As large as the largest that a cohort has, all by one author: 50 MB.
    let events: Vec<_> = (0..600)
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
    println!(
        "a round of two over the embedded relay: {calm:?}, behind 600 events of 85 kB: {flooded:?}, {grown:?} kB more"
    );
    assert!(grown.is_none_or(|grown| grown < 30_000), "{grown:?} kB");
}

/// A cohort of two over an embedded relay that has got these events before: how long it takes, and what they took of memory.
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
