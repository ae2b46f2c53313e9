//! Tokens: who may use the API, and in which role.
//!
//! They are in a database file in the state directory that a running service and the command that makes and revokes them use at the
//! same time. A token is `btcr2c_ID_SECRET`. Only the SHA-256 of its secret, which has 256 bits of randomness, is stored.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use rand_chacha::rand_core::RngCore;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{role::Role, totp::TotpSecret};
use crate::{
    actors::{
        runtime::Randomness,
        shared_table::{SharedTable, SharedTableError, Stamp, Values},
    },
    protocol::{hash::sha256, time::Timestamp},
};

/// The file in a state directory.
pub(crate) const TOKENS: &str = "control.redb";

/// How a token begins: scanners of repositories find it by that.
const PREFIX: &str = "btcr2c";

/// The longest label, in characters.
pub(crate) const MOST_LABEL: usize = 64;

/// A token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Token {
    /// Its label.
    pub(crate) label: String,
    /// Its role.
    pub(crate) role: Role,
    /// The SHA-256 of its secret, in hex.
    hash: String,
    /// When it was made.
    pub(crate) created: Timestamp,
    /// When it expires; never without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires: Option<Timestamp>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revoked: Option<Timestamp>,
    /// The second factor: then it is for browsers alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) totp: Option<TotpSecret>,
    /// The step of the last one-time password that was used: none up to it is accepted again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_step: Option<u64>,
}

impl Token {
    /// Whether it is accepted at `now`.
    pub(crate) fn is_valid(&self, now: Timestamp) -> bool {
        self.revoked.is_none() && self.expires.is_none_or(|expires| now < expires)
    }

    fn is_secret(&self, secret: &[u8]) -> bool {
        let presented = sha256(secret);
        let stored = HEXLOWER.decode(self.hash.as_bytes()).unwrap_or_default();
        // In constant time: the answer must not show how much of a hash was right.
        stored.len() == presented.len() && bool::from(stored.ct_eq(&presented[..]))
    }

    /// What is shown of it.
    pub(crate) fn view(&self, id: &str, now: Timestamp) -> Value {
        let state = match self.revoked {
            Some(_) => "revoked",
            None if !self.is_valid(now) => "expired",
            None => "valid",
        };
        json!({
            "id": id, "label": self.label, "role": self.role, "state": state, "created": self.created.to_date(),
            "expires": self.expires.and_then(Timestamp::to_date), "revoked": self.revoked.and_then(Timestamp::to_date),
            "totp": self.totp.is_some(),
        })
    }
}

/// A token that was just made: its text is shown once.
pub(crate) struct NewToken {
    pub(crate) id: String,
    pub(crate) token: Token,
    pub(crate) text: Zeroizing<String>,
}

/// The identifier and the secret in the text of a token.
pub(crate) fn parse(text: &str) -> Option<(&str, &str)> {
    let (id, secret) = text.trim().strip_prefix(PREFIX)?.strip_prefix('_')?.split_once('_')?;
    let is_id = id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_id && !secret.is_empty() && secret.len() <= 128).then_some((id, secret))
}

/// Why a label is none.
pub(crate) fn check_label(label: &str) -> Result<(), String> {
    let is_fine = |letter: char| !letter.is_control();
    if label.trim().is_empty() || label.chars().count() > MOST_LABEL || !label.chars().all(is_fine) {
        return Err(format!("a label of 1 to {MOST_LABEL} characters expected, without control characters"));
    }
    Ok(())
}

type Tokens = BTreeMap<String, Token>;

/// The tokens of a service. Clones share the list.
#[derive(Clone, Debug)]
pub(crate) struct TokenBook(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: SharedTable,
    path: PathBuf,
    read: Mutex<Option<(Stamp, Arc<Tokens>)>>,
}

impl TokenBook {
    /// The tokens in a state directory.
    pub(crate) fn open(state: &Path) -> Result<Self, SharedTableError> {
        let path = state.join(TOKENS);
        let table = SharedTable::new(path.clone());
        let book = Self(Arc::new(Shared { table, path, read: Mutex::default() }));
        book.list()?;
        Ok(book)
    }

