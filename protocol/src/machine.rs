//! The interface of every role of the protocol: three pure functions over a state.
//!
//! `decide` checks whether an input is acceptable and returns the events that follow; it changes nothing. `apply` is
//! the only place where state changes; live operation and replay share it. `effects` returns the actions that an
//! event requires of the driver. The driver of a machine applies the events at once, journals them in order, and
//! performs the effects when the events are durable. The events of one decision are journaled together or not at all.

use std::fmt::Debug;

use rand_core::CryptoRng;
use serde::{Serialize, de::DeserializeOwned};

use crate::{error::Reject, time::Timestamp};

/// An event-sourced protocol role.
pub trait Machine: Clone + PartialEq + Debug {
    /// An input: a peer's message, a decision of the host, or a tick.
    type Input;
    /// Past-tense facts; also the format of the journal.
    type Event: Clone + PartialEq + Debug + Serialize + DeserializeOwned;
    /// The actions that the driver must perform.
    type Effect: Clone + PartialEq + Debug;

    /// Decides whether `input` is acceptable at `now`, and returns the events that follow. Changes nothing.
    ///
    /// # Errors
    /// [`Reject`] when a peer (or the host) sent an input that does not fit; the state is unchanged.
    fn decide(
        &self,
        now: Timestamp,
        input: &Self::Input,
        rng: &mut dyn CryptoRng,
    ) -> Result<Vec<Self::Event>, Reject>;

    /// Applies an event. Total: an event cannot be refused.
    fn apply(&mut self, event: &Self::Event);

    /// The actions that `event` requires. Called after the event was applied.
    fn effects(&self, event: &Self::Event) -> Vec<Self::Effect>;

    /// The actions that are still open, as far as the events show. Called once, after a restart. It omits every
    /// answered request. An action that may have been performed before must be harmless to repeat.
    fn resume(&self) -> Vec<Self::Effect>;

    /// The time of the next tick, if no other input comes first. An early or late tick is harmless.
    fn deadline(&self) -> Option<Timestamp>;

    /// Whether the driver journals the event: all events by default. An event that any peer can cause without limit is
    /// not journaled, and what it changes does not survive a restart.
    fn is_journaled(event: &Self::Event) -> bool {
        let _ = event;
        true
    }
}

/// The result of one input.
#[derive(Clone, Debug, PartialEq)]
pub struct Step<M: Machine> {
    /// The events, in order, already applied.
    pub events: Vec<M::Event>,
    /// The actions to perform once the events are durable, in order.
    pub effects: Vec<M::Effect>,
}

/// Decides and applies one input.
///
/// # Errors
/// As [`Machine::decide`]; the machine is then unchanged.
pub fn step<M: Machine>(
    machine: &mut M,
    now: Timestamp,
    input: &M::Input,
    rng: &mut dyn CryptoRng,
) -> Result<Step<M>, Reject> {
    let events = machine.decide(now, input, rng)?;
    let effects = apply_all(machine, &events);
    Ok(Step { events, effects })
}

/// Applies events that were decided elsewhere (on another thread, or before a restart) and collects their effects.
pub fn apply_all<M: Machine>(machine: &mut M, events: &[M::Event]) -> Vec<M::Effect> {
    let mut effects = Vec::new();
    for event in events {
        machine.apply(event);
        effects.extend(machine.effects(event));
    }
    effects
}

/// The state that `events` lead to from `initial`.
pub fn replay<'a, M: Machine>(mut initial: M, events: impl IntoIterator<Item = &'a M::Event>) -> M
where
    M::Event: 'a,
{
    for event in events {
        initial.apply(event);
    }
    initial
}
