//! The updates that are announced without a cohort.

use super::{ALONE, Approval, Ledger, Standing};
use crate::{
    protocol::{id::CohortId, update::SignedUpdate},
    vault::VaultContents,
};

impl Ledger {
    /// All that a state directory has of them.
    pub(crate) fn without_cohort(&self, contents: &VaultContents) {
        for update in &contents.prepared {
            if contents.was_recovered(update.hash()) { self.recovered(update) } else { self.prepared(update) }
        }
    }

    /// The update was given to the controller.
    pub(crate) fn prepared(&self, update: &SignedUpdate) {
        if let Ok(alone) = CohortId::parse(ALONE) {
            self.approved(&alone, update);
        }
    }

    /// The same, now: that it was superseded before holds no longer.
    pub(crate) fn prepares(&self, update: &SignedUpdate) {
        self.state().settled.retain(|known| !known.drops_alone(update));
        self.prepared(update);
    }

    /// `vault recover` has found it announced: no statement that it never will be can hold, `--supersede singleton` included.
    pub(super) fn recovered(&self, update: &SignedUpdate) {
        let (Some(version), Ok(cohort_id)) = (update.target_version(), CohortId::parse(ALONE)) else { return };
        let (update, standing) = (update.clone(), Standing::Announced);
        let mut state = self.state();
        state.settled.retain(|known| !known.drops_alone(&update));
        state.approvals.push(Approval { version, update, cohort_id, standing, denied: false });
    }
}
