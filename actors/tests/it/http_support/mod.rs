//! Shared parts of the HTTP server's tests: a server in the process or behind a socket, senders, and the API's
//! document.

pub mod loopback;
pub mod openapi;
pub mod site;
pub mod sse;

use std::{
    env, fs,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use btcr2_aggregation_actors::transport::{Delivery, Inbox};
use btcr2_aggregation_protocol::{
    beacon::BeaconType,
    did::Did,
    document::genesis_document,
    envelope::SealedEnvelope,
    hash::sha256,
    id::CohortId,
    identity::Identity,
    jcs,
    key::SecretKey,
    message::{
        Body, Bytes, Message, SharedBody,
        keygen::{CohortAdvert, CohortOptIn},
        update::{SubmitUpdate, ValidationAck},
    },
    network::Network,
    request_auth::RequestAuthorization,
    time::Timestamp,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// The time at which the vectors were recorded.
pub const NOW: u64 = 1_750_000_000;

pub const COHORT: &str = "20acce5d-e259-4294-8955-0e82f20345f4";

/// The virtual time after which a test that still waits would wait without limit.
const PATIENCE: Duration = Duration::from_secs(30 * 24 * 3600);

/// As [`paused`], for tests that wait for a disk: the clock jumps in the meantime, so it cannot detect a test that
/// waits in vain.
pub fn paused_beside_a_disk<T>(test: impl Future<Output = T>) -> T {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    actix_rt::System::with_tokio_rt(runtime).block_on(async {
        let outcome = test.await;
        site::settle().await;
        outcome
    })
}

/// Runs a test whose clock stands still, and jumps to the next timer when all actors wait.
pub fn paused<T>(test: impl Future<Output = T>) -> T {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    actix_rt::System::with_tokio_rt(runtime).block_on(async {
        let outcome = tokio::time::timeout(PATIENCE, test).await.expect("the test is stuck");
        // actix starts an actor that is dropped before its start, and a timer needs the runtime then.
        site::settle().await;
        outcome
    })
}

/// The vectors of `name`, from `VECTORS_DIR` or from the copy in this repository.
pub fn vectors(name: &str) -> Value {
    let copy = concat!(env!("CARGO_MANIFEST_DIR"), "/../protocol/tests/vectors");
    let directory = env::var_os("VECTORS_DIR").map_or_else(|| PathBuf::from(copy), PathBuf::from);
    let path = directory.join(format!("{name}.json"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn text<'a>(entry: &'a Value, field: &str) -> &'a str {
    entry[field].as_str().unwrap_or_else(|| panic!("{field} of {entry}"))
}

pub fn list<'a>(entry: &'a Value, field: &str) -> &'a [Value] {
    let list = entry[field].as_array().unwrap();
    assert!(!list.is_empty(), "an empty list proves nothing");
    list
}

/// A generator with a different seed for each caller.
pub fn rng() -> ChaCha20Rng {
    static CALLS: AtomicU64 = AtomicU64::new(1);
    ChaCha20Rng::seed_from_u64(CALLS.fetch_add(1, Ordering::Relaxed))
}

pub fn secret(number: u32) -> SecretKey {
    SecretKey::from_bytes(&sha256(&number.to_be_bytes())).unwrap()
}

/// The KEY identity with this number.
pub fn identity(number: u32) -> Identity {
    Identity::from_key(secret(number), Network::Mutinynet)
}

/// The EXTERNAL identity with this number.
pub fn external(number: u32) -> Identity {
    let key = secret(number);
    let genesis = genesis_document(&key.public_key(), Network::Mutinynet);
    Identity::from_genesis(key, genesis, Network::Mutinynet).unwrap()
}

pub fn service() -> Identity {
    identity(0)
}

fn cohort() -> CohortId {
    CohortId::parse(COHORT).unwrap()
}

pub fn ack() -> Body {
    Body::from(ValidationAck { cohort_id: cohort(), approved: true })
}

/// A message with the text `text`, for tests that count, order and measure messages.
pub fn saying(text: &str) -> SharedBody {
    SharedBody::from(SubmitUpdate {
        cohort_id: cohort(),
        signed_update: std::sync::Arc::new(json!({ "say": text })),
    })
}

pub fn opt_in(identity: &Identity) -> Body {
    let key = Bytes(identity.public_key().to_bytes());
    Body::from(CohortOptIn {
        cohort_id: cohort(),
        participant_pk: key,
        communication_pk: key,
        genesis_document: identity.genesis_document().cloned(),
        invite: None,
    })
}

pub fn advert(number: u32) -> SharedBody {
    let service = service();
    SharedBody::from(CohortAdvert {
        cohort_id: CohortId::parse(&format!("20acce5d-e259-4294-8955-{number:012x}")).unwrap(),
        network: Network::Mutinynet,
        communication_pk: Bytes(service.public_key().to_bytes()),
        beacon_type: BeaconType::cas(),
        min_participants: 2,
        max_participants: None,
        min_dids_per_participant: None,
        max_dids_per_participant: None,
        cost_of_enrollment: None,
        cost_per_announcement: None,
        min_seconds_between_announcements: None,
        max_seconds_between_announcements: None,
        pending_update_trigger: None,
        funding_model: None,
        recovery_key: Some(service.public_key().x_only().to_string()),
        recovery_sequence: Some(144),
        fallback_threshold: None,
    })
}

/// The envelope in which `from` sends `body` to `to` at `at`.
pub fn sealed(from: &Identity, to: Option<&Did>, body: impl Into<SharedBody>, at: Timestamp) -> String {
    let message = Message::new(from.did().clone(), to.cloned(), body);
    SealedEnvelope::seal_with_rng(&message, from.secret_key(), at, &mut rng()).unwrap().to_json()
}

/// The same with this nonce.
pub fn sealed_with(from: &Identity, nonce: u128, at: Timestamp) -> String {
    let message = Message::new(from.did().clone(), Some(service().did().clone()), ack());
    let nonce = nonce.to_be_bytes();
    SealedEnvelope::seal(&message, from.secret_key(), at, nonce, &mut rng()).unwrap().to_json()
}

/// An acknowledgement of `from` for the service, as a value, to be changed and [`signed`].
pub fn draft(from: &Identity, at: Timestamp) -> Value {
    serde_json::from_str(&sealed(from, Some(service().did()), ack(), at)).unwrap()
}

/// `envelope`, whatever it contains, with a valid signature of `key`.
pub fn signed(mut envelope: Value, key: &SecretKey) -> String {
    envelope.as_object_mut().unwrap().remove("sig");
    let digest = sha256(&jcs::canonicalize(&envelope).unwrap());
    envelope["sig"] = json!(key.sign(&digest, &mut rng()).to_string());
    envelope.to_string()
}

/// The header with which `identity` requests its inbox at `path`.
pub fn authorization(identity: &Identity, path: &str, at: Timestamp) -> String {
    RequestAuthorization::sign(identity.did(), identity.secret_key(), path, at, &mut rng()).to_string()
}

/// An inbox that collects its deliveries, and confirms each message.
pub fn collector() -> (Inbox, mpsc::UnboundedReceiver<Delivery>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let (inbox, mut deliveries) = Inbox::channel(16);
    actix_rt::spawn(async move {
        while let Some(delivery) = deliveries.recv().await {
            if let Delivery::Message(received) | Delivery::Stored { message: received, .. } = &delivery {
                received.receipt.clone().confirm();
            }
            // Every fetched message is reported; tests of these reports use peers.
            if !matches!(delivery, Delivery::Delivered { .. } | Delivery::Delayed { .. }) {
                let _ = sender.send(delivery);
            }
        }
    });
    (inbox, receiver)
}
