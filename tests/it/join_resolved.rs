//! A DID that lives by cohorts: what `join` announces, `resolve` finds, and what it would not find is not announced.

use std::{fs, path::PathBuf};

use crate::{
    bitcoind_support::{TestChain, faucet::Faucet},
    resolve_cli::ran,
    support::{Program, Run, Service, cohort, contains, did_of, directory, identity, join, path, verify::text},
};
use bitcoin::{Address, Amount, FeeRate, address::NetworkUnchecked};
use btcr2_aggregation::{
    actors::runtime::Randomness,
    protocol::{
        document::{InitialBeacon, InitialBeaconKind},
        key::SecretKey,
        network::Network,
        output::{Change, Coin, SingletonAnnouncement},
        update::SignedUpdate,
    },
};
use serde_json::{Value, json};

/// The confirmations that count here.
const DEPTH: u32 = 2;

/// A node, a service that forms cohorts of two, and its members: alice, who announces, and bob, who declines.
struct Place {
    blocks: TestChain,
    faucet: Faucet,
    directory: PathBuf,
    source: String,
    service: Service,
    bob: String,
    /// Data that alice's state directory does not have.
    sidecar: Option<String>,
    /// The cohorts that are over.
    over: Vec<String>,
}

/// What a round gave: alice's exit status, and her events.
struct Round {
    status: Option<i32>,
    lines: Vec<Value>,
    errors: String,
}

impl Round {
    fn all(&self, name: &str) -> Vec<&Value> {
        self.lines.iter().filter(|line| line["event"] == name).collect()
    }

    #[track_caller]
    fn one(&self, name: &str) -> &Value {
        let all = self.all(name);
        assert_eq!(all.len(), 1, "{name}: {:#?}\n{}", self.lines, self.errors);
        all[0]
    }

    /// Alice's update is announced, and resolvers return it.
    #[track_caller]
    fn announced(&self, version: &str) {
        let (result, submitting) = (self.one("result"), self.one("update-submitting"));
        assert_eq!(self.status, Some(0), "{:#?}{}", self.lines, self.errors);
        for (field, value) in [
            ("ok", json!(true)),
            ("known", json!("confirmed")),
            ("included", json!(true)),
            ("resolvable", json!(true)),
            ("versionId", json!(version)),
        ] {
            assert_eq!(result[field], value, "{field}: {result:#}");
        }
        assert_eq!((&submitting["resolved"], &submitting["listed"]), (&json!(true), &json!(true)));
        assert_eq!(submitting["versionId"], version);
    }
}

impl Place {
    async fn start(name: &str, members: usize) -> Option<Self> {
        let blocks = TestChain::core(name).await?;
        let faucet = Faucet::new(&blocks, 8).await;
        let directory = directory(name);
        let node = blocks.node();
        let source = format!("core={}?cookie={}", node.url(), node.cookie_file().display());
        let state = path(&directory, "service-state");
        let members = members.to_string();
        let size = ["--min-participants", &members, "--max-participants", &members];
        let fixed = ["--chain", &source, "--chain-poll", "200ms", "--state", &state];
        let service = Service::start(&directory, &[&fixed[..], &size].concat());
        let bob = identity(&directory, "bob");
        Some(Self { blocks, faucet, directory, source, service, bob, sidecar: None, over: Vec::new() })
    }

    fn patch(&self, note: &str) -> String {
        let file = path(&self.directory, note);
        fs::write(&file, json!([{ "op": "add", "path": "/note", "value": note }]).to_string()).unwrap();
        file
    }

    fn joined(&self, alice: &str, arguments: &[&str]) -> Program {
        let (state, depth) = (format!("{alice}.state"), DEPTH.to_string());
        let chain = ["--chain", &self.source, "--chain-poll", "200ms", "--confirmations", &depth];
        join(&self.service.url, alice, &[&["--state", &state][..], &chain, &self.sidecar(), arguments].concat())
    }

    fn sidecar(&self) -> Vec<&str> {
        self.sidecar.iter().flat_map(|file| ["--sidecar", file.as_str()]).collect()
    }

    /// The output of alice's program, without a cohort.
    async fn ended(&self, alice: &str, arguments: &[&str]) -> Round {
        let member = self.joined(alice, arguments);
        let (status, lines, errors) = actix_rt::task::spawn_blocking(move || member.end()).await.unwrap();
        Round { status, lines, errors }
    }

    /// A round of alice and bob, to its confirmation.
    async fn round(&mut self, alice: &str, arguments: &[&str]) -> Round {
        let member = self.joined(alice, arguments);
        self.round_with(member).await
    }

