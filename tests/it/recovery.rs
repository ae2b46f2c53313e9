//! Recovery of coins: refused before the timelock has passed, accepted after, by the program and by a real node.

use crate::bitcoind_support::{
    TestChain,
    beacon::Beacon,
    faucet::{Faucet, Wallet},
};
use bitcoin::{Address, Amount, FeeRate};
use btcr2_aggregation::{
    actors::runtime::Randomness,
    bitcoin::{
        chain::{ChainError, RejectionKind},
        recovery::{CohortFile, Maturity, plan, survey},
    },
    protocol::{id::CohortId, output::RecoveryError},
};
use serde_json::{Value, json};

/// The timelock in blocks.
const WAIT: u32 = 20;

fn destination() -> String {
    Address::from_script(&Wallet::new(8).script(), bitcoin::Network::Regtest).unwrap().to_string()
}

fn in_system(test: impl Future<Output = ()>) {
    actix_rt::System::new().block_on(test);
}

async fn one_block_too_early_and_then_in_time(blocks: TestChain) {
    let mut faucet = Faucet::new(&blocks, 2).await;
    let beacon = Beacon::new("recovery", 3, WAIT.into());
    let script = beacon.output.script_pubkey().to_owned();
    let chain = blocks.chain();
    let outpoint = faucet.pay(&blocks, &script, Amount::from_sat(50_000)).await;
    let coins = survey(&beacon.output, &chain.coins(&script).await.unwrap()).unwrap();
    assert_eq!((coins.len(), coins[0].maturity), (1, Maturity::Unconfirmed));
    blocks.mine(1).await;
    let confirmed = chain.tip().await.unwrap().block.height;

    let mut rng = Randomness::Seeded([1; 32]).for_actor("recovery");
    for left in (1..WAIT).rev() {
        let activity = chain.coins(&script).await.unwrap();
        let coins = survey(&beacon.output, &activity).unwrap();
        let Maturity::Waiting { height, blocks: waits, expected } = coins[0].maturity else { panic!("{coins:?}") };
        assert_eq!((height, waits), (confirmed + WAIT, left));
        assert_eq!(expected, u64::from(activity.tip.median_time) + 600 * u64::from(left));
        if left == 1 {
            // If it is signed nevertheless, the node refuses it.
            let made =
                plan(&beacon.output, &coins, &destination(), FeeRate::BROADCAST_MIN, &beacon.recovery, &mut rng);
            let Err(ChainError::Rejected(rejection)) = chain.submit(made[0].transaction.as_ref().unwrap()).await
            else {
                panic!("accepted too early");
            };
            assert_eq!(rejection.kind, RejectionKind::NotFinal, "{rejection}");
        }
        blocks.mine(1).await;
    }
    let coins = survey(&beacon.output, &chain.coins(&script).await.unwrap()).unwrap();
    assert_eq!(coins[0].maturity, Maturity::Mature { height: confirmed + WAIT });
    let rate = FeeRate::from_sat_per_vb_u32(3);
    let made = plan(&beacon.output, &coins, &destination(), rate, &beacon.recovery, &mut rng);
    let transaction = made[0].transaction.as_ref().unwrap();
    assert_eq!(made[0].fee, rate.fee_vb(transaction.vsize() as u64).unwrap());
    assert_eq!(transaction.input[0].previous_output, outpoint);
    chain.submit(transaction).await.unwrap();
    let coins = survey(&beacon.output, &chain.coins(&script).await.unwrap()).unwrap();
    assert_eq!(coins[0].spent_by, Some(transaction.compute_txid()));
    blocks.mine(1).await;
    assert!(survey(&beacon.output, &chain.coins(&script).await.unwrap()).unwrap().is_empty());
}

#[test]
fn a_recovery_one_block_early_is_refused_in_memory() {
    in_system(one_block_too_early_and_then_in_time(TestChain::memory()));
}

#[test]
fn a_recovery_one_block_early_is_refused_by_a_node() {
    in_system(async {
        let name = "a_recovery_one_block_early_is_refused_by_a_node";
        if let Some(blocks) = TestChain::core(name).await {
            one_block_too_early_and_then_in_time(blocks).await;
        }
    });
}

