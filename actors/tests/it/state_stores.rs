//! The stores on a state directory's tables: nonces, and the participant's vault.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::common::{
    Operator, Updater, World, cohort, external_identity, identity, key, on_paused_clock, randomness,
};
use btcr2_aggregation_actors::{
    state::{
        State,
        nonces::StateNonces,
        vault::{MemoryVault, StateVault, Vault, VaultEntry, VaultError, VaultKey},
    },
    transport::http::store::{NonceStore, NonceVerdict},
};
use btcr2_aggregation_protocol::{
    did::Did,
    hash::MessageDigest,
    identity::Identity,
    sidecar::MemberRecord,
    time::Timestamp,
    transcript::{SignedTranscriptHead, Transcript},
};
use tempfile::TempDir;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn secs(secs: u64) -> Timestamp {
    Timestamp::from_secs(secs)
}

async fn restarted(dir: &TempDir, state: State) -> State {
    state.close().await;
    State::open(dir.path()).unwrap()
}

#[test]
fn nonces_are_known_after_a_restart_until_their_time_is_over() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let (alice, bob) = (identity("alice"), identity("bob"));
        let state = State::open(dir.path()).unwrap();
        let nonces = StateNonces::load(&state, secs(0)).await.unwrap();
        assert!(nonces.is_empty());
        assert_eq!(nonces.remember(alice.did(), [1; 16], secs(0), secs(60)).await, NonceVerdict::Fresh);
        assert_eq!(nonces.remember(alice.did(), [2; 16], secs(0), secs(120)).await, NonceVerdict::Fresh);
        assert_eq!(nonces.remember(alice.did(), [1; 16], secs(0), secs(60)).await, NonceVerdict::Replayed);
        assert_eq!(nonces.remember(bob.did(), [1; 16], secs(0), secs(60)).await, NonceVerdict::Fresh);
        let commits = state.commits();
        assert_eq!(nonces.remember(bob.did(), [1; 16], secs(0), secs(60)).await, NonceVerdict::Replayed);
        assert_eq!(state.commits(), commits, "a replay writes nothing");
        drop(nonces);

        let state = restarted(&dir, state).await;
        let nonces = StateNonces::load(&state, secs(60)).await.unwrap();
        assert_eq!(nonces.len(), 3, "a nonce's expiry is inclusive");
        for (did, nonce) in [(alice.did(), 1), (alice.did(), 2), (bob.did(), 1)] {
            assert_eq!(nonces.remember(did, [nonce; 16], secs(60), secs(120)).await, NonceVerdict::Replayed);
        }
        // Time advances, in memory and on disk.
        assert_eq!(nonces.remember(alice.did(), [1; 16], secs(61), secs(121)).await, NonceVerdict::Fresh);
        assert_eq!(nonces.len(), 2);
        assert_eq!(state.table("nonces").scan(Vec::new(), None, 10).await.unwrap().entries.len(), 2);
        drop(nonces);

        let state = restarted(&dir, state).await;
        let nonces = StateNonces::load(&state, secs(121)).await.unwrap();
        assert_eq!(nonces.len(), 1);
        assert_eq!(state.table("nonces").scan(Vec::new(), None, 10).await.unwrap().entries.len(), 1);
    });
}

#[test]
fn nonces_have_the_bounds_that_they_have_in_memory() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let state = State::open(dir.path()).unwrap();
        let dids: Vec<Identity> = (0..4).map(|number| identity(&number.to_string())).collect();
        let remember = async |nonces: &StateNonces, did: usize, nonce: u8, now: u64| {
            nonces.remember(dids[did].did(), [nonce; 16], secs(now), secs(now + 10)).await
        };
        let nonces = StateNonces::with_room(&state, secs(0), 2, 5).await.unwrap();
        for did in 0..2 {
            assert_eq!(remember(&nonces, did, 1, 0).await, NonceVerdict::Fresh);
            assert_eq!(remember(&nonces, did, 2, 0).await, NonceVerdict::Fresh);
            assert_eq!(remember(&nonces, did, 3, 0).await, NonceVerdict::Full, "its own space is full");
        }
        drop(nonces);
        let state = restarted(&dir, state).await;
        let nonces = StateNonces::with_room(&state, secs(0), 2, 5).await.unwrap();
        assert_eq!(remember(&nonces, 2, 1, 0).await, NonceVerdict::Fresh);
        assert_eq!(remember(&nonces, 3, 1, 0).await, NonceVerdict::Full, "all space is full");
        assert_eq!(remember(&nonces, 3, 1, 11).await, NonceVerdict::Fresh, "it becomes free with time");
    });
}

