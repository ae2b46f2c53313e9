//! What a cohort saved: its one transaction compared with a separate transaction for each member.
//!
//! A member that announces alone spends a coin of its own in a singleton transaction: one input, its change, and an
//! `OP_RETURN` of 32 bytes. The comparison uses one fee rate, and counts the size of each announcement in a block. The
//! deposit that funds a beacon address is needed in both cases and is not counted.

use ::bitcoin::Amount;
use serde::{Deserialize, Serialize};

/// The file in a cohort's directory of results that records how its announcement ended: the event `announcement-final`
/// or `announcement-failed`.
pub const OUTCOME_FILE: &str = "announced.json";

/// The kind of output that a member's own wallet spends and pays its change to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WalletKind {
    /// Pay to witness public key hash
    #[default]
    P2wpkh,
    /// Pay to Taproot, spent by key path
    P2tr,
}

impl WalletKind {
    /// The virtual size of a singleton transaction in vB: input, change, and an `OP_RETURN` of 32 bytes.
    pub const fn singleton_vsize(self) -> u64 {
        // Without witness: version, lock time and three counts take 10 bytes, the input 41, the OP_RETURN output 43.
        const BASE: u64 = 10 + 41 + 43;
        // Marker and flag, then the witness: a count; an ECDSA signature of at most 72 bytes and a key, or a signature
        // of 64 bytes, each with its length.
        let (change, witness) = match self {
            Self::P2wpkh => (31, 2 + 1 + (1 + 72) + (1 + 33)),
            Self::P2tr => (43, 2 + 1 + (1 + 64)),
        };
        ((BASE + change) * 4 + witness as u64).div_ceil(4)
    }

    /// The size of an output of this kind, in vB.
    pub const fn output_vsize(self) -> u64 {
        match self {
            Self::P2wpkh => 31,
            Self::P2tr => 43,
        }
    }

    /// The virtual size of a child in vB that bumps a transaction: one input and its change.
    pub const fn child_vsize(self) -> u64 {
        // The OP_RETURN output has no witness.
        self.singleton_vsize() - 43
    }
}

/// The size and the cost of a cohort's announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The number of members that announced an update that no earlier cohort had announced. The others had nothing to
    /// announce.
    pub updates: u64,
    /// The number of these that were the first update of their DID at this beacon. A resolver finds such an update only
    /// after a singleton transaction of a beacon that the document already lists has announced it too.
    pub first_updates: u64,
    /// The virtual size of the transaction.
    pub vsize: u64,
    /// The fee that it paid.
    pub fee: Amount,
    /// The fees that its children paid.
    pub child_fee: Amount,
}

/// What a cohort saved compared with singleton transactions of its updates, at its own fee rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Savings {
    /// The number of updates that were compared.
    pub updates: u64,
    /// The fee rate of both sides, in sat/vB.
    pub fee_rate: f64,
    /// What the cohort paid, in satoshis, including children and the singleton transactions of first updates.
    #[serde(with = "::bitcoin::amount::serde::as_sat")]
    pub paid: Amount,
    /// The part of it that children paid to bump the transaction.
    #[serde(with = "::bitcoin::amount::serde::as_sat")]
    pub child_fees: Amount,
    /// The number of first updates that still needed a singleton transaction.
    pub first_updates: u64,
    /// What these paid, in satoshis.
    #[serde(with = "::bitcoin::amount::serde::as_sat")]
    pub first_singletons: Amount,
    /// The cost of each update, in satoshis.
    pub paid_each: f64,
    /// What each singleton transaction would have paid, in satoshis.
    #[serde(with = "::bitcoin::amount::serde::as_sat")]
    pub singleton: Amount,
    /// What all singleton transactions would have paid, in satoshis.
    #[serde(with = "::bitcoin::amount::serde::as_sat")]
    pub singletons: Amount,
    /// The difference, in satoshis; negative if the cohort cost more.
    pub saved: i64,
    /// The difference in vB.
    pub saved_vsize: i64,
}

