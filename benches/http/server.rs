//! The server as a separate process, so that its processor time can be measured.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use actix_web::{App, HttpServer as WebServer};
use btcr2_aggregation::{
    actors::{
        runtime::Clock,
        transport::{
            Connection, Delivery, Inbox, Outbound, Transport, Unsent,
            http::{
                self, HttpConfig, HttpServer,
                server::HttpServerParts,
                store::{MemoryNonces, Rate},
            },
        },
    },
    protocol::{
        id::CohortId,
        identity::Identity,
        message::{
            Bytes, SharedBody,
            keygen::{CohortOptInAccept, CohortReady},
        },
    },
};

use tokio::sync::mpsc;

use crate::support::{identity, memory, seeded};

/// Set in the process that is the server.
const IS_SERVER: &str = "BTCR2_BENCH_HTTP_SERVER";

/// How many members there are, each with an inbox.
pub(crate) const MEMBERS: usize = 1000;

pub(crate) fn service() -> Identity {
    identity(seeded(1), "service")
}

pub(crate) fn members() -> Vec<Identity> {
    (0..MEMBERS).map(|number| identity(seeded(1), &format!("member {number}"))).collect()
}

pub(crate) fn cohort_id() -> CohortId {
    CohortId::generate(&mut seeded(1).for_actor("cohort"))
}

/// A handle to the server process, which ends when this is dropped.
pub(crate) struct Server {
    process: Child,
    orders: ChildStdin,
    pub(crate) url: String,
}

impl Server {
    pub(crate) fn start() -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .env(IS_SERVER, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut url).unwrap();
        Self { orders: process.stdin.take().unwrap(), process, url: url.trim().to_owned() }
    }

    /// Sends a message to every member, of a cohort of so many keys.
    pub(crate) fn burst(&mut self, keys: usize) {
        writeln!(self.orders, "{keys}").unwrap();
        self.orders.flush().unwrap();
    }

    pub(crate) fn processor_time(&self) -> Duration {
        memory::processor_time_of(&self.process.id().to_string()).unwrap_or_default()
    }

    pub(crate) fn resident(&self) -> u64 {
        memory::resident_of(&self.process.id().to_string()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Confirms every message.
async fn confirm(mut deliveries: mpsc::Receiver<Delivery>) {
    while let Some(delivery) = deliveries.recv().await {
        if let Delivery::Message(received) = delivery {
            received.receipt.confirm();
        }
    }
}

/// Without keys, the smallest message.
fn message_of(keys: usize) -> SharedBody {
    let cohort_id = cohort_id();
    if keys == 0 {
        return CohortOptInAccept { cohort_id }.into();
    }
    let beacon_address = "bcrt1pwg6nyy402z0ysd36k7s6uf4zrfxwfk5uatfunud5zg6r7trgpt7s8wlefg".to_owned();
    let cohort_keys = members().iter().take(keys).map(|member| Bytes(member.public_key().to_bytes())).collect();
    CohortReady { cohort_id, beacon_address, cohort_keys }.into()
}

/// Each order is a number of keys.
fn obey(connection: &dyn Connection) {
    let members = members();
    for order in std::io::stdin().lines() {
        let body = message_of(order.unwrap().parse().unwrap());
        for member in &members {
            let outbound = Outbound::Direct { to: member.did().clone(), body: body.clone(), until: None };
            if let Err(Unsent::Full(outbound)) = connection.try_send(outbound) {
                futures::executor::block_on(connection.send(outbound)).unwrap();
            }
        }
    }
    // The process that gave the orders has ended.
    std::process::exit(0);
}

/// Whether this process is the server; if so, it has served until it was not needed any more.
pub(crate) fn serve() -> bool {
    if std::env::var_os(IS_SERVER).is_none() {
        return false;
    }
    let _ = rlimit::increase_nofile_limit(8192);
    actix_rt::System::new().block_on(async {
        // Without limits, and without heartbeats between the messages.
        let unlimited = Rate { per_second: 1_000_000, burst: 1_000_000 };
        let heartbeat = Duration::from_secs(3600);
        let config =
            HttpConfig { did_rate: unlimited, address_rate: unlimited, heartbeat, ..HttpConfig::default() };
        let nonces = std::sync::Arc::new(MemoryNonces::new(1 << 20, 1 << 22));
        let server = HttpServer::start(HttpServerParts { nonces, ..HttpServerParts::new(config, Clock::system()) });
        let (inbox, deliveries) = Inbox::channel(8192);
        actix_rt::spawn(confirm(deliveries));
        let connection = server.connect(&service(), inbox).await.unwrap();
        let mounted = server.clone();
        let web = WebServer::new(move || App::new().configure(http::configure(&mounted)))
            .workers(1)
            .disable_signals()
            .bind("127.0.0.1:0")
            .unwrap();
        println!("http://{}", web.addrs()[0]);
        std::thread::spawn(move || obey(&*connection));
        web.run().await.unwrap();
    });
    true
}
