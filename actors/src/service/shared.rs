//! The data that the actors of a service share, and the messages between a parent and its children.

use std::sync::Arc;

use actix::Message as ActixMessage;
use btcr2_aggregation_protocol::{
    cohort::service::CohortTerms, did::Did, error::Fault, hash::MessageDigest, identity::Identity,
    signing::SigningOutcome,
};

use crate::{
    bans::BanBook,
    deliveries::Deliveries,
    journal::Journal,
    load::{Load, Mailbox, QueuedMessage},
    notice::{Notices, ServiceNotice},
    policy::ServicePolicy,
    runtime::{Clock, Randomness},
    seats::Seats,
    supervision::RestartIntensity,
    transport::Received,
};

/// The data that the service's actors share.
pub(crate) struct ServiceShared {
    pub(crate) identity: Identity,
    pub(crate) policy: Arc<dyn ServicePolicy>,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) clock: Clock,
    pub(crate) randomness: Randomness,
    pub(crate) notices: Notices<ServiceNotice>,
    pub(crate) load: Load,
    pub(crate) bans: BanBook,
    pub(crate) seats: Seats,
    pub(crate) restarts: RestartIntensity,
    pub(crate) deliveries: Deliveries,
}

/// A received message on its way to a cohort or to its session. It is counted as waiting until it is dropped.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct MemberMessage {
    pub(crate) received: Received,
    pub(crate) queued: QueuedMessage,
}

impl MemberMessage {
    /// A message for that mailbox.
    pub(crate) fn to(mailbox: Mailbox, received: Received, load: &Load) -> Self {
        Self { received, queued: load.queued(mailbox) }
    }
}

/// Open the cohort that replaces another one, unless it was opened already.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct FormAgain(pub(crate) Arc<CohortTerms>);

/// Send again what this member, or every member, still needs.
#[derive(Clone, ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct SendAgain(pub(crate) Option<Did>);

impl SendAgain {
    /// Whether messages to `member` are sent again.
    pub(crate) fn concerns(&self, member: &Did) -> bool {
        self.0.as_ref().is_none_or(|only| only == member)
    }
}

/// From a session to its cohort: a member committed a fault.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct FaultFound(pub(crate) Fault);

/// From a session to its cohort: the session has ended.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct SigningEnded {
    pub(crate) outcome: SigningOutcome,
    pub(crate) digests: Vec<MessageDigest>,
}
