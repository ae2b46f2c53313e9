//! Sessions of browsers: an identifier of 256 bits in a cookie, of which the hash is in memory, together with who logged in.
//!
//! A restart of the program ends all of them. What a session may do is not decided here: its holder is the caller's own type, which the
//! caller checks at every request, e.g. whether its token is still valid.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use actix_web::http::header::{COOKIE, HeaderMap, HeaderName};
use data_encoding::BASE64URL_NOPAD;
use rand_chacha::rand_core::RngCore;
use serde_json::Value;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::forms::{self, Fields};
use crate::{
    actors::runtime::Randomness,
    protocol::{hash::sha256, time::Timestamp},
};

/// The header with the session's token against forged requests, for scripts.
pub(crate) const CSRF_HEADER: HeaderName = HeaderName::from_static("x-csrf-token");

/// The field with it in forms.
pub(crate) const CSRF_FIELD: &str = "_csrf";

/// How long sessions last, and how many there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionLimits {
    /// Without a request for so long it ends.
    pub(crate) idle: Duration,
    /// It ends after so long in any case.
    pub(crate) longest: Duration,
    /// When there are more, the one that was not used for longest ends.
    pub(crate) most: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { idle: Duration::from_secs(30 * 60), longest: Duration::from_secs(12 * 3600), most: 256 }
    }
}

/// What a session is known by here: the hash of its identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SessionKey([u8; 32]);

struct Session<H> {
    holder: H,
    csrf: Zeroizing<String>,
    opened: Timestamp,
    used: Timestamp,
    /// What the next page shows once.
    flash: Option<Value>,
}

/// The sessions of a program. Clones share them.
pub(crate) struct Sessions<H>(Arc<Inner<H>>);

impl<H> Clone for Sessions<H> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<H> {
    cookie: String,
    is_secure: bool,
    limits: SessionLimits,
    sessions: Mutex<BTreeMap<SessionKey, Session<H>>>,
}

/// A session of a request.
#[derive(Clone)]
pub(crate) struct Open<H> {
    /// What it is known by.
    pub(crate) key: SessionKey,
    /// Who logged in.
    pub(crate) holder: H,
    /// Its token against forged requests.
    pub(crate) csrf: Zeroizing<String>,
}

fn random() -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0; 32]);
    Randomness::System.for_actor("session").fill_bytes(&mut bytes[..]);
    Zeroizing::new(BASE64URL_NOPAD.encode(&bytes[..]))
}

impl<H: Clone> Sessions<H> {
    /// No sessions yet. `name` begins the cookie's name; `of` is what distinguishes this program from others on the same host, whatever
    /// their ports: browsers send cookies to all of them. `is_secure` if it is served by TLS.
    pub(crate) fn new(name: &str, of: &str, is_secure: bool, limits: SessionLimits) -> Self {
        let short = &data_encoding::HEXLOWER.encode(&sha256(of.as_bytes()))[..8];
        let prefix = if is_secure { "__Host-" } else { "" };
        let cookie = format!("{prefix}{name}-{short}");
        Self(Arc::new(Inner { cookie, is_secure, limits, sessions: Mutex::default() }))
    }

    /// Opens a session, always with a new identifier. The text is the value of `Set-Cookie`.
    pub(crate) fn open(&self, holder: H, now: Timestamp) -> (Open<H>, Zeroizing<String>) {
        let (id, csrf) = (random(), random());
        let key = SessionKey(sha256(id.as_bytes()));
        let opened = Open { key, holder: holder.clone(), csrf: csrf.clone() };
        let mut sessions = self.lock();
        sessions.retain(|_, session| !self.has_ended(session, now));
        while sessions.len() >= self.0.limits.most {
            let Some(oldest) = sessions.iter().min_by_key(|(_, session)| session.used).map(|(key, _)| *key) else {
                break;
            };
            sessions.remove(&oldest);
        }
        sessions.insert(key, Session { holder, csrf, opened: now, used: now, flash: None });
        (opened, Zeroizing::new(self.cookie(&id, self.0.limits.longest)))
    }

    fn cookie(&self, value: &str, lasts: Duration) -> String {
        let secure = if self.0.is_secure { "; Secure" } else { "" };
        format!("{}={value}; Path=/; Max-Age={}; HttpOnly; SameSite=Strict{secure}", self.0.cookie, lasts.as_secs())
    }

