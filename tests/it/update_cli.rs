//! The command `update`: what it prepares, resolvers apply.

use std::fs;

use crate::{
    bitcoind_support::beacon::Beacon,
    resolve_cli::{World, ran},
    support::{Run, Service, contains, copy, did_of, identity, path, run, run_with},
};
use bitcoin::{Address, ScriptBuf, Transaction, consensus::encode::deserialize_hex};
use btcr2_aggregation::{
    actors::{
        journal::{Journal, Record, StreamId},
        state::State,
    },
    protocol::{
        did::Did,
        document::{InitialBeacon, InitialBeaconKind},
        id::CohortId,
        key::SecretKey,
        network::Network,
        output::{Change, SingletonAnnouncement},
        update::SignedUpdate,
    },
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::{Value, json};

const SECRET: &str = "c90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74020bbea63b14e5c9";

/// A controller with an identity file and a state directory.
struct Controller {
    world: World,
    identity: String,
    state: String,
    did: String,
    count: usize,
}

impl Controller {
    async fn new(name: &str, arguments: &[&str]) -> Option<Self> {
        let world = World::core(&format!("update-{name}")).await?;
        let (identity, state) = (path(&world.directory, "identity"), path(&world.directory, "state"));
        let made = ["identity", "new", "--secret-env", "SECRET", "--out", &identity];
        run_with(&[&made, arguments].concat(), &[("SECRET", SECRET)]).succeeded();
        Some(Self { did: did_of(&identity), world, identity, state, count: 0 })
    }

    fn own(&self, kind: InitialBeaconKind) -> InitialBeacon {
        InitialBeacon::new(SecretKey::from_hex(SECRET).unwrap().public_key(), Network::Regtest, kind)
    }

    async fn run(&self, arguments: &[&str]) -> Run {
        let fixed = ["--identity", &self.identity, "--chain", &self.world.source, "--min-conf", "1"];
        ran(&[&["update", &self.did], arguments, &fixed].concat()).await
    }

    /// The update in a file, and what is printed of it.
    async fn update(&mut self, arguments: &[&str]) -> (String, Value) {
        self.count += 1;
        let file = path(&self.world.directory, &format!("update-{}", self.count));
        let more = ["--state", &self.state, "--out", &file, "--json"];
        let printed = self.run(&[arguments, &more].concat()).await.succeeded();
        let printed: Value = serde_json::from_str(&printed.stdout).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&fs::read_to_string(&file).unwrap()).unwrap(), printed);
        (file, printed)
    }

    async fn refused(&self, arguments: &[&str], why: &[&str]) {
        contains(self.run(arguments).await.usage(), why);
    }

    /// Announces the update of that file by `singleton`, in a block.
    async fn announce(&mut self, file: &str) {
        let coin = self.world.coin(&self.own(InitialBeaconKind::P2wpkh).script_pubkey()).await;
        let coin = format!("{}:{}", coin.outpoint, coin.value.to_sat());
        let fixed = ["singleton", "--identity", &self.identity, "--state", &self.state, "--update", file];
        let run = ran(&[&fixed, &["--coin", &coin, "--sign", "--json"][..]].concat()).await.succeeded();
        let shown: Value = serde_json::from_str(&run.stdout).unwrap();
        let signed: Transaction = deserialize_hex(shown["transaction"]["signedHex"].as_str().unwrap()).unwrap();
        self.world.mined(signed).await;
    }

    async fn document(&self, arguments: &[&str]) -> Value {
        let run = self.world.resolve(&self.did, &[&["--min-conf", "1"], arguments].concat()).await.succeeded();
        serde_json::from_str(&run.stdout).unwrap()
    }

    /// Prepares and announces an update: the document to which it leads is the one that resolvers give.
    async fn step(&mut self, arguments: &[&str]) -> Value {
        let (file, printed) = self.update(arguments).await;
        self.announce(&file).await;
        let document = self.document(&["--sidecar", &file]).await;
        assert_eq!(document, printed["targetDocument"], "{arguments:?}");
        assert_eq!(document, self.document(&["--state", &self.state]).await);
        printed
    }
}

fn names(document: &Value, list: &str) -> Vec<String> {
    let members = document[list].as_array().unwrap().iter();
    let id = |member: &Value| member.as_str().or_else(|| member["id"].as_str()).unwrap().to_owned();
    members.map(|member| id(member).split_once('#').unwrap().1.to_owned()).collect()
}

