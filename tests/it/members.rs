//! What a member stores, and its notifications when its beacons are spent from: over a chain in memory, a node, and as programs.

use std::fs;

use crate::bitcoind_support::{
    TestChain,
    beacon::{Beacon, key},
    faucet::{Faucet, Wallet},
};
use bitcoin::{Address, Amount, FeeRate, Sequence, Transaction, TxOut};
use btcr2_aggregation::{
    actors::{
        runtime::Randomness,
        state::{
            State,
            vault::{StateVault, Vault, VaultEntry},
        },
    },
    bitcoin::recovery::{plan, survey},
    protocol::{
        beacon::{BeaconData, BeaconType},
        cohort::conditions::Conditions,
        hash::SignalBytes,
        id::CohortId,
        identity::Identity,
        network::Network,
        output::{Change, Coin, InitialBeacon, InitialBeaconKind, build_beacon_transaction},
        sidecar::MemberRecord,
        update::{SignedUpdate, build_update, sign_update},
    },
    vault::{
        Watcher,
        sidecar::sidecar,
        watch::{Severity, Signers, WatchNotice, beacons, initial_beacons},
    },
};
use serde_json::{Value, json};

/// The timelock in blocks.
const WAIT: u32 = 20;

const COIN: u64 = 50_000;

fn in_system(test: impl Future<Output = ()>) {
    actix_rt::System::new().block_on(test);
}

fn member() -> Identity {
    Identity::from_key(key("member"), Network::Regtest)
}

/// An update of the initial document to that version; the versions between do not matter here.
fn update(version: u64) -> SignedUpdate {
    let member = member();
    let patch =
        json!([{ "op": "add", "path": "/alsoKnownAs", "value": [format!("https://example.org/{version}")] }]);
    let unsigned = build_update(&member.initial_document().unwrap(), version - 1, patch).unwrap();
    let mut rng = Randomness::Seeded([1; 32]).for_actor("update");
    sign_update(&unsigned, member.did(), member.verification_method(), member.secret_key(), &mut rng).unwrap()
}

/// The member's record of a cohort in which it announced `update`, or declined.
fn entry(beacon: &Beacon, cohort: &str, update: Option<SignedUpdate>) -> VaultEntry {
    let (member, service) = (member(), Identity::from_key(key("service"), Network::Regtest));
    let map = match &update {
        Some(update) => json!({ member.did().as_str(): update.hash() }),
        None => json!({ service.did().as_str(): self::update(9).hash() }),
    };
    let announcement: BeaconData = BeaconData::Cas(serde_json::from_value(map).unwrap());
    let BeaconData::Cas(map) = &announcement else { unreachable!() };
    let record = MemberRecord {
        did: member.did().clone(),
        service: service.did().clone(),
        cohort_id: CohortId::parse(cohort).unwrap(),
        conditions: Conditions::new(BeaconType::cas(), 3, beacon.output.script_tree().clone()),
        output: beacon.output.clone(),
        signal: map.signal(),
        update,
        data: announcement,
    };
    VaultEntry { record, genesis_document: None, transcript: None, txid: None, confirmed_height: None }
}

/// A beacon with a coin that was confirmed `age` blocks ago, counting its own.
struct World {
    blocks: TestChain,
    faucet: Faucet,
    beacon: Beacon,
    coin: Coin,
}

impl World {
    async fn on(blocks: TestChain) -> Self {
        let mut faucet = Faucet::new(&blocks, 4).await;
        let beacon = Beacon::new("members", 3, WAIT.into());
        let coin = Self::pay(&mut faucet, &blocks, &beacon).await;
        blocks.mine(1).await;
        Self { blocks, faucet, beacon, coin }
    }

    async fn pay(faucet: &mut Faucet, blocks: &TestChain, beacon: &Beacon) -> Coin {
        let value = Amount::from_sat(COIN);
        let outpoint = faucet.pay(blocks, &beacon.output.script_pubkey().to_owned(), value).await;
        Coin { outpoint, value }
    }

