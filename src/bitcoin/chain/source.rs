//! How an operator specifies a chain: `core=http://user:password@127.0.0.1:8332`,
//! `core=http://127.0.0.1:8332?cookie=PATH`, `esplora=https://host/api`.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

use zeroize::Zeroizing;

use super::{Chain, ChainError, CoreAuth, CoreChain, EsploraChain, check_network};
use crate::protocol::network::Network;

/// The text does not specify a chain. Never contains the text itself, which may have a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The kind of the chain is missing.
    #[error(
        "core=http://user:password@host:port, core=http://host:port?cookie=PATH or esplora=https://host/api expected"
    )]
    UnknownKind,
    /// The URL is not valid.
    #[error("{kind}=URL: {problem}")]
    Url {
        /// The kind of the chain.
        kind: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// A chain to connect to. `Display` omits the password.
#[derive(Clone)]
pub enum ChainSource {
    /// A Bitcoin Core node.
    Core {
        /// Scheme, host and port.
        url: String,
        /// The credentials.
        auth: CoreAuth,
    },
    /// An Esplora server.
    Esplora {
        /// The base URL of its API, without a trailing slash.
        url: String,
    },
}

impl ChainSource {
    /// Connects to the chain. Checks that it is the chain of `network`, and that it can answer.
    ///
    /// # Errors
    /// [`ChainError`]; a node that is starting, or still downloads the chain, is [`ChainError::Unavailable`].
    pub async fn connect(&self, network: Network) -> Result<Arc<dyn Chain>, ChainError> {
        match self {
            Self::Core { url, auth } => {
                let node = CoreChain::new(url.clone(), auth.clone());
                check_network(&node, network).await?;
                node.check_fitness().await?;
                Ok(Arc::new(node))
            }
            Self::Esplora { url } => {
                let server = EsploraChain::new(url)?;
                check_network(&server, network).await?;
                Ok(Arc::new(server))
            }
        }
    }
}

impl FromStr for ChainSource {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        match text.split_once('=') {
            Some(("core", url)) => core(url).map_err(|problem| SourceError::Url { kind: "core", problem }),
            Some(("esplora", url)) => esplora(url).map_err(|problem| SourceError::Url { kind: "esplora", problem }),
            _ => Err(SourceError::UnknownKind),
        }
    }
}

fn core(url: &str) -> Result<ChainSource, &'static str> {
    let (url, query) = url.split_once('?').map_or((url, None), |(url, query)| (url, Some(query)));
    let (scheme, rest) = split_scheme(url)?;
    if scheme != "http" {
        return Err("a node speaks http; reach one elsewhere through a tunnel");
    }
    let (user_info, host) = rest.rsplit_once('@').map_or((None, rest), |(user_info, host)| (Some(user_info), host));
    let url = format!("http://{}", check_host(host.trim_end_matches('/'))?);
    let auth = match (user_info, query) {
        (Some(_), Some(_)) => return Err("either user:password@ or ?cookie=PATH, not both"),
        (Some(user_info), None) => {
            let (user, password) = user_info.split_once(':').ok_or("user:password@ expected before the host")?;
            CoreAuth::Password { user: decode(user)?, password: Zeroizing::new(decode(password)?) }
        }
        (None, Some(query)) => match query.split_once('=') {
            Some(("cookie", path)) if !path.is_empty() => CoreAuth::Cookie(PathBuf::from(decode(path)?)),
            _ => return Err("?cookie=PATH is the only setting that may follow the address"),
        },
        (None, None) => {
            return Err("how to log in is missing: user:password@ before the host, or ?cookie=PATH behind it");
        }
    };
    Ok(ChainSource::Core { url, auth })
}

fn esplora(url: &str) -> Result<ChainSource, &'static str> {
    let (scheme, rest) = split_scheme(url)?;
    if rest.contains(['?', '#', '@']) {
        return Err("only scheme, host and path are used");
    }
    let rest = rest.trim_end_matches('/');
    let host = rest.split_once('/').map_or(rest, |(host, _)| host);
    check_host(host)?;
    Ok(ChainSource::Esplora { url: format!("{scheme}://{rest}") })
}

fn split_scheme(url: &str) -> Result<(&str, &str), &'static str> {
    match url.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => Ok((scheme, rest)),
        _ => Err("it must begin with http:// or https://"),
    }
}

fn check_host(host: &str) -> Result<&str, &'static str> {
    if host.contains(['/', '?', '#']) {
        return Err("a node has no path");
    }
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, port)) => (name, port.strip_prefix(':')),
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    if name.is_empty() {
        return Err("the host is missing");
    }
    match port {
        Some(port) if port.parse::<u16>().is_err() => Err("the port is not a number up to 65535"),
        _ => Ok(host),
    }
}

/// Decodes percent-encoding, which a password with an `@` or a path with a space needs.
fn decode(text: &str) -> Result<String, &'static str> {
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map(|text| text.into_owned())
        .map_err(|_| "its percent-encoding is not UTF-8")
}

impl fmt::Display for ChainSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Core { url, auth: CoreAuth::Password { user, .. } } => {
                write!(f, "core={} as {user}", url)
            }
            Self::Core { url, auth: CoreAuth::Cookie(path) } => write!(f, "core={url}?cookie={}", path.display()),
            Self::Esplora { url } => write!(f, "esplora={url}"),
        }
    }
}

impl fmt::Debug for ChainSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainSource({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        match text.parse::<ChainSource>() {
            Ok(source) => source.to_string(),
            Err(error) => panic!("{text}: {error}"),
        }
    }

    #[test]
    fn the_forms_that_are_documented_are_read() {
        assert_eq!(shown("core=http://alice:secret@127.0.0.1:8332"), "core=http://127.0.0.1:8332 as alice");
        assert_eq!(
            shown("core=http://[::1]:8332/?cookie=/b%20c/.cookie"),
            "core=http://[::1]:8332?cookie=/b c/.cookie"
        );
        assert_eq!(shown("esplora=https://mempool.space/signet/api/"), "esplora=https://mempool.space/signet/api");
    }

    #[test]
    fn a_password_may_hold_what_urls_reserve_and_is_never_shown() {
        let source: ChainSource = "core=http://alice:p%40ss%3A@node:18443".parse().unwrap();
        let ChainSource::Core { auth: CoreAuth::Password { password, .. }, .. } = &source else {
            panic!("{source}")
        };
        assert_eq!(password.as_str(), "p@ss:");
        assert!(!format!("{source} {source:?}").contains("p@ss"));
        let error = "core=https://alice:hunter2@node".parse::<ChainSource>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("http://127.0.0.1:8332", "expected"),
            ("core=127.0.0.1:8332", "http://"),
            ("core=https://a:b@127.0.0.1", "speaks http"),
            ("core=http://127.0.0.1:8332", "how to log in"),
            ("core=http://alice@127.0.0.1", "user:password"),
            ("core=http://a:b@127.0.0.1?cookie=c", "not both"),
            ("core=http://127.0.0.1?wallet=w", "cookie"),
            ("core=http://a:b@127.0.0.1:99999", "port"),
            ("core=http://a:b@:8332", "host"),
            ("core=http://a:b@host/wallet/w", "no path"),
            ("esplora=ftp://host", "http://"),
            ("esplora=https://host?x", "only"),
        ] {
            let error = text.parse::<ChainSource>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