/// Compares a cohort with singleton transactions of the kind `wallet`.
pub fn savings(announced: &Announced, wallet: WalletKind) -> Savings {
    let Announced { updates, first_updates, vsize, fee, child_fee } = *announced;
    // The exact rate: a rounded one would favor one side.
    let exact = |size: u64| {
        let sat = (u128::from(fee.to_sat()) * u128::from(size)).div_ceil(u128::from(vsize.max(1)));
        Amount::from_sat(u64::try_from(sat).unwrap_or(u64::MAX))
    };
    let singleton = exact(wallet.singleton_vsize());
    let singletons = singleton.checked_mul(updates).unwrap_or(Amount::MAX);
    let first_singletons = singleton.checked_mul(first_updates).unwrap_or(Amount::MAX);
    let paid = [child_fee, first_singletons]
        .into_iter()
        .fold(fee, |sum, more| sum.checked_add(more).unwrap_or(Amount::MAX));
    let blocks = wallet.singleton_vsize().saturating_mul(first_updates).saturating_add(vsize);
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    Savings {
        updates,
        fee_rate: fee.to_sat() as f64 / vsize.max(1) as f64,
        paid,
        child_fees: child_fee,
        first_updates,
        first_singletons,
        paid_each: paid.to_sat() as f64 / updates.max(1) as f64,
        singleton,
        singletons,
        saved: signed(singletons.to_sat()) - signed(paid.to_sat()),
        saved_vsize: signed(wallet.singleton_vsize().saturating_mul(updates)) - signed(blocks),
    }
}

#[cfg(test)]
mod tests {
    use ::bitcoin::{
        ScriptBuf, Transaction, TxIn, TxOut, WPubkeyHash, Witness, absolute::LockTime, hashes::Hash,
        transaction::Version,
    };

    use super::*;

    #[test]
    fn a_singleton_is_as_large_as_a_real_one() {
        let p2wpkh = ScriptBuf::new_p2wpkh(&WPubkeyHash::all_zeros());
        let p2tr = ScriptBuf::from_bytes([vec![0x51, 0x20], vec![2; 32]].concat());
        for (wallet, change, witness) in
            [(WalletKind::P2wpkh, p2wpkh, vec![72, 33]), (WalletKind::P2tr, p2tr, vec![64])]
        {
            let witness: Vec<Vec<u8>> = witness.into_iter().map(|length| vec![0; length]).collect();
            let output = [change, ScriptBuf::new_op_return([0; 32])];
            let transaction = Transaction {
                version: Version::TWO,
                lock_time: LockTime::ZERO,
                input: vec![TxIn { witness: Witness::from_slice(&witness), ..TxIn::default() }],
                output: output.map(|script_pubkey| TxOut { value: Amount::ZERO, script_pubkey }).into(),
            };
            assert_eq!(u64::try_from(transaction.vsize()).unwrap(), wallet.singleton_vsize(), "{wallet:?}");
            let mut child = transaction.clone();
            child.output.truncate(1);
            assert_eq!(u64::try_from(child.vsize()).unwrap(), wallet.child_vsize(), "{wallet:?}");
            assert_eq!(child.output[0].size() as u64, wallet.output_vsize(), "{wallet:?}");
        }
    }

    #[test]
    fn savings_grow_with_the_cohort_and_can_be_negative() {
        let announced = |updates| Announced {
            updates,
            first_updates: 0,
            vsize: 154,
            fee: Amount::from_sat(308),
            child_fee: Amount::ZERO,
        };
        let of_ten = savings(&announced(10), WalletKind::P2tr);
        assert_eq!((of_ten.fee_rate, of_ten.singleton.to_sat(), of_ten.singletons.to_sat()), (2.0, 308, 3080));
        assert_eq!((of_ten.saved, of_ten.saved_vsize, of_ten.paid_each), (2772, 1386, 30.8));
        let of_one = savings(&announced(1), WalletKind::P2wpkh);
        assert_eq!((of_one.saved, of_one.saved_vsize), (-2, -1));
        // A child, and the singleton transactions that first updates still need.
        let dear = Announced { first_updates: 4, child_fee: Amount::from_sat(100), ..announced(10) };
        let dear = savings(&dear, WalletKind::P2tr);
        assert_eq!((dear.first_singletons.to_sat(), dear.paid.to_sat(), dear.saved), (1232, 1640, 1440));
        assert_eq!((dear.saved_vsize, dear.child_fees.to_sat()), (1386 - 4 * 154, 100));
        let of_none = savings(&announced(0), WalletKind::P2tr);
        assert_eq!((of_none.saved, of_none.paid_each), (-308, 308.0));
    }
}