    async fn another_coin(&mut self) {
        self.coin = Self::pay(&mut self.faucet, &self.blocks, &self.beacon).await;
        self.blocks.mine(1).await;
    }

    /// A spend that the members sign, by fallback.
    async fn announce(&self, signal: SignalBytes) -> Transaction {
        let change = Change::To(Wallet::new(8).script());
        let rate = FeeRate::from_sat_per_vb_u32(2);
        let unsigned = build_beacon_transaction(&self.beacon.output, &self.coin, &signal, rate, &change).unwrap();
        self.submit(self.beacon.sign(&unsigned, self.coin.value)).await
    }

    async fn submit(&self, transaction: Transaction) -> Transaction {
        self.blocks.chain().submit(&transaction).await.unwrap();
        transaction
    }

    /// A spend that the operator can sign alone: its coin to itself, and last the signal, if any.
    fn by_operator(&self, signal: Option<SignalBytes>) -> Transaction {
        let change = Change::To(Wallet::new(8).script());
        let rate = FeeRate::from_sat_per_vb_u32(2);
        let any = SignalBytes::from_bytes([0; 32]);
        let output = &self.beacon.output;
        let mut unsigned =
            build_beacon_transaction(output, &self.coin, &signal.unwrap_or(any), rate, &change).unwrap();
        if signal.is_none() {
            unsigned.output.pop();
        }
        unsigned.input[0].sequence = Sequence::from_height(u16::try_from(WAIT).unwrap());
        let prevout = TxOut { value: self.coin.value, script_pubkey: output.script_pubkey().to_owned() };
        let leaf = output.recovery().unwrap();
        let digest = leaf.sighash(&unsigned, &prevout).unwrap();
        let mut rng = Randomness::Seeded([2; 32]).for_actor("recovery");
        leaf.assemble(&unsigned, &prevout, &self.beacon.recovery.sign(&digest, &mut rng)).unwrap()
    }

    fn watcher(&self, entries: &[VaultEntry], warn_blocks: u32) -> Watcher {
        let mut watcher = Watcher::new(self.blocks.chain(), 144, warn_blocks);
        watcher.follow(beacons(entries));
        watcher
    }
}

fn alarms(notices: &[WatchNotice]) -> usize {
    notices.iter().filter(|notice| notice.severity() == Severity::Alarm).count()
}

/// Each test runs over a chain in memory and over a node.
macro_rules! on_both_chains {
    ($($name:ident)*) => {
        mod memory {
            $(#[test] fn $name() {
                super::in_system(async { super::$name(super::World::on(super::TestChain::memory()).await).await });
            })*
        }
        mod core {
            $(#[test] fn $name() {
                super::in_system(async {
                    let name = concat!("members-", stringify!($name));
                    let Some(blocks) = super::TestChain::core(name).await else { return };
                    super::$name(super::World::on(blocks).await).await;
                });
            })*
        }
    };
}

on_both_chains! {
    an_approved_signal_is_not_an_alarm
    a_signal_without_data_is_an_alarm
    a_spend_without_a_signal_is_an_alarm_if_not_the_operators
    the_end_of_a_timelock_is_announced_in_advance
}

async fn an_approved_signal_is_not_an_alarm(world: World) {
    let kept = [entry(&world.beacon, "first", Some(update(2)))];
    let mut watcher = world.watcher(&kept, 0);
    assert_eq!(watcher.poll().await.unwrap(), []);
    let announced = world.announce(kept[0].record.signal).await.compute_txid();
    for confirmed in [false, true] {
        let notices = watcher.poll().await.unwrap();
        let [WatchNotice::SignalSeen { txid, signal, signers, block, cohort_ids, .. }] = &notices[..] else {
            panic!("{notices:?}")
        };
        assert_eq!((*txid, *signal, *signers), (announced, kept[0].record.signal, Signers::SomeMembers));
        assert_eq!((block.is_some(), cohort_ids.first()), (confirmed, Some(&kept[0].record.cohort_id)));
        assert_eq!(watcher.poll().await.unwrap(), [], "reported once");
        world.blocks.mine(1).await;
    }
    // A watcher that starts later finds it again.
    assert_eq!(world.watcher(&kept, 0).poll().await.unwrap().len(), 1);
}

