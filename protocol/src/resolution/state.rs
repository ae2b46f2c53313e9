//! The loop over versions (rule C4, step 3c): which update is next, and what it does.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bitcoin::Address;
use serde_json::Value;

use super::{
    data::Announced,
    error::ResolutionError,
    history::{Event, Step},
    options::Version,
    result::{DocumentMetadata, Resolved},
    signal::{Beacon, BeaconSignal, UnusableBeacon, beacons},
};
use crate::{
    did::Did,
    hash::DocumentHash,
    time::Timestamp,
    update::{self, SignedUpdate, UpdateContext, UpdateError},
};

/// An update with its signal: the specification's update tuple.
struct Tuple {
    update: SignedUpdate,
    signal: Arc<BeaconSignal>,
}

/// By version, then height; equal ones in the order in which they were found (rule R-6).
type Rank = (u64, u32, usize);

/// Where the history of documents has got to.
pub(super) struct State {
    did: Did,
    document: Value,
    version: u64,
    confirmations: u32,
    /// The median time past of the block that announces the version.
    updated: Option<u32>,
    /// The height of that block.
    height: u32,
    /// The unsigned hash of each applied update, that to version 2 first.
    applied: Vec<DocumentHash>,
    tuples: BTreeMap<Rank, Tuple>,
    found: usize,
    requested: Option<Resolved>,
    /// The addresses of the document's beacons.
    listed: BTreeSet<Address>,
    scanned: BTreeSet<Address>,
    unscanned: Vec<Beacon>,
    unusable: Vec<UnusableBeacon>,
    /// Those that were in `unusable` once: most documents list what the one before them lists.
    reported: BTreeSet<UnusableBeacon>,
    /// Whether an update needs no `invocationTarget`: for data that was recorded before rule U-4.
    #[cfg(feature = "sim")]
    pub(super) leaves_invocation_target_aside: bool,
}

/// Why the loop stands still.
pub(super) enum Pause {
    /// The document lists addresses that were not scanned.
    Scan,
    /// Nothing is left to apply.
    End(Resolved),
}

impl State {
    pub(super) fn new(did: &Did, document: Value) -> Self {
        let mut state = Self {
            did: did.clone(),
            document: Value::Null,
            version: 1,
            confirmations: 0,
            updated: None,
            height: 0,
            applied: Vec::new(),
            tuples: BTreeMap::new(),
            found: 0,
            requested: None,
            listed: BTreeSet::new(),
            scanned: BTreeSet::new(),
            unscanned: Vec::new(),
            unusable: Vec::new(),
            reported: BTreeSet::new(),
            #[cfg(feature = "sim")]
            leaves_invocation_target_aside: false,
        };
        state.set_document(document);
        state
    }

    /// Below this height no signal counts that is found now (rule R-4).
    pub(super) const fn height(&self) -> u32 {
        self.height
    }

    /// Beacons whose address was not scanned. They count as scanned from now on (rule R-3).
    pub(super) fn take_unscanned(&mut self) -> Vec<Beacon> {
        self.scanned.extend(self.unscanned.iter().map(|beacon| beacon.address.clone()));
        std::mem::take(&mut self.unscanned)
    }

    /// Beacons that cannot be scanned and were not taken before.
    pub(super) fn take_unusable(&mut self) -> Vec<UnusableBeacon> {
        std::mem::take(&mut self.unusable)
    }

    pub(super) fn push(&mut self, signal: Arc<BeaconSignal>, announced: Announced) {
        let rank = (announced.version, signal.block.height, self.found);
        self.found += 1;
        self.tuples.insert(rank, Tuple { update: announced.update, signal });
    }

    /// Applies what can be applied.
    ///
    /// # Errors
    /// The first fault, by the order of the rules.
    pub(super) fn run(&mut self, asked: &Version, history: &mut Vec<Event>) -> Result<Pause, ResolutionError> {
        loop {
            if matches!(asked, Version::Id(Some(number), _) if *number == self.version) {
                self.save();
            }
            let next = if self.is_deactivated() { None } else { self.tuples.pop_first() };
            let Some(((version, ..), Tuple { update, signal })) = next else {
                return self.end(asked, history).map(Pause::End);
            };
            let step = Step { version, update: *update.hash(), signal };
            if !self.listed.contains(&step.signal.beacon.address) {
                history.push(Event::Dropped(step));
                continue;
            }
            if version <= self.version {
                self.confirm_duplicate(&update, &step)?;
                history.push(Event::Duplicate(step));
                continue;
            }
            if asked.is_before(step.signal.block.mediantime) {
                self.save();
            }
            if version - 1 > self.version {
                let Step { version, update: hash, signal } = step;
                return Err(ResolutionError::VersionGap { signal, hash, version, newest: self.version });
            }
            self.apply(&update, &step)?;
            history.push(Event::Applied(step));
            if !self.unscanned.is_empty() {
                return Ok(Pause::Scan);
            }
        }
    }