    /// The same, where alice has joined before.
    async fn round_with(&mut self, member: Program) -> Round {
        let bob = join(&self.service.url, &self.bob, &["--decline"]);
        let over = &self.over;
        let formed = self
            .service
            .program
            .event_where("keygen-complete", |event| !over.iter().any(|cohort_id| event["cohortId"] == **cohort_id));
        let cohort_id = text(&formed["cohortId"]).to_owned();
        let address: Address<NetworkUnchecked> = text(&formed["beaconAddress"]).parse().unwrap();
        let script = address.assume_checked().script_pubkey();
        self.faucet.pay(&self.blocks, &script, Amount::from_sat(60_000)).await;
        self.blocks.mine(1).await;
        self.service.program.event_where("announcement-broadcast", |event| event["cohortId"] == cohort_id);
        self.blocks.mine(DEPTH).await;
        bob.result();
        self.over.push(cohort_id);
        let (status, lines, errors) = actix_rt::task::spawn_blocking(move || member.end()).await.unwrap();
        Round { status, lines, errors }
    }

    /// A command of alice's controller, with her identity, state and chain.
    async fn controls(&self, alice: &str, arguments: &[&str]) -> Run {
        let (state, did, depth) = (format!("{alice}.state"), did_of(alice), DEPTH.to_string());
        let (command, arguments) = arguments.split_first().unwrap();
        let identity = ["--identity", alice];
        let identity: &[&str] = if *command == "update" { &identity } else { &[] };
        let fixed = ["--state", &state, "--chain", &self.source, "--min-conf", &depth];
        ran(&[&[*command, &did], arguments, &fixed, identity, &self.sidecar()].concat()).await
    }

    /// Announces an update from the Singleton beacon of alice's first key, in a block.
    async fn singleton(&mut self, alice: &str, update: &Value) {
        let key = SecretKey::from_hex(&cohort::secret(alice)).unwrap();
        let beacon = InitialBeacon::new(key.public_key(), Network::Regtest, InitialBeaconKind::P2wpkh);
        let value = Amount::from_sat(20_000);
        let outpoint = self.faucet.pay(&self.blocks, &beacon.script_pubkey(), value).await;
        self.blocks.mine(1).await;
        let update = SignedUpdate::from_value(update.clone()).unwrap();
        let (coin, rate) = (Coin { outpoint, value }, FeeRate::from_sat_per_vb_u32(2));
        let announcement = SingletonAnnouncement::new(beacon, &[coin], &update, rate, &Change::Beacon).unwrap();
        let signed = announcement.sign(&key, &mut Randomness::Seeded([9; 32]).for_actor("singleton")).unwrap();
        self.blocks.chain().submit(&signed).await.unwrap();
        self.blocks.mine(1).await;
    }

    async fn document(&self, alice: &str) -> Value {
        serde_json::from_str(&self.controls(alice, &["resolve"]).await.succeeded().stdout).unwrap()
    }

    async fn entries(&self, alice: &str) -> Value {
        let state = format!("{alice}.state");
        let list = ran(&["vault", "list", "--json", "--state", &state]).await.succeeded();
        serde_json::from_str(&list.stdout).unwrap()
    }
}

