//! When no cohort announces the member's update: writes the member's own announcement for its controller to send.

use std::path::PathBuf;

use ::bitcoin::FeeRate;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

use super::{JoinConfig, MemberPolicy};
use crate::{
    error::ProgramError,
    events::Printer,
    protocol::output::{Change, Coin, InitialBeacon, InitialBeaconKind, SingletonAnnouncement},
    singleton::{self, FallbackError, Prepared},
    storage::Storage,
};

/// What to do when no cohort announces the update.
#[derive(Clone, Debug)]
pub struct SingletonFallback {
    /// Where to write the announcement.
    pub directory: PathBuf,
    /// The coin that it spends, and the kind of the initial beacon that holds it. Without a coin, the files explain how
    /// to continue with one.
    pub coin: Option<(InitialBeaconKind, Coin)>,
    /// Its fee rate.
    pub fee_rate: FeeRate,
}

/// Writes the member's own announcement of its update, if configured, and if the update does not depend on a cohort.
pub(super) async fn fall_back(
    config: &JoinConfig,
    policy: &MemberPolicy,
    storage: &Storage,
    printer: &Printer,
) -> Result<(), ProgramError> {
    let Some(fallback) = &config.singleton_fallback else { return Ok(()) };
    let Some(update) = policy.alone().await? else {
        printer.warn("nothing to announce alone: only an update of --update does not depend on a cohort");
        return Ok(());
    };
    let did = config.identity.did();
    let prepared = match &fallback.coin {
        Some((kind, coin)) => {
            let beacon = InitialBeacon::of(did, *kind).ok_or_else(|| FallbackError::External(did.clone()))?;
            let announcement =
                SingletonAnnouncement::new(beacon, *coin, &update, fallback.fee_rate, &Change::Beacon)
                    .map_err(FallbackError::from)?;
            let key = config.identity.secret_key();
            let signed = Some(singleton::sign(&announcement, key, &mut ChaCha20Rng::from_os_rng())?);
            Some(Prepared { announcement, signed })
        }
        None => None,
    };
    // Before the announcement is written: it may be sent from then on.
    storage.prepare(&update).await?;
    policy.is_prepared(&update);
    let directory = &fallback.directory;
    let written = singleton::write_fallback(directory, did, &update, prepared.as_ref());
    let files = written.map_err(|error| ProgramError::Io { what: directory.display().to_string(), error })?;
    printer.announced_alone(&files);
    Ok(())
}