    /// All tokens by their identifiers. Reads the file if another program has changed it.
    pub(crate) fn list(&self) -> Result<Arc<Tokens>, SharedTableError> {
        let stamp = self.0.table.stamp()?;
        if let Some((_, tokens)) = self.lock().as_ref().filter(|(read, _)| *read == stamp) {
            return Ok(Arc::clone(tokens));
        }
        let contents = self.0.table.read()?;
        let tokens = Arc::new(of(&contents.values).map_err(|problem| self.0.table.refuse(problem))?);
        *self.lock() = Some((contents.stamp, Arc::clone(&tokens)));
        Ok(tokens)
    }

    /// Makes a token; durable when this returns.
    pub(crate) fn add(
        &self,
        label: &str,
        role: Role,
        now: Timestamp,
        expires: Option<Timestamp>,
        totp: Option<TotpSecret>,
    ) -> Result<NewToken, SharedTableError> {
        let mut rng = Randomness::System.for_actor("control token");
        let (mut id, mut secret) = ([0; 8], Zeroizing::new([0; 32]));
        rng.fill_bytes(&mut id);
        rng.fill_bytes(&mut secret[..]);
        let id = HEXLOWER.encode(&id);
        let secret = Zeroizing::new(BASE64URL_NOPAD.encode(&secret[..]));
        let hash = HEXLOWER.encode(&sha256(secret.as_bytes()));
        let label = label.to_owned();
        let token = Token { label, role, hash, created: now, expires, revoked: None, totp, last_step: None };
        self.write(&id, &token)?;
        if token.totp.is_some() {
            self.protect();
        }
        let text = Zeroizing::new(format!("{PREFIX}_{id}_{}", &*secret));
        Ok(NewToken { id, token, text })
    }

    /// Revokes a token; returns it if there is one that was not revoked before. Durable when this returns.
    pub(crate) fn revoke(&self, id: &str, now: Timestamp) -> Result<Option<Token>, SharedTableError> {
        let Some(mut token) = self.list()?.get(id).filter(|token| token.revoked.is_none()).cloned() else {
            return Ok(None);
        };
        token.revoked = Some(now);
        self.write(id, &token)?;
        Ok(Some(token))
    }

    /// Whether the token with this identifier is still accepted.
    pub(crate) fn is_valid(&self, id: &str, now: Timestamp) -> bool {
        // A list that cannot be read admits no one.
        self.list().is_ok_and(|tokens| tokens.get(id).is_some_and(|token| token.is_valid(now)))
    }

    /// The token with this text, if it is accepted.
    pub(crate) fn verify(&self, text: &str, now: Timestamp) -> Result<Option<(String, Token)>, SharedTableError> {
        let Some((id, secret)) = parse(text) else { return Ok(None) };
        let tokens = self.list()?;
        let token = tokens.get(id).filter(|token| token.is_secret(secret.as_bytes()) && token.is_valid(now));
        Ok(token.map(|token| (id.to_owned(), token.clone())))
    }

    /// Uses a one-time password of a token: whether it is right, and was not used before. Durable when this returns.
    pub(crate) fn use_code(&self, id: &str, code: &str, now: Timestamp) -> Result<bool, SharedTableError> {
        // What is in the file counts: two logins at once, or after a restart, do not use one code twice.
        let (used, ..) = self.0.table.change(u64::MAX, |values| {
            let stored = values.and_then(|values| values.get(id));
            let Some(stored) = stored else { return Ok((Vec::new(), false)) };
            let mut token: Token = serde_json::from_slice(stored).map_err(|error| error.to_string())?;
            let step = token.totp.as_ref().and_then(|totp| totp.step_of(code, now, token.last_step));
            let Some(step) = step else { return Ok((Vec::new(), false)) };
            token.last_step = Some(step);
            let value = serde_json::to_vec(&token).map_err(|error| error.to_string())?;
            Ok((vec![(id.to_owned(), Some(value))], true))
        })?;
        *self.lock() = None;
        Ok(used)
    }

