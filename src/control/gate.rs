//! Who may call: the `Host` of a request, and its token, or the session of a browser that a token has opened.

use std::{net::IpAddr, time::Duration};

use actix_web::http::{
    Method, Uri,
    header::{AUTHORIZATION, HOST, HeaderMap},
};

use super::{
    answer::Refusal,
    failures::Failures,
    role::{Role, Who},
    tokens::{self, Token, TokenBook},
};
use crate::{
    html::{
        forms,
        session::{Open, Sessions},
    },
    protocol::time::Timestamp,
};

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

/// Who has logged in by a browser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Login {
    /// The identifier of its token.
    pub(crate) token: String,
    pub(crate) label: String,
    pub(crate) role: Role,
}

/// Why a login is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoginRefusal {
    /// The text is not a token that is accepted.
    #[error("this is not a valid token")]
    Token,
    /// The token has a second factor.
    #[error("the code of your authenticator is needed, and each works once: enter the one that it shows now")]
    Code,
    /// Too many logins have failed.
    #[error("too many logins have failed: try again in {} s", .0.as_secs() + 1)]
    Wait(Duration),
    /// Something of ours has failed.
    #[error("{0}")]
    Failed(String),
}

/// The gate of the API.
pub(crate) struct Gate {
    tokens: TokenBook,
    failures: Failures,
    /// The names by which the API may be called, beside `localhost` and addresses.
    hosts: Vec<String>,
    /// The sessions of browsers, if there is a console.
    sessions: Option<Sessions<Login>>,
}

impl Gate {
    pub(crate) fn new(tokens: TokenBook, hosts: Vec<String>, sessions: Option<Sessions<Login>>) -> Self {
        let hosts = hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect();
        Self { tokens, failures: Failures::default(), hosts, sessions }
    }

    /// Who calls.
    ///
    /// # Errors
    /// [`Refusal`], if the caller is not admitted.
    pub(crate) fn admit(
        &self,
        origin: Origin,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<Who, Refusal> {
        if matches!(origin, Origin::Address(_)) {
            self.check_host(uri, headers)?;
        }
        let mut given = headers.get_all(AUTHORIZATION);
        let text = match (given.next(), given.next()) {
            (None, _) => None,
            (Some(one), None) => Some(one.to_str().ok().and_then(bearer)),
            _ => Some(None),
        };
        if text.is_none() {
            // What a script reads in the background, e.g. the stream of events, does not use the session.
            let reads = method == Method::GET;
            if let Some((who, open)) = self.session(origin, headers, now, reads) {
                // The requests of a page of another site have the cookie of this one.
                let forged = (!reads).then(|| open.check(headers, None).err()).flatten();
                return forged.map_or(Ok(who), |forged| Err(Refusal::Forbidden(forged.to_string())));
            }
            // One that has ended is not a guess at a token.
            if self.sessions.as_ref().is_some_and(|sessions| sessions.is_presented(headers)) {
                return Err(Refusal::Unauthorized);
            }
        }
        let (limited, from) = (origin.limited(), origin.name());
        self.check_address(limited, now).map_err(Refusal::Wait)?;
        let text = match text {
            // The mode of the socket and the check of its peer have admitted its owner; but through a tunnel to the socket a browser of the
            // owner is there too, with the pages of all sites.
            None if matches!(origin, Origin::Socket { .. }) && !forms::is_of_page(headers) => {
                let label = "socket".to_owned();
                return Ok(Who { role: Role::Admin, token: None, label, from, session: None });
            }
            text => text.flatten(),
        };
        let Some(text) = text else {
            // A request without a token is not a guess, but costs as much.
            self.failures.note(limited, None, now);
            return Err(Refusal::Unauthorized);
        };
        match self.verify(text, limited, now) {
            Ok((id, token)) if token.totp.is_none() => {
                Ok(Who { role: token.role, token: Some(id), label: token.label, from, session: None })
            }
            Ok(_) => Err(Refusal::Forbidden(
                "this token is for the console: it has a second factor. Make another one for programs".to_owned(),
            )),
            Err(LoginRefusal::Wait(wait)) => Err(Refusal::Wait(wait)),
            Err(LoginRefusal::Failed(detail)) => Err(Refusal::Failed(detail)),
            Err(_) => Err(Refusal::Unauthorized),
        }
    }

    /// Checks that a request from a browser is for us.
    ///
    /// # Errors
    /// [`Refusal::WrongHost`].
    pub(crate) fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        if self.is_our_host(uri, headers) { Ok(()) } else { Err(Refusal::WrongHost) }
    }

