#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    actors::{
        journal::{Journal, Record, StreamId},
        state::State,
    },
    member::queue,
    protocol::{identity::Identity, key::SecretKey, network::Network},
};

fn secret(text: &str) -> SecretString {
    SecretString::from(text.to_owned())
}

/// A state directory with a stream, an entry, Sidecar Data and an identity file; the passphrase takes a second.
async fn world(dir: &Path) -> State {
    let home = dir.join("home");
    std::fs::create_dir_all(home.join("dids")).unwrap();
    std::fs::create_dir_all(dir.join("out")).unwrap();
    std::fs::write(home.join("member.toml"), "network = \"regtest\"").unwrap();
    std::fs::write(home.join("dids/a.id"), "{}").unwrap();
    std::fs::write(dir.join("out/did.json"), "{\"updates\":[]}").unwrap();
    let state = State::open(dir.join("state")).unwrap();
    let files = (Some(dir.join("out")), vec![home.join("member.toml"), home.join("dids/a.id")]);
    state.table(tally::TABLE).put(FILES, serde_json::to_vec(&files).unwrap()).await.unwrap();
    state.table("program").put("profile", "{}").await.unwrap();
    let stream = StreamId::new("watch/x");
    state.journal().append(&stream, vec![Record::from_json(b"{\"height\":7}".to_vec())]).await.unwrap();
    state
}

#[tokio::test]
async fn a_backup_is_restored_with_everything_and_marked() {
    let dir = tempfile::tempdir().unwrap();
    let state = world(dir.path()).await;
    let file = dir.path().join("backup.age");
    let written = write(&state, &file, secret("horse"), true).await.unwrap();
    assert_eq!(written.counts(), [0, 0, 1, 2]);
    let bytes = std::fs::read(&file).unwrap();
    assert!(passphrase::encrypted(&bytes).is_some(), "it is encrypted");
    assert!(
        matches!(write(&state, &file, secret("horse"), true).await, Err(BackupError::Io { .. })),
        "never replaced"
    );
    assert!(matches!(read(&file, secret("wrong")).await, Err(BackupError::Decryption { .. })));
    state.close().await;
    let backup = read(&file, secret("horse")).await.unwrap();
    let (new, files) = (dir.path().join("new"), dir.path().join("files"));
    restore(&backup, &new, &files).await.unwrap();
    assert_eq!(std::fs::read_to_string(files.join("dids/a.id")).unwrap(), "{}");
    assert_eq!(std::fs::read_to_string(files.join("member.toml")).unwrap(), "network = \"regtest\"");
    assert_eq!(std::fs::read_to_string(new.join("sidecars/did.json")).unwrap(), "{\"updates\":[]}");
    assert!(matches!(restore(&backup, &new, &files).await, Err(BackupError::Exists(_))));
    let state = State::open(&new).unwrap();
    assert_eq!(state.table("program").get("profile").await.unwrap(), Some(b"{}".to_vec()));
    let records = state.journal().read(&StreamId::new("watch/x")).await.unwrap();
    assert_eq!(records[0].to_json().unwrap(), b"{\"height\":7}");
    assert!(state.table(tally::TABLE).get("restored").await.unwrap().is_some());
    state.close().await;
}

#[tokio::test]
async fn what_could_not_be_restored_is_no_backup() {
    let dir = tempfile::tempdir().unwrap();
    let state = world(dir.path()).await;
    let file = dir.path().join("backup.age");
    state.table(queue::TABLE).put("1", "not an update").await.unwrap();
    assert!(matches!(write(&state, &file, secret("horse"), true).await, Err(BackupError::Content(_))));
    assert!(!file.exists());
    state.table(queue::TABLE).remove("1").await.unwrap();
    let seat = Identity::from_key(SecretKey::from_bytes(&[7; 32]).unwrap(), Network::Regtest);
    let stream = StreamId::of_seat(seat.did());
    state.journal().append(&stream, vec![Record::from_json(b"{}".to_vec())]).await.unwrap();
    assert!(matches!(write(&state, &file, secret("horse"), true).await, Err(BackupError::Content(_))));
    state.close().await;
    std::fs::write(&file, "something else").unwrap();
    assert!(matches!(read(&file, secret("horse")).await, Err(BackupError::Format(_))));
}
