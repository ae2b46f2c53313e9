//! The command `singleton` with a chain: the beacons of the current document, their coins, sending, waiting, replacing.

use std::{fs, time::Instant};

use bitcoin::{Amount, FeeRate, OutPoint, Psbt, ScriptBuf, Transaction, Txid, consensus::encode::deserialize_hex};
use btcr2_aggregation::{
    actors::runtime::Randomness,
    protocol::{
        document::{InitialBeacon, InitialBeaconKind},
        hash::SignalBytes,
        key::SecretKey,
        network::Network,
        output::{Change, Coin, SingletonAnnouncement},
        update::SignedUpdate,
    },
};
use serde_json::{Value, json};

use crate::{
    bitcoind_support::beacon::{Beacon, key},
    resolve_cli::{World, ran},
    support::{PATIENCE, Run, Service, contains, did_of, identity, join, path, proxy::Proxy, run_with},
};

/// A controller whose updates are announced by its Singleton beacons.
pub struct Controller {
    pub world: World,
    pub identity: String,
    pub state: String,
    pub did: String,
    key: SecretKey,
    count: usize,
}

impl Controller {
    pub async fn new(name: &str, arguments: &[&str]) -> Option<Self> {
        let world = World::core(&format!("singleton-{name}")).await?;
        Some(Self::of(world, name, arguments))
    }

    fn of(world: World, name: &str, arguments: &[&str]) -> Self {
        let (identity, state) = (path(&world.directory, "identity"), path(&world.directory, "state"));
        let key = key(&format!("singleton {name}"));
        let made = ["identity", "new", "--secret-env", "SECRET", "--out", &identity];
        run_with(&[&made, arguments].concat(), &[("SECRET", &key.to_hex())]).succeeded();
        Self { did: did_of(&identity), world, identity, state, key, count: 0 }
    }

    fn own(&self, kind: InitialBeaconKind) -> InitialBeacon {
        InitialBeacon::new(self.key.public_key(), Network::Regtest, kind)
    }

    pub fn script(&self, kind: InitialBeaconKind) -> ScriptBuf {
        self.own(kind).script_pubkey()
    }

    /// `update` with these arguments.
    pub async fn update(&self, arguments: &[&str]) -> Run {
        let fixed = ["--identity", &self.identity, "--chain", &self.world.source, "--min-conf", "1"];
        let state = ["--state", &self.state];
        ran(&[&["update", &self.did], arguments, &fixed, &state].concat()).await
    }

    /// The file of an update that is prepared, not announced.
    async fn prepared(&mut self, arguments: &[&str]) -> String {
        self.count += 1;
        let file = path(&self.world.directory, &format!("update-{}", self.count));
        self.update(&[arguments, &["--out", &file]].concat()).await.succeeded();
        file
    }

    async fn note(&mut self, text: &str) -> String {
        let patch = self.world.file("patch", &json!([{ "op": "add", "path": "/note", "value": text }]));
        self.prepared(&["--patch", &patch]).await
    }

    /// `singleton` with these arguments, the state directory among them.
    async fn singleton(&self, arguments: &[&str]) -> Run {
        self.singleton_of(&["--identity", &self.identity, "--state", &self.state], arguments).await
    }

    async fn singleton_of(&self, who: &[&str], arguments: &[&str]) -> Run {
        let fixed = ["--chain", &self.world.source, "--min-conf", "1"];
        ran(&[&["singleton"], who, arguments, &fixed].concat()).await
    }

