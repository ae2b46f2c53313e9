//! did:btcr2 identifiers (specification, "Identifiers"): Bech32m over a version-and-network byte and the genesis bytes.

use std::{borrow::Borrow, fmt, sync::Arc};

use bech32::{
    Bech32m, Hrp,
    primitives::decode::{CheckedHrpstring, CheckedHrpstringError},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{key::PublicKey, network::Network};

const PREFIX: &str = "did:btcr2:";

/// The characters that `encodeURIComponent` (ECMA-262) escapes: all but letters, digits and ``-_.!~*'()``.
const URI_COMPONENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'!')
    .remove(b'~')
    .remove(b'*')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')');

/// Why a text is not an identifier that we accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DidError {
    /// Not of the form `did:btcr2:<id>`.
    #[error("not a did:btcr2 identifier")]
    NotBtcr2,
    /// The id is not lower-case Bech32m.
    #[error("the id is not lower-case Bech32m")]
    Encoding,
    /// The id is written as Bech32m is, and a character of it is wrong.
    #[error("the id's checksum is wrong: a character is missing or another one")]
    Checksum,
    /// The human-readable part is neither `k` nor `x`.
    #[error("the id's type is neither k (KEY) nor x (EXTERNAL)")]
    IdType,
    /// A version other than 1.
    #[error("unsupported identifier version")]
    Version,
    /// A reserved network value, or a custom one that was not configured.
    #[error("network value {0} is reserved or not configured")]
    Network(u8),
    /// The genesis bytes have the wrong length or are not a key.
    #[error("the genesis bytes are not valid for the id's type")]
    GenesisBytes,
    /// Decoding and encoding again gives another text.
    #[error("the id is not in canonical form")]
    NotCanonical,
}

/// What an identifier commits to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Genesis {
    /// `k`: the key itself; the initial document follows from it.
    Key(PublicKey),
    /// `x`: the SHA-256 of the JCS bytes of a genesis document.
    External([u8; 32]),
}

/// The custom network values (12..=15) that a host accepts, and the network whose address rules each follows.
/// Empty by default: without configuration a custom network is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CustomNetworks(Vec<(u8, Network)>);

impl CustomNetworks {
    /// Accepts network value `nibble` (12..=15, others are ignored) as a network with the address rules of `network`.
    pub fn with(mut self, nibble: u8, network: Network) -> Self {
        if (12..=15).contains(&nibble) {
            self.0.push((nibble, network));
        }
        self
    }

    fn get(&self, nibble: u8) -> Option<Network> {
        self.0.iter().find(|(n, _)| *n == nibble).map(|(_, network)| *network)
    }
}

/// A valid did:btcr2 identifier. Cheap to clone and as small as a pointer, for many maps have it as their key; ordered and
/// compared by its text.
#[derive(Clone)]
pub struct Did(Arc<Parts>);

struct Parts {
    text: Box<str>,
    network: Network,
    genesis: Genesis,
}

impl Did {
    /// Parses an identifier on one of the specification's networks.
    pub fn parse(text: &str) -> Result<Self, DidError> {
        Self::parse_with(text, &CustomNetworks::default())
    }

    /// Parses an identifier, accepting the custom networks of `custom` as well.
    pub fn parse_with(text: &str, custom: &CustomNetworks) -> Result<Self, DidError> {
        let id = text.strip_prefix(PREFIX).ok_or(DidError::NotBtcr2)?;
        // Bech32 allows all-upper-case; the specification's identifiers are lower case.
        if id.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(DidError::Encoding);
        }
        let checked = CheckedHrpstring::new::<Bech32m>(id).map_err(|error| match error {
            CheckedHrpstringError::Checksum(_) => DidError::Checksum,
            _ => DidError::Encoding,
        })?;
        let payload: Vec<u8> = checked.byte_iter().collect();
        let (&first, genesis) = payload.split_first().ok_or(DidError::GenesisBytes)?;
        if first >> 4 != 0 {
            return Err(DidError::Version);
        }
        let nibble = first & 0x0f;
        let network =
            Network::from_nibble(nibble).or_else(|| custom.get(nibble)).ok_or(DidError::Network(nibble))?;
        let genesis = match checked.hrp().as_str() {
            "k" => Genesis::Key(PublicKey::from_bytes(genesis).map_err(|_| DidError::GenesisBytes)?),
            "x" => Genesis::External(genesis.try_into().map_err(|_| DidError::GenesisBytes)?),
            _ => return Err(DidError::IdType),
        };
        let did = Self::of(encode(nibble, &genesis), network, genesis);
        // Padding bits and surplus 5-bit words decode to the same bytes; only the canonical spelling names the DID.
        if did.as_str() == text { Ok(did) } else { Err(DidError::NotCanonical) }
    }

    /// The identifier of a KEY DID.
    pub fn from_key(key: PublicKey, network: Network) -> Self {
        Self::new(network, Genesis::Key(key))
    }

    /// The identifier of an EXTERNAL DID with the given genesis document hash.
    pub fn from_genesis_hash(hash: [u8; 32], network: Network) -> Self {
        Self::new(network, Genesis::External(hash))
    }

    fn new(network: Network, genesis: Genesis) -> Self {
        Self::of(encode(network.nibble(), &genesis), network, genesis)
    }

    fn of(text: String, network: Network, genesis: Genesis) -> Self {
        Self(Arc::new(Parts { text: text.into(), network, genesis }))
    }

    /// The identifier's text.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// The identifier as one component of a URI, escaped as `encodeURIComponent` does: `did%3Abtcr2%3Ak1...`.
    pub fn uri_component(&self) -> impl fmt::Display + '_ {
        utf8_percent_encode(&self.0.text, URI_COMPONENT)
    }

    /// The network; for a configured custom value, the network whose rules it follows.
    pub fn network(&self) -> Network {
        self.0.network
    }

    /// What the identifier commits to.
    pub fn genesis(&self) -> &Genesis {
        &self.0.genesis
    }

    /// The key of a KEY DID.
    pub fn key(&self) -> Option<PublicKey> {
        match self.0.genesis {
            Genesis::Key(key) => Some(key),
            Genesis::External(_) => None,
        }
    }
}

fn encode(nibble: u8, genesis: &Genesis) -> String {
    let (hrp, payload) = match genesis {
        Genesis::Key(key) => ("k", [&[nibble], key.to_bytes().as_slice()].concat()),
        Genesis::External(hash) => ("x", [&[nibble], hash.as_slice()].concat()),
    };
    let id = bech32::encode::<Bech32m>(Hrp::parse_unchecked(hrp), &payload)
        .expect("34 bytes are far below Bech32m's length limit");
    format!("{PREFIX}{id}")
}

impl PartialEq for Did {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.text == other.0.text
    }
}

impl Eq for Did {}

impl PartialOrd for Did {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Did {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.text.cmp(&other.0.text)
    }
}

impl std::hash::Hash for Did {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.text.hash(state);
    }
}

impl Borrow<str> for Did {
    fn borrow(&self) -> &str {
        &self.0.text
    }
}

impl fmt::Display for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl fmt::Debug for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl std::str::FromStr for Did {
    type Err = DidError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl Serialize for Did {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.text)
    }
}

impl<'de> Deserialize<'de> for Did {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}
