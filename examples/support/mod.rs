//! A whole cohort in one process, for examples and benchmarks.
#![allow(dead_code, unreachable_pub, reason = "every example and benchmark uses another part of this")]

pub mod floor;
pub mod memory;

use std::{error::Error, sync::Arc};

use actix::{Actor, Addr};
use async_trait::async_trait;
use btcr2_aggregation::{
    actors::{
        journal::{Journal, MemoryJournal},
        notice::{CohortResult, Notices, ParticipantNotice, ServiceNotice},
        participant::ParticipantSettings,
        policy::{ParticipantPolicy, UpdateRequest},
        runtime::{Clock, Randomness},
        service::{AggregationService, OpenCohort, ServiceSettings},
        supervisor::{StartParticipant, StartService, Supervisor},
        transport::{Transport, memory::MemoryTransport},
    },
    bitcoin::offline::OfflineOperator,
    protocol::{
        beacon::{BeaconRegistry, BeaconType},
        cohort::{conditions::Conditions, participant::Advert},
        hash::sha256,
        identity::Identity,
        key::{SecretKey, XOnlyKey},
        network::Network,
        output::{DEFAULT_MAX_FEE_RATE, KeyAggregator, MemoizedAggregator, RecoverySequence, ScriptTree},
        update::{Submission, add_beacon_service_patch, build_update, sign_update},
    },
};
use tokio::sync::broadcast::Receiver;

pub type Outcome<T> = Result<T, Box<dyn Error>>;

pub const NETWORK: Network = Network::Regtest;

/// The identity of that name, generated from `randomness`.
pub fn identity(randomness: Randomness, name: &str) -> Identity {
    Identity::from_key(SecretKey::generate(&mut randomness.for_actor(name)), NETWORK)
}

/// Deterministic randomness. Keys and nonces repeat with it: never use it where they are worth anything.
pub fn seeded(seed: u64) -> Randomness {
    Randomness::Seeded(sha256(&seed.to_be_bytes()))
}

/// Conditions of a cohort of exactly so many members, with both leaves.
pub fn conditions(beacon_type: BeaconType, members: u32, recovery_key: XOnlyKey) -> Outcome<Conditions> {
    let tree = ScriptTree::FallbackAndRecovery {
        recovery_key,
        recovery_sequence: RecoverySequence::try_from(144)?,
        fallback_threshold: None,
    };
    let mut conditions = Conditions::new(beacon_type, members, tree);
    conditions.max_participants = Some(members);
    Ok(conditions)
}

/// A controller that joins every cohort and announces the cohort's address as a beacon of its DID.
pub struct Joiner {
    pub identity: Identity,
    pub randomness: Randomness,
}

impl Joiner {
    pub fn update(&self, request: &UpdateRequest) -> Option<Submission> {
        let (me, did) = (&self.identity, self.identity.did());
        let beacon_type = request.advert.conditions.beacon_type.as_str();
        let patch = add_beacon_service_patch(did, beacon_type, request.output.address());
        let update = build_update(&me.initial_document().ok()?, 1, patch).ok()?;
        let mut rng = self.randomness.for_actor(&format!("update {did} {}", request.output.address()));
        sign_update(&update, did, me.verification_method(), me.secret_key(), &mut rng).ok().map(Submission::from)
    }
}

#[async_trait]
impl ParticipantPolicy for Joiner {
    async fn should_join(&self, _: &Advert) -> bool {
        true
    }

    async fn provide_update(&self, request: &UpdateRequest) -> Option<Submission> {
        self.update(request)
    }
}

/// A service and its members, before they start.
pub struct Cohort {
    pub service: Identity,
    pub members: Vec<Identity>,
    pub beacon_type: BeaconType,
    pub beacons: BeaconRegistry,
    pub randomness: Randomness,
    /// The transport of the service.
    pub server: Arc<dyn Transport>,
    /// The transport of the members.
    pub client: Arc<dyn Transport>,
    pub journal: Arc<dyn Journal>,
    /// Shared by all: one key list is aggregated once for the whole process. See docs/performance.md.
    pub aggregator: Arc<dyn KeyAggregator>,
}

impl Cohort {
    /// A cohort with so many members, over the network in memory.
    pub fn of(members: usize) -> Self {
        Self::seeded(members, Randomness::System)
    }

    pub fn seeded(members: usize, randomness: Randomness) -> Self {
        let network = Arc::new(MemoryTransport::new());
        Self {
            service: identity(randomness, "service"),
            members: (0..members).map(|number| identity(randomness, &format!("member {number}"))).collect(),
            beacon_type: BeaconType::cas(),
            beacons: BeaconRegistry::default(),
            randomness,
            server: network.clone(),
            client: network,
            journal: Arc::new(MemoryJournal::new()),
            aggregator: Arc::new(MemoizedAggregator::default()),
        }
    }

    /// Starts the service and the members.
    pub async fn start(self) -> Outcome<Running> {
        let supervisor = Supervisor::default().start();
        let notices = Notices::new(1 << 17);
        let member_steps = notices.subscribe();
        let clock = Clock::system();
        for identity in &self.members {
            let policy = Joiner { identity: identity.clone(), randomness: self.randomness };
            let settings = ParticipantSettings {
                max_fee_rate: DEFAULT_MAX_FEE_RATE,
                beacons: self.beacons.clone(),
                aggregator: Arc::clone(&self.aggregator),
                journal: Arc::clone(&self.journal),
                clock,
                randomness: self.randomness,
                notices: notices.clone(),
                ..ParticipantSettings::new(identity.clone(), Arc::clone(&self.client), Arc::new(policy))
            };
            supervisor.send(StartParticipant(settings)).await?;
        }
        let settings = ServiceSettings {
            beacons: self.beacons.clone(),
            aggregator: Arc::clone(&self.aggregator),
            journal: Arc::clone(&self.journal),
            clock,
            randomness: self.randomness,
            notices: Notices::new(1 << 17),
            ..ServiceSettings::new(self.service.clone(), Arc::clone(&self.server), Arc::new(OfflineOperator))
        };
        let steps = settings.notices.subscribe();
        let service = supervisor.send(StartService(settings)).await?;
        Ok(Running { cohort: self, service, steps, member_steps, supervisor })
    }
}

/// The running service and members.
pub struct Running {
    pub cohort: Cohort,
    pub service: Addr<AggregationService>,
    pub supervisor: Addr<Supervisor>,
    steps: Receiver<Arc<ServiceNotice>>,
    member_steps: Receiver<Arc<ParticipantNotice>>,
}

impl Running {
    /// Runs one round, from the advert until the service and every member have stored their results.
    pub async fn round(&mut self) -> Outcome<Arc<CohortResult>> {
        let members = u32::try_from(self.cohort.members.len())?;
        let recovery_key = self.cohort.service.public_key().x_only();
        let conditions = conditions(self.cohort.beacon_type.clone(), members, recovery_key)?;
        self.service.send(OpenCohort::new(conditions, NETWORK)).await??;
        let result = loop {
            match &*self.steps.recv().await? {
                ServiceNotice::SigningComplete { result, .. } => break Arc::clone(result),
                ServiceNotice::CohortFailed { reason, .. } => return Err(reason.clone().into()),
                _ => {}
            }
        };
        let mut missing = self.cohort.members.len();
        while missing > 0 {
            match &*self.member_steps.recv().await? {
                ParticipantNotice::CohortComplete { .. } => missing -= 1,
                ParticipantNotice::CohortFailed { reason, .. } => return Err(reason.clone().into()),
                _ => {}
            }
        }
        Ok(result)
    }
}
