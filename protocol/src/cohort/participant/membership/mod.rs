//! A participant in all its cohorts: which adverts it considers, which cohort replaces one of its own, what messages of
//! other cohorts mean, and when it is left without a cohort.
//!
//! Each cohort that it considers has a session, a [`ParticipantCohort`](super::ParticipantCohort) with its own driver and
//! its own journal. This machine has two kinds of state. [`Facts`] are about cohorts that we joined; they are journaled
//! and survive a restart. The `Run` is everything that an unauthenticated peer can change, which can advertise cohorts and
//! send messages about them without limit. It is bounded, not journaled, and empty after a restart.

mod decide;
pub mod event;
pub mod facts;
mod run;

use std::{fmt, sync::Arc, time::Duration};

use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};

use self::run::{Over, Run, Standing};
pub use self::{
    event::{MembershipEvent, WithoutCohort},
    facts::{Facts, Joined, Successor},
};
use super::Advert;
use crate::{
    beacon::BeaconRegistry,
    cohort::event::{ParticipantEvent, SessionEnd},
    did::Did,
    error::Reject,
    id::CohortId,
    machine::Machine,
    message::{Body, Message},
    time::Timestamp,
};

/// A cohort is identified by its service and its identifier: two services may choose the same identifier.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CohortKey {
    /// The service.
    pub service: Did,
    /// The identifier that the service chose.
    pub cohort_id: CohortId,
}

impl CohortKey {
    /// The cohort that a message of a service is about.
    pub fn of_message(message: &Message) -> Self {
        Self { service: message.from.clone(), cohort_id: message.body.cohort_id().clone() }
    }
}

impl From<&Advert> for CohortKey {
    fn from(advert: &Advert) -> Self {
        Self { service: advert.service.clone(), cohort_id: advert.cohort_id.clone() }
    }
}

/// The settings of a participant's memberships.
#[derive(Clone, Debug)]
pub struct MembershipConfig {
    /// The participant.
    pub did: Did,
    /// The beacon types that the host knows.
    pub beacons: BeaconRegistry,
    /// The maximum number of sessions at once. Further adverts are ignored until they are repeated.
    pub max_sessions: usize,
    /// How long the successor of a failed cohort is awaited.
    pub patience: Duration,
    /// Whether the journal of a session that has ended remains until the host archives it.
    pub retains: bool,
}

/// An input of a participant's memberships.
#[derive(Clone, Debug)]
pub enum MembershipInput {
    /// A message arrived from a sender that the transport has authenticated.
    Message {
        /// The message.
        message: Message,
        /// Whether it was sent before we were connected.
        stored: bool,
    },
    /// The host's answer to [`MembershipEffect::AskConsider`].
    ConsiderDecided {
        /// The advert.
        advert: Arc<Advert>,
        /// Whether the host considers it.
        considers: bool,
    },
    /// A session has opted in, durably: what its service sends about the cohort concerns us from now on.
    OptedIn(Arc<Advert>),
    /// The cohort of a session has formed, durably.
    Formed(CohortKey),
    /// A session has ended, durably; its driver is about to stop.
    SessionEnded {
        /// The cohort.
        cohort: CohortKey,
        /// Why.
        reason: SessionEnd,
    },
    /// The driver of a session has stopped.
    SessionStopped {
        /// The cohort.
        cohort: CohortKey,
        /// Why the session cannot continue, if it has not ended.
        failure: Option<String>,
    },
    /// The participant was restarted, and has read the journals of its sessions. Fed before any other input.
    Resumed(Previous),
    /// Time has passed.
    Tick,
}

/// The sessions of previous runs.
#[derive(Clone, Debug, Default)]
pub struct Previous {
    /// The cohorts whose sessions are archived.
    pub archived: Vec<CohortKey>,
    /// The cohorts whose sessions are not, with what their journals contain, or why they cannot be read.
    pub sessions: Vec<(CohortKey, Result<PreviousSession, String>)>,
}

