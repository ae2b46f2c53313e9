//! A service, its participants and their policies, for tests of the public API.

pub mod fake_server;
pub mod member;
pub mod peers;
pub mod process;
pub mod relays;
pub mod replay;
pub mod rigged;
pub mod rounds;
pub mod service;
pub mod tap;

use std::{collections::BTreeMap, fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;
use bitcoin::{Amount, FeeRate, OutPoint, Txid, hashes::Hash};
use btcr2_aggregation_actors::{
    bans::{BanBook, DefaultBans},
    handle::Participant,
    journal::{Journal, MemoryJournal},
    load::Load,
    notice::{CohortResult, Notices, ParticipantNotice, ServiceNotice},
    policy::{FundedTransaction, ParticipantPolicy, PolicyError, ServicePolicy, TransactionRequest, UpdateRequest},
    runtime::{Clock, Randomness},
    seats::Seats,
    service::OpenCohort,
    transport::{Transport, memory::MemoryTransport},
};
use btcr2_aggregation_protocol::{
    beacon::{BeaconRegistry, BeaconType},
    cohort::{
        Timing,
        conditions::Conditions,
        event::CohortFailure,
        event::SessionEnd,
        participant::Advert,
        service::{Limits, rules::PhaseRules},
    },
    did::Did,
    document,
    error::{Fatal, RejectCode},
    hash::sha256,
    id::CohortId,
    identity::Identity,
    key::SecretKey,
    network::Network,
    output::{Change, Coin, MemoizedAggregator, RecoverySequence, ScriptTree, build_beacon_transaction},
    sidecar::MemberRecord,
    time::Timestamp,
    update::{SignedUpdate, Submission, add_beacon_service_patch, build_update, sign_update},
};
use serde::Serialize;
use tokio::{
    sync::{Semaphore, broadcast},
    time::Instant,
};

pub use self::{
    member::ParticipantSettings,
    service::{Service, ServiceSettings, acknowledge},
};

pub const NETWORK: Network = Network::Regtest;

/// More than the notices of any test.
const NOTICES: usize = 1 << 14;

/// How many transient events wait for a test.
const WAITING: usize = 1 << 12;

/// The virtual time after which a test that still waits would wait without limit.
const PATIENCE: Duration = Duration::from_secs(100 * 24 * 3600);

/// Runs a test whose clock stands still while any actor has work, and jumps to the next timer when none has.
pub fn on_paused_clock<T>(test: impl Future<Output = T>) -> T {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().expect("a runtime")
    };
    actix_rt::System::with_tokio_rt(runtime)
        .block_on(async { tokio::time::timeout(PATIENCE, test).await.expect("the test is stuck") })
}

/// Lets all actors finish their work without advancing the time.
pub async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

pub async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// The identity with that name, the same in every run.
pub fn identity(name: &str) -> Identity {
    Identity::from_key(key(name), NETWORK)
}

/// An EXTERNAL identity.
pub fn external_identity(name: &str) -> Identity {
    let key = key(name);
    let genesis = document::genesis_document(&key.public_key(), NETWORK);
    Identity::from_genesis(key, genesis, NETWORK).expect("the document names the key")
}

pub fn key(name: &str) -> SecretKey {
    SecretKey::generate(&mut randomness(name).for_actor("identity"))
}

pub fn randomness(name: &str) -> Randomness {
    Randomness::Seeded(sha256(name.as_bytes()))
}

/// A cohort of exactly this many members, with a fallback leaf.
pub fn cohort(members: u32) -> OpenCohort {
    let script_tree = ScriptTree::FallbackAndRecovery {
        recovery_key: key("recovery").public_key().x_only(),
        recovery_sequence: RecoverySequence::try_from(144).expect("a sequence"),
        fallback_threshold: None,
    };
    let mut conditions = Conditions::new(BeaconType::cas(), members, script_tree);
    conditions.max_participants = Some(members);
    OpenCohort {
        conditions,
        network: NETWORK,
        timing: Timing::default(),
        limits: Limits::default(),
        rules: PhaseRules::default(),
    }
}

