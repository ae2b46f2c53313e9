//! Each question, with the resolver's own histories.

mod world;

use serde_json::json;

use self::world::{World, coins, id, output, txid};
use super::*;
use crate::{
    protocol::{key::SecretKey, update::add_beacon_service_patch},
    vault::{Recovered, backups::Restoration},
};

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
fn a_later_version_does_not_protect_from_an_older_conflict() {
    for patch in [
        json!({ "op": "add", "path": "/deactivated", "value": true }),
        json!({ "op": "remove", "path": "/service/3" }),
    ] {
        let mut world = World::new();
        let address = output().address().to_owned();
        let add = world.advance(add_beacon_service_patch(&world.did, "CASBeacon", &address));
        world.singleton(&add, 60);
        let other = world.note("approved in a cohort");
        let third = world.advance(json!([{ "op": "add", "path": "/note", "value": "applied" }]));
        world.singleton(&third, 50);
        world.coins.insert(address.clone(), coins(&[190]));
        let fourth = world.advance(json!([patch]));
        let (_, signal) = world.round("cohort", Some(&other));
        // The cohort's update would be compared with the document of version 3, which lists its beacon.
        world.singleton(&fourth, 40);
        let superseded = one(&world.report(), Code::SupersededUpdate).clone();
        assert_eq!((superseded.status, superseded.about.version), (Status::Warning, Some(3)), "{superseded:?}");
        // As the resolver itself has it.
        world.announce(&address, &DocumentHash::from_bytes(*signal.as_bytes()), 7);
        assert!(one(&world.report(), Code::DoesNotResolve).text.contains("LATE_PUBLISHING"));
        world.signals.pop();
        // Without a coin no member can announce it.
        world.coins.insert(address, coins(&[]));
        assert_eq!(one(&world.report(), Code::SupersededUpdate).status, Status::Ok);
    }
    // Of the newest version it is the current document that counts.
    let mut world = World::new();
    let other = world.note("approved in a cohort");
    let last = world.advance(json!([{ "op": "add", "path": "/deactivated", "value": true }]));
    world.singleton(&last, 10);
    world.round("cohort", Some(&other));
    assert_eq!(one(&world.report(), Code::SupersededUpdate).status, Status::Ok);
}

#[test]
fn what_is_in_the_mempool_is_judged_as_a_resolver_would() {
    // Its data is missing: the update itself, or the update behind an announcement.
    let mut world = World::new();
    let address = output().address().to_owned();
    let add = world.advance(add_beacon_service_patch(&world.did, "CASBeacon", &address));
    world.singleton(&add, 60);
    world.export(1_900_000_000);
    let update = world.note("third");
    let (_, signal) = world.round("cohort", Some(&update));
    world.wait(&address, &DocumentHash::from_bytes(*signal.as_bytes()));
    assert!(with(&world.report(), Code::UnconfirmedMissingData).is_empty());
    assert_eq!(world.report().updates[0].standing, UpdateStanding::InMempool);
    world.files = world.vault.sidecar(&world.did).data;
    world.files["updates"] = json!([add.value()]);
    world.vault.entries.clear();
    let report = world.report();
    let missing = one(&report, Code::UnconfirmedMissingData);
    assert_eq!((missing.status, missing.about.txid), (Status::Warning, Some(txid(1))));
    assert!(missing.text.contains(&update.hash().to_string()), "{missing:?}");

    // A second update of a version: of one that was applied, and of one that is prepared.
    let mut world = World::new();
    let other = world.note("other");
    let update = world.advance(json!([{ "op": "add", "path": "/note", "value": "second" }]));
    world.vault.prepared = vec![update.clone(), other.clone()];
    world.wait(&world.own(), other.hash());
    assert_eq!(one(&world.report(), Code::Contradiction).status, Status::Warning);
    world.wait(&world.own(), update.hash());
    let report = world.report();
    assert_eq!(one(&report, Code::Contradiction).status, Status::Problem);
    assert!(one(&report, Code::WillNotResolve).text.contains("LATE_PUBLISHING"));
    world.mempool.pop();
    world.announce(&world.own(), update.hash(), 10);
    let report = world.report();
    assert_eq!((report.status, one(&report, Code::WillNotResolve).status), (Status::Problem, Status::Problem));
    assert!(one(&report, Code::SupersededUpdate).text.contains("mempool"));

    // An update that does not fit, and what changes nothing.
    let mut world = World::new();
    let mut strange = world.note("strange").value().clone();
    strange["sourceHash"] = json!(DocumentHash::from_bytes([1; 32]));
    let strange = SignedUpdate::from_value(strange).unwrap();
    world.wait(&world.own(), strange.hash());
    world.vault.prepared.push(strange);
    assert!(one(&world.report(), Code::WillNotResolve).text.contains("INVALID_DID_UPDATE"));
    let mut world = World::new();
    let update = world.advance(json!([{ "op": "add", "path": "/note", "value": "second" }]));
    world.singleton(&update, 10);
    world.wait(&world.own(), update.hash());
    world.export(1_900_000_000);
    assert_eq!(world.report().status, Status::Ok);
}

