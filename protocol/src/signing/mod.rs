//! Signing the beacon transaction: MuSig2 over the key path (BIP-327), or k signatures on the fallback leaf.
//!
//! [`session`] is the coordinator's machine, with the one latch that decides the path; `partial` verifies the
//! members' partial signatures; [`nonce`] holds the member's secret nonce, which is used once.

pub mod nonce;
pub(crate) mod partial;
pub mod session;

use std::{collections::BTreeMap, sync::Arc};

use bitcoin::{Amount, Transaction, TxOut};
use serde::{Deserialize, Serialize};

use crate::{
    cohort::{
        Timing, Unreached,
        service::rules::{PhaseRules, TimedPhase},
    },
    did::Did,
    id::{CohortId, SessionId},
    key::{PublicKey, Signature},
    output::{BeaconOutput, InputCountError, SpendPath, key_path_sighash},
};

/// The transaction that a signing session signs, and the members that sign it.
#[derive(Clone, Debug, PartialEq)]
pub struct SigningTask {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The session.
    pub session_id: SessionId,
    /// The Aggregation Service, which is the sender of the session's messages.
    pub service: Did,
    /// The output that is spent.
    pub output: BeaconOutput,
    /// The members, each with the key that it signs with.
    pub members: BTreeMap<Did, PublicKey>,
    /// The unsigned beacon transaction.
    pub transaction: Transaction,
    /// The value of the output that it spends.
    pub value: Amount,
    /// How long to wait.
    pub timing: Timing,
    /// What to do when a phase cannot be completed in time.
    pub rules: PhaseRules,
    /// The members that did not confirm their presence. If there are any, the session starts with the fallback.
    pub absent: Vec<Did>,
    /// The members that the request for it did not reach: then too.
    pub unreached: Unreached,
    /// The digest that the key path signs (BIP-341, SIGHASH_DEFAULT).
    key_path_sighash: [u8; 32],
    /// The digest that the fallback leaf signs (BIP-342), where there is one.
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
    /// The members, each with the key that it signs with.
    pub members: BTreeMap<Did, PublicKey>,
    /// The unsigned beacon transaction.
    pub transaction: Transaction,
    /// The value of the output that it spends.
    pub value: Amount,
    /// How long to wait.
    pub timing: Timing,
    /// What to do when a phase cannot be completed in time.
    pub rules: PhaseRules,
    /// The members that did not confirm their presence. If there are any, the session starts with the fallback.
    pub absent: Vec<Did>,
    /// The members that the request for it did not reach: then too.
    pub unreached: Unreached,
}

impl SigningTask {
    /// The task of signing `terms.transaction`.
    ///
    /// # Errors
    /// [`InputCountError`] when it does not have exactly one input: one spent output then does not determine a
    /// signature hash.
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
            unreached,
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
            unreached,
        })
    }

    /// The output that input 0 spends.
    pub fn prevout(&self) -> TxOut {
        prevout(&self.output, self.value)
    }

    /// The digest that the key path signs (BIP-341, SIGHASH_DEFAULT).
    pub fn key_path_sighash(&self) -> &[u8; 32] {
        &self.key_path_sighash
    }

    /// The digest that the fallback leaf signs (BIP-342), where there is one.
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
    /// The members whose signatures are in it.
    pub signers: Vec<Did>,
    /// The members that sent an invalid nonce or partial signature and no valid one in time, if that led to the
    /// fallback.
    pub culprits: Vec<Did>,
    /// The members that did not respond, if that led to the fallback.
    pub holdouts: Vec<Did>,
    /// The members that were not reached, if that led to the fallback. They are not at fault.
    #[serde(default, skip_serializing_if = "Unreached::is_empty")]
    pub unreached: Unreached,
}

/// How a signing session ended.
#[derive(Clone, Debug, PartialEq)]
pub enum SigningOutcome {
    /// With a signed transaction.
    Signed(Arc<Signed>),
    /// Without a signed transaction.
    Failed {
        /// The phase in which it failed.
        phase: TimedPhase,
        /// The reason, as text.
        reason: String,
        /// The members that did not respond.
        holdouts: Vec<Did>,
        /// The members that sent an invalid contribution, and no valid one in time.
        culprits: Vec<Did>,
        /// The members that sent two different contributions for one slot, and are not in `culprits`.
        equivocators: Vec<Did>,
        /// The members that were not reached. They are not at fault.
        unreached: Unreached,
    },
}
