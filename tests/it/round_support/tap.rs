//! Wrappers around a journal and a transport that count, record, or kill the process.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use btcr2_aggregation::{
    actors::{
        journal::{Archived, Journal, JournalError, Record, StreamId},
        supervision::End,
        transport::{ConnectError, Connection, Delivery, Inbox, Outbound, Transport, Unsent},
    },
    protocol::{beacon::BeaconType, did::Did, identity::Identity, message::Message, time::Timestamp},
};
use futures::{FutureExt, future::BoxFuture};
use serde_json::{Value, json};

use super::{Point, child::report};

/// The end of this process, at a point.
#[derive(Default)]
pub struct Crash {
    at: Option<Point>,
    appended: AtomicUsize,
    given: AtomicUsize,
}

impl Crash {
    pub fn at(at: Option<Point>) -> Arc<Self> {
        Arc::new(Self { at, ..Self::default() })
    }

    fn passes(&self, point: Point) {
        if self.at == Some(point) {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            unreachable!("SIGKILL ends the process");
        }
        report(&json!({ "event": "point", "point": point }));
    }

    fn appended(&self) {
        self.passes(Point::Appended(self.appended.fetch_add(1, Ordering::SeqCst) + 1));
    }

    fn given(&self) {
        self.passes(Point::Given(self.given.fetch_add(1, Ordering::SeqCst) + 1));
    }
}

/// A journal that kills the process after an append.
pub struct CrashingJournal {
    pub inner: Arc<dyn Journal>,
    pub crash: Arc<Crash>,
}

impl CrashingJournal {
    /// `written`, and then perhaps the end.
    fn then_die(
        &self,
        written: BoxFuture<'static, Result<(), JournalError>>,
    ) -> BoxFuture<'static, Result<(), JournalError>> {
        let crash = Arc::clone(&self.crash);
        written.inspect(move |_| crash.appended()).boxed()
    }
}

impl Journal for CrashingJournal {
    fn append(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>> {
        self.then_die(self.inner.append(stream, records))
    }

    fn read(&self, stream: &StreamId) -> BoxFuture<'static, Result<Vec<Record>, JournalError>> {
        self.inner.read(stream)
    }

    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>> {
        self.inner.streams()
    }

    fn archive(&self, stream: &StreamId, at: Timestamp) -> BoxFuture<'static, Result<(), JournalError>> {
        self.then_die(self.inner.archive(stream, at))
    }

    fn archived(&self) -> BoxFuture<'static, Result<Vec<Archived>, JournalError>> {
        self.inner.archived()
    }

    fn remove(&self, stream: &StreamId) -> BoxFuture<'static, Result<(), JournalError>> {
        self.inner.remove(stream)
    }
}

/// Watches a transport, or changes the messages on it.
pub trait Tap: Send + Sync {
    /// The messages that are sent in place of a message of an identity.
    fn rewrite(&self, outbound: Outbound) -> Vec<Outbound> {
        vec![outbound]
    }

    /// An identity has passed a message to its transport.
    fn given(&self, _by: &Did, _outbound: &Outbound) {}

    /// A message has arrived at an identity.
    fn arrived(&self, _delivery: &Delivery) {}
}

impl Tap for Crash {
    fn given(&self, _: &Did, outbound: &Outbound) {
        if matches!(outbound, Outbound::Direct { .. } | Outbound::Broadcast { .. }) {
            Crash::given(self);
        }
    }
}

/// Kills another process after the N-th of its messages has arrived. A repeated advert counts again.
pub struct Sniper {
    from: Did,
    at: Option<Point>,
    arrived: AtomicUsize,
    kill: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Sniper {
    pub fn new(from: Did, at: Option<Point>) -> Arc<Self> {
        Arc::new(Self { from, at, arrived: AtomicUsize::new(0), kill: Mutex::default() })
    }

    pub fn aim(&self, kill: impl Fn() + Send + 'static) {
        *self.kill.lock().unwrap() = Some(Box::new(kill));
    }

    /// How many of its messages have arrived.
    pub fn seen(&self) -> usize {
        self.arrived.load(Ordering::SeqCst)
    }

    fn heard(&self, message: &Message) {
        if message.from != self.from {
            return;
        }
        let number = self.arrived.fetch_add(1, Ordering::SeqCst) + 1;
        if self.at == Some(Point::Arrived(number))
            && let Some(kill) = self.kill.lock().unwrap().take()
        {
            kill();
        }
    }
}

impl Tap for Sniper {
    fn arrived(&self, delivery: &Delivery) {
        match delivery {
            Delivery::Message(received) => self.heard(received),
            Delivery::Stored { message, .. } => self.heard(message),
            _ => {}
        }
    }
}

/// A transport with taps.
pub struct Tapped {
    pub inner: Arc<dyn Transport>,
    pub taps: Vec<Arc<dyn Tap>>,
}

#[async_trait]
impl Transport for Tapped {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        let taps = self.taps.clone();
        let tapped = inbox.map(move |delivery| {
            taps.iter().for_each(|tap| tap.arrived(&delivery));
            delivery
        });
        let onward = self.inner.connect(identity, tapped).await?;
        Ok(Box::new(Mouth { by: identity.did().clone(), onward, taps: self.taps.clone() }))
    }

    fn introduce(&self, did: &Did, genesis_document: &Value) {
        self.inner.introduce(did, genesis_document);
    }

    fn member_limit(&self, beacon_type: &BeaconType, wanted: usize) -> Option<usize> {
        self.inner.member_limit(beacon_type, wanted)
    }
}

struct Mouth {
    by: Did,
    onward: Box<dyn Connection>,
    taps: Vec<Arc<dyn Tap>>,
}

#[async_trait]
impl Connection for Mouth {
    fn try_send(&self, outbound: Outbound) -> Result<(), Unsent> {
        let mut outbounds = vec![outbound];
        for tap in &self.taps {
            outbounds = outbounds.into_iter().flat_map(|outbound| tap.rewrite(outbound)).collect();
        }
        for outbound in outbounds {
            self.onward.try_send(outbound.clone())?;
            self.taps.iter().for_each(|tap| tap.given(&self.by, &outbound));
        }
        Ok(())
    }

    async fn ended(&self) -> End {
        self.onward.ended().await
    }
}

/// How many points of each kind a process has passed.
pub fn tally(points: &[Point]) -> BTreeMap<&'static str, usize> {
    let mut tally = BTreeMap::new();
    for point in points {
        let kind = match point {
            Point::Appended(_) => "appends",
            Point::Given(_) => "sends that are lost",
            Point::Arrived(_) => "sends that arrive",
        };
        *tally.entry(kind).or_default() += 1;
    }
    tally
}