/// What the journal of a session contains.
#[derive(Clone, Debug)]
pub struct PreviousSession {
    advert: Arc<Advert>,
    joined: bool,
    formed: bool,
    end: Option<(Timestamp, SessionEnd)>,
}

impl PreviousSession {
    /// Reads the events of a session. `None` if they do not begin with an advert.
    pub fn read(events: &[ParticipantEvent]) -> Option<Self> {
        let Some(ParticipantEvent::CohortDiscovered { advert, .. }) = events.first() else { return None };
        let mut session = Self { advert: Arc::clone(advert), joined: false, formed: false, end: None };
        for event in events {
            match event {
                ParticipantEvent::OptedIn { .. } => session.joined = true,
                ParticipantEvent::CohortReady { .. } => session.formed = true,
                ParticipantEvent::SessionEnded { at, reason } => session.end = Some((*at, reason.clone())),
                _ => {}
            }
        }
        Some(session)
    }

    /// The cohort's advert.
    pub fn advert(&self) -> &Arc<Advert> {
        &self.advert
    }

    /// Whether it ended without our joining: nothing of it needs to be stored.
    pub fn was_declined(&self) -> bool {
        matches!(self.end, Some((_, SessionEnd::NotJoined)))
    }
}

/// An action that the driver must perform for a participant.
#[derive(Clone, Debug, PartialEq)]
pub enum MembershipEffect {
    /// Ask the host whether to consider the advert, and answer with [`MembershipInput::ConsiderDecided`].
    AskConsider(Arc<Advert>),
    /// Start a session for the advert.
    StartSession {
        /// The advert.
        advert: Arc<Advert>,
        /// Whether the cohort replaces one that we were in, on the same terms: the host is asked whether to rejoin.
        rejoins: bool,
    },
    /// Start the session of a previous run where its journal ends.
    ResumeSession(CohortKey),
    /// Remove the journal of a session: nothing of it is needed any more.
    Forget(CohortKey),
    /// Report that a message about the cohort was refused.
    Refuse {
        /// The cohort.
        cohort: CohortKey,
        /// Why.
        reject: Reject,
    },
    /// Report that a session cannot continue, although it has not ended.
    ReportHalted {
        /// The cohort.
        cohort: CohortKey,
        /// The reason, as text.
        reason: String,
    },
    /// Report that no cohort is left that could announce anything for us.
    ReportWithoutCohort {
        /// The cohort that failed, or the successor that was missed.
        cohort: CohortKey,
        /// Which of both.
        cause: WithoutCohort,
    },
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the session of its cohort, which acknowledges it; and to this machine.
    Session,
    /// To this machine alone.
    Membership,
    /// Nowhere, and it is not acknowledged: its session cannot continue until the host is restarted.
    Withheld,
}

/// A participant in all its cohorts.
#[derive(Clone)]
pub struct Membership {
    config: Arc<MembershipConfig>,
    facts: Facts,
    run: Run,
}

/// Two are equal when everything that events can change is equal; the configuration is the host's.
impl PartialEq for Membership {
    fn eq(&self, other: &Self) -> bool {
        self.config.did == other.config.did && self.facts == other.facts && self.run == other.run
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("did", &self.config.did)
            .field("facts", &self.facts)
            .field("run", &self.run)
            .finish_non_exhaustive()
    }
}

impl Membership {
    /// A participant without cohorts.
    pub fn new(config: Arc<MembershipConfig>) -> Self {
        Self { config, facts: Facts::default(), run: Run::default() }
    }

    /// What survives a restart.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The state that a replay of its journal gives: without this run.
    #[must_use]
    pub fn restarted(&self) -> Self {
        Self { config: Arc::clone(&self.config), facts: self.facts.clone(), run: Run::default() }
    }

    /// The event that replaces all events so far in the journal.
    pub fn compacted(&self) -> MembershipEvent {
        MembershipEvent::Compacted(Box::new(self.facts.clone()))
    }

    /// The number of open sessions.
    pub fn sessions(&self) -> usize {
        self.run.sessions()
    }

