//! How the update is announced from a Singleton beacon.

use std::path::Path;

use super::{
    super::singleton::{Announcement, announce},
    CommonArgs, UpdateFailure,
    report::Prepared,
};
use crate::{
    bitcoin::chain::{BlockId, Chain, ChainSource, CoreAuth},
    cas::Location,
    resolve::Given,
    shell::quoted,
    singleton::places::{Place, places},
};

/// The Singleton beacons of the document that the update starts from.
fn beacons(prepared: &Prepared<'_>) -> Vec<Place> {
    places(prepared.source, prepared.did, Some(prepared.keys))
}

/// The command that announces the update, and the addresses that can pay for it.
pub(super) fn command(common: &CommonArgs, prepared: &Prepared<'_>) -> String {
    let places = beacons(prepared);
    if places.is_empty() {
        return "The current document has no Singleton beacon: only a cohort whose address is among its beacons can announce this \
                update."
            .to_owned();
    }
    let (own, foreign): (Vec<_>, Vec<_>) =
        places.iter().partition(|place| place.secret(Some(prepared.keys)).is_some());
    let mut lines = vec![
        "These Singleton beacons of the current document can announce it, with a coin at their address:".to_owned(),
    ];
    let line = |place: &&Place, what: &str| format!("  {} {}{what}", place.name(), place.address);
    lines.extend(own.iter().map(|place| line(place, "")));
    lines.extend(foreign.iter().map(|place| line(place, ", by the wallet that has its key (PSBT)")));
    lines.push(
        "When a coin is confirmed there (--send announces, without it the transaction is printed):".to_owned(),
    );
    let file = |path: &Path| quoted(&path.display().to_string());
    let mut words = vec!["btcr2-aggregation singleton".to_owned()];
    words.push(match (&common.identity, &common.secret_env) {
        (Some(path), _) => format!("--identity {}", file(path)),
        (None, Some(name)) if prepared.did.key().is_some_and(|key| prepared.keys.key_of(&key).is_some()) => {
            format!("--secret-env {name} --network {}", prepared.did.network())
        }
        (None, _) => format!("--did {}", prepared.did),
    });
    words.extend(common.out.as_deref().map(|path| format!("--update {}", file(path))));
    words.extend(common.state.as_deref().map(|path| format!("--state {}", file(path))));
    let chain = common.chain.as_ref().and_then(|chain| chain.source().ok());
    words.extend(chain.map(|source| match source {
        ChainSource::Core { auth: CoreAuth::Password { .. }, .. } => "--chain KIND=URL".to_owned(),
        source => format!("--chain {}", quoted(&source.to_string())),
    }));
    if common.min_conf != 6 {
        words.push(format!("--min-conf {}", common.min_conf));
    }
    words.extend(common.sidecars.iter().map(|path| format!("--sidecar {}", file(path))));
    words.extend(common.cas.iter().map(|location| match location {
        Location::Directory(path) => format!("--cas dir={}", file(path)),
        Location::Ipfs(url) if url.password().is_some() => "--cas ipfs=URL".to_owned(),
        Location::Ipfs(url) => format!("--cas ipfs={}", quoted(url.as_str())),
    }));
    words.extend(common.announcement.service.as_ref().map(|service| format!("--service {}", quoted(service))));
    let is_signed = common.identity.is_some() && !own.is_empty();
    words.push(if is_signed { "--send --wait".to_owned() } else { "--out announcement".to_owned() });
    lines.push(format!("  {}", words.join(" ")));
    lines.join("\n")
}

/// Announces the update, which is recorded and written, at once. Whether the transaction is where it was to be.
pub(super) async fn send(
    common: &CommonArgs,
    chain: &dyn Chain,
    tip: BlockId,
    given: &Given,
    prepared: &Prepared<'_>,
) -> Result<bool, UpdateFailure> {
    let announcement = Announcement {
        did: prepared.did,
        document: prepared.source,
        update: &prepared.update,
        keys: Some(prepared.keys),
        given,
        min_conf: common.min_conf,
        tip,
        args: &common.announcement,
    };
    match announce(chain, &announcement).await {
        Ok((result, is_fine)) => {
            if common.json {
                out!("{result}");
            }
            Ok(is_fine)
        }
        Err(error) => {
            // It may have been sent before the error.
            err!("The update is written. What follows goes on from there, and announces nothing twice.");
            err!("{}", command(common, prepared));
            Err(error.into())
        }
    }
}
