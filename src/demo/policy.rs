//! What the operator and the members of a demo decide.

use std::sync::Mutex;

use ::bitcoin::{Amount, FeeRate, OutPoint, TxOut, Txid, hashes::Hash};
use async_trait::async_trait;

use crate::{
    actors::{
        policy::{
            FundedTransaction, ParticipantPolicy, PolicyError, ServicePolicy, TransactionRequest, UpdateRequest,
        },
        runtime::Randomness,
    },
    protocol::{
        cohort::participant::Advert,
        did::Did,
        error::Fatal,
        hash::sha256,
        identity::Identity,
        output::{BeaconOutput, Change, Coin, build_beacon_transaction},
        update::{SignedUpdate, add_beacon_service_patch, build_update, sign_update},
    },
};

/// The value of the made-up coin: enough for the fallback witness of the largest demo.
const VALUE: Amount = Amount::from_sat(200_000);

/// An operator that admits everybody and spends a coin that does not exist.
#[derive(Default)]
pub struct MadeUpCoin(Mutex<Option<(BeaconOutput, TxOut)>>);

impl MadeUpCoin {
    /// The output and the coin that was spent, once a transaction was asked for.
    pub fn spent(&self) -> Option<(BeaconOutput, TxOut)> {
        self.0.lock().ok()?.clone()
    }
}

#[async_trait]
impl ServicePolicy for MadeUpCoin {
    async fn beacon_transaction(&self, request: &TransactionRequest) -> Result<FundedTransaction, PolicyError> {
        let txid = Txid::from_byte_array(sha256(request.cohort_id.as_str().as_bytes()));
        let coin = Coin { outpoint: OutPoint { txid, vout: 0 }, value: VALUE };
        let rate = FeeRate::from_sat_per_vb_u32(2);
        let transaction = build_beacon_transaction(&request.output, &coin, &request.signal, rate, &Change::Beacon)
            .map_err(|error| Fatal(error.to_string()))?;
        if let Ok(mut spent) = self.0.lock() {
            *spent = Some((request.output.clone(), coin.prevout(&request.output)));
        }
        Ok(FundedTransaction { transaction, value: VALUE })
    }
}

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

    fn update(&self, request: &UpdateRequest) -> Option<SignedUpdate> {
        let did = self.identity.did();
        let document = self.identity.initial_document().ok()?;
        let beacon_type = request.advert.conditions.beacon_type.as_str();
        let patch = add_beacon_service_patch(did, beacon_type, request.output.address());
        let update = build_update(&document, 1, patch).ok()?;
        let mut rng = self.randomness.for_actor(&format!("update {did}"));
        let method = self.identity.verification_method();
        sign_update(&update, did, method, self.identity.secret_key(), &mut rng).ok()
    }
}

#[async_trait]
impl ParticipantPolicy for DemoMember {
    async fn should_join(&self, advert: &Advert) -> bool {
        advert.service == self.service
    }

    async fn provide_update(&self, request: &UpdateRequest) -> Option<SignedUpdate> {
        if self.declines { None } else { self.update(request) }
    }
}
