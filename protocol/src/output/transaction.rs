//! The beacon transaction: built by the coordinator, checked by every member before it signs.

use bitcoin::{
    Amount, FeeRate, OutPoint, Script, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness, absolute::LockTime,
    transaction::Version,
};

use super::{BeaconOutput, FallbackLeaf, InputCountError, sighash};
use crate::{hash::SignalBytes, key::Signature};

/// An unspent output that pays to the beacon address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coin {
    /// Where it is.
    pub outpoint: OutPoint,
    /// What it holds.
    pub value: Amount,
}

impl Coin {
    /// The output that the coin is, as signature hashes commit to it.
    pub fn prevout(&self, output: &BeaconOutput) -> TxOut {
        TxOut { value: self.value, script_pubkey: output.script_pubkey().to_owned() }
    }
}

/// Where the rest of a beacon transaction's value goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Back to the beacon address, for the next signal.
    Beacon,
    /// To another script.
    To(ScriptBuf),
}

impl Change {
    /// The script that it goes to, when it comes from `beacon`.
    pub(super) fn script<'a>(&'a self, beacon: &'a Script) -> &'a Script {
        match self {
            Self::Beacon => beacon,
            Self::To(script) => script,
        }
    }
}

/// Why no beacon transaction can be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The coin does not pay for the fee.
    #[error("the fee needs {needed}, the coin holds {available}")]
    InsufficientFunds {
        /// The fee of a transaction without change.
        needed: Amount,
        /// The coin's value.
        available: Amount,
    },
    /// The change script is itself an `OP_RETURN`: the members would refuse the transaction, and the value would burn.
    #[error("the change script is an OP_RETURN")]
    ChangeIsOpReturn,
}

impl BuildError {
    /// A stable name for logs and messages.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::InsufficientFunds { .. } => "INSUFFICIENT_FUNDS",
            Self::ChangeIsOpReturn => "CHANGE_IS_OP_RETURN",
        }
    }
}

/// Builds the unsigned transaction that announces `signal`: one input, the change if any, and last the `OP_RETURN`.
///
/// The fee is the larger of `fee_rate` times the key path size, and 1 sat/vB (the usual relay minimum) times the fallback
/// size. A fallback spend signs this very transaction, with a witness that grows with the cohort, and its outputs cannot
/// change any more then: without the second term a cohort that falls back would hold a transaction that no node relays.
/// The second term is left out where the fallback cannot be spent, and the key path always pays the relay minimum.
///
/// Change below the dust limit of its own kind of output (Bitcoin Core's default, for example 330 satoshis for P2TR and
/// 294 for P2WPKH) is left out, and its value goes to the fee. With [`Change::Beacon`] the beacon then has no coin left.
pub fn build_beacon_transaction(
    output: &BeaconOutput,
    coin: &Coin,
    signal: &SignalBytes,
    fee_rate: FeeRate,
    change: &Change,
) -> Result<Transaction, BuildError> {
    let input = unsigned_input(coin, Sequence::MAX);
    let change = change.script(output.script_pubkey());
    announce(input, coin.value, signal, change, |tx| fee(tx, output, fee_rate))
}

/// An input without script and witness.
pub(super) fn unsigned_input(coin: &Coin, sequence: Sequence) -> TxIn {
    TxIn { previous_output: coin.outpoint, script_sig: ScriptBuf::new(), sequence, witness: Witness::new() }
}

/// The shape of every transaction that announces: `input`, which brings `value`, the change unless that is dust, and last
/// the signal. `fee` says what an unsigned transaction will cost once it is signed.
pub(super) fn announce(
    input: TxIn,
    value: Amount,
    signal: &SignalBytes,
    change: &Script,
    fee: impl Fn(&Transaction) -> Amount,
) -> Result<Transaction, BuildError> {
    if change.is_op_return() {
        return Err(BuildError::ChangeIsOpReturn);
    }
    let signal_output = TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::new_op_return(signal.as_bytes()) };
    let without_change = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![input],
        output: vec![signal_output],
    };
    let mut with_change = without_change.clone();
    with_change.output.insert(0, TxOut { value: Amount::ZERO, script_pubkey: change.to_owned() });

    let rest = value.checked_sub(fee(&with_change));
    if let Some(rest) = rest.filter(|rest| *rest >= change.minimal_non_dust()) {
        with_change.output[0].value = rest;
        return Ok(with_change);
    }
    let needed = fee(&without_change);
    if value < needed {
        return Err(BuildError::InsufficientFunds { needed, available: value });
    }
    Ok(without_change)
}

/// The relay minimum of Bitcoin Core's default configuration.
const MIN_RELAY_FEE_RATE: FeeRate = FeeRate::from_sat_per_vb_u32(1);

fn fee(tx: &Transaction, output: &BeaconOutput, fee_rate: FeeRate) -> Amount {
    let key_path = relayed_fee(fee_rate, key_path_vsize(tx));
    match output.fallback().filter(|_| output.fallback_spendable()) {
        Some(leaf) => key_path.max(fee_of(MIN_RELAY_FEE_RATE, fallback_vsize(tx, leaf))),
        None => key_path,
    }
}

/// The fee at `rate`, and at least what nodes relay a transaction for.
pub(super) fn relayed_fee(rate: FeeRate, vsize: u64) -> Amount {
    fee_of(rate.max(MIN_RELAY_FEE_RATE), vsize)
}