#[test]
fn a_nonce_that_cannot_be_written_is_not_accepted() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let state = State::open(dir.path()).unwrap();
        let nonces = StateNonces::load(&state, secs(0)).await.unwrap();
        state.close().await;
        let verdict = nonces.remember(identity("alice").did(), [1; 16], secs(0), secs(60)).await;
        assert_eq!(verdict, NonceVerdict::Full);
    });
}

#[test]
fn many_nonces_at_once_share_commits() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let state = State::open(dir.path()).unwrap();
        let nonces = StateNonces::load(&state, secs(0)).await.unwrap();
        let alice = identity("alice");
        let remembered = (0..200).map(|nonce| nonces.remember(alice.did(), [nonce; 16], secs(0), secs(60)));
        let verdicts = futures::future::join_all(remembered).await;
        assert!(verdicts.iter().all(|verdict| *verdict == NonceVerdict::Fresh));
        assert!(state.commits() <= 50, "{} commits", state.commits());
    });
}

/// The records of the members of a cohort of two.
async fn records() -> (BTreeMap<Did, Arc<MemberRecord>>, Vec<Identity>) {
    let mut world = World::new();
    let mut service = world.service("service", Operator).await;
    let members = vec![identity("key"), external_identity("external")];
    for member in &members {
        world.participant(member, Updater(member.clone())).await;
    }
    let cohort_id = service.open(cohort(2)).await;
    service.ear.completed(&cohort_id).await;
    (world.members.records(&cohort_id, 2).await, members)
}

fn head(number: u8) -> SignedTranscriptHead {
    let mut transcript = Transcript::default();
    transcript.push(hex(number).parse::<MessageDigest>().unwrap());
    transcript.head().sign(b"context", &key("service"), &mut randomness("head").for_actor("service"))
}

fn hex(number: u8) -> String {
    format!("{number:02x}").repeat(32)
}

/// The suite for vaults.
async fn conforms(vault: &dyn Vault, entries: &[VaultEntry]) {
    let [entry, other] = entries else { panic!("two entries are needed") };
    let did = &entry.record.did;
    assert_eq!(vault.list(did).await.unwrap(), []);
    assert_eq!(vault.get(&entry.key()).await.unwrap(), None);
    vault.put(entry.clone()).await.unwrap();
    vault.put(other.clone()).await.unwrap();
    vault.put(entry.clone()).await.expect("a repetition");
    assert_eq!(vault.get(&entry.key()).await.unwrap().as_ref(), Some(entry));
    assert_eq!(vault.list(did).await.unwrap(), [entry.key()], "one DID's only");

    // Additional fields of the same entry are added, and none is removed.
    let more = VaultEntry { transcript: Some(head(1)), ..entry.clone() };
    vault.put(more.clone()).await.unwrap();
    vault.put(entry.clone()).await.unwrap();
    assert_eq!(vault.get(&entry.key()).await.unwrap(), Some(more.clone()));

    let mut contradictory = vec![VaultEntry { transcript: Some(head(2)), ..entry.clone() }];
    contradictory
        .push(VaultEntry { record: MemberRecord { update: None, ..entry.record.clone() }, ..entry.clone() });
    for contradiction in contradictory {
        let error = vault.put(contradiction).await.unwrap_err();
        assert!(matches!(&error, VaultError::Contradiction(key) if **key == entry.key()), "{error}");
        assert_eq!(vault.get(&entry.key()).await.unwrap(), Some(more.clone()), "the stored entry remains");
    }

    // A service cannot overwrite the data of another service's cohort with the same identifier.
    let record = MemberRecord { service: other.record.did.clone(), update: None, ..entry.record.clone() };
    let elsewhere = VaultEntry { record, ..entry.clone() };
    vault.put(elsewhere.clone()).await.unwrap();
    let mut keys = vec![entry.key(), elsewhere.key()];
    keys.sort();
    assert_eq!(vault.list(did).await.unwrap(), keys);
    assert_eq!(vault.get(&entry.key()).await.unwrap(), Some(more));
}

