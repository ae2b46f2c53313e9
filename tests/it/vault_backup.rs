//! `vault export` and `vault import`: a vault survives its disk, and nothing that was changed is restored.

use std::{fs, path::Path, time::Duration};

use btcr2_aggregation::{
    actors::{
        state::{State, vault::VaultEntry},
        transport::tls::Trust,
    },
    keyfile,
    protocol::{did::Did, id::CohortId, time::Timestamp, update::SignedUpdate},
    vault::{
        Recovered, RecoveredKind, Sources, VaultContents, VaultDocument,
        backups::Backups,
        import::{Refusal, Terms, plan},
        inbox,
        verify::verify,
    },
};
use serde_json::{Value, json};

use crate::{
    bitcoind_support::beacon::Beacon,
    resolve_cli::{Author, ran},
    support::{PATIENCE, Run, Service, contains, directory, inputs::secret_identity, path, run_with},
    vault_support::{aggregated, entry, prepare, store},
};

/// A controller with an update of a CAS cohort, and a declined round of an SMT cohort.
struct Member {
    author: Author,
    update: SignedUpdate,
    entries: Vec<VaultEntry>,
}

fn member(name: &str) -> Member {
    let mut author = Author::key(name);
    let update = author.note("second");
    let other = Author::key("another member");
    let beacon = Beacon::new(name, 2, 144);
    let map = aggregated("CASBeacon", &[(&author, Some(&update)), (&other, None)]);
    let tree = aggregated("SMTBeacon", &[(&author, None), (&other, Some(&update))]);
    let entries = vec![
        entry(&author, "first", &beacon, "CASBeacon", Some(&update), &map),
        entry(&author, "second", &beacon, "SMTBeacon", None, &tree),
    ];
    Member { author, update, entries }
}

fn contents(entries: &[VaultEntry]) -> VaultContents {
    VaultContents { entries: entries.to_vec(), ..VaultContents::default() }
}

fn document(contents: &VaultContents) -> VaultDocument {
    VaultDocument::new(contents.clone(), Timestamp::from_secs(1_800_000_000))
}

fn terms<'a>() -> Terms<'a> {
    Terms { did: None, owner: None, superseded: &[], skips_invalid: false }
}

async fn read(state: &str) -> VaultContents {
    Sources { states: vec![state.into()], files: Vec::new() }.read().await.unwrap()
}

#[actix_rt::test]
async fn an_exported_vault_restores_the_lost_one() {
    let (directory, Member { author, entries, .. }) = (directory("vault-backup"), member("backup"));
    let (state, file) = (path(&directory, "state"), path(&directory, "vault.json"));
    store(&state, &entries).await;
    // While another program uses the directory.
    let held = State::open(&state).unwrap();
    let exported = ran(&["vault", "export", &file, "--state", &state, "--json"]).await.succeeded();
    let shown: Value = serde_json::from_str(&exported.stdout).unwrap();
    assert_eq!((&shown["verified"], &shown["entries"]), (&json!(true), &json!(2)));
    let locked = ran(&["vault", "import", &file, "--state", &state]).await;
    assert!(locked.status == Some(1) && locked.stderr.contains("stop `join` first"), "{locked:?}");
    held.close().await;
    // The nonce of the SMT proof is in it (rule M-13).
    let text = fs::read_to_string(&file).unwrap();
    contains(&text, &["\"nonce\":\"", author.did()]);

    let before = read(&state).await;
    fs::remove_dir_all(&state).unwrap();
    let restored = ran(&["vault", "import", &file, "--state", &state]).await.succeeded();
    contains(&restored.stdout, &["2 new"]);
    contains(&restored.stderr, &["the backup was made at ", "a second, different one of its version"]);
    assert_eq!(read(&state).await, before);
    // Again: nothing changes.
    let again = ran(&["vault", "import", &file, "--state", &state, "--json"]).await.succeeded();
    let shown: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!((&shown["new"], &shown["known"]), (&json!(0), &json!(2)));
    assert_eq!(read(&state).await, before);
}

