//! What every role of the protocol is: three pure functions over a state.
//!
//! `decide` says whether something may happen and what facts it makes, and changes nothing. `apply` is the one place
//! where state changes; live running and replay share it. `effects` says what the world must do about a fact. Whoever
//! drives a machine applies the events at once, journals them in order, and performs the effects when they are durable.
//! The events of one decision belong together: they are journaled all, or none of them.

use std::fmt::Debug;

use rand_core::CryptoRng;
use serde::{Serialize, de::DeserializeOwned};

use crate::{error::Reject, time::Timestamp};

/// An event-sourced protocol role.
pub trait Machine: Clone + PartialEq + Debug {
    /// What can happen to it: a peer's message, a decision of the host, the passing of time.
    type Input;
    /// Past-tense facts; also the journal's format.
    type Event: Clone + PartialEq + Debug + Serialize + DeserializeOwned;
    /// What the world must do.
    type Effect: Clone + PartialEq + Debug;

    /// Whether `input` may happen at `now`, and which facts it makes. Changes nothing.
    ///
    /// # Errors
    /// [`Reject`] when a peer (or the host) sent what does not fit; the state stays as it is.
    fn decide(
        &self,
        now: Timestamp,
        input: &Self::Input,
        rng: &mut dyn CryptoRng,
    ) -> Result<Vec<Self::Event>, Reject>;

    /// Takes note of a fact. Total: a fact cannot be refused.
    fn apply(&mut self, event: &Self::Event);

    /// What the world must do about `event`, asked after it was applied.
    fn effects(&self, event: &Self::Event) -> Vec<Self::Effect>;

    /// What the world still owes this machine, or this machine the world, as far as its facts tell: asked once, after a
    /// restart. Whatever was answered is not in it; what may have been done already must be harmless to do again.
    fn resume(&self) -> Vec<Self::Effect>;

    /// When to call again with the tick input, if nothing else happens before. An early or late tick is harmless.
    fn deadline(&self) -> Option<Timestamp>;
}

/// What one input brought about.
#[derive(Clone, Debug, PartialEq)]
pub struct Step<M: Machine> {
    /// The facts, in order, already applied.
    pub events: Vec<M::Event>,
    /// What the world must do once the facts are durable, in order.
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

/// Applies facts that were decided elsewhere (on another thread, or before a restart) and collects their effects.
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
