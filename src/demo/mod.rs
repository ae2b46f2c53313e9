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

use std::{sync::Arc, time::Duration};

use actix::Actor;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::Instant;

pub use self::report::Report;
use self::{network::DemoNetwork, policy::DemoMember, report::MemberReport, silence::SilentAfterNonces};
use crate::{
    actors::{
        bans::{BanBook, NoBans},
        journal::MemoryJournal,
        load::Load,
        notice::{CohortResult, Notices, ParticipantNotice, ServiceNotice},
        participant::ParticipantSettings,
        policy::ServicePolicy,
        runtime::{Clock, Randomness},
        seats::Seats,
        service::{OpenCohort, Retention, ServiceSettings},
        supervision::RestartIntensity,
        supervisor::{StartParticipant, StartService, Supervisor},
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
        output::{DEFAULT_MAX_FEE_RATE, MAX_FALLBACK_KEYS, MemoizedAggregator, RecoverySequence, ScriptTree},
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
    let member_notices = Notices::new(NOTICES);
    let mut service_steps = service_notices.subscribe();
    let mut member_steps = member_notices.subscribe();

    let supervisor = Supervisor::default().start();
    for (index, identity) in identities.iter().enumerate() {
        let silent = config.path == SpendPath::ScriptPath && index + 1 == config.participants;
        let transport = Arc::clone(&network.members);
        let transport: Arc<dyn Transport> = if silent { Arc::new(SilentAfterNonces(transport)) } else { transport };
        let policy =
            DemoMember::new(identity.clone(), service_identity.did().clone(), index < config.decline, randomness);
        let settings = ParticipantSettings {
            max_fee_rate: DEFAULT_MAX_FEE_RATE,
            identity: identity.clone(),
            transport,
            policy: Arc::new(policy),
            timing: Timing::default(),
            max_sessions: 4,
            beacons: beacons.clone(),
            aggregator: aggregator.clone(),
            journal: journal.clone(),
            clock,
            randomness,
            notices: member_notices.clone(),
            restarts: RestartIntensity::default(),
            retention: Retention::Forget,
        };
        supervisor.send(StartParticipant(settings)).await.map_err(internal)?;
    }
    let service = supervisor
        .send(StartService(ServiceSettings {
            identity: service_identity,
            transport: Arc::clone(&network.service),
            policy: operator,
            beacons: beacons.clone(),
            aggregator,
            journal,
            clock,
            randomness,
            notices: service_notices,
            load: Load::default(),
            bans: BanBook::in_memory(Arc::new(NoBans)),
            seats: Seats::default(),
            restarts: RestartIntensity::default(),
            retention: Retention::Forget,
        }))
        .await
        .map_err(internal)?;
    let members = u32::try_from(config.participants).map_err(internal)?;
    let script_tree = ScriptTree::FallbackAndRecovery {
        recovery_key,
        recovery_sequence: RecoverySequence::try_from(144).map_err(internal)?,
        fallback_threshold: None,
    };
    let mut conditions = Conditions::new(config.beacon.clone(), members, script_tree);
    conditions.max_participants = Some(members);
    let open = OpenCohort {
        conditions,
        network: NETWORK,
        timing: config.timing(),
        limits: Limits::default(),
        rules: PhaseRules::default(),
    };
    let cohort_id = service.send(open).await.map_err(internal)?.map_err(internal)?;

    let result = follow(config, &mut service_steps, &mut progress).await?;
    let members = collect(&identities, &mut member_steps).await?;
    network.stop().await;
    Ok(Report::new(config, cohort_id, &result, members, &beacons, started.elapsed()))
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
    steps: &mut Receiver<Arc<ServiceNotice>>,
    progress: &mut impl FnMut(Progress),
) -> Result<Arc<CohortResult>, DemoError> {
    let mut now = Progress { phase: "enrolling", done: 0, of: config.participants };
    loop {
        let step = next(steps).await?;
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

/// Waits for the stored record of every member.
async fn collect(
    identities: &[Identity],
    steps: &mut Receiver<Arc<ParticipantNotice>>,
) -> Result<Vec<MemberReport>, DemoError> {
    let mut members: Vec<Option<MemberReport>> = vec![None; identities.len()];
    let index: std::collections::BTreeMap<_, _> =
        identities.iter().enumerate().map(|(index, identity)| (identity.did().clone(), index)).collect();
    let mut missing = identities.len();
    while missing > 0 {
        match &*next(steps).await? {
            ParticipantNotice::CohortComplete { did, record, .. } => {
                if let Some(&place) = index.get(did)
                    && members[place].is_none()
                {
                    let genesis_document = identities[place].genesis_document().cloned();
                    members[place] = Some(MemberReport { record: Arc::clone(record), genesis_document });
                    missing -= 1;
                }
            }
            ParticipantNotice::CohortFailed { did, reason, .. } => {
                return Err(DemoError::Internal(format!("{did}: {reason}")));
            }
            ParticipantNotice::MessageRejected { did, code, detail, .. } => {
                tracing::warn!(%did, %code, detail, "a participant refused a message");
            }
            _ => {}
        }
    }
    Ok(members.into_iter().flatten().collect())
}

async fn next<N: Clone>(steps: &mut Receiver<Arc<N>>) -> Result<Arc<N>, DemoError> {
    loop {
        match steps.recv().await {
            Ok(step) => return Ok(step),
            // Only counts are lost: the end of the cohort is the newest notice, and the newest are not dropped.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return Err(DemoError::Internal("the actors are gone".to_owned())),
        }
    }
}