#[actix_rt::test]
async fn a_did_lives_by_cohorts() {
    let Some(mut place) = Place::start("join-resolved", 2).await else { return };

    // The address of the cohort is not a beacon of the document: the cohort goes on without the update.
    let key = identity(&place.directory, "alice.key");
    let first = place.patch("first");
    let round = place.round(&key, &["--update", &first]).await;
    let (result, withheld) = (round.one("result"), round.one("update-withheld"));
    let address = text(&withheld["beaconAddress"]).to_owned();
    contains(text(&withheld["reason"]), &[&address, "version 1", "singleton", "beacon adopt"]);
    assert_eq!((round.status, &result["ok"], &result["included"]), (Some(1), &json!(false), &json!(false)));
    assert_eq!((&result["known"], &result["reason"]), (&json!("confirmed"), &withheld["reason"]));
    assert!(round.all("update-submitting").is_empty() && result.get("resolvable").is_none(), "{result:#}");
    assert_eq!(round.one("resolved")["versionId"], "1");
    let document = place.document(&key).await;
    assert!(document.get("note").is_none(), "{document}");

    // A DID whose first document lists it, with the same key: the same members and terms give the same address.
    let alice = cohort::listing(&place.directory, "alice", &key, &address);
    // Resolvers read all signals of that address, and so need the data of the first round too (rule R-5).
    let missing = place.ended(&alice, &["--update", &first]).await;
    assert_eq!(missing.status, Some(1), "{:#?}{}", missing.lines, missing.errors);
    contains(
        text(&missing.one("result")["reason"]),
        &["current document is not known: MISSING_UPDATE_DATA", "--explain"],
    );
    let sidecar = path(&place.directory, "first.sidecar");
    let (did, state) = (did_of(&key), format!("{key}.state"));
    ran(&["sidecar", "--did", &did, "--state", &state, "--out", &sidecar]).await.succeeded();
    place.sidecar = Some(sidecar);
    let round = place.round(&alice, &["--update", &first]).await;
    round.announced("2");
    assert_eq!(round.one("result")["beaconAddress"], *address);
    assert_eq!(place.document(&alice).await["note"], "first");
    assert_eq!(place.entries(&alice).await[0]["state"], "announced");
    let again = place.ended(&alice, &["--update", &first]).await;
    assert_eq!((again.status, &again.one("result")["known"]), (Some(0), &json!("announced-before")));

    // A prepared update of another version than the next. It is not recorded: nothing but the resolution refuses it.
    let stale = path(&place.directory, "stale.json");
    let (did, depth) = (did_of(&alice), DEPTH.to_string());
    let late = place.patch("late");
    let sidecar = path(&place.directory, "alice.sidecar");
    let state = format!("{alice}.state");
    ran(&["sidecar", "--did", &did, "--state", &state, "--out", &sidecar]).await.succeeded();
    let prepares = ["update", &did, "--patch", &late, "--identity", &alice, "--chain", &place.source];
    let more = ["--min-conf", &depth, "--sidecar", &sidecar, "--out", &stale];
    ran(&[&prepares[..], &more, &place.sidecar()].concat()).await.succeeded();

    // A rotation is prepared, and announced by a cohort with the command that is printed.
    let rotation = path(&place.directory, "rotation.json");
    let prepared =
        place.controls(&alice, &["update", "rotate-key", "--announce-by", "cohort", "--out", &rotation]).await;
    let prepared = prepared.succeeded();
    let command = format!("join --service URL --identity {alice} --update {rotation} --beacon cas --state {state}");
    contains(&prepared.stderr, &[&address, &command, "--min-conf 2", "the new key is in"]);
    assert!(place.entries(&alice).await.as_array().unwrap().len() == 1);
    place.round(&alice, &["--update", &rotation]).await.announced("3");
    let document = place.document(&alice).await;
    assert!(text(&document["capabilityInvocation"][0]).ends_with("#key-3"), "{document}");

    // The prepared update is stale now, and nothing is joined for it.
    let refused = place.ended(&alice, &["--update", &stale]).await;
    assert_eq!(refused.status, Some(2), "{:#?}{}", refused.lines, refused.errors);
    contains(&refused.errors, &["targetVersionId is 3", "current document has version 3", "prepare it again"]);

    // The next update is signed with the new key. The cohort knows the member by the key that its DID began with.
    let second = place.patch("second");
    let round = place.round(&alice, &["--update", &second]).await;
    round.announced("4");
    let proof = &round.one("result")["sidecar"]["updates"][0]["proof"];
    assert!(text(&proof["verificationMethod"]).ends_with("#key-3"), "{proof}");
    assert_eq!(place.document(&alice).await["note"], "second");

    // A deactivation is announced like any update, and nothing after it.
    let deactivation = path(&place.directory, "deactivation.json");
    place.controls(&alice, &["update", "deactivate", "--out", &deactivation]).await.succeeded();
    place.round(&alice, &["--update", &deactivation]).await.announced("5");
    let refused = place.ended(&alice, &["--update", &first]).await;
    assert_eq!(refused.status, Some(1), "{:#?}{}", refused.lines, refused.errors);
    contains(text(&refused.one("result")["reason"]), &["nothing is submitted", "deactivated, by version 5"]);
    assert!(refused.all("cohort-joined").is_empty());
}

