//! The beacon transaction: built by the coordinator, checked by every member before it signs.

use bitcoin::{
    Amount, FeeRate, OutPoint, Script, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness, absolute::LockTime,
    policy::MAX_STANDARD_TX_WEIGHT, transaction::Version,
};

use super::{BeaconOutput, FallbackLeaf, InputCountError, PrevoutCountError, SpendPath, sighash};
use crate::{hash::SignalBytes, key::Signature};

/// An unspent output that pays to the beacon address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coin {
    /// The location of the output.
    pub outpoint: OutPoint,
    /// The value of the output.
    pub value: Amount,
}

impl Coin {
    /// The output of the coin, as signature hashes commit to it.
    pub fn prevout(&self, output: &BeaconOutput) -> TxOut {
        TxOut { value: self.value, script_pubkey: output.script_pubkey().to_owned() }
    }
}

/// The destination of the value that is left after the fee.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The beacon address, for the next signal.
    Beacon,
    /// Another script.
    To(ScriptBuf),
}

impl Change {
    /// The script of the destination, for a coin of `beacon`.
    pub(super) fn script<'a>(&'a self, beacon: &'a Script) -> &'a Script {
        match self {
            Self::Beacon => beacon,
            Self::To(script) => script,
        }
    }
}

/// Why a beacon transaction cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The value of what is spent is not above the fee.
    #[error("what is spent has to hold more than the fee of {needed}, it holds {available}")]
    InsufficientFunds {
        /// The fee of a transaction without change.
        needed: Amount,
        /// The value of what is spent.
        available: Amount,
    },
    /// The change script is itself an `OP_RETURN`: the members would refuse the transaction, and the value would
    /// burn.
    #[error("the change script is an OP_RETURN")]
    ChangeIsOpReturn,
}

impl BuildError {
    /// The stable name of the error, for logs and messages.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::InsufficientFunds { .. } => "INSUFFICIENT_FUNDS",
            Self::ChangeIsOpReturn => "CHANGE_IS_OP_RETURN",
        }
    }
}

/// Builds the unsigned transaction that announces `signal`: one input, the change if any, and last the `OP_RETURN`.
///
/// The fee is the larger of `fee_rate` times the key path size, and 1 sat/vB (the usual relay minimum) times the
/// fallback size. A fallback spend signs this same transaction, with a witness that grows with the cohort, and can no
/// longer change its outputs. Without the second term a cohort that falls back would have a transaction that no node
/// relays. The second term is left out where the fallback cannot be spent. The key path always pays the relay
/// minimum.
///
/// Change below the floor of its kind of output is left out, and its value goes to the fee (rule T-5). The floor is
/// the larger of the dust limit of Bitcoin Core's defaults (546 satoshi for P2PKH, 294 for P2WPKH, 330 for P2TR), and
/// the cost of spending the change at `fee_rate` plus one satoshi. With [`Change::Beacon`] the beacon then has no
/// coin left.
///
/// # Errors
/// [`BuildError`]; the coin has to hold more than the fee (rule T-6).
pub fn build_beacon_transaction(
    output: &BeaconOutput,
    coin: &Coin,
    signal: &SignalBytes,
    fee_rate: FeeRate,
    change: &Change,
) -> Result<Transaction, BuildError> {
    let input = vec![unsigned_input(coin, Sequence::MAX)];
    let change = change.script(output.script_pubkey());
    announce(input, coin.value, signal, change, fee_rate, |tx| fee(tx, output, fee_rate))
}

/// An input without script and witness.
pub(super) fn unsigned_input(coin: &Coin, sequence: Sequence) -> TxIn {
    TxIn { previous_output: coin.outpoint, script_sig: ScriptBuf::new(), sequence, witness: Witness::new() }
}

/// The shape of every announcing transaction: `input`, which brings `value` in all, the change unless that is dust, and
/// the signal last. `fee` gives the fee of an unsigned transaction once it is signed; `fee_rate` is the rate at which the
/// change would be spent.
pub(super) fn announce(
    input: Vec<TxIn>,
    value: Amount,
    signal: &SignalBytes,
    change: &Script,
    fee_rate: FeeRate,
    fee: impl Fn(&Transaction) -> Amount,
) -> Result<Transaction, BuildError> {
    if change.is_op_return() {
        return Err(BuildError::ChangeIsOpReturn);
    }
    let signal_output = TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::new_op_return(signal.as_bytes()) };
    let without_change =
        Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input, output: vec![signal_output] };
    let mut with_change = without_change.clone();
    with_change.output.insert(0, TxOut { value: Amount::ZERO, script_pubkey: change.to_owned() });

    let rest = value.checked_sub(fee(&with_change));
    if let Some(rest) = rest.filter(|rest| *rest >= change_floor(change, fee_rate)) {
        with_change.output[0].value = rest;
        return Ok(with_change);
    }
    let needed = fee(&without_change);
    if value <= needed {
        return Err(BuildError::InsufficientFunds { needed, available: value });
    }
    Ok(without_change)
}

