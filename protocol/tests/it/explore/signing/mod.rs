//! The signing session of a one-time cohort, from the members' approval of the data to the end of the cohort.

mod coordinator;
mod member;

use std::sync::Arc;

use btcr2_aggregation_protocol::{
    cohort::{event::SpendPath, participant::phase::Phase, service::phase::Phase as ServicePhase},
    message::Message,
    output::ScriptTree,
    signing::SigningOutcome,
    sim::{ParticipantNode, Simulation},
    time::Timestamp,
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

use self::{
    coordinator::{CoordinatorFixed, CoordinatorProcess},
    member::{MemberFixed, MemberProcess},
};
use super::{
    NonceStore,
    explorer::explore,
    is_long,
    process::{Broken, Explored, Input, Process, Run, Start, System, Timing},
    report,
    state::Faults,
};
use crate::sim_support::{honest, setup};

/// Deterministic: what is random in signatures does not matter here.
fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(0)
}

/// What travels, and what a process asks for.
#[derive(Clone, Debug)]
pub enum Talk {
    Wire(Message),
    /// The member's host is asked whether to sign.
    Decide,
}

impl Talk {
    /// As text, as it travels.
    fn wire(message: &Message) -> Self {
        Self::Wire(Message::from_json(&message.to_json()).unwrap())
    }
}

/// A process of a one-time cohort.
#[derive(Clone)]
pub enum Party {
    Coordinator(Box<CoordinatorProcess>),
    Member(Box<MemberProcess>),
}

impl Process for Party {
    type Message = Talk;

    fn text(&self) -> String {
        match self {
            Self::Coordinator(coordinator) => coordinator.text(),
            Self::Member(member) => member.text(),
        }
    }

    fn assert_same(&self, other: &Self) {
        match (self, other) {
            (Self::Coordinator(one), Self::Coordinator(other)) => one.assert_same(other),
            (Self::Member(one), Self::Member(other)) => one.assert_same(other),
            _ => panic!("a service is not a member"),
        }
    }

    fn deadline(&self) -> Option<Timestamp> {
        match self {
            Self::Coordinator(coordinator) => coordinator.deadline(),
            Self::Member(member) => member.deadline(),
        }
    }

    fn feed(&mut self, now: Timestamp, input: Input<'_, Talk>, run: &mut Run<Talk>) {
        match self {
            Self::Coordinator(coordinator) => coordinator.feed(now, input, run),
            Self::Member(member) => member.feed(now, input, run),
        }
    }

    fn crash(&mut self) {
        match self {
            Self::Coordinator(coordinator) => coordinator.crash(),
            Self::Member(member) => member.crash(),
        }
    }

    fn check(&self) {
        match self {
            Self::Coordinator(coordinator) => coordinator.check(),
            Self::Member(member) => member.check(),
        }
    }
}

/// A cohort whose members have approved the data, and whose signing session is about to open.
struct Cohort {
    members: usize,
    threshold: u16,
    store: NonceStore,
    /// Whether every run ends with a signed transaction.
    must_sign: bool,
}

impl Cohort {
    const fn of(members: usize, threshold: u16) -> Self {
        Self { members, threshold, store: NonceStore::Memory, must_sign: false }
    }

    fn processes(&self) -> (Timestamp, Vec<Party>) {
        let mut setup = setup(honest(self.members));
        if let ScriptTree::FallbackAndRecovery { fallback_threshold, .. } = &mut setup.conditions.script_tree {
            *fallback_threshold = Some(self.threshold);
        }
        let mut simulation = Simulation::new(11, setup);
        assert!(simulation.run_until(|simulation| simulation.service().session().is_some()));
        let now = simulation.now();
        let place_of = |node: &ParticipantNode| node.identity().did().clone();
        let coordinator = CoordinatorProcess::new(CoordinatorFixed {
            did: simulation.service().identity().did().clone(),
            signing: simulation.service().machine().clone(),
            session: coordinator::planned(simulation.service().session().unwrap().machine()),
            members: simulation.participants().iter().map(place_of).collect(),
            begins: now,
        });
        let member = |(at, node): (usize, &ParticipantNode)| {
            let approved = node.machine().unwrap().clone();
            assert!(matches!(approved.phase(), Phase::Approved { .. }));
            let (did, key) = (place_of(node), Arc::clone(node.participant_key()));
            let fixed = MemberFixed { place: at + 1, did, key, approved, store: self.store };
            Party::Member(Box::new(MemberProcess::new(fixed)))
        };
        let members = simulation.participants().iter().enumerate().map(member);
        (now, std::iter::once(Party::Coordinator(Box::new(coordinator))).chain(members).collect())
    }

    fn explore(&self, faults: Faults, timing: Timing) -> Result<Explored, Broken> {
        let (now, processes) = self.processes();
        explore(self, Start { now, processes, faults, timing })
    }
}