    /// The session of a request, if its token is still accepted. It is used by the request, unless that is only `watching`.
    pub(crate) fn session(
        &self,
        origin: Origin,
        headers: &HeaderMap,
        now: Timestamp,
        watching: bool,
    ) -> Option<(Who, Open<Login>)> {
        let sessions = self.sessions.as_ref()?;
        let open = sessions.find(headers, now, watching)?;
        if !self.tokens.is_valid(&open.holder.token, now) {
            sessions.close(open.key);
            return None;
        }
        let Login { token, label, role } = open.holder.clone();
        Some((Who { role, token: Some(token), label, from: origin.name(), session: Some(open.key) }, open))
    }

    /// Logs in by the text of a token, and its one-time password if it has a second factor.
    ///
    /// # Errors
    /// [`LoginRefusal`].
    pub(crate) fn log_in(
        &self,
        origin: Origin,
        text: &str,
        code: &str,
        now: Timestamp,
    ) -> Result<Login, LoginRefusal> {
        let limited = origin.limited();
        self.check_address(limited, now).map_err(LoginRefusal::Wait)?;
        let (id, token) = self.verify(text, limited, now)?;
        if token.totp.is_some() {
            // Without a code it is a question, not a guess.
            if code.trim().is_empty() {
                return Err(LoginRefusal::Code);
            }
            let wait = self.failures.wait_of_codes(&id, now);
            if !wait.is_zero() {
                return Err(LoginRefusal::Wait(wait));
            }
            let is_right = self.tokens.use_code(&id, code, now);
            if !is_right.map_err(|error| LoginRefusal::Failed(error.to_string()))? {
                self.failures.note_code(limited, &id, now);
                tracing::warn!(from = origin.name(), token = id, "a one-time password was wrong");
                return Err(LoginRefusal::Code);
            }
        }
        tracing::info!(from = origin.name(), token = id, label = token.label, "a browser has logged in");
        Ok(Login { token: id, label: token.label, role: token.role })
    }