#[actix_rt::test]
async fn an_encrypted_export_needs_its_passphrase() {
    let (directory, Member { entries, .. }) = (directory("vault-encrypted"), member("encrypted"));
    let (state, file) = (path(&directory, "state"), path(&directory, "vault.age"));
    store(&state, &entries).await;
    let with = async |arguments: &[&str], passphrase: &str| -> Run {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let passphrase = passphrase.to_owned();
        actix_rt::task::spawn_blocking(move || {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            match passphrase.as_str() {
                "" => run_with(&arguments, &[]),
                passphrase => run_with(&arguments, &[("BTCR2_PASSPHRASE", passphrase)]),
            }
        })
        .await
        .unwrap()
    };
    let export = ["vault", "export", &file, "--state", &state, "--encrypt"];
    contains(&with(&export, "").await.stderr, &["BTCR2_PASSPHRASE"]);
    contains(&with(&export, "\n").await.stderr, &["the passphrase is empty"]);
    assert!(!Path::new(&file).exists());
    with(&export, "correct horse").await.succeeded();
    assert!(fs::read(&file).unwrap().starts_with(b"age-encryption.org/"));
    let other = path(&directory, "other");
    let import = ["vault", "import", &file, "--state", &other];
    contains(&with(&import, "").await.stderr, &["is encrypted"]);
    contains(&with(&import, "wrong horse").await.stderr, &["passphrase is wrong"]);
    assert!(!Path::new(&other).exists());
    with(&import, "correct horse").await.succeeded();
    assert_eq!(read(&other).await, read(&state).await);
}

#[actix_rt::test]
async fn a_changed_export_is_refused() {
    let (directory, Member { author, entries, update }) = (directory("vault-changed"), member("changed"));
    let (state, file, other) = (path(&directory, "state"), path(&directory, "v"), path(&directory, "other"));
    store(&state, &entries).await;
    ran(&["vault", "export", &file, "--state", &state]).await.succeeded();
    let text = fs::read_to_string(&file).unwrap();
    let refused = async |text: &str, why: &[&str]| {
        fs::write(&file, text).unwrap();
        let run = ran(&["vault", "import", &file, "--state", &other]).await;
        assert!(matches!(run.status, Some(1 | 2)), "{run:?}");
        contains(&run.stderr, why);
        assert!(!Path::new(&other).exists(), "nothing was written");
    };
    refused(&text.replace("second", "secund"), &["do not have the hash"]).await;
    refused(&text[..text.len() / 2], &["not an exported vault"]).await;
    // One who adapts the hash too changes signed or committed data, or mixes up DIDs: the records do not verify.
    let forged = |change: &dyn Fn(&mut VaultContents)| {
        let mut contents = contents(&entries);
        change(&mut contents);
        document(&contents).to_json().unwrap()
    };
    let mut changed = update.value().clone();
    changed["patch"][0]["value"] = json!("forged");
    let changed = SignedUpdate::from_value(changed).unwrap();
    let forged_update = forged(&|contents| contents.entries[0].record.update = Some(changed.clone()));
    refused(&forged_update, &["cohort first", "update: "]).await;
    let forged_signal = forged(&|contents| contents.entries[1].record.signal = contents.entries[0].record.signal);
    refused(&forged_signal, &["cohort second", "beacon data: "]).await;
    let unrelated = Author::key("mixed up");
    let mixed = forged(&|contents| contents.entries[1].record.did = unrelated.did.clone());
    refused(&mixed, &["several DIDs", unrelated.did(), author.did()]).await;
    let mixed =
        forged(&|contents| contents.entries.iter_mut().for_each(|entry| entry.record.did = unrelated.did.clone()));
    refused(&mixed, &["cohort first", "update: "]).await;
}

#[test]
fn two_updates_of_one_version_are_not_restored() {
    let Member { author, entries, update } = member("contradiction");
    let mut again = Author::key("contradiction");
    let other = again.note("another second");
    let beacon = Beacon::new("contradiction", 2, 144);
    let map = aggregated("CASBeacon", &[(&again, Some(&other))]);
    let third = entry(&again, "third", &beacon, "CASBeacon", Some(&other), &map);
    let refused = |existing: &VaultContents, incoming: &VaultContents, terms: &Terms<'_>| {
        plan(existing, document(incoming), terms).err().map(|refusal| refusal.to_string())
    };
    let (known, new) = (contents(&entries), contents(std::slice::from_ref(&third)));
    let text = refused(&known, &new, &terms()).unwrap();
    contains(
        &text,
        &["two different updates of version 2", author.did(), "cohort first", "cohort third", "--supersede"],
    );
    let both = contents(&[entries[0].clone(), third]);
    assert!(refused(&VaultContents::default(), &both, &terms()).is_some(), "both in the file");
    let superseded = [CohortId::parse("first").unwrap()];
    assert_eq!(refused(&known, &new, &Terms { superseded: &superseded, ..terms() }), None);
    // An update that was prepared without a cohort counts too.
    let prepared = VaultContents { prepared: vec![other], ..VaultContents::default() };
    let text = refused(&known, &prepared, &terms()).unwrap();
    contains(&text, &["without a cohort (`singleton`)"]);
    let superseded = [CohortId::parse("singleton").unwrap()];
    assert_eq!(refused(&known, &prepared, &Terms { superseded: &superseded, ..terms() }), None);
    // What was found announced is not superseded with those that were only prepared.
    let mut announced =
        VaultContents { prepared: vec![entries[0].record.update.clone().unwrap()], ..VaultContents::default() };
    assert_eq!(refused(&announced, &prepared, &Terms { superseded: &superseded, ..terms() }), None);
    announced.recovered = vec![Recovered::update(&author.did, &announced.prepared[0])];
    for superseded in [&[][..], &superseded[..]] {
        let terms = Terms { superseded, ..terms() };
        assert!(refused(&announced, &new, &terms).is_some() && refused(&new, &announced, &terms).is_some());
    }
    // The same update again is not another one.
    let same = VaultContents { prepared: vec![update], ..VaultContents::default() };
    assert_eq!(refused(&known, &same, &terms()), None);
}