    /// Lets only the service's user read the file, also outside of its directory: a second factor's secret cannot be stored hashed.
    fn protect(&self) {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            if let Err(error) = std::fs::set_permissions(&self.0.path, std::fs::Permissions::from_mode(0o600)) {
                tracing::warn!(%error, path = %self.0.path.display(), "others may be able to read the secrets of second factors");
            }
        }
    }

    fn write(&self, id: &str, token: &Token) -> Result<(), SharedTableError> {
        // No change count is the maximum, so nothing is assumed of what is there.
        self.0.table.change(u64::MAX, |_| {
            let value = serde_json::to_vec(token).map_err(|error| error.to_string())?;
            Ok((vec![(id.to_owned(), Some(value))], ()))
        })?;
        *self.lock() = None;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Stamp, Arc<Tokens>)>> {
        // Each change is one assignment.
        self.0.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of(values: &Values) -> Result<Tokens, String> {
    let parsed: Result<Tokens, _> =
        values.iter().map(|(id, value)| serde_json::from_slice(value).map(|token| (id.clone(), token))).collect();
    parsed.map_err(|error| format!("not a list of tokens: {error}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_its_own_secret_until_it_is_revoked() {
        let directory = tempfile::tempdir().unwrap();
        let book = TokenBook::open(directory.path()).unwrap();
        let now = Timestamp::from_secs(1_000);
        let made = book.add("console", Role::Operator, now, Some(Timestamp::from_secs(2_000)), None).unwrap();
        let other = TokenBook::open(directory.path()).unwrap();
        let verified = |text: &str, at: u64| other.verify(text, Timestamp::from_secs(at)).unwrap();
        assert_eq!(verified(&made.text, 1_500), Some((made.id.clone(), made.token.clone())));
        assert_eq!(verified(&made.text, 2_000), None, "it has expired");
        let wrong = format!("{}x", &*made.text);
        let forged = made.text.replace(&made.id, "0000000000000000");
        for text in [&wrong, &forged, "", "btcr2c", "btcr2c__", "btcr2c_x_y", &made.id] {
            assert_eq!(verified(text, 1_500), None, "{text}");
        }
        let stored = std::fs::read(directory.path().join(TOKENS)).unwrap();
        let secret = parse(&made.text).unwrap().1.as_bytes();
        assert!(!stored.windows(secret.len()).any(|window| window == secret), "the secret is stored");
        assert!(book.revoke(&made.id, now).unwrap().is_some() && book.revoke(&made.id, now).unwrap().is_none());
        assert_eq!(verified(&made.text, 1_500), None, "it was revoked by another program");
    }

    #[test]
    fn a_one_time_password_is_used_once_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let book = TokenBook::open(directory.path()).unwrap();
        let now = Timestamp::from_secs(100_000);
        let made = book.add("phone", Role::Admin, now, None, Some(TotpSecret::generate())).unwrap();
        let code = crate::control::totp::tests::shown(made.token.totp.as_ref().unwrap(), now);
        assert!(
            !book.use_code(&made.id, "", now).unwrap() && !book.use_code("0000000000000000", &code, now).unwrap()
        );
        assert!(book.use_code(&made.id, &code, now).unwrap());
        assert!(!book.use_code(&made.id, &code, now).unwrap());
        assert!(
            !TokenBook::open(directory.path()).unwrap().use_code(&made.id, &code, now).unwrap(),
            "after a restart"
        );
        let (id, token) = book.verify(&made.text, now).unwrap().unwrap();
        assert!(token.view(&id, now)["totp"] == true && !format!("{token:?}").contains(&code));
        let without = book.add("script", Role::Admin, now, None, None).unwrap();
        assert!(!book.use_code(&without.id, &code, now).unwrap());
    }
}