#[actix_rt::test]
async fn announced_is_not_the_same_as_resolvable() {
    let Some(mut place) = Place::start("join-unlisted", 2).await else { return };
    let alice = identity(&place.directory, "alice");
    let patch = place.patch("unlisted");
    // A cohort's own address, added at that address, is nothing that resolvers find either.
    let adds = place.ended(&alice, &["--add-beacon"]).await;
    assert_eq!(adds.status, Some(2));
    contains(&adds.errors, &["--allow-unlisted-beacon", "--announce-by singleton", "--external --beacon"]);

    let round = place.round(&alice, &["--update", &patch, "--allow-unlisted-beacon"]).await;
    let (result, submitting) = (round.one("result"), round.one("update-submitting"));
    assert_eq!((&submitting["listed"], &submitting["resolved"]), (&json!(false), &json!(true)));
    // It is as it was asked for, and no more.
    assert_eq!((round.status, &result["ok"], &result["known"]), (Some(0), &json!(true), &json!("confirmed")));
    assert_eq!((&result["resolvable"], &result["versionId"]), (&json!(false), &json!("1")));
    contains(text(&result["reason"]), &["did not find the update", text(&result["beaconAddress"])]);
    // Without the flag the next update is refused: there must be no second one of version 2.
    let other = place.patch("other");
    let refused = place.ended(&alice, &["--update", &other]).await;
    assert_eq!(refused.status, Some(1), "{:#?}", refused.lines);
    contains(text(&refused.one("result")["reason"]), &["another update of version 2", "resolvers did not find it"]);
    // Superseded once, it stays so.
    let unlisted = text(&result["cohortId"]).to_owned();
    let update = ["update", "--patch", &other, "--json", "--supersede", &unlisted];
    let printed = place.controls(&alice, &update).await.succeeded().stdout;
    assert_eq!(place.entries(&alice).await[0]["state"], "superseded");
    let list = ran(&["vault", "list", "--state", &format!("{alice}.state")]).await.succeeded();
    contains(&list.stdout, &["superseded: confirmed as", "without a cohort  version 2", "possibly announced"]);
    // No cohort is a beacon of the document: the command would be in vain.
    let out = path(&place.directory, "out");
    let refused =
        place.controls(&alice, &["update", "--patch", &other, "--announce-by", "cohort", "--out", &out]).await;
    contains(refused.usage(), &["lists no beacon of a cohort", "--announce-by singleton"]);
    assert!(!std::path::Path::new(&out).exists());

    // It is announced alone instead. The member learns that from the chain.
    let prepared: Value = serde_json::from_str(&printed).unwrap();
    place.singleton(&alice, &prepared["update"]).await;
    let young = place.ended(&alice, &["--update", &other]).await;
    assert_eq!(young.status, Some(1), "{:#?}", young.lines);
    contains(text(&young.one("result")["reason"]), &["without a cohort", "too few confirmations"]);
    let third = place.patch("third");
    let young = place.ended(&alice, &["--update", &third]).await;
    contains(text(&young.one("result")["reason"]), &["an update to version 2 is in a block with 1 confirmations"]);
    place.blocks.mine(1).await;
    let done = place.ended(&alice, &["--update", &other]).await;
    assert_eq!((done.status, &done.one("result")["known"]), (Some(0), &json!("announced-before")));
    assert_eq!(done.one("result")["cohortId"], "singleton");
    assert_eq!(place.document(&alice).await["note"], "other");
}

/// Between the opt-in and the request for the update any time may pass.
#[actix_rt::test]
async fn an_update_starts_from_the_document_of_the_moment() {
    let Some(mut place) = Place::start("join-moment", 2).await else { return };
    let key = identity(&place.directory, "alice.key");
    let address = cohort::address(&path(&place.directory, "service"), &[&key, &place.bob]);
    let alice = cohort::listing(&place.directory, "alice", &key, &address);
    let store = format!("dir={}", path(&place.directory, "store"));
    let patch = place.patch("mine");
    let mut member = place.joined(&alice, &["--update", &patch, "--cas", &store]);
    assert_eq!(member.event("resolved")["versionId"], "1");
    member.event("opt-in-accepted");

    // Meanwhile another program of hers announces the next version.
    let meanwhile = place.directory.join("meanwhile");
    let operation = json!([{ "op": "add", "path": "/alsoKnownAs", "value": ["https://meanwhile.example"] }]);
    fs::write(&meanwhile, operation.to_string()).unwrap();
    let (did, update) = (did_of(&alice), path(&place.directory, "update"));
    let fixed = ["update", &did, "--identity", &alice, "--chain", &place.source, "--json"];
    let printed = ran(&[&fixed[..], &["--patch", meanwhile.to_str().unwrap()]].concat()).await.succeeded().stdout;
    let printed: Value = serde_json::from_str(&printed).unwrap();
    fs::write(&update, printed["update"].to_string()).unwrap();
    ran(&["cas", "put", "--cas", &store, &update]).await.succeeded();
    place.singleton(&alice, &printed["update"]).await;
    place.blocks.mine(DEPTH - 1).await;

    let round = place.round_with(member).await;
    round.announced("3");
    let document = place.controls(&alice, &["resolve", "--cas", &store]).await.succeeded().stdout;
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(
        (&document["note"], &document["alsoKnownAs"][0]),
        (&json!("mine"), &json!("https://meanwhile.example"))
    );
}
