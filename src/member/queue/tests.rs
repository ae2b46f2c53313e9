#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;
use crate::protocol::{
    document::initial_document,
    identity::Identity,
    key::SecretKey,
    network::Network,
    update::{build_update, sign_update},
};

pub(super) fn identity(byte: u8) -> Identity {
    Identity::from_key(SecretKey::from_bytes(&[byte; 32]).unwrap(), Network::Regtest)
}

fn new(identity: &Identity, note: &str) -> NewItem {
    let document = initial_document(identity.did(), None).unwrap();
    let patch = json!([{ "op": "add", "path": "/note", "value": note }]);
    let unsigned = build_update(&document, 1, patch.clone()).unwrap();
    // The same update each time: its proof, too.
    let mut rng = crate::actors::runtime::Randomness::Seeded([1; 32]).for_actor("test");
    let method = identity.verification_method();
    let update = sign_update(&unsigned, identity.did(), method, identity.secret_key(), &mut rng).unwrap();
    let change = Change::of_patch(patch, &document).unwrap();
    NewItem { did: identity.did().clone(), change, update, allow_risky: false }
}

async fn queue(dir: &std::path::Path) -> (State, Queue) {
    let state = State::open(dir).unwrap();
    let queue = Queue::open(&state, Clock::system()).await.unwrap();
    (state, queue)
}

fn cohort() -> CohortId {
    CohortId::parse("cohort").unwrap()
}

fn txid(byte: u8) -> Txid {
    format!("{byte:02x}").repeat(32).parse().unwrap()
}

#[tokio::test]
async fn an_update_is_followed_from_the_queue_to_resolvers_and_survives_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let alice = identity(1);
    let (state, queue_) = queue(dir.path()).await;
    let one = queue_.add(new(&alice, "one")).await.unwrap();
    assert_eq!(queue_.add(new(&alice, "one")).await.unwrap(), one, "the same update twice is one");
    let two = queue_.add(new(&alice, "two")).await.unwrap();
    assert_eq!((one.id, two.id), (1, 2));
    assert!(queue_.waiting().contains(&did_index(alice.did())));
    let hash = *one.update.hash();
    queue_.submitted(&cohort(), 3, &[hash]).await.unwrap();
    state.close().await;

    let (state, queue_) = queue(dir.path()).await;
    let stored = queue_.get(1).unwrap();
    assert_eq!((stored.stage, stored.may_be_announced), (Stage::Submitted, true));
    assert_eq!(queue_.cancel(1).await, Err(QueueError::Submitted(1)));
    assert_eq!(queue_.cancel(2).await.unwrap().stage, Stage::Cancelled);
    assert_eq!(queue_.cancel(2).await, Err(QueueError::Over(2, Stage::Cancelled)));
    assert_eq!(queue_.cancel(9).await, Err(QueueError::Unknown(9)));
    // Another number does not concern it.
    assert!(queue_.signed(&cohort(), 4, txid(1), Stage::Approved).await.unwrap().is_empty());
    assert_eq!(queue_.signed(&cohort(), 3, txid(1), Stage::Approved).await.unwrap().len(), 1);
    queue_.signed(&cohort(), 3, txid(1), Stage::Announced).await.unwrap();
    assert!(queue_.signed(&cohort(), 3, txid(1), Stage::Approved).await.unwrap().is_empty(), "a repeated notice");
    assert!(queue_.waiting().is_empty());
    // Its coin was spent by another transaction: the identical update again.
    let void = queue_.void(&[1]).await.unwrap();
    assert_eq!((void[0].stage, void[0].may_be_announced), (Stage::Queued, true));
    queue_.submitted(&cohort(), 5, &[hash]).await.unwrap();
    queue_.signed(&cohort(), 5, txid(2), Stage::Announced).await.unwrap();
    assert!(queue_.confirmed(txid(1)).await.unwrap().is_empty(), "another transaction");
    assert_eq!(queue_.confirmed(txid(2)).await.unwrap()[0].stage, Stage::Confirmed);
    assert!(queue_.resolved(identity(2).did(), &[hash]).await.unwrap().is_empty());
    assert_eq!(queue_.resolved(alice.did(), &[hash]).await.unwrap()[0].stage, Stage::Resolvable);
    assert!(queue_.open_items().is_empty());
    assert_eq!(queue_.updates_of(&did_index(alice.did())).len(), 2, "their data may be asked for again");
    state.close().await;
}

#[tokio::test]
async fn what_is_not_an_update_of_its_did_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (state, queue_) = queue(dir.path()).await;
    let foreign = NewItem { did: identity(2).did().clone(), ..new(&identity(1), "x") };
    assert!(matches!(queue_.add(foreign).await, Err(QueueError::Refused(_))));
    state.close().await;
    // What cannot be stored is not in the queue.
    let refused = queue_.add(new(&identity(1), "x")).await;
    assert!(matches!(refused, Err(QueueError::Storage(_))), "{refused:?}");
    assert!(queue_.list().is_empty());
}

#[tokio::test]
async fn the_queue_has_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let (state, queue_) = queue(dir.path()).await;
    let alice = identity(1);
    for number in 0..MOST_OF_DID {
        queue_.add(new(&alice, &number.to_string())).await.unwrap();
    }
    assert_eq!(queue_.add(new(&alice, "more")).await, Err(QueueError::Full(MOST_OF_DID)));
    queue_.add(new(&identity(2), "another DID")).await.unwrap();
    queue_.cancel(1).await.unwrap();
    queue_.add(new(&alice, "more")).await.unwrap();
    state.close().await;
}
