//! Coins for the tests: coinbases of a known key.

use bitcoin::{
    Amount, OutPoint, ScriptBuf, Sequence, TapSighashType, Transaction, TxIn, TxOut, Witness,
    absolute::LockTime,
    hashes::Hash,
    key::{Keypair, TapTweak},
    secp256k1::{Message, SECP256K1, SecretKey},
    sighash::{Prevouts, SighashCache},
    transaction::Version,
};
use serde_json::json;

use super::{Kind, TestChain};

/// A key of the tests that pays to itself, by P2TR key path.
#[derive(Clone)]
pub struct Wallet(Keypair);

impl Wallet {
    pub fn new(seed: u8) -> Self {
        Self(Keypair::from_secret_key(SECP256K1, &SecretKey::from_slice(&[seed; 32]).unwrap()))
    }

    pub fn script(&self) -> ScriptBuf {
        ScriptBuf::new_p2tr(SECP256K1, self.0.x_only_public_key().0, None)
    }

    /// Spends outputs that pay to this key.
    pub fn spend(&self, coins: &[(OutPoint, Amount)], outputs: Vec<TxOut>) -> Transaction {
        let input = coins.iter().map(|(outpoint, _)| TxIn {
            previous_output: *outpoint,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::MAX,
            witness: Witness::new(),
        });
        let (version, lock_time) = (Version::TWO, LockTime::ZERO);
        let transaction = Transaction { version, lock_time, input: input.collect(), output: outputs };
        let values: Vec<_> = coins.iter().map(|(_, value)| *value).collect();
        self.sign(transaction, &values, Sequence::MAX)
    }

    /// Signs a transaction whose inputs pay to this key and hold these values, with another sequence.
    pub fn sign(&self, transaction: Transaction, values: &[Amount], sequence: Sequence) -> Transaction {
        self.sign_with(transaction, values, &vec![self.script(); values.len()], sequence)
    }

    /// The same, where some of the inputs pay to these other scripts: their witnesses are to be replaced.
    pub fn sign_with(
        &self,
        mut transaction: Transaction,
        values: &[Amount],
        scripts: &[ScriptBuf],
        sequence: Sequence,
    ) -> Transaction {
        for input in &mut transaction.input {
            input.sequence = sequence;
            input.witness.clear();
        }
        let prevouts: Vec<_> = values
            .iter()
            .zip(scripts)
            .map(|(value, script)| TxOut { value: *value, script_pubkey: script.clone() })
            .collect();
        let key = self.0.tap_tweak(SECP256K1, None).to_keypair();
        let signatures: Vec<_> = (0..values.len())
            .map(|index| {
                let digest = SighashCache::new(&transaction)
                    .taproot_key_spend_signature_hash(index, &Prevouts::All(&prevouts), TapSighashType::Default)
                    .unwrap();
                SECP256K1.sign_schnorr_no_aux_rand(&Message::from_digest(digest.to_byte_array()), &key)
            })
            .collect();
        for (input, signature) in transaction.input.iter_mut().zip(signatures) {
            input.witness.push(signature.serialize());
        }
        transaction
    }
}

/// Pays to any script.
pub struct Faucet {
    wallet: Wallet,
    coins: Vec<(OutPoint, Amount)>,
}

impl Faucet {
    /// A faucet of so many payments. Mines the blocks that it needs.
    pub async fn new(chain: &TestChain, payments: u32) -> Self {
        let wallet = Wallet::new(7);
        let script = wallet.script();
        let coins = match chain.kind() {
            Kind::Memory(memory) => {
                let coins = memory.mine(payments, &script);
                coins.into_iter().map(|outpoint| (outpoint, Amount::from_btc(50.0).unwrap())).collect()
            }
            Kind::Node(node) => {
                let descriptor = format!("raw({})", script.to_hex_string());
                let hashes = node.rpc("generatetodescriptor", json!([payments, descriptor])).await;
                let mut coins = Vec::new();
                for hash in hashes.as_array().unwrap() {
                    let block = node.rpc("getblock", json!([hash, 2])).await;
                    let coinbase = &block["tx"][0];
                    let outpoint = OutPoint { txid: coinbase["txid"].as_str().unwrap().parse().unwrap(), vout: 0 };
                    coins.push((
                        outpoint,
                        Amount::from_btc(coinbase["vout"][0]["value"].as_f64().unwrap()).unwrap(),
                    ));
                }
                chain.mine(100).await;
                coins
            }
        };
        Self { wallet, coins }
    }

    /// A signed payment that is not broadcast yet, with a fee of 1000 satoshis.
    pub fn payment(&mut self, script: &ScriptBuf, amount: Amount) -> Transaction {
        let (outpoint, value) = self.coins.pop().expect("a faucet of more payments");
        let output = TxOut { value: amount, script_pubkey: script.clone() };
        let rest = value - amount - Amount::from_sat(1000);
        let change = TxOut { value: rest, script_pubkey: self.wallet.script() };
        self.wallet.spend(&[(outpoint, value)], vec![output, change])
    }

    /// A payment into the mempool.
    pub async fn pay(&mut self, chain: &TestChain, script: &ScriptBuf, amount: Amount) -> OutPoint {
        let transaction = self.payment(script, amount);
        chain.chain().submit(&transaction).await.unwrap();
        OutPoint { txid: transaction.compute_txid(), vout: 0 }
    }
}
