//! A whole cohort in one process: a service and its participants as actors, each participant with a real update, to a
//! Bitcoin transaction that Bitcoin Core's consensus code accepts.
//!
//! Everything is real except the coin, which is made up, and, unless it is HTTP or Nostr, the network, which is in
//! memory. [`run`] is the main function; `network` has the transports, [`policy`] the decisions of the operator and the
//! members, [`report`] the result.

mod network;
pub mod policy;
pub mod report;
mod silence;
pub mod standing;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

pub use self::report::Report;
use self::{network::DemoNetwork, policy::DemoMember, report::MemberReport, silence::SilentAfterNonces};
use crate::{
    actors::{
        bans::{BanBook, NoBans},
        events::{Event, Events},
        handle::{Completed, Participant, Service},
        journal::MemoryJournal,
        notice::{CohortResult, Notices, ServiceNotice},
        policy::ServicePolicy,
        runtime::{Clock, Randomness},
        service::OpenCohort,
        transport::Transport,
    },
    bitcoin::offline::OfflineOperator,
    protocol::{
        beacon::{BeaconRegistry, BeaconType},
        cohort::{
            Timing,
            conditions::Conditions,
            event::SpendPath,
            service::{Limits, rules::PhaseRules},
        },
        document,
        hash::sha256,
        identity::Identity,
        key::SecretKey,
        network::Network,
        nostr::max_members,
        output::{MAX_FALLBACK_KEYS, MemoizedAggregator, RecoverySequence, ScriptTree},
    },
};

/// How many notices a demo's reader may fall behind: more than the largest demo makes.
const NOTICES: usize = 1 << 16;

/// The greatest number of participants of a demo.
pub const MAX_PARTICIPANTS: usize = 1000;

/// The network of the demo's DIDs and addresses.
const NETWORK: Network = Network::Regtest;

/// The transport of a demo.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DemoTransport {
    /// Within the process.
    #[default]
    Memory,
    /// Over HTTP, through sockets of the loopback interface.
    Http,
    /// Over a Nostr relay in this process, each with a connection of its own.
    Nostr,
}

/// The configuration of a demo.
#[derive(Clone, Debug)]
pub struct DemoConfig {
    /// The number of members, 1 to [`MAX_PARTICIPANTS`].
    pub participants: usize,
    /// How many of them decline to update.
    pub decline: usize,
    /// How updates are aggregated.
    pub beacon: BeaconType,
    /// The spending path of the transaction.
    pub path: SpendPath,
    /// The transport.
    pub transport: DemoTransport,
    /// The seed of all randomness: the same seed repeats a run.
    pub seed: Option<u64>,
}

/// Why a demo has no transaction.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The configuration is not possible.
    #[error("{0}")]
    Config(String),
    /// The cohort failed.
    #[error("the cohort failed with {code}: {reason}")]
    CohortFailed {
        /// The reason as a code.
        code: &'static str,
        /// The reason in words.
        reason: String,
    },
    /// A bug: something that cannot happen happened.
    #[error("internal error: {0}")]
    Internal(String),
}

/// The progress of a running demo.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The phase, in words.
    pub phase: &'static str,
    /// How many members have contributed to it.
    pub done: usize,
    /// The number of members.
    pub of: usize,
}

impl DemoConfig {
    /// Checks that the demo is possible.
    ///
    /// # Errors
    /// [`DemoError::Config`], with what to change.
    pub fn check(&self) -> Result<(), DemoError> {
        let refuse = |problem: String| Err(DemoError::Config(problem));
        if !(1..=MAX_PARTICIPANTS).contains(&self.participants) {
            return refuse(format!("a demo has 1 to {MAX_PARTICIPANTS} participants, not {}", self.participants));
        }
        if self.decline > self.participants {
            let Self { participants, decline, .. } = self;
            return refuse(format!(
                "of {participants} participants at most {participants} can decline, not {decline}"
            ));
        }
        if self.transport == DemoTransport::Nostr
            && let Some(limit) = max_members(&self.beacon)
            && self.participants > limit
        {
            let why = "the announcement of a larger CAS cohort does not fit into one message";
            return refuse(format!(
                "over Nostr a CAS cohort has at most {limit} members: {why}; take --beacon smt"
            ));
        }
        if self.path == SpendPath::ScriptPath {
            if self.participants < 2 {
                let why = "one member goes silent, and another one must be left to sign";
                return refuse(format!("the fallback path takes at least 2 participants: {why}"));
            }
            if self.participants > MAX_FALLBACK_KEYS {
                let why = "Bitcoin's consensus rules allow no more elements on the stack";
                return refuse(format!("the fallback path takes at most {MAX_FALLBACK_KEYS} participants: {why}"));
            }
        }
        Ok(())
    }