#[test]
fn nothing_newer_is_replaced_and_nothing_of_others_restored() {
    let Member { author, entries, .. } = member("newer");
    let txid = "11".repeat(32).parse().unwrap();
    let mut newer = entries.clone();
    (newer[0].txid, newer[0].confirmed_height) = (Some(txid), Some(7));
    let mut moved = newer.clone();
    moved[0].confirmed_height = Some(5);
    // The height of the directory stays; an older copy has nothing to add.
    for older in [&entries, &moved] {
        let made = plan(&contents(&newer), document(&contents(older)), &terms()).unwrap();
        assert_eq!((made.new_parts(), made.known), (0, 2));
    }
    // The other way round, it completes the entry.
    let made = plan(&contents(&entries), document(&contents(&newer)), &terms()).unwrap();
    assert_eq!((&made.entries[..], made.known), (&newer[..1], 1));
    let owner = |owner: &'static str, did| Terms { owner: Some(owner), did, ..terms() };
    let refusal =
        |terms: &Terms<'_>| plan(&VaultContents::default(), document(&contents(&entries)), terms).unwrap_err();
    assert!(
        matches!(refusal(&owner("did:btcr2:other", None)), Refusal::OtherDid { found, .. } if found == author.did)
    );
    let unrelated = Author::key("unrelated").did;
    assert!(matches!(refusal(&owner("x", Some(&unrelated))), Refusal::NothingOf(did) if did == unrelated));
    // Another record of the same cohort and service.
    let mut contradicting = entries.clone();
    contradicting[1].record.conditions.min_participants = 7;
    let refused = plan(&contents(&entries), document(&contents(&contradicting)), &terms());
    assert!(matches!(refused, Err(Refusal::Record { .. })), "{refused:?}");
}