#[test]
fn dust_is_not_recovered() {
    in_system(async {
        let blocks = TestChain::memory();
        let mut faucet = Faucet::new(&blocks, 3).await;
        let beacon = Beacon::new("dust", 3, 1);
        let script = beacon.output.script_pubkey().to_owned();
        for sat in [100, 700, 5_000] {
            faucet.pay(&blocks, &script, Amount::from_sat(sat)).await;
        }
        blocks.mine(1).await;
        let coins = survey(&beacon.output, &blocks.chain().coins(&script).await.unwrap()).unwrap();
        let mut rng = Randomness::Seeded([1; 32]).for_actor("recovery");
        let rate = FeeRate::from_sat_per_vb_u32(2);
        let made = plan(&beacon.output, &coins, &destination(), rate, &beacon.recovery, &mut rng);
        for recovery in made {
            match recovery.coin.value.to_sat() {
                100 => assert!(matches!(recovery.transaction, Err(RecoveryError::DustOutput(_))), "{recovery:?}"),
                700 => assert!(matches!(recovery.transaction, Err(RecoveryError::DustOutput(_))), "{recovery:?}"),
                _ => blocks.chain().submit(&recovery.transaction.unwrap()).await.unwrap(),
            }
        }
    });
}

#[test]
fn the_program_lists_shows_and_recovers() {
    in_system(async {
        let Some(blocks) = TestChain::core("the_program_lists_shows_and_recovers").await else { return };
        let mut faucet = Faucet::new(&blocks, 3).await;
        let beacon = Beacon::new("program", 3, WAIT.into());
        let script = beacon.output.script_pubkey().to_owned();
        let old = faucet.pay(&blocks, &script, Amount::from_sat(50_000)).await;
        let dust = faucet.pay(&blocks, &script, Amount::from_sat(600)).await;
        blocks.mine(WAIT - 1).await;
        let young = faucet.pay(&blocks, &script, Amount::from_sat(70_000)).await;

        let directory = crate::support::directory("recovery");
        let cohort_id = CohortId::parse("3f0ab4f2-0f2b-4d7e-9a3f-5b6a0f3e1c11").unwrap();
        let file = CohortFile { cohort_id: cohort_id.clone(), output: beacon.output.clone() };
        file.write_to(&directory).unwrap();
        let cohort = crate::support::path(&directory, &format!("{cohort_id}/output.json"));
        let source = format!("core={}?cookie={}", blocks.node().url(), blocks.node().cookie_file().display());
        let secret = beacon.recovery.to_hex();
        let recover = |arguments: &[&str]| {
            let fixed = ["recover", "--chain", &source, "--json"];
            let run = crate::support::run_with(&[&fixed, arguments].concat(), &[("RECOVERY_KEY", secret.as_str())]);
            assert!(!run.all().contains(secret.as_str()));
            (run.status, serde_json::from_str::<Value>(&run.stdout).unwrap_or_else(|_| panic!("{run:?}")))
        };
        // By the file, and by keys and terms.
        let keys: Vec<_> = beacon.output.keys().iter().map(ToString::to_string).collect();
        let recovery_key = beacon.recovery.public_key().x_only().to_string();
        let (keys, wait) = (keys.join(","), WAIT.to_string());
        let by_terms = ["--keys", &keys, "--recovery-key", &recovery_key, "--recovery-sequence", &wait];
        for which in [&["--cohort", &cohort][..], &by_terms] {
            let (status, listed) = recover(which);
            assert_eq!((status, &listed["beaconAddress"]), (Some(0), &json!(beacon.output.address())));
            let states: Vec<_> =
                listed["coins"].as_array().unwrap().iter().map(|coin| &coin["maturity"]["state"]).collect();
            assert_eq!(states, ["waiting", "waiting", "unconfirmed"], "{listed}");
            assert_eq!(listed["coins"][0]["maturity"]["blocks"], 1);
        }
        crate::unread_output::fails_unread(&["recover", "--chain", &source, "--cohort", &cohort]);
        crate::unread_output::fails_unread(&["recover", "--chain", &source, "--cohort", &cohort, "--json"]);
        let to = destination();
        let sweep = ["--cohort", &cohort, "--secret-env", "RECOVERY_KEY", "--to", &to];
        let (status, early) = recover(&sweep);
        assert_eq!((status, &early["recoveries"]), (Some(1), &json!([])));
        assert_eq!((&early["ok"], &early["nothingToRecover"]), (&json!(false), &json!(true)));
        let mut nowhere = sweep;
        nowhere[5] = "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq";
        let refused = crate::support::run_with(
            &[&["recover", "--chain", "core=http://u:p@127.0.0.1:1"][..], &nowhere].concat(),
            &[("RECOVERY_KEY", secret.as_str())],
        );
        assert!(refused.usage().contains(nowhere[5]), "{refused:?}");

        blocks.mine(1).await;
        let (status, shown) = recover(&[&sweep[..], &["--dry-run"]].concat());
        // The dust is not worth its fee, and the program reports that.
        assert_eq!((status, shown["recoveries"].as_array().unwrap().len()), (Some(1), 2), "{shown}");
        assert!(blocks.mempool().await.is_empty());
        let (_, swept) = recover(&[&sweep[..], &["--min-fee-rate", "2", "--max-fee-rate", "5"]].concat());
        for recovery in swept["recoveries"].as_array().unwrap() {
            let outpoint = recovery["outpoint"].as_str().unwrap();
            if outpoint == dust.to_string() {
                assert_eq!(recovery["error"]["code"], "DUST_OUTPUT", "{recovery}");
            } else {
                assert_eq!((outpoint, &recovery["sent"]), (old.to_string().as_str(), &json!(true)), "{recovery}");
                assert_eq!(blocks.mempool().await, [recovery["txid"].as_str().unwrap().parse().unwrap()]);
            }
        }
        assert_eq!(swept["feeRate"], 2.0);
        // A coin that another transaction in the mempool spends, perhaps an announcement, is skipped unless it is requested.
        let more = [&sweep[..], &["--min-fee-rate", "9"]].concat();
        let before = blocks.mempool().await;
        let outpoints = |report: &Value| -> Vec<String> {
            let recoveries = report["recoveries"].as_array().unwrap().iter();
            recoveries.map(|recovery| recovery["outpoint"].as_str().unwrap().to_owned()).collect()
        };
        let (_, again) = recover(&more);
        assert_eq!((outpoints(&again), blocks.mempool().await), (vec![dust.to_string()], before.clone()));
        let (_, replaced) = recover(&[&more[..], &["--replace"]].concat());
        assert!(outpoints(&replaced).contains(&old.to_string()), "{replaced}");
        assert_ne!(blocks.mempool().await, before);
        blocks.mine(1).await;
        let left = blocks.chain().coins(&script).await.unwrap();
        let mut left: Vec<_> = left.deposits.iter().map(|deposit| deposit.outpoint).collect();
        left.sort();
        let mut expected = [dust, young];
        expected.sort();
        assert_eq!(left, expected);

        let refused = crate::support::run_with(
            &[&["recover", "--chain", &source][..], &sweep].concat(),
            &[("RECOVERY_KEY", &*Beacon::new("other", 3, 1).recovery.to_hex())],
        );
        assert!(refused.status == Some(1) && refused.stderr.contains(&recovery_key), "{refused:?}");
    });
}

#[test]
fn errors_do_not_contain_the_password() {
    let run = crate::support::run(&["recover", "--chain", "core=https://u:sesame@h", "--keys", "00"]);
    assert!(run.status == Some(2) && !run.all().contains("sesame"), "{run:?}");
    let run = crate::support::run(&["recover", "--chain", "core=https://u:sesame@h"]);
    assert!(run.usage().contains("speaks http") && !run.all().contains("sesame"), "{run:?}");
    let run = crate::support::run(&["recover", "--chain", "core=http://u:sesame@127.0.0.1:1"]);
    assert!(run.usage().contains("which cohort"), "{run:?}");
}
