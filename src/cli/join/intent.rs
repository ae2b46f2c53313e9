//! What the member is to announce, as far as it can be checked before it starts.

use std::path::Path;

use serde_json::Value;

use super::super::refuse_risky;
use crate::{
    controller::{Keys, UpdateFile},
    error::ProgramError,
    inputs,
    join::{Intent, policy},
    protocol::{
        document,
        identity::Identity,
        patch::Patch,
        update::{UpdateContext, verify_update},
    },
    resolve::Given,
};

/// What the settings say about an update.
pub(super) struct Facts<'a> {
    pub(super) identity: &'a Identity,
    pub(super) keys: &'a Keys,
    pub(super) has_chain: bool,
    pub(super) has_state: bool,
    pub(super) allow_unlisted: bool,
    pub(super) allow_risky: bool,
}

impl Facts<'_> {
    /// The update in a file. Its Sidecar Data are added to those that are given.
    pub(super) fn update(
        &self,
        path: &Path,
        source: policy::Source,
        given: &mut Given,
    ) -> Result<Intent, ProgramError> {
        let problem = |problem: String| ProgramError::Usage(format!("{}: {problem}", path.display()));
        let (intent, has_source) = match UpdateFile::from_value(read_json(path)?).map_err(problem)? {
            UpdateFile::Patch(patch) => (Intent::Update { patch, source: source.clone() }, source.is_some()),
            UpdateFile::Signed { update, source: own, sidecar } => {
                if let Some(sidecar) = sidecar {
                    given.add(sidecar, &path.display().to_string()).map_err(|error| problem(error.to_string()))?;
                }
                let version = update.target_version().map(|target| target.saturating_sub(1));
                let source = source.or_else(|| own.zip(version));
                let has_source = source.is_some();
                (Intent::Signed { update, source }, has_source)
            }
        };
        // With a vault or a chain, the document that it is for is known later, and it is tried then.
        if !self.has_chain && (!self.has_state || has_source) {
            self.check(&intent, path)?;
        }
        Ok(intent)
    }

    /// The beacon of the cohort.
    pub(super) fn beacon(&self, source: policy::Source) -> Result<Intent, ProgramError> {
        if self.has_chain && !self.allow_unlisted {
            return Err(ProgramError::Usage(
                "--add-beacon announces a beacon at the very address that it adds, where no resolver looks yet: with --chain \
                 it needs --allow-unlisted-beacon. To have the address listed: `update DID add-beacon ADDRESS --announce-by \
                 singleton`, or begin a DID with it (`identity new --external --beacon ADDRESS`)"
                    .to_owned(),
            ));
        }
        Ok(Intent::AddBeacon { source })
    }

    /// Refuses an update that no resolver would accept, or whose effect the controller may not mean, where the document that it
    /// starts from is known already.
    fn check(&self, intent: &Intent, path: &Path) -> Result<(), ProgramError> {
        let Self { identity, keys, .. } = self;
        let did = identity.did();
        let problem = |error: &dyn std::fmt::Display| ProgramError::Usage(format!("{}: {error}", path.display()));
        // The constructors of an identity have validated this document.
        let initial = || (identity.initial_document().unwrap_or(Value::Null), 1);
        let (before, patch) = match intent {
            Intent::Update { patch, source } => {
                let (document, version) = source.clone().unwrap_or_else(initial);
                policy::sign(did, keys, patch.clone(), &document, version).map_err(|error| problem(&error))?;
                (document, patch)
            }
            Intent::Signed { update, source } => {
                let (document, version) = source.clone().unwrap_or_else(initial);
                let context = UpdateContext { did, document: &document, version, block: None };
                verify_update(update, &context).map_err(|error| problem(&error))?;
                (document, &update.value()["patch"])
            }
            Intent::AddBeacon { .. } | Intent::Decline => return Ok(()),
        };
        // What does not apply was refused before.
        let after = Patch::from_value(patch).and_then(|patch| patch.apply(&before));
        let concerns = after.map(|after| document::concerns(&before, &after)).unwrap_or_default();
        refuse_risky(&concerns, path, self.allow_risky)
    }
}

/// The JSON of a file that a setting names.
pub(super) fn read_json(path: &Path) -> Result<Value, ProgramError> {
    inputs::json(path).map_err(|error| ProgramError::Usage(error.to_string()))
}