/// A cohort with a number by which policies can distinguish it from others; the protocol ignores it.
pub fn labelled(label: u32, members: u32) -> OpenCohort {
    let mut open = cohort(members);
    open.conditions.pending_update_trigger = Some(label);
    open
}

pub fn label(conditions: &Conditions) -> u32 {
    conditions.pending_update_trigger.unwrap_or_default()
}

/// A transaction that spends a coin that does not exist.
pub fn made_up_transaction(request: &TransactionRequest) -> Result<FundedTransaction, PolicyError> {
    let txid = Txid::from_byte_array(sha256(request.cohort_id.as_str().as_bytes()));
    let coin = Coin { outpoint: OutPoint { txid, vout: 0 }, value: Amount::from_sat(200_000) };
    let rate = FeeRate::from_sat_per_vb_u32(2);
    let transaction = build_beacon_transaction(&request.output, &coin, &request.signal, rate, &Change::Beacon)
        .map_err(|error| Fatal(error.to_string()))?;
    Ok(FundedTransaction { transaction, value: coin.value })
}

/// An operator that admits every candidate.
pub struct Operator;

#[async_trait]
impl ServicePolicy for Operator {
    async fn beacon_transaction(&self, request: &TransactionRequest) -> Result<FundedTransaction, PolicyError> {
        made_up_transaction(request)
    }
}

/// An operator whose transaction waits until the gate is opened.
pub struct GatedOperator(pub Arc<Semaphore>);

#[async_trait]
impl ServicePolicy for GatedOperator {
    async fn beacon_transaction(&self, request: &TransactionRequest) -> Result<FundedTransaction, PolicyError> {
        let _open = self.0.acquire().await.expect("the gate exists");
        made_up_transaction(request)
    }
}

/// A member that joins every cohort and announces its address as a beacon of its DID.
pub struct Updater(pub Identity);

/// The update that announces the cohort's address as a beacon.
pub fn update(identity: &Identity, request: &UpdateRequest) -> Option<Submission> {
    let did = identity.did();
    let document = identity.initial_document().ok()?;
    let beacon_type = request.advert.conditions.beacon_type.as_str();
    let patch = add_beacon_service_patch(did, beacon_type, request.output.address());
    let update = build_update(&document, 1, patch).ok()?;
    let mut rng = randomness("updates").for_actor(did.as_str());
    sign_update(&update, did, identity.verification_method(), identity.secret_key(), &mut rng)
        .ok()
        .map(Submission::from)
}

#[async_trait]
impl ParticipantPolicy for Updater {
    async fn should_join(&self, _: &Advert) -> bool {
        true
    }

    async fn provide_update(&self, request: &UpdateRequest) -> Option<Submission> {
        update(&self.0, request)
    }
}

/// A member that joins every cohort and declines to update.
pub struct Decliner;

#[async_trait]
impl ParticipantPolicy for Decliner {
    async fn should_join(&self, _: &Advert) -> bool {
        true
    }

    async fn provide_update(&self, _: &UpdateRequest) -> Option<Submission> {
        None
    }
}

/// A subscriber, with all notices that it has received.
pub struct Ear<N> {
    receiver: broadcast::Receiver<Arc<N>>,
    received: Vec<Arc<N>>,
}

impl<N: Clone + Debug + Send + Sync + Serialize + 'static> Ear<N> {
    pub fn new(notices: &Notices<N>) -> Self {
        Self { receiver: notices.subscribe(), received: Vec::new() }
    }

    /// The first notice, received already or later, from which `pick` returns a value.
    pub async fn wait_for<T>(&mut self, mut pick: impl FnMut(&N) -> Option<T>) -> T {
        if let Some(found) = self.received.iter().find_map(|notice| pick(notice)) {
            return found;
        }
        loop {
            let notice = self.receiver.recv().await.expect("space for every notice");
            self.received.push(Arc::clone(&notice));
            if let Some(found) = pick(&notice) {
                return found;
            }
        }
    }

    /// The notices received so far.
    pub fn received(&mut self) -> &[Arc<N>] {
        while let Ok(notice) = self.receiver.try_recv() {
            self.received.push(notice);
        }
        &self.received
    }

    /// The `event` names of the notices received so far about one cohort.
    pub fn names(&mut self, cohort_id: &CohortId) -> Vec<String> {
        let json = self.received().iter().map(|notice| serde_json::to_value(&**notice).expect("notices serialize"));
        json.filter(|notice| notice["cohortId"] == cohort_id.as_str())
            .map(|notice| notice["event"].as_str().expect("an event").to_owned())
            .collect()
    }

    /// The number of notices with that name received so far, about any cohort.
    pub fn count(&mut self, name: &str) -> usize {
        let json = self.received().iter().map(|notice| serde_json::to_value(&**notice).expect("notices serialize"));
        json.filter(|notice| notice["event"] == name).count()
    }
}

