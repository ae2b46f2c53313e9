//! The memory that connections with TLS take, by kind, and how much a service returns when they are closed.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use btcr2_aggregation::actors::transport::tls::Trust;
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

use super::{certificate, scaled};
use crate::support::{PATIENCE, Program, Service, directory, process::Usage};

/// What a client sends on a connection before it becomes idle.
#[derive(Clone, Copy)]
enum Kind {
    SilentTcp,
    Handshake,
    KeepAlive,
    AdvertStream,
}

impl Kind {
    const ALL: [(Self, &str); 4] = [
        (Self::SilentTcp, "TCP, silent"),
        (Self::Handshake, "TLS, handshake only"),
        (Self::KeepAlive, "TLS, idle after a request"),
        (Self::AdvertStream, "TLS, stream of adverts"),
    ];

    fn request(self) -> Option<&'static str> {
        match self {
            Self::SilentTcp | Self::Handshake => None,
            Self::KeepAlive => Some("GET /v1/.well-known/aggregation HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            Self::AdvertStream => Some("GET /v1/adverts HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        }
    }
}

enum Open {
    Tcp { _socket: TcpStream },
    Tls { _stream: Box<StreamOwned<ClientConnection, TcpStream>> },
}

fn open(kind: Kind, address: SocketAddr, config: &Arc<ClientConfig>) -> Open {
    let socket = TcpStream::connect(address).unwrap();
    if matches!(kind, Kind::SilentTcp) {
        return Open::Tcp { _socket: socket };
    }
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), socket);
    match kind.request() {
        None => {
            while stream.conn.is_handshaking() {
                stream.conn.complete_io(&mut stream.sock).unwrap();
            }
        }
        Some(request) => {
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200");
        }
    }
    Open::Tls { _stream: Box::new(stream) }
}

/// The usage of the service once it has about so many files open.
fn settled(program: &Program, files: std::ops::RangeInclusive<usize>) -> Option<Usage> {
    let until = Instant::now() + PATIENCE;
    loop {
        let usage = program.usage()?;
        if files.contains(&usage.files) {
            return Some(usage);
        }
        assert!(Instant::now() < until, "{usage:?}, {files:?} expected");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The usage of a service before, under, after and under a second flood of so many connections of a kind.
fn measure(kind: Kind, name: &str, count: usize) -> Option<[u64; 4]> {
    let directory = directory(&format!("connection-memory-{}", name.replace([' ', ','], "-")));
    let (flags, trust): (_, Trust) = certificate(&directory);
    let service = Service::start(&directory, &flags.each_ref().map(String::as_str));
    let config = Arc::new(trust.client_config().unwrap());
    // The first connection allocates what all share.
    drop(open(Kind::AdvertStream, service.address(), &config));
    let program = &service.program;
    let idle = program.usage()?.files;
    let before = settled(program, 0..=idle)?;
    let flood = || -> Option<(Usage, Usage)> {
        let connections: Vec<_> = (0..count).map(|_| open(kind, service.address(), &config)).collect();
        let under = settled(program, before.files + count - 2..=before.files + count + 2)?;
        drop(connections);
        Some((under, settled(program, 0..=before.files + 2)?))
    };
    let (under, after) = flood()?;
    let (again, _) = flood()?;
    Some([before, under, after, again].map(|usage| usage.resident))
}

#[test]
fn a_connection_takes_little_memory_and_a_second_flood_no_more() {
    let count = scaled(300, 2_000);
    println!("| {count} connections | kB before | under | after | under a second flood | each |");
    for (kind, name) in Kind::ALL {
        // Nothing to check where the system does not report the usage.
        let Some([before, under, after, again]) = measure(kind, name, count) else { return };
        let each = under.saturating_sub(before) / count as u64;
        println!("| {name} | {before} | {under} | {after} | {again} | {each} kB |");
        assert!(each < 80, "{name}: {each} kB for each");
        let more = again.saturating_sub(under);
        assert!(more < under.saturating_sub(before) / 2 + 4_000, "{name}: {more} kB more at the second flood");
    }
}
