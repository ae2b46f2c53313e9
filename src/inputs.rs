//! User input in a file, a variable or an argument, accepted in its usual forms: with a byte order mark, Windows line
//! ends, a newline at the end, a PSBT in binary, base64 or hex. An error states what was expected, what was found, and
//! what to do.

use std::{
    env,
    error::Error,
    ffi::{OsStr, OsString},
    fmt::Display,
    fs::File,
    io::{self, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use ::bitcoin::{
    Address, Psbt, Transaction, address::NetworkUnchecked, address::ParseError, consensus::encode::deserialize,
};
use data_encoding::{BASE64_NOPAD, HEXLOWER_PERMISSIVE};
use serde::de::DeserializeOwned;
use serde_json::{Value, error::Category};

use crate::protocol::{
    document::beacon_address,
    key::{PublicKey, XOnlyKey},
    network::Network,
};

/// More than any valid input has. A larger file was named by mistake, and must not fill the memory.
const MAX_FILE: u64 = 1 << 30;

const UTF8_BOM: &[u8] = b"\xef\xbb\xbf";
const PSBT_MAGIC: &[u8] = b"psbt\xff";

/// Why an input cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// An error of the file system.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
    /// The content is not what was expected.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was expected, and what was found.
        problem: String,
    },
}

impl InputError {
    fn content(path: &Path, problem: impl Into<String>) -> Self {
        Self::Content { path: path.to_owned(), problem: problem.into() }
    }
}

/// The bytes of a file.
///
/// # Errors
/// [`InputError`], also when it is too large.
pub fn bytes(path: &Path) -> Result<Vec<u8>, InputError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| InputError::Io { path: path.to_owned(), error })?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(InputError::content(path, format!("larger than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

/// The text of a file, without a byte order mark.
///
/// # Errors
/// [`InputError`].
pub fn text(path: &Path) -> Result<String, InputError> {
    text_of(&bytes(path)?).map(str::to_owned).map_err(|problem| InputError::content(path, problem))
}

/// The text in `bytes`, without a byte order mark.
///
/// # Errors
/// What was found instead of UTF-8, in words; never the content itself.
pub fn text_of(bytes: &[u8]) -> Result<&str, String> {
    let bytes = bytes.strip_prefix(UTF8_BOM).unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let found = describe(bytes).map_or_else(String::new, |found| format!("; it {found}"));
        format!("UTF-8 text expected, byte {} is none{found}", error.valid_up_to() + 1)
    })
}

/// The JSON of a file.
///
/// # Errors
/// [`InputError`], with the line and column, and what the file seems to be.
pub fn json<T: DeserializeOwned>(path: &Path) -> Result<T, InputError> {
    json_of(&bytes(path)?).map_err(|problem| InputError::content(path, problem))
}

/// The JSON in `bytes`.
///
/// # Errors
/// Where it stops being JSON, and what it seems to be, in words.
pub fn json_of<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let refuse = |problem: &str| match describe(bytes) {
        Some(found) => format!("not JSON: {problem}; it {found}"),
        None => format!("not JSON: {problem}"),
    };
    let text = text_of(bytes).map_err(|_| refuse("it is not UTF-8 text"))?;
    serde_json::from_str(text).map_err(|error| match error.classify() {
        // Valid JSON, but not of the expected shape.
        Category::Data => error.to_string(),
        Category::Eof | Category::Syntax | Category::Io => refuse(&error.to_string()),
    })
}

/// The text of a PEM file that is to hold `what`, e.g. `a certificate`.
///
/// # Errors
/// [`InputError`], when there is no PEM section in it.
pub fn pem(path: &Path, what: &str) -> Result<String, InputError> {
    let bytes = bytes(path)?;
    let found = || describe(&bytes).map_or_else(String::new, |found| format!("; it {found}"));
    match text_of(&bytes) {
        Ok(text) if text.contains("-----BEGIN ") => Ok(text.to_owned()),
        Ok(_) | Err(_) => {
            Err(InputError::content(path, format!("{what} in PEM expected (-----BEGIN ...){}", found())))
        }
    }
}

