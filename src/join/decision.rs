//! Which update a member submits in a cohort, if any.
//!
//! It announces only what resolvers will find: an update of the current document, at a beacon that this document lists. With
//! a chain, the current document is resolved when the cohort asks for the update, and not before: days may pass from joining
//! to then. Without one it is the document that the member believes to be current.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::ledger::{Ledger, NextUpdate, Wanted, of};
use crate::{
    controller::{Current, CurrentError, Keys, NotAuthorized, Place, Resolving, places, places::Listing},
    protocol::{
        did::Did,
        document::{self, Concern},
        id::CohortId,
        identity::Identity,
        patch::Patch,
        time::Timestamp,
        update::{
            SignedUpdate, Submission, UpdateContext, UpdateError, add_beacon_service_patch, build_update,
            refuse_expiring, sign_update, verify_update,
        },
    },
};

/// The document that an update starts from, if it is not the initial one, and its version.
pub type Source = Option<(Value, u64)>;

/// What a member announces.
#[derive(Clone, Debug)]
pub enum Intent {
    /// A patch to its current document.
    Update {
        /// The JSON Patch (RFC 6902).
        patch: Value,
        /// The document that it starts from, where no chain shows it.
        source: Source,
    },
    /// An update that is signed already.
    Signed {
        /// The update.
        update: SignedUpdate,
        /// The document that it starts from, where no chain shows it.
        source: Source,
    },
    /// The cohort's beacon, added to its current document.
    AddBeacon {
        /// The document that it starts from, where no chain shows it.
        source: Source,
    },
    /// No update.
    Decline,
}

impl Intent {
    fn source(&self) -> Option<&(Value, u64)> {
        match self {
            Self::Update { source, .. } | Self::Signed { source, .. } | Self::AddBeacon { source } => {
                source.as_ref()
            }
            Self::Decline => None,
        }
    }

    /// What it announces in any cohort.
    fn wanted(&self) -> Option<Wanted<'_>> {
        match self {
            Self::Update { patch, .. } => Some(Wanted::Patch(patch)),
            Self::Signed { update, .. } => Some(Wanted::Update(update)),
            Self::AddBeacon { .. } | Self::Decline => None,
        }
    }
}

/// How a member makes its update.
#[derive(Clone)]
pub struct Making {
    /// The keys of the controller.
    pub keys: Arc<Keys>,
    /// What resolves the current document. Without it the member only believes to know it.
    pub resolving: Option<Arc<Resolving>>,
    /// Whether an update may be announced where no resolver looks.
    pub allow_unlisted: bool,
    /// Whether an update may have effects that its controller may not intend.
    pub allow_risky: bool,
    /// How long the current document may take when a cohort asks for the update.
    pub patience: Duration,
    /// The pause before a chain that did not answer is asked again.
    pub pause: Duration,
}

/// How often a chain that does not answer is asked, while a cohort waits for the update.
const ATTEMPTS: u32 = 3;

impl Making {
    /// With the key that `identity` began with, and no chain.
    pub fn of(identity: &Identity) -> Self {
        let (resolving, allow_unlisted, allow_risky) = (None, false, false);
        let (patience, pause) = (Duration::from_secs(1800), Duration::from_secs(30));
        Self { keys: Arc::new(Keys::of(identity)), resolving, allow_unlisted, allow_risky, patience, pause }
    }

    /// The current document, if there is a chain that shows it.
    pub(super) async fn current_once(&self) -> Result<Option<Current>, CurrentError> {
        match &self.resolving {
            Some(resolving) => resolving.current().await.map(Some),
            None => Ok(None),
        }
    }

    /// The same within the time that there is for it. A chain that does not answer is asked again.
    pub(super) async fn current(&self) -> Result<Option<Current>, CurrentError> {
        let Some(resolving) = &self.resolving else { return Ok(None) };
        let deadline = Instant::now() + self.patience;
        let mut attempts = 1..=ATTEMPTS;
        loop {
            let attempt = attempts.next();
            match timeout_at(deadline, resolving.current()).await {
                Ok(Ok(current)) => return Ok(Some(current)),
                Ok(Err(error)) if error.is_transient() && attempt.is_some_and(|attempt| attempt < ATTEMPTS) => {
                    tokio::time::sleep(self.pause).await;
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    let patience = humantime::format_duration(self.patience);
                    return Err(CurrentError::Unreadable(format!(
                        "the DID is not resolved in {patience}, half of --phase-timeout; a node with -blockfilterindex=1 \
                         reads only the blocks that matter"
                    )));
                }
            }
        }
    }
}

/// Why an update cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// No resolver would accept it.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// No key may sign it.
    #[error(transparent)]
    NotAuthorized(#[from] NotAuthorized),
}