#[test]
fn each_part_of_a_vault_is_verified() {
    let Member { author, entries, update } = member("verified");
    let mut third = Author::key("verified");
    third.note("second");
    let third = third.note("third");
    let mut all = contents(&entries);
    all.prepared = vec![third.clone()];
    let verification = verify(&all);
    assert!(verification.invalid.is_empty() && verification.unverified.is_empty(), "{verification:?}");
    // Without the second version the third one cannot be followed; with a forged signature it is refused.
    let alone = VaultContents { prepared: vec![third.clone()], ..VaultContents::default() };
    assert_eq!(verify(&alone).unverified.len(), 1);
    // What every update has to have is verified all the same.
    for (pointer, value, rule) in [
        ("/@context/0", json!("https://w3id.org/other"), "U-1"),
        ("/proof/capabilityAction", json!("Read"), "U-3"),
        ("/proof/capability", json!("urn:zcap:root:other"), "U-5"),
        ("/proof/proofValue", json!("z0"), "U-11"),
        ("/patch", json!([{ "op": "unknown" }]), "U-12"),
        ("/targetHash", json!("short"), "U-16"),
    ] {
        let mut changed = third.value().clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        let changed = vec![SignedUpdate::from_value(changed).unwrap()];
        let found = verify(&VaultContents { prepared: changed, ..VaultContents::default() });
        assert!(found.unverified.is_empty() && found.invalid[0].to_string().contains(rule), "{rule}: {found:?}");
    }
    // Of two services with a cohort of the same name only one record is the invalid one.
    let mut two = contents(&entries[..1]);
    let mut other = entries[0].clone();
    (other.record.service, other.record.signal) = (Author::key("other service").did, entries[1].record.signal);
    two.entries.push(other);
    let verification = verify(&two);
    assert_eq!(two.without_invalid(&verification).entries, entries[..1]);
    let mut forged = third.value().clone();
    forged["proof"]["proofValue"] = update.value()["proof"]["proofValue"].clone();
    all.prepared = vec![SignedUpdate::from_value(forged).unwrap()];
    assert!(verify(&all).invalid[0].to_string().contains("U-11"), "{:?}", verify(&all));
    let recovered = |did: &Did, kind, data| {
        let recovered = vec![Recovered { did: did.clone(), kind, data }];
        verify(&VaultContents { recovered, ..VaultContents::default() }).invalid.len()
    };
    let proof = serde_json::to_value(&entries[1].record.data).unwrap()["smt"].clone();
    assert_eq!(recovered(&author.did, RecoveredKind::SmtProof, proof.clone()), 0);
    assert_eq!(recovered(&Author::key("other").did, RecoveredKind::SmtProof, proof), 1);
    assert_eq!(recovered(&author.did, RecoveredKind::CasUpdate, json!([])), 1);
    assert_eq!(recovered(&author.did, RecoveredKind::CasUpdate, json!({ author.did(): "no hash" })), 1);
    assert_eq!(recovered(&author.did, RecoveredKind::Update, update.value().clone()), 0);
    assert_eq!(recovered(&Author::key("other").did, RecoveredKind::Update, update.value().clone()), 1);
    let external = Author::external("verified", "CASBeacon", entries[0].record.output.address());
    let genesis = external.genesis.clone().unwrap();
    assert_eq!(recovered(&external.did, RecoveredKind::GenesisDocument, genesis.clone()), 0);
    assert_eq!(recovered(&author.did, RecoveredKind::GenesisDocument, genesis), 1);
}

#[actix_rt::test]
async fn a_service_still_has_the_data_of_a_recent_round() {
    let directory = directory("vault-inbox");
    let state = path(&directory, "state");
    let (at, member_file) = (directory.clone(), secret_identity(&directory));
    let (identity, _) = keyfile::read(Path::new(&member_file), || None).unwrap();
    let joined = {
        let (at, state, file) = (at.clone(), state.clone(), member_file.clone());
        actix_rt::task::spawn_blocking(move || {
            let service = Service::start(&at, &["--min-participants", "1", "--beacon", "smt", "--cohorts", "1"]);
            let result = service.join(&file, &["--decline", "--state", &state]).result();
            (service, result)
        })
    };
    let (service, result) = joined.await.unwrap();
    let proof = result["sidecar"]["smtProofs"][0].clone();
    assert!(proof["nonce"].is_string(), "{result}");
    // What `join` stores verifies.
    ran(&["vault", "export", &path(&directory, "vault"), "--state", &state]).await.succeeded();
    // Twice: nothing is confirmed.
    for _ in 0..2 {
        let found = inbox::read(&service.url, &Trust::system(), &identity, PATIENCE).await.unwrap();
        assert_eq!((found.count, &found.sidecar["smtProofs"], found.problem), (1, &json!([proof]), None));
    }
    // An inbox is read with the key of its DID.
    let fixed = ["vault", "recover", identity.did().as_str(), "--state", &state, "--service", &service.url];
    let refused = ran(&[&fixed[..], &["--chain", "esplora=http://127.0.0.1:1/api"]].concat()).await;
    contains(refused.usage(), &["--identity"]);
    let silent =
        inbox::read("http://127.0.0.1:9", &Trust::system(), &identity, Duration::from_secs(2)).await.unwrap();
    assert!(silent.count == 0 && silent.problem.is_some(), "{silent:?}");
}

#[actix_rt::test]
async fn what_is_verified_in_part_is_stated() {
    let directory = directory("vault-partly");
    let (state, file) = (path(&directory, "state"), path(&directory, "vault.json"));
    let mut author = Author::key("partly");
    author.note("second");
    prepare(&state, &author.note("third")).await;
    let run = ran(&["vault", "export", &file, "--state", &state]).await.succeeded();
    contains(&run.stdout, &["read back: 0 verified, 1 in part only"]);
    let run = ran(&["vault", "export", &path(&directory, "more"), "--state", &state, "--json"]).await.succeeded();
    assert_eq!(serde_json::from_str::<Value>(&run.stdout).unwrap()["verified"], false);
    let run = ran(&["vault", "import", &file, "--state", &path(&directory, "other")]).await.succeeded();
    contains(&run.stdout, &["0 verified, 1 in part only, and restored"]);
    // The time is part of what the hash is of: an old backup does not look new.
    let mut changed: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    changed["exportedAt"] = json!(changed["exportedAt"].as_u64().unwrap() + 1);
    fs::write(&file, changed.to_string()).unwrap();
    let run = ran(&["vault", "import", &file, "--state", &path(&directory, "other")]).await;
    contains(&run.stderr, &["do not have the hash"]);
}

