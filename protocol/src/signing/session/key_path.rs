//! The key path: nonces, partial signatures, and who is to blame when they do not add up (BIP-327).

use std::{collections::BTreeMap, sync::Arc};

use bitcoin::Transaction;
use musig2::{AggNonce, PartialSignature, PubNonce};

use super::{SessionEvent, SessionPhase, SigningSession};
use crate::{
    cohort::event::SpendPath,
    did::Did,
    error::{Fault, Reject, RejectCode, Slot},
    key::Signature,
    message::{Bytes, Message},
    output::finalize_key_path,
    signing::{Signed, blame},
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
            _ => return Err(Reject::new(RejectCode::WrongPhase, from, "no nonces are collected now")),
        };
        if let Some(first) = nonces.get(from) {
            return self.on_filled_slot(from, Slot::Nonce, *first == nonce);
        }
        if PubNonce::from_bytes(&nonce.0).is_err() {
            return Err(Reject::new(RejectCode::InvalidNonce, from, "nonceContribution is not two curve points"));
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
            return Err(Reject::new(RejectCode::WrongPhase, from, "no partial signatures are collected now"));
        };
        if let Some(first) = partials.get(from) {
            return self.on_filled_slot(from, Slot::PartialSignature, *first == signature);
        }
        // Zero is a number but no honest member's signature; without this check it would only be found at the end.
        if PartialSignature::from_slice(&signature.0).is_err() || signature.0 == [0; 32] {
            let detail = "partialSignature is not a number in 1..n".to_owned();
            return Ok(self.on_culprits(now, vec![(from.clone(), detail)]));
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
            None => {
                let detail = "partialSignature does not verify against the member's key and nonce";
                let guilty = blame::culprits(&self.task, nonces, aggregated, &all);
                let guilty = guilty.into_iter().map(|did| (did, detail.to_owned())).collect();
                events.extend(self.on_culprits(now, guilty));
            }
        }
        Ok(events)
    }

    /// The final signature and the transaction that it signs, when it verifies.
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
        // A second opinion from the library whose rules the network applies.
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
        };
        [
            SessionEvent::PathChosen { at: now, path: SpendPath::KeyPath, reason: None, holdouts: Vec::new() },
            SessionEvent::SessionCompleted { at: now, signed: Arc::new(signed) },
        ]
    }

    /// Nobody is a holdout here: whoever has not signed yet still had the time to.
    pub(super) fn on_culprits(&self, now: Timestamp, guilty: Vec<(Did, String)>) -> Vec<SessionEvent> {
        let mut events: Vec<_> = guilty
            .into_iter()
            .map(|(did, detail)| {
                let (code, slot) = (RejectCode::BadPartialSignature, Slot::PartialSignature);
                SessionEvent::FaultRecorded { fault: Fault { did, code, slot, detail } }
            })
            .collect();
        events.push(self.leave_key_path(now, "a partial signature is invalid".to_owned(), Vec::new()));
        events
    }
}