/// The update of `did` with this patch to the document of that version, signed by the key that the document authorizes, and
/// verified by every rule of the method.
///
/// # Errors
/// [`SignError`], with what no resolver would accept.
pub fn sign(
    did: &Did,
    keys: &Keys,
    patch: Value,
    document: &Value,
    version: u64,
) -> Result<SignedUpdate, SignError> {
    let unsigned = build_update(document, version, patch)?;
    let (method, key) = keys.signer(document, version)?;
    Ok(sign_update(&unsigned, did, &method, key, &mut same_bytes_again())?)
}

/// Deterministic randomness for signatures on updates: signing the same update again gives the same hash, so that the
/// update in a cohort and the update that is announced alone after a failure are one document. BIP-340 is safe with any
/// auxiliary randomness, including none.
fn same_bytes_again() -> ChaCha20Rng {
    ChaCha20Rng::from_seed([0; 32])
}

/// A cohort's beacon.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beacon<'a> {
    pub(super) cohort_id: &'a CohortId,
    pub(super) beacon_type: &'a str,
    pub(super) address: &'a str,
}

/// An update to submit.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) submission: Submission,
    /// The version to which it leads.
    pub(super) version: u64,
    /// Whether a resolution has shown the document that it starts from.
    pub(super) is_resolved: bool,
    /// Whether resolvers read the cohort's beacon.
    pub(super) is_listed: bool,
}

/// Why no update is submitted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoUpdate {
    /// There is nothing to announce, or not now.
    Idle(String),
    /// The update is held back, and the controller has to act.
    Withheld(String),
}

/// What the member knows when it decides.
pub(super) struct Decision<'a> {
    pub(super) did: &'a Did,
    pub(super) intent: &'a Intent,
    pub(super) making: &'a Making,
    pub(super) ledger: &'a Ledger,
    /// The document and version that the last resolution has shown.
    pub(super) resolved: Option<(Value, u64)>,
}