    /// Rule R-8. An update that leads to a version below 2 is none, and got no [`Announced`].
    fn confirm_duplicate(&self, update: &SignedUpdate, step: &Step) -> Result<(), ResolutionError> {
        let known = usize::try_from(step.version - 2).ok().and_then(|index| self.applied.get(index));
        if known == Some(&unsigned_hash(update, step)?) {
            Ok(())
        } else {
            let Step { version, update: hash, signal } = step.clone();
            Err(ResolutionError::Conflict { signal, hash, version })
        }
    }

    fn apply(&mut self, update: &SignedUpdate, step: &Step) -> Result<(), ResolutionError> {
        let block = step.signal.block;
        let context = UpdateContext {
            did: &self.did,
            document: &self.document,
            version: self.version,
            block: Some(block.times()),
        };
        let document = self.verify(update, &context).map_err(|error| invalid(step, error))?;
        self.applied.push(unsigned_hash(update, step)?);
        (self.version, self.confirmations, self.height) = (step.version, block.confirmations, block.height);
        self.updated = Some(block.mediantime);
        self.set_document(document);
        Ok(())
    }

    fn verify(&self, update: &SignedUpdate, context: &UpdateContext<'_>) -> Result<Value, UpdateError> {
        #[cfg(feature = "sim")]
        if self.leaves_invocation_target_aside {
            return update::verify_recorded(update, context);
        }
        update::verify_announced(update, context)
    }

    fn set_document(&mut self, document: Value) {
        self.document = document;
        (self.listed, self.unscanned) = (BTreeSet::new(), Vec::new());
        for beacon in beacons(&self.document, self.did.network()) {
            match beacon {
                Ok(beacon) => {
                    self.listed.insert(beacon.address.clone());
                    if !self.scanned.contains(&beacon.address) {
                        self.unscanned.push(beacon);
                    }
                }
                Err(unusable) => {
                    if self.reported.insert(unusable.clone()) {
                        self.unusable.push(unusable);
                    }
                }
            }
        }
    }

    /// Rule R-13: exactly `true`.
    fn is_deactivated(&self) -> bool {
        self.document.get("deactivated") == Some(&Value::Bool(true))
    }

    /// The version that was asked for is the first that is: a later call changes nothing.
    fn save(&mut self) {
        if self.requested.is_none() {
            self.requested = Some(Resolved { document: self.document.clone(), metadata: self.metadata() });
        }
    }

    fn metadata(&self) -> DocumentMetadata {
        DocumentMetadata {
            version_id: self.version,
            confirmations: self.confirmations,
            deactivated: self.is_deactivated(),
            updated: self.updated.map(|seconds| Timestamp::from_secs(seconds.into())),
        }
    }

    fn end(&mut self, asked: &Version, history: &mut Vec<Event>) -> Result<Resolved, ResolutionError> {
        for ((version, ..), Tuple { update, signal }) in std::mem::take(&mut self.tuples) {
            history.push(Event::NotExamined(Step { version, update: *update.hash(), signal }));
        }
        match (self.requested.take(), asked) {
            (Some(requested), _) => Ok(requested),
            (None, Version::Id(_, text)) => Err(ResolutionError::NoSuchVersion {
                asked: text.clone(),
                newest: self.version,
                deactivated: self.is_deactivated(),
            }),
            (None, _) => {
                let metadata = self.metadata();
                Ok(Resolved { document: std::mem::take(&mut self.document), metadata })
            }
        }
    }
}

fn unsigned_hash(update: &SignedUpdate, step: &Step) -> Result<DocumentHash, ResolutionError> {
    update.unsigned_hash().map_err(|error| invalid(step, error))
}

fn invalid(step: &Step, error: UpdateError) -> ResolutionError {
    let Step { version, update: hash, signal } = step.clone();
    ResolutionError::InvalidUpdate { signal, hash, version, error: Arc::new(error) }
}
