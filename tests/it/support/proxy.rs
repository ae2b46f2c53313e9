//! A TCP proxy that can cut its connections: an unreliable network between a client and a server.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

/// Decides what happens to a chunk: it is forwarded, or it is forwarded up to here and the connection is cut.
pub type Cutter = Box<dyn Fn(&[u8]) -> bool + Send + Sync>;

struct State {
    target: Mutex<SocketAddr>,
    /// Client and server of each connection that is open, by its number.
    open: Mutex<BTreeMap<usize, (TcpStream, TcpStream)>>,
    refusing: AtomicBool,
    closed: AtomicBool,
    cuts: AtomicUsize,
}

impl State {
    /// Cuts the clients off. Servers notice at their next message, so what they have received takes effect.
    fn cut(&self) {
        let open = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        if !open.is_empty() {
            self.cuts.fetch_add(1, Ordering::SeqCst);
        }
        for (client, server) in open.into_values() {
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Read);
        }
    }
}

pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

impl Proxy {
    /// A proxy to `target` that cuts only when [`cut`](Self::cut) is called.
    pub fn to(target: SocketAddr) -> Self {
        Self::cutting(target, Box::new(|_| false), Box::new(|_| false))
    }

    /// A proxy to `target` that cuts every connection after a chunk of the client, or of the server, for which the function
    /// returns true. The client's data reaches the server first; the server's answer is then lost.
    pub fn cutting(target: SocketAddr, client_cutter: Cutter, server_cutter: Cutter) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            target: Mutex::new(target),
            open: Mutex::default(),
            refusing: AtomicBool::default(),
            closed: AtomicBool::default(),
            cuts: AtomicUsize::default(),
        });
        let (shared, cutters) = (Arc::clone(&state), Arc::new((client_cutter, server_cutter)));
        thread::spawn(move || {
            for (number, client) in listener.incoming().flatten().enumerate() {
                if shared.closed.load(Ordering::SeqCst) {
                    break;
                }
                if shared.refusing.load(Ordering::SeqCst) {
                    continue;
                }
                let target = *shared.target.lock().unwrap();
                let Ok(server) = TcpStream::connect(target) else { continue };
                let mut open = shared.open.lock().unwrap();
                open.insert(number, (client.try_clone().unwrap(), server.try_clone().unwrap()));
                drop(open);
                let (from_client, from_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                pump(from_client, server, number, &shared, &cutters, true);
                pump(from_server, client, number, &shared, &cutters, false);
            }
        });
        Self { address, state }
    }

    /// A proxy to `target` through which a client receives nothing after the first message that contains `text`, until its
    /// connection is [cut](Self::cut). The client's own data is still forwarded.
    pub fn deaf_behind(target: SocketAddr, text: &'static str) -> Self {
        let found = AtomicBool::new(false);
        let stop = move |data: &[u8]| {
            let occurs = data.windows(text.len()).any(|window| window == text.as_bytes());
            if occurs && !found.swap(true, Ordering::SeqCst) {
                loop {
                    thread::park();
                }
            }
            false
        };
        Self::cutting(target, Box::new(|_| false), Box::new(stop))
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// New connections lead there from now on.
    pub fn retarget(&self, target: SocketAddr) {
        *self.state.target.lock().unwrap() = target;
    }

    /// Breaks every connection.
    pub fn cut(&self) {
        self.state.cut();
    }

    /// Whether new connections are closed at once from now on.
    #[allow(dead_code, reason = "the tests of the actors share this file, and use it")]
    pub fn refuse(&self, refusing: bool) {
        self.state.refusing.store(refusing, Ordering::SeqCst);
    }

    /// How often something was cut.
    pub fn cuts(&self) -> usize {
        self.state.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::SeqCst);
        // The listener checks the flag.
        let _ = TcpStream::connect(self.address);
    }
}

fn pump(
    mut from: TcpStream,
    mut to: TcpStream,
    number: usize,
    state: &Arc<State>,
    cutters: &Arc<(Cutter, Cutter)>,
    client: bool,
) {
    let (state, cutters) = (Arc::clone(state), Arc::clone(cutters));
    thread::spawn(move || {
        let mut chunk = vec![0; 1 << 16];
        while let Ok(length) = from.read(&mut chunk) {
            let data = &chunk[..length];
            if length == 0 || to.write_all(data).is_err() {
                break;
            }
            let cut = if client { (cutters.0)(data) } else { (cutters.1)(data) };
            if cut && client {
                state.cut();
                // Until the server has processed it: otherwise it could notice the end of the connection first.
                thread::sleep(std::time::Duration::from_millis(100));
                break;
            }
            if cut {
                // Leaves a moment to read what was forwarded: a cut discards what is still in the pipe.
                thread::sleep(std::time::Duration::from_millis(30));
                state.cut();
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
        state.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
    });
}
