//! Whether what members were asked has reached them: nobody is blamed for not answering what it never got.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::did::Did;

/// Why something is not known to have reached a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undelivered {
    /// The member has not fetched it over HTTP, or the service does not know: it was started since.
    NotFetched,
    /// No carrier has taken it: which one, and why, in words.
    NotCarried(String),
}

/// The members that did not answer because, as far as is known, what they were asked has not reached them. They are at no fault.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreached {
    /// Whom no carrier has brought it. They are invited again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_carried: Vec<Did>,
    /// Who has not fetched it over HTTP. They are not invited again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_fetched: Vec<Did>,
    /// Which carrier has not taken it, and why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
}

impl Unreached {
    /// Divides those who did not answer into the silent ones and those that were not reached.
    pub(crate) fn among(missing: Vec<Did>, undelivered: &BTreeMap<Did, Undelivered>) -> (Vec<Did>, Self) {
        let (mut silent, mut unreached) = (Vec::new(), Self::default());
        for did in missing {
            match undelivered.get(&did) {
                None => silent.push(did),
                Some(Undelivered::NotFetched) => unreached.not_fetched.push(did),
                Some(Undelivered::NotCarried(carrier)) => {
                    unreached.carrier.get_or_insert_with(|| carrier.clone());
                    unreached.not_carried.push(did);
                }
            }
        }
        (silent, unreached)
    }

    /// Whether everybody was reached.
    pub fn is_empty(&self) -> bool {
        self.not_carried.is_empty() && self.not_fetched.is_empty()
    }
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |dids: &[Did]| dids.iter().map(Did::as_str).collect::<Vec<_>>().join(", ");
        if !self.not_carried.is_empty() {
            write!(f, "not delivered to {}", list(&self.not_carried))?;
            if let Some(carrier) = &self.carrier {
                write!(f, ": {carrier}")?;
            }
        }
        if !self.not_fetched.is_empty() {
            let separator = if self.not_carried.is_empty() { "" } else { "; " };
            write!(f, "{separator}not fetched over HTTP by {}", list(&self.not_fetched))?;
        }
        Ok(())
    }
}
