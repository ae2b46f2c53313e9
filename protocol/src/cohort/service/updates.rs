//! Collecting updates: the checks of size, equivocation and proof, in this order; and the aggregation when every slot
//! is filled.

use std::sync::Arc;

use rand_core::CryptoRng;

use super::{ServiceCohort, phase::Phase};
use crate::{
    cohort::{
        Member,
        event::{CohortFailure, ServiceEvent},
    },
    did::Did,
    document,
    error::{Reject, RejectCode, Slot},
    hash::DocumentHash,
    message::{Message, update::SubmitUpdate},
    time::Timestamp,
    update::{
        Edition, SignedUpdate, UpdateContext, UpdateError, refuse_expiring, verify_later_proof, verify_update,
    },
};

impl ServiceCohort {
    pub(super) fn on_update(
        &self,
        now: Timestamp,
        from: &Did,
        body: &SubmitUpdate,
        message: &Message,
        rng: &mut dyn CryptoRng,
    ) -> Result<Vec<ServiceEvent>, Reject> {
        let member = self.member(from)?;
        let update = message
            .body
            .signed_update()
            .unwrap_or_else(|| SignedUpdate::from_value((*body.signed_update).clone()))
            .map_err(|error| Reject::new(RejectCode::UpdateMalformed, from, error))?;
        let limit = self.config.terms.limits.update_bytes;
        if update.canonical_len() > limit {
            let detail = format!("{} bytes of canonical JSON, at most {limit} allowed", update.canonical_len());
            return Err(Reject::new(RejectCode::UpdateTooLarge, from, detail));
        }
        if let Some(filled) = self.phase.slots().and_then(|slots| slots.get(from)) {
            return self.on_filled_slot(from, filled.as_ref() == Some(update.hash()));
        }
        if !matches!(self.phase, Phase::CollectingUpdates { .. }) {
            return Err(Reject::new(RejectCode::WrongPhase, from, "the cohort does not collect updates now"));
        }
        verify(now, member, &update)?;
        let hash = *update.hash();
        let received = ServiceEvent::UpdateReceived {
            did: from.clone(),
            update: update.packed(),
            digest: message.digest(),
            edition: Edition::CURRENT,
        };
        Ok(self.with_aggregation(now, received, (from, Some(hash)), rng))
    }

    pub(super) fn on_decline(
        &self,
        now: Timestamp,
        from: &Did,
        message: &Message,
        rng: &mut dyn CryptoRng,
    ) -> Result<Vec<ServiceEvent>, Reject> {
        self.member(from)?;
        if let Some(filled) = self.phase.slots().and_then(|slots| slots.get(from)) {
            return self.on_filled_slot(from, filled.is_none());
        }
        if !matches!(self.phase, Phase::CollectingUpdates { .. }) {
            return Err(Reject::new(RejectCode::WrongPhase, from, "the cohort does not collect updates now"));
        }
        let declined = ServiceEvent::UpdateDeclined { did: from.clone(), digest: message.digest() };
        Ok(self.with_aggregation(now, declined, (from, None), rng))
    }

    fn on_filled_slot(&self, from: &Did, same: bool) -> Result<Vec<ServiceEvent>, Reject> {
        if same {
            return Ok(Vec::new());
        }
        let fault = self.faults.equivocation(from, Slot::Update)?;
        Ok(vec![ServiceEvent::FaultRecorded { fault }])
    }

    /// `event`, and the aggregation if it fills the last slot.
    fn with_aggregation(
        &self,
        now: Timestamp,
        event: ServiceEvent,
        (did, slot): (&Did, Option<DocumentHash>),
        rng: &mut dyn CryptoRng,
    ) -> Vec<ServiceEvent> {
        let mut events = vec![event];
        let Phase::CollectingUpdates { formed, slots, .. } = &self.phase else { return events };
        if slots.len() + 1 < formed.members.len() {
            return events;
        }
        let mut slots = slots.clone();
        slots.insert(did.clone(), slot);
        let beacon_type = &self.config.terms.conditions.beacon_type;
        let aggregation = self
            .config
            .beacons
            .get(beacon_type)
            .ok_or_else(|| format!("beacon type {beacon_type} is not registered"))
            .and_then(|beacon| beacon.aggregate(&slots, rng).map_err(|error| error.to_string()));
        match aggregation {
            Ok(aggregation) => {
                events.push(ServiceEvent::UpdatesAggregated {
                    at: now,
                    aggregation: Arc::new(aggregation),
                    edition: Edition::CURRENT,
                });
            }
            Err(reason) => events.extend(self.fail(now, CohortFailure::Internal { reason })),
        }
        events
    }
}

/// Checks `update` by every rule that the service can check. It knows the initial document, from which a first update
/// starts. Of a later update it checks the proof; the signature only where it is by a key of the initial document, since a
/// later document may have other keys.
fn verify(now: Timestamp, member: &Member, update: &SignedUpdate) -> Result<(), Reject> {
    let reject = |error: UpdateError| {
        let code = match error.code() {
            "UPDATE_MALFORMED" => RejectCode::UpdateMalformed,
            _ => RejectCode::UpdateVerificationFailed,
        };
        Reject::new(code, &member.did, error)
    };
    let initial = document::initial_document(&member.did, member.genesis_document.as_deref())
        .map_err(|error| Reject::new(RejectCode::UpdateVerificationFailed, &member.did, error))?;
    let context = UpdateContext { did: &member.did, document: &initial, version: 1, block: None };
    let valid = match update.target_version() {
        Some(version) if version > 2 => verify_later_proof(update, &context),
        _ => verify_update(update, &context).map(|_| ()),
    };
    valid.and_then(|()| refuse_expiring(update, now)).map_err(reject)
}
