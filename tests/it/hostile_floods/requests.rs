//! 200 requests a second of 6,000 keys, over one connection: what they cost a processor and an honest cohort.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use btcr2_aggregation::{
    actors::runtime::{Clock, Randomness},
    protocol::{
        did::Did,
        envelope::SealedEnvelope,
        hash::sha256,
        id::CohortId,
        identity::Identity,
        key::SecretKey,
        message::{Body, Message, update::SubmitNonIncluded},
        network::Network,
    },
};

use super::{Dialer, ELSEWHERE, print_figures, round_of_three, scaled};
use crate::support::{PATIENCE, Program, Service, directory};

const A_SECOND: u32 = 200;
const KEYS: u32 = 6_000;

/// Requests in the background, each by another key than the ones before it, until this is dropped.
struct Requests {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<BTreeMap<String, u32>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Requests {
    /// From another address than all other peers.
    fn start(address: SocketAddr, to: Did) -> Self {
        let (stop, answers) = (Arc::<AtomicBool>::default(), Arc::<Mutex<BTreeMap<String, u32>>>::default());
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&answers));
        let thread = thread::spawn(move || {
            let mut connection = BufReader::new(Dialer::new(ELSEWHERE).connect(address).unwrap());
            let started = Instant::now();
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                let due = (started.elapsed().as_secs_f64() * f64::from(A_SECOND)) as u32;
                if sent >= due {
                    thread::sleep(Duration::from_millis(2));
                    continue;
                }
                // The service ends during the flood.
                let Ok(answer) = post(&mut connection, &message(sent % KEYS, &to)) else { return };
                *counted.lock().unwrap().entry(answer).or_default() += 1;
                sent += 1;
            }
        });
        Self { stop, answers, thread: Some(thread) }
    }

    fn answers(&self) -> BTreeMap<String, u32> {
        self.answers.lock().unwrap().clone()
    }

    fn sent(&self) -> u32 {
        self.answers().values().sum()
    }

    fn wait_for(&self, sent: u32) {
        let until = Instant::now() + 2 * PATIENCE;
        while self.sent() < sent {
            assert!(Instant::now() < until, "the flood itself is too slow: {:?}", self.answers());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A well-signed message to the service about a cohort that does not exist.
fn message(key: u32, to: &Did) -> String {
    let secret = SecretKey::from_bytes(&sha256(&key.to_be_bytes())).unwrap();
    let from = Identity::from_key(secret, Network::Regtest);
    let mut rng = Randomness::System.for_actor("flood");
    let body = SubmitNonIncluded { cohort_id: CohortId::generate(&mut rng) };
    let message = Message::new(from.did().clone(), Some(to.clone()), Body::from(body));
    SealedEnvelope::seal_with_rng(&message, from.secret_key(), Clock::system().now(), &mut rng).unwrap().to_json()
}

/// Status and body of the answer.
fn post(connection: &mut BufReader<TcpStream>, body: &str) -> std::io::Result<String> {
    let length = body.len();
    let head = format!("POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
    connection.get_mut().write_all((head + body).as_bytes())?;
    let (mut status, mut length) = (String::new(), 0);
    connection.read_line(&mut status)?;
    loop {
        let mut line = String::new();
        if connection.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body)?;
    Ok(format!("{} {}", &status[9..12], String::from_utf8_lossy(&body)))
}

/// The share of a processor that a service takes while `meanwhile` runs.
fn share(program: &Program, meanwhile: impl FnOnce()) -> Option<f64> {
    let (before, started) = (program.usage()?.cpu, Instant::now());
    meanwhile();
    Some((program.usage()?.cpu - before).as_secs_f64() / started.elapsed().as_secs_f64())
}

#[test]
fn requests_of_thousands_of_keys_take_little_processor_time() {
    let directory = directory("requests");
    let service = Service::start(&directory, &[]);
    let seconds = scaled(2, 20);
    let idle = share(&service.program, || thread::sleep(Duration::from_secs(seconds)));
    let flood = Requests::start(service.address(), service.did.parse().unwrap());
    // First all signatures are checked, and then the share of those that are not members of one address.
    let checked = share(&service.program, || flood.wait_for(800));
    flood.wait_for(scaled(1_400, 2_000));
    let count = u32::try_from(seconds).unwrap() * A_SECOND;
    let bounded = share(&service.program, || flood.wait_for(flood.sent() + count));
    let answers = flood.answers();
    println!(
        "| share of a core, 200 requests a second of 6,000 keys | idle {idle:.3?} | all signatures checked {checked:.3?} | a quarter of them {bounded:.3?} | {answers:?}"
    );
    let refused =
        answers.iter().filter(|(answer, _)| answer.starts_with("429")).map(|(_, count)| count).sum::<u32>();
    assert!(refused > 100, "{answers:?}");
    for share in [checked, bounded].into_iter().flatten() {
        assert!(share < 0.5, "{share} of a core");
    }
}

#[test]
fn requests_of_thousands_of_keys_delay_no_cohort() {
    let calm = round_of_three("requests-calm", 1_024, |_| ());
    let flooded = round_of_three("requests-flooded", 1_024, |address| {
        // The recipient is not read before the signature is checked.
        let to = Identity::from_key(SecretKey::from_bytes(&[1; 32]).unwrap(), Network::Regtest);
        let flood = Requests::start(address, to.did().clone());
        flood.wait_for(scaled(300, 4_000));
        flood
    });
    print_figures("200 requests a second of 6,000 keys from another address", &calm, &flooded);
}
