//! The transactions of a standing cohort (docs/standing.md, "Coins"): announcements, each of which spends the change of the one before it,
//! and refreshes, which join several coins and announce nothing.

use std::collections::BTreeMap;

use bitcoin::{
    Amount, FeeRate, Script, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness, absolute::LockTime,
    transaction::Version,
};
use serde::{Deserialize, Serialize};

use super::terms::StandingTerms;
use crate::{
    hash::SignalBytes,
    key::{Signature, XOnlyKey},
    names::named,
    output::{BeaconOutput, Coin, FallbackError, PrevoutCountError, key_path_sighashes},
};

named! {
    /// How a number's transaction is signed.
    Mode {
        /// By all seats, with MuSig2.
        Key = "key",
        /// By k seats, on the fallback leaf.
        Fallback = "fallback",
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let found = Self::ALL.iter().find(|mode| mode.as_str() == text);
        found.copied().ok_or_else(|| serde::de::Error::custom("key or fallback expected"))
    }
}

/// Where an announcement's value goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Destinations {
    /// The change: the beacon, or the successor's beacon in the last announcement.
    pub change: ScriptBuf,
    /// The operator's own output, which pays for bumps; there may be none.
    pub operator: Option<TxOut>,
}

/// Why a transaction cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StandingBuildError {
    /// The coins do not hold enough for the fee, the operator's output and a change that can be spent again.
    #[error("the coins hold {available}; {needed} are needed")]
    InsufficientFunds {
        /// What is needed.
        needed: Amount,
        /// What there is.
        available: Amount,
    },
    /// There are no coins.
    #[error("no coins")]
    NoCoins,
}

/// Why a seat does not sign a transaction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StandingFault {
    /// The inputs are not the opportunity's coins, in order.
    #[error("the inputs are not the coins of the opportunity")]
    Inputs,
    /// Version, lock time, sequence, or signed already.
    #[error("{0}")]
    Form(&'static str),
    /// The last output is not exactly the signal.
    #[error("the last output is not the signal that follows from the board")]
    Signal,
    /// A refresh announces something.
    #[error("a refresh has an OP_RETURN")]
    RefreshAnnounces,
    /// Outputs beside the change, the operator's and the signal.
    #[error("output {0} is none that an announcement has")]
    Output(usize),
    /// There is no change to the beacon.
    #[error("no change goes to the beacon")]
    NoChange,
    /// The operator takes more than the terms allow.
    #[error("the operator's output holds {found}, at most {most} is allowed")]
    OperatorOutput {
        /// What it holds.
        found: Amount,
        /// What it may hold.
        most: Amount,
    },
    /// The outputs hold more than the coins.
    #[error("the outputs hold more than the coins")]
    Inflation,
    /// The fee is above the terms' rate.
    #[error("the fee is {fee}, at most {most} is allowed")]
    Fee {
        /// The fee.
        fee: Amount,
        /// The most.
        most: Amount,
    },
    /// The spent outputs are not one for each input.
    #[error(transparent)]
    Prevouts(#[from] PrevoutCountError),
}

/// The dust limit of a P2TR output.
const P2TR_DUST: Amount = Amount::from_sat(330);

fn unsigned(coins: &[Coin], output: Vec<TxOut>) -> Transaction {
    let input = coins.iter().map(|coin| TxIn {
        previous_output: coin.outpoint,
        script_sig: ScriptBuf::new(),
        // Parents are never replaced: descendants may be signed.
        sequence: Sequence::MAX,
        witness: Witness::new(),
    });
    Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: input.collect(), output }
}

/// The outputs that `coins` are.
pub fn prevouts(output: &BeaconOutput, coins: &[Coin]) -> Vec<TxOut> {
    coins.iter().map(|coin| coin.prevout(output)).collect()
}

/// The virtual size of `tx` once it is signed by `mode`, in vB.
pub fn signed_vsize(tx: &Transaction, output: &BeaconOutput, mode: Mode) -> u64 {
    let mut signed = tx.clone();
    let witness = match (mode, output.fallback()) {
        (Mode::Fallback, Some(leaf)) => leaf.witness_of_spend_size(),
        _ => key_witness(&Signature::from_bytes(&[0; 64])),
    };
    signed.input.iter_mut().for_each(|input| input.witness = witness.clone());
    signed.weight().to_vbytes_ceil()
}

/// The virtual size of an announcement of so many seats, in vB, without the operator's output: what a cohort costs before it has formed.
pub fn announcement_vsize(terms: &StandingTerms, seats: usize, mode: Mode) -> u64 {
    // The change (P2TR) and the signal.
    vsize(1, 43 + 43, witness_size(terms, seats, mode))
}

/// The same of a refresh that joins so many coins, at most 252.
pub fn refresh_vsize(terms: &StandingTerms, seats: usize, coins: usize, mode: Mode) -> u64 {
    vsize(coins, 43, witness_size(terms, seats, mode))
}

