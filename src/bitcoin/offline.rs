//! An operator without a chain: it spends a coin that does not exist. For demonstrations and tests.

use ::bitcoin::{Amount, FeeRate, OutPoint, Txid, hashes::Hash};
use async_trait::async_trait;

use crate::{
    actors::policy::{FundedTransaction, PolicyError, ServicePolicy, TransactionRequest},
    protocol::{
        error::Fatal,
        hash::sha256,
        output::{Change, Coin, build_beacon_transaction},
    },
};

/// The value of the made-up coin: enough for the fallback witness of the largest cohort.
const VALUE: Amount = Amount::from_sat(200_000);

/// An operator that admits every participant and spends a made-up output of the beacon address, a different one for
/// each cohort.
#[derive(Clone, Copy, Debug, Default)]
pub struct OfflineOperator;

#[async_trait]
impl ServicePolicy for OfflineOperator {
    async fn beacon_transaction(&self, request: &TransactionRequest) -> Result<FundedTransaction, PolicyError> {
        let txid = Txid::from_byte_array(sha256(request.cohort_id.as_str().as_bytes()));
        let coin = Coin { outpoint: OutPoint { txid, vout: 0 }, value: VALUE };
        let rate = FeeRate::from_sat_per_vb_u32(2);
        let transaction = build_beacon_transaction(&request.output, &coin, &request.signal, rate, &Change::Beacon)
            .map_err(|error| Fatal(error.to_string()))?;
        Ok(FundedTransaction { transaction, value: VALUE })
    }
}
