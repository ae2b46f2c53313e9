//! Where an update is found: resolvers read the beacons of the document that the update starts from, and no others
//! (rules and C4).

use std::fmt;

use serde_json::Value;

use crate::protocol::{
    did::Did,
    network::Network,
    resolution::{Beacon, BeaconKind, beacons},
};

/// What resolvers read at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Signals of a beacon of that type.
    Listed,
    /// Signals of a beacon of another type: what they are the hash of would be misread.
    OtherType(BeaconKind),
    /// Nothing: the document lists no beacon there.
    NotListed,
}

impl Place {
    /// What resolvers that start from `document` read at `address`, of a beacon of `beacon_type` on `network`.
    pub fn of(document: &Value, network: Network, beacon_type: &str, address: &str) -> Self {
        let listed = beacons(document, network).into_iter().flatten();
        match listed.into_iter().find(|beacon| beacon.address.to_string() == address) {
            Some(beacon) if beacon.kind.service_type() == beacon_type => Self::Listed,
            Some(beacon) => Self::OtherType(beacon.kind),
            None => Self::NotListed,
        }
    }
}

/// The beacons of a document at which a cohort can announce.
pub fn of_cohorts(document: &Value, did: &Did) -> Vec<Beacon> {
    let listed = beacons(document, did.network()).into_iter().flatten();
    listed.filter(|beacon| beacon.kind != BeaconKind::Singleton).collect()
}

/// The words for several beacons, `none` for an empty list.
pub struct Listing<'a>(pub &'a [Beacon]);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (index, beacon) in self.0.iter().enumerate() {
            write!(f, "{}{beacon}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ADDRESS: &str = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";

    fn place(services: Value, beacon_type: &str) -> Place {
        Place::of(&json!({ "service": services }), Network::Regtest, beacon_type, ADDRESS)
    }

    #[test]
    fn an_address_counts_under_the_first_type_that_names_it() {
        let service = |kind: &str, endpoint: &str| json!({ "id": "#a", "type": kind, "serviceEndpoint": endpoint });
        let endpoint = format!("bitcoin:{ADDRESS}");
        assert_eq!(place(json!([]), "CASBeacon"), Place::NotListed);
        assert_eq!(place(json!([service("CASBeacon", &endpoint)]), "CASBeacon"), Place::Listed);
        assert_eq!(place(json!([service("CASBeacon", &endpoint)]), "SMTBeacon"), Place::OtherType(BeaconKind::Cas));
        let both = json!([service("SMTBeacon", &endpoint), service("CASBeacon", &endpoint)]);
        assert_eq!(place(both, "CASBeacon"), Place::OtherType(BeaconKind::Smt));
        // BIP-321: parameters do not belong to the address, and upper case is the same address.
        let upper = format!("BITCOIN:{}?label=x", ADDRESS.to_uppercase());
        assert_eq!(place(json!([service("CASBeacon", &upper)]), "CASBeacon"), Place::Listed);
        // An address of another network is none.
        let main = "bitcoin:bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4";
        assert_eq!(place(json!([service("CASBeacon", main)]), "CASBeacon"), Place::NotListed);
    }
}
