//! Who may call: the `Host` of a request, its token, and what the token's role allows.

use std::{net::IpAddr, time::Duration};

use actix_web::http::{
    Uri,
    header::{AUTHORIZATION, HOST, HeaderMap},
};

use super::{
    answer::Refusal,
    failures::Failures,
    role::{Role, Who},
    tokens::{self, TokenBook},
};
use crate::protocol::time::Timestamp;

/// From where a request comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A program of the user to whom the state directory belongs, over the socket.
    Socket {
        /// The user.
        uid: u32,
    },
    /// A network address.
    Address(IpAddr),
}

impl Origin {
    /// As the audit log names it.
    fn name(self) -> String {
        match self {
            Self::Socket { uid } => format!("socket, uid {uid}"),
            Self::Address(address) => address.to_canonical().to_string(),
        }
    }

    /// The address, if failures of it count. All users of a proxy or a tunnel have this machine's.
    fn limited(self) -> Option<IpAddr> {
        match self {
            Self::Address(address) if !address.to_canonical().is_loopback() => Some(address),
            _ => None,
        }
    }
}

/// The gate of the API.
pub(crate) struct Gate {
    tokens: TokenBook,
    failures: Failures,
    /// The names by which the API may be called, beside `localhost` and addresses.
    hosts: Vec<String>,
}

impl Gate {
    pub(crate) fn new(tokens: TokenBook, hosts: Vec<String>) -> Self {
        let hosts = hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect();
        Self { tokens, failures: Failures::default(), hosts }
    }

