//! A deposit to a beacon address by a PSBT that is signed elsewhere, as programs over a real node.

use std::fs;

use crate::bitcoind_support::{
    Bitcoind, TestChain,
    beacon::Beacon,
    faucet::{Faucet, Wallet},
};
use crate::support::{path, run};
use crate::unread_output::fails_unread;
use bitcoin::{Address, Amount, FeeRate, Psbt, Sequence};
use btcr2_aggregation::bitcoin::deposit::{self, DepositError};
use data_encoding::BASE64;

/// Signs and finalizes a PSBT that spends coins of `wallet`.
fn signed(wallet: &Wallet, text: &str) -> String {
    let mut psbt = Psbt::deserialize(&BASE64.decode(text.trim().as_bytes()).unwrap()).unwrap();
    let values: Vec<_> = psbt.inputs.iter().map(|input| input.witness_utxo.as_ref().unwrap().value).collect();
    let transaction = wallet.sign(psbt.unsigned_tx.clone(), &values, Sequence::ENABLE_RBF_NO_LOCKTIME);
    for (input, signed) in psbt.inputs.iter_mut().zip(transaction.input) {
        input.final_script_witness = Some(signed.witness);
    }
    deposit::to_text(&psbt)
}

#[test]
fn a_deposit_is_signed_elsewhere_and_submitted() {
    actix_rt::System::new().block_on(async {
        let Some(blocks) = TestChain::core("a_deposit_is_signed_elsewhere_and_submitted").await else { return };
        let mut faucet = Faucet::new(&blocks, 3).await;
        let wallet = Wallet::new(21);
        for sat in [20_000, 30_000, 5_000] {
            faucet.pay(&blocks, &wallet.script(), Amount::from_sat(sat)).await;
        }
        // A coinbase, the largest coin by far, that cannot be spent for a long time.
        blocks.mine_to(1, &wallet.script()).await;
        let directory = crate::support::directory("funding");
        let source = format!("core={}?cookie={}", blocks.node().url(), blocks.node().cookie_file().display());
        let beacon = Beacon::new("funding", 3, 144);
        let address = |script| Address::from_script(script, bitcoin::Network::Regtest).unwrap().to_string();
        let (from, to) = (address(&wallet.script()), beacon.output.address().to_owned());
        let (psbt, done) = (path(&directory, "deposit.psbt"), path(&directory, "signed.psbt"));
        let fund = |amount: &str, out: &str| {
            run(&["fund", "--chain", &source, "--from", &from, "--to", &to, "--amount", amount, "--out", out])
        };
        let submit = |file: &str| run(&["fund", "--chain", &source, "--submit", file]);

        let too_much = fund("60000", &psbt);
        assert!(too_much.status == Some(1) && too_much.stderr.contains("0.00055"), "{too_much:?}");
        assert!(fund("200", &psbt).usage().contains("dust"));
        fund("40000", &psbt).succeeded();
        assert!(submit(&psbt).usage().contains("final"));
        fs::write(&done, signed(&wallet, &fs::read_to_string(&psbt).unwrap())).unwrap();
        submit(&done).succeeded();
        // A second submission succeeds as well.
        submit(&done).succeeded();
        fails_unread(&[
            "fund", "--chain", &source, "--from", &from, "--to", &to, "--amount", "4000", "--out", &psbt,
        ]);
        fails_unread(&["fund", "--chain", &source, "--submit", &done]);
        blocks.mine(1).await;
        let coins = blocks.chain().coins(beacon.output.script_pubkey()).await.unwrap();
        assert_eq!(coins.deposits.iter().map(|coin| coin.value.to_sat()).collect::<Vec<_>>(), [40_000]);
        // Two coins were enough; the third one and the change are left.
        let left = blocks.chain().coins(&wallet.script()).await.unwrap();
        let mut left: Vec<_> = left.deposits.iter().map(|coin| coin.value.to_sat()).collect();
        left.sort_unstable();
        let fee = 10_000 - left[1];
        assert_eq!((left.len(), left[0]), (3, 5_000));
        let transaction = deposit::extract(fs::read_to_string(&done).unwrap()).unwrap();
        assert_eq!(fee, transaction.vsize() as u64, "1 sat/vB, the lowest rate, without an estimate");
    });
}