async fn a_signal_without_data_is_an_alarm(mut world: World) {
    let kept = [entry(&world.beacon, "first", Some(update(2)))];
    let mut watcher = world.watcher(&kept, 0);
    let unknown = entry(&world.beacon, "second", Some(update(3)));
    let announced = world.announce(unknown.record.signal).await.compute_txid();
    let notices = watcher.poll().await.unwrap();
    let [WatchNotice::UnknownSignal { txid, signal, signers, block: None, .. }] = &notices[..] else {
        panic!("{notices:?}")
    };
    assert_eq!((*txid, *signal, *signers), (announced, unknown.record.signal, Signers::SomeMembers));
    // Once the vault has it, there is no alarm.
    watcher.follow(beacons(&[kept[0].clone(), unknown]));
    assert_eq!(alarms(&watcher.poll().await.unwrap()), 0);

    world.blocks.mine(1).await;
    world.another_coin().await;
    world.blocks.mine(WAIT).await;
    let own = world.submit(world.by_operator(Some(SignalBytes::from_bytes([9; 32])))).await.compute_txid();
    let notices = watcher.poll().await.unwrap();
    let signers = notices.iter().find_map(|notice| match notice {
        WatchNotice::UnknownSignal { txid, signers, .. } if *txid == own => Some(*signers),
        _ => None,
    });
    assert_eq!(signers, Some(Signers::Operator), "{notices:?}");
}

async fn a_spend_without_a_signal_is_an_alarm_if_not_the_operators(mut world: World) {
    let kept = [entry(&world.beacon, "first", None)];
    let mut watcher = world.watcher(&kept, 0);
    let change = Change::To(Wallet::new(8).script());
    let any = SignalBytes::from_bytes([0; 32]);
    let rate = FeeRate::from_sat_per_vb_u32(2);
    let mut taken = build_beacon_transaction(&world.beacon.output, &world.coin, &any, rate, &change).unwrap();
    taken.output.pop();
    world.submit(world.beacon.sign(&taken, world.coin.value)).await;
    let notices = watcher.poll().await.unwrap();
    assert!(matches!(&notices[..], [WatchNotice::UnapprovedSpend { .. }]), "{notices:?}");

    world.another_coin().await;
    world.blocks.mine(WAIT).await;
    world.submit(world.by_operator(None)).await;
    let notices = watcher.poll().await.unwrap();
    assert!(notices.iter().any(|notice| matches!(notice, WatchNotice::CoinRecovered { .. })), "{notices:?}");
    // The first spend is in a block now; there is no other alarm.
    assert_eq!(alarms(&notices), 1);
}

async fn the_end_of_a_timelock_is_announced_in_advance(world: World) {
    let kept = [entry(&world.beacon, "first", None)];
    let mut watcher = world.watcher(&kept, 5);
    let confirmed = world.blocks.chain().tip().await.unwrap().block.height;
    assert_eq!(watcher.poll().await.unwrap(), []);
    // The block after the next WAIT - 1 is the first that could contain the recovery: five more are left after WAIT - 6.
    world.blocks.mine(WAIT - 7).await;
    assert_eq!(watcher.poll().await.unwrap(), []);
    world.blocks.mine(1).await;
    let notices = watcher.poll().await.unwrap();
    let [WatchNotice::RecoveryNear { outpoint, height, blocks, .. }] = &notices[..] else { panic!("{notices:?}") };
    assert_eq!((*outpoint, *height, *blocks), (world.coin.outpoint, confirmed + WAIT, 5));
    assert_eq!(watcher.poll().await.unwrap(), [], "reported once");
    world.blocks.mine(5).await;
    let notices = watcher.poll().await.unwrap();
    assert!(matches!(&notices[..], [WatchNotice::RecoveryPossible { .. }]), "{notices:?}");
    // From here on the recovery is possible.
    let activity = world.blocks.chain().coins(world.beacon.output.script_pubkey()).await.unwrap();
    let coins = survey(&world.beacon.output, &activity).unwrap();
    let mut rng = Randomness::Seeded([3; 32]).for_actor("recovery");
    let to = Address::from_script(&Wallet::new(8).script(), bitcoin::Network::Regtest).unwrap().to_string();
    let rate = FeeRate::BROADCAST_MIN;
    let made = plan(&world.beacon.output, &coins, &to, rate, &world.beacon.recovery, &mut rng);
    world.submit(made[0].transaction.clone().unwrap()).await;
    world.blocks.mine(1).await;
    let notices = watcher.poll().await.unwrap();
    assert!(matches!(&notices[..], [WatchNotice::CoinRecovered { .. }]), "{notices:?}");
}

