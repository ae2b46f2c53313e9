//! The fallback leaf: k of the n members can spend without the others.

use std::{collections::BTreeMap, fmt, sync::Arc};

use bitcoin::{
    Script, ScriptBuf, Transaction, TxOut, Witness,
    opcodes::all::{OP_CHECKSIG, OP_CHECKSIGADD, OP_NUMEQUAL},
    script::Builder,
};

use super::{InputCountError, PrevoutCountError, ScriptPath, sighash};
use crate::key::{PublicKey, Signature, XOnlyKey};

/// Why a fallback spend cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FallbackError {
    /// Fewer than k different members signed validly.
    #[error("{valid} valid fallback signatures of {threshold}")]
    NotEnoughSignatures {
        /// The number of different members with a valid signature.
        valid: usize,
        /// k.
        threshold: usize,
    },
    /// The output that is spent is not this cohort's beacon output.
    #[error("the spent output's script is not the cohort's beacon script")]
    PrevoutScriptMismatch,
    /// The transaction does not have exactly one input.
    #[error(transparent)]
    InputCount(#[from] InputCountError),
}

impl FallbackError {
    /// The stable name of the error, for logs and messages.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotEnoughSignatures { .. } => "NOT_ENOUGH_FALLBACK_SIGNATURES",
            Self::PrevoutScriptMismatch => "PREVOUT_SCRIPT_MISMATCH",
            Self::InputCount(_) => "INPUT_COUNT",
        }
    }
}

/// `<pk1> OP_CHECKSIG <pk2> OP_CHECKSIGADD ... <k> OP_NUMEQUAL` with the members' x-only keys in KeySort order (BIP-342).
///
/// A member signs [`Self::sighash`] with its own key.
#[derive(Clone)]
pub struct FallbackLeaf {
    keys: Arc<[PublicKey]>,
    threshold: usize,
    path: ScriptPath,
}

/// The script. OP_NUMEQUAL, not "at least": exactly k signatures satisfy it.
pub(super) fn script(keys: &[PublicKey], threshold: usize) -> ScriptBuf {
    let keys_then_opcodes = keys.iter().enumerate().fold(Builder::new(), |builder, (index, key)| {
        builder.push_x_only_key(key.x_only().as_inner()).push_opcode(if index == 0 {
            OP_CHECKSIG
        } else {
            OP_CHECKSIGADD
        })
    });
    let threshold = i64::try_from(threshold).expect("at most the number of keys in memory");
    keys_then_opcodes.push_int(threshold).push_opcode(OP_NUMEQUAL).into_script()
}

impl FallbackLeaf {
    pub(super) fn new(keys: Arc<[PublicKey]>, threshold: usize, path: ScriptPath) -> Self {
        Self { keys, threshold, path }
    }

