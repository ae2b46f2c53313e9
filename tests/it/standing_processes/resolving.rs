//! Resolves many DIDs at once: the node reads its blocks once for all of them.

use std::collections::BTreeMap;

use bitcoin::ScriptBuf;
use btcr2_aggregation::{
    bitcoin::chain::{Chain, Signals},
    protocol::{
        did::Did,
        resolution::{Content, Need, Next, Resolution, ResolutionOptions, Resolver, SidecarData, Signal},
    },
};
use serde_json::Value;

/// Version and document of each DID, from its Sidecar Data alone.
pub async fn resolve_all(chain: &dyn Chain, min_conf: u32, dids: Vec<(Did, Value)>) -> Vec<(u64, Value)> {
    let resolved = try_resolve_all(chain, min_conf, dids).await;
    resolved.into_iter().map(|one| one.unwrap_or_else(|error| panic!("{error}"))).collect()
}

/// The same, with the error of each DID that does not resolve.
pub async fn try_resolve_all(
    chain: &dyn Chain,
    min_conf: u32,
    dids: Vec<(Did, Value)>,
) -> Vec<Result<(u64, Value), String>> {
    let options = ResolutionOptions::default().with_min_conf(min_conf.into()).unwrap();
    let resolver = |(did, sidecar): (Did, Value)| {
        Resolver::new(did, options.clone(), SidecarData::from_value(sidecar).unwrap())
    };
    let names: Vec<Did> = dids.iter().map(|(did, _)| did.clone()).collect();
    let mut resolvers: Vec<Resolver> = dids.into_iter().map(resolver).collect();
    let mut known: BTreeMap<ScriptBuf, Signals> = BTreeMap::new();
    loop {
        let mut scripts: Vec<ScriptBuf> = Vec::new();
        for resolver in &resolvers {
            let Next::Needs(needs) = resolver.next() else { continue };
            let wanted = needs.iter().filter_map(|need| match need {
                Need::Signals { beacon, .. } => Some(beacon.address.script_pubkey()),
                _ => None,
            });
            scripts.extend(wanted.filter(|script| !known.contains_key(script)));
        }
        scripts.sort();
        scripts.dedup();
        if !scripts.is_empty() {
            let found = chain.signals(&scripts, 0).await.unwrap();
            known.extend(scripts.into_iter().zip(found));
        }
        let mut is_done = true;
        for resolver in &mut resolvers {
            let Next::Needs(needs) = resolver.next() else { continue };
            is_done = false;
            for need in needs {
                match need {
                    Need::Signals { beacon, .. } => {
                        let signals = signals(&known[&beacon.address.script_pubkey()]);
                        resolver.provide_signals(&beacon.address, signals, "the node").unwrap();
                    }
                    // It is in the Sidecar Data, or nowhere.
                    Need::Content { hash, .. } => drop(resolver.provide_content(&hash, Content::Absent, "none")),
                    other => panic!("{other:?}"),
                }
            }
        }
        if is_done {
            break;
        }
    }
    let resolved = resolvers.into_iter().zip(names).map(|(resolver, did)| {
        let resolution: Resolution = resolver.into_resolution().unwrap_or_else(|_| panic!("{did} is not resolved"));
        let resolved = resolution.outcome.map_err(|error| format!("{did}: {error}"))?;
        Ok((resolved.metadata.version_id, resolved.document))
    });
    resolved.collect()
}

fn signals(Signals { tip, seen }: &Signals) -> Vec<Signal> {
    let signal = seen.iter().map(|signal| Signal {
        txid: signal.txid,
        bytes: signal.bytes,
        height: Some(signal.block.height),
        time: Some(signal.times.time),
        mediantime: Some(signal.times.mediantime),
        confirmations: Some(tip.depth(&signal.block)),
    });
    signal.collect()
}