/// A PSBT: binary, base64 or hex, in one or several lines, or the object that Bitcoin Core's RPC returns.
///
/// # Errors
/// The kind of the content instead, in words.
pub fn psbt(bytes: &[u8]) -> Result<Psbt, String> {
    let refuse = |error: ::bitcoin::psbt::Error| explained(&error);
    if bytes.starts_with(PSBT_MAGIC) {
        // Text editors and some tools add a newline at the end.
        let exact = Psbt::deserialize(bytes);
        return exact.or_else(|_| Psbt::deserialize(bytes.trim_ascii_end())).map_err(refuse);
    }
    let text = text_of(bytes)?;
    if let Ok(Value::Object(answer)) = serde_json::from_str(text) {
        let psbt = answer.get("psbt").and_then(Value::as_str).ok_or("a JSON object without `psbt`")?;
        return psbt_text(psbt);
    }
    psbt_text(text)
}

fn psbt_text(text: &str) -> Result<Psbt, String> {
    let text: String = text.chars().filter(|c| !c.is_whitespace() && *c != '"').collect();
    let decoded = if !text.is_empty() && is_hex(&text) {
        HEXLOWER_PERMISSIVE.decode(text.as_bytes())
    } else {
        let standard = text.trim_end_matches('=').replace('-', "+").replace('_', "/");
        BASE64_NOPAD.decode(standard.as_bytes())
    };
    let unlike = || {
        let found = describe(text.as_bytes()).map_or_else(String::new, |found| format!("; it {found}"));
        format!("binary, base64 or hex expected{found}")
    };
    let bytes = decoded.map_err(|_| unlike())?;
    if !bytes.starts_with(PSBT_MAGIC) {
        return Err(match deserialize::<Transaction>(&bytes) {
            Ok(_) => "it holds a transaction, which `sendrawtransaction` sends".to_owned(),
            Err(_) => unlike(),
        });
    }
    Psbt::deserialize(&bytes).map_err(|error| explained(&error))
}

/// A transaction: hex, in one line or several, or binary.
///
/// # Errors
/// [`InputError`].
pub fn transaction(path: &Path) -> Result<Transaction, InputError> {
    let bytes = bytes(path)?;
    if let Ok(transaction) = deserialize(&bytes) {
        return Ok(transaction);
    }
    let refuse = |problem: &str| {
        let found = describe(&bytes).map_or_else(String::new, |found| format!("; it {found}"));
        InputError::content(path, format!("not a transaction in hex: {problem}{found}"))
    };
    let text = text_of(&bytes).map_err(|_| refuse("it is not text"))?;
    let text: String = text.chars().filter(|c| !c.is_whitespace() && *c != '"').collect();
    let decoded = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|error| refuse(&error.to_string()))?;
    deserialize(&decoded).map_err(|error| refuse(&explained(&error)))
}

/// An address, also as a URI (`bitcoin:...`), of any network.
///
/// # Errors
/// What is wrong with it, in words.
pub fn any_address(text: &str) -> Result<Address<NetworkUnchecked>, String> {
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    let address = beacon_address(text).unwrap_or(text);
    address.parse().map_err(|error: ParseError| {
        let hint = if address.is_empty() { "nothing was given".to_owned() } else { explained(&error) };
        format!("a Bitcoin address expected: {hint}")
    })
}

/// An address of `network`.
///
/// # Errors
/// What is wrong with it, in words.
pub fn address(text: &str, network: Network) -> Result<Address, String> {
    on_network(any_address(text)?, network)
}

/// `address`, if it belongs to `network`.
///
/// # Errors
/// The expected network, in words.
pub fn on_network(address: Address<NetworkUnchecked>, network: Network) -> Result<Address, String> {
    address
        .require_network(network.to_bitcoin())
        .map_err(|_| format!("it is an address of another network, an address of {network} is expected"))
}

/// An address to listen on: an IP address and a port.
///
/// # Errors
/// What is expected, in words.
pub fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.trim().parse().map_err(|_| "IP:PORT expected, e.g. 127.0.0.1:8080 or [::1]:8080".to_owned())
}

/// An x-only public key in hex.
///
/// # Errors
/// What is expected and what was found, in words.
pub fn x_only_key(text: &str) -> Result<XOnlyKey, String> {
    key(text, 64, "an x-only public key")
}

/// A compressed public key in hex.
///
/// # Errors
/// What is expected and what was found, in words.
pub fn public_key(text: &str) -> Result<PublicKey, String> {
    key(text, 66, "a compressed public key")
}

