//! Each question, with the resolver's own histories.

use ::bitcoin::{Amount, OutPoint, hashes::Hash};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::json;

use super::*;
use crate::{
    actors::state::vault::VaultEntry,
    bitcoin::chain::{BlockId, Deposit, Place},
    protocol::{
        beacon::{AggregateBeacon, AggregatedData, BeaconType, CasBeacon, Slots},
        cohort::conditions::Conditions,
        document::{self, InitialBeacon, InitialBeaconKind},
        key::SecretKey,
        network::Network,
        output::{BeaconOutput, KeyAggregation, RecoverySequence, ScriptTree},
        resolution::{Content, Need, Next, ResolutionOptions, Resolver, SidecarData, Signal},
        sidecar::MemberRecord,
        update::{add_beacon_service_patch, build_update, sign_update},
    },
    vault::backups::{Export, Restoration},
};

const TIP: u32 = 200;

/// A controller, with what its chain shows.
struct World {
    key: SecretKey,
    did: Did,
    documents: Vec<Value>,
    updates: Vec<SignedUpdate>,
    /// Address, signal, and height of its block.
    signals: Vec<(String, SignalBytes, u32)>,
    vault: VaultContents,
    coins: BTreeMap<String, Activity>,
    /// The Sidecar Data of files.
    files: Value,
    terms: Terms,
    backup: Backup,
    keys: Option<Vec<PublicKey>>,
}

fn id(name: &str) -> CohortId {
    CohortId::parse(name).unwrap()
}

fn txid(index: usize) -> Txid {
    Txid::from_byte_array([u8::try_from(index).unwrap() + 1; 32])
}

impl World {
    fn new() -> Self {
        let key = SecretKey::from_bytes(&[7; 32]).unwrap();
        let did = Did::from_key(key.public_key(), Network::Regtest);
        let terms = Terms {
            min_conf: 6,
            warn_blocks: 10,
            max_backup_age: None,
            superseded: Vec::new(),
            accepted: BTreeSet::new(),
        };
        Self {
            documents: vec![document::initial_document(&did, None).unwrap()],
            keys: Some(vec![key.public_key()]),
            key,
            did,
            updates: Vec::new(),
            signals: Vec::new(),
            vault: VaultContents::default(),
            coins: BTreeMap::new(),
            files: json!({}),
            terms,
            backup: Backup::default(),
        }
    }

    fn own(&self) -> String {
        InitialBeacon::of(&self.did, InitialBeaconKind::P2wpkh).unwrap().address().to_string()
    }

    fn sign(&self, patch: Value) -> SignedUpdate {
        let (document, version) = (self.documents.last().unwrap(), self.documents.len() as u64);
        let unsigned = build_update(document, version, patch).unwrap();
        let method = format!("{}#initialKey", self.did);
        sign_update(&unsigned, &self.did, &method, &self.key, &mut ChaCha20Rng::from_seed([8; 32])).unwrap()
    }

    fn note(&self, text: &str) -> SignedUpdate {
        self.sign(json!([{ "op": "add", "path": "/note", "value": text }]))
    }

    /// The update becomes the next version.
    fn advance(&mut self, patch: Value) -> SignedUpdate {
        let update = self.sign(patch.clone());
        let unsigned = build_update(self.documents.last().unwrap(), self.documents.len() as u64, patch).unwrap();
        self.documents.push(unsigned.target_document().clone());
        self.updates.push(update.clone());
        update
    }

    fn announce(&mut self, address: &str, signal: &DocumentHash, confirmations: u32) {
        let height = TIP + 1 - confirmations;
        self.signals.push((address.to_owned(), SignalBytes::from_bytes(*signal.as_bytes()), height));
    }

    /// Announces an update from the DID's own beacon, and stores it in the vault.
    fn singleton(&mut self, update: &SignedUpdate, confirmations: u32) {
        self.announce(&self.own(), update.hash(), confirmations);
        self.vault.prepared.push(update.clone());
    }