impl Ear<ServiceNotice> {
    /// The end of the cohort.
    pub async fn end_of(&mut self, cohort: &CohortId) -> Result<Arc<CohortResult>, CohortFailure> {
        self.wait_for(|notice| match notice {
            ServiceNotice::SigningComplete { cohort_id, result, .. } if cohort_id == cohort => {
                Some(Ok(Arc::clone(result)))
            }
            ServiceNotice::CohortFailed { cohort_id, failure, .. } if cohort_id == cohort => {
                Some(Err(failure.clone()))
            }
            _ => None,
        })
        .await
    }

    pub async fn completed(&mut self, cohort: &CohortId) -> Arc<CohortResult> {
        self.end_of(cohort).await.unwrap_or_else(|failure| panic!("{cohort}: {failure}"))
    }

    pub async fn failed(&mut self, cohort: &CohortId) -> CohortFailure {
        self.end_of(cohort).await.err().unwrap_or_else(|| panic!("{cohort} should fail"))
    }

    /// Waits for the notice with that name about `cohort`.
    pub async fn event(&mut self, cohort: &CohortId, name: &str) {
        self.wait_for(|notice| event_is(notice, cohort, name)).await;
    }

    /// The peers whose messages were rejected, and the codes.
    pub fn rejections(&mut self) -> Vec<(Did, RejectCode)> {
        self.received()
            .iter()
            .filter_map(|notice| match &**notice {
                ServiceNotice::MessageRejected { from, code, .. } => {
                    Some((from.clone().expect("a peer is named"), *code))
                }
                _ => None,
            })
            .collect()
    }
}

fn event_is<N: Serialize>(notice: &N, cohort: &CohortId, name: &str) -> Option<()> {
    let notice = serde_json::to_value(notice).expect("notices serialize");
    (notice["cohortId"] == cohort.as_str() && notice["event"] == name).then_some(())
}

impl Ear<ParticipantNotice> {
    /// The records of `members` members of the cohort.
    pub async fn records(&mut self, cohort: &CohortId, members: usize) -> BTreeMap<Did, Arc<MemberRecord>> {
        let mut records = BTreeMap::new();
        self.wait_for(|notice| {
            if let ParticipantNotice::SignatureSent { did, cohort_id, record, included, .. } = notice
                && cohort_id == cohort
            {
                assert_eq!(*included, record.included());
                assert!(records.insert(did.clone(), Arc::clone(record)).is_none(), "{did} completed twice");
            }
            (records.len() == members).then_some(())
        })
        .await;
        records
    }

    /// Waits for the notice of `did` with that name about `cohort`.
    pub async fn event(&mut self, did: &Did, cohort: &CohortId, name: &str) {
        self.wait_for(|notice| {
            let of_did = serde_json::to_value(notice).expect("notices serialize")["did"] == did.as_str();
            event_is(notice, cohort, name).filter(|()| of_did)
        })
        .await;
    }

    /// Why `did`'s session of the cohort failed.
    pub async fn failed(&mut self, who: &Did, cohort: &CohortId) -> SessionEnd {
        self.wait_for(|notice| match notice {
            ParticipantNotice::CohortFailed { did, cohort_id, end, .. } if did == who && cohort_id == cohort => {
                Some(end.clone())
            }
            _ => None,
        })
        .await
    }

    /// The rejections: the member, the sender of the message, and the code.
    pub fn rejections(&mut self) -> Vec<(Did, Did, RejectCode)> {
        self.received()
            .iter()
            .filter_map(|notice| match &**notice {
                ParticipantNotice::MessageRejected { did, from, code, .. } => {
                    Some((did.clone(), from.clone().expect("a peer is named"), *code))
                }
                _ => None,
            })
            .collect()
    }
}

