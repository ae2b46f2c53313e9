//! How the update is announced in a cohort.

use std::path::Path;

use super::{CommonArgs, report::Prepared};
use crate::{
    bitcoin::chain::{ChainSource, CoreAuth},
    cas::Location,
    controller::places,
    protocol::{did::Did, resolution::BeaconKind},
    shell::quoted,
};

/// The command that announces the update in a cohort, and which cohorts resolvers would find. The current document has a
/// cohort's beacon.
pub(super) fn by_cohort(common: &CommonArgs, prepared: &Prepared<'_>) -> String {
    let beacons = places::of_cohorts(prepared.source, prepared.did);
    let mut lines =
        vec!["Resolvers find the update in a cohort with one of these addresses, and in no other:".to_owned()];
    lines.extend(beacons.iter().map(|beacon| format!("  {beacon}")));
    lines.push(
        "The same members, keys and terms give a cohort the same address. Join its service; in a cohort of another address \
         `join` declines:"
            .to_owned(),
    );
    let mut kinds: Vec<_> = beacons.iter().map(|beacon| beacon.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    lines.push(format!("  {}", command(common, prepared.did, &kinds)));
    if !common.cas.is_empty() {
        lines.push("With --cas, `join` publishes the update in that store.".to_owned());
    }
    lines.join("\n")
}

/// The command, with a placeholder for the service, and for a chain that is reached with a password.
fn command(common: &CommonArgs, did: &Did, kinds: &[BeaconKind]) -> String {
    let file = |path: &Path| quoted(&path.display().to_string());
    let mut words = vec!["btcr2-aggregation join --service URL".to_owned()];
    match (&common.identity, &common.secret_env) {
        (Some(path), _) => words.push(format!("--identity {}", file(path))),
        (None, Some(name)) => words.push(format!("--secret-env {name} --network {}", did.network())),
        (None, None) => {}
    }
    words.extend(common.out.as_deref().map(|path| format!("--update {}", file(path))));
    match kinds {
        [BeaconKind::Cas] => words.push("--beacon cas".to_owned()),
        [BeaconKind::Smt] => words.push("--beacon smt".to_owned()),
        _ => {}
    }
    words.push(
        common.state.as_deref().map_or_else(|| "--state DIR".to_owned(), |path| format!("--state {}", file(path))),
    );
    words.extend(common.chain.as_ref().and_then(|chain| chain.source().ok()).map(|source| match source {
        ChainSource::Core { auth: CoreAuth::Password { .. }, .. } => "--chain KIND=URL".to_owned(),
        source => format!("--chain {}", quoted(&source.to_string())),
    }));
    if common.min_conf != 6 {
        words.push(format!("--min-conf {}", common.min_conf));
    }
    words.extend(common.sidecars.iter().map(|path| format!("--sidecar {}", file(path))));
    words.extend(common.cas.iter().map(|location| match location {
        Location::Directory(path) => format!("--cas {}", quoted(&format!("dir={}", path.display()))),
        Location::Ipfs(url) if url.password().is_none() => format!("--cas {}", quoted(&format!("ipfs={url}"))),
        Location::Ipfs(_) => "--cas ipfs=URL".to_owned(),
    }));
    words.push("--exit-when-done".to_owned());
    words.join(" ")
}