#[test]
fn a_sidecar_is_complete_and_names_missing_data() {
    let beacons = [Beacon::new("one", 3, 20), Beacon::new("two", 3, 20)];
    let mut entries =
        vec![entry(&beacons[0], "late", Some(update(4))), entry(&beacons[1], "early", Some(update(2)))];
    entries.push(entry(&beacons[1], "declined", None));
    entries.push(entries[0].clone());
    let whole = sidecar(&entries);
    let versions: Vec<_> =
        whole.data["updates"].as_array().unwrap().iter().map(|update| update["targetVersionId"].clone()).collect();
    assert_eq!((versions, whole.missing_versions), (vec![json!(2), json!(4)], vec![3]));
    // Three announcements: the one without this DID proves that it has no update there.
    assert_eq!(whole.data["casUpdates"].as_array().unwrap().len(), 3);
    assert!(whole.data.get("smtProofs").is_none() && whole.data.get("genesisDocument").is_none());
}

fn stored(directory: &std::path::Path, name: &str, entries: &[VaultEntry]) -> String {
    let dir = crate::support::path(directory, name);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let state = State::open(&dir).unwrap();
        let vault = StateVault::new(&state);
        for entry in entries {
            vault.put(entry.clone()).await.unwrap();
        }
        drop(vault);
        state.close().await;
    });
    dir
}

#[test]
fn a_members_own_initial_beacons_are_watched() {
    in_system(async {
        let blocks = TestChain::memory();
        let mut faucet = Faucet::new(&blocks, 4).await;
        let beacon = Beacon::new("members", 3, WAIT.into());
        let approved = entry(&beacon, "first", Some(update(2)));
        let mut watcher = Watcher::new(blocks.chain(), 144, 10);
        watcher.follow(initial_beacons([&approved], &[update(3)]));
        assert_eq!(watcher.len(), 3);
        let own = InitialBeacon::of(member().did(), InitialBeaconKind::P2wpkh).unwrap();
        // Each spends an old coin of the address, which is in no list.
        let mut announce = async |signal: Option<SignedUpdate>| {
            let coin = faucet.pay(&blocks, &own.script_pubkey(), Amount::from_sat(COIN)).await;
            let output = match signal {
                Some(update) => bitcoin::ScriptBuf::new_op_return(*update.hash().as_bytes()),
                None => Wallet::new(8).script(),
            };
            let output = TxOut { value: Amount::from_sat(COIN / 2), script_pubkey: output };
            // The chain in memory does not check signatures.
            let transaction = Wallet::new(9).spend(&[(coin, Amount::from_sat(COIN))], vec![output]);
            blocks.chain().submit(&transaction).await.unwrap();
            blocks.mine(1).await;
            watcher.poll().await.unwrap()
        };
        for (version, cohorts) in [(2, 1), (3, 0)] {
            let seen = announce(Some(update(version))).await;
            let [WatchNotice::SignalSeen { cohort_ids, signers, beacon_address, .. }] = &seen[..] else {
                panic!("{seen:?}")
            };
            assert_eq!((cohort_ids.len(), *signers), (cohorts, Signers::Controller));
            assert_eq!(beacon_address, &own.address().to_string());
        }
        // Spends of its own coins are not an alarm, announcements from there are.
        assert_eq!(announce(None).await, []);
        let alarm = announce(Some(update(4))).await;
        assert!(
            matches!(&alarm[..], [notice @ WatchNotice::UnknownSignal { .. }] if notice.severity() == Severity::Alarm)
        );
        let TestChain::Memory(chain) = &blocks else { unreachable!() };
        assert_eq!(chain.scans(), 0);
    });
}