    /// Where a message goes.
    pub fn route(&self, message: &Message) -> Route {
        if matches!(&*message.body, Body::CohortAdvert(_)) {
            return Route::Membership;
        }
        match self.run.standing(&CohortKey::of_message(message)) {
            Some(Standing::Session(_)) => Route::Session,
            Some(Standing::Halted) => Route::Withheld,
            _ => Route::Membership,
        }
    }

    /// Whether the cohort has formed, and we have no session of it: its adverts are ignored.
    pub fn has_formed_without_us(&self, cohort: &CohortKey) -> bool {
        matches!(self.run.standing(cohort), Some(Standing::Formed))
    }

    /// Whether the journal of an ended session may be archived. That of a session that cannot continue remains, because
    /// the session can be restored once its journal is repaired.
    pub fn may_archive(&self, cohort: &CohortKey) -> bool {
        self.config.retains && !matches!(self.run.standing(cohort), Some(Standing::Halted))
    }

    /// Whether a cohort other than `cohort` that we joined still runs.
    fn is_in_another(&self, cohort: Option<&CohortKey>) -> bool {
        let halted = |other| matches!(self.run.standing(other), Some(Standing::Halted));
        self.facts.joined().any(|(other, _)| Some(other) != cohort && !halted(other))
    }

    /// Whether the cohort replaces one of ours, whatever its terms are.
    fn expects(&self, cohort: &CohortKey) -> bool {
        self.facts.expects(cohort).is_some() || self.claimed(cohort).next().is_some()
    }

    /// The cohorts of ours that the service has claimed to be replaced by `cohort`.
    fn claimed<'a>(&'a self, cohort: &'a CohortKey) -> impl Iterator<Item = &'a Arc<Advert>> {
        let claims = move |ours: &CohortKey| {
            let claim = self.run.session(ours).and_then(|session| session.claim.as_ref());
            ours.service == cohort.service && claim == Some(&cohort.cohort_id)
        };
        self.facts.joined().filter(move |(ours, _)| claims(ours)).map(|(_, joined)| &joined.advert)
    }

    /// Whether the cohort replaces one that we were in, on the same terms.
    fn replaces_ours(&self, advert: &Advert) -> bool {
        let cohort = CohortKey::from(advert);
        let same = |ours: &Arc<Advert>| ours.network == advert.network && ours.conditions == advert.conditions;
        self.facts.expects(&cohort).is_some_and(|successor| same(&successor.replaced))
            || self.claimed(&cohort).any(same)
    }
}

impl Machine for Membership {
    type Input = MembershipInput;
    type Event = MembershipEvent;
    type Effect = MembershipEffect;

    fn is_journaled(event: &MembershipEvent) -> bool {
        event.is_fact()
    }

    fn decide(
        &self,
        now: Timestamp,
        input: &MembershipInput,
        _rng: &mut dyn CryptoRng,
    ) -> Result<Vec<MembershipEvent>, Reject> {
        match input {
            MembershipInput::Message { message, stored } => self.on_message(message, *stored),
            MembershipInput::ConsiderDecided { advert, considers } => {
                Ok(self.on_consider_decided(advert, *considers))
            }
            MembershipInput::OptedIn(advert) => Ok(self.on_opted_in(now, advert)),
            MembershipInput::Formed(cohort) => Ok(self.on_formed(now, cohort)),
            MembershipInput::SessionEnded { cohort, reason } => Ok(self.on_session_ended(now, cohort, reason)),
            MembershipInput::SessionStopped { cohort, failure } => {
                Ok(self.on_session_stopped(cohort, failure.as_ref()))
            }
            MembershipInput::Resumed(previous) => Ok(self.on_resumed(now, previous)),
            MembershipInput::Tick => Ok(self.on_tick(now)),
        }
    }