    /// Mines a block as soon as a transaction waits, while a program runs that waits for it.
    pub async fn while_mining(&self, running: impl Future<Output = Run>) -> Run {
        let mining = async {
            let until = Instant::now() + PATIENCE;
            while self.world.blocks.mempool().await.is_empty() {
                assert!(Instant::now() < until, "nothing is sent");
                actix_rt::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            self.world.blocks.mine(1).await;
        };
        tokio::join!(running, mining).0
    }

    /// Announces the update of a file and waits for the block: what `singleton` prints.
    async fn announced(&self, file: &str, arguments: &[&str]) -> Value {
        let send = ["--update", file, "--send", "--wait", "1", "--chain-poll", "100ms", "--json"];
        let run = self.while_mining(self.singleton(&[&send, arguments].concat())).await.succeeded();
        let shown: Value = serde_json::from_str(&run.stdout).unwrap();
        // That it was in the mempool is said only if it was seen there, before the block.
        contains(&run.stderr, &["1 of 1 confirmations"]);
        assert_eq!((&shown["sent"], &shown["state"]), (&json!(true), &json!("confirmed")), "{shown}");
        shown
    }

    pub async fn document(&self, more: &[&str]) -> Value {
        let arguments = ["--min-conf", "1", "--state", &self.state];
        let run = self.world.resolve(&self.did, &[&arguments, more].concat()).await.succeeded();
        serde_json::from_str(&run.stdout).unwrap()
    }

    /// A coin at a script, in a block of its own.
    async fn coin(&mut self, script: &ScriptBuf) -> Coin {
        self.world.coin(script).await
    }
}

fn text(coin: &Coin) -> String {
    format!("{}:{}", coin.outpoint, coin.value.to_sat())
}

fn json_of(run: &Run) -> Value {
    serde_json::from_str(&run.stdout).unwrap()
}

fn signed(shown: &Value) -> Transaction {
    deserialize_hex(shown["transaction"]["signedHex"].as_str().unwrap()).unwrap()
}

fn spent(transaction: &Transaction) -> Vec<OutPoint> {
    transaction.input.iter().map(|input| input.previous_output).collect()
}

#[actix_rt::test]
async fn every_beacon_of_a_key_did_announces_with_all_its_coins() {
    let Some(mut alice) = Controller::new("kinds", &[]).await else { return };
    for (number, kind) in InitialBeaconKind::ALL.into_iter().enumerate() {
        // Of the coins the deepest is spent first.
        let first = alice.coin(&alice.script(kind)).await;
        let second = alice.coin(&alice.script(kind)).await;
        let file = alice.note(&format!("by {kind}")).await;
        let rate = ["--fee-rate", "3"];
        // The last one is found by its coins: it is the only one that holds two.
        let chosen = ["--service", kind.service()];
        let more = if kind == InitialBeaconKind::P2tr { &rate[..] } else { &[&rate[..], &chosen].concat() };
        let shown = alice.announced(&file, more).await;
        let transaction = signed(&shown);
        assert_eq!(spent(&transaction), [first.outpoint, second.outpoint], "{kind}");
        assert_eq!(shown["transaction"]["beacon"]["address"], alice.own(kind).address().to_string());
        let (fee, vsize) = (&shown["transaction"]["fee"], &shown["transaction"]["maxVsize"]);
        assert_eq!(fee.as_u64().unwrap(), 3 * vsize.as_u64().unwrap());
        assert_eq!(transaction.output[0].value.to_sat() + fee.as_u64().unwrap(), 120_000);
        assert_eq!(shown["confirmed"]["txid"], transaction.compute_txid().to_string());
        assert_eq!(alice.document(&[]).await["note"], format!("by {kind}"), "{number}");
        // Announced once more it is found: no second transaction.
        let again = alice.singleton(&["--update", &file, "--send", "--json"]).await.succeeded();
        contains(&again.stderr, &["is announced already, by transaction", "No second transaction"]);
        assert!(alice.world.blocks.mempool().await.is_empty());
        // A directory that did not know it does then.
        let elsewhere = path(&alice.world.directory, &format!("elsewhere-{number}"));
        let own = ["--identity", alice.identity.as_str(), "--state", &elsewhere, "--sidecar", &file];
        let more: Vec<_> = (1..=number).map(|at| path(&alice.world.directory, &format!("update-{at}"))).collect();
        let more: Vec<_> = more.iter().flat_map(|file| ["--sidecar", file.as_str()]).collect();
        alice.singleton_of(&[&own[..], &more].concat(), &["--update", &file]).await.succeeded();
        contains(&ran(&["vault", "list", "--state", &elsewhere]).await.succeeded().stdout, &["without a cohort"]);
    }
}

#[actix_rt::test]
async fn an_external_did_goes_on_from_the_beacon_of_its_new_key() {
    let cohort = Beacon::new("singleton external", 2, 144).output.address().to_owned();
    let Some(mut bob) = Controller::new("external", &["--external", "--beacon", &cohort]).await else { return };
    let old = bob.own(InitialBeaconKind::P2wpkh);
    let before = bob.coin(&old.script_pubkey()).await;
    let out = |name: &str| path(&bob.world.directory, name);
    let (first, second, third) = (out("first"), out("second"), out("third"));
    let send = ["--announce-by", "singleton", "--send", "--wait", "1", "--chain-poll", "100ms"];

    // The guided way: one command prepares, records, writes and announces.
    let rotate = [&["rotate-key", "--out", &first][..], &send].concat();
    let run = bob.while_mining(bob.update(&rotate)).await.succeeded();
    contains(&run.stderr, &["confirmed    ", &old.address().to_string(), &before.outpoint.to_string()]);
    let document = bob.document(&["--sidecar", &first]).await;
    assert!(document["capabilityInvocation"][0].as_str().unwrap().ends_with("#key-2"), "{document}");

    // A beacon of the new key, which the file has. It is announced from the old one: its key is in the file too.
    let shown: Value =
        serde_json::from_str(&ran(&["identity", "show", &bob.identity, "--json"]).await.succeeded().stdout)
            .unwrap();
    let new_key = shown["laterKeys"][0]["publicKey"].as_str().unwrap().parse().unwrap();
    let new = InitialBeacon::new(new_key, Network::Regtest, InitialBeaconKind::P2tr);
    let beacon = format!("{},singleton", new.address());
    let add = [&["add-beacon", &beacon, "--id", "own", "--out", &second][..], &send].concat();
    bob.while_mining(bob.update(&add)).await.succeeded();
    let remove = [&["remove-beacon", "singleton", "--out", &third][..], &send].concat();
    bob.while_mining(bob.update(&remove)).await.succeeded();

    // Now only the new one is left, and it has no coin yet.
    let file = bob.note("by the new key").await;
    let empty = bob.singleton(&["--update", &file, "--send"]).await;
    assert_eq!(empty.status, Some(1), "{empty:?}");
    contains(&empty.stderr, &["no coin can be spent", &format!("#own {}: no coin", new.address()), "Pay at least"]);
    let gone = bob.singleton(&["--update", &file, "--service", "singleton"]).await;
    contains(gone.usage(), &["the document has no Singleton beacon singleton", "#own"]);
    bob.coin(&new.script_pubkey()).await;
    let shown = bob.announced(&file, &[]).await;
    assert_eq!(shown["transaction"]["beacon"]["address"], new.address().to_string());
    assert_eq!(bob.document(&["--sidecar", &first]).await["note"], "by the new key");
}

#[actix_rt::test]
async fn an_announcement_that_waits_is_replaced_and_confirmed() {
    if let Some(alice) = Controller::new("bump", &[]).await {
        is_replaced_and_confirmed(alice).await;
    }
}

#[actix_rt::test]
async fn an_esplora_server_shows_and_takes_the_announcement() {
    if let Some(world) = World::esplora("singleton-bump").await {
        is_replaced_and_confirmed(Controller::of(world, "bump-esplora", &[])).await;
    }
}

async fn is_replaced_and_confirmed(mut alice: Controller) {
    let script = alice.script(InitialBeaconKind::P2wpkh);
    let coins = [alice.coin(&script).await, alice.coin(&script).await];
    let file = alice.note("bumped").await;
    let sent = alice.singleton(&["--update", &file, "--fee-rate", "2", "--send", "--json"]).await.succeeded();
    let old = signed(&json_of(&sent));
    let mempool = || async { alice.world.blocks.mempool().await };
    assert_eq!(mempool().await, [old.compute_txid()]);
    assert_eq!(json_of(&sent)["state"], "mempool");
    assert!(old.input.iter().all(|input| input.sequence.is_rbf()));

    // The same command again makes no second transaction.
    let again = alice.singleton(&["--update", &file, "--send"]).await.succeeded();
    contains(&again.stderr, &["waits in the mempool already", "--bump"]);
    assert_eq!(mempool().await, [old.compute_txid()]);

    // Numbers where the fee is too low: 2 sat/vB of the old one, and what the node asks for on top.
    let bump = |more: &[&'static str]| {
        let arguments: Vec<&'static str> = [&["--bump", "--json"][..], more].concat();
        alice.singleton_of_owned(arguments)
    };
    let low = bump(&["--fee-rate", "2"]).await;
    let fee = json_of(&sent)["transaction"]["fee"].as_u64().unwrap();
    contains(low.usage(), &["at 2 sat/vB the replacement pays", &format!("more than the {fee} sat of"), "or more"]);
    let least = low.stderr.rsplit_once("--fee-rate ").unwrap().1.split_once(" or more").unwrap().0.to_owned();

    // Without --send it is only shown.
    let shown = json_of(&bump(&["--fee-rate", "7", "--sign"]).await.succeeded());
    assert_eq!((&shown["sent"], mempool().await), (&json!(false), vec![old.compute_txid()]));
    assert_eq!(spent(&signed(&shown)), spent(&old));
    assert_eq!(spent(&old), coins.map(|coin| coin.outpoint));
    assert_eq!(signed(&shown).output.last(), old.output.last());
    assert_eq!(shown["transaction"]["fee"].as_u64().unwrap(), fee * 7 / 2);

    // Who knows nothing of the update does not announce it again.
    let own = ["--identity", alice.identity.as_str()];
    let unknown = alice.singleton_of(&own, &["--bump", "--fee-rate", "7", "--send"]).await;
    contains(unknown.usage(), &["is not an update that is known here", "--update FILE"]);
    alice.singleton_of(&own, &["--bump", "--fee-rate", "7", "--update", &file]).await.succeeded();
    assert_eq!(mempool().await, [old.compute_txid()]);

    // The least rate that the refusal names is one that the node takes.
    let bumped = alice.singleton(&["--bump", "--fee-rate", &least, "--send", "--json"]).await.succeeded();
    let new = signed(&json_of(&bumped));
    assert_eq!(mempool().await, [new.compute_txid()]);
    let unknown = alice.singleton(&["--bump", &old.compute_txid().to_string()]).await;
    contains(unknown.usage(), &["neither in the mempool nor in the last"]);

    // Without a rate: the least that replaces it. The wait sees whichever of them is in a block.
    let txid = new.compute_txid().to_string();
    let wait = ["--bump", &txid, "--send", "--wait", "2", "--chain-poll", "100ms", "--json"];
    let waiting = async {
        let run = alice.singleton(&wait).await.succeeded();
        contains(&run.stderr, &["2 of 2 confirmations"]);
        run
    };
    let mining = async {
        let until = Instant::now() + PATIENCE;
        while mempool().await == [new.compute_txid()] {
            assert!(Instant::now() < until);
            actix_rt::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        alice.world.blocks.mine(2).await;
    };
    let (run, ()) = tokio::join!(waiting, mining);
    let last: Txid = json_of(&run)["confirmed"]["txid"].as_str().unwrap().parse().unwrap();
    assert_ne!(last, new.compute_txid());
    assert_eq!(alice.document(&[]).await["note"], "bumped");
    let confirmed = alice.singleton(&["--bump", &last.to_string()]).await;
    contains(confirmed.usage(), &["is confirmed, in block", "2 confirmations: there is nothing to bump"]);
    let none = alice.singleton(&["--bump"]).await;
    contains(none.usage(), &["no announcement of a Singleton beacon"]);
}

#[actix_rt::test]
async fn what_resolvers_would_not_apply_is_not_announced() {
    let Some(mut alice) = Controller::new("refused", &[]).await else { return };
    let script = alice.script(InitialBeaconKind::P2tr);
    let first = alice.note("first").await;

    // Nothing to spend; then only a coin that is not confirmed.
    let none = alice.singleton(&["--update", &first, "--send"]).await;
    assert_eq!(none.status, Some(1), "{none:?}");
    contains(&none.stderr, &["#initialP2PKH", "#initialP2WPKH", "#initialP2TR", "no coin", "Pay at least"]);
    let young = alice.world.unconfirmed(&script).await;
    let waits = alice.singleton(&["--update", &first, "--send"]).await;
    assert_eq!(waits.status, Some(1), "{waits:?}");
    contains(&waits.stderr, &["1 not confirmed yet"]);
    let named = alice.singleton(&["--update", &first, "--coin", &text(&young)]).await;
    contains(named.usage(), &["is not confirmed yet"]);
    alice.world.blocks.mine(1).await;
    let (elsewhere, wrong) = (
        Coin { outpoint: OutPoint::new(young.outpoint.txid, 1), ..young },
        Coin { value: Amount::ONE_BTC, ..young },
    );
    let named = alice.singleton(&["--update", &first, "--coin", &text(&elsewhere)]).await;
    contains(named.usage(), &["is not an unspent output of a Singleton beacon"]);
    let named = alice.singleton(&["--update", &first, "--coin", &text(&wrong)]).await;
    contains(named.usage(), &["holds 60000 sat, not 100000000"]);

    // Without the key there is a PSBT, for the wallet that has it, and nothing to send.
    let out = path(&alice.world.directory, "psbt");
    let did = ["--did", alice.did.as_str()];
    let psbt = alice.singleton_of(&did, &["--update", &first, "--out", &out, "--json"]).await.succeeded();
    contains(&psbt.stderr, &["sign the PSBT with the wallet that has the key", "without --state DIR"]);
    let shown = json_of(&psbt);
    assert!(shown["transaction"]["signedHex"].is_null() && shown["sent"] == json!(false));
    let read = Psbt::deserialize(&fs::read(format!("{out}/unsigned.psbt")).unwrap()).unwrap();
    assert_eq!(spent(&read.unsigned_tx), [young.outpoint]);
    let refused = alice.singleton_of(&did, &["--update", &first, "--send"]).await;
    contains(refused.usage(), &["--send: no key that is given here belongs to #initialP2TR"]);
    assert!(alice.world.blocks.mempool().await.is_empty());

    // Another update of the version is not announced beside one that waits, known or not.
    alice.singleton(&["--update", &first, "--send"]).await.succeeded();
    let patch = alice.world.file("patch", &json!([{ "op": "add", "path": "/note", "value": "other" }]));
    let other = path(&alice.world.directory, "other");
    let fixed = ["--identity", &alice.identity, "--chain", &alice.world.source, "--min-conf", "1"];
    ran(&[&["update", &alice.did, "--patch", &patch, "--out", &other], &fixed[..]].concat()).await.succeeded();
    alice.coin_without_block(&script).await;
    let unknown = alice.singleton_of(&["--identity", &alice.identity], &["--update", &other, "--send"]).await;
    contains(unknown.usage(), &["announces something else", "#initialP2TR"]);
    let known = alice.singleton(&["--update", &other, "--send"]).await;
    assert_eq!(known.status, Some(2), "{known:?}");

    // In a block: the version is taken, and the next but one is too far.
    alice.world.blocks.mine(1).await;
    let deep = ["singleton", "--identity", &alice.identity, "--chain", &alice.world.source, "--update", &other];
    let unknown = ran(&deep).await;
    contains(
        unknown.usage(),
        &["fewer than 6 confirmations cannot be applied", "MISSING_UPDATE_DATA", "version 2"],
    );
    let fixed = ["update", &alice.did, "--identity", &alice.identity, "--chain", &alice.world.source];
    let unknown = ran(&[&fixed[..], &["--patch", &patch]].concat()).await;
    contains(unknown.usage(), &["fewer than 6 confirmations cannot be applied", "--allow-risky-document"]);
    let risky = ran(&[&fixed[..], &["--patch", &patch, "--allow-risky-document"]].concat()).await.succeeded();
    contains(&risky.stderr, &["warning: a signal that has fewer than 6 confirmations cannot be applied"]);
    let known = ran(&[&deep[..], &["--sidecar", &first]].concat()).await;
    contains(known.usage(), &["version 2 is announced already by another update", "with 1 of 6 confirmations"]);
    let taken = alice.singleton(&["--update", &other]).await;
    contains(taken.usage(), &["version 2 is announced already by another update", "LATE_PUBLISHING"]);
    let second = alice.note("second").await;
    let mut ahead: Value = serde_json::from_str(&fs::read_to_string(&second).unwrap()).unwrap();
    ahead["update"]["targetVersionId"] = json!(5);
    let ahead = alice.world.file("ahead", &ahead);
    let far = alice.singleton(&["--update", &ahead]).await;
    contains(far.usage(), &["leads to version 5, and the current version is 2", "rule R-9"]);
    // A change of the signed bytes is found before any of it is announced.
    ahead_of(&second, &alice, 3).await;
}

#[actix_rt::test]
async fn what_may_not_be_announced_any_more_is_not_bumped() {
    let Some(mut alice) = Controller::new("bump-refused", &[]).await else { return };
    alice.coin(&alice.script(InitialBeaconKind::P2wpkh)).await;
    let other_coin = alice.coin(&alice.script(InitialBeaconKind::P2tr)).await;
    let file = alice.note("waits").await;
    let service = ["--service", "initialP2WPKH"];
    alice.singleton(&[&["--update", &file, "--send", "--fee-rate", "2"][..], &service].concat()).await.succeeded();
    let bump = ["--bump", "--update", &file, "--fee-rate", "9", "--send"];

    // Another update of the version was recorded since then.
    let patch = alice.world.file("patch", &json!([{ "op": "add", "path": "/note", "value": "instead" }]));
    let other = path(&alice.world.directory, "instead");
    alice.update(&["--patch", &patch, "--out", &other, "--supersede", "singleton"]).await.succeeded();
    contains(alice.singleton(&bump).await.usage(), &["another update of version 2", "--supersede"]);

    // And is in a block, while the first one waits still.
    let other_update: Value = serde_json::from_str(&fs::read_to_string(&other).unwrap()).unwrap();
    let other_update = SignedUpdate::from_value(other_update["update"].clone()).unwrap();
    let (own, rate) = (alice.own(InitialBeaconKind::P2tr), FeeRate::from_sat_per_vb_u32(2));
    let rival = SingletonAnnouncement::new(own, &[other_coin], &other_update, rate, &Change::Beacon).unwrap();
    let rival = rival.sign(&alice.key, &mut Randomness::Seeded([4; 32]).for_actor("rival")).unwrap();
    let waiting = alice.world.blocks.mempool().await;
    alice.world.blocks.mine_with(1, &[rival]).await;
    let own = ["--identity", alice.identity.as_str(), "--sidecar", &other];
    let refused = alice.singleton_of(&own, &bump).await;
    contains(refused.usage(), &["version 2 is announced already by another update", "nothing is announced"]);
    assert_eq!(alice.world.blocks.mempool().await, waiting);
}

#[actix_rt::test]
async fn a_rival_that_is_confirmed_ends_the_wait() {
    let Some(mut alice) = Controller::new("rival", &[]).await else { return };
    let coin = alice.coin(&alice.script(InitialBeaconKind::P2wpkh)).await;
    let file = alice.note("never").await;
    // The same coin, and another signal: it is in a block without ever having been in the mempool.
    let (signal, rate) = (SignalBytes::from_bytes([3; 32]), FeeRate::from_sat_per_vb_u32(2));
    let own = alice.own(InitialBeaconKind::P2wpkh);
    let rival = SingletonAnnouncement::of_signal(own, &[coin], signal, rate, &Change::Beacon).unwrap();
    let rival = rival.sign(&alice.key, &mut Randomness::Seeded([4; 32]).for_actor("rival")).unwrap();
    let send = ["--update", &file, "--send", "--wait", "1", "--chain-poll", "100ms", "--json"];
    let mining = async {
        let until = Instant::now() + PATIENCE;
        while alice.world.blocks.mempool().await.is_empty() {
            assert!(Instant::now() < until, "nothing is sent");
            actix_rt::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        alice.world.blocks.mine_with(1, std::slice::from_ref(&rival)).await;
    };
    let (run, ()) = tokio::join!(alice.singleton(&send), mining);
    assert_eq!(run.status, Some(1), "{run:?}");
    let shown = json_of(&run);
    assert_eq!((&shown["state"], &shown["replacedBy"]), (&json!("replaced"), &json!(rival.compute_txid())));
}

#[actix_rt::test]
async fn a_member_without_a_cohort_gets_the_coins_of_its_document() {
    let Some(mut alice) = Controller::new("alone", &[]).await else { return };
    let coin = alice.coin(&alice.script(InitialBeaconKind::P2tr)).await;
    let patch = alice.world.file("patch", &json!([{ "op": "add", "path": "/note", "value": "alone" }]));
    let (directory, own, chain) =
        (alice.world.directory.clone(), alice.identity.clone(), alice.world.source.clone());
    let (state, out) = (alice.state.clone(), path(&directory, "alone"));
    let written = out.clone();
    let ended = actix_rt::task::spawn_blocking(move || {
        let service = Service::once(&directory, 2, &["--on-timeout", "updates=fail,after=2s"]);
        let other = identity(&directory, "other");
        let deaf = Proxy::deaf_behind(service.address(), "keygen/cohort_opt_in_accept");
        let mut silent = join(&deaf.url(), &other, &["--decline"]);
        silent.event("opt-in-accepted");
        let arguments =
            ["--update", &patch, "--singleton-fallback", &written, "--chain", &chain, "--state", &state];
        service.join(&own, &arguments).end()
    });
    let (status, lines, errors) = ended.await.unwrap();
    assert_eq!(status, Some(1), "{lines:#?}{errors}");
    let files = lines.iter().find(|line| line["event"] == "singleton-written").unwrap();
    assert_eq!(files["files"].as_array().unwrap().len(), 5, "{lines:#?}");
    let signed = fs::read_to_string(format!("{out}/signed.hex")).unwrap();
    let transaction: Transaction = deserialize_hex(signed.trim()).unwrap();
    assert_eq!(spent(&transaction), [coin.outpoint]);
    alice.world.mined(transaction).await;
    assert_eq!(alice.document(&[]).await["note"], "alone");
}

/// An update whose signature does not fit is refused.
async fn ahead_of(file: &str, alice: &Controller, version: u64) {
    let mut changed: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(changed["update"]["targetVersionId"], json!(version));
    changed["update"]["patch"][0]["value"] = json!("not signed");
    let changed = alice.world.file("changed", &changed);
    let refused = alice.singleton_of(&["--identity", &alice.identity], &["--update", &changed]).await;
    contains(refused.usage(), &["not a valid update of this DID"]);
}

impl Controller {
    async fn singleton_of_owned(&self, arguments: Vec<&'static str>) -> Run {
        self.singleton(&arguments).await
    }

    /// A coin that is confirmed in a block without the mempool.
    async fn coin_without_block(&mut self, script: &ScriptBuf) -> Coin {
        self.world.coin_alone(script).await
    }
}