#[actix_rt::test]
async fn every_verb_leads_to_the_intended_document() {
    let Some(mut alice) = Controller::new("verbs", &[]).await else { return };
    let cohort = Beacon::new("update", 2, 144).output.address().to_owned();

    let printed = alice.step(&["add-key", "--id", "phone", "--purpose", "authentication"]).await;
    let document = &printed["targetDocument"];
    assert_eq!(printed["versionId"], "2");
    assert_eq!(names(document, "authentication"), ["initialKey", "phone"]);
    assert_eq!(names(document, "capabilityInvocation"), ["initialKey"]);

    let endpoint = ["--endpoint", "https://files.example"];
    let printed = alice.step(&[&["add-service", "files", "--type", "Files"][..], &endpoint].concat()).await;
    assert_eq!(printed["targetDocument"]["service"][3]["serviceEndpoint"], "https://files.example");

    let printed = alice.step(&["add-beacon", &cohort]).await;
    let added = &printed["targetDocument"]["service"][4];
    assert_eq!(
        (&added["type"], &added["serviceEndpoint"]),
        (&json!("CASBeacon"), &json!(format!("bitcoin:{cohort}")))
    );
    // It is not announced where it adds the beacon.
    let places: Vec<_> = printed["announceAt"].as_array().unwrap().iter().map(|at| at["address"].clone()).collect();
    let own = InitialBeaconKind::ALL.map(|kind| json!(alice.own(kind).address().to_string()));
    assert_eq!(places, own);

    let printed = alice.step(&["remove-service", "files"]).await;
    assert_eq!(names(&printed["targetDocument"], "service")[3..], ["beacon-cas"]);
    // By its id, and by its address.
    alice.step(&["remove-beacon", "initialP2PKH"]).await;
    let printed = alice.step(&["remove-beacon", &cohort]).await;
    assert_eq!(names(&printed["targetDocument"], "service"), ["initialP2WPKH", "initialP2TR"]);

    let patch = alice.world.file("patch", &json!([{ "op": "add", "path": "/note", "value": "by hand" }]));
    let printed = alice.step(&["--patch", &patch]).await;
    assert_eq!(printed["targetDocument"]["note"], "by hand");

    // The key that signs from now on is the new one, which is found by the document.
    let printed = alice.step(&["rotate-key"]).await;
    assert!(printed["verificationMethod"].as_str().unwrap().ends_with("#initialKey"));
    let document = &printed["targetDocument"];
    assert_eq!(names(document, "verificationMethod"), ["key-9", "phone"]);
    assert_eq!(names(document, "capabilityInvocation"), ["key-9"]);
    let notes = printed["notes"].to_string();
    contains(&notes, &["can no longer sign updates", &alice.own(InitialBeaconKind::P2wpkh).address().to_string()]);
    let printed = alice.step(&["remove-key", "phone"]).await;
    assert!(printed["verificationMethod"].as_str().unwrap().ends_with("#key-9"));
    assert_eq!(names(&printed["targetDocument"], "authentication"), ["key-9"]);
    let shown = run(&["identity", "show", &alice.identity, "--json"]).succeeded().stdout;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        (&shown["laterKeys"][0]["forVersion"], &shown["laterKeys"][1]["forVersion"]),
        (&json!(2), &json!(9))
    );

    alice.step(&["deactivate"]).await;
    alice.refused(&["rotate-key", "--state", &alice.state], &["deactivated, by version 11"]).await;
}

