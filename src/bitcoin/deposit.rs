//! A deposit to a beacon address from an operator's own wallet, as a PSBT (BIP-174) for that wallet to sign.

use std::cmp::Reverse;

use ::bitcoin::{
    Amount, FeeRate, Psbt, Script, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness, absolute::LockTime,
    psbt::ExtractTxError, transaction::Version,
};
use data_encoding::BASE64;

use super::{
    chain::{Activity, COINBASE_MATURITY, Deposit, Place},
    fees::fee_at,
};
use crate::inputs;

/// The most coins that a deposit spends. A larger transaction may not be relayed.
const MAX_INPUTS: usize = 100;

/// Why a deposit cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DepositError {
    /// Inputs of the wallet's kind of script have no fixed size.
    #[error("coins of this kind of address cannot be spent here: P2WPKH or P2TR expected")]
    UnknownKind,
    /// The wallet's coins do not suffice.
    #[error("the address holds {available} in coins that can be spent; {needed} are needed")]
    InsufficientFunds {
        /// The value of its coins.
        available: Amount,
        /// The required amount, with the fee.
        needed: Amount,
    },
    /// The deposit is so small that nodes would not relay it.
    #[error("a deposit of {0} is dust")]
    Dust(Amount),
    /// The input is not a PSBT.
    #[error("not a PSBT: {0}")]
    NotAPsbt(String),
    /// The PSBT is not finalized.
    #[error("the PSBT is not finalized: {0}")]
    NotFinal(String),
}

/// The weight of an input's witness, by the script that it spends: the count, then each element with its length.
fn witness_weight(from: &Script) -> Result<u64, DepositError> {
    if from.is_p2wpkh() {
        Ok(1 + 73 + 34)
    } else if from.is_p2tr() {
        Ok(1 + 65)
    } else {
        Err(DepositError::UnknownKind)
    }
}

/// An unsigned PSBT that pays `amount` to `to` from confirmed coins of `from`, which gets the change.
///
/// Coinbase outputs that are not mature are omitted. Some chains do not report which coins these are, so coins that are
/// old enough in any case come first; of these, the largest.
///
/// # Errors
/// [`DepositError`].
pub fn build(
    wallet: &Activity,
    from: &Script,
    to: &Script,
    amount: Amount,
    rate: FeeRate,
) -> Result<Psbt, DepositError> {
    let witness = witness_weight(from)?;
    if amount < to.minimal_non_dust() {
        return Err(DepositError::Dust(amount));
    }
    let spent = |coin: &Deposit| wallet.spends.iter().any(|spend| spend.outpoint == coin.outpoint);
    let young = |coin: &Deposit| coin.place.block().is_none_or(|block| wallet.tip.depth(block) < COINBASE_MATURITY);
    let usable = |coin: &&Deposit| coin.place != Place::Mempool && !spent(coin) && !coin.is_immature(&wallet.tip);
    let mut coins: Vec<_> = wallet.deposits.iter().filter(usable).collect();
    coins.sort_unstable_by_key(|coin| (young(coin), Reverse(coin.value), coin.outpoint));
    coins.truncate(MAX_INPUTS);

    let mut transaction = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: Vec::new(),
        output: vec![TxOut { value: amount, script_pubkey: to.to_owned() }],
    };
    let (mut available, mut used) = (Amount::ZERO, Vec::new());
    let mut needed = amount;
    for coin in coins {
        available += coin.value;
        used.push(coin);
        transaction.input.push(TxIn {
            previous_output: coin.outpoint,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness: Witness::new(),
        });
        needed = amount + fee_at(rate, vsize(&transaction, witness));
        if available < needed {
            continue;
        }
        let mut with_change = transaction.clone();
        with_change.output.push(TxOut { value: Amount::ZERO, script_pubkey: from.to_owned() });
        let rest = available.checked_sub(amount + fee_at(rate, vsize(&with_change, witness)));
        if let Some(rest) = rest.filter(|rest| *rest >= from.minimal_non_dust()) {
            with_change.output[1].value = rest;
            transaction = with_change;
        }
        // It has neither scripts nor witnesses, the only reasons for an error.
        let mut psbt =
            Psbt::from_unsigned_tx(transaction).map_err(|error| DepositError::NotAPsbt(error.to_string()))?;
        for (input, coin) in psbt.inputs.iter_mut().zip(used) {
            input.witness_utxo = Some(TxOut { value: coin.value, script_pubkey: from.to_owned() });
        }
        return Ok(psbt);
    }
    Err(DepositError::InsufficientFunds { available, needed })
}

/// The size of a transaction whose inputs get a witness of that weight each.
fn vsize(transaction: &Transaction, witness: u64) -> u64 {
    let base = u64::try_from(transaction.base_size()).unwrap_or(u64::MAX);
    let inputs = u64::try_from(transaction.input.len()).unwrap_or(u64::MAX);
    // Marker and flag are two weight units.
    (base * 4 + 2 + inputs * witness).div_ceil(4)
}

/// A PSBT as text, base64 as wallets exchange it.
pub fn to_text(psbt: &Psbt) -> String {
    BASE64.encode(&psbt.serialize())
}

/// The transaction of a finalized PSBT; binary, base64 or hex, see [`inputs::psbt`].
///
/// # Errors
/// [`DepositError::NotAPsbt`] and [`DepositError::NotFinal`].
pub fn extract(given: impl AsRef<[u8]>) -> Result<Transaction, DepositError> {
    let psbt = inputs::psbt(given.as_ref()).map_err(DepositError::NotAPsbt)?;
    if psbt.inputs.iter().any(|input| input.final_script_witness.is_none() && input.final_script_sig.is_none()) {
        let problem = "an input has no final witness; finish it with the wallet's `finalizepsbt`";
        return Err(DepositError::NotFinal(problem.to_owned()));
    }
    psbt.extract_tx().map_err(|error: ExtractTxError| DepositError::NotFinal(error.to_string()))
}