    /// The members' x-only keys, in the order of the script (KeySort order of the full keys, not of these).
    pub fn keys(&self) -> impl ExactSizeIterator<Item = XOnlyKey> + DoubleEndedIterator + '_ {
        self.keys.iter().map(|key| key.x_only())
    }

    /// k, the number of signatures in a spend.
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// The leaf's script.
    pub fn script(&self) -> &Script {
        &self.path.script
    }

    /// The leaf's hash in the tree (BIP-341, leaf version 0xc0).
    pub fn leaf_hash(&self) -> [u8; 32] {
        self.path.leaf_hash
    }

    /// The last witness element: leaf version and parity, internal key, and the recovery leaf's hash if there is one.
    pub fn control_block(&self) -> &[u8] {
        &self.path.control_block
    }

    /// What each of the k members signs: the script path digest of `tx`, which spends `prevout`, SIGHASH_DEFAULT.
    pub fn sighash(&self, tx: &Transaction, prevout: &TxOut) -> Result<[u8; 32], InputCountError> {
        sighash::script_path(tx, prevout, self.path.leaf_hash)
    }

    /// `tx` with the witness of the first k members, in key order, that signed validly.
    ///
    /// Invalid signatures and signatures of outsiders are ignored, so that adding one cannot invalidate a spend.
    pub fn assemble(
        &self,
        tx: &Transaction,
        prevout: &TxOut,
        signatures: &BTreeMap<XOnlyKey, Signature>,
    ) -> Result<Transaction, FallbackError> {
        if prevout.script_pubkey != self.path.script_pubkey {
            return Err(FallbackError::PrevoutScriptMismatch);
        }
        let digest = self.sighash(tx, prevout)?;
        Ok(sighash::with_witness(tx, self.spend(&digest, signatures)?)?)
    }

    /// What each of the k members signs of each input of `tx`: `prevouts` are the outputs that the inputs spend, in their order.
    ///
    /// # Errors
    /// [`PrevoutCountError`].
    pub fn sighashes(&self, tx: &Transaction, prevouts: &[TxOut]) -> Result<Vec<[u8; 32]>, PrevoutCountError> {
        sighash::of_every_input(tx, prevouts, Some(self.path.leaf_hash))
    }

    /// The witness of the first k members, in key order, that signed `digest` validly.
    ///
    /// # Errors
    /// [`FallbackError::NotEnoughSignatures`].
    pub fn spend(
        &self,
        digest: &[u8; 32],
        signatures: &BTreeMap<XOnlyKey, Signature>,
    ) -> Result<Witness, FallbackError> {
        let mut valid = 0;
        let by_key: Vec<Option<Signature>> = self
            .keys()
            .map(|key| {
                let signature = signatures.get(&key).filter(|_| valid < self.threshold)?;
                key.verify(digest, signature).then(|| {
                    valid += 1;
                    *signature
                })
            })
            .collect();
        if valid < self.threshold {
            return Err(FallbackError::NotEnoughSignatures { valid, threshold: self.threshold });
        }
        // The script takes the first key's element from the top of the stack, so it is pushed last.
        Ok(self.witness(by_key.iter().rev().copied()))
    }

    /// Whether `witness` spends `prevout` in `tx` on this leaf: exactly k members' signatures, each valid, and nothing else.
    pub(super) fn is_spent_by(&self, tx: &Transaction, prevout: &TxOut, witness: &Witness) -> bool {
        let elements: Vec<&[u8]> = witness.iter().collect();
        let Some(([signatures @ .., script, control], digest)) =
            Some(elements.as_slice()).zip(self.sighash(tx, prevout).ok())
        else {
            return false;
        };
        if *script != self.path.script.as_bytes() || *control != self.path.control_block.as_slice() {
            return false;
        }
        // In reverse key order, as the script takes them from the stack.
        let mut valid = 0;
        let each = signatures.len() == self.keys.len()
            && self.keys().zip(signatures.iter().rev()).all(|(key, element)| {
                match <[u8; 64]>::try_from(*element) {
                    Ok(signature) => {
                        valid += 1;
                        key.verify(&digest, &Signature::from_bytes(&signature))
                    }
                    Err(_) => element.is_empty(),
                }
            });
        each && valid == self.threshold
    }

    /// A witness of the size that every spend of this leaf has.
    pub(crate) fn witness_of_spend_size(&self) -> Witness {
        let zeros = Signature::from_bytes(&[0; 64]);
        self.witness((0..self.keys.len()).map(|index| (index < self.threshold).then_some(zeros)))
    }

    fn witness(&self, stack: impl Iterator<Item = Option<Signature>>) -> Witness {
        let mut witness = Witness::new();
        for signature in stack {
            match signature {
                Some(signature) => witness.push(signature.to_bytes()),
                None => witness.push([]),
            }
        }
        witness.push(self.path.script.as_bytes());
        witness.push(&self.path.control_block);
        witness
    }
}

impl fmt::Debug for FallbackLeaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FallbackLeaf({} of {})", self.threshold, self.keys.len())
    }
}
