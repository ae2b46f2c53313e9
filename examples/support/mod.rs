//! A whole cohort in one process, for examples and benchmarks.
#![allow(dead_code, unreachable_pub, reason = "every example and benchmark uses another part of this")]

pub mod floor;
pub mod memory;
pub mod node;
pub mod standing;

use std::{error::Error, sync::Arc};

use async_trait::async_trait;
use btcr2_aggregation::{
    actors::{
        handle::{Participant, Service},
        journal::{Journal, MemoryJournal},
        notice::CohortResult,
        policy::{ParticipantPolicy, UpdateRequest},
        runtime::{Clock, Randomness},
        service::OpenCohort,
        transport::{Transport, http::HttpClient, memory::MemoryTransport},
    },
    bitcoin::offline::OfflineOperator,
    protocol::{
        beacon::{BeaconRegistry, BeaconType},
        cohort::{conditions::Conditions, participant::Advert},
        did::Did,
        hash::sha256,
        identity::Identity,
        key::{SecretKey, XOnlyKey},
        network::Network,
        output::{KeyAggregator, MemoizedAggregator, RecoverySequence, ScriptTree},
        update::{Submission, add_beacon_service_patch, build_update, sign_update},
    },
};

pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

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
    pub fn new(identity: Identity, randomness: Randomness) -> Self {
        Self { identity, randomness }
    }

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

/// Starts members of a service that is reached at `url`: customers, on other machines in practice.
pub async fn join_over_http(url: String, service: Did, names: &[&str]) -> Outcome<()> {
    for name in names {
        let policy = Joiner::new(identity(Randomness::System, name), Randomness::System);
        let client = HttpClient::new(&url, Some(service.clone()), Clock::system(), Randomness::System)?;
        Participant::builder(policy.identity.clone(), Arc::new(client), Arc::new(policy)).start().await?;
    }
    Ok(())
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
        let mut members = Vec::new();
        for identity in &self.members {
            let policy = Joiner::new(identity.clone(), self.randomness);
            let builder = Participant::builder(identity.clone(), Arc::clone(&self.client), Arc::new(policy))
                .beacons(self.beacons.clone())
                .aggregator(Arc::clone(&self.aggregator))
                .transient_journal(Arc::clone(&self.journal))
                .randomness(self.randomness);
            members.push(builder.start().await?);
        }
        let service = Service::builder(self.service.clone(), Arc::clone(&self.server), Arc::new(OfflineOperator))
            .beacons(self.beacons.clone())
            .aggregator(Arc::clone(&self.aggregator))
            .transient_journal(Arc::clone(&self.journal))
            .randomness(self.randomness)
            .start()
            .await?;
        Ok(Running { cohort: self, service, members })
    }
}

/// The running service and members.
pub struct Running {
    pub cohort: Cohort,
    pub service: Service,
    pub members: Vec<Participant>,
}

impl Running {
    /// Runs one round, from the advert until the service and every member have stored their results.
    pub async fn round(&mut self) -> Outcome<Arc<CohortResult>> {
        let members = u32::try_from(self.cohort.members.len())?;
        let recovery_key = self.cohort.service.public_key().x_only();
        let conditions = conditions(self.cohort.beacon_type.clone(), members, recovery_key)?;
        let cohort = self.service.open(OpenCohort::new(conditions, NETWORK)).await?;
        let result = cohort.outcome().await?;
        for member in &self.members {
            member.membership(self.service.did(), cohort.id()).outcome().await?;
        }
        Ok(result)
    }
}
