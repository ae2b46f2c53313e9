//! The settings of `join --standing`.

use std::{path::Path, str::FromStr, sync::Arc};

use serde::Deserialize;

use super::JoinSettings;
use crate::{
    cli::keys_of,
    error::ProgramError,
    join::standing::StandingJoin,
    protocol::{
        cohort::standing::{SeatSeed, StandingPolicy},
        identity::Identity,
    },
    standing::controller::ControlledDid,
};

/// A share: `2/3`.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) struct ShareArg(pub(in crate::cli) (u16, u16));

impl FromStr for ShareArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(k, n)| Some((k.trim().parse().ok()?, n.trim().parse().ok()?)));
        match parts {
            Some((k, n)) if k <= n && n > 0 => Ok(Self((k, n))),
            _ => Err("a share expected, e.g. 2/3".to_owned()),
        }
    }
}

impl<'de> Deserialize<'de> for ShareArg {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The seats that the settings ask for, if they ask for some. `identity` is that of the seat's secret.
pub(super) fn config(settings: &JoinSettings, identity: &Identity) -> Result<Option<StandingJoin>, ProgramError> {
    let usage = |problem: &str| ProgramError::Usage(problem.to_owned());
    let others = [
        settings.dids.is_some(),
        settings.updates.is_some(),
        settings.least_share.is_some(),
        settings.least_interval.is_some(),
        settings.accept_blind.is_some(),
        settings.show_identity.is_some(),
        settings.restored.is_some(),
    ];
    if settings.standing != Some(true) {
        return match others.contains(&true) {
            true => Err(usage("the settings of standing cohorts need --standing")),
            false => Ok(None),
        };
    }
    let dids = settings
        .dids
        .as_deref()
        .ok_or_else(|| usage("--standing needs --dids DIR, with the identity files of the DIDs"))?;
    let out = settings.out.clone().ok_or_else(|| {
        usage("--standing needs --out DIR: no resolver finds the updates of a DID without the data that are written there")
    })?;
    if settings.state.is_none() {
        return Err(usage("--standing needs --state DIR: a seat must never forget what it has signed"));
    }
    if settings.chain.is_none() {
        return Err(usage(
            "--standing needs --chain KIND=URL: an update is submitted only for a document that is resolved",
        ));
    }
    let network = identity.did().network();
    let mut policy =
        StandingPolicy { accepts_blind: settings.accept_blind == Some(true), ..StandingPolicy::default() };
    if let Some(ShareArg(share)) = settings.least_share {
        policy.least_threshold = share;
    }
    if let Some(interval) = settings.least_interval {
        policy.least_seconds_between_announcements = u32::try_from(interval.0.as_secs()).unwrap_or(u32::MAX).max(1);
    }
    policy.max_cost = settings.max_cost.unwrap_or(policy.max_cost);
    if let Some(rate) = &settings.max_fee_rate {
        policy.max_fee_rate = u32::try_from(rate.0.to_sat_per_vb_ceil()).unwrap_or(u32::MAX);
    }
    // The shortest time to answer that a test network needs; a person is asked nothing.
    policy.least_seconds_to_answer = 1;
    let dids = identities(dids)?;
    if let Some(other) = dids.iter().find(|one| one.identity.did().network() != network) {
        return Err(usage(&format!("{} is a DID of another network than {network}", other.identity.did())));
    }
    if dids.iter().any(|one| one.identity.public_key() == identity.public_key()) {
        return Err(usage("--identity is the seat's secret: it must not be the key of a DID in --dids"));
    }
    let restored = settings.restored == Some(true);
    let seed = SeatSeed::from_secret(identity.secret_key());
    let applies_as = (settings.show_identity == Some(true)).then(|| identity.clone());
    let updates = settings.updates.clone();
    Ok(Some(StandingJoin { seed, applies_as, network, dids, policy, updates, out, restored }))
}

/// The identities in a directory.
pub(in crate::cli) fn identities(dir: &Path) -> Result<Vec<ControlledDid>, ProgramError> {
    let usage = |problem: String| ProgramError::Usage(problem);
    let files = std::fs::read_dir(dir).map_err(|error| usage(format!("--dids {}: {error}", dir.display())))?;
    let mut paths: Vec<_> = files.filter_map(|file| Some(file.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "id"));
    paths.sort();
    if paths.is_empty() {
        return Err(usage(format!("--dids {}: there is no identity file (*.id)", dir.display())));
    }
    let read = |path: &std::path::PathBuf| {
        let (identity, keys) = keys_of(Some(path), None, None).map_err(|error| usage(error.to_string()))?;
        Ok(ControlledDid { identity, keys: Arc::new(keys) })
    };
    paths.iter().map(read).collect()
}