#[actix_rt::test]
async fn one_update_of_a_version_leaves_a_state_directory() {
    let Some(mut alice) = Controller::new("state", &[]).await else { return };
    let state = ["--state", alice.state.as_str()];
    let rotate = [&["rotate-key"][..], &state].concat();
    // Without --out nothing is recorded, and no key is made.
    let before = fs::read(&alice.identity).unwrap();
    let shown = alice.run(&rotate).await.succeeded();
    contains(
        &shown.stdout,
        &["version    1 -> 2", "-       \"id\": ", "#initialKey\"", "+       \"id\": ", "#key-2\""],
    );
    contains(&shown.stdout, &["Beacons of your current document", "(#initialP2TR), of your own key", "rule R-4"]);
    contains(&shown.stderr, &["nothing is written: --out FILE"]);
    assert!(!shown.stdout.contains("\nupdate "), "the hash of another signature: {shown:?}");
    assert!(fs::read(&alice.identity).unwrap() == before && !std::path::Path::new(&alice.state).exists());

    let (state, rotate) = (alice.state.clone(), ["rotate-key"]);
    let (_, first) = alice.update(&rotate).await;
    // The same call gives the same update, with the same key.
    let (file, again) = alice.update(&rotate).await;
    assert_eq!(first["update"], again["update"]);
    let json = ["--state", state.as_str(), "--json"];
    let other = [&["deactivate"][..], &json].concat();
    alice.refused(&other, &["another update of version 2", "--supersede"]).await;
    alice.refused(&["deactivate", "--state", &state], &["another update of version 2"]).await;
    // What is superseded once stays so. It is a statement about the chain, so that it is made in a copy here.
    let elsewhere = format!("{state}.copy");
    copy(&state, &elsewhere);
    let again = ["deactivate", "--json", "--state", &elsewhere];
    alice.run(&[&again[..], &["--supersede", "singleton"]].concat()).await.succeeded();
    alice.run(&again).await.succeeded();
    alice.refused(&["rotate-key", "--json", "--state", &elsewhere], &["another update of version 2"]).await;
    let list = run(&["vault", "list", "--state", &elsewhere]).succeeded().stdout;
    contains(&list, &["superseded", "possibly announced"]);

    // An update in a block that is not deep enough counts.
    alice.announce(&file).await;
    let deep = ["update", &alice.did, "deactivate", "--identity", &alice.identity, "--chain", &alice.world.source];
    let refused = ran(&[&deep[..], &["--state", &state, "--json"]].concat()).await;
    contains(refused.usage(), &["an update to version 2 is in a block", "--min-conf 1"]);
}

#[actix_rt::test]
async fn an_update_that_ends_the_did_is_refused() {
    let Some(alice) = Controller::new("refused", &[]).await else { return };
    alice.refused(&["remove-key", "initialKey"], &["no key is left", "--allow-risky-document"]).await;
    let patch = alice.world.file("patch", &json!([{ "op": "replace", "path": "/service", "value": [] }]));
    alice.refused(&["--patch", &patch], &["there is no beacon", "--allow-risky-document"]).await;
    let allowed = alice.run(&["--patch", &patch, "--allow-risky-document", "--json"]).await.succeeded();
    contains(&allowed.stderr, &["without --state DIR nothing remembers this update"]);
    let again = alice.own(InitialBeaconKind::P2tr).address().to_string() + ",singleton";
    alice.refused(&["add-beacon", &again], &["twice"]).await;
    let patch = alice.world.file("patch", &json!([{ "op": "add", "path": "/alsoKnownAs", "value": 1 }]));
    alice.refused(&["--patch", &patch], &["does not conform", "/alsoKnownAs"]).await;
    let patch = alice.world.file("patch", &json!([]));
    alice.refused(&["--patch", &patch], &["nothing to announce"]).await;

    alice.refused(&["--patch", &patch, "deactivate"], &["give one of them"]).await;
    alice.refused(&[], &["--patch FILE or a command"]).await;
    alice.refused(&["remove-key", "other"], &["the document has no key", "#other"]).await;
    alice.refused(&["remove-beacon", "other"], &["the document has no beacon other"]).await;
    alice.refused(&["remove-service", "initialP2TR"], &["remove-beacon initialP2TR"]).await;
    alice.refused(&["add-key", "--id", "initialKey"], &["the document has", "#initialKey already"]).await;
    alice.refused(&["add-beacon", "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq"], &["another network"]).await;
    alice.refused(&["deactivate", "--out", &patch], &["it exists"]).await;
    alice.refused(&["deactivate", "--announce-by", "singleton"], &["--out FILE"]).await;

    // A key that the document does not authorize.
    let key = [("KEY", "11".repeat(32)), ("NEW", "22".repeat(32))];
    let variables: Vec<_> = key.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let fixed = ["--chain", &alice.world.source, "--secret-env", "KEY"];
    let call = |verb: &'static str| run_with(&[&["update", &alice.did, verb], &fixed[..]].concat(), &variables);
    contains(call("deactivate").usage(), &["no key of --secret-env KEY", "#initialKey"]);
    let other = path(&alice.world.directory, "other");
    run(&["identity", "new", "--out", &other]).succeeded();
    let wrong = run(&["update", &alice.did, "deactivate", "--chain", &alice.world.source, "--identity", &other]);
    contains(wrong.usage(), &["is the identity of", &did_of(&other)]);
}

