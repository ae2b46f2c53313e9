//! An Aggregation Service with its cohorts, and its host.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bitcoin::FeeRate;
use rand_chacha::ChaCha8Rng;

use super::{
    CohortNode, SessionNode, Setup, accept_first,
    crash::{Fate, Process},
};
use crate::{
    cohort::{
        Undelivered,
        event::ServiceEvent,
        service::{CohortTerms, Limits, Lineage, ServiceCohort, ServiceConfigError, ServiceEffect, ServiceInput},
    },
    did::Did,
    error::{Fatal, Reject, Retry},
    id::CohortId,
    identity::Identity,
    key::SecretKey,
    machine::Machine,
    message::{Body, Message},
    output::{Change, Coin, build_beacon_transaction},
    signing::session::{SessionEffect, SessionEvent, SessionInput, SessionPhase},
    time::Timestamp,
    transcript::Transcript,
};

/// The service: its cohorts, one after the other, and a host that acts by the [`Setup`].
pub struct ServiceNode {
    pub(super) identity: Identity,
    /// The first cohort, and those that were formed to replace one that failed.
    pub(super) cohorts: Vec<CohortNode>,
    pub(super) process: Process,
    deferrals: u32,
    /// The participants that opted in, in that order, each with the operator's decision.
    admissions: BTreeMap<Did, Result<(), String>>,
    /// What it knows of members that its requests do not reach.
    pub(super) undelivered: BTreeMap<Did, Undelivered>,
}

/// An input of one of the service's machines.
enum Input {
    Cohort(usize, ServiceInput),
    Session(usize, SessionInput),
}

/// The inputs still to feed, and the messages to send.
#[derive(Default)]
struct Work {
    inputs: VecDeque<Input>,
    outgoing: Vec<Message>,
}

impl ServiceNode {
    pub(super) fn new(setup: &Setup, rng: &mut ChaCha8Rng) -> Result<Self, ServiceConfigError> {
        let key = SecretKey::generate(rng);
        let identity = Identity::from_key(key, setup.network);
        let terms = CohortTerms {
            service: identity.did().clone(),
            service_key: identity.public_key(),
            cohort_id: CohortId::generate(rng),
            network: setup.network,
            conditions: setup.conditions.clone(),
            timing: setup.timing,
            limits: Limits::default(),
            rules: setup.rules.clone(),
            lineage: Lineage::default(),
        };
        let first = CohortNode::new(Arc::new(terms), setup, rng)?;
        let (cohorts, process) = (vec![first], Process::of(None));
        let (admissions, undelivered) = Default::default();
        Ok(Self { identity, cohorts, process, deferrals: 0, admissions, undelivered })
    }

    /// Its identity.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// All its cohorts, in the order in which they replaced each other.
    pub fn cohorts(&self) -> &[CohortNode] {
        &self.cohorts
    }

    pub(super) fn latest(&self) -> &CohortNode {
        &self.cohorts[self.cohorts.len() - 1]
    }

    /// The machine of its latest cohort.
    pub fn machine(&self) -> &ServiceCohort {
        &self.latest().machine
    }

    /// The journal of its latest cohort.
    pub fn events(&self) -> &[ServiceEvent] {
        &self.latest().events
    }

    /// The signing session of its latest cohort, once there is one.
    pub fn session(&self) -> Option<&SessionNode> {
        self.latest().sessions.last()
    }

    /// The transcript of the round of its latest cohort.
    pub fn transcript(&self) -> &Transcript {
        &self.latest().transcript
    }

    /// The made-up coin that the transaction of its latest cohort spends.
    pub fn coin(&self) -> &Coin {
        &self.latest().coin
    }

    /// The number of its crashes.
    pub fn crashes(&self) -> u32 {
        self.process.crashes()
    }

    pub(super) fn deadline(&self) -> Option<Timestamp> {
        self.cohorts.iter().filter_map(CohortNode::deadline).min()
    }

