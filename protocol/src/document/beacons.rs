//! The Singleton beacons that the first document of every KEY identifier lists.

use std::fmt;

use bitcoin::{Address, CompressedPublicKey, ScriptBuf};
use secp256k1::SECP256K1;

use crate::{did::Did, key::PublicKey, network::Network};

/// The kinds of address of a KEY identifier's initial beacons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InitialBeaconKind {
    /// Pay to public key hash.
    P2pkh,
    /// Pay to witness public key hash (BIP-84).
    P2wpkh,
    /// Taproot, key path only (BIP-86).
    P2tr,
}

impl InitialBeaconKind {
    /// Every kind, in the order of the initial document.
    pub const ALL: [Self; 3] = [Self::P2pkh, Self::P2wpkh, Self::P2tr];

    /// The fragment of the beacon's service in the initial document.
    pub const fn service(self) -> &'static str {
        match self {
            Self::P2pkh => "initialP2PKH",
            Self::P2wpkh => "initialP2WPKH",
            Self::P2tr => "initialP2TR",
        }
    }
}

impl fmt::Display for InitialBeaconKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::P2pkh => "P2PKH",
            Self::P2wpkh => "P2WPKH",
            Self::P2tr => "P2TR",
        })
    }
}

/// One of the three Singleton beacons in the initial document of a KEY identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialBeacon {
    key: PublicKey,
    kind: InitialBeaconKind,
    address: Address,
}

impl InitialBeacon {
    /// The beacon of `key`'s identifier on `network`.
    pub fn new(key: PublicKey, network: Network, kind: InitialBeaconKind) -> Self {
        let compressed = CompressedPublicKey(*key.as_inner());
        let address = match kind {
            InitialBeaconKind::P2pkh => Address::p2pkh(compressed, network.kind()),
            InitialBeaconKind::P2wpkh => Address::p2wpkh(&compressed, network.hrp()),
            InitialBeaconKind::P2tr => Address::p2tr(SECP256K1, *key.x_only().as_inner(), None, network.hrp()),
        };
        Self { key, kind, address }
    }

    /// The beacon of `did`. `None` for an EXTERNAL identifier, whose beacons its genesis document names.
    pub fn of(did: &Did, kind: InitialBeaconKind) -> Option<Self> {
        did.key().map(|key| Self::new(key, did.network(), kind))
    }

    /// The identifier's key, to which the address belongs.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The kind of its address.
    pub fn kind(&self) -> InitialBeaconKind {
        self.kind
    }

    /// Its address: whatever spends from it is a signal of the identifier.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The script of its address.
    pub fn script_pubkey(&self) -> ScriptBuf {
        self.address.script_pubkey()
    }
}