    fn apply(&mut self, event: &MembershipEvent) {
        self.facts.apply(event);
        match event {
            MembershipEvent::SessionStarted { advert, .. } => {
                // A session of a previous run may have ended: its end is reported once more.
                let over = self.facts.has_ended(&CohortKey::from(&**advert)).then_some(Over::Ended);
                self.run.start(advert, over);
            }
            MembershipEvent::AdvertPassedOver { cohort } => self.run.remember(cohort, Standing::Declined),
            MembershipEvent::SuccessorClaimed { cohort, next } => {
                self.run.claim(cohort, next);
                self.run.reconsider(&CohortKey { service: cohort.service.clone(), cohort_id: next.clone() });
            }
            MembershipEvent::CohortEnded { cohort, successor, .. } => {
                self.run.end(cohort, Over::Ended);
                if let Some(Successor { cohort, .. }) = successor {
                    self.run.reconsider(cohort);
                }
            }
            MembershipEvent::SessionDeclined { cohort } => self.run.end(cohort, Over::Declined),
            MembershipEvent::SessionClosed { cohort } => {
                let declined = self.run.session(cohort).is_some_and(|session| session.over == Some(Over::Declined));
                self.run.close(cohort);
                match declined {
                    // A successor of one of our cohorts is considered again when its advert is repeated.
                    true if self.expects(cohort) => {}
                    true => self.run.remember(cohort, Standing::Declined),
                    false if self.facts.has_ended(cohort) => {}
                    false => self.run.remember(cohort, Standing::Over),
                }
            }
            MembershipEvent::CohortHalted { cohort, joined, .. } => {
                self.run.remember(cohort, if *joined { Standing::Halted } else { Standing::Declined });
            }
            MembershipEvent::FormedWithoutUs { cohort, .. } => self.run.remember(cohort, Standing::Formed),
            MembershipEvent::ArchiveRead { cohort } => self.run.remember(cohort, Standing::Over),
            MembershipEvent::AdvertRead { .. }
            | MembershipEvent::SessionDiscarded { .. }
            | MembershipEvent::LeftWithoutCohort { .. }
            | MembershipEvent::CohortJoined { .. }
            | MembershipEvent::CohortFormed { .. }
            | MembershipEvent::SuccessorMissed { .. }
            | MembershipEvent::CohortLost { .. }
            | MembershipEvent::Compacted(_) => {}
        }
    }

    fn effects(&self, event: &MembershipEvent) -> Vec<MembershipEffect> {
        match event {
            MembershipEvent::AdvertRead { advert } => vec![MembershipEffect::AskConsider(Arc::clone(advert))],
            MembershipEvent::SessionStarted { advert, resumed: true, .. } => {
                vec![MembershipEffect::ResumeSession(CohortKey::from(&**advert))]
            }
            MembershipEvent::SessionStarted { advert, rejoins, resumed: false } => {
                vec![MembershipEffect::StartSession { advert: Arc::clone(advert), rejoins: *rejoins }]
            }
            // Any peer can advertise: nothing is stored of a cohort in which we take no part.
            MembershipEvent::SessionDeclined { cohort } | MembershipEvent::SessionDiscarded { cohort } => {
                vec![MembershipEffect::Forget(cohort.clone())]
            }
            MembershipEvent::SessionClosed { cohort } if !self.config.retains => {
                vec![MembershipEffect::Forget(cohort.clone())]
            }
            MembershipEvent::FormedWithoutUs { cohort, reject: Some(reject) } => {
                vec![MembershipEffect::Refuse { cohort: cohort.clone(), reject: reject.clone() }]
            }
            MembershipEvent::CohortHalted { cohort, reason, .. } => {
                vec![MembershipEffect::ReportHalted { cohort: cohort.clone(), reason: reason.clone() }]
            }
            MembershipEvent::LeftWithoutCohort { cohort, cause } => {
                vec![MembershipEffect::ReportWithoutCohort { cohort: cohort.clone(), cause: *cause }]
            }
            _ => Vec::new(),
        }
    }

    /// Nothing: [`MembershipInput::Resumed`] continues what the sessions' journals show to be open.
    fn resume(&self) -> Vec<MembershipEffect> {
        Vec::new()
    }

    fn deadline(&self) -> Option<Timestamp> {
        self.facts.awaited().map(|(_, until)| until).min()
    }
}