fn key<K: FromStr<Err: Display>>(text: &str, length: usize, what: &str) -> Result<K, String> {
    let text = text.trim();
    if text.len() == length && is_hex(text) {
        return text.parse().map_err(|error: K::Err| format!("{what} expected: {error}"));
    }
    let found = match text.chars().find(|c| !c.is_ascii_hexdigit()) {
        Some(other) => format!("found {other:?}, which is not hex"),
        None => format!("found {} characters", text.len()),
    };
    Err(format!("{what} expected, {length} hex characters: {found}"))
}

/// The environment variable `name`, without a byte order mark and the newlines that files, secret stores and
/// `docker --env-file` leave at its end. Spaces stay: they may be part of a passphrase.
pub fn variable(name: &str) -> Option<String> {
    env::var(name).ok().map(|value| clean(&value).to_owned())
}

fn clean(value: &str) -> &str {
    value.trim_start_matches('\u{feff}').trim_end_matches(['\r', '\n'])
}

/// The variables of this process whose name starts with `prefix` and that [`variable`] would read differently.
pub(crate) fn unclean_variables(prefix: &str) -> Vec<(OsString, OsString)> {
    let unclean = |(name, value): (OsString, OsString)| {
        let text = value.to_str()?;
        let ours = name.to_str()?.starts_with(prefix);
        (ours && clean(text) != text).then(|| (name, OsStr::new(clean(text)).to_owned()))
    };
    env::vars_os().filter_map(unclean).collect()
}

/// What `bytes` seem to be, as the end of a sentence: `is empty`, `starts with ...`. `None` if that is unknown.
pub fn describe(bytes: &[u8]) -> Option<&'static str> {
    let bare = bytes.strip_prefix(UTF8_BOM).unwrap_or(bytes).trim_ascii_start();
    let starts = |with: &[u8]| bare.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    Some(match bare {
        [] => "is empty",
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            "starts with a byte order mark of UTF-16: save it as UTF-8, without one"
        }
        [0x1f, 0x8b, ..] => "is compressed (gzip)",
        _ if bare.starts_with(b"PK\x03\x04") => "is a ZIP archive",
        _ if bare.starts_with(PSBT_MAGIC) => "is a PSBT in binary",
        _ if bare.starts_with(b"cHNid") => "is a PSBT in base64",
        _ if starts(b"70736274ff") => "is a PSBT in hex",
        _ if bare.starts_with(b"age-encryption.org/") => "is an encrypted file (age)",
        _ if bare.starts_with(b"-----BEGIN AGE ENCRYPTED FILE-----") => "is an encrypted file (age, armored)",
        _ if bare.starts_with(b"-----BEGIN ") => "is a PEM file",
        _ if starts(b"<!doctype") || starts(b"<html") => "is HTML, a web page",
        [b'<', ..] => "starts with `<`, as HTML and XML do",
        _ if bare.contains(&0) => "is binary data",
        [b'{' | b'[', ..] => return None,
        _ if std::str::from_utf8(bare).is_ok_and(|text| is_hex(text.trim_end()) && text.len() >= 16) => "is hex",
        _ => return None,
    })
}

fn is_hex(text: &str) -> bool {
    text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// An error with its causes, which often have the details: `base58 error`.
pub fn explained(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_with_a_byte_order_mark_and_windows_lines() {
        assert_eq!(json_of::<Value>(b"\xef\xbb\xbf{\"a\":\r\n1}\r\n"), Ok(serde_json::json!({ "a": 1 })));
        assert_eq!(clean("\u{feff}secret words \r\n"), "secret words ");
    }

    #[test]
    fn what_is_not_json_is_named() {
        for (bytes, named) in [
            (&b""[..], "is empty"),
            (b"  \n", "is empty"),
            (b"\xff\xfe{\0}\0", "byte order mark of UTF-16"),
            (b"<!DOCTYPE html><p>", "HTML"),
            (b"psbt\xff\x01", "PSBT in binary"),
            (b"cHNidP8BAHE=", "PSBT in base64"),
            (b"-----BEGIN CERTIFICATE-----", "PEM"),
            (b"02000000000101aabb", "hex"),
            (b"{\"a\": }", "line 1 column 7"),
        ] {
            let error = json_of::<Value>(bytes).unwrap_err();
            assert!(error.starts_with("not JSON") && error.contains(named), "{error}");
        }
    }
}
