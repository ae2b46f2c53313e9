//! The recovery leaf: one key recovers the beacon's coins when the cohort no longer signs.

use std::fmt;

use bitcoin::{
    Address, Amount, Script, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness,
    absolute::LockTime,
    address::NetworkUnchecked,
    opcodes::all::{OP_CHECKSIG, OP_CSV, OP_DROP},
    script::Builder,
    transaction::Version,
};
use rand_core::CryptoRng;

use super::{BeaconOutput, Coin, InputCountError, RecoverySequence, ScriptPath, sighash};
use crate::key::{SecretKey, Signature, XOnlyKey};

/// The smallest output of a recovery, of any kind: the limit of the wire format, which is P2PKH's dust limit.
const MIN_OUTPUT: Amount = Amount::from_sat(546);

/// Why a recovery spend cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// The output has no recovery leaf.
    #[error("the beacon output has no recovery leaf")]
    NoRecoveryLeaf,
    /// The secret key is not the recovery key's.
    #[error("the secret key does not belong to the recovery key")]
    KeyMismatch,
    /// The derived address is not the one that the caller expects: other keys, terms or network.
    #[error("keys and terms lead to {derived}, not to the expected beacon address")]
    BeaconAddressMismatch {
        /// The address that was derived.
        derived: String,
    },
    /// The destination is not an address of the output's network.
    #[error("the destination is not an address of this network")]
    InvalidDestination,
    /// The fee is not below the coin's value.
    #[error("the fee of {fee} takes the whole value of {value}")]
    FeeExceedsValue {
        /// The requested fee.
        fee: Amount,
        /// The coin's value.
        value: Amount,
    },
    /// Less than 546 satoshi would be left.
    #[error("an output of {0} is dust")]
    DustOutput(Amount),
    /// The transaction does not have exactly one input.
    #[error(transparent)]
    InputCount(#[from] InputCountError),
    /// The signature is not the recovery key's over this transaction.
    #[error("the signature is not valid for the recovery key")]
    InvalidSignature,
}

impl RecoveryError {
    /// The stable name of the error, for logs and messages.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoRecoveryLeaf => "NO_RECOVERY_PARAMS",
            Self::KeyMismatch => "RECOVERY_KEY_MISMATCH",
            Self::BeaconAddressMismatch { .. } => "BEACON_ADDRESS_MISMATCH",
            Self::InvalidDestination => "INVALID_DESTINATION",
            Self::FeeExceedsValue { .. } => "FEE_EXCEEDS_VALUE",
            Self::DustOutput(_) => "DUST_OUTPUT",
            Self::InputCount(_) => "INPUT_COUNT",
            Self::InvalidSignature => "INVALID_SIGNATURE",
        }
    }
}

/// `<recoverySequence> OP_CHECKSEQUENCEVERIFY OP_DROP <recoveryKey> OP_CHECKSIG` (BIP-112, BIP-342).
#[derive(Clone)]
pub struct RecoveryLeaf {
    key: XOnlyKey,
    sequence: RecoverySequence,
    path: ScriptPath,
}

/// The script.
pub(super) fn script(key: XOnlyKey, sequence: RecoverySequence) -> ScriptBuf {
    Builder::new()
        .push_int(sequence.blocks().into())
        .push_opcode(OP_CSV)
        .push_opcode(OP_DROP)
        .push_x_only_key(key.as_inner())
        .push_opcode(OP_CHECKSIG)
        .into_script()
}

impl RecoveryLeaf {
    pub(super) fn new(key: XOnlyKey, sequence: RecoverySequence, path: ScriptPath) -> Self {
        Self { key, sequence, path }
    }

    /// The recovery key, which may spend after the delay.
    pub fn key(&self) -> XOnlyKey {
        self.key
    }

    /// The delay, in blocks.
    pub fn sequence(&self) -> RecoverySequence {
        self.sequence
    }

    /// The leaf's script.
    pub fn script(&self) -> &Script {
        &self.path.script
    }

    /// The leaf's hash in the tree (BIP-341, leaf version 0xc0).
    pub fn leaf_hash(&self) -> [u8; 32] {
        self.path.leaf_hash
    }

