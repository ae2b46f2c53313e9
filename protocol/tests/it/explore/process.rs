//! What the explorer explores: processes, what they are fed, and what must hold of them.

use std::{collections::BTreeMap, fmt::Debug};

use btcr2_aggregation_protocol::time::Timestamp;

use super::state::Faults;

/// How a packet travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Over the network: it can be lost or repeated, and waits for a process that restarts.
    Wire,
    /// A request of a process and its answer: it can be lost, and ends with the process.
    Fetch,
    /// A question to the process's own host, which decides. It ends with the process.
    Question,
}

/// A packet in flight.
#[derive(Clone, Debug)]
pub struct Packet<M> {
    pub from: usize,
    pub to: usize,
    pub way: Way,
    pub message: M,
}

/// An input of a process.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a, M> {
    /// A packet has arrived; to a question: the host agrees.
    Packet(&'a Packet<M>),
    /// The host's refusal, as the answer to a question.
    Refusal(&'a Packet<M>),
    /// A deadline has passed.
    Tick,
    /// It has restarted from its journals.
    Restarted,
    /// The connection to another process was broken, and is there again.
    Reconnected(usize),
}

/// One input of a process, up to its end or to a crash.
pub struct Run<M> {
    /// How many operations are performed before it crashes.
    pub(super) until: Option<u32>,
    pub(super) operations: u32,
    pub(super) is_crashed: bool,
    pub(super) sent: Vec<Packet<M>>,
}

impl<M> Run<M> {
    /// Called before each operation that outlives the process: an append to a journal, a message, a stored file. Whether it is performed.
    pub fn operation(&mut self) -> bool {
        self.is_crashed |= self.until == Some(self.operations);
        self.operations += u32::from(!self.is_crashed);
        !self.is_crashed
    }

    /// Whether nothing more is performed.
    pub fn is_crashed(&self) -> bool {
        self.is_crashed
    }

    /// Sends a packet, unless it crashes before. A message is an operation of its own.
    pub fn send(&mut self, packet: Packet<M>) {
        if packet.way != Way::Wire || self.operation() {
            self.sent(packet);
        }
    }

    /// What was sent, by an operation that was counted already.
    pub fn sent(&mut self, packet: Packet<M>) {
        self.sent.push(packet);
    }
}

/// A process: its machines, their journals and its host. A violated invariant is a panic, which the explorer reports with its trace.
pub trait Process: Clone {
    type Message: Clone + Debug;

    /// Everything that its behaviour or an invariant depends on. Two processes of one text are the same.
    fn text(&self) -> String;

    /// Panics if the machines of two processes of one text differ: the text is then not complete.
    fn assert_same(&self, other: &Self);

    fn deadline(&self) -> Option<Timestamp>;

    fn feed(&mut self, now: Timestamp, input: Input<'_, Self::Message>, run: &mut Run<Self::Message>);

    /// Only what is durable stays; the machines are replayed from their journals.
    fn crash(&mut self);

    /// What must hold of it alone; among it that a replay of its journals gives its machines.
    fn check(&self);
}

/// What is explored.
pub trait System {
    type Process: Process;

    /// What must hold of all processes together.
    fn check(&self, processes: &[&Self::Process]);

    /// How a run has ended in which nothing more happens.
    ///
    /// # Errors
    /// Why it must not end so.
    fn end(&self, processes: &[&Self::Process], is_gone: &dyn Fn(usize) -> bool) -> Result<String, String>;
}

/// When deadlines pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// At any moment: a packet may take longer than any deadline; and a process may notice its own late.
    AnyMoment,
    /// At any moment, but in their order.
    InOrder,
    /// In their order, and only when nothing is in flight.
    WhenQuiet,
}

/// What an exploration starts from.
pub struct Start<P> {
    pub now: Timestamp,
    /// The first is the service.
    pub processes: Vec<P>,
    pub faults: Faults,
    pub timing: Timing,
}

/// What was explored.
#[derive(Debug)]
pub struct Explored {
    pub states: usize,
    pub transitions: usize,
    /// States of single processes.
    pub locals: usize,
    /// How often runs end in which way: states in which nothing but a fault can happen.
    pub ends: BTreeMap<String, usize>,
}

/// An invariant is violated.
#[derive(Debug)]
pub struct Broken {
    pub problem: String,
    pub trace: Vec<String>,
}