    /// The value of `Set-Cookie` that removes the cookie.
    pub(crate) fn no_cookie(&self) -> String {
        self.cookie("", Duration::ZERO)
    }

    /// The identifier that a request presents; none if it has several, of which another program of this host may have set one.
    fn presented(&self, headers: &HeaderMap) -> Option<SessionKey> {
        let mut ids = headers
            .get_all(COOKIE)
            .filter_map(|header| header.to_str().ok())
            .flat_map(|header| header.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .filter(|(name, _)| *name == self.0.cookie)
            .map(|(_, id)| id);
        match (ids.next(), ids.next()) {
            (Some(id), None) if !id.is_empty() => Some(SessionKey(sha256(id.as_bytes()))),
            _ => None,
        }
    }

    /// Whether a request presents a session at all.
    pub(crate) fn is_presented(&self, headers: &HeaderMap) -> bool {
        self.presented(headers).is_some()
    }

    /// The session of a request. It is used by that, unless it is only `watched`, e.g. by a script that refreshes a page.
    pub(crate) fn find(&self, headers: &HeaderMap, now: Timestamp, watched: bool) -> Option<Open<H>> {
        let key = self.presented(headers)?;
        let mut sessions = self.lock();
        if sessions.get(&key).is_some_and(|session| self.has_ended(session, now)) {
            sessions.remove(&key);
        }
        let session = sessions.get_mut(&key)?;
        if !watched {
            session.used = now;
        }
        Some(Open { key, holder: session.holder.clone(), csrf: session.csrf.clone() })
    }

    /// Whether a session goes on. It is not used by that.
    pub(crate) fn is_open(&self, key: SessionKey, now: Timestamp) -> bool {
        self.lock().get(&key).is_some_and(|session| !self.has_ended(session, now))
    }

    /// Ends a session.
    pub(crate) fn close(&self, key: SessionKey) {
        self.lock().remove(&key);
    }

    /// What the next page of a session shows once.
    pub(crate) fn set_flash(&self, key: SessionKey, flash: Value) {
        if let Some(session) = self.lock().get_mut(&key) {
            session.flash = Some(flash);
        }
    }

    /// What a page shows once, removed.
    pub(crate) fn take_flash(&self, key: SessionKey) -> Option<Value> {
        self.lock().get_mut(&key)?.flash.take()
    }

    fn has_ended(&self, session: &Session<H>, now: Timestamp) -> bool {
        let SessionLimits { idle, longest, .. } = self.0.limits;
        now.is_over(session.used + idle, idle) || now.is_over(session.opened + longest, longest)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SessionKey, Session<H>>> {
        // No code panics while the value is partly changed.
        self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a change is not taken from a browser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Forged {
    /// A page of another origin has sent it.
    #[error("the request comes from a page of another site")]
    Foreign,
    /// It does not have the session's token.
    #[error("the form has expired, or is not of this session: reload the page, and send it again")]
    Token,
}

impl<H> Open<H> {
    /// Checks that a change was asked for by a page of this session: by the field of a form, or by the header of a script.
    ///
    /// # Errors
    /// [`Forged`].
    pub(crate) fn check(&self, headers: &HeaderMap, form: Option<&Fields>) -> Result<(), Forged> {
        if forms::is_foreign(headers) {
            return Err(Forged::Foreign);
        }
        let header = headers.get(CSRF_HEADER).and_then(|value| value.to_str().ok());
        let given = form.and_then(|form| form.get(CSRF_FIELD)).or(header).unwrap_or_default();
        match bool::from(given.as_bytes().ct_eq(self.csrf.as_bytes())) {
            true => Ok(()),
            false => Err(Forged::Token),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use actix_web::http::header::HeaderValue;
    use serde_json::json;

    use super::*;

    fn sessions(most: usize) -> Sessions<&'static str> {
        Sessions::new("console", "did:btcr2:x", false, SessionLimits { most, ..SessionLimits::default() })
    }

    fn headers(cookies: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for cookie in cookies {
            headers.append(COOKIE, HeaderValue::from_str(cookie).unwrap());
        }
        headers
    }

    /// What a browser sends for a `Set-Cookie`.
    fn sent(set: &str) -> HeaderMap {
        headers(&[&format!("other=1; {}", set.split(';').next().unwrap())])
    }

    fn at(minutes: u64) -> Timestamp {
        Timestamp::from_secs(1_000_000 + minutes * 60)
    }

    #[test]
    fn a_session_ends_when_idle_and_after_twelve_hours() {
        let sessions = sessions(10);
        let (opened, cookie) = sessions.open("alice", at(0));
        let sent = sent(&cookie);
        assert_eq!(sessions.find(&sent, at(29), false).unwrap().holder, "alice");
        assert!(sessions.find(&sent, at(58), true).is_some(), "29 minutes after its use");
        assert!(sessions.is_open(opened.key, at(58)) && !sessions.is_open(opened.key, at(59)));
        assert!(sessions.find(&sent, at(59), false).is_none(), "watching does not use it");
        let (_, cookie) = sessions.open("alice", at(0));
        let sent = self::sent(&cookie);
        assert!((0..71).all(|turn| sessions.find(&sent, at(turn * 10), false).is_some()));
        assert!(sessions.find(&sent, at(720), false).is_none(), "twelve hours");
    }

    #[test]
    fn the_cookie_is_for_this_program_alone() {
        let (_, cookie) = sessions(10).open("alice", at(0));
        let (pair, attributes) = cookie.split_once(';').unwrap();
        let (name, id) = pair.split_once('=').unwrap();
        assert_eq!(attributes, " Path=/; Max-Age=43200; HttpOnly; SameSite=Strict");
        assert!(name.starts_with("console-") && name.len() == 16 && id.len() == 43, "{pair}");
        let secure: Sessions<()> = Sessions::new("console", "x", true, SessionLimits::default());
        let (_, cookie) = secure.open((), at(0));
        assert!(cookie.starts_with("__Host-console-") && cookie.ends_with("; Secure"), "{}", &*cookie);
        assert!(secure.no_cookie().contains("Max-Age=0"));
    }

    #[test]
    fn an_identifier_is_new_and_several_are_none() {
        let sessions = sessions(10);
        let (first, of_first) = sessions.open("alice", at(0));
        let (second, of_second) = sessions.open("alice", at(0));
        assert!(first.key != second.key && first.csrf != second.csrf);
        let both = headers(&[of_first.split(';').next().unwrap(), of_second.split(';').next().unwrap()]);
        assert!(sessions.find(&both, at(1), false).is_none());
        assert!(sessions.find(&headers(&["console-00000000=x", "console"]), at(1), false).is_none());
        sessions.close(first.key);
        assert!(sessions.find(&sent(&of_first), at(1), false).is_none(), "it has logged out");
        sessions.set_flash(second.key, json!("made"));
        assert_eq!((sessions.take_flash(second.key), sessions.take_flash(second.key)), (Some(json!("made")), None));
    }

    #[test]
    fn there_is_a_bound_and_the_longest_unused_goes() {
        let sessions = sessions(3);
        let cookies: Vec<_> = (0..3).map(|minute| sessions.open("x", at(minute)).1).collect();
        assert!(sessions.find(&sent(&cookies[0]), at(4), false).is_some());
        sessions.open("y", at(5));
        let open: Vec<bool> =
            cookies.iter().map(|cookie| sessions.find(&sent(cookie), at(6), true).is_some()).collect();
        assert_eq!((open, sessions.lock().len()), (vec![true, false, true], 3));
    }

    #[test]
    fn a_change_needs_the_token_of_the_session() {
        let sessions = sessions(10);
        let ((mine, _), (other, _)) = (sessions.open("x", at(0)), sessions.open("x", at(0)));
        let form = |token: &str| Fields::parse(format!("_csrf={token}&a=1").as_bytes()).unwrap();
        let none = HeaderMap::new();
        assert_eq!(mine.check(&none, Some(&form(&mine.csrf))), Ok(()));
        for wrong in [&*other.csrf, "", "x"] {
            assert_eq!(mine.check(&none, Some(&form(wrong))), Err(Forged::Token));
        }
        assert_eq!(mine.check(&none, None), Err(Forged::Token));
        let mut by_script = HeaderMap::new();
        by_script.insert(CSRF_HEADER, HeaderValue::from_str(&mine.csrf).unwrap());
        assert_eq!(mine.check(&by_script, None), Ok(()));
        by_script.insert(actix_web::http::header::ORIGIN, HeaderValue::from_static("http://evil.example"));
        assert_eq!(mine.check(&by_script, None), Err(Forged::Foreign));
    }
}