    /// The last witness element: leaf version and parity, internal key, the fallback leaf's hash.
    pub fn control_block(&self) -> &[u8] {
        &self.path.control_block
    }

    /// What the recovery key signs: the script path digest of `tx`, which spends `prevout`, SIGHASH_DEFAULT.
    pub fn sighash(&self, tx: &Transaction, prevout: &TxOut) -> Result<[u8; 32], InputCountError> {
        sighash::script_path(tx, prevout, self.path.leaf_hash)
    }

    /// `tx` with its witness, for a signature that was made elsewhere (a wallet, a hardware device). The signature is
    /// verified.
    pub fn assemble(
        &self,
        tx: &Transaction,
        prevout: &TxOut,
        signature: &Signature,
    ) -> Result<Transaction, RecoveryError> {
        if !self.key.verify(&self.sighash(tx, prevout)?, signature) {
            return Err(RecoveryError::InvalidSignature);
        }
        let mut witness = Witness::new();
        witness.push(signature.to_bytes());
        witness.push(self.path.script.as_bytes());
        witness.push(&self.path.control_block);
        Ok(sighash::with_witness(tx, witness)?)
    }
}

impl fmt::Debug for RecoveryLeaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecoveryLeaf({} after {} blocks)", self.key, self.sequence)
    }
}

/// The parameters of a recovery.
#[derive(Clone, Copy, Debug)]
pub struct RecoverySpend<'a> {
    /// The coin on the beacon output.
    pub coin: Coin,
    /// The address that receives its value, less the fee: any address of the output's network.
    pub destination: &'a str,
    /// The absolute fee.
    pub fee: Amount,
    /// The beacon address that the caller knows from another source. It prevents a recovery with the wrong keys or
    /// terms, which would give an invalid transaction.
    pub expected_address: Option<&'a str>,
}

/// The unsigned recovery: version 2 (BIP-68 needs it), one input with nSequence = the recovery sequence, one output.
pub fn build_recovery_transaction(
    output: &BeaconOutput,
    spend: &RecoverySpend<'_>,
) -> Result<Transaction, RecoveryError> {
    let leaf = output.recovery().ok_or(RecoveryError::NoRecoveryLeaf)?;
    if spend.expected_address.is_some_and(|expected| expected != output.address()) {
        return Err(RecoveryError::BeaconAddressMismatch { derived: output.address().to_owned() });
    }
    let destination = spend
        .destination
        .parse::<Address<NetworkUnchecked>>()
        .and_then(|address| address.require_network(output.network().to_bitcoin()))
        .map_err(|_| RecoveryError::InvalidDestination)?;
    let (fee, value) = (spend.fee, spend.coin.value);
    let rest = match value.checked_sub(fee) {
        None | Some(Amount::ZERO) => return Err(RecoveryError::FeeExceedsValue { fee, value }),
        Some(rest) if rest < MIN_OUTPUT => return Err(RecoveryError::DustOutput(rest)),
        Some(rest) => rest,
    };
    Ok(Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: spend.coin.outpoint,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::from_height(leaf.sequence().blocks()),
            witness: Witness::new(),
        }],
        output: vec![TxOut { value: rest, script_pubkey: destination.script_pubkey() }],
    })
}

/// The signed recovery, ready to broadcast once the coin has the number of confirmations of the recovery sequence.
pub fn sign_recovery_transaction(
    output: &BeaconOutput,
    spend: &RecoverySpend<'_>,
    key: &SecretKey,
    rng: &mut dyn CryptoRng,
) -> Result<Transaction, RecoveryError> {
    let leaf = output.recovery().ok_or(RecoveryError::NoRecoveryLeaf)?;
    if key.public_key().x_only() != leaf.key() {
        return Err(RecoveryError::KeyMismatch);
    }
    let tx = build_recovery_transaction(output, spend)?;
    let prevout = spend.coin.prevout(output);
    let signature = key.sign(&leaf.sighash(&tx, &prevout)?, rng);
    leaf.assemble(&tx, &prevout, &signature)
}
