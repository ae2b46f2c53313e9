//! BIP-341 signature hashes, always SIGHASH_DEFAULT: of a transaction with one input, or of each input of one whose inputs
//! all spend the same output script.

use bitcoin::{
    TapLeafHash, TapSighashType, Transaction, TxOut,
    hashes::Hash,
    sighash::{Prevouts, SighashCache},
};

/// A transaction that does not have exactly one input.
///
/// SIGHASH_DEFAULT commits to the value and script of every spent output. A signing request carries one of them, so a
/// transaction with more inputs cannot be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the transaction has {0} inputs; exactly one expected")]
pub struct InputCountError(pub usize);

/// The digest for the key path.
pub(super) fn key_path(tx: &Transaction, prevout: &TxOut) -> Result<[u8; 32], InputCountError> {
    check_input_count(tx)?;
    let hash = SighashCache::new(tx)
        .taproot_key_spend_signature_hash(0, &Prevouts::All(&[prevout]), TapSighashType::Default)
        .expect("one input, and the one output that it spends");
    Ok(hash.to_byte_array())
}

/// The digest for a script path (BIP-342, no OP_CODESEPARATOR).
pub(super) fn script_path(
    tx: &Transaction,
    prevout: &TxOut,
    leaf_hash: [u8; 32],
) -> Result<[u8; 32], InputCountError> {
    check_input_count(tx)?;
    let leaf = TapLeafHash::from_byte_array(leaf_hash);
    let hash = SighashCache::new(tx)
        .taproot_script_spend_signature_hash(0, &Prevouts::All(&[prevout]), leaf, TapSighashType::Default)
        .expect("one input, and the one output that it spends");
    Ok(hash.to_byte_array())
}

/// The outputs that are spent are not one for each input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the transaction has {inputs} inputs, and {prevouts} spent outputs are given")]
pub struct PrevoutCountError {
    /// The inputs of the transaction.
    pub inputs: usize,
    /// The given outputs.
    pub prevouts: usize,
}

/// The digest of each input: for the key path, or for the leaf with that hash.
pub(super) fn of_every_input(
    tx: &Transaction,
    prevouts: &[TxOut],
    leaf_hash: Option<[u8; 32]>,
) -> Result<Vec<[u8; 32]>, PrevoutCountError> {
    if tx.input.len() != prevouts.len() {
        return Err(PrevoutCountError { inputs: tx.input.len(), prevouts: prevouts.len() });
    }
    let (mut cache, all) = (SighashCache::new(tx), Prevouts::All(prevouts));
    let digests = (0..prevouts.len()).map(|index| {
        let digest = match leaf_hash.map(TapLeafHash::from_byte_array) {
            Some(leaf) => cache.taproot_script_spend_signature_hash(index, &all, leaf, TapSighashType::Default),
            None => cache.taproot_key_spend_signature_hash(index, &all, TapSighashType::Default),
        };
        digest.expect("an input, and the outputs that all inputs spend").to_byte_array()
    });
    Ok(digests.collect())
}

/// The transaction with `witness` on its only input.
pub(super) fn with_witness(tx: &Transaction, witness: bitcoin::Witness) -> Result<Transaction, InputCountError> {
    let mut tx = tx.clone();
    match tx.input.as_mut_slice() {
        [input] => {
            input.witness = witness;
            Ok(tx)
        }
        inputs => Err(InputCountError(inputs.len())),
    }
}

fn check_input_count(tx: &Transaction) -> Result<(), InputCountError> {
    if tx.input.len() == 1 { Ok(()) } else { Err(InputCountError(tx.input.len())) }
}