fn parts<'a>(processes: &[&'a Party]) -> (&'a CoordinatorProcess, Vec<&'a MemberProcess>) {
    let mut coordinator = None;
    let mut members = Vec::new();
    for process in processes {
        match process {
            Party::Coordinator(one) => coordinator = Some(&**one),
            Party::Member(member) => members.push(&**member),
        }
    }
    (coordinator.expect("the first process"), members)
}

impl System for Cohort {
    type Process = Party;

    fn check(&self, processes: &[&Party]) {
        let (coordinator, members) = parts(processes);
        let task = coordinator.session.task();
        for member in &members {
            for (path, digest) in &member.record.signed {
                let expected = match path {
                    SpendPath::KeyPath => Some(task.key_path_sighash()),
                    SpendPath::ScriptPath => task.fallback_sighash(),
                };
                assert_eq!(Some(digest), expected, "signed for another transaction");
            }
        }
        let Some(SigningOutcome::Signed(signed)) = coordinator.outcome() else {
            assert!(
                members.iter().all(|member| member.machine().seen().is_none()),
                "a transaction that is not signed"
            );
            return;
        };
        for member in &members {
            let has_signed = member.record.signed.iter().any(|(path, _)| *path == signed.path);
            assert!(has_signed || !signed.signers.contains(member.did()), "a signer has not signed");
            if let Some(seen) = member.machine().seen() {
                assert_eq!(**seen, signed.transaction, "another transaction was seen");
            }
        }
        let enough = match signed.path {
            SpendPath::KeyPath => self.members,
            SpendPath::ScriptPath => usize::from(self.threshold),
        };
        assert!(signed.signers.len() >= enough, "too few signers");
    }

    fn end(&self, processes: &[&Party], is_gone: &dyn Fn(usize) -> bool) -> Result<String, String> {
        let (coordinator, members) = parts(processes);
        let left = members.iter().zip(1..).find(|(member, place)| !member.has_ended() && !is_gone(*place));
        if let Some((member, place)) = left {
            return Err(format!("member {place} waits, and nothing follows: {:?}", member.machine()));
        }
        let path = match coordinator.outcome() {
            Some(SigningOutcome::Signed(signed)) => Ok(signed.path.to_string()),
            Some(SigningOutcome::Failed { reason, .. }) => Err(reason.clone()),
            None => return Err("the session is open, and nothing can end it".to_owned()),
        };
        match (coordinator.cohort.phase(), path) {
            (ServicePhase::Completed { .. }, Ok(path)) => Ok(path),
            (ServicePhase::Failed { .. }, Err(reason)) if self.must_sign => Err(reason),
            (ServicePhase::Failed { .. }, Err(reason)) => Ok(format!("failed, {reason}")),
            (phase, _) => Err(format!("the cohort has not ended as its session: {phase:?}")),
        }
    }
}

#[test]
fn every_session_of_two_ends_validly() {
    let cohort = Cohort::of(2, 1);
    report("session, 2 members, one fault", 20_000, || cohort.explore(Faults::each(1), Timing::InOrder));
    if is_long() {
        report("session, 2 members, all faults", 500_000, || cohort.explore(Faults::each(6), Timing::InOrder));
        report("session, 2 members, two faults, late", 50_000, || {
            cohort.explore(Faults::each(2), Timing::AnyMoment)
        });
    }
}

#[test]
fn every_session_of_three_ends_validly() {
    let cohort = Cohort::of(3, 2);
    report("session, 3 members, two faults, quiet", 20_000, || cohort.explore(Faults::each(2), Timing::WhenQuiet));
    if is_long() {
        report("session, 3 members, all faults, quiet", 500_000, || {
            cohort.explore(Faults::each(6), Timing::WhenQuiet)
        });
        report("session, 3 members, no fault", 50_000, || cohort.explore(Faults::NONE, Timing::InOrder));
    }
}

#[test]
fn one_fault_does_not_stop_a_session() {
    for (members, threshold, at_least) in [(2, 1, 300), (3, 2, 1_000)] {
        let cohort = Cohort { must_sign: true, ..Cohort::of(members, threshold) };
        let explore = || cohort.explore(Faults::each(1), Timing::WhenQuiet);
        report(&format!("session, {members} members, one fault, quiet"), at_least, explore);
    }
}

/// A member's machine asks for no second use after a restart, whatever its host has stored.
#[test]
fn a_member_that_stores_its_nonces_signs_once() {
    let cohort = Cohort { store: NonceStore::File, ..Cohort::of(2, 1) };
    let faults = Faults { crashes: 1, most: 1, ..Faults::NONE };
    report("session, 2 members, nonces in a file", 200, || cohort.explore(faults, Timing::WhenQuiet));
}
