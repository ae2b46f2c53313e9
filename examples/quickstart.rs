//! The smallest whole cohort: a service and three participants in one process, and one signed transaction.
//!
//! It prints the admitted participants, the address of all their keys, the signal for all their updates, and the
//! transaction that announces it.
//!
//! `cargo run --release --example quickstart`

use std::{error::Error, sync::Arc};

use actix::Actor;
use async_trait::async_trait;
use btcr2_aggregation::{
    actors::{
        notice::ServiceNotice,
        participant::ParticipantSettings,
        policy::{ParticipantPolicy, UpdateRequest},
        service::{OpenCohort, ServiceSettings},
        supervisor::{StartParticipant, StartService, Supervisor},
        transport::memory::MemoryTransport,
    },
    bitcoin::offline::OfflineOperator,
    protocol::{
        beacon::BeaconType,
        cohort::{conditions::Conditions, participant::Advert},
        did::Did,
        identity::Identity,
        key::SecretKey,
        network::Network,
        output::{RecoverySequence, ScriptTree},
        update::{Submission, add_beacon_service_patch, build_update, sign_update},
    },
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

/// The decisions of a DID controller: which services it trusts, and what it announces.
struct Controller {
    identity: Identity,
    trusts: Did,
}

#[async_trait]
impl ParticipantPolicy for Controller {
    async fn should_join(&self, advert: &Advert) -> bool {
        advert.service == self.trusts
    }

    /// Announces the cohort's address as a beacon of this DID.
    async fn provide_update(&self, request: &UpdateRequest) -> Option<Submission> {
        let (me, did) = (&self.identity, self.identity.did());
        let beacon_type = request.advert.conditions.beacon_type.as_str();
        let patch = add_beacon_service_patch(did, beacon_type, request.output.address());
        let update = build_update(&me.initial_document().ok()?, 1, patch).ok()?;
        let mut rng = ChaCha20Rng::from_os_rng();
        sign_update(&update, did, me.verification_method(), me.secret_key(), &mut rng).ok().map(Submission::from)
    }
}

fn new_identity() -> Identity {
    Identity::from_key(SecretKey::generate(&mut ChaCha20Rng::from_os_rng()), Network::Regtest)
}

#[actix_rt::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let supervisor = Supervisor::default().start();
    let network = Arc::new(MemoryTransport::new());
    let service_identity = new_identity();

    for _ in 0..3 {
        let identity = new_identity();
        let policy = Controller { identity: identity.clone(), trusts: service_identity.did().clone() };
        let settings = ParticipantSettings::new(identity, network.clone(), Arc::new(policy));
        supervisor.send(StartParticipant(settings)).await?;
    }

    // The operator spends a coin that does not exist. `bitcoin::operator` has an operator that spends real coins.
    let settings = ServiceSettings::new(service_identity.clone(), network, Arc::new(OfflineOperator));
    let mut steps = settings.notices.subscribe();
    let service = supervisor.send(StartService(settings)).await?;

    let tree = ScriptTree::FallbackAndRecovery {
        recovery_key: service_identity.public_key().x_only(),
        recovery_sequence: RecoverySequence::try_from(144)?,
        fallback_threshold: None,
    };
    let conditions = Conditions::new(BeaconType::cas(), 3, tree);
    service.send(OpenCohort::new(conditions, Network::Regtest)).await??;

    loop {
        match &*steps.recv().await? {
            ServiceNotice::ParticipantAccepted { participant, .. } => println!("admitted    {participant}"),
            ServiceNotice::KeygenComplete { beacon_address, .. } => println!("address     {beacon_address}"),
            ServiceNotice::DataDistributed { signal, .. } => println!("signal      {signal}"),
            ServiceNotice::SigningComplete { txid, path, .. } => {
                println!("transaction {txid}, signed by all ({path})");
                return Ok(());
            }
            ServiceNotice::CohortFailed { reason, .. } => return Err(reason.clone().into()),
            _ => {}
        }
    }
}
