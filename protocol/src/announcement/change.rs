//! The operator's change, and the child that pays for a stuck beacon transaction.
//!
//! The change of a beacon transaction goes to the operator's own key, so that a bump needs no signature of a member: a
//! child spends the change to the same key with a fee that suffices for both (child pays for parent).

use std::fmt;

use bitcoin::{
    Address, Amount, FeeRate, OutPoint, Script, ScriptBuf, Sequence, TapSighashType, Transaction, TxIn, TxOut,
    Witness,
    absolute::LockTime,
    hashes::Hash,
    key::{Keypair, TapTweak},
    secp256k1::{Message, SECP256K1, SecretKey as Scalar},
    sighash::{Prevouts, SighashCache},
    transaction::Version,
};
use serde::{Deserialize, Serialize};

use super::fees::{fee_at, rate_of};
use crate::{key::SecretKey, network::Network, output::Coin};

/// The virtual size of a child: one P2TR input by key path, one P2TR output.
pub(super) const CHILD_VSIZE: u64 = 111;

/// The key that change is paid to, as a P2TR output without scripts (BIP-86): in a wallet, the descriptor `tr(KEY)`.
pub struct ChangeKey {
    /// The key with its taproot tweak, which signs.
    tweaked: Keypair,
    script: ScriptBuf,
}

impl ChangeKey {
    /// Change to the key `secret`.
    pub fn new(secret: &SecretKey) -> Self {
        let mut scalar: Scalar = secret.to_hex().parse().expect("the text of a secret key is one");
        let mut pair = Keypair::from_secret_key(SECP256K1, &scalar);
        scalar.non_secure_erase();
        let script = ScriptBuf::new_p2tr(SECP256K1, pair.x_only_public_key().0, None);
        let tweaked = pair.tap_tweak(SECP256K1, None).to_keypair();
        pair.non_secure_erase();
        Self { tweaked, script }
    }

    /// The script that receives change.
    pub fn script_pubkey(&self) -> &Script {
        &self.script
    }

    /// The address of the script.
    pub fn address(&self, network: Network) -> Option<Address> {
        Address::from_script(&self.script, network.to_bitcoin()).ok()
    }

    /// `child` with its signature, which is deterministic.
    pub fn sign(&self, child: &Child) -> Transaction {
        let mut transaction = child.transaction.clone();
        let prevout = TxOut { value: child.spends, script_pubkey: self.script.clone() };
        let digest = SighashCache::new(&transaction).taproot_key_spend_signature_hash(
            0,
            &Prevouts::All(&[prevout]),
            TapSighashType::Default,
        );
        // A child that was built here has exactly one input.
        if let (Ok(digest), Some(input)) = (digest, transaction.input.first_mut()) {
            let message = Message::from_digest(digest.to_byte_array());
            let signature = SECP256K1.sign_schnorr_no_aux_rand(&message, &self.tweaked);
            input.witness.push(signature.serialize());
        }
        transaction
    }
}