    fn check_address(&self, limited: Option<IpAddr>, now: Timestamp) -> Result<(), Duration> {
        let wait = limited.map_or(Duration::ZERO, |address| self.failures.wait_of_address(address, now));
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// The token with this text.
    fn verify(&self, text: &str, limited: Option<IpAddr>, now: Timestamp) -> Result<(String, Token), LoginRefusal> {
        // A list that cannot be read admits no one.
        let verified = self.tokens.verify(text, now).map_err(|error| LoginRefusal::Failed(error.to_string()))?;
        if let Some(verified) = verified {
            return Ok(verified);
        }
        let id = tokens::parse(text).map(|(id, _)| id);
        let known = id.filter(|id| self.tokens.list().is_ok_and(|tokens| tokens.contains_key(*id)));
        let wait = known.map_or(Duration::ZERO, |id| self.failures.wait_of_token(id, now));
        self.failures.note(limited, known, now);
        tracing::warn!(from = ?limited, token = known, "a login to the control API has failed");
        Err(if wait.is_zero() { LoginRefusal::Token } else { LoginRefusal::Wait(wait) })
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

/// The token of `Bearer TOKEN`.
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue, ORIGIN};

    use super::*;
    use crate::control::totp::{self, TotpSecret};

    const REMOTE: Origin = Origin::Address(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7)));
    const LOCAL: Origin = Origin::Address(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

    fn headers(given: &[(HeaderName, &str)]) -> HeaderMap {
        given.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn gate(directory: &std::path::Path) -> (Gate, TokenBook) {
        let book = TokenBook::open(directory).unwrap();
        (Gate::new(book.clone(), vec!["Control.Example".to_owned()], None), book)
    }

    #[test]
    fn a_host_that_is_not_ours_is_refused_before_the_token() {
        let directory = tempfile::tempdir().unwrap();
        let (gate, book) = gate(directory.path());
        let now = Timestamp::from_secs(100);
        let made = book.add("x", Role::Viewer, now, None, None).unwrap();
        let token = format!("Bearer {}", &*made.text);
        let ask = |host: &[&str]| {
            let mut given: Vec<_> = host.iter().map(|host| (HOST, *host)).collect();
            given.push((AUTHORIZATION, &token));
            let mut map = HeaderMap::new();
            for (name, value) in headers(&given).iter() {
                map.append(name.clone(), value.clone());
            }
            gate.admit(LOCAL, &Method::GET, &Uri::from_static("/"), &map, now)
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
        assert_eq!(gate.admit(LOCAL, &Method::GET, &absolute, &named, now), Err(Refusal::WrongHost));
        // The socket is its owner's, whatever the host.
        let socket = Origin::Socket { uid: 7 };
        let by_socket =
            |given: &[(HeaderName, &str)]| gate.admit(socket, &Method::GET, &absolute, &headers(given), now);
        assert_eq!(by_socket(&[]).unwrap().role, Role::Admin);
        // But not of the pages in a browser that reaches it through a tunnel.
        assert_eq!(by_socket(&[(ORIGIN, "http://evil.example")]), Err(Refusal::Unauthorized));
    }

    #[test]
    fn failures_are_slowed_down_by_address_and_token_and_lock_no_one_out() {
        let directory = tempfile::tempdir().unwrap();
        let (gate, book) = gate(directory.path());
        let mut now = Timestamp::from_secs(100);
        let made = book.add("x", Role::Operator, now, None, None).unwrap();
        let (right, wrong) = (format!("Bearer {}", &*made.text), format!("bearer {}x", &*made.text));
        let ask = |origin, token: &str, now| {
            let given = headers(&[(HOST, "127.0.0.1"), (AUTHORIZATION, token)]);
            gate.admit(origin, &Method::GET, &Uri::from_static("/"), &given, now)
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

    #[test]
    fn a_login_waits_like_a_call_and_its_session_is_of_its_token() {
        let directory = tempfile::tempdir().unwrap();
        let book = TokenBook::open(directory.path()).unwrap();
        let sessions = Sessions::new("console", "x", false, crate::html::session::SessionLimits::default());
        let gate = Gate::new(book.clone(), Vec::new(), Some(sessions.clone()));
        let mut now = Timestamp::from_secs(1_000_000);
        let secret = TotpSecret::generate();
        let made = book.add("phone", Role::Operator, now, None, Some(secret.clone())).unwrap();
        let (right, wrong) = (made.text.to_string(), format!("{}x", &*made.text));
        for _ in 0..4 {
            assert_eq!(gate.log_in(REMOTE, &wrong, "", now), Err(LoginRefusal::Token));
        }
        assert!(matches!(gate.log_in(REMOTE, &right, "", now), Err(LoginRefusal::Wait(_))), "the address waits");
        assert_eq!(gate.log_in(LOCAL, &right, "", now), Err(LoginRefusal::Code), "a question, not a guess");
        now = now + Duration::from_secs(120);
        let code = totp::tests::shown(&secret, now);
        let bad = if code == "000000" { "111111" } else { "000000" };
        for _ in 0..4 {
            assert_eq!(gate.log_in(LOCAL, &right, bad, now), Err(LoginRefusal::Code));
        }
        // The code could be guessed: here the right one waits too, but not for long.
        assert!(
            matches!(gate.log_in(LOCAL, &right, &code, now), Err(LoginRefusal::Wait(wait)) if wait.as_secs() == 1)
        );
        now = now + Duration::from_secs(2);
        let login = gate.log_in(LOCAL, &right, &totp::tests::shown(&secret, now), now).unwrap();
        assert_eq!((login.role, &*login.label), (Role::Operator, "phone"));
        let (open, cookie) = sessions.open(login, now);
        let cookie = cookie.split(';').next().unwrap().to_owned();
        let ask = |method: &Method, more: &[(HeaderName, &str)], now| {
            let given = [&[(HOST, "localhost"), (actix_web::http::header::COOKIE, cookie.as_str())], more].concat();
            gate.admit(REMOTE, method, &Uri::from_static("/"), &headers(&given), now)
        };
        assert_eq!(ask(&Method::GET, &[], now).unwrap().session, Some(open.key));
        assert!(matches!(ask(&Method::POST, &[], now), Err(Refusal::Forbidden(_))));
        let csrf = [(crate::html::session::CSRF_HEADER, open.csrf.as_str())];
        assert_eq!(ask(&Method::POST, &csrf, now).unwrap().label, "phone");
        // One that has ended is not counted as a guess.
        book.revoke(&made.id, now).unwrap();
        for _ in 0..10 {
            assert_eq!(ask(&Method::GET, &[], now), Err(Refusal::Unauthorized));
        }
        let other = book.add("script", Role::Viewer, now, None, None).unwrap();
        assert!(gate.log_in(REMOTE, &other.text, "", now).is_ok());
        let bearer = |text: &str| {
            let token = format!("Bearer {text}");
            gate.admit(
                LOCAL,
                &Method::GET,
                &Uri::from_static("/"),
                &headers(&[(HOST, "localhost"), (AUTHORIZATION, &token)]),
                now,
            )
        };
        let with_factor = book.add("second", Role::Admin, now, None, Some(TotpSecret::generate())).unwrap();
        assert!(matches!(bearer(&with_factor.text), Err(Refusal::Forbidden(_))), "it is for the console");
        assert!(bearer(&other.text).is_ok());
    }
}
