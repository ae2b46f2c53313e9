//! Nodes relay the fallback transactions of small and large cohorts, whose size is that for which their fee was computed.

use crate::bitcoind_support::{
    TestChain,
    beacon::Beacon,
    faucet::{Faucet, Wallet},
};
use bitcoin::{Amount, FeeRate};
use btcr2_aggregation::{
    bitcoin::fees::{fee_at, rate_of},
    protocol::{
        hash::SignalBytes,
        output::{Change, Coin, build_beacon_transaction, fallback_vsize},
    },
};

/// At k = n - 1, without any setting of the node.
#[test]
fn fallback_transactions_of_10_to_100_members_are_relayed() {
    actix_rt::System::new().block_on(async {
        let name = "fallback_transactions_of_10_to_100_members_are_relayed";
        let Some(blocks) = TestChain::core(name).await else { return };
        let mut faucet = Faucet::new(&blocks, 6).await;
        for members in [10, 30, 100] {
            for change in [Change::Beacon, Change::To(Wallet::new(9).script())] {
                let beacon = Beacon::new(&format!("relay {members}"), members, 144);
                let value = Amount::from_sat(100_000);
                let script = beacon.output.script_pubkey().to_owned();
                let outpoint = faucet.pay(&blocks, &script, value).await;
                let signal = SignalBytes::from_bytes([3; 32]);
                let coin = Coin { outpoint, value };
                let unsigned =
                    build_beacon_transaction(&beacon.output, &coin, &signal, FeeRate::BROADCAST_MIN, &change)
                        .unwrap();
                let predicted = fallback_vsize(&unsigned, beacon.output.fallback().unwrap());
                let signed = beacon.sign(&unsigned, value);

                let verdict = blocks.node().mempool_accepts(&signed).await;
                assert_eq!(verdict["allowed"], true, "{members} members: {verdict}");
                assert_eq!(verdict["vsize"], predicted, "{members} members");
                let fee = value - signed.output.iter().map(|output| output.value).sum();
                assert_eq!(fee, fee_at(FeeRate::BROADCAST_MIN, predicted));
                assert!(rate_of(fee, predicted) >= FeeRate::BROADCAST_MIN);
            }
        }
    });
}
