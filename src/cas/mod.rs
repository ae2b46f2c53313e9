//! Content-addressed storage (CAS, a port): bytes that are available by their SHA-256.
//!
//! An announcement puts a hash on the chain; a resolver needs the content. Any party that has the content may provide
//! it, since the hash verifies it. An operator therefore publishes before it spends:
//! - the announcement map of a CAS beacon ([`CasAnnouncement`](crate::protocol::beacon::CasAnnouncement)), whose hash is the
//!   signal;
//! - the members' signed updates ([`SignedUpdate`](crate::protocol::update::SignedUpdate)), where the members agree, whose
//!   hashes are in the map.
//!
//! Both are stored as their canonical bytes, so the JSON Document Hash is the address: [`Content`]. SMT proofs are not
//! published: each is for its member alone.
//!
//! There are two stores: a [`Directory`], one file per content, to be served by a web server or copied; and an [`Ipfs`]
//! node, one raw block per content. [`Publication`] publishes to several stores, and defines what a failure means. On
//! the command line a store is `dir=PATH` or `ipfs=URL` ([`Location`]); `cas put` and `cas show` are the manual
//! commands.

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
    publication::{IncompletePublication, Publication, PublicationReport, StoreReport},
};

/// The default time limit of a request to a node.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// A store of content by hash.
#[async_trait]
pub trait Cas: Send + Sync + fmt::Debug {
    /// Its name in messages for people, `dir=...` or `ipfs=...`; no password is ever in it.
    fn name(&self) -> &str;

    /// Stores `content`, and reads it back: when this returns, the store provides it to every client. Storing existing
    /// content again changes nothing.
    ///
    /// # Errors
    /// [`CasError`]; [`CasFault::Wrong`] when the content read back differs.
    async fn put(&self, content: &Content) -> Result<(), CasError>;

    /// The content of that hash, verified.
    ///
    /// # Errors
    /// [`CasError`].
    async fn get(&self, hash: &ContentHash) -> Result<Content, CasError>;
}

/// A failed operation of a store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{store}: {fault}")]
pub struct CasError {
    /// The store's name.
    pub store: String,
    /// What is wrong.
    pub fault: CasFault,
}

/// Why a store failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CasFault {
    /// The store does not have the content.
    #[error("it does not have {0}")]
    NotFound(ContentHash),
    /// The store cannot be reached, or cannot do it now or with these settings.
    #[error("{0}")]
    Unavailable(String),
    /// The store is faulty: its answer is not what was requested.
    #[error("it cannot be relied on: {0}")]
    Wrong(String),
}

/// The location of a store: `dir=PATH`, or `ipfs=URL` for the RPC API of an IPFS node (`ipfs=http://127.0.0.1:5001`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A directory.
    Directory(PathBuf),
    /// The base URL of a node's RPC API.
    Ipfs(Url),
}

/// The text is not the location of a store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// Neither kind of store.
    #[error("dir=PATH or ipfs=URL expected")]
    Kind,
    /// Not the URL of a node.
    #[error("not an http:// or https:// URL: ipfs=http://127.0.0.1:5001 is the RPC API of a node on this machine")]
    Url,
}

impl Location {
    /// The store at the location. Nothing is opened or requested yet. `timeout` is the limit of each request to a node.
    ///
    /// # Errors
    /// Those of [`Ipfs::new`].
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