    fn resolution(&self, min_conf: u32) -> Resolution {
        let options = ResolutionOptions::default().with_min_conf(min_conf.into()).unwrap();
        let mut data = SidecarData::from_value(self.files.clone()).unwrap();
        data.merge(SidecarData::from_value(self.vault.sidecar(&self.did).data).unwrap());
        let mut resolver = Resolver::new(self.did.clone(), options, data);
        loop {
            resolver = match resolver.into_resolution() {
                Ok(resolution) => return resolution,
                Err(resolver) => resolver,
            };
            let Next::Needs(needs) = resolver.next() else { unreachable!() };
            for need in needs {
                match need {
                    Need::Signals { beacon, .. } => {
                        let address = beacon.address.to_string();
                        let of = self.signals.iter().enumerate().filter(|(_, (at, ..))| *at == address);
                        let signals = of.map(|(index, (_, bytes, height))| Signal {
                            txid: txid(index),
                            bytes: *bytes,
                            height: Some(*height),
                            time: Some(1_800_000_000 + height),
                            mediantime: Some(1_800_000_000 + height),
                            confirmations: Some(TIP + 1 - height),
                        });
                        resolver.provide_signals(&beacon.address, signals.collect(), "chain").unwrap();
                    }
                    Need::Content { hash, .. } => {
                        resolver.provide_content(&hash, Content::Absent, "store").unwrap();
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn report(&self) -> Report {
        let (settled, young) = (self.resolution(self.terms.min_conf), self.resolution(1));
        let updates = self.updates.iter().map(|update| (*update.hash(), update.clone())).collect();
        let coins = Ok(self.coins.clone());
        let chain = ChainView {
            tip: Some(tip()),
            settled,
            young,
            updates,
            coins,
            unconfirmed: Vec::new(),
            problems: Vec::new(),
        };
        evaluate(&self.view(Ok(&chain)))
    }

    fn view<'a>(&'a self, chain: Result<&'a ChainView, &'a str>) -> View<'a> {
        View {
            did: &self.did,
            now: Timestamp::from_secs(2_000_000_000),
            terms: &self.terms,
            chain,
            vault: Some(&self.vault),
            backup: &self.backup,
            keys: self.keys.as_deref(),
        }
    }

    /// A verified export of the vault as it is.
    fn export(&mut self, secs: u64) {
        let (at, hash) = (Timestamp::from_secs(secs), DocumentHash::from_bytes([0; 32]));
        self.backup.export = Some(Export { at, hash, items: self.vault.items() });
    }

    /// The beacon of a cohort, a round in it, and the vault's entry.
    fn round(&mut self, cohort: &str, update: Option<&SignedUpdate>) -> (BeaconOutput, SignalBytes) {
        let output = output();
        let other = Did::from_key(SecretKey::from_bytes(&[9; 32]).unwrap().public_key(), Network::Regtest);
        let slots: Slots = [
            (self.did.clone(), update.map(|update| *update.hash())),
            (other, Some(DocumentHash::from_bytes([5; 32]))),
        ]
        .into();
        let aggregation = CasBeacon.aggregate(&slots, &mut ChaCha20Rng::from_seed([1; 32])).unwrap();
        let AggregatedData::Shared(data) = aggregation.data else { unreachable!() };
        let record = MemberRecord {
            did: self.did.clone(),
            service: self.did.clone(),
            cohort_id: id(cohort),
            conditions: Conditions::new(BeaconType::cas(), 2, output.script_tree().clone()),
            output: output.clone(),
            signal: aggregation.signal,
            update: update.cloned(),
            data: (*data).clone(),
        };
        let entry =
            VaultEntry { record, genesis_document: None, transcript: None, txid: None, confirmed_height: None };
        self.vault.entries.push(entry);
        (output, aggregation.signal)
    }
}

fn tip() -> Tip {
    Tip { block: block(TIP), median_time: 1_900_000_000 }
}

fn block(height: u32) -> BlockId {
    BlockId { height, hash: ::bitcoin::BlockHash::from_byte_array([3; 32]) }
}

fn output() -> BeaconOutput {
    let keys = [11, 12].map(|byte| SecretKey::from_bytes(&[byte; 32]).unwrap().public_key());
    let tree = ScriptTree::FallbackAndRecovery {
        recovery_key: SecretKey::from_bytes(&[13; 32]).unwrap().public_key().x_only(),
        recovery_sequence: RecoverySequence::try_from(50).unwrap(),
        fallback_threshold: None,
    };
    BeaconOutput::new(std::sync::Arc::new(KeyAggregation::new(keys.to_vec()).unwrap()), Network::Regtest, &tree)
        .unwrap()
}

/// The coins of an address, by the heights of their blocks.
fn coins(heights: &[u32]) -> Activity {
    let deposit = |(index, height): (usize, &u32)| {
        let outpoint = OutPoint { txid: txid(100 + index), vout: 0 };
        Deposit::new(outpoint, Amount::from_sat(1_000), Place::Block(block(*height)))
    };
    Activity { tip: tip(), deposits: heights.iter().enumerate().map(deposit).collect(), spends: Vec::new() }
}

fn with(report: &Report, code: Code) -> Vec<&Finding> {
    report.findings.iter().filter(|finding| finding.code == code).collect()
}

/// The only finding with that code.
fn one(report: &Report, code: Code) -> &Finding {
    let [finding] = with(report, code)[..] else { panic!("{code:?}: {report:#?}") };
    finding
}

#[test]
fn a_did_with_all_its_data_is_well() {
    let mut world = World::new();
    let report = world.report();
    assert_eq!((report.status, report.version, report.confirmations), (Status::Ok, Some(1), Some(0)));
    assert!(report.signing_method.unwrap().ends_with("#initialKey"));
    let update = world.advance(json!([{ "op": "add", "path": "/note", "value": "second" }]));
    world.singleton(&update, 6);
    world.export(1_900_000_000);
    let report = world.report();
    assert_eq!(
        (report.status, report.version, report.confirmations),
        (Status::Ok, Some(2), Some(6)),
        "{report:#?}"
    );
    let beacon = report.beacons.iter().find(|beacon| beacon.address == world.own()).unwrap();
    assert_eq!((beacon.signals, beacon.last_signal.unwrap().height, beacon.listed), (1, 195, Some(true)));
    assert!(report.updates.is_empty(), "applied");
    // Not in the files, which others may delete.
    world.files = world.vault.sidecar(&world.did).data;
    world.vault.prepared.clear();
    assert_eq!(one(&world.report(), Code::NotInVault).about.txid, Some(txid(0)));
}

#[test]
fn missing_data_is_a_problem_and_of_a_young_signal_a_warning() {
    let mut world = World::new();
    let update = world.advance(json!([{ "op": "add", "path": "/note", "value": "second" }]));
    world.announce(&world.own(), update.hash(), 5);
    let report = world.report();
    assert_eq!((report.status, report.version), (Status::Warning, Some(1)));
    let warning = one(&report, Code::YoungMissingData);
    assert_eq!((warning.about.txid, warning.about.height), (Some(txid(0)), Some(196)));
    assert!(warning.text.contains("5 of 6 confirmations") && warning.advice.is_some(), "{warning:?}");
    world.terms.min_conf = 5;
    let report = world.report();
    assert_eq!((report.status, report.version), (Status::Problem, None));
    assert_eq!(one(&report, Code::MissingData).about.txid, Some(txid(0)));
    assert!(with(&report, Code::YoungMissingData).is_empty(), "once");
    // Known but too young: nothing is wrong.
    world.terms.min_conf = 6;
    world.vault.prepared.push(update);
    world.export(1_900_000_000);
    let report = world.report();
    assert_eq!(
        (report.status, one(&report, Code::YoungVersion).about.version),
        (Status::Ok, Some(2)),
        "{report:#?}"
    );
    assert_eq!(report.updates[0].standing, UpdateStanding::InBlock);
}

#[test]
fn a_conflict_that_is_too_young_to_count_ends_the_did() {
    let mut world = World::new();
    let other = world.note("other");
    let update = world.advance(json!([{ "op": "add", "path": "/note", "value": "second" }]));
    world.singleton(&update, 9);
    world.singleton(&other, 2);
    let report = world.report();
    assert_eq!((report.status, report.version), (Status::Problem, Some(2)));
    assert!(one(&report, Code::WillNotResolve).text.contains("LATE_PUBLISHING"));
}

#[test]
fn signals_of_a_removed_beacon_still_need_their_data() {
    let mut world = World::new();
    let address = output().address().to_owned();
    let add = world.advance(add_beacon_service_patch(&world.did, "CASBeacon", &address));
    world.singleton(&add, 60);
    let remove = world.advance(json!([{ "op": "remove", "path": "/service/3" }]));
    world.singleton(&remove, 50);
    let beacon_of =
        |report: &Report| report.beacons.iter().find(|beacon| beacon.address == address).unwrap().clone();
    assert_eq!(beacon_of(&world.report()).listed, Some(false));
    // A later signal, of a round that the member has no data of.
    world.announce(&address, &DocumentHash::from_bytes([1; 32]), 20);
    let report = world.report();
    let missing = one(&report, Code::MissingData);
    assert_eq!((missing.about.address.as_deref(), missing.about.txid), (Some(address.as_str()), Some(txid(2))));
    assert_eq!((beacon_of(&report).missing, beacon_of(&report).signals), (1, 1));
    assert!(missing.advice.as_ref().unwrap().contains("other member"), "{missing:?}");
    // With the data it is only a dependence.
    world.signals.pop();
    let (_, signal) = world.round("declined", None);
    world.announce(&address, &DocumentHash::from_bytes(*signal.as_bytes()), 20);
    let report = world.report();
    assert!(report.status == Status::Warning && with(&report, Code::MissingData).is_empty(), "{report:#?}");
    assert!(one(&report, Code::NoBackup).advice.is_some());
}

#[test]
fn what_may_still_be_announced_is_named() {
    let mut world = World::new();
    let (second, other) = (world.note("second"), world.note("another second"));
    world.vault.prepared.push(second.clone());
    world.export(1_900_000_000);
    let report = world.report();
    assert_eq!((report.status, report.updates[0].standing), (Status::Ok, UpdateStanding::Prepared), "{report:#?}");
    // Its cohort is not in the document.
    world.round("cohort", Some(&second));
    world.vault.prepared.clear();
    let report = world.report();
    assert_eq!(
        (report.updates[0].standing, &report.updates[0].cohorts),
        (UpdateStanding::Approved, &vec![id("cohort")])
    );
    assert!(one(&report, Code::PendingUpdate).advice.as_ref().unwrap().contains("singleton"));
    world.vault.entries[0].txid = Some(txid(50));
    assert_eq!(world.report().updates[0].standing, UpdateStanding::Signed);
    // Two of one version.
    world.vault.prepared.push(other.clone());
    let report = world.report();
    assert_eq!((report.status, one(&report, Code::Contradiction).about.version), (Status::Warning, Some(2)));
    // Both approved by cohorts: others can announce them.
    world.round("another-cohort", Some(&other));
    assert_eq!(one(&world.report(), Code::Contradiction).status, Status::Problem);
    world.vault.entries.pop();
    world.terms.superseded = vec![id("singleton")];
    assert!(with(&world.report(), Code::Contradiction).is_empty());
    world.terms.superseded.clear();

    // One of them is applied: the other one ends the DID when it is announced.
    let applied = world.advance(json!([{ "op": "add", "path": "/note", "value": "second" }]));
    assert_eq!(applied, second);
    world.singleton(&applied, 10);
    let report = world.report();
    assert_eq!(
        report.updates.iter().map(|update| update.standing).collect::<Vec<_>>(),
        [UpdateStanding::Superseded]
    );
    assert_eq!(one(&report, Code::SupersededUpdate).status, Status::Warning);
    // A version too far, and one that starts from another document.
    world.vault.prepared.retain(|update| *update != other);
    let third = world.advance(json!([{ "op": "add", "path": "/note", "value": "third" }]));
    let fourth = world.note("fourth");
    world.vault.prepared.push(fourth);
    assert_eq!(one(&world.report(), Code::VersionGap).about.version, Some(4));
    world.vault.prepared.push(third);
    assert!(with(&world.report(), Code::VersionGap).is_empty());
    let mut strange = world.updates[1].value().clone();
    strange["sourceHash"] = json!(DocumentHash::from_bytes([1; 32]));
    world.vault.prepared.truncate(1);
    world.vault.prepared.push(SignedUpdate::from_value(strange).unwrap());
    let report = world.report();
    assert_eq!((one(&report, Code::CannotApply).status, report.version), (Status::Warning, Some(2)), "{report:#?}");
}

#[test]
fn a_deactivated_did_needs_its_data_and_nothing_else() {
    let mut world = World::new();
    let pending = world.note("pending");
    let last = world.advance(json!([{ "op": "add", "path": "/deactivated", "value": true }]));
    world.singleton(&last, 10);
    world.vault.prepared.push(pending);
    world.keys = Some(vec![SecretKey::from_bytes(&[99; 32]).unwrap().public_key()]);
    world.export(1_900_000_000);
    let report = world.report();
    assert!(report.deactivated && report.status == Status::Ok && report.version == Some(2), "{report:#?}");
    assert!(one(&report, Code::Deactivated).text.contains("need the data"));
    world.vault.prepared.clear();
    assert_eq!(one(&world.report(), Code::MissingData).status, Status::Problem);
}

#[test]
fn the_trust_in_an_operator_is_stated_by_block() {
    let mut world = World::new();
    let (output, signal) = world.round("cohort", None);
    let address = output.address().to_owned();
    let add = world.advance(add_beacon_service_patch(&world.did, "CASBeacon", &address));
    world.singleton(&add, 60);
    world.announce(&address, &DocumentHash::from_bytes(*signal.as_bytes()), 60);
    world.export(1_900_000_000);
    let operator = |report: &Report| {
        let beacon = report.beacons.iter().find(|beacon| beacon.address == address).unwrap();
        beacon.operator.clone().unwrap()
    };
    let report = world.report();
    assert!(report.status == Status::Ok && operator(&report).coins.is_empty(), "{report:#?}");
    assert_eq!((operator(&report).recovery_blocks, operator(&report).fallback_threshold), (Some(50), Some(1)));
    // Far from its end, ten blocks before it, and after it.
    for (height, code) in [(190, None), (161, Some(Code::OperatorSoon)), (151, Some(Code::OperatorAlone))] {
        world.coins.insert(address.clone(), coins(&[height]));
        let report = world.report();
        assert_eq!(operator(&report).coins[0].alone_from, Some(height + 50));
        let found = [Code::OperatorSoon, Code::OperatorAlone].map(|code| with(&report, code).len());
        assert_eq!(
            found,
            [code == Some(Code::OperatorSoon), code == Some(Code::OperatorAlone)].map(usize::from),
            "{height}"
        );
        assert_eq!(report.status == Status::Warning, code.is_some());
        let beacon =
            with(&report, Code::Beacon).into_iter().find(|finding| finding.text.contains(&address)).unwrap();
        assert!(beacon.text.contains(&format!("from block {} on", height + 50)), "{beacon:?}");
    }
    // Unknown terms are stated to be unknown.
    world.vault.entries.clear();
    world.files = json!({ "casUpdates": [] });
    assert!(one(&world.report(), Code::TermsUnknown).text.contains("unknown"));
}

#[test]
fn a_did_has_to_be_able_to_move() {
    let mut world = World::new();
    let services = json!([{ "id": "#cohort", "type": "CASBeacon", "serviceEndpoint": format!("bitcoin:{}", output().address()) }]);
    let update = world.advance(json!([{ "op": "replace", "path": "/service", "value": services }]));
    world.singleton(&update, 10);
    assert_eq!(one(&world.report(), Code::NoSingleton).status, Status::Warning);
    world.terms.accepted = [Code::NoSingleton, Code::TermsUnknown, Code::NoBackup].into();
    assert_eq!(world.report().status, Status::Ok);
    // Keys that are elsewhere.
    let mut world = World::new();
    world.keys = Some(vec![SecretKey::from_bytes(&[99; 32]).unwrap().public_key()]);
    let report = world.report();
    assert_eq!(
        (with(&report, Code::SingletonKey).len(), one(&report, Code::NoSigningKey).status),
        (3, Status::Warning)
    );
    world.keys = None;
    assert_eq!(world.report().status, Status::Ok, "not asked");
}

#[test]
fn a_backup_has_to_be_complete() {
    let mut world = World::new();
    let update = world.note("second");
    world.vault.prepared.push(update);
    assert_eq!(one(&world.report(), Code::NoBackup).status, Status::Warning);
    world.export(1_900_000_000);
    assert_eq!(one(&world.report(), Code::Backup).status, Status::Ok);
    world.terms.max_backup_age = Some(Duration::from_secs(86_400));
    assert!(one(&world.report(), Code::BackupOld).text.contains("days ago"));
    world.terms.max_backup_age = None;
    world.round("cohort", None);
    assert!(one(&world.report(), Code::BackupIncomplete).text.contains("a part of the vault"));
    // What the chain shows is not lost with the vault.
    world.export(1_900_000_000);
    world.vault.entries[0].txid = Some(txid(1));
    assert_eq!(one(&world.report(), Code::Backup).status, Status::Ok);
    let at = Timestamp::from_secs(1_900_000_001);
    world.backup.restoration = Some(Restoration { at, exported_at: None });
    assert_eq!(one(&world.report(), Code::Restored).status, Status::Warning);
    world.export(1_900_000_002);
    assert_eq!(one(&world.report(), Code::Restored).status, Status::Ok);
}

#[test]
fn an_unreachable_chain_is_not_ok() {
    let world = World::new();
    let report = evaluate(&world.view(Err("no answer")));
    assert_eq!((report.status, report.version), (Status::Unknown, None));
    assert!(one(&report, Code::Chain).text.contains("no answer"));
}

#[test]
fn only_changes_are_events() {
    let mut world = World::new();
    let update = world.advance(json!([{ "op": "add", "path": "/note", "value": "second" }]));
    let mut changes = Changes::default();
    let codes = |notices: Vec<CheckNotice>| -> Vec<String> {
        let name = |notice: &CheckNotice| {
            let json = serde_json::to_value(notice).unwrap();
            format!("{} {}", json["event"].as_str().unwrap(), json["code"].as_str().unwrap())
        };
        notices.iter().map(name).collect()
    };
    assert_eq!(codes(changes.since(&world.report())), ["finding resolves", "finding signing-key"]);
    assert_eq!(codes(changes.since(&world.report())), [""; 0]);
    world.announce(&world.own(), update.hash(), 3);
    assert_eq!(codes(changes.since(&world.report())), ["finding young-missing-data"]);
    world.vault.prepared.push(update);
    let found = codes(changes.since(&world.report()));
    assert_eq!(found, ["finding young-version", "finding no-backup", "finding-cleared young-missing-data"]);
}
