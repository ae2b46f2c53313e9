//! Content-addressed storage (CAS, a port): bytes that anybody can ask for by their SHA-256.
//!
//! An announcement puts a hash on the chain; a resolver needs what was hashed. Whoever has it may give it, since the hash
//! says whether it is the right thing. So an operator publishes before it spends:
//! - the announcement map of a CAS beacon ([`CasAnnouncement`](crate::protocol::beacon::CasAnnouncement)), whose hash is the
//!   signal;
//! - the members' signed updates ([`SignedUpdate`](crate::protocol::update::SignedUpdate)), where the members agree, whose
//!   hashes are in the map.
//!
//! Both as their canonical bytes, and so the JSON Document Hash is the address: [`Content`]. SMT proofs are not published:
//! each is for its member alone.
//!
//! Two stores: a [`Directory`], one file a content, for a web server to hand out or for people to copy; and an [`Ipfs`] node,
//! one raw block a content. [`Publication`] is several at once, and what it means when one of them fails. On the command
//! line a store is `dir=PATH` or `ipfs=URL` ([`Location`]); `cas put` and `cas show` do by hand what the service does.

mod content;
mod directory;
mod ipfs;
mod publication;

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use async_trait::async_trait;
use reqwest::Url;
use serde::{Deserialize, Deserializer, de};

pub use self::{
    content::{Content, ContentError, ContentHash, ContentHashError, MAX_CONTENT},
    directory::Directory,
    ipfs::Ipfs,
    publication::{Held, Publication, PublicationReport, StoreReport},
};

/// How long a request to a node may take, unless it is told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// A store of content by hash.
#[async_trait]
pub trait Cas: Send + Sync + fmt::Debug {
    /// Its name in messages for people, `dir=...` or `ipfs=...`; no password is ever in it.
    fn name(&self) -> &str;

    /// Stores `content`, and reads it back: when this answers, the store gives it to whoever asks. Storing what is there
    /// already changes nothing.
    ///
    /// # Errors
    /// [`CasError`]; [`CasFault::Wrong`] when what was read back is something else.
    async fn put(&self, content: &Content) -> Result<(), CasError>;

    /// The content of that hash, verified.
    ///
    /// # Errors
    /// [`CasError`].
    async fn get(&self, hash: &ContentHash) -> Result<Content, CasError>;
}

/// What a store did not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{store}: {fault}")]
pub struct CasError {
    /// The store's name.
    pub store: String,
    /// What is wrong.
    pub fault: CasFault,
}

/// Whose fault it is that a store did not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CasFault {
    /// Nobody's: the store does not have it.
    #[error("it does not have {0}")]
    NotFound(ContentHash),
    /// The world's: the store cannot be reached, or cannot do it now or with these settings.
    #[error("{0}")]
    Unavailable(String),
    /// The store's: it answered with something else than what it was asked for.
    #[error("it cannot be relied on: {0}")]
    Wrong(String),
}

/// Where a store is: `dir=PATH`, or `ipfs=URL` for the RPC API of an IPFS node (`ipfs=http://127.0.0.1:5001`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A directory.
    Directory(PathBuf),
    /// The base URL of a node's RPC API.
    Ipfs(Url),
}

/// A text that names no store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// Neither kind of store.
    #[error("dir=PATH or ipfs=URL expected")]
    Kind,
    /// No URL of a node.
    #[error("not an http:// or https:// URL: ipfs=http://127.0.0.1:5001 is the RPC API of a node on this machine")]
    Url,
}

impl Location {
    /// The store that is there. Nothing is opened or asked yet. `timeout` bounds each request to a node.
    ///
    /// # Errors
    /// As [`Ipfs::new`].
    pub fn store(&self, timeout: Duration) -> Result<Arc<dyn Cas>, CasError> {
        Ok(match self {
            Self::Directory(path) => Arc::new(Directory::new(path)),
            Self::Ipfs(url) => Arc::new(Ipfs::new(url.clone(), timeout)?),
        })
    }
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Directory(path.into())),
            Some(("ipfs", url)) => url
                .parse()
                .ok()
                .filter(|url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host())
                .map(Self::Ipfs)
                .ok_or(LocationError::Url),
            _ => Err(LocationError::Kind),
        }
    }
}

impl<'de> Deserialize<'de> for Location {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_says_which_kind_of_store_it_is() {
        assert_eq!("dir=a=b".parse(), Ok(Location::Directory("a=b".into())));
        assert!(matches!("ipfs=http://127.0.0.1:5001".parse(), Ok(Location::Ipfs(_))));
        for text in ["", "dir", "dir=", "/tmp", "s3=bucket"] {
            assert_eq!(text.parse::<Location>(), Err(LocationError::Kind), "{text}");
        }
        for text in ["ipfs=", "ipfs=127.0.0.1:5001", "ipfs=ftp://127.0.0.1", "ipfs=unix:/run/ipfs"] {
            assert_eq!(text.parse::<Location>(), Err(LocationError::Url), "{text}");
        }
    }
}