fn lines(run: &crate::support::Run) -> Vec<Value> {
    run.events()
}

#[test]
fn the_programs_show_export_and_merge_vaults() {
    let directory = crate::support::directory("members-vault");
    let beacon = Beacon::new("vault", 3, WAIT.into());
    let (first, second) = (entry(&beacon, "first", Some(update(2))), entry(&beacon, "second", None));
    let states = [
        stored(&directory, "one", std::slice::from_ref(&first)),
        stored(&directory, "two", &[first.clone(), second.clone()]),
    ];
    let did = member().did().to_string();
    let list = |arguments: &[&str]| -> Value {
        let run = crate::support::run(&[&["vault", "list", "--json"][..], arguments].concat()).succeeded();
        serde_json::from_str(&run.stdout).unwrap()
    };
    let both = list(&["--state", &states[0], "--state", &states[1]]);
    let names: Vec<_> = both.as_array().unwrap().iter().map(|entry| &entry["cohortId"]).collect();
    assert_eq!(names, ["first", "second"], "once each");
    assert_eq!((&both[0]["included"], &both[1]["included"]), (&json!(true), &json!(false)));
    let other = Identity::from_key(key("other"), Network::Regtest).did().to_string();
    assert_eq!(list(&["--state", &states[1], "--did", &other]), json!([]));
    let text = crate::support::run(&["vault", "list", "--state", &states[1]]).succeeded().stdout;
    assert!(text.contains(&did) && text.contains("version 2") && text.contains("declined"), "{text}");

    let shown = crate::support::run(&["vault", "show", "second", "--json", "--state", &states[1]]).succeeded();
    assert_eq!(serde_json::from_str::<Value>(&shown.stdout).unwrap(), json!([second.to_file()]));
    let none = crate::support::run(&["vault", "show", "third", "--state", &states[1]]);
    assert!(none.status == Some(1) && none.stderr.contains("vault list"), "{none:?}");

    // A copy contains everything, and can be used in place of a directory.
    let copy = crate::support::path(&directory, "vault.json");
    crate::support::run(&["vault", "export", "--out", &copy, "--state", &states[1]]).succeeded();
    assert_eq!(list(&["--vault", &copy]), both);
    let refused = crate::support::run(&["vault", "export", "--out", &copy, "--state", &states[1]]);
    assert_eq!(refused.status, Some(1), "nothing is overwritten");
    fs::write(&copy, fs::read_to_string(&copy).unwrap().replace("\"vaultVersion\":2", "\"vaultVersion\":3"))
        .unwrap();
    let later = crate::support::run(&["vault", "list", "--vault", &copy]);
    assert!(later.status == Some(1) && later.stderr.contains("version 3"), "{later:?}");

    let made =
        crate::support::run(&["sidecar", "--did", &did, "--state", &states[0], "--state", &states[1]]).succeeded();
    assert_eq!(serde_json::from_str::<Value>(&made.stdout).unwrap(), sidecar(&[first, second]).data);
    let none = crate::support::run(&["sidecar", "--did", &other, "--state", &states[0]]);
    assert!(none.status == Some(1) && none.stderr.contains(&other), "{none:?}");
    assert_eq!(crate::support::run(&["vault", "list"]).status, Some(2), "a source is required");
}