/// The smallest change that is worth an output (rule T-5).
fn change_floor(script: &Script, fee_rate: FeeRate) -> Amount {
    let spending = spending_cost(script, fee_rate);
    script.minimal_non_dust().max(spending.checked_add(Amount::ONE_SAT).unwrap_or(Amount::MAX))
}

/// What it costs to spend an output of `script` at `fee_rate`: the fee of the input that it adds to a transaction (rules
/// T-4 and T-6).
pub(super) fn spending_cost(script: &Script, fee_rate: FeeRate) -> Amount {
    /// The size in vB that an input of this kind adds to a transaction. Other kinds count as the largest of these.
    const P2WPKH_INPUT: u64 = 69;
    const P2TR_INPUT: u64 = 58;
    const P2PKH_INPUT: u64 = 149;
    let input = if script.is_p2wpkh() {
        P2WPKH_INPUT
    } else if script.is_p2tr() {
        P2TR_INPUT
    } else {
        P2PKH_INPUT
    };
    fee_of(fee_rate, input)
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

/// The fee at `rate`, but at least the relay minimum.
pub(super) fn relayed_fee(rate: FeeRate, vsize: u64) -> Amount {
    fee_of(rate.max(MIN_RELAY_FEE_RATE), vsize)
}

/// Rounded up, saturating: an excessive rate leads to [`BuildError::InsufficientFunds`], not to an overflow.
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

/// The size with `witness` on the first input. Signatures have a fixed size, so the signed transaction has this size.
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
    /// Not exactly one input: the request carries one spent output, and more inputs would need more.
    #[error(transparent)]
    InputCount(#[from] InputCountError),
    /// The spent output, as the request describes it, is not the cohort's.
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
    /// The last output is something other than one direct push of 32 bytes.
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
    /// The outputs hold more than the input brings: no block can include it.
    #[error("the outputs hold more than the {value} of the coin")]
    Inflation {
        /// The coin's value.
        value: Amount,
    },
    /// The lock time keeps it out of blocks until then.
    #[error("lock time {0} would delay the transaction")]
    LockTime(LockTime),
    /// The input's sequence keeps it out of blocks until the coin has that age (BIP-68).
    #[error("sequence {0:#010x} would delay the transaction until the coin has aged")]
    RelativeLockTime(u32),
    /// An output that nodes do not relay.
    #[error("the script of output {index} is not a standard one: nodes would not relay the transaction")]
    NonStandardOutput {
        /// Its position, from 0.
        index: usize,
    },
    /// An output below the dust limit, which nodes do not relay.
    #[error("output {index} holds {value}, which is dust: nodes would not relay the transaction")]
    DustOutput {
        /// Its position, from 0.
        index: usize,
        /// Its value.
        value: Amount,
    },
    /// Nodes do not relay a transaction of this weight.
    #[error("the signed transaction would have a weight of {0}, nodes relay at most 400000")]
    Weight(u64),
    /// The witness is not a valid one of the cohort.
    #[error("the transaction is not signed by the cohort")]
    NotSigned,
    /// It is not the transaction that was to be signed.
    #[error("the transaction is not the one that was to be signed")]
    AnotherTransaction,
    /// The fee is above the member's limit.
    #[error("the fee is {fee}, at most {limit} is accepted ({rate} sat/vB)")]
    Fee {
        /// The fee.
        fee: Amount,
        /// The limit.
        limit: Amount,
        /// The fee rate of the limit, in sat/vB, rounded up.
        rate: u64,
    },
}

/// The highest fee rate that a member accepts by default: an order of magnitude above the highest rates that blocks
/// have required for hours. It still bounds what a service can burn of a shared coin.
pub const DEFAULT_MAX_FEE_RATE: FeeRate = FeeRate::from_sat_per_vb_u32(1_000);

/// Checks that `tx`, which spends an output of `value` with the script `prevout_script`, is a beacon transaction of
/// the cohort with this `output` and announces exactly `signal` (rule T-1); that only the signatures are missing; and
/// that nodes would relay it at once.
///
/// The coordinator chooses the destination of the remaining value, which is not checked. [`check_fee`] checks the
/// fee.
///
/// # Errors
/// The first fault.
pub fn check_beacon_transaction(
    tx: &Transaction,
    output: &BeaconOutput,
    prevout_script: &Script,
    value: Amount,
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
    if let Some(index) = others.iter().position(|other| other.script_pubkey.is_op_return()) {
        return Err(TransactionFault::SecondOpReturn { index });
    }
    fee_of_transaction(tx, value)?;
    check_locks(tx, input)?;
    for (index, other) in others.iter().enumerate() {
        if !is_standard(&other.script_pubkey) {
            return Err(TransactionFault::NonStandardOutput { index });
        }
        if other.value < other.script_pubkey.minimal_non_dust() {
            return Err(TransactionFault::DustOutput { index, value: other.value });
        }
    }
    let fallback = output.fallback().filter(|_| output.fallback_spendable());
    let vsize = fallback.map_or(0, |leaf| fallback_vsize(tx, leaf)).max(key_path_vsize(tx));
    let weight = vsize.saturating_mul(4);
    if weight > u64::from(MAX_STANDARD_TX_WEIGHT) { Err(TransactionFault::Weight(weight)) } else { Ok(()) }
}

/// The fee of `tx`: the part of `value` that its outputs leave.
fn fee_of_transaction(tx: &Transaction, value: Amount) -> Result<Amount, TransactionFault> {
    let sum = tx.output.iter().try_fold(Amount::ZERO, |sum, output| sum.checked_add(output.value));
    sum.and_then(|sum| value.checked_sub(sum)).ok_or(TransactionFault::Inflation { value })
}

/// A lock time applies unless the input's sequence is final; a sequence of a version 2 transaction can be a relative
/// lock time.
fn check_locks(tx: &Transaction, input: &TxIn) -> Result<(), TransactionFault> {
    if input.sequence != Sequence::MAX && tx.lock_time != LockTime::ZERO {
        return Err(TransactionFault::LockTime(tx.lock_time));
    }
    let sequence = input.sequence.to_consensus_u32();
    // The low 16 bits are the number of blocks or of 512 seconds; zero of them have always passed.
    if input.sequence.is_relative_lock_time() && sequence & 0xffff != 0 {
        return Err(TransactionFault::RelativeLockTime(sequence));
    }
    Ok(())
}

/// Bitcoin Core's `IsStandard` for an output that is not an `OP_RETURN`, at its default settings.
fn is_standard(script: &Script) -> bool {
    let bare_multisig = || {
        // OP_m, keys, OP_n, OP_CHECKMULTISIG with at most three keys.
        script.is_multisig() && script.as_bytes().iter().nth_back(1).is_some_and(|n| (0x51..=0x53).contains(n))
    };
    script.is_p2pkh() || script.is_p2sh() || script.is_witness_program() || script.is_p2pk() || bare_multisig()
}

/// Checks that `max_fee_rate` allows the fee of `tx`, which spends a coin of `value`. The limit is that rate for the
/// key path, or the relay minimum for the larger fallback, whichever is more.
///
/// # Errors
/// [`TransactionFault::Fee`], [`TransactionFault::Inflation`].
pub fn check_fee(
    tx: &Transaction,
    output: &BeaconOutput,
    value: Amount,
    max_fee_rate: FeeRate,
) -> Result<(), TransactionFault> {
    let fee_paid = fee_of_transaction(tx, value)?;
    let limit = fee(tx, output, max_fee_rate);
    if fee_paid <= limit {
        return Ok(());
    }
    Err(TransactionFault::Fee { fee: fee_paid, limit, rate: max_fee_rate.to_sat_per_vb_ceil() })
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

/// The path by which the witness of `tx` spends an output of `value` of the cohort with this `output`. The signatures
/// are verified as BIP-341 and BIP-342 specify.
///
/// # Errors
/// [`TransactionFault`], when the witness is not valid.
pub fn check_signed(tx: &Transaction, output: &BeaconOutput, value: Amount) -> Result<SpendPath, TransactionFault> {
    let [input] = tx.input.as_slice() else {
        return Err(InputCountError(tx.input.len()).into());
    };
    let prevout = TxOut { value, script_pubkey: output.script_pubkey().to_owned() };
    if let [signature] = input.witness.to_vec().as_slice()
        && let Ok(signature) = <[u8; 64]>::try_from(signature.as_slice())
        && output.output_key().verify(&key_path_sighash(tx, &prevout)?, &Signature::from_bytes(&signature))
    {
        return Ok(SpendPath::KeyPath);
    }
    match output.fallback() {
        Some(leaf) if leaf.is_spent_by(tx, &prevout, &input.witness) => Ok(SpendPath::ScriptPath),
        _ => Err(TransactionFault::NotSigned),
    }
}

/// `tx` without its witness: the transaction that the members were asked to sign.
pub fn unsigned(tx: &Transaction) -> Transaction {
    let mut unsigned = tx.clone();
    unsigned.input.iter_mut().for_each(|input| input.witness.clear());
    unsigned
}

/// The digest that the cohort signs by MuSig2: the key path digest of `tx`, which spends `prevout` (BIP-341,
/// SIGHASH_DEFAULT).
pub fn key_path_sighash(tx: &Transaction, prevout: &TxOut) -> Result<[u8; 32], InputCountError> {
    sighash::key_path(tx, prevout)
}

/// The digest that the cohort signs by MuSig2 of each input of `tx`: `prevouts` are the outputs that the inputs spend, in their
/// order.
///
/// # Errors
/// [`PrevoutCountError`].
pub fn key_path_sighashes(tx: &Transaction, prevouts: &[TxOut]) -> Result<Vec<[u8; 32]>, PrevoutCountError> {
    sighash::of_every_input(tx, prevouts, None)
}

/// `tx` with a key path witness. The signature is not verified: the caller verifies it under the output key first.
pub fn finalize_key_path(tx: &Transaction, signature: &Signature) -> Result<Transaction, InputCountError> {
    let mut witness = Witness::new();
    witness.push(signature.to_bytes());
    sighash::with_witness(tx, witness)
}
