//! A beacon on the command line: `ADDRESS[,TYPE]`.

use std::str::FromStr;

use ::bitcoin::{Address, address::NetworkUnchecked};

use crate::{
    inputs,
    protocol::{network::Network, resolution::BeaconKind},
};

/// The address of a beacon and its type, which is CAS unless stated.
#[derive(Clone, Debug)]
pub(super) struct BeaconText {
    address: Address<NetworkUnchecked>,
    kind: BeaconKind,
}

impl FromStr for BeaconText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, kind) = match text.rsplit_once(',') {
            Some((address, kind)) => (address, kind_of(kind)?),
            None => (text, BeaconKind::Cas),
        };
        Ok(Self { address: inputs::any_address(address)?, kind })
    }
}

fn kind_of(text: &str) -> Result<BeaconKind, String> {
    match text.to_ascii_lowercase().trim_end_matches("beacon") {
        "cas" => Ok(BeaconKind::Cas),
        "smt" => Ok(BeaconKind::Smt),
        "singleton" => Ok(BeaconKind::Singleton),
        _ => Err("ADDRESS[,TYPE] expected, with cas, smt or singleton as TYPE".to_owned()),
    }
}

impl BeaconText {
    /// A beacon of that type at `address`.
    pub(super) fn new(address: Address, kind: BeaconKind) -> Self {
        Self { address: address.into_unchecked(), kind }
    }

    /// The type.
    pub(super) const fn kind(&self) -> BeaconKind {
        self.kind
    }

    /// The address, if it belongs to `network`.
    pub(super) fn on(&self, network: Network) -> Result<Address, String> {
        inputs::on_network(self.address.clone(), network)
    }

    /// The usual name of its service.
    pub(super) const fn name(&self) -> &'static str {
        match self.kind {
            BeaconKind::Cas => "beacon-cas",
            BeaconKind::Smt => "beacon-smt",
            BeaconKind::Singleton => "singleton",
        }
    }
}
