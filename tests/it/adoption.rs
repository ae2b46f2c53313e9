//! The command `beacon adopt`: a cohort's beacon comes into the document of a DID.

use std::fs;

use btcr2_aggregation::protocol::{document::InitialBeaconKind, hash::SignalBytes};
use serde_json::{Value, json};

use crate::{
    bitcoind_support::beacon::Beacon,
    resolve_cli::ran,
    singleton_chain::Controller,
    support::{Run, Service, contains, identity, path},
};

impl Controller {
    /// `beacon adopt` of this cohort.
    async fn adopt(&self, cohort: &str, arguments: &[&str]) -> Run {
        let fixed = ["--identity", &self.identity, "--chain", &self.world.source, "--min-conf", "1"];
        ran(&[&["beacon", "adopt", cohort, "--state", &self.state], arguments, &fixed].concat()).await
    }

    /// The same, announced and waited for.
    async fn adopted(&self, cohort: &str, out: &str, arguments: &[&str]) -> Run {
        let send = ["--out", out, "--send", "--wait", "1", "--chain-poll", "100ms"];
        self.while_mining(self.adopt(cohort, &[&send, arguments].concat())).await.succeeded()
    }
}

fn services(document: &Value) -> Vec<(String, String)> {
    let service = |service: &Value| {
        let text = |field: &str| service[field].as_str().unwrap().to_owned();
        (text("type"), text("serviceEndpoint"))
    };
    document["service"].as_array().unwrap().iter().map(service).collect()
}

#[actix_rt::test]
async fn a_member_adopts_the_beacon_of_its_cohort() {
    let Some(mut alice) = Controller::new("adoption", &[]).await else { return };
    let directory = alice.world.directory.clone();
    let files = path(&directory, "files");
    let (own, state, out) = (alice.identity.clone(), alice.state.clone(), files.clone());
    let joined = actix_rt::task::spawn_blocking(move || {
        let service = Service::once(&directory, 1, &["--beacon", "smt"]);
        service.join(&own, &["--decline", "--state", &state, "--out", &out]).result()
    });
    let joined = joined.await.unwrap();
    let cohort = joined["cohortId"].as_str().unwrap().to_owned();
    let file = fs::read_dir(&files).unwrap().next().unwrap().unwrap().path().display().to_string();
    let record: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let address = record["cohort"]["beaconAddress"].as_str().unwrap().to_owned();

    // What it means, and nothing else: nothing is written, recorded or sent.
    let shown = alice.adopt(&cohort, &[]).await.succeeded();
    contains(
        &shown.stderr,
        &[&format!("SMTBeacon {address}"), "keys of 1 members", "permanently", "docs/trust.md"],
    );
    contains(&shown.stdout, &["+       \"type\": \"SMTBeacon\"", &address, "version    1 -> 2"]);
    let unwritten = alice.adopt(&cohort, &["--send"]).await;
    contains(unwritten.usage(), &["give --out FILE"]);

    // Without a coin the update is there, and the way on.
    let first = path(&alice.world.directory, "first");
    let poor = alice.adopt(&cohort, &["--out", &first, "--send"]).await;
    assert_eq!(poor.status, Some(1), "{poor:?}");
    contains(&poor.stderr, &["announces nothing twice", "singleton --identity", "no coin can be spent"]);

    let script = alice.script(InitialBeaconKind::P2pkh);
    alice.world.coin(&script).await;
    let second = path(&alice.world.directory, "second");
    let adopted = alice.adopted(&cohort, &second, &[]).await;
    contains(&adopted.stderr, &["confirmed    ", "1 blocks deep"]);
    // The same update as before: one of a version.
    let update = |file: &str| -> Value {
        let written: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        written["update"].clone()
    };
    assert_eq!(update(&first), update(&second));
    let listed = (String::from("SMTBeacon"), format!("bitcoin:{address}"));
    assert_eq!(services(&alice.document(&[]).await)[3], listed);

    // Once more there is nothing to do, also from the file.
    for source in [&cohort, &file] {
        let again = alice.adopt(source, &["--json"]).await.succeeded();
        let again: Value = serde_json::from_str(&again.stdout).unwrap();
        assert_eq!((&again["versionId"], &again["listed"]["address"]), (&json!("2"), &json!(address)));
    }
    assert!(alice.world.blocks.mempool().await.is_empty());

    // A DID that does not exist yet begins with it.
    let minting = ran(&["beacon", "adopt", &file]).await.succeeded();
    contains(&minting.stdout, &[&format!("identity new --external --beacon {address},smt --network regtest")]);

    // What does not fit is refused.
    contains(alice.adopt(&file, &["--type", "cas"]).await.usage(), &["the cohort's beacon is a SMTBeacon"]);
    contains(alice.adopt("unknown", &[]).await.usage(), &["nothing is stored of cohort unknown"]);
    let mut changed = record.clone();
    changed["cohort"]["beaconAddress"] = json!(alice.world.directory.display().to_string());
    let changed = alice.world.file("changed", &changed);
    contains(alice.adopt(&changed, &[]).await.usage(), &["it was changed"]);
    // Another tree is another address, which the file states as well; another type is not that of her own record.
    let mut tree = record.clone();
    tree["cohort"]["output"] = json!(Beacon::new("adoption tree", 2, 7).output);
    tree["cohort"].as_object_mut().unwrap().remove("beaconAddress");
    let tree = alice.world.file("tree", &tree);
    contains(alice.adopt(&tree, &[]).await.usage(), &["the terms in it", "it was changed"]);
    let mut kind = record.clone();
    kind["cohort"]["conditions"]["beacon_type"] = json!("CASBeacon");
    let kind = alice.world.file("kind", &kind);
    contains(alice.adopt(&kind, &[]).await.usage(), &["another address or type of beacon"]);
    let other = identity(&alice.world.directory, "other");
    let foreign = ["beacon", "adopt", &file, "--identity", &other, "--chain", &alice.world.source];
    contains(ran(&foreign).await.usage(), &["is the record of", &alice.did]);
}