#[test]
fn vaults_store_the_records_of_members() {
    let (records, members) = on_paused_clock(records());
    let entry = |identity: &Identity| VaultEntry {
        record: (*records[identity.did()]).clone(),
        genesis_document: identity.genesis_document().map(|document| (**document).clone()),
        transcript: None,
        txid: None,
        confirmed_height: None,
    };
    let entries: Vec<VaultEntry> = members.iter().map(entry).collect();
    runtime().block_on(async {
        conforms(&MemoryVault::default(), &entries).await;
        let dir = TempDir::new().unwrap();
        let state = State::open(dir.path()).unwrap();
        conforms(&StateVault::new(&state), &entries).await;

        let state = restarted(&dir, state).await;
        let vault = StateVault::new(&state);
        let stored = vault.get(&entries[0].key()).await.unwrap().unwrap();
        assert_eq!(stored.record, entries[0].record);
        assert_eq!(stored.transcript, Some(head(1)));
        let stored = vault.get(&entries[1].key()).await.unwrap().unwrap();
        assert_eq!(stored.to_file(), entries[1].record.to_file(entries[1].genesis_document.as_ref()));
        assert!(stored.to_file()["genesisDocument"].is_object(), "the EXTERNAL member's");

        // An entry that cannot be decoded is named, and the other entry is not affected.
        let table = state.table("vault");
        let page = table.scan(Vec::new(), None, 10).await.unwrap();
        let (key, _) = page
            .entries
            .iter()
            .find(|(key, _)| key.starts_with(entries[0].record.did.as_str().as_bytes()))
            .unwrap();
        table.put(key.clone(), *b"{}").await.unwrap();
        let broken: Vec<VaultKey> = vault.list(&entries[0].record.did).await.unwrap();
        assert_eq!(broken.len(), 2, "it is still listed");
        let mut errors = 0;
        for key in &broken {
            errors += usize::from(matches!(vault.get(key).await, Err(VaultError::Damaged { .. })));
        }
        assert_eq!(errors, 1);
        assert!(vault.get(&entries[1].key()).await.unwrap().is_some());
    });
}

#[test]
fn concurrent_puts_of_one_entry_lose_nothing() {
    let (records, members) = on_paused_clock(records());
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let state = State::open(dir.path()).unwrap();
        let vault = StateVault::new(&state);
        let record = (*records[members[0].did()]).clone();
        let plain =
            VaultEntry { record, genesis_document: None, transcript: None, txid: None, confirmed_height: None };
        let full = VaultEntry { transcript: Some(head(1)), ..plain.clone() };
        let puts = [plain.clone(), full.clone(), plain.clone()].map(|entry| vault.clone().put_owned(entry));
        let done = futures::future::join_all(puts);
        tokio::time::timeout(Duration::from_secs(60), done).await.unwrap().into_iter().for_each(|put| put.unwrap());
        assert_eq!(vault.get(&plain.key()).await.unwrap(), Some(full));
    });
}

/// Calls `put` on a clone.
trait PutOwned {
    async fn put_owned(self, entry: VaultEntry) -> Result<(), VaultError>;
}

impl PutOwned for StateVault {
    async fn put_owned(self, entry: VaultEntry) -> Result<(), VaultError> {
        self.put(entry).await
    }
}
