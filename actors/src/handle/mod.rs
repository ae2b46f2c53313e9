//! What a host holds: a [`Service`] and its [`Cohort`]s, a [`Participant`] and its [`Membership`]s, and their
//! [events](crate::events).
//!
//! Handles are cheap to clone, and may be used from any thread and from any async runtime: they send messages to actors.
//! Only `start` must be called where the actors are to run: on a thread with an actix `System`, e.g. below
//! `#[actix_web::main]`. A host on another runtime gives them a thread of their own, an [`ActorThread`]. A handle that is
//! dropped stops nothing; [`Service::stop`] and [`Participant::stop`] do.

mod builder;
mod ends;
mod participant;
mod service;
mod standing;
mod thread;

pub use self::{
    participant::{Completed, Membership, MembershipError, Participant, ParticipantBuilder},
    service::{Cohort, CohortError, Service, ServiceBuilder},
    standing::{Member, StandingCohort, StandingError},
    thread::ActorThread,
};
use crate::supervision::{Gone, Vitals};

/// Why a service or a participant cannot be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// This thread has no actix `System` that could run the actors.
    #[error("no actix System runs on this thread: start within one, or on an ActorThread")]
    NoSystem,
    /// It has ended while it started, e.g. because its journal cannot be read.
    #[error(transparent)]
    Ended(#[from] Gone),
    /// The `System` has stopped.
    #[error("the actix System has stopped")]
    Stopped,
}

/// The service or the participant has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it has stopped")]
pub struct Stopped;

/// Checks that actors can be started here.
fn check_system() -> Result<(), StartError> {
    if actix_rt::System::try_current().is_some() { Ok(()) } else { Err(StartError::NoSystem) }
}

/// Why an actor that was just started does not answer.
fn ended(vitals: &Vitals) -> StartError {
    vitals.gone().map_or(StartError::Stopped, StartError::Ended)
}
