//! Whether requests have reached members. A member that a request did not reach is not at fault for not answering it.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::did::Did;

/// Why a request is not known to have reached a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undelivered {
    /// The member has not fetched it over HTTP; or the service was restarted since, and does not know.
    NotFetched,
    /// No carrier accepted it. The carrier and its reason, as text.
    NotCarried(String),
}

/// The members that did not answer because, as far as is known, the request did not reach them. They are not at fault.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreached {
    /// The members to which no carrier delivered it. They are invited again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_carried: Vec<Did>,
    /// The members that did not fetch it over HTTP. They are not invited again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_fetched: Vec<Did>,
    /// The carrier that did not accept it, and its reason, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
}

impl Unreached {
    /// Splits the members that did not answer into those that were reached and those that were not.
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

    /// Whether every member was reached.
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
