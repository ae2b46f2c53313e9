#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::Duration,
};

use btcr2_aggregation_protocol::error::RejectCode;
use futures::future::{BoxFuture, ready};
use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::*;
use crate::{
    journal::{Archived, MemoryJournal},
    runtime::Randomness,
    supervision::{InTree, Lease, start_leased},
    tree::{self, Row},
};

/// Counts once, until a deadline if there is one.
#[derive(Clone, Debug, Default, PartialEq)]
struct Counter {
    counted: u32,
    deadline: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Counted;

#[derive(Clone)]
enum Ask {
    /// Counts, or refuses if it has counted.
    Count,
    /// Counts on another thread, when the test permits it.
    Heavily(Arc<Mutex<mpsc::Receiver<()>>>),
    /// Time has passed, which has no effect.
    Tick,
}

impl Machine for Counter {
    type Input = Ask;
    type Event = Counted;
    type Effect = ();

    fn decide(&self, _: Timestamp, ask: &Ask, _: &mut dyn CryptoRng) -> Result<Vec<Counted>, Reject> {
        if let Ask::Heavily(gate) = ask {
            let _ = gate.lock().unwrap().recv();
        }
        match self.counted {
            _ if matches!(ask, Ask::Tick) => Ok(Vec::new()),
            0 => Ok(vec![Counted]),
            _ => Err(Reject { code: RejectCode::WrongPhase, peer: None, detail: "counted".to_owned() }),
        }
    }

    fn apply(&mut self, _: &Counted) {
        self.counted += 1;
    }

    fn effects(&self, _: &Counted) -> Vec<()> {
        Vec::new()
    }

    fn resume(&self) -> Vec<()> {
        Vec::new()
    }

    fn deadline(&self) -> Option<Timestamp> {
        self.deadline
    }
}

struct CounterActor {
    engine: Engine<Counter>,
    gone: Option<oneshot::Sender<()>>,
    ticks: Arc<AtomicU32>,
}

impl Actor for CounterActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.resume(ctx);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        let _ = self.gone.take().map(|gone| gone.send(()));
    }
}

#[derive(actix::Message)]
#[rtype(result = "()")]
struct Feed(Ask, Receipt);

impl actix::Handler<Feed> for CounterActor {
    type Result = ();

    fn handle(&mut self, Feed(ask, receipt): Feed, ctx: &mut Context<Self>) {
        self.feed_received(ask, receipt, ctx);
    }
}

impl InTree for CounterActor {
    const ROW: &'static Row = &tree::SIGNING_SESSION;
}

impl Driven for CounterActor {
    type Machine = Counter;

    fn engine(&mut self) -> &mut Engine<Counter> {
        &mut self.engine
    }

    fn tick() -> Ask {
        Ask::Tick
    }

    fn due(&mut self) -> Ask {
        self.ticks.fetch_add(1, Ordering::Relaxed);
        Ask::Tick
    }

    fn is_heavy(_: &Counter, ask: &Ask) -> bool {
        matches!(ask, Ask::Heavily(_))
    }

    fn observe(&mut self, _: &Counted, _: &[()], _: &mut Context<Self>) {}
    fn perform(&mut self, (): (), _: &mut Context<Self>) {}
    fn refused(&mut self, _: Reject, _: &mut Context<Self>) {}
    fn journal_failed(&mut self, _: JournalError, _: &mut Context<Self>) {}
    fn settled(&mut self, _: &mut Context<Self>) {}
}

/// A journal that answers when the test permits it, and stores nothing.
#[derive(Clone, Default)]
struct Slow(Arc<Mutex<Vec<oneshot::Sender<()>>>>);

impl Journal for Slow {
    fn append(&self, _: &StreamId, _: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>> {
        let (answer, answered) = oneshot::channel();
        self.0.lock().unwrap().push(answer);
        answered.map(|_| Ok(())).boxed()
    }

    fn read(&self, _: &StreamId) -> BoxFuture<'static, Result<Vec<Record>, JournalError>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn archive(&self, _: &StreamId, _: Timestamp) -> BoxFuture<'static, Result<(), JournalError>> {
        ready(Ok(())).boxed()
    }

    fn archived(&self) -> BoxFuture<'static, Result<Vec<Archived>, JournalError>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn remove(&self, _: &StreamId) -> BoxFuture<'static, Result<(), JournalError>> {
        ready(Ok(())).boxed()
    }
}

fn stream() -> StreamId {
    StreamId::new("counter")
}

fn start(journal: Arc<dyn Journal>) -> (actix::Addr<CounterActor>, Lease, oneshot::Receiver<()>) {
    start_with(Counter::default(), journal, Arc::default())
}

fn start_with(
    counter: Counter,
    journal: Arc<dyn Journal>,
    ticks: Arc<AtomicU32>,
) -> (actix::Addr<CounterActor>, Lease, oneshot::Receiver<()>) {
    let (gone, is_gone) = oneshot::channel();
    let rng = Randomness::Seeded([1; 32]).for_actor("counter");
    let clock = Clock::starting_at(Timestamp::from_secs(1));
    let engine = Engine::new(counter, journal, stream(), clock, rng);
    let actor = CounterActor { engine, gone: Some(gone), ticks };
    let (address, lease) = start_leased(tracing::Span::none(), |_, _| actor);
    (address, lease, is_gone)
}

#[test]
fn an_actor_without_its_lease_writes_and_confirms_nothing() {
    actix_rt::System::new().block_on(async {
        for is_dropped in [false, true] {
            let journal = MemoryJournal::new();
            let (actor, lease, is_gone) = start(Arc::new(journal.clone()));
            let (go_on, may_go_on) = mpsc::channel();
            let (receipt, confirmed) = Receipt::new();
            // The future is dropped while the decision runs on another thread.
            actor.send(Feed(Ask::Heavily(Arc::new(Mutex::new(may_go_on))), receipt)).await.unwrap();
            let lease = (!is_dropped).then_some(lease);
            go_on.send(()).unwrap();
            assert_eq!(confirmed.await.is_ok(), !is_dropped);
            assert_eq!(journal.read(&stream()).await.unwrap().len(), usize::from(!is_dropped));
            if is_dropped {
                is_gone.await.unwrap();
            }
            drop(lease);
        }
    });
}

#[test]
fn a_refusal_is_confirmed_after_the_events_that_cause_it() {
    actix_rt::System::new().block_on(async {
        let journal = Slow::default();
        let (actor, _lease, _is_gone) = start(Arc::new(journal.clone()));
        let (first, counted) = Receipt::new();
        let (second, mut refused) = Receipt::new();
        actor.send(Feed(Ask::Count, first)).await.unwrap();
        actor.send(Feed(Ask::Count, second)).await.unwrap();
        assert!(
            refused.try_recv().is_err(),
            "if the event were lost, the second message would have been the first"
        );
        let appends = std::mem::take(&mut *journal.0.lock().unwrap());
        assert_eq!(appends.len(), 1);
        appends.into_iter().for_each(|append| append.send(()).unwrap());
        counted.await.unwrap();
        refused.await.unwrap();
    });
}

#[test]
fn a_tick_without_effect_is_not_repeated_at_once() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    actix_rt::System::with_tokio_rt(runtime).block_on(async {
        let counter = Counter { counted: 0, deadline: Some(Timestamp::from_secs(3)) };
        let ticks = Arc::new(AtomicU32::new(0));
        let (_actor, _lease, _) = start_with(counter, Arc::new(MemoryJournal::new()), Arc::clone(&ticks));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 0);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 1, "once at the deadline");
        tokio::time::sleep(LONGEST_SLEEP * 3).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 4, "and then rarely");
    });
}