#[test]
fn watch_reports_alarms_by_its_exit_status() {
    let Some((source, states, keep)) = prepared() else { return };
    let [ready, blind] = &states;
    let watch = |state: &str, more: &[&str]| {
        let arguments = ["watch", "--once", "--json", "--state", state, "--chain", &source];
        crate::support::run(&[&arguments[..], more].concat())
    };
    let run = watch(ready, &["--warn-blocks", "1"]).succeeded();
    let names: Vec<_> = lines(&run).into_iter().map(|line| line["event"].clone()).collect();
    assert_eq!(names, ["watching", "signal-seen", "result"]);
    let run = watch(blind, &["--warn-blocks", "1"]);
    assert_eq!(run.status, Some(3), "{run:?}");
    let events = lines(&run);
    assert_eq!((&events[1]["event"], &events[1]["signers"]), (&json!("unknown-signal"), &json!("some-members")));
    assert_eq!(events.last().unwrap()["alarms"], 1);
    // A second coin is at the address: its timelock is far from its end for some settings and near for others.
    let run = watch(ready, &["--warn-blocks", "144"]);
    assert!(run.status == Some(3) && lines(&run).last().unwrap()["warnings"] == 1, "{run:?}");
    let text = crate::support::run(&["watch", "--once", "--state", ready, "--chain", &source]);
    assert!(text.stdout.contains("the operator alone can spend"), "{text:?}");
    let refused = crate::support::run(&["watch", "--once", "--state", ready, "--chain", "core=https://u:sesame@h"]);
    assert!(!refused.usage().contains("sesame") && refused.stderr.contains("--chain"), "{refused:?}");
    drop(keep);
}

/// A node whose chain contains one announcement and another coin of the same beacon, and the state directories of a member that
/// has that cohort and of one that has not.
fn prepared() -> Option<(String, [String; 2], TestChain)> {
    let directory = crate::support::directory("members-watch");
    let (world, kept) = actix_rt::System::new().block_on(async {
        let mut world = World::on(TestChain::core("members-watch").await?).await;
        let kept = entry(&world.beacon, "first", Some(update(2)));
        world.announce(kept.record.signal).await;
        world.blocks.mine(1).await;
        world.another_coin().await;
        Some((world, kept))
    })?;
    let other = entry(&world.beacon, "second", Some(update(3)));
    let states = [stored(&directory, "ready", &[kept]), stored(&directory, "blind", &[other])];
    let node = world.blocks.node();
    let source = format!("core={}?cookie={}", node.url(), node.cookie_file().display());
    Some((source, states, world.blocks))
}

#[test]
fn vault_entries_under_previous_rules_are_named() {
    let old = concat!(env!("CARGO_MANIFEST_DIR"), "/actors/tests/fixtures/vault-0.1.json");
    let text = crate::support::run(&["vault", "list", "--vault", old]).succeeded().stdout;
    assert!(text.contains("NOT accepted by current resolvers: "), "{text}");
    let listed: Value =
        serde_json::from_str(&crate::support::run(&["vault", "list", "--json", "--vault", old]).succeeded().stdout)
            .unwrap();
    let listed = listed.as_array().unwrap();
    let problems = |entry: &Value| entry["problems"].as_array().unwrap().len();
    assert!(!listed.is_empty() && listed.iter().all(|entry| problems(entry) > 0), "{listed:#?}");
    let did = listed[0]["did"].as_str().unwrap();
    let made = crate::support::run(&["sidecar", "--did", did, "--vault", old]).succeeded();
    assert!(made.stderr.contains("no current resolver accepts"), "{made:?}");
    // Cohorts of today have no such problem.
    let directory = crate::support::directory("members-today");
    let beacon = Beacon::new("today", 3, WAIT.into());
    let state = stored(&directory, "state", &[entry(&beacon, "today", Some(update(2)))]);
    let text = crate::support::run(&["vault", "list", "--state", &state]).succeeded().stdout;
    assert!(!text.contains("NOT accepted"), "{text}");
}
