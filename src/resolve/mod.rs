//! Resolves a DID from real sources: the protocol's [resolver](crate::protocol::resolution) states what it needs, and this module
//! fetches it.
//!
//! Signals are the [`Chain`]'s: the whole history of an address, or an error. Documents are looked up by their hash in the
//! Sidecar Data that were [given](Given) first, which the resolver does itself, and then in content stores. [`explain`] writes
//! the history for people, and [`server`] answers requests over HTTP.

mod explain;
pub mod follow;
mod given;
pub mod server;

use std::sync::Arc;

use ::bitcoin::ScriptBuf;

pub use self::{explain::explain, given::Given};
use crate::{
    bitcoin::chain::{Chain, ChainError, Signals, Tip},
    cas::{Cas, CasFault},
    protocol::{
        did::Did,
        hash::DocumentHash,
        resolution::{Beacon, Content, Need, Next, Resolution, ResolutionOptions, Resolver, Signal},
        text::shown,
    },
};

/// The sources of a resolver beside the Sidecar Data.
#[derive(Clone)]
pub struct Sources {
    /// The chain of the DID's network.
    pub chain: Arc<dyn Chain>,
    /// The chain's name in messages, without a password.
    pub chain_name: String,
    /// Content stores, in the order in which they are asked.
    pub stores: Vec<Arc<dyn Cas>>,
    /// The most beacon addresses whose signals are read for one DID: a genesis document of any length costs nothing.
    pub max_addresses: usize,
}

/// A finished resolution, with what its sources reported.
#[derive(Debug)]
pub struct Outcome {
    /// The resolution.
    pub resolution: Resolution,
    /// The tip of the chain's newest answer; `None` without an answer.
    pub tip: Option<Tip>,
    /// The failures of content stores. What such a store might have counts as absent.
    pub problems: Vec<String>,
    /// Whether the chain could not be read. The error names the chain then, as the operator has configured it.
    pub is_unreadable: bool,
}

impl Sources {
    /// Resolves `did`. A chain that cannot be read to its end ends the resolution with `INTERNAL_ERROR`.
    pub async fn resolve(&self, did: Did, options: ResolutionOptions, given: &Given) -> Outcome {
        let mut resolver = Resolver::new(did, options, given.data().clone());
        let (mut tip, mut problems, mut is_unreadable, mut addresses) = (None, Vec::new(), false, 0usize);
        loop {
            resolver = match resolver.into_resolution() {
                Ok(resolution) => return Outcome { resolution, tip, problems, is_unreadable },
                Err(unfinished) => unfinished,
            };
            let Next::Needs(needs) = resolver.next() else { continue };
            let (mut beacons, mut hashes) = (Vec::new(), Vec::new());
            for need in needs {
                match need {
                    Need::Signals { beacon, .. } => beacons.push(beacon),
                    Need::Content { hash, .. } => hashes.push(hash),
                    other => resolver.give_up(&format!("this program has no source for {other:?}")),
                }
            }
            addresses += beacons.len();
            if addresses > self.max_addresses {
                let limit = self.max_addresses;
                resolver
                    .give_up(&format!("the documents name more than {limit} beacon addresses, which is the limit"));
            } else if !beacons.is_empty() {
                match self.signals(&beacons).await {
                    Ok(found) => {
                        tip = found.last().map(|signals| signals.tip);
                        for (beacon, signals) in beacons.iter().zip(found) {
                            provide(&mut resolver, beacon, &signals, &self.chain_name);
                        }
                    }
                    Err(error) => {
                        is_unreadable = true;
                        resolver.give_up(&format!("{}: {}", self.chain_name, words(&error)));
                    }
                }
            }
            for hash in hashes {
                let (content, source) = self.content(&hash, &mut problems).await;
                // Another kind of document of the same hash may have been answered together with this one.
                let _ = resolver.provide_content(&hash, content, &source);
            }
        }
    }

    /// The signals of each beacon. A node reads its blocks once for all of them.
    async fn signals(&self, beacons: &[Arc<Beacon>]) -> Result<Vec<Signals>, ChainError> {
        let scripts: Vec<ScriptBuf> = beacons.iter().map(|beacon| beacon.address.script_pubkey()).collect();
        let found = self.chain.signals(&scripts, 0).await?;
        if found.len() != scripts.len() {
            let problem = format!("{} answers about {} addresses", found.len(), scripts.len());
            return Err(ChainError::BadAnswer(problem));
        }
        Ok(found)
    }

    /// What has that hash in the first store that gives it, and the store's name.
    async fn content(&self, hash: &DocumentHash, problems: &mut Vec<String>) -> (Content, String) {
        for store in &self.stores {
            match store.get(&(*hash).into()).await {
                Ok(content) => return (Content::Bytes(content.bytes().to_vec()), store.name().to_owned()),
                Err(error) if matches!(error.fault, CasFault::NotFound(_)) => {}
                Err(error) => {
                    let problem = format!("{hash} was not found: {}", shown(&error.to_string()));
                    if !problems.contains(&problem) {
                        problems.push(problem);
                    }
                }
            }
        }
        (Content::Absent, "no content store".to_owned())
    }
}

fn provide(resolver: &mut Resolver, beacon: &Beacon, Signals { tip, seen }: &Signals, source: &str) {
    let signals = seen.iter().map(|signal| Signal {
        txid: signal.txid,
        bytes: signal.bytes,
        height: Some(signal.block.height),
        time: Some(signal.times.time),
        mediantime: Some(signal.times.mediantime),
        confirmations: Some(tip.depth(&signal.block)),
    });
    // It was needed a moment ago; only a resolution that was given up does not need it any more.
    let _ = resolver.provide_signals(&beacon.address, signals.collect(), source);
}

/// The chain's error, in words for a resolver.
fn words(error: &ChainError) -> String {
    match error {
        ChainError::Pruned(problem) => format!(
            "the node has pruned blocks, and a resolver needs the whole history of an address: {problem}; ask a node that has \
             all blocks, or an Esplora server"
        ),
        error => error.to_string(),
    }
}