    /// Who calls.
    ///
    /// # Errors
    /// [`Refusal`], if the caller is not admitted.
    pub(crate) fn admit(
        &self,
        origin: Origin,
        uri: &Uri,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<Who, Refusal> {
        if let Origin::Address(_) = origin
            && !self.is_our_host(uri, headers)
        {
            return Err(Refusal::WrongHost);
        }
        let (limited, from) = (origin.limited(), origin.name());
        if let Some(wait) = limited.map(|address| self.failures.wait_of_address(address, now)).filter(is_some_time)
        {
            return Err(Refusal::Wait(wait));
        }
        let mut given = headers.get_all(AUTHORIZATION);
        let text = match (given.next(), given.next()) {
            // The mode of the socket and the check of its peer have admitted its owner.
            (None, _) if matches!(origin, Origin::Socket { .. }) => {
                return Ok(Who { role: Role::Admin, token: None, label: "socket".to_owned(), from });
            }
            (Some(one), None) => one.to_str().ok().and_then(bearer),
            _ => None,
        };
        let Some(text) = text else {
            // A request without a token is not a guess, but costs as much.
            self.failures.note(limited, None, now);
            return Err(Refusal::Unauthorized);
        };
        // A list that cannot be read admits no one.
        let verified = self.tokens.verify(text, now).map_err(|error| Refusal::Failed(error.to_string()))?;
        if let Some((id, token)) = verified {
            return Ok(Who { role: token.role, token: Some(id), label: token.label, from });
        }
        let id = tokens::parse(text).map(|(id, _)| id);
        let known = id.filter(|id| self.tokens.list().is_ok_and(|tokens| tokens.contains_key(*id)));
        let wait = known.map_or(Duration::ZERO, |id| self.failures.wait_of_token(id, now));
        self.failures.note(limited, known, now);
        tracing::warn!(from, token = known, "a login to the control API has failed");
        Err(if wait.is_zero() { Refusal::Unauthorized } else { Refusal::Wait(wait) })
    }

    /// Whether the host of a request is a name of ours. A page of another name that its owner points at this address (DNS rebinding) is
    /// not; an address is, since no name was resolved to it. The port does not matter: a tunnel may have another one.
    fn is_our_host(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        let mut given = headers.get_all(HOST);
        let header = match (given.next(), given.next()) {
            (Some(one), None) => one.to_str().ok(),
            _ => None,
        };
        let Some(header) = header else { return false };
        // A request to a proxy names the host twice.
        let named = uri.authority().map(|authority| authority.as_str());
        [Some(header), named].into_iter().flatten().all(|host| self.is_our_name(host))
    }

    fn is_our_name(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => return address.parse::<IpAddr>().is_ok(),
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        name == "localhost" || name.parse::<IpAddr>().is_ok() || self.hosts.contains(&name)
    }
}

fn is_some_time(wait: &Duration) -> bool {
    !wait.is_zero()
}

/// The token of `Bearer TOKEN`.
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    const REMOTE: Origin = Origin::Address(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7)));
    const LOCAL: Origin = Origin::Address(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

    fn headers(given: &[(HeaderName, &str)]) -> HeaderMap {
        given.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn gate(directory: &std::path::Path) -> (Gate, TokenBook) {
        let book = TokenBook::open(directory).unwrap();
        (Gate::new(book.clone(), vec!["Control.Example".to_owned()]), book)
    }

    #[test]
    fn a_host_that_is_not_ours_is_refused_before_the_token() {
        let directory = tempfile::tempdir().unwrap();
        let (gate, book) = gate(directory.path());
        let now = Timestamp::from_secs(100);
        let made = book.add("x", Role::Viewer, now, None).unwrap();
        let token = format!("Bearer {}", &*made.text);
        let ask = |host: &[&str]| {
            let mut given: Vec<_> = host.iter().map(|host| (HOST, *host)).collect();
            given.push((AUTHORIZATION, &token));
            let mut map = HeaderMap::new();
            for (name, value) in headers(&given).iter() {
                map.append(name.clone(), value.clone());
            }
            gate.admit(LOCAL, &Uri::from_static("/"), &map, now)
        };
        let ours = [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:8081",
            "[::1]:8081",
            "10.0.0.9",
            "control.example:443",
            "localhost.",
        ];
        for host in ours {
            assert!(ask(&[host]).is_ok(), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "", "control.example.evil.example:80", "[::1"] {
            assert_eq!(ask(&[host]), Err(Refusal::WrongHost), "{host}");
        }
        assert_eq!(ask(&[]), Err(Refusal::WrongHost));
        let absolute = Uri::from_static("http://evil.example/control/v1/whoami");
        let named = headers(&[(HOST, "localhost"), (AUTHORIZATION, &token)]);
        assert_eq!(gate.admit(LOCAL, &absolute, &named, now), Err(Refusal::WrongHost));
        // The socket is its owner's, whatever the host.
        assert_eq!(gate.admit(Origin::Socket { uid: 7 }, &absolute, &headers(&[]), now).unwrap().role, Role::Admin);
    }

    #[test]
    fn failures_are_slowed_down_by_address_and_token_and_lock_no_one_out() {
        let directory = tempfile::tempdir().unwrap();
        let (gate, book) = gate(directory.path());
        let mut now = Timestamp::from_secs(100);
        let made = book.add("x", Role::Operator, now, None).unwrap();
        let (right, wrong) = (format!("Bearer {}", &*made.text), format!("bearer {}x", &*made.text));
        let ask = |origin, token: &str, now| {
            let given = headers(&[(HOST, "127.0.0.1"), (AUTHORIZATION, token)]);
            gate.admit(origin, &Uri::from_static("/"), &given, now)
        };
        for _ in 0..4 {
            assert_eq!(ask(REMOTE, &wrong, now), Err(Refusal::Unauthorized));
        }
        // The address waits, even with the right token; the token's owner elsewhere does not.
        assert!(matches!(ask(REMOTE, &right, now), Err(Refusal::Wait(_))));
        assert_eq!(ask(LOCAL, &right, now).unwrap().role, Role::Operator);
        // Guesses at the token are slowed down from everywhere.
        assert!(matches!(ask(LOCAL, &wrong, now), Err(Refusal::Wait(_))));
        now = now + Duration::from_secs(61);
        assert_eq!(ask(REMOTE, &right, now).unwrap().label, "x");
        for _ in 0..50 {
            assert_eq!(ask(LOCAL, "Bearer nonsense", now), Err(Refusal::Unauthorized));
        }
        assert!(ask(LOCAL, &right, now).is_ok(), "this machine's addresses are not limited");
    }
}