#[test]
fn an_announced_update_is_not_superseded_by_a_statement() {
    let mut world = World::new();
    let (second, other) = (world.note("second"), world.note("other"));
    let (_, signal) = world.round("cohort", Some(&second));
    world.round("another-cohort", Some(&other));
    world.terms.superseded = vec![id("cohort")];
    assert!(with(&world.report(), Code::Contradiction).is_empty());
    world.wait(&world.own(), &DocumentHash::from_bytes(*signal.as_bytes()));
    let report = world.report();
    let found = with(&report, Code::Contradiction);
    assert!(
        found[0].text.contains("--supersede cohort states") && found[0].about.txid == Some(txid(0)),
        "{found:?}"
    );
    assert_eq!((found.len(), found[1].status), (2, Status::Problem));
    // `singleton` is for those that were only prepared.
    let mut world = World::new();
    world.vault.prepared = vec![second.clone(), other];
    world.terms.superseded = vec![id("singleton")];
    assert!(world.report().updates.is_empty());
    world.vault.recovered.push(Recovered::update(&world.did, &second));
    assert_eq!(world.report().updates[0].hash, *second.hash());
}

#[test]
fn an_expired_update_cannot_apply() {
    let mut world = World::new();
    let mut update = world.note("second").value().clone();
    for (expires, expected) in [("2030-03-17T17:46:40Z", 0), ("2030-03-17T17:46:39Z", 1)] {
        update["proof"]["expires"] = json!(expires);
        world.vault.prepared = vec![SignedUpdate::from_value(update.clone()).unwrap()];
        let report = world.report();
        let found = with(&report, Code::CannotApply);
        // The signature is not over `expires`; the median time of the tip is 1900000000.
        assert_eq!(
            found.iter().filter(|finding| finding.text.contains("expired")).count(),
            expected,
            "{report:#?}"
        );
    }
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
    // A backup that was too old shows when the chain has more than it.
    world.backup.restoration = Some(Restoration { at, exported_at: Some(at) });
    assert_eq!(one(&world.report(), Code::Restored).status, Status::Ok);
    world.announce(&world.own(), &DocumentHash::from_bytes([1; 32]), 1);
    assert!(one(&world.report(), Code::Restored).text.contains("too old"));
}

#[test]
fn an_unreachable_chain_is_not_ok() {
    let world = World::new();
    let report = evaluate(&world.view(Err("no answer")));
    assert_eq!((report.status, report.version), (Status::Unknown, None));
    assert!(one(&report, Code::Chain).text.contains("no answer"));
}

fn codes(notices: Vec<CheckNotice>) -> Vec<String> {
    let name = |notice: &CheckNotice| {
        let json = serde_json::to_value(notice).unwrap();
        format!("{} {}", json["event"].as_str().unwrap(), json["code"].as_str().unwrap())
    };
    notices.iter().map(name).collect()
}