#[actix_rt::test]
async fn the_command_for_a_singleton_is_printed() {
    let Some(mut alice) = Controller::new("announce", &[]).await else { return };
    let file = path(&alice.world.directory, "update");
    let arguments = ["rotate-key", "--state", &alice.state, "--out", &file, "--announce-by", "singleton"];
    let printed = alice.run(&arguments).await.succeeded();
    let address = alice.own(InitialBeaconKind::P2wpkh).address().to_string();
    let command = format!("singleton --identity {} --update {file} --state {}", alice.identity, alice.state);
    contains(&printed.stderr, &[&address, &command, "--min-conf 1 --send --wait", "#initialP2TR bcrt1p"]);
    contains(&printed.stderr, &["the new key is in"]);
    alice.announce(&file).await;
    assert_eq!(names(&alice.document(&["--sidecar", &file]).await, "capabilityInvocation"), ["key-2"]);
    // A later update is checked against the document in its file: the initial one does not authorize its key.
    let (file, _) =
        alice.update(&["add-service", "files", "--type", "Files", "--endpoint", "https://files.example"]).await;
    let run = run(&["singleton", "--did", &alice.did, "--update", &file]).succeeded();
    contains(&run.stdout, &["initialP2WPKH"]);
    let mut update: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    update["sourceDocument"]["note"] = json!("another one");
    let file = alice.world.file("changed", &update);
    contains(crate::support::run(&["singleton", "--did", &alice.did, "--update", &file]).usage(), &["sourceHash"]);
}

#[actix_rt::test]
async fn an_external_did_lives_from_genesis_to_its_second_version() {
    let cohort = Beacon::new("external", 2, 144).output.address().to_owned();
    let Some(bob) = Controller::new("external", &["--external", "--beacon", &format!("{cohort},smt")]).await else {
        return;
    };
    assert!(bob.did.starts_with("did:btcr2:x1"));
    // The identity file has the genesis document.
    let file = path(&bob.world.directory, "update");
    let printed = bob.run(&["rotate-key", "--out", &file, "--announce-by", "singleton"]).await.succeeded();
    let own = bob.own(InitialBeaconKind::P2wpkh);
    contains(&printed.stdout, &[&format!("SMTBeacon {cohort}"), &format!("SingletonBeacon {} ", own.address())]);
    contains(&printed.stderr, &[&format!("#singleton {}", own.address()), "--send --wait"]);
    let written: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(names(&written["sourceDocument"], "service"), ["beacon-smt", "singleton"]);

    let mut bob = bob;
    let script: ScriptBuf =
        own.address().to_string().parse::<Address<_>>().unwrap().assume_checked().script_pubkey();
    let coin = bob.world.coin(&script).await;
    let update = SignedUpdate::from_value(written["update"].clone()).unwrap();
    let rate = bitcoin::FeeRate::from_sat_per_vb_u32(2);
    let announcement = SingletonAnnouncement::new(own, &[coin], &update, rate, &Change::Beacon).unwrap();
    let key = SecretKey::from_hex(SECRET).unwrap();
    bob.world.mined(announcement.sign(&key, &mut ChaCha20Rng::seed_from_u64(1)).unwrap()).await;
    // From the file alone.
    assert_eq!(bob.document(&["--sidecar", &file]).await, written["targetDocument"]);
    // The next update needs it too, and is signed with the new key.
    let next =
        bob.run(&["add-service", "a", "--type", "A", "--endpoint", "https://a.example", "--sidecar", &file]).await;
    contains(&next.succeeded().stdout, &["version    2 -> 3", "#key-2, a key of"]);
}

#[test]
fn an_external_did_has_a_singleton_beacon_unless_refused() {
    let directory = crate::support::directory("update-external");
    let cohort = Beacon::new("minted", 2, 144).output.address().to_owned();
    let new = |name: &str, more: &[&str]| {
        let out = path(&directory, name);
        run(&[&["identity", "new", "--external", "--out", &out], more].concat())
    };
    let made = new("with", &["--beacon", &cohort]).succeeded();
    contains(
        &made.stderr,
        &[&format!("CASBeacon {cohort}"), "SingletonBeacon bcrt1q", "its cohort", "--no-singleton"],
    );
    let bare = new("without", &["--beacon", &cohort, "--no-singleton"]).succeeded();
    contains(&bare.stderr, &["warning: no Singleton beacon"]);
    assert!(!bare.stderr.contains("SingletonBeacon"), "{bare:?}");
    contains(new("nothing", &[]).usage(), &["genesis document", "--beacon ADDRESS"]);
    contains(
        new("mainnet", &["--beacon", "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq"]).usage(),
        &["another network"],
    );
    contains(new("kind", &["--beacon", &format!("{cohort},map")]).usage(), &["cas, smt or singleton"]);
    let twice = new("twice", &["--beacon", &cohort, "--beacon", &cohort]);
    assert!(twice.status == Some(1) && twice.stderr.contains("twice"), "{twice:?}");
}