#[actix_rt::test]
async fn a_directory_has_one_did_and_its_risk_is_recorded() {
    let (directory, Member { author, entries, .. }) = (directory("vault-one-did"), member("one did"));
    let (state, file) = (path(&directory, "state"), path(&directory, "vault.json"));
    let other = Author::key("another did").note("second");
    prepare(&state, &other).await;
    fs::write(&file, document(&contents(&entries)).to_json().unwrap()).unwrap();
    let refused = ran(&["vault", "import", &file, "--state", &state]).await;
    assert_eq!(refused.status, Some(1), "{refused:?}");
    contains(&refused.stderr, &[Author::key("another did").did(), author.did(), "another --state"]);
    assert!(read(&state).await.entries.is_empty());
    // What cannot be recorded is not restored.
    let blocked = path(&directory, "blocked");
    store(&blocked, &[]).await;
    fs::create_dir(Path::new(&blocked).join("backups.json")).unwrap();
    let failed = ran(&["vault", "import", &file, "--state", &blocked]).await;
    assert!(failed.status == Some(1) && read(&blocked).await.is_empty(), "{failed:?}");
    fs::remove_dir(Path::new(&blocked).join("backups.json")).unwrap();
    ran(&["vault", "import", &file, "--state", &blocked]).await.succeeded();
    let known = Backups::of([Path::new(&blocked)], &author.did).unwrap();
    assert!(known.restoration.is_some() && known.export.is_some(), "{known:?}");
}

#[actix_rt::test]
async fn a_damaged_list_of_prepared_updates_is_repaired() {
    let directory = directory("vault-prepared");
    let (state, file) = (path(&directory, "state"), path(&directory, "vault.json"));
    prepare(&state, &Author::key("prepared").note("second")).await;
    let before = read(&state).await;
    ran(&["vault", "export", &file, "--state", &state]).await.succeeded();
    let open = State::open(&state).unwrap();
    open.table("program").put("prepared", "no JSON").await.unwrap();
    open.close().await;
    assert_eq!(read(&state).await.problems.len(), 1);
    let run = ran(&["vault", "import", &file, "--state", &state]).await.succeeded();
    contains(&run.stderr, &["warning: the directory's list", "was damaged"]);
    assert_eq!(read(&state).await, before);
}

#[actix_rt::test]
async fn a_damaged_entry_is_repaired_and_an_outdated_one_left_out() {
    let (directory, Member { entries, .. }) = (directory("vault-damaged"), member("damaged"));
    let (state, file) = (path(&directory, "state"), path(&directory, "vault.json"));
    store(&state, &entries).await;
    let before = read(&state).await;
    ran(&["vault", "export", &file, "--state", &state]).await.succeeded();
    let key = entries[0].key();
    let open = State::open(&state).unwrap();
    let (table, bytes) = (open.table("vault"), format!("{}\0{}\0{}", key.did, key.service, key.cohort_id));
    assert!(table.get(bytes.clone()).await.unwrap().is_some());
    table.put(bytes, "no JSON").await.unwrap();
    drop(table);
    open.close().await;
    assert_eq!(read(&state).await.problems.len(), 1);
    // An export of what is left is not verified.
    let partly = path(&directory, "partly.json");
    let run = ran(&["vault", "export", &partly, "--state", &state]).await;
    assert!(run.status == Some(1) && run.stdout.contains("NOT verified"), "{run:?}");
    let run = ran(&["vault", "import", &file, "--state", &state]).await.succeeded();
    contains(&run.stdout, &["1 new or completed, 1 were there already"]);
    assert_eq!(read(&state).await, before);

    // Version 1 of the format is read; what version 0.1 announced has no use.
    let old = concat!(env!("CARGO_MANIFEST_DIR"), "/actors/tests/fixtures/vault-0.1.json");
    let other = path(&directory, "other");
    let refused = ran(&["vault", "import", old, "--state", &other]).await;
    assert!(refused.status == Some(1) && refused.stderr.contains("--skip-invalid"), "{refused:?}");
    let skipped = ran(&["vault", "import", old, "--state", &other, "--skip-invalid"]).await.succeeded();
    contains(&skipped.stderr, &["warning: left out: the record of"]);
}