#[test]
fn what_could_not_be_asked_is_not_cleared() {
    let mut world = World::new();
    let mut changes = Changes::default();
    let (second, other) = (world.note("second"), world.note("other"));
    world.round("cohort", Some(&second));
    world.round("another-cohort", Some(&other));
    let found = codes(changes.since(&world.report()));
    assert!(found.contains(&"finding contradiction".to_owned()), "{found:?}");
    // The chain does not answer: only that is new. When it answers again, only that is cleared.
    let unknown = evaluate(&world.view(Err("no answer")));
    assert_eq!(codes(changes.since(&unknown)), ["finding chain"]);
    assert_eq!(codes(changes.since(&unknown)), [""; 0]);
    assert_eq!(codes(changes.since(&world.report())), ["finding-cleared chain"]);
    // The DID does not resolve, so that its updates are not compared.
    world.announce(&world.own(), &DocumentHash::from_bytes([1; 32]), 7);
    let found = codes(changes.since(&world.report()));
    assert_eq!(found, ["finding does-not-resolve", "finding missing-data"]);
    world.signals.pop();
    let found = codes(changes.since(&world.report()));
    let resolves = ["finding resolves", "finding-cleared does-not-resolve", "finding-cleared missing-data"];
    assert_eq!(found, resolves);
    world.vault.entries.pop();
    let found = codes(changes.since(&world.report()));
    assert_eq!(found, ["finding-cleared contradiction"]);
}

#[test]
fn every_update_and_each_of_its_steps_is_an_event() {
    let mut world = World::new();
    let mut changes = Changes::default();
    let pending =
        |notices: Vec<CheckNotice>| codes(notices).iter().filter(|code| code.ends_with("-update")).count();
    // Two of one version, without a cohort.
    world.vault.prepared = vec![world.note("second"), world.note("other")];
    assert_eq!(pending(changes.since(&world.report())), 2);
    let second = world.vault.prepared[0].clone();
    world.round("cohort", Some(&second));
    assert_eq!(pending(changes.since(&world.report())), 1, "approved");
    world.vault.entries[0].txid = Some(txid(50));
    assert_eq!(pending(changes.since(&world.report())), 1, "signed");
    world.wait(&world.own(), second.hash());
    assert_eq!(pending(changes.since(&world.report())), 1, "in the mempool");
    assert_eq!(pending(changes.since(&world.report())), 0);
    // Another error, of the same question.
    let mut world = World::new();
    let mut changes = Changes::default();
    let second = world.advance(json!([{ "op": "add", "path": "/note", "value": "second" }]));
    world.announce(&world.own(), second.hash(), 20);
    changes.since(&world.report());
    let conflict = World::new().note("other");
    world.vault.prepared = vec![second, conflict.clone()];
    world.announce(&world.own(), conflict.hash(), 10);
    let found = codes(changes.since(&world.report()));
    assert!(found.contains(&"finding does-not-resolve".to_owned()), "{found:?}");
    assert!(!found.contains(&"finding-cleared does-not-resolve".to_owned()), "{found:?}");
}

#[test]
fn only_changes_are_events() {
    let mut world = World::new();
    let update = world.advance(json!([{ "op": "add", "path": "/note", "value": "second" }]));
    let mut changes = Changes::default();
    assert_eq!(codes(changes.since(&world.report())), ["finding resolves", "finding signing-key"]);
    assert_eq!(codes(changes.since(&world.report())), [""; 0]);
    world.announce(&world.own(), update.hash(), 3);
    assert_eq!(codes(changes.since(&world.report())), ["finding young-missing-data"]);
    world.vault.prepared.push(update);
    let found = codes(changes.since(&world.report()));
    assert_eq!(found, ["finding young-version", "finding no-backup", "finding-cleared young-missing-data"]);
}
