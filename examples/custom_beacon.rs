//! A custom beacon type: two pure functions, and a name under which cohorts are advertised.
//!
//! This one announces the hash over all updates, sorted, and gives every member the list: like CAS, without the DIDs.
//!
//! `cargo run --release --example custom_beacon`

#[path = "support/mod.rs"]
mod support;

use std::sync::Arc;

use btcr2_aggregation::protocol::{
    beacon::{
        AggregateBeacon, AggregatedData, Aggregation, BeaconData, BeaconError, BeaconMismatch, BeaconType, Slots,
    },
    did::Did,
    hash::{DocumentHash, SignalBytes, sha256_concat},
};
use rand_chacha::rand_core::CryptoRng;
use serde_json::json;

/// The name in adverts.
const LIST_BEACON: &str = "ExampleListBeacon";

#[derive(Debug)]
struct ListBeacon {
    name: BeaconType,
}

/// The signal for a list of update hashes.
fn signal(hashes: &[DocumentHash]) -> SignalBytes {
    let parts: Vec<&[u8]> = hashes.iter().map(|hash| hash.as_bytes().as_slice()).collect();
    SignalBytes::from_bytes(sha256_concat(&parts))
}

impl AggregateBeacon for ListBeacon {
    fn beacon_type(&self) -> BeaconType {
        self.name.clone()
    }

    fn aggregate(&self, slots: &Slots, _: &mut dyn CryptoRng) -> Result<Aggregation, BeaconError> {
        let mut hashes: Vec<DocumentHash> = slots.values().flatten().copied().collect();
        hashes.sort();
        let data = BeaconData::Other(json!(hashes));
        Ok(Aggregation { signal: signal(&hashes), data: AggregatedData::Shared(Arc::new(data)) })
    }

    fn verify(
        &self,
        _: &Did,
        slot: Option<&DocumentHash>,
        data: &BeaconData,
    ) -> Result<SignalBytes, BeaconMismatch> {
        let BeaconData::Other(list) = data else {
            return Err(BeaconMismatch::WrongKind { expected: self.beacon_type() });
        };
        let hashes: Vec<DocumentHash> =
            serde_json::from_value(list.clone()).map_err(|error| BeaconMismatch::Malformed(error.to_string()))?;
        match slot {
            Some(own) if !hashes.contains(own) => Err(BeaconMismatch::OwnUpdateMissing { expected: *own }),
            _ => Ok(signal(&hashes)),
        }
    }
}

#[actix_rt::main]
async fn main() -> support::Outcome<()> {
    let name = BeaconType::new(LIST_BEACON)?;
    let mut cohort = support::Cohort::of(3);
    // Service and participants need it: a participant ignores an advert with an unknown beacon type.
    cohort.beacons.register(Arc::new(ListBeacon { name: name.clone() }));
    cohort.beacon_type = name;
    let result = cohort.start().await?.round().await?;
    println!(
        "{LIST_BEACON} announced {} for 3 members, who each checked it\nin transaction {}",
        result.aggregation.signal,
        result.signed.transaction.compute_txid()
    );
    Ok(())
}
