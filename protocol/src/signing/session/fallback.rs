//! The fallback path: leaving the key path permanently, and collecting k signatures on the fallback leaf (BIP-342).

use std::{collections::BTreeMap, sync::Arc};

use super::{SessionEvent, SessionPhase, SigningSession};
use crate::{
    cohort::{Unreached, service::rules::TimedPhase},
    did::Did,
    error::{Reject, RejectCode, Slot},
    key::{Signature, XOnlyKey},
    message::{Message, sign::FallbackSignature},
    output::SpendPath,
    signing::Signed,
    time::Timestamp,
};

impl SigningSession {
    /// The choice of the fallback if there is one, otherwise the failure of the session.
    pub(super) fn leave_key_path(
        &self,
        now: Timestamp,
        reason: String,
        holdouts: Vec<Did>,
        unreached: Unreached,
    ) -> SessionEvent {
        if self.task.output.fallback_spendable() {
            SessionEvent::PathChosen {
                at: now,
                path: SpendPath::ScriptPath,
                reason: Some(reason),
                holdouts,
                unreached,
            }
        } else {
            let reason = format!("{reason}, and the output has no fallback leaf that could be spent");
            SessionEvent::SessionFailed { at: now, phase: TimedPhase::Fallback, reason, holdouts, unreached }
        }
    }

    pub(super) fn on_fallback_signature(
        &self,
        now: Timestamp,
        from: &Did,
        body: &FallbackSignature,
        message: &Message,
    ) -> Result<Vec<SessionEvent>, Reject> {
        let (SessionPhase::Fallback { signatures, holdouts, culprits, unreached, .. }, Some(leaf), Some(sighash)) =
            (&self.phase, self.task.output.fallback(), self.task.fallback_sighash())
        else {
            return Err(Reject::new(
                RejectCode::WrongPhase,
                from,
                "the session does not collect fallback signatures now",
            ));
        };
        let signature = Signature::from_bytes(&body.fallback_signature.0);
        if let Some(first) = signatures.get(from) {
            return self.on_filled_slot(from, Slot::FallbackSignature, *first == signature);
        }
        let key = self.task.members.get(from).map(|key| key.x_only());
        let Some(key) = key.filter(|key| key.to_bytes() == body.signer_pk.0) else {
            return Err(Reject::new(RejectCode::InvalidKey, from, "signerPk is not the member's key"));
        };
        if !key.verify(sighash, &signature) {
            let detail = "fallbackSignature does not verify";
            return self.on_invalid(from, RejectCode::BadFallbackSignature, Slot::FallbackSignature, detail);
        }
        let mut events = vec![SessionEvent::FallbackSignatureReceived {
            did: from.clone(),
            signature,
            digest: message.digest(),
        }];
        if signatures.len() + 1 >= leaf.threshold() {
            let mut by_key: BTreeMap<XOnlyKey, Signature> = BTreeMap::new();
            for (did, signature) in signatures.iter().chain([(from, &signature)]) {
                by_key.extend(self.task.members.get(did).map(|key| (key.x_only(), *signature)));
            }
            events.push(match leaf.assemble(&self.task.transaction, &self.task.prevout(), &by_key) {
                Ok(transaction) => {
                    let signers = signatures.keys().chain([from]).cloned().collect();
                    let signed = Signed {
                        transaction,
                        value: self.task.value,
                        path: SpendPath::ScriptPath,
                        signature: None,
                        signers,
                        culprits: culprits.clone(),
                        holdouts: holdouts.clone(),
                        unreached: unreached.clone(),
                    };
                    SessionEvent::SessionCompleted { at: now, signed: Arc::new(signed) }
                }
                // Every signature was verified above, so this is our own fault.
                Err(error) => SessionEvent::SessionFailed {
                    at: now,
                    phase: TimedPhase::Fallback,
                    reason: error.to_string(),
                    holdouts: Vec::new(),
                    unreached: Unreached::default(),
                },
            });
        }
        Ok(events)
    }
}
