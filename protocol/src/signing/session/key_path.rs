//! The key path: nonces and partial signatures, each verified when it arrives (BIP-327).

use std::{collections::BTreeMap, sync::Arc};

use bitcoin::Transaction;
use musig2::{AggNonce, PartialSignature, PubNonce};

use super::{SessionEvent, SessionPhase, SigningSession};
use crate::{
    cohort::Unreached,
    did::Did,
    error::{Reject, RejectCode, Slot},
    key::Signature,
    message::{Bytes, Message},
    output::{SpendPath, finalize_key_path},
    signing::{Signed, partial::PartialVerifier},
    time::Timestamp,
};

impl SigningSession {
    pub(super) fn on_nonce(
        &self,
        now: Timestamp,
        from: &Did,
        nonce: Bytes<66>,
        message: &Message,
    ) -> Result<Vec<SessionEvent>, Reject> {
        let nonces = match &self.phase {
            SessionPhase::CollectingNonces { nonces, .. }
            | SessionPhase::CollectingPartialSignatures { nonces, .. } => nonces,
            _ => return Err(Reject::new(RejectCode::WrongPhase, from, "the session does not collect nonces now")),
        };
        if let Some(first) = nonces.get(from) {
            return self.on_filled_slot(from, Slot::Nonce, *first == nonce);
        }
        if PubNonce::from_bytes(&nonce.0).is_err() {
            let detail = "nonceContribution is not two curve points";
            return self.on_invalid(from, RejectCode::InvalidNonce, Slot::Nonce, detail);
        }
        let mut events = vec![SessionEvent::NonceReceived { did: from.clone(), nonce, digest: message.digest() }];
        if nonces.len() + 1 == self.task.members.len() {
            let all = nonces.values().chain([&nonce]).filter_map(|nonce| PubNonce::from_bytes(&nonce.0).ok());
            events.push(SessionEvent::NoncesAggregated { at: now, nonce: Bytes(AggNonce::sum(all).into()) });
        }
        Ok(events)
    }

    pub(super) fn on_partial(
        &self,
        now: Timestamp,
        from: &Did,
        signature: Bytes<32>,
        message: &Message,
    ) -> Result<Vec<SessionEvent>, Reject> {
        let SessionPhase::CollectingPartialSignatures { nonces, aggregated, partials, .. } = &self.phase else {
            return Err(Reject::new(
                RejectCode::WrongPhase,
                from,
                "the session does not collect partial signatures now",
            ));
        };
        if let Some(first) = partials.get(from) {
            return self.on_filled_slot(from, Slot::PartialSignature, *first == signature);
        }
        if !self.is_valid(from, nonces, aggregated, &signature) {
            let detail = "partialSignature does not verify against the member's key and nonce";
            return self.on_invalid(from, RejectCode::BadPartialSignature, Slot::PartialSignature, detail);
        }
        let received =
            SessionEvent::PartialSignatureReceived { did: from.clone(), signature, digest: message.digest() };
        if partials.len() + 1 < self.task.members.len() {
            return Ok(vec![received]);
        }
        let mut all = partials.clone();
        all.insert(from.clone(), signature);
        let mut events = vec![received];
        match self.aggregate(aggregated, &all) {
            Some((signature, transaction)) => events.extend(self.complete_key_path(now, signature, transaction)),
            // All of them were verified on arrival, except those that an earlier version stored.
            None => {
                let invalid: Vec<SessionEvent> = all
                    .iter()
                    .filter(|(did, signature)| !self.is_valid(did, nonces, aggregated, signature))
                    .filter_map(|(did, _)| {
                        let detail =
                            "partialSignature does not verify against the member's key and nonce".to_owned();
                        let (code, slot) = (RejectCode::BadPartialSignature, Slot::PartialSignature);
                        self.faults.observe(did, code, slot, detail).ok()
                    })
                    .map(|fault| SessionEvent::FaultRecorded { fault })
                    .collect();
                if invalid.is_empty() {
                    let reason = "the aggregate of valid partial signatures does not verify".to_owned();
                    events.push(self.leave_key_path(now, reason, Vec::new(), Unreached::default()));
                }
                events.extend(invalid);
            }
        }
        Ok(events)
    }

    /// Whether `did`'s partial signature satisfies its equation. Zero is refused: no honest member produces it.
    fn is_valid(
        &self,
        did: &Did,
        nonces: &BTreeMap<Did, Bytes<66>>,
        aggregated: &Bytes<66>,
        signature: &Bytes<32>,
    ) -> bool {
        let verifier = self
            .verifier
            .get_or_init(|| PartialVerifier::new(&self.task.output, *self.task.key_path_sighash(), aggregated));
        let (Some(verifier), Some(key), Some(nonce)) = (verifier, self.task.members.get(did), nonces.get(did))
        else {
            return false;
        };
        signature.0 != [0; 32] && verifier.verify(&self.task.output, key, nonce, signature)
    }

    /// The aggregate signature and the signed transaction, if the signature verifies.
    pub(super) fn aggregate(
        &self,
        aggregated: &Bytes<66>,
        partials: &BTreeMap<Did, Bytes<32>>,
    ) -> Option<(Signature, Transaction)> {
        let nonce = AggNonce::from_bytes(&aggregated.0).ok()?;
        let partials: Vec<PartialSignature> =
            partials.values().filter_map(|signature| PartialSignature::from_slice(&signature.0).ok()).collect();
        let sighash = self.task.key_path_sighash();
        let signature: musig2::CompactSignature =
            musig2::aggregate_partial_signatures(self.task.output.musig2_context(), &nonce, partials, sighash)
                .ok()?;
        let signature = Signature::from_bytes(&signature.serialize());
        // Verified again by the library whose rules the network applies.
        let transaction = finalize_key_path(&self.task.transaction, &signature).ok()?;
        self.task.output.output_key().verify(sighash, &signature).then_some((signature, transaction))
    }

    pub(super) fn complete_key_path(
        &self,
        now: Timestamp,
        signature: Signature,
        transaction: Transaction,
    ) -> [SessionEvent; 2] {
        let signed = Signed {
            transaction,
            value: self.task.value,
            path: SpendPath::KeyPath,
            signature: Some(signature),
            signers: self.task.members.keys().cloned().collect(),
            culprits: Vec::new(),
            holdouts: Vec::new(),
            unreached: Unreached::default(),
        };
        [
            SessionEvent::PathChosen {
                at: now,
                path: SpendPath::KeyPath,
                reason: None,
                holdouts: Vec::new(),
                unreached: Unreached::default(),
            },
            SessionEvent::SessionCompleted { at: now, signed: Arc::new(signed) },
        ]
    }
}