impl Decision<'_> {
    /// The document that the update starts from, if it is known otherwise than by the ledger.
    fn source(&self) -> Option<&(Value, u64)> {
        self.resolved.as_ref().or(self.intent.source())
    }

    fn next(&self, wanted: Wanted<'_>) -> NextUpdate {
        self.ledger.next_update(wanted, self.source())
    }

    /// What is to be done with the update, if it does not depend on a cohort.
    pub(super) fn next_update(&self) -> Option<NextUpdate> {
        self.intent.wanted().map(|wanted| self.next(wanted))
    }

    /// The update that starts from that document.
    ///
    /// # Errors
    /// Why no resolver would accept it, in words.
    pub(super) fn made(&self, document: &Value, version: u64) -> Result<Option<SignedUpdate>, String> {
        match self.intent {
            Intent::Update { patch, .. } => sign(self.did, &self.making.keys, patch.clone(), document, version)
                .map(Some)
                .map_err(|e| e.to_string()),
            Intent::Signed { update, .. } => self.verified(update, document, version).map(|_| Some(update.clone())),
            Intent::AddBeacon { .. } | Intent::Decline => Ok(None),
        }
    }

    /// The document to which an update leads that is signed already.
    ///
    /// # Errors
    /// Why no resolver would accept it, in words.
    pub(super) fn verified(&self, update: &SignedUpdate, document: &Value, version: u64) -> Result<Value, String> {
        let context = UpdateContext { did: self.did, document, version, block: None };
        verify_update(update, &context).map_err(|error| {
            let hint = match error {
                UpdateError::Version { .. } | UpdateError::SourceHash => {
                    "; it was made for another document: prepare it again with `update DID`"
                }
                _ => "",
            };
            let of = if self.resolved.is_some() { "" } else { ", as far as is known without a chain" };
            format!("{error}; the current document has version {version}{of}{hint}")
        })
    }

    /// Effects on `document` that the controller may not intend.
    pub(super) fn risks(&self, document: &Value) -> Vec<String> {
        let patch = match self.intent {
            Intent::Update { patch, .. } => patch,
            Intent::Signed { update, .. } => &update.value()["patch"],
            Intent::AddBeacon { .. } | Intent::Decline => return Vec::new(),
        };
        // A patch that does not apply is refused for that reason.
        match Patch::from_value(patch).and_then(|patch| patch.apply(document)) {
            Ok(after) => document::concerns(document, &after).iter().map(Concern::to_string).collect(),
            Err(_) => Vec::new(),
        }
    }

    /// Effects that the controller may not intend: of the update on the document, or of the document that it starts from.
    pub(super) fn all_risks(&self) -> Vec<String> {
        let given = self.source().filter(|_| self.resolved.is_none());
        let mut risks: Vec<_> =
            given.and_then(|(document, version)| self.ledger.doubts(document, *version)).into_iter().collect();
        if let Some(NextUpdate::Next { document, .. }) = self.next_update() {
            risks.extend(self.risks(&document));
        }
        risks
    }

    /// What to submit in the cohort of `beacon`.
    pub(super) fn choose(&self, beacon: Beacon<'_>, now: Timestamp) -> Result<Chosen, NoUpdate> {
        let added = add_beacon_service_patch(self.did, beacon.beacon_type, beacon.address);
        let wanted = match self.intent {
            Intent::Decline => return Err(NoUpdate::Idle("as requested".to_owned())),
            Intent::AddBeacon { .. } => Wanted::Patch(&added),
            intent => intent.wanted().unwrap_or(Wanted::Patch(&added)),
        };
        let (made, document, version) = match self.next(wanted) {
            NextUpdate::Done { cohort_id, version } => {
                return Err(NoUpdate::Idle(format!("version {version} is announced {}", of(&cohort_id))));
            }
            NextUpdate::Waiting { cohort_id } => {
                return Err(NoUpdate::Idle(format!("it is signed {}, and not confirmed yet", of(&cohort_id))));
            }
            NextUpdate::Blocked(reason) => return Err(NoUpdate::Withheld(reason)),
            NextUpdate::Again { update, document, version } => (Some(update), document, version),
            NextUpdate::Next { document, version } => (None, document, version),
        };
        let is_listed = self.check_place(beacon, &document, version)?;
        let update = match (made, self.intent) {
            (Some(update), _) => {
                self.verified(&update, &document, version).map_err(NoUpdate::Withheld)?;
                update
            }
            (None, Intent::AddBeacon { .. }) => {
                let signed = sign(self.did, &self.making.keys, added.clone(), &document, version);
                signed.map_err(|error| NoUpdate::Withheld(error.to_string()))?
            }
            (None, _) => {
                let made = self.made(&document, version).map_err(NoUpdate::Withheld)?;
                made.ok_or_else(|| NoUpdate::Idle("as requested".to_owned()))?
            }
        };
        refuse_expiring(&update, now).map_err(|error| NoUpdate::Withheld(error.to_string()))?;
        let risks = self.risks(&document);
        if !self.making.allow_risky && !risks.is_empty() {
            let risks = risks.join("; ");
            return Err(NoUpdate::Withheld(format!("{risks}; --allow-risky-update if that is intended")));
        }
        // The initial document is known to everyone who knows the DID.
        let source = (self.source().is_some() || version > 1).then(|| (Arc::new(document), version));
        let (submission, is_resolved) = (Submission { update, source }, self.resolved.is_some());
        Ok(Chosen { submission, version: version.saturating_add(1), is_resolved, is_listed })
    }

    /// Whether resolvers that start from `document` read the cohort's beacon. Refused if they do not, unless that is allowed:
    /// an announcement of the beacon's own address, by a member without a chain, is a demonstration.
    fn check_place(&self, beacon: Beacon<'_>, document: &Value, version: u64) -> Result<bool, NoUpdate> {
        let Beacon { cohort_id, beacon_type, address } = beacon;
        let adds = matches!(self.intent, Intent::AddBeacon { .. });
        let place = Place::of(document, self.did.network(), beacon_type, address);
        if adds && place != Place::NotListed {
            return Err(NoUpdate::Withheld(format!(
                "the current document (version {version}) lists {address} already"
            )));
        }
        let problem = match place {
            Place::Listed => return Ok(true),
            _ if self.making.allow_unlisted => return Ok(false),
            Place::NotListed if adds && self.resolved.is_none() => return Ok(false),
            Place::OtherType(kind) => format!(
                "{address}, the address of this cohort, is a {kind} of the current document (version {version}), and the cohort \
                 announces as a {beacon_type}: resolvers would misread its signals"
            ),
            Place::NotListed => format!(
                "{address}, the address of this cohort, is not a {beacon_type} of the current document (version {version}): \
                 resolvers do not look there, and would not find the update"
            ),
        };
        let beacons = places::of_cohorts(document, self.did);
        let listed = match beacons.is_empty() {
            true => "It lists no beacon of a cohort".to_owned(),
            false => format!("Its beacons of cohorts: {}", Listing(&beacons)),
        };
        Err(NoUpdate::Withheld(format!(
            "{problem}. {listed}. To have this one listed: `beacon adopt {cohort_id}`. To announce the update without a cohort: \
             `singleton`. --allow-unlisted-beacon submits it all the same"
        )))
    }
}

/// The last document that a resolution has shown, and its version.
#[derive(Default)]
pub(super) struct LastResolved(Mutex<Option<(Value, u64)>>);

impl LastResolved {
    fn lock(&self) -> MutexGuard<'_, Option<(Value, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self) -> Option<(Value, u64)> {
        self.lock().clone()
    }

    /// Applies what a resolution shows to the ledger. Returns what the controller should know.
    pub(super) fn renew(&self, current: &Current, making: &Making, ledger: &Ledger) -> Vec<String> {
        let unsigned = |hash: &_| making.resolving.as_ref().and_then(|resolving| resolving.unsigned_hash(hash));
        let mut warnings = current.warnings.clone();
        warnings.extend(ledger.resolved(current, unsigned, making.allow_unlisted));
        if making.allow_risky {
            warnings.extend(ledger.risk());
        }
        *self.lock() = Some((current.document.clone(), current.version));
        warnings
    }
}

#[cfg(test)]
mod tests;