/// An unreadable session may have an update that its cohort announces.
#[actix_rt::test]
async fn a_session_that_cannot_be_read_stops_what_signs() {
    let Some(mut alice) = Controller::new("unreadable", &[]).await else { return };
    let change = ["add-service", "blog", "--type", "Blog", "--endpoint", "https://blog.example"];
    alice.update(&change).await;
    let did = Did::parse(&alice.did).unwrap();
    let stream = StreamId::of_session(&did, &did, &CohortId::parse("damaged").unwrap());
    let state = State::open(&alice.state).unwrap();
    state.journal().append(&stream, vec![Record::from_json(&b"{}"[..])]).await.unwrap();
    state.close().await;
    let out = path(&alice.world.directory, "out");
    let refused = alice.run(&[&change[..], &["--state", &alice.state, "--out", &out]].concat()).await;
    assert_eq!(refused.status, Some(1), "{refused:?}");
    contains(&refused.stderr, &["session of cohort damaged cannot be read", "state export damaged --forget"]);
    // Its controller takes it out.
    let forgotten = path(&alice.world.directory, "forgotten");
    ran(&["state", "export", "damaged", "--forget", "--state", &alice.state, "--out", &forgotten])
        .await
        .succeeded();
    alice.update(&change).await;
}

#[actix_rt::test]
async fn a_service_is_found_by_the_entry_in_its_document() {
    let Some(mut operator) = Controller::new("service-entry", &[]).await else { return };
    let directory = operator.world.directory.clone();
    copy(&operator.identity, &path(&directory, "service"));
    let service = Service::once(&directory, 1, &[]);
    assert_eq!(service.did, operator.did);
    let entry = ["identity", "service-entry", &operator.identity, "--url", &service.url];
    let printed = run(&[&entry[..], &["--relay", "wss://relay.example"]].concat()).succeeded();
    let entry: Value = serde_json::from_str(&printed.stdout).unwrap();
    let endpoint = json!({ "uri": service.url, "relays": ["wss://relay.example"] });
    assert_eq!(
        entry,
        json!({
            "id": format!("{}#aggregation", operator.did), "type": "Btcr2AggregationService", "serviceEndpoint": endpoint,
        })
    );
    // The printed command, with the ends that this test's world has.
    let (endpoint, kind) = (endpoint.to_string(), "Btcr2AggregationService");
    let adds = ["add-service", "aggregation", "--type", kind, "--endpoint", &endpoint];
    contains(&printed.stderr, &[&format!("add-service aggregation --type {kind} --endpoint '{endpoint}'")]);
    operator.step(&adds).await;
    let document = operator.document(&["--state", &operator.state]).await;
    assert!(document["service"].as_array().unwrap().contains(&entry), "{document:#}");
    // A controller who knows the DID.
    let file = operator.world.file("document", &document);
    let read = run(&["identity", "service-entry", "--read", &file]).succeeded();
    let expected = format!("--service {} --relay wss://relay.example --service-did {}", service.url, operator.did);
    assert_eq!(read.stdout.trim(), expected);
    let json = run(&["identity", "service-entry", "--read", &file, "--json"]).succeeded();
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&json["did"], &json["url"]), (&json!(operator.did), &json!(service.url)));
    let member = identity(&directory, "member");
    let found = ["--service-did", json["did"].as_str().unwrap(), "--decline"];
    let joined = crate::support::join(json["url"].as_str().unwrap(), &member, &found);
    assert_eq!(joined.end().0, Some(0));
    // A document without it, and entries that are none.
    let none = run(&[
        "identity",
        "service-entry",
        "--read",
        &operator.world.file("other", &json!({ "id": operator.did })),
    ]);
    contains(none.usage(), &["no usable service"]);
    for wrong in
        [["--url", "javascript:x"], ["--relay", "https://relay.example"], ["--url", "https://u:p@a.example"]]
    {
        let refused = run(&[&["identity", "service-entry", &operator.identity][..], &wrong].concat());
        contains(refused.usage(), &[wrong[0], "expected"]);
    }
}
