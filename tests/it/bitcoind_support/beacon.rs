//! Beacon outputs whose members' keys the test knows, so that it can sign for them.

use std::{collections::BTreeMap, sync::Arc};

use bitcoin::{Amount, Transaction, TxOut};
use btcr2_aggregation::{
    actors::runtime::Randomness,
    protocol::{
        key::SecretKey,
        network::Network,
        output::{BeaconOutput, KeyAggregation, RecoverySequence, ScriptTree},
    },
};

/// A cohort without its members' programs.
pub struct Beacon {
    pub output: BeaconOutput,
    pub recovery: SecretKey,
    members: Vec<SecretKey>,
}

pub fn key(name: &str) -> SecretKey {
    SecretKey::generate(&mut Randomness::Seeded([5; 32]).for_actor(name))
}

impl Beacon {
    /// A beacon of so many members, all but one of whom can sign without the rest.
    pub fn new(name: &str, members: usize, recovery_blocks: u64) -> Self {
        let recovery = key(&format!("{name} recovery"));
        let members: Vec<_> = (0..members).map(|index| key(&format!("{name} {index}"))).collect();
        let keys: Vec<_> = members.iter().map(SecretKey::public_key).collect();
        let tree = ScriptTree::FallbackAndRecovery {
            recovery_key: recovery.public_key().x_only(),
            recovery_sequence: RecoverySequence::try_from(recovery_blocks).unwrap(),
            fallback_threshold: None,
        };
        let aggregation = Arc::new(KeyAggregation::new(keys).unwrap());
        let output = BeaconOutput::new(aggregation, Network::Regtest, &tree).unwrap();
        Self { output, recovery, members }
    }

    /// The members' signature by fallback, for a coin of that value.
    pub fn sign(&self, transaction: &Transaction, value: Amount) -> Transaction {
        let prevout = TxOut { value, script_pubkey: self.output.script_pubkey().to_owned() };
        let leaf = self.output.fallback().unwrap();
        let digest = leaf.sighash(transaction, &prevout).unwrap();
        let mut rng = Randomness::Seeded([6; 32]).for_actor("fallback signatures");
        let signatures: BTreeMap<_, _> = self
            .members
            .iter()
            .map(|member| (member.public_key().x_only(), member.sign(&digest, &mut rng)))
            .collect();
        leaf.assemble(transaction, &prevout, &signatures).unwrap()
    }
}