#[actix_rt::test]
async fn the_update_that_a_cohort_had_is_the_one_that_adopts() {
    let Some(mut dora) = Controller::new("adoption-known", &[]).await else { return };
    let directory = dora.world.directory.clone();
    let (own, state) = (dora.identity.clone(), dora.state.clone());
    // Submitted in the cohort itself, where no resolver looks yet.
    let patch_of = |address: &str| {
        let service = json!({ "id": format!("{}#mine", dora.did), "type": "CASBeacon", "serviceEndpoint": format!("bitcoin:{address}") });
        json!([{ "op": "add", "path": "/service/-", "value": service }])
    };
    let cohort = Beacon::new("adoption known", 2, 144);
    let patch = dora.world.file("patch", &patch_of(cohort.output.address()));
    let joined = actix_rt::task::spawn_blocking(move || {
        let service = Service::once(&directory, 1, &[]);
        service.join(&own, &["--update", &patch, "--state", &state, "--allow-unlisted-beacon"]).result()
    });
    let joined = joined.await.unwrap();
    let file = dora.world.file("output.json", &json!({ "cohortId": "known", "output": cohort.output }));
    let script = dora.script(InitialBeaconKind::P2tr);
    dora.world.coin(&script).await;
    let out = path(&dora.world.directory, "known");
    let adopted = dora.adopted(&file, &out, &["--type", "cas", "--allow-risky-document"]).await;
    contains(&adopted.stderr, &["that one is announced, and no other"]);
    let written: Value = serde_json::from_str(&fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(written["update"], joined["sidecar"]["updates"][0]);
    assert_eq!(services(&dora.document(&[]).await).len(), 4);
}

#[actix_rt::test]
async fn earlier_signals_of_an_adopted_beacon_do_not_count() {
    let started = Beacon::new("adoption external", 2, 144);
    let Some(mut bob) =
        Controller::new("adoption-external", &["--external", "--beacon", started.output.address()]).await
    else {
        return;
    };
    // Another cohort has announced before; an operator's file states everything but the type.
    let cohort = Beacon::new("adoption later", 3, 144);
    bob.world.announce(&cohort, SignalBytes::from_bytes([9; 32])).await;
    let file = bob.world.file("output.json", &json!({ "cohortId": "later", "output": cohort.output }));
    contains(bob.adopt(&file, &[]).await.usage(), &["give --type cas or --type smt"]);
    let minting = ran(&["beacon", "adopt", &file, "--type", "cas", "--chain", &bob.world.source]).await.succeeded();
    contains(&minting.stderr, &["in blocks already: 1. A DID", "CAS Announcement of each"]);

    let script = bob.script(InitialBeaconKind::P2wpkh);
    bob.world.coin(&script).await;
    let out = path(&bob.world.directory, "adoption");
    let outsider = bob.adopt(&file, &["--type", "cas"]).await;
    contains(outsider.usage(), &["you are not one of its members", "--allow-risky-document"]);
    let adopted = bob.adopted(&file, &out, &["--type", "cas", "--id", "later", "--allow-risky-document"]).await;
    contains(
        &adopted.stderr,
        &[
            "you are not one of its members",
            "all 3 members together; any 2 of them; the operator's key",
            "in blocks already: 1. They do not count",
        ],
    );
    // Without the data of the earlier signal.
    let document = bob.document(&["--sidecar", &out]).await;
    let own = format!("bitcoin:{}", cohort.output.address());
    assert_eq!(services(&document).last().unwrap(), &("CASBeacon".to_owned(), own));
    // As another type its signals would be misread.
    let sidecar = ["--sidecar", out.as_str()];
    let other = bob.adopt(&file, &[&["--type", "smt"][..], &sidecar].concat()).await;
    contains(other.usage(), &["as CASBeacon", "Remove that one first"]);
    let again = bob.adopt(&file, &[&["--type", "cas"][..], &sidecar].concat()).await.succeeded();
    contains(&again.stdout, &["lists CASBeacon", "there is nothing to do"]);
}

#[actix_rt::test]
async fn a_document_without_singleton_beacons_cannot_adopt() {
    let started = Beacon::new("adoption none", 2, 144);
    let arguments = ["--external", "--beacon", started.output.address(), "--no-singleton"];
    let Some(carol) = Controller::new("adoption-none", &arguments).await else { return };
    let cohort = Beacon::new("adoption other", 2, 144);
    let file = carol.world.file("output.json", &json!({ "cohortId": "other", "output": cohort.output }));
    let refused = carol.adopt(&file, &["--type", "smt"]).await;
    contains(refused.usage(), &["has no Singleton beacon", "identity new --external"]);
}
