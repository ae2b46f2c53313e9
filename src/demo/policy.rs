//! The decisions of a demo's members.

use async_trait::async_trait;

use crate::{
    actors::{
        policy::{ParticipantPolicy, UpdateRequest},
        runtime::Randomness,
    },
    protocol::{
        cohort::participant::Advert,
        did::Did,
        identity::Identity,
        update::{Submission, add_beacon_service_patch, build_update, sign_update},
    },
};

/// A member that joins the demo's service and announces the cohort's address as a beacon of its own, or declines.
pub struct DemoMember {
    identity: Identity,
    service: Did,
    declines: bool,
    randomness: Randomness,
}

impl DemoMember {
    /// A member of `service`'s cohort.
    pub fn new(identity: Identity, service: Did, declines: bool, randomness: Randomness) -> Self {
        Self { identity, service, declines, randomness }
    }

    fn update(&self, request: &UpdateRequest) -> Option<Submission> {
        let did = self.identity.did();
        let document = self.identity.initial_document().ok()?;
        let beacon_type = request.advert.conditions.beacon_type.as_str();
        let patch = add_beacon_service_patch(did, beacon_type, request.output.address());
        let update = build_update(&document, 1, patch).ok()?;
        let mut rng = self.randomness.for_actor(&format!("update {did}"));
        let method = self.identity.verification_method();
        sign_update(&update, did, method, self.identity.secret_key(), &mut rng).ok().map(Submission::from)
    }
}

#[async_trait]
impl ParticipantPolicy for DemoMember {
    async fn should_join(&self, advert: &Advert) -> bool {
        advert.service == self.service
    }

    async fn provide_update(&self, request: &UpdateRequest) -> Option<Submission> {
        if self.declines { None } else { self.update(request) }
    }
}