    fn timing(&self) -> Timing {
        let members = u32::try_from(self.participants).unwrap_or(u32::MAX);
        let signing_timeout = match self.path {
            SpendPath::KeyPath => Duration::from_secs(600),
            // Long enough that only the silent member misses it, short enough to watch.
            SpendPath::ScriptPath => {
                let slower = if self.transport == DemoTransport::Http { 2 } else { 1 };
                (Duration::from_secs(1) + Duration::from_millis(25) * members) * slower
            }
        };
        Timing { signing_timeout, ..Timing::default() }
    }

    fn randomness(&self) -> Randomness {
        match self.seed {
            Some(seed) => Randomness::Seeded(sha256(&seed.to_be_bytes())),
            None => Randomness::System,
        }
    }
}

/// Runs a whole cohort. `progress` is called for every step.
///
/// # Errors
/// [`DemoError`] when there is no signed transaction to report on.
///
/// # Panics
/// When called outside of an actix `System`.
pub async fn run(config: &DemoConfig, progress: impl FnMut(Progress)) -> Result<Report, DemoError> {
    run_with(config, Arc::new(OfflineOperator), Notices::new(NOTICES), progress).await
}

/// Runs a whole cohort with another operator, which may have a chain, and sends the service's notices to
/// `service_notices`.
///
/// # Errors
/// Those of [`run`].
///
/// # Panics
/// Like [`run`].
pub async fn run_with(
    config: &DemoConfig,
    operator: Arc<dyn ServicePolicy>,
    service_notices: Notices<ServiceNotice>,
    mut progress: impl FnMut(Progress),
) -> Result<Report, DemoError> {
    config.check()?;
    let started = Instant::now();
    let randomness = config.randomness();
    let service_identity =
        Identity::from_key(SecretKey::generate(&mut randomness.for_actor("service identity")), NETWORK);
    let recovery_key = SecretKey::generate(&mut randomness.for_actor("recovery key")).public_key().x_only();
    let identities = identities(config.participants, randomness)?;

    let aggregator = Arc::new(MemoizedAggregator::default());
    let beacons = BeaconRegistry::default();
    let journal = Arc::new(MemoryJournal::new());
    let clock = Clock::system();
    let network = DemoNetwork::start(config.transport, service_identity.did(), clock, randomness).await?;

    let mut members = Vec::new();
    for (index, identity) in identities.iter().enumerate() {
        let silent = config.path == SpendPath::ScriptPath && index + 1 == config.participants;
        let transport = Arc::clone(&network.members);
        let transport: Arc<dyn Transport> = if silent { Arc::new(SilentAfterNonces(transport)) } else { transport };
        let policy =
            DemoMember::new(identity.clone(), service_identity.did().clone(), index < config.decline, randomness);
        let member = Participant::builder(identity.clone(), transport, Arc::new(policy))
            .beacons(beacons.clone())
            .aggregator(aggregator.clone())
            .transient_journal(journal.clone())
            .clock(clock)
            .randomness(randomness);
        members.push(member.start().await.map_err(internal)?);
    }
    let service = Service::builder(service_identity, Arc::clone(&network.service), operator)
        .beacons(beacons.clone())
        .aggregator(aggregator)
        .transient_journal(journal)
        .clock(clock)
        .randomness(randomness)
        .notices(service_notices)
        .bans(BanBook::in_memory(Arc::new(NoBans)))
        .start()
        .await
        .map_err(internal)?;
    let count = u32::try_from(config.participants).map_err(internal)?;
    let script_tree = ScriptTree::FallbackAndRecovery {
        recovery_key,
        recovery_sequence: RecoverySequence::try_from(144).map_err(internal)?,
        fallback_threshold: None,
    };
    let mut conditions = Conditions::new(config.beacon.clone(), count, script_tree);
    conditions.max_participants = Some(count);
    let open = OpenCohort {
        conditions,
        network: NETWORK,
        timing: config.timing(),
        limits: Limits::default(),
        rules: PhaseRules::default(),
    };
    let mut events = service.events();
    let cohort = service.open(open).await.map_err(internal)?;
    let result = follow(config, &mut events, &mut progress).await?;
    let mut reports = Vec::new();
    for (member, identity) in members.iter().zip(&identities) {
        reports.push(report(member, identity).await?);
    }
    network.stop().await;
    Ok(Report::new(config, cohort.id().clone(), &result, reports, &beacons, started.elapsed()))
}