fn vsize(inputs: usize, outputs: usize, witness: usize) -> u64 {
    // Version, counts, lock time; then marker and flag.
    let weight = 4 * (10 + 41 * inputs + outputs) + 2 + inputs * witness;
    weight.div_ceil(4) as u64
}

/// The witness of an input, with the number of its elements.
fn witness_size(terms: &StandingTerms, seats: usize, mode: Mode) -> usize {
    let varint = |length: usize| if length < 0xfd { 1 } else { 3 };
    match (mode, terms.fallback_threshold.map(usize::from)) {
        (Mode::Fallback, Some(k)) => {
            let number = if k <= 16 {
                1
            } else if k < 128 {
                2
            } else {
                3
            };
            let script = 34 * seats + number + 1;
            varint(seats + 2) + 65 * k + seats.saturating_sub(k) + varint(script) + script + 34
        }
        _ => 1 + 65,
    }
}

fn key_witness(signature: &Signature) -> Witness {
    let mut witness = Witness::new();
    witness.push(signature.to_bytes());
    witness
}

/// Rounded up; a rate is at least the relay minimum of 1 sat/vB.
fn fee_at(rate: FeeRate, vsize: u64) -> Amount {
    let rate = u128::from(rate.to_sat_per_kwu()).max(250);
    let fee = (rate * u128::from(vsize) * 4).div_ceil(1000);
    Amount::from_sat(u64::try_from(fee).unwrap_or(u64::MAX))
}

/// The unsigned announcement of `signal`: the change, the operator's output if any, the signal last.
///
/// # Errors
/// [`StandingBuildError::InsufficientFunds`] also when only dust would be left: the next announcement could not be paid.
pub fn build_announcement(
    output: &BeaconOutput,
    coin: &Coin,
    signal: &SignalBytes,
    destinations: &Destinations,
    mode: Mode,
    rate: FeeRate,
) -> Result<Transaction, StandingBuildError> {
    let signal = TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::new_op_return(signal.as_bytes()) };
    build(output, &[*coin], destinations, Some(signal), mode, rate)
}

/// The unsigned refresh: all coins into one output of the beacon, and the operator's output if any. It announces nothing.
///
/// # Errors
/// [`StandingBuildError`].
pub fn build_refresh(
    output: &BeaconOutput,
    coins: &[Coin],
    destinations: &Destinations,
    mode: Mode,
    rate: FeeRate,
) -> Result<Transaction, StandingBuildError> {
    build(output, coins, destinations, None, mode, rate)
}

fn build(
    output: &BeaconOutput,
    coins: &[Coin],
    destinations: &Destinations,
    signal: Option<TxOut>,
    mode: Mode,
    rate: FeeRate,
) -> Result<Transaction, StandingBuildError> {
    if coins.is_empty() {
        return Err(StandingBuildError::NoCoins);
    }
    let change = TxOut { value: Amount::ZERO, script_pubkey: destinations.change.clone() };
    let operator = destinations.operator.clone();
    let taken = operator.as_ref().map_or(Amount::ZERO, |output| output.value);
    let outputs = [Some(change), operator, signal].into_iter().flatten().collect();
    let mut tx = unsigned(coins, outputs);
    let sum = |amounts: &[Amount]| {
        amounts.iter().try_fold(Amount::ZERO, |sum, amount| sum.checked_add(*amount)).unwrap_or(Amount::MAX)
    };
    let available = sum(&coins.iter().map(|coin| coin.value).collect::<Vec<_>>());
    let fee = fee_at(rate, signed_vsize(&tx, output, mode));
    let needed = sum(&[fee, taken, P2TR_DUST]);
    let rest = available.checked_sub(sum(&[fee, taken])).filter(|rest| *rest >= P2TR_DUST);
    tx.output[0].value = rest.ok_or(StandingBuildError::InsufficientFunds { needed, available })?;
    Ok(tx)
}

/// What a seat checks of a transaction before it signs.
#[derive(Clone, Copy, Debug)]
pub struct TransactionCheck<'a> {
    /// The terms of the cohort.
    pub terms: &'a StandingTerms,
    /// Its output.
    pub output: &'a BeaconOutput,
    /// The coins of the opportunity.
    pub coins: &'a [Coin],
    /// The signal that follows from the board; none of a refresh.
    pub signal: Option<&'a SignalBytes>,
    /// Where the change may go: the beacon, and in the last announcement the successor's.
    pub change: &'a Script,
    /// How it is to be signed.
    pub mode: Mode,
}

