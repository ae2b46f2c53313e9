//! The Bitcoin networks that a did:btcr2 identifier can name.

use std::fmt;

use bitcoin::{KnownHrp, NetworkKind};
use serde::{Deserialize, Serialize};

/// A Bitcoin network, by the names of the did:btcr2 specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Bitcoin's main network.
    Bitcoin,
    /// The default signet.
    Signet,
    /// A local regression test network.
    Regtest,
    /// Testnet, version 3.
    Testnet3,
    /// Testnet, version 4.
    Testnet4,
    /// Mutinynet, a custom signet with 30 second blocks.
    Mutinynet,
}

/// A name that is not a network of the specification.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown network: one of bitcoin, signet, regtest, testnet3, testnet4, mutinynet expected")]
pub struct UnknownNetwork;

impl Network {
    /// Every network, in the order of the identifier's network values 0..=5.
    pub const ALL: [Self; 6] =
        [Self::Bitcoin, Self::Signet, Self::Regtest, Self::Testnet3, Self::Testnet4, Self::Mutinynet];

    /// The value in the low nibble of an identifier's first byte.
    pub const fn nibble(self) -> u8 {
        self as u8
    }

    /// The network of an identifier's low nibble; `None` for reserved (6..=11) and custom (12..=15) values.
    pub fn from_nibble(nibble: u8) -> Option<Self> {
        Self::ALL.get(usize::from(nibble)).copied()
    }

    /// The name in messages and configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bitcoin => "bitcoin",
            Self::Signet => "signet",
            Self::Regtest => "regtest",
            Self::Testnet3 => "testnet3",
            Self::Testnet4 => "testnet4",
            Self::Mutinynet => "mutinynet",
        }
    }

    /// The human-readable part of segwit addresses: mutinynet and signet share testnet's `tb`.
    pub const fn hrp(self) -> KnownHrp {
        match self {
            Self::Bitcoin => KnownHrp::Mainnet,
            Self::Regtest => KnownHrp::Regtest,
            Self::Signet | Self::Testnet3 | Self::Testnet4 | Self::Mutinynet => KnownHrp::Testnets,
        }
    }

    /// The kind of network, as legacy addresses distinguish them.
    pub const fn kind(self) -> NetworkKind {
        match self {
            Self::Bitcoin => NetworkKind::Main,
            _ => NetworkKind::Test,
        }
    }

    /// The `bitcoin` crate's network whose address rules this network follows.
    pub const fn to_bitcoin(self) -> bitcoin::Network {
        match self {
            Self::Bitcoin => bitcoin::Network::Bitcoin,
            Self::Signet | Self::Mutinynet => bitcoin::Network::Signet,
            Self::Regtest => bitcoin::Network::Regtest,
            Self::Testnet3 => bitcoin::Network::Testnet,
            Self::Testnet4 => bitcoin::Network::Testnet4,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Network {
    type Err = UnknownNetwork;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|network| network.name() == name).ok_or(UnknownNetwork)
    }
}