/// One process: a network, a journal, and all participants' notices.
pub struct World {
    pub network: MemoryTransport,
    pub journal: Arc<dyn Journal>,
    pub member_notices: Notices<ParticipantNotice>,
    pub members: Ear<ParticipantNotice>,
    pub beacons: BeaconRegistry,
    pub aggregator: Arc<MemoizedAggregator>,
    pub clock: Clock,
    started: Instant,
}

impl World {
    pub fn new() -> Self {
        let member_notices = Notices::new(NOTICES);
        Self {
            network: MemoryTransport::new(),
            journal: Arc::new(MemoryJournal::new()),
            members: Ear::new(&member_notices),
            member_notices,
            beacons: BeaconRegistry::default(),
            aggregator: Arc::default(),
            clock: Clock::starting_at(Timestamp::from_secs(1_750_000_000)),
            started: Instant::now(),
        }
    }

    /// The virtual time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub fn service_settings(&self, name: &str, policy: impl ServicePolicy + 'static) -> ServiceSettings {
        ServiceSettings {
            identity: identity(name),
            transport: Arc::new(self.network.clone()),
            policy: Arc::new(policy),
            beacons: self.beacons.clone(),
            aggregator: self.aggregator.clone(),
            journal: Arc::clone(&self.journal),
            is_transient: false,
            clock: self.clock,
            randomness: randomness(name),
            notices: Notices::new(NOTICES),
            load: Load::default(),
            bans: BanBook::in_memory(Arc::new(DefaultBans)),
            seats: Seats::default(),
        }
    }

    pub async fn service(&self, name: &str, policy: impl ServicePolicy + 'static) -> Service {
        self.service_settings(name, policy).start().await
    }

    pub fn participant_settings(
        &self,
        identity: &Identity,
        policy: impl ParticipantPolicy + 'static,
    ) -> ParticipantSettings {
        ParticipantSettings {
            identity: identity.clone(),
            transport: Arc::new(self.network.clone()),
            policy: Arc::new(policy),
            max_sessions: 32,
            beacons: self.beacons.clone(),
            aggregator: self.aggregator.clone(),
            journal: Arc::clone(&self.journal),
            is_transient: false,
            clock: self.clock,
            randomness: randomness(identity.did().as_str()),
            notices: self.member_notices.clone(),
        }
    }

    pub async fn participant(&self, identity: &Identity, policy: impl ParticipantPolicy + 'static) -> Participant {
        self.participant_settings(identity, policy).start().await
    }

    /// Starts this many members with updates.
    pub async fn updaters(&self, count: usize) -> Vec<Identity> {
        let identities: Vec<_> = (0..count).map(|number| identity(&format!("member {number}"))).collect();
        for identity in &identities {
            self.participant(identity, Updater(identity.clone())).await;
        }
        identities
    }

    /// Starts a participant on its own transport.
    pub async fn participant_on(
        &self,
        identity: &Identity,
        policy: impl ParticipantPolicy + 'static,
        transport: impl Transport + 'static,
    ) -> Participant {
        let mut settings = self.participant_settings(identity, policy);
        settings.transport = Arc::new(transport);
        settings.start().await
    }

    /// Asserts that the record alone proves the member's slot in the signal that the transaction announces.
    pub fn assert_proves_slot(&self, record: &MemberRecord, result: &CohortResult) {
        let slot = record.update.as_ref().map(SignedUpdate::hash);
        let beacon = self.beacons.get(&record.conditions.beacon_type).expect("a known beacon");
        let signal = beacon.verify(&record.did, slot, &record.data).expect("the record proves its slot");
        assert_eq!(signal, result.aggregation.signal, "{}: the record is about another signal", record.did);
        assert_eq!(record.output.address(), result.output.address());
        let announced = bitcoin::ScriptBuf::new_op_return(signal.as_bytes());
        let last = result.signed.transaction.output.last().expect("a transaction has outputs");
        assert_eq!(last.script_pubkey, announced, "the transaction announces another signal");
    }
}
