//! Beacons as a document lists them, and signals as a chain has them.

use std::{collections::BTreeSet, fmt, sync::Arc};

use bitcoin::{Address, Txid, address::NetworkUnchecked};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::{
    beacon::BeaconType, document::beacon_address, hash::SignalBytes, network::Network, text::shown_within,
    update::BlockTimes,
};

/// How much of a service's text is shown, in characters.
const MOST_SHOWN: usize = 200;

/// The types of service that a resolver scans (rule C4). A registered beacon type of a host is none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BeaconKind {
    /// `SingletonBeacon`: the Signal Bytes are the hash of one update.
    Singleton,
    /// `CASBeacon`: they are the hash of a CAS Announcement.
    Cas,
    /// `SMTBeacon`: they are the root of a sparse Merkle tree.
    Smt,
}

impl BeaconKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Singleton, Self::Cas, Self::Smt];

    /// The service's `type`.
    pub const fn service_type(self) -> &'static str {
        match self {
            Self::Singleton => "SingletonBeacon",
            Self::Cas => BeaconType::CAS,
            Self::Smt => BeaconType::SMT,
        }
    }

    /// The kind with that service `type`.
    pub fn from_service_type(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.service_type() == text)
    }
}

impl fmt::Display for BeaconKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.service_type())
    }
}

impl Serialize for BeaconKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.service_type())
    }
}

/// A beacon of a document: one address, under the first service that names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Beacon {
    /// The service's `id` as the document has it, fit to be shown.
    pub service: String,
    /// The service's `type`.
    #[serde(rename = "type")]
    pub kind: BeaconKind,
    /// The address, valid on the DID's network.
    #[serde(serialize_with = "display")]
    pub address: Address,
}

impl Beacon {
    /// A beacon under the service with this `id`, of that kind, at that address.
    pub const fn new(service: String, kind: BeaconKind, address: Address) -> Self {
        Self { service, kind, address }
    }
}

impl fmt::Display for Beacon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.address)
    }
}

fn display<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// A service of a beacon's type that names no address of the DID's network. Nothing can be announced there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct UnusableBeacon {
    /// The service's `id`, fit to be shown.
    pub service: String,
    /// The service's `type`.
    #[serde(rename = "type")]
    pub kind: BeaconKind,
    /// Its `serviceEndpoint`, fit to be shown.
    pub endpoint: String,
}

/// The beacons of `document`, in its order, each address once: of two services on one address the first counts (rules
/// R-3 and C8).
pub fn beacons(document: &Value, network: Network) -> Vec<Result<Beacon, UnusableBeacon>> {
    let mut addresses = BTreeSet::new();
    let services = document.get("service").and_then(Value::as_array).into_iter().flatten();
    let beacon = |service: &Value| {
        let kind = BeaconKind::from_service_type(service.get("type")?.as_str()?)?;
        let text = |field: &str| service.get(field).map(show).unwrap_or_default();
        let endpoint = service.get("serviceEndpoint").and_then(Value::as_str);
        Some(match endpoint.and_then(beacon_address).and_then(|text| address(text, network)) {
            Some(address) => Ok(Beacon { service: text("id"), kind, address }),
            None => Err(UnusableBeacon { service: text("id"), kind, endpoint: text("serviceEndpoint") }),
        })
    };
    services
        .filter_map(beacon)
        .filter(|beacon| beacon.as_ref().map_or(true, |beacon| addresses.insert(beacon.address.clone())))
        .collect()
}

fn show(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    shown_within(&text, MOST_SHOWN).into_owned()
}

fn address(text: &str, network: Network) -> Option<Address> {
    text.parse::<Address<NetworkUnchecked>>().ok()?.require_network(network.to_bitcoin()).ok()
}

/// A signal as the chain has it (rules T-1 to T-3): a transaction that spends from a beacon's address and whose last
/// output is an `OP_RETURN` of 32 bytes. What the source of the chain does not say is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signal {
    /// The transaction.
    pub txid: Txid,
    /// The Signal Bytes.
    pub bytes: SignalBytes,
    /// The height of its block.
    pub height: Option<u32>,
    /// The time in the header of its block, in seconds since the Unix epoch.
    pub time: Option<u32>,
    /// The median time past of its block (BIP-113), in seconds since the Unix epoch.
    pub mediantime: Option<u32>,
    /// Its confirmations, 1 in the newest block; `None` or 0 when it is in no block.
    pub confirmations: Option<u32>,
}

/// The block of a signal, as it was when the chain was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Block {
    /// Its height.
    pub height: u32,
    /// The time in its header, in seconds since the Unix epoch.
    pub time: u32,
    /// Its median time past (BIP-113), in seconds since the Unix epoch.
    pub mediantime: u32,
    /// Its confirmations.
    pub confirmations: u32,
}

impl Block {
    /// The block that `signal` names; `None` if a part of it is missing.
    pub(super) fn of(signal: &Signal) -> Option<Self> {
        Some(Self {
            height: signal.height?,
            time: signal.time?,
            mediantime: signal.mediantime?,
            confirmations: signal.confirmations?,
        })
    }

    /// A block with that height, header time, median time past, and confirmations.
    pub const fn new(height: u32, time: u32, mediantime: u32, confirmations: u32) -> Self {
        Self { height, time, mediantime, confirmations }
    }

    pub(super) const fn times(self) -> BlockTimes {
        BlockTimes { time: self.time, mediantime: self.mediantime }
    }
}

/// A signal that counts: confirmed deeply enough, and not below the block of the last applied update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct BeaconSignal {
    /// Whose signal it is.
    pub beacon: Arc<Beacon>,
    /// The transaction.
    pub txid: Txid,
    /// The Signal Bytes.
    pub bytes: SignalBytes,
    /// Its block.
    pub block: Block,
}

impl BeaconSignal {
    /// A signal of `beacon` by the transaction `txid` in `block`.
    pub const fn new(beacon: Arc<Beacon>, txid: Txid, bytes: SignalBytes, block: Block) -> Self {
        Self { beacon, txid, bytes, block }
    }
}

impl fmt::Display for BeaconSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { beacon, txid, bytes, block } = self;
        write!(f, "signal {bytes} of {beacon} (transaction {txid}, block {})", block.height)
    }
}
