//! The subjects that an operator limits and bans: a DID, a network address, or an invite.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use btcr2_aggregation_protocol::{did::Did, invite::InviteId};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The network address of a peer, as far as addresses are scarce: an IPv4 address, or the first 64 bits of an IPv6
/// address, because a peer with one IPv6 address has 2^64 of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetworkAddress {
    /// One address.
    V4(Ipv4Addr),
    /// A network of 64 bits.
    V6([u16; 4]),
}

impl NetworkAddress {
    /// Whether it is this machine's address.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::V4(address) => address.is_loopback(),
            // No other host has ::1 in this network.
            Self::V6(network) => *network == [0; 4],
        }
    }
}

impl From<IpAddr> for NetworkAddress {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self::V6([a, b, c, d])
            }
        }
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(address) => address.fmt(f),
            Self::V6([a, b, c, d]) => write!(f, "{}/64", Ipv6Addr::new(*a, *b, *c, *d, 0, 0, 0, 0)),
        }
    }
}

/// The text is not a subject.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a DID, an IP address (of IPv6 its /64), or invite:ID expected: {0}")]
pub struct SubjectError(String);

impl FromStr for NetworkAddress {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let bare = text.strip_suffix("/64").filter(|address| address.contains(':')).unwrap_or(text);
        bare.parse::<IpAddr>().map(Self::from).map_err(|error| SubjectError(error.to_string()))
    }
}

/// A subject that an operator limits and bans.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A DID.
    Did(Did),
    /// All peers at a network address.
    Address(NetworkAddress),
    /// All participants that use an invite.
    Invite(InviteId),
}

impl Subject {
    /// Whether it is this machine's address.
    pub fn is_loopback(&self) -> bool {
        matches!(self, Self::Address(address) if address.is_loopback())
    }

    /// Its kind, as text.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Did(_) => "this DID",
            Self::Address(_) => "this network address",
            Self::Invite(_) => "this invite",
        }
    }
}

impl From<Did> for Subject {
    fn from(did: Did) -> Self {
        Self::Did(did)
    }
}

impl From<&Did> for Subject {
    fn from(did: &Did) -> Self {
        Self::Did(did.clone())
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Did(did) => f.write_str(did.as_str()),
            Self::Address(address) => address.fmt(f),
            Self::Invite(id) => write!(f, "invite:{id}"),
        }
    }
}

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let refuse = |error: &dyn fmt::Display| SubjectError(error.to_string());
        if text.starts_with("did:") {
            return Did::parse(text).map(Self::Did).map_err(|error| refuse(&error));
        }
        match text.strip_prefix("invite:") {
            Some(id) => id.parse().map(Self::Invite).map_err(|error| refuse(&error)),
            None => text.parse().map(Self::Address),
        }
    }
}

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

as_text!(NetworkAddress, Subject);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_parses_from_its_text() {
        for (text, written) in [
            ("203.0.113.7", "203.0.113.7"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            ("2001:db8::7", "2001:db8::/64"),
            ("2001:db8::/64", "2001:db8::/64"),
            ("invite:0123456789abcdef", "invite:0123456789abcdef"),
        ] {
            let subject: Subject = text.parse().unwrap();
            assert_eq!(subject.to_string(), written);
            assert_eq!(written.parse(), Ok(subject));
        }
        for text in ["", "did:example:1", "invite:", "203.0.113.0/24", "203.0.113.7/64", "a name"] {
            let error = text.parse::<Subject>().unwrap_err().to_string();
            assert!(error.contains("expected"), "{error}");
        }
    }
}