impl TransactionCheck<'_> {
    /// Checks that `tx` spends exactly the coins, pays only the beacon and the operator, and announces exactly the signal, or nothing.
    ///
    /// # Errors
    /// The first [`StandingFault`].
    pub fn check(&self, tx: &Transaction) -> Result<(), StandingFault> {
        if tx.version != Version::TWO || tx.lock_time != LockTime::ZERO {
            return Err(StandingFault::Form("version 2 and no lock time expected"));
        }
        if tx.input.len() != self.coins.len()
            || tx.input.iter().zip(self.coins).any(|(input, coin)| input.previous_output != coin.outpoint)
        {
            return Err(StandingFault::Inputs);
        }
        for input in &tx.input {
            if input.sequence != Sequence::MAX || !input.script_sig.is_empty() || !input.witness.is_empty() {
                return Err(StandingFault::Form("inputs that are final and not signed expected"));
            }
        }
        self.check_outputs(tx)?;
        let sum = |mut values: Box<dyn Iterator<Item = Amount> + '_>| {
            values.try_fold(Amount::ZERO, |sum, value| sum.checked_add(value)).ok_or(StandingFault::Inflation)
        };
        let spent = sum(Box::new(self.coins.iter().map(|coin| coin.value)))?;
        let paid = sum(Box::new(tx.output.iter().map(|output| output.value)))?;
        let fee = spent.checked_sub(paid).ok_or(StandingFault::Inflation)?;
        let rate = FeeRate::from_sat_per_vb_u32(self.terms.max_fee_rate);
        let most = fee_at(rate, signed_vsize(tx, self.output, self.mode));
        if fee <= most { Ok(()) } else { Err(StandingFault::Fee { fee, most }) }
    }

    fn check_outputs(&self, tx: &Transaction) -> Result<(), StandingFault> {
        let others = match (self.signal, tx.output.split_last()) {
            (Some(signal), Some((last, others))) => {
                let exact = last.script_pubkey == ScriptBuf::new_op_return(signal.as_bytes());
                if !exact || last.value != Amount::ZERO {
                    return Err(StandingFault::Signal);
                }
                others
            }
            (Some(_), None) => return Err(StandingFault::Signal),
            (None, _) => tx.output.as_slice(),
        };
        if others.iter().any(|output| output.script_pubkey.is_op_return()) {
            return Err(match self.signal {
                Some(_) => StandingFault::Signal,
                None => StandingFault::RefreshAnnounces,
            });
        }
        match others {
            [change, rest @ ..] if *change.script_pubkey == *self.change && change.value >= P2TR_DUST => match rest
            {
                [] => Ok(()),
                [operator] => {
                    let most = Amount::from_sat(self.terms.max_operator_output.into());
                    if operator.value > most {
                        return Err(StandingFault::OperatorOutput { found: operator.value, most });
                    }
                    // Kinds that only the holder of a key or script can spend.
                    let script = &operator.script_pubkey;
                    let relayed = script.is_p2wpkh()
                        || script.is_p2wsh()
                        || script.is_p2tr()
                        || script.is_p2pkh()
                        || script.is_p2sh();
                    if relayed && operator.value >= operator.script_pubkey.minimal_non_dust() {
                        Ok(())
                    } else {
                        Err(StandingFault::Output(1))
                    }
                }
                [_, ..] => Err(StandingFault::Output(2)),
            },
            _ => Err(StandingFault::NoChange),
        }
    }
}

/// The digest of each input.
///
/// # Errors
/// [`PrevoutCountError`]: not one coin for each input.
pub fn sighashes(
    tx: &Transaction,
    output: &BeaconOutput,
    coins: &[Coin],
    mode: Mode,
) -> Result<Vec<[u8; 32]>, PrevoutCountError> {
    let spent = prevouts(output, coins);
    match (mode, output.fallback()) {
        (Mode::Fallback, Some(leaf)) => leaf.sighashes(tx, &spent),
        _ => key_path_sighashes(tx, &spent),
    }
}

/// `tx` with one aggregated signature for each input, which the caller has verified.
pub fn with_key_signatures(tx: &Transaction, signatures: &[Signature]) -> Transaction {
    let mut signed = tx.clone();
    for (input, signature) in signed.input.iter_mut().zip(signatures) {
        input.witness = key_witness(signature);
    }
    signed
}

/// `tx` with k fallback signatures for each input: `signatures` has those of each seat, one for each input.
///
/// # Errors
/// [`FallbackError::NotEnoughSignatures`] of an input.
pub fn with_fallback_signatures(
    tx: &Transaction,
    output: &BeaconOutput,
    digests: &[[u8; 32]],
    signatures: &BTreeMap<XOnlyKey, Vec<Signature>>,
) -> Result<Transaction, FallbackError> {
    let mut signed = tx.clone();
    let Some(leaf) = output.fallback() else {
        return Err(FallbackError::NotEnoughSignatures { valid: 0, threshold: output.keys().len() });
    };
    for (at, (input, digest)) in signed.input.iter_mut().zip(digests).enumerate() {
        let of_input: BTreeMap<XOnlyKey, Signature> =
            signatures.iter().filter_map(|(key, all)| Some((*key, *all.get(at)?))).collect();
        input.witness = leaf.spend(digest, &of_input)?;
    }
    Ok(signed)
}
