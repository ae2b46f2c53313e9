//! Whole rounds over relays, on the real clock, because relays use real sockets.

use std::{sync::Arc, time::Duration};

use btcr2_aggregation_actors::{
    runtime::Clock,
    service::OpenCohort,
    transport::{Transport, nostr::NostrTransport},
};
use btcr2_aggregation_protocol::{
    cohort::event::SpendPath,
    id::CohortId,
    identity::Identity,
    message::Message,
    nostr::{Peer as To, seal},
};
use nostr_sdk::Event;

use super::{Operator, Service, Updater, World, cohort, identity, randomness};

/// Runs a test on the real clock, because relays use real sockets.
pub fn run(test: impl Future<Output = ()>) {
    run_for(Duration::from_secs(60), test);
}

pub fn run_for(patience: Duration, test: impl Future<Output = ()>) {
    actix_rt::System::new()
        .block_on(async { tokio::time::timeout(patience, test).await.expect("the test is stuck") });
}

pub async fn service_on(world: &World, transport: impl Transport + 'static) -> Service {
    let mut settings = world.service_settings("service", Operator);
    settings.transport = Arc::new(transport);
    settings.start().await
}

/// Opens the cohort, and waits for its end and for its members' records; each record proves its slot.
pub async fn complete(world: &mut World, service: &mut Service, open: OpenCohort, path: SpendPath) -> CohortId {
    let members = open.conditions.min_participants as usize;
    let cohort_id = service.open(open).await;
    let result = service.ear.completed(&cohort_id).await;
    assert_eq!(result.signed.path, path);
    for record in world.members.records(&cohort_id, members).await.values() {
        world.assert_proves_slot(record, &result);
    }
    cohort_id
}

pub fn quick(members: u32) -> OpenCohort {
    let mut open = cohort(members);
    open.timing.signing_timeout = Duration::from_secs(2);
    open.timing.advert_repeat = Duration::from_secs(1);
    open
}

/// Starts every member with its own transport, as in separate processes.
pub async fn members_on(world: &World, count: usize, transport: impl Fn() -> NostrTransport) -> Vec<Identity> {
    let identities: Vec<_> = (0..count).map(|number| identity(&format!("member {number}"))).collect();
    for identity in &identities {
        world.participant_on(identity, Updater(identity.clone()), transport()).await;
    }
    identities
}

pub fn sealed(signer: &Identity, message: &Message, to: &Identity, clock: Clock) -> Event {
    let mut rng = randomness("forger").for_actor(&format!("{message:?}"));
    let peer = To::new(signer.secret_key(), to.public_key().x_only()).expect("keys");
    seal(message, signer.secret_key(), Some(&peer), clock.now(), &mut rng).expect("sealed")
}