fn internal(error: impl std::fmt::Display) -> DemoError {
    DemoError::Internal(error.to_string())
}

/// KEY DIDs, and one EXTERNAL DID among three or more.
fn identities(participants: usize, randomness: Randomness) -> Result<Vec<Identity>, DemoError> {
    (0..participants)
        .map(|index| {
            let key = SecretKey::generate(&mut randomness.for_actor(&format!("participant identity {index}")));
            if participants >= 3 && index == 1 {
                let genesis = document::genesis_document(&key.public_key(), NETWORK);
                Identity::from_genesis(key, genesis, NETWORK).map_err(internal)
            } else {
                Ok(Identity::from_key(key, NETWORK))
            }
        })
        .collect()
}

/// Follows the service to the end of its cohort.
async fn follow(
    config: &DemoConfig,
    events: &mut Events<ServiceNotice>,
    progress: &mut impl FnMut(Progress),
) -> Result<Arc<CohortResult>, DemoError> {
    let mut now = Progress { phase: "enrolling", done: 0, of: config.participants };
    loop {
        let (_, event) = events.next().await.ok_or_else(|| internal("the service has stopped"))?;
        let Event::Notice(step) = event else { continue };
        let phase = match &*step {
            ServiceNotice::ParticipantAccepted { .. } => "enrolling",
            ServiceNotice::UpdateReceived { .. } => "collecting updates",
            ServiceNotice::ValidationReceived { .. } => "validating",
            ServiceNotice::NonceReceived { .. } => "collecting nonces",
            ServiceNotice::PartialSignatureReceived { .. } => "collecting partial signatures",
            ServiceNotice::FallbackSignatureReceived { .. } => "collecting fallback signatures",
            ServiceNotice::FallbackStarted { .. } => {
                now = Progress { phase: "falling back: a member is silent", done: 0, of: config.participants };
                progress(now);
                continue;
            }
            ServiceNotice::SigningComplete { result, .. } => return Ok(Arc::clone(result)),
            ServiceNotice::CohortFailed { code, reason, .. } => {
                return Err(DemoError::CohortFailed { code, reason: reason.clone() });
            }
            ServiceNotice::MessageRejected { from, code, detail, .. } => {
                tracing::warn!(?from, %code, detail, "the service refused a message");
                continue;
            }
            _ => continue,
        };
        if now.phase != phase {
            now = Progress { phase, done: 0, of: config.participants };
        }
        now.done += 1;
        progress(now);
    }
}

/// Waits for the stored record of a member.
async fn report(member: &Participant, identity: &Identity) -> Result<MemberReport, DemoError> {
    let failed = |error: &dyn std::fmt::Display| internal(format!("{}: {error}", member.did()));
    let membership = member.join_first().await.map_err(|error| failed(&error))?;
    let completed = membership.outcome().await.map_err(|error| failed(&error))?;
    match completed {
        Completed { transaction: Some(_), record: Some(record), .. } => {
            Ok(MemberReport { record, genesis_document: identity.genesis_document().cloned() })
        }
        _ => Err(failed(&"its cohort is over, and it has not seen the transaction")),
    }
}
