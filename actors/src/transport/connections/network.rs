//! Networks, by which peers are counted, and the proxies that are trusted.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use actix_web::http::header::{HeaderMap, HeaderName};

/// The unit by which peers are counted: an IPv4 address, or an IPv6 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// The prefix length of an IPv6 subscriber's network: a peer with one of its addresses has 2^64 of them.
const SUBSCRIBER: u8 = 64;

/// The prefix length of an IPv6 site, which has 65,536 networks of subscribers.
const SITE: u8 = 48;

impl Network {
    fn of(address: IpAddr, bits: u8) -> Self {
        match address.to_canonical() {
            address @ IpAddr::V4(_) => Self { address, bits: 32 },
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
                Self { address: IpAddr::V6(Ipv6Addr::from(u128::from(address) & mask)), bits }
            }
        }
    }

    /// The unit for requests: a /64 for IPv6.
    pub fn of_requests(address: IpAddr) -> Self {
        Self::of(address, SUBSCRIBER)
    }

    /// The unit for connections: a /48 for IPv6.
    pub fn of_connection(address: IpAddr) -> Self {
        Self::of(address, SITE)
    }

    /// Whether it is an IPv6 network.
    pub const fn is_ipv6(&self) -> bool {
        self.address.is_ipv6()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(address) => address.fmt(f),
            IpAddr::V6(address) => write!(f, "{address}/{}", self.bits),
        }
    }
}

/// Addresses with a common prefix: `10.0.0.0/8`, `2001:db8::/32`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    bits: u8,
}

/// The text is not a [`Prefix`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: an address or a prefix expected, 127.0.0.1, 10.0.0.0/8 or 2001:db8::/32")]
pub struct PrefixError(String);

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let refuse = || PrefixError(text.chars().filter(|c| !c.is_control()).take(80).collect());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().map_err(|_| refuse())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.trim().parse::<u8>()).map_err(|_| refuse())?;
        if bits > most { Err(refuse()) } else { Ok(Self { address, bits }) }
    }
}

impl Prefix {
    /// Whether `address` has the prefix.
    pub fn contains(&self, address: IpAddr) -> bool {
        let shift = |width: u32| width - u32::from(self.bits);
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                let mask = u32::MAX.checked_shl(shift(32)).unwrap_or(0);
                u32::from(ours) & mask == u32::from(theirs) & mask
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let mask = u128::MAX.checked_shl(shift(128)).unwrap_or(0);
                u128::from(ours) & mask == u128::from(theirs) & mask
            }
            _ => false,
        }
    }
}

/// The proxies that are trusted to report the addresses of clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Proxies {
    /// None: clients connect directly.
    #[default]
    None,
    /// Every peer that connects: only a proxy can.
    All,
    /// Proxies at these addresses.
    At(Vec<Prefix>),
}

impl Proxies {
    /// Whether a proxy is at this address.
    pub fn trusts(&self, address: IpAddr) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::At(prefixes) => prefixes.iter().any(|prefix| prefix.contains(address)),
        }
    }

    /// The client's address, as far as it can be determined: the last reported address that is not a trusted proxy's.
    /// The addresses before it were sent by the client, which can write anything.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.trusts(peer) {
            return peer;
        }
        let mut client = peer;
        for named in forwarded(headers).into_iter().rev() {
            // Hidden, or not an address: the clients behind it cannot be distinguished.
            let Some(named) = named else { break };
            client = named;
            // If every peer is trusted, the proxy is the one that connects.
            if *self == Self::All || !self.trusts(named) {
                break;
            }
        }
        client
    }
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");

/// The addresses that proxies have reported, the client's end first. The standard header takes precedence.
fn forwarded(headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    let values = |name: &HeaderName| {
        let values = headers.get_all(name.clone()).filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).map(str::to_owned).collect::<Vec<_>>()
    };
    let standard = values(&FORWARDED);
    if !standard.is_empty() {
        let of_element = |element: String| {
            let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
            let mut named = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
            named.next().and_then(|(_, node)| address(node.trim().trim_matches('"')))
        };
        return standard.into_iter().map(of_element).collect();
    }
    values(&X_FORWARDED_FOR).iter().map(|value| address(value.trim())).collect()
}

/// An address in the syntax of these headers: bare, in brackets, or with a port.
fn address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split_once(']').and_then(|(address, _)| address.parse().ok());
    }
    text.split_once(':').and_then(|(address, _)| address.parse().ok())
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn client(proxies: &Proxies, headers: &[(HeaderName, &'static str)]) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.clone(), HeaderValue::from_static(value));
        }
        proxies.client("10.0.0.1".parse().unwrap(), &map).to_string()
    }

    #[test]
    fn a_client_cannot_name_itself_before_its_proxy() {
        let ours = Proxies::At(vec!["10.0.0.0/8".parse().unwrap()]);
        let all = [(X_FORWARDED_FOR, "203.0.113.9, 198.51.100.1"), (X_FORWARDED_FOR, "10.0.0.7")];
        assert_eq!(client(&ours, &all), "198.51.100.1");
        assert_eq!(client(&Proxies::All, &all[..1]), "198.51.100.1");
        assert_eq!(client(&Proxies::None, &all), "10.0.0.1");
        let elsewhere = Proxies::At(vec!["192.0.2.1".parse().unwrap()]);
        assert_eq!(client(&elsewhere, &all), "10.0.0.1", "the peer is not a proxy of ours");
        let standard = [(FORWARDED, "for=\"[2001:db8::1]:4711\";proto=https"), (X_FORWARDED_FOR, "203.0.113.9")];
        assert_eq!(client(&ours, &standard), "2001:db8::1");
        assert_eq!(client(&ours, &[(FORWARDED, "for=unknown")]), "10.0.0.1");
        assert_eq!(client(&ours, &[]), "10.0.0.1");
    }

    #[test]
    fn prefixes_are_read_and_matched() {
        let prefix: Prefix = "2001:db8::/32".parse().unwrap();
        assert!(prefix.contains("2001:db8:ffff::1".parse().unwrap()));
        assert!(
            !prefix.contains("2001:db9::1".parse().unwrap()) && !prefix.contains("32.1.13.184".parse().unwrap())
        );
        let everything: Prefix = "0.0.0.0/0".parse().unwrap();
        assert!(everything.contains("::ffff:192.0.2.1".parse().unwrap()));
        for wrong in ["", "10.0.0.0/33", "::/129", "example.org", "1.2.3.4/x"] {
            assert!(wrong.parse::<Prefix>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn connections_count_by_site_and_requests_by_subscriber() {
        let network = |text: &str| Network::of_connection(text.parse().unwrap()).to_string();
        assert_eq!(network("2001:db8:1:2::3"), "2001:db8:1::/48");
        assert_eq!(network("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(Network::of_requests("2001:db8:1:2::3".parse().unwrap()).to_string(), "2001:db8:1:2::/64");
    }
}