    pub(super) fn receive(
        &mut self,
        now: Timestamp,
        message: Message,
        setup: &Setup,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Message>, Reject> {
        // The latest cohort rejects a message about an unknown cohort.
        let about = |cohort: &CohortNode| cohort.machine.config().terms.cohort_id == *message.body.cohort_id();
        let index = self.cohorts.iter().position(about).unwrap_or(self.cohorts.len() - 1);
        let signing = matches!(
            &*message.body,
            Body::NonceContribution(_) | Body::SignatureAuthorization(_) | Body::FallbackSignature(_)
        );
        let cohort = &self.cohorts[index];
        let input = if signing && !cohort.sessions.is_empty() && !cohort.machine.has_ended() {
            Input::Session(index, SessionInput::Message(message))
        } else {
            Input::Cohort(index, ServiceInput::Message(message))
        };
        self.run(now, input, setup, rng)
    }

    pub(super) fn cohort_input(
        &mut self,
        now: Timestamp,
        input: ServiceInput,
        setup: &Setup,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Message>, Reject> {
        self.run(now, Input::Cohort(self.cohorts.len() - 1, input), setup, rng)
    }

    pub(super) fn session_input(
        &mut self,
        now: Timestamp,
        input: SessionInput,
        setup: &Setup,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Message>, Reject> {
        self.run(now, Input::Session(self.cohorts.len() - 1, input), setup, rng)
    }

    pub(super) fn tick(&mut self, now: Timestamp, setup: &Setup, rng: &mut ChaCha8Rng) -> Vec<Message> {
        let mut outgoing = Vec::new();
        for index in 0..self.cohorts.len() {
            // The session comes first: while signing, the cohort's own deadline is only the guard behind the
            // session's.
            let ticks = if self.undelivered.is_empty() {
                [Input::Session(index, SessionInput::Tick), Input::Cohort(index, ServiceInput::Tick)]
            } else {
                let undelivered = self.undelivered.clone();
                let session = SessionInput::Lapsed { undelivered: undelivered.clone() };
                [Input::Session(index, session), Input::Cohort(index, ServiceInput::Lapsed { undelivered })]
            };
            for tick in ticks {
                // It may crash in any of them.
                if !self.process.is_down() {
                    outgoing.extend(self.run(now, tick, setup, rng).unwrap_or_default());
                }
            }
        }
        outgoing
    }

    /// Crashes it for a while. Only the journals remain: a cohort that was not advertised is dropped, except for the
    /// first one, which its operator opens again.
    pub(super) fn crash(&mut self, now: Timestamp, setup: &Setup, rng: &mut ChaCha8Rng) {
        self.process.crash(now, &setup.crashes, rng);
        let first = self.cohorts.remove(0);
        self.cohorts.retain(|cohort| !cohort.events.is_empty());
        self.cohorts.insert(0, first);
        for cohort in &mut self.cohorts {
            cohort.restart(setup);
        }
    }

    /// Restarts it and performs the open effects.
    pub(super) fn resume(&mut self, now: Timestamp, setup: &Setup, rng: &mut ChaCha8Rng) -> Vec<Message> {
        self.process.restart();
        let mut work = Work::default();
        for index in 0..self.cohorts.len() {
            work.inputs.push_back(Input::Cohort(index, ServiceInput::Resumed));
            for effect in self.cohorts[index].machine.resume() {
                self.perform(index, effect, setup, &mut work, rng);
            }
        }
        // Every input here is the host's own.
        self.feed(now, work, false, setup, rng).unwrap_or_else(|reject| panic!("{reject}"))
    }

    fn run(
        &mut self,
        now: Timestamp,
        input: Input,
        setup: &Setup,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Message>, Reject> {
        let work = Work { inputs: VecDeque::from([input]), outgoing: Vec::new() };
        self.feed(now, work, true, setup, rng)
    }

    /// Feeds the inputs, and then the host's answers to their effects. Only the first input can be rejected, if it
    /// came from outside: the others are our own host's answers.
    fn feed(
        &mut self,
        now: Timestamp,
        mut work: Work,
        from_outside: bool,
        setup: &Setup,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Message>, Reject> {
        let mut first = from_outside;
        while let Some(input) = work.inputs.pop_front() {
            let fate = match input {
                Input::Cohort(index, input) => {
                    let events = accept_first(self.cohorts[index].machine.decide(now, &input, rng), &mut first)?;
                    let fate = self.fate(events.is_empty(), setup, rng);
                    if fate != Fate::NotJournaled {
                        let effects = self.apply(index, events).into_iter().enumerate();
                        for (_, effect) in effects.filter(|(position, _)| fate.performs(*position)) {
                            self.perform(index, effect, setup, &mut work, rng);
                        }
                    }
                    fate
                }
                Input::Session(index, input) => {
                    let cohort = &self.cohorts[index];
                    // A session ends with its cohort.
                    let Some(session) = cohort.sessions.last().filter(|_| !cohort.machine.has_ended()) else {
                        continue;
                    };
                    let events = accept_first(session.machine.decide(now, &input, rng), &mut first)?;
                    let fate = self.fate(events.is_empty(), setup, rng);
                    if fate != Fate::NotJournaled {
                        let effects = self.apply_to_session(index, events).into_iter().enumerate();
                        let performed = effects.filter(|(position, _)| fate.performs(*position));
                        self.perform_for_session(index, performed.map(|(_, effect)| effect).collect(), &mut work);
                    }
                    fate
                }
            };
            if fate != Fate::Performed {
                self.crash(now, setup, rng);
                break;
            }
        }
        Ok(work.outgoing)
    }

    fn fate(&mut self, nothing_happened: bool, setup: &Setup, rng: &mut ChaCha8Rng) -> Fate {
        if nothing_happened { Fate::Performed } else { self.process.fate(&setup.crashes, rng) }
    }

    fn apply(&mut self, index: usize, events: Vec<ServiceEvent>) -> Vec<ServiceEffect> {
        let cohort = &mut self.cohorts[index];
        let mut all = Vec::new();
        for event in events {
            cohort.machine.apply(&event);
            let effects = cohort.machine.effects(&event);
            for digest in cohort.machine.transcript_entries(&event, &effects) {
                cohort.transcript.push(digest);
            }
            cohort.events.push(event);
            all.extend(effects);
        }
        all
    }

    fn apply_to_session(&mut self, index: usize, events: Vec<SessionEvent>) -> Vec<SessionEffect> {
        let Some(session) = self.cohorts[index].sessions.last_mut() else { return Vec::new() };
        let mut all = Vec::new();
        for event in events {
            session.machine.apply(&event);
            let effects = session.machine.effects(&event);
            session.digests.extend(session.machine.transcript_entries(&event, &effects));
            session.events.push(event);
            all.extend(effects);
        }
        all
    }

    fn perform_for_session(&mut self, index: usize, effects: Vec<SessionEffect>, work: &mut Work) {
        for effect in effects {
            match effect {
                SessionEffect::Send { to, body } => {
                    work.outgoing.push(Message::new(self.identity.did().clone(), Some(to), body));
                }
                SessionEffect::Finished(outcome) => {
                    let session = self.cohorts[index].sessions.last();
                    let digests = session.map_or_else(Vec::new, |session| session.digests.clone());
                    let input = ServiceInput::SigningFinished { outcome, digests };
                    work.inputs.push_back(Input::Cohort(index, input));
                }
            }
        }
    }

    fn perform(
        &mut self,
        index: usize,
        effect: ServiceEffect,
        setup: &Setup,
        work: &mut Work,
        rng: &mut ChaCha8Rng,
    ) {
        let from = self.identity.did().clone();
        match effect {
            // The simulated network does not store adverts.
            ServiceEffect::WithdrawAdvert => {}
            ServiceEffect::Broadcast(body) => work.outgoing.push(Message::new(from, None, body)),
            ServiceEffect::Send { to, body } => work.outgoing.push(Message::new(from, Some(to), body)),
            ServiceEffect::AskAdmission(member) => {
                let refused = setup.refuses.contains(&self.admissions.len());
                let answer = if refused { Err("refused by the operator".to_owned()) } else { Ok(()) };
                let did: Did = member.did.clone();
                let admission = self.admissions.entry(did.clone()).or_insert(answer).clone();
                work.inputs.push_back(Input::Cohort(index, ServiceInput::AdmissionDecided { did, admission }));
            }
            ServiceEffect::AskFinalization { admitted } => {
                let again = self.cohorts[index].machine.config().terms.lineage.generation > 0;
                if again || setup.finalize_at.is_some_and(|size| admitted >= size) {
                    work.inputs.push_back(Input::Cohort(index, ServiceInput::Finalize));
                }
            }
            ServiceEffect::AskTransaction { output, signal } => {
                let input = if self.deferrals < setup.defer_transaction {
                    self.deferrals += 1;
                    ServiceInput::TransactionUnavailable(Retry("the coin is not confirmed yet".to_owned()))
                } else {
                    let coin = &self.cohorts[index].coin;
                    let rate = FeeRate::from_sat_per_vb_u32(2);
                    match build_beacon_transaction(&output, coin, &signal, rate, &Change::Beacon) {
                        Ok(transaction) => ServiceInput::TransactionProvided { transaction, value: coin.value },
                        Err(error) => ServiceInput::TransactionRefused(Fatal(error.to_string())),
                    }
                };
                work.inputs.push_back(Input::Cohort(index, input));
            }
            ServiceEffect::FormAgain(terms) => {
                self.cohorts[index].successor = Some(Arc::clone(&terms));
                let open = |cohort: &CohortNode| cohort.machine.config().terms.cohort_id == terms.cohort_id;
                if !self.cohorts.iter().any(open) {
                    let cohort = CohortNode::new(terms, setup, rng).expect("its predecessor was on the same terms");
                    self.cohorts.push(cohort);
                    let latest = self.cohorts.len() - 1;
                    work.inputs.push_back(Input::Cohort(latest, ServiceInput::Advertise));
                }
            }
            ServiceEffect::StartSigning(task) => {
                let sessions = &mut self.cohorts[index].sessions;
                let same = |session: &&SessionNode| session.machine.task().session_id == task.session_id;
                let owed = match sessions.iter().find(same) {
                    Some(session) => session.machine.resume(),
                    None => {
                        sessions.push(SessionNode::new(task));
                        Vec::new()
                    }
                };
                work.inputs.push_back(Input::Session(index, SessionInput::Resumed));
                let planned = sessions.last().is_some_and(|s| matches!(s.machine.phase(), SessionPhase::Planned));
                if planned {
                    work.inputs.push_back(Input::Session(index, SessionInput::Open));
                }
                self.perform_for_session(index, owed, work);
            }
        }
    }
}