impl ChangeKey {
    /// A signed transaction that pays all of `coins`, which pay to this key, to `to` at `rate`; and its fee.
    ///
    /// # Errors
    /// Why not, in words: their value is too small.
    pub fn sweep(&self, coins: &[Coin], to: &Script, rate: FeeRate) -> Result<(Transaction, Amount), String> {
        let value: Amount = coins.iter().map(|coin| coin.value).sum();
        let input = coins.iter().map(|coin| TxIn {
            previous_output: coin.outpoint,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness: Witness::new(),
        });
        let mut transaction = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: input.collect(),
            output: vec![TxOut { value, script_pubkey: to.to_owned() }],
        };
        // Signatures have a fixed size, so this first signature gives the final size.
        self.sign_all(&mut transaction, coins)?;
        let fee = fee_at(rate, u64::try_from(transaction.vsize()).unwrap_or(u64::MAX));
        let rest = value.checked_sub(fee).filter(|rest| *rest >= to.minimal_non_dust());
        transaction.output[0].value = rest.ok_or_else(|| {
            format!("{} sat in all, of which a fee of {} leaves dust", value.to_sat(), fee.to_sat())
        })?;
        self.sign_all(&mut transaction, coins)?;
        Ok((transaction, fee))
    }

    /// Signs every input of a transaction that spends exactly `coins`.
    fn sign_all(&self, transaction: &mut Transaction, coins: &[Coin]) -> Result<(), String> {
        let prevouts: Vec<_> =
            coins.iter().map(|coin| TxOut { value: coin.value, script_pubkey: self.script.clone() }).collect();
        transaction.input.iter_mut().for_each(|input| input.witness.clear());
        let unsigned = transaction.clone();
        let mut cache = SighashCache::new(&unsigned);
        for (index, input) in transaction.input.iter_mut().enumerate() {
            let digest = cache
                .taproot_key_spend_signature_hash(index, &Prevouts::All(&prevouts), TapSighashType::Default)
                .map_err(|error| error.to_string())?;
            let message = Message::from_digest(digest.to_byte_array());
            input.witness.push(SECP256K1.sign_schnorr_no_aux_rand(&message, &self.tweaked).serialize());
        }
        Ok(())
    }
}

impl Drop for ChangeKey {
    fn drop(&mut self) {
        self.tweaked.non_secure_erase();
    }
}

impl fmt::Debug for ChangeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChangeKey({})", self.script)
    }
}

/// A child that pays for its parent, not signed yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// The transaction.
    pub transaction: Transaction,
    /// The value of the output that it spends.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub spends: Amount,
}

impl Child {
    /// Its fee.
    pub fn fee(&self) -> Amount {
        let paid: Amount = self.transaction.output.iter().map(|output| output.value).sum();
        self.spends.checked_sub(paid).unwrap_or_default()
    }
}

/// Why a transaction cannot be bumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BumpError {
    /// It has no output that pays to the operator.
    #[error("it has no change that the operator could spend")]
    NoChange,
    /// The change cannot pay for more.
    #[error("its change holds too little to pay for more")]
    ChangeTooSmall,
    /// A higher rate would exceed the operator's ceiling.
    #[error("it pays the highest fee rate that is allowed")]
    AtCeiling,
    /// The node requires more than the operator's ceiling.
    #[error("the highest fee rate that is allowed is below what the node takes now (mempoolminfee, minrelaytxfee)")]
    CeilingBelowMinimum,
}

/// A transaction to bump.
#[derive(Clone, Copy, Debug)]
pub struct Bump<'a> {
    /// The signed transaction.
    pub parent: &'a Transaction,
    /// Its own fee.
    pub parent_fee: Amount,
    /// Its present child, if any.
    pub child: Option<&'a Child>,
}

