//! Signing the beacon transaction: MuSig2 over the key path (BIP-327), or k signatures on the fallback leaf.
//!
//! [`session`] is the coordinator's machine, with the one latch that decides the path; `partial` verifies what members send it.
//! [`nonce`] holds the member's secret, used once.

pub mod nonce;
mod partial;
pub mod session;

use std::{collections::BTreeMap, sync::Arc};

use bitcoin::{Amount, Transaction, TxOut};
use serde::{Deserialize, Serialize};

use crate::{
    cohort::{
        Timing,
        service::rules::{PhaseRules, TimedPhase},
    },
    did::Did,
    id::{CohortId, SessionId},
    key::{PublicKey, Signature},
    output::{BeaconOutput, InputCountError, SpendPath, key_path_sighash},
};

/// What a signing session is to sign, and with whom.
#[derive(Clone, Debug, PartialEq)]
pub struct SigningTask {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The session.
    pub session_id: SessionId,
    /// The Aggregation Service, in whose name the session speaks.
    pub service: Did,
    /// The output that is spent.
    pub output: BeaconOutput,
    /// Who signs, with which key.
    pub members: BTreeMap<Did, PublicKey>,
    /// The unsigned beacon transaction.
    pub transaction: Transaction,
    /// The value of the output that it spends.
    pub value: Amount,
    /// How long to wait.
    pub timing: Timing,
    /// What to do when that was not long enough.
    pub rules: PhaseRules,
    /// Who is known not to be there: then the session begins with the fallback.
    pub absent: Vec<Did>,
    /// What the key path signs (BIP-341, SIGHASH_DEFAULT).
    key_path_sighash: [u8; 32],
    /// What the fallback leaf signs (BIP-342), where there is one.
    fallback_sighash: Option<[u8; 32]>,
}

/// The parts of a [`SigningTask`] that its cohort decides.
#[derive(Clone, Debug)]
pub struct SigningTerms {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The session.
    pub session_id: SessionId,
    /// The Aggregation Service.
    pub service: Did,
    /// The output that is spent.
    pub output: BeaconOutput,
    /// Who signs, with which key.
    pub members: BTreeMap<Did, PublicKey>,
    /// The unsigned beacon transaction.
    pub transaction: Transaction,
    /// The value of the output that it spends.
    pub value: Amount,
    /// How long to wait.
    pub timing: Timing,
    /// What to do when that was not long enough.
    pub rules: PhaseRules,
    /// Who is known not to be there: then the session begins with the fallback.
    pub absent: Vec<Did>,
}

impl SigningTask {
    /// The task of signing `terms.transaction`.
    ///
    /// # Errors
    /// [`InputCountError`] when it has not exactly one input: then no signature hash is defined by one spent output.
    pub fn new(terms: SigningTerms) -> Result<Self, InputCountError> {
        let SigningTerms {
            cohort_id,
            session_id,
            service,
            output,
            members,
            transaction,
            value,
            timing,
            rules,
            absent,
        } = terms;
        let prevout = prevout(&output, value);
        let fallback_sighash = output.fallback().map(|leaf| leaf.sighash(&transaction, &prevout)).transpose()?;
        Ok(Self {
            key_path_sighash: key_path_sighash(&transaction, &prevout)?,
            fallback_sighash,
            cohort_id,
            session_id,
            service,
            output,
            members,
            transaction,
            value,
            timing,
            rules,
            absent,
        })
    }

    /// The output that input 0 spends.
    pub fn prevout(&self) -> TxOut {
        prevout(&self.output, self.value)
    }

    /// What the key path signs (BIP-341, SIGHASH_DEFAULT).
    pub fn key_path_sighash(&self) -> &[u8; 32] {
        &self.key_path_sighash
    }

    /// What the fallback leaf signs (BIP-342), where there is one.
    pub fn fallback_sighash(&self) -> Option<&[u8; 32]> {
        self.fallback_sighash.as_ref()
    }
}

/// The beacon output as a transaction output of `value`.
pub(crate) fn prevout(output: &BeaconOutput, value: Amount) -> TxOut {
    TxOut { value, script_pubkey: output.script_pubkey().to_owned() }
}

/// A signed beacon transaction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Signed {
    /// The transaction, witness included.
    pub transaction: Transaction,
    /// The value of the output that it spends.
    pub value: Amount,
    /// The path that it takes.
    pub path: SpendPath,
    /// The MuSig2 signature, on the key path.
    pub signature: Option<Signature>,
    /// Whose signatures are in it.
    pub signers: Vec<Did>,
    /// Who sent an invalid nonce or partial signature and no valid one in time, when that led to the fallback.
    pub culprits: Vec<Did>,
    /// Who kept silent, when that led to the fallback.
    pub holdouts: Vec<Did>,
}

/// How a signing session ended.
#[derive(Clone, Debug, PartialEq)]
pub enum SigningOutcome {
    /// With a signed transaction.
    Signed(Arc<Signed>),
    /// Without.
    Failed {
        /// In which phase.
        phase: TimedPhase,
        /// Why, in words.
        reason: String,
        /// Who kept silent.
        holdouts: Vec<Did>,
        /// Who sent an invalid contribution, and no valid one in time.
        culprits: Vec<Did>,
        /// Who said two different things in one place, and is no culprit.
        equivocators: Vec<Did>,
    },
}