/// Rounded up, saturating: a rate beyond all money leads to [`BuildError::InsufficientFunds`], not to an overflow.
fn fee_of(rate: FeeRate, vsize: u64) -> Amount {
    let sat = (u128::from(rate.to_sat_per_kwu()) * u128::from(vsize) * 4).div_ceil(1000);
    Amount::from_sat(u64::try_from(sat).unwrap_or(u64::MAX))
}

/// The virtual size in vB of `tx` spent by key path: a witness of one 64-byte signature.
pub fn key_path_vsize(tx: &Transaction) -> u64 {
    let mut witness = Witness::new();
    witness.push([0; 64]);
    vsize_with(tx, witness)
}

/// The virtual size in vB of `tx` spent by the fallback leaf: k signatures, n - k empty elements, script, control block.
pub fn fallback_vsize(tx: &Transaction, leaf: &FallbackLeaf) -> u64 {
    vsize_with(tx, leaf.witness_of_spend_size())
}

/// The size with `witness` on the first input. Signatures have a fixed size, so this is what the signed one will have.
fn vsize_with(tx: &Transaction, witness: Witness) -> u64 {
    let mut tx = tx.clone();
    if let Some(input) = tx.input.first_mut() {
        input.witness = witness;
    }
    tx.weight().to_vbytes_ceil()
}

/// Why a member does not sign a pending beacon transaction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransactionFault {
    /// Not exactly one input: more of them would need more spent outputs than the request carries.
    #[error(transparent)]
    InputCount(#[from] InputCountError),
    /// The output that is spent, as the request describes it, is not the cohort's.
    #[error("the spent output's script is not the cohort's beacon script")]
    PrevoutScript,
    /// The version is not 2.
    #[error("transaction version {0}; 2 expected")]
    Version(i32),
    /// The input has a script, which no taproot spend may have.
    #[error("the input has a script")]
    ScriptSig,
    /// The input is signed already.
    #[error("the input has a witness")]
    Witness,
    /// There are no outputs.
    #[error("the transaction has no outputs")]
    NoOutputs,
    /// The last output is not an `OP_RETURN`.
    #[error("the last output is not an OP_RETURN")]
    LastOutputNotOpReturn,
    /// The last output holds something else than one direct push of 32 bytes.
    #[error("the last output is not an OP_RETURN with one push of 32 bytes")]
    MalformedSignal,
    /// The last output announces other Signal Bytes.
    #[error("the transaction announces the signal {0}")]
    WrongSignal(SignalBytes),
    /// The last output burns value.
    #[error("the signal output has a value of {0}")]
    SignalValue(Amount),
    /// Another output is an `OP_RETURN` too.
    #[error("output {index} is a second OP_RETURN")]
    SecondOpReturn {
        /// Its position, from 0.
        index: usize,
    },
}

/// Whether `tx`, which spends an output with the script `prevout_script`, is a beacon transaction of the cohort with this
/// `output` and announces exactly `signal`, and nothing but the signatures are missing.
///
/// Where the rest of the value goes is the coordinator's business, and is not checked.
pub fn check_beacon_transaction(
    tx: &Transaction,
    output: &BeaconOutput,
    prevout_script: &Script,
    signal: &SignalBytes,
) -> Result<(), TransactionFault> {
    let [input] = tx.input.as_slice() else {
        return Err(InputCountError(tx.input.len()).into());
    };
    if prevout_script != output.script_pubkey() {
        return Err(TransactionFault::PrevoutScript);
    }
    if tx.version != Version::TWO {
        return Err(TransactionFault::Version(tx.version.0));
    }
    if !input.script_sig.is_empty() {
        return Err(TransactionFault::ScriptSig);
    }
    if !input.witness.is_empty() {
        return Err(TransactionFault::Witness);
    }
    let (last, others) = tx.output.split_last().ok_or(TransactionFault::NoOutputs)?;
    check_signal_output(last, signal)?;
    match others.iter().position(|other| other.script_pubkey.is_op_return()) {
        Some(index) => Err(TransactionFault::SecondOpReturn { index }),
        None => Ok(()),
    }
}

fn check_signal_output(last: &TxOut, signal: &SignalBytes) -> Result<(), TransactionFault> {
    if !last.script_pubkey.is_op_return() {
        return Err(TransactionFault::LastOutputNotOpReturn);
    }
    // OP_RETURN, then the opcode that pushes the 32 bytes which follow.
    let announced: [u8; 32] = last
        .script_pubkey
        .as_bytes()
        .strip_prefix(&[0x6a, 0x20])
        .and_then(|data| data.try_into().ok())
        .ok_or(TransactionFault::MalformedSignal)?;
    if announced != *signal.as_bytes() {
        return Err(TransactionFault::WrongSignal(SignalBytes::from_bytes(announced)));
    }
    if last.value != Amount::ZERO {
        return Err(TransactionFault::SignalValue(last.value));
    }
    Ok(())
}

/// What the cohort signs by MuSig2: the key path digest of `tx`, which spends `prevout` (BIP-341, SIGHASH_DEFAULT).
pub fn key_path_sighash(tx: &Transaction, prevout: &TxOut) -> Result<[u8; 32], InputCountError> {
    sighash::key_path(tx, prevout)
}

/// `tx` with a key path witness. Does not verify the signature: verify it under the output key first.
pub fn finalize_key_path(tx: &Transaction, signature: &Signature) -> Result<Transaction, InputCountError> {
    let mut witness = Witness::new();
    witness.push(signature.to_bytes());
    sighash::with_witness(tx, witness)
}