impl Bump<'_> {
    fn parent_vsize(&self) -> u64 {
        u64::try_from(self.parent.vsize()).unwrap_or(u64::MAX)
    }

    /// The fee rate of the transaction with its child.
    pub fn rate(&self) -> FeeRate {
        match self.child {
            None => rate_of(self.parent_fee, self.parent_vsize()),
            Some(child) => rate_of(self.parent_fee + child.fee(), self.parent_vsize() + CHILD_VSIZE),
        }
    }

    /// A child of the change output to `change` with which both together pay `rate`, or as near to it as the change
    /// allows.
    ///
    /// It replaces the present child: it pays that child's fee and 1 sat/vB more for its own relay (BIP-125), but both
    /// together never pay more than `ceiling`.
    ///
    /// # Errors
    /// [`BumpError`] if it would not pay more than now.
    pub fn child_for(&self, rate: FeeRate, ceiling: FeeRate, change: &Script) -> Result<Child, BumpError> {
        let vout = self.parent.output.iter().position(|output| *output.script_pubkey == *change);
        let vout = vout.ok_or(BumpError::NoChange)?;
        let spends = self.parent.output[vout].value;
        let own_relay = fee_at(FeeRate::BROADCAST_MIN, CHILD_VSIZE);
        let least = self.child.map_or(own_relay, |child| child.fee() + own_relay);
        let most = spends.checked_sub(change.minimal_non_dust()).unwrap_or_default();
        if most < least {
            return Err(BumpError::ChangeTooSmall);
        }
        let vsize = self.parent_vsize().saturating_add(CHILD_VSIZE);
        let fee = |rate| fee_at(rate, vsize).checked_sub(self.parent_fee).unwrap_or_default();
        if fee(ceiling) < least {
            return Err(BumpError::AtCeiling);
        }
        let fee = fee(rate.min(ceiling)).clamp(least, most);
        let previous_output =
            OutPoint { txid: self.parent.compute_txid(), vout: u32::try_from(vout).unwrap_or(u32::MAX) };
        let transaction = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![TxIn {
                previous_output,
                script_sig: ScriptBuf::new(),
                // A later bump can replace this child.
                sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
                witness: Witness::new(),
            }],
            output: vec![TxOut { value: spends - fee, script_pubkey: change.to_owned() }],
        };
        Ok(Child { transaction, spends })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change_key() -> ChangeKey {
        ChangeKey::new(&SecretKey::from_bytes(&[9; 32]).unwrap())
    }

    fn parent(change: Amount) -> Transaction {
        let output = [(change, change_key().script.clone()), (Amount::ZERO, ScriptBuf::new_op_return([7; 32]))];
        let output = output.map(|(value, script_pubkey)| TxOut { value, script_pubkey }).into();
        Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: vec![TxIn::default()], output }
    }

    #[test]
    fn a_child_brings_both_to_the_rate() {
        let (parent, key) = (parent(Amount::from_sat(100_000)), change_key());
        let mut bump = Bump { parent: &parent, parent_fee: Amount::from_sat(150), child: None };
        let rate = FeeRate::from_sat_per_vb_u32(10);
        let child = bump.child_for(rate, FeeRate::MAX, key.script_pubkey()).unwrap();
        let signed = key.sign(&child);
        assert_eq!(u64::try_from(signed.vsize()).unwrap(), CHILD_VSIZE);
        bump.child = Some(&child);
        assert_eq!(bump.rate(), rate);
        // The next child pays for the replacement, even if the requested rate is the same.
        let next = bump.child_for(rate, FeeRate::MAX, key.script_pubkey()).unwrap();
        assert_eq!(next.fee(), child.fee() + Amount::from_sat(111));
        // Not if that exceeds the ceiling.
        assert_eq!(bump.child_for(rate, rate, key.script_pubkey()), Err(BumpError::AtCeiling));
    }

    #[test]
    fn a_child_never_makes_dust() {
        let key = change_key();
        for (change, rate, expected) in [
            (441, 1, Ok(111)),
            (440, 1, Err(BumpError::ChangeTooSmall)),
            (5_000, 1_000, Ok(4_670)),
            (330, 1_000, Err(BumpError::ChangeTooSmall)),
        ] {
            let parent = parent(Amount::from_sat(change));
            let bump = Bump { parent: &parent, parent_fee: Amount::from_sat(150), child: None };
            let child = bump.child_for(FeeRate::from_sat_per_vb_u32(rate), FeeRate::MAX, key.script_pubkey());
            assert_eq!(child.as_ref().map(|child| child.fee().to_sat()), expected.as_ref().copied(), "{change}");
        }
        let parent = parent(Amount::from_sat(5_000));
        let bump = Bump { parent: &parent, parent_fee: Amount::from_sat(150), child: None };
        let elsewhere = ScriptBuf::new_op_return([1]);
        assert_eq!(bump.child_for(FeeRate::BROADCAST_MIN, FeeRate::MAX, &elsewhere), Err(BumpError::NoChange));
    }
}
