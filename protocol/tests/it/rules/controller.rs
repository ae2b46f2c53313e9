//! A controller whose updates can be wrong in one point and correct in all others.

use btcr2_aggregation_protocol::{
    did::Did,
    document,
    identity::Identity,
    jcs,
    key::SecretKey,
    network::Network,
    update::{
        BlockTimes, SignedUpdate, UpdateContext, UpdateError, add_beacon_service_patch, build_update, sign_update,
        signed_digest, verify_update, violations,
    },
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::{Value, json};

pub(crate) fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(1)
}

pub(crate) fn key(byte: u8) -> SecretKey {
    SecretKey::from_bytes(&[byte; 32]).unwrap()
}

/// A KEY DID, its document and its key.
pub(crate) struct Controller {
    pub(crate) identity: Identity,
    pub(crate) document: Value,
}

impl Controller {
    pub(crate) fn new() -> Self {
        Self::of(Identity::from_key(key(7), Network::Regtest))
    }

    /// An EXTERNAL DID, with the default genesis document as changed by `change`.
    pub(crate) fn external(change: impl FnOnce(&mut Value)) -> Self {
        let mut genesis = document::genesis_document(&key(7).public_key(), Network::Regtest);
        change(&mut genesis);
        Self::of(Identity::from_genesis(key(7), genesis, Network::Regtest).unwrap())
    }

    pub(crate) fn of(identity: Identity) -> Self {
        let document = identity.initial_document().unwrap();
        Self { identity, document }
    }

    pub(crate) fn did(&self) -> &Did {
        self.identity.did()
    }

    pub(crate) fn patch(&self) -> Value {
        add_beacon_service_patch(self.did(), "CASBeacon", "bcrt1qexample")
    }

    /// A valid first update.
    pub(crate) fn update(&self) -> SignedUpdate {
        let unsigned = build_update(&self.document, 1, self.patch()).unwrap();
        let method = self.identity.verification_method();
        sign_update(&unsigned, self.did(), method, self.identity.secret_key(), &mut rng()).unwrap()
    }

    /// The update as changed by `change` (update without proof, proof without value), signed by the DID's key.
    pub(crate) fn signed(&self, change: impl FnOnce(&mut Value, &mut Value)) -> SignedUpdate {
        self.signed_by(self.identity.secret_key(), change)
    }

    pub(crate) fn signed_by(&self, key: &SecretKey, change: impl FnOnce(&mut Value, &mut Value)) -> SignedUpdate {
        let mut update = self.update().value().clone();
        let mut proof = update.as_object_mut().unwrap().remove("proof").unwrap();
        proof.as_object_mut().unwrap().remove("proofValue");
        change(&mut update, &mut proof);
        let signature = key.sign(&signed_digest(&proof, &update).unwrap(), &mut rng());
        proof["proofValue"] = json!(format!("z{}", bs58::encode(signature.to_bytes()).into_string()));
        update["proof"] = proof;
        SignedUpdate::from_value(update).unwrap()
    }

    /// A correctly signed update with this patch. Its hashes are correct if the patch applies.
    pub(crate) fn patched(&self, patch: Value) -> SignedUpdate {
        self.signed(|update, _| {
            if let Ok(unsigned) = build_update(&self.document, 1, patch.clone()) {
                update["targetHash"] = json!(jcs::document_hash(unsigned.target_document()).unwrap());
            }
            update["patch"] = patch;
        })
    }

    pub(crate) fn context(&self) -> UpdateContext<'_> {
        UpdateContext { did: self.did(), document: &self.document, version: 1, block: None }
    }

    pub(crate) fn verify(&self, update: &SignedUpdate) -> Result<Value, UpdateError> {
        verify_update(update, &self.context())
    }

    pub(crate) fn verify_in(&self, update: &SignedUpdate, block: BlockTimes) -> Result<Value, UpdateError> {
        verify_update(update, &UpdateContext { block: Some(block), ..self.context() })
    }

    /// Asserts that `update` breaks exactly this rule, and that the error names it.
    #[track_caller]
    pub(crate) fn breaks(&self, update: &SignedUpdate, rule: &str) -> UpdateError {
        let mut broken = violations(update, &self.context());
        assert_eq!(broken.len(), 1, "{broken:?}");
        let error = broken.remove(0);
        assert!(error.to_string().contains(&format!("rule {rule}")), "{rule}: {error}");
        assert_eq!(self.verify(update).unwrap_err().to_string(), error.to_string());
        error
    }
}