#[test]
fn a_deposit_pays_at_least_the_minimum_of_the_node() {
    actix_rt::System::new().block_on(async {
        let name = "a_deposit_pays_at_least_the_minimum_of_the_node";
        let Some(node) = Bitcoind::start_with(name, &["-minrelaytxfee=0.00005"]).await else { return };
        let blocks = TestChain::Core(node);
        let mut faucet = Faucet::new(&blocks, 1).await;
        let wallet = Wallet::new(21);
        let payment = faucet.payment(&wallet.script(), Amount::from_sat(100_000));
        blocks.chain().submit(&payment).await.unwrap();
        blocks.mine(1).await;
        assert_eq!(blocks.chain().minimum_fee().await.unwrap(), Some(FeeRate::from_sat_per_vb_u32(5)));
        let directory = crate::support::directory("funding-minimum");
        let source = format!("core={}?cookie={}", blocks.node().url(), blocks.node().cookie_file().display());
        let beacon = Beacon::new("funding", 3, 144);
        let from = Address::from_script(&wallet.script(), bitcoin::Network::Regtest).unwrap().to_string();
        let out = path(&directory, "deposit.psbt");
        let fund = |more: &[&str]| {
            let fixed = ["fund", "--chain", &source, "--from", &from, "--to", beacon.output.address()];
            run(&[&fixed[..], &["--amount", "40000", "--out", &out], more].concat())
        };
        let fee = || {
            let psbt = fs::read_to_string(&out).unwrap();
            let psbt = Psbt::deserialize(&BASE64.decode(psbt.trim().as_bytes()).unwrap()).unwrap();
            100_000 - psbt.unsigned_tx.output.iter().map(|output| output.value.to_sat()).sum::<u64>()
        };
        fund(&[]).succeeded();
        let least = fee();
        assert!(least >= 5 * 150, "{least}");
        fund(&["--fee-rate", "2"]).succeeded();
        assert_eq!(fee(), least);
        fund(&["--fee-rate", "10"]).succeeded();
        assert_eq!(fee(), least * 2);
        let refused = fund(&["--max-fee-rate", "4"]);
        assert!(refused.usage().contains("4 sat/vB") && refused.usage().contains("below 5"), "{refused:?}");
    });
}

#[test]
fn dust_becomes_fee_and_unsupported_addresses_are_refused() {
    actix_rt::System::new().block_on(async {
        let blocks = TestChain::memory();
        let mut faucet = Faucet::new(&blocks, 2).await;
        let wallet = Wallet::new(21);
        faucet.pay(&blocks, &wallet.script(), Amount::from_sat(20_000)).await;
        let waiting = blocks.chain().coins(&wallet.script()).await.unwrap();
        let (from, to) = (wallet.script(), Wallet::new(22).script());
        let build =
            |wallet, amount| deposit::build(wallet, &from, &to, Amount::from_sat(amount), FeeRate::BROADCAST_MIN);
        assert!(matches!(build(&waiting, 10_000), Err(DepositError::InsufficientFunds { .. })));
        blocks.mine(1).await;
        let coins = blocks.chain().coins(&wallet.script()).await.unwrap();
        for (amount, outputs) in [(10_000, 2), (19_500, 2), (19_600, 1), (19_889, 1)] {
            assert_eq!(build(&coins, amount).unwrap().unsigned_tx.output.len(), outputs, "{amount}");
        }
        assert!(matches!(build(&coins, 19_890), Err(DepositError::InsufficientFunds { .. })));
        let script = bitcoin::ScriptBuf::new_op_return([1]);
        let refused = deposit::build(&coins, &script, &to, Amount::from_sat(10_000), FeeRate::BROADCAST_MIN);
        assert_eq!(refused, Err(DepositError::UnknownKind));
    });
}
