//! The announcements that the service has reported: each is journaled once, however often it is repeated. What a report claims wrongly is corrected
//! by the history, not by another report.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// How many are known at once: the highest numbers. A service repeats its last one only.
const MOST: usize = 64;

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Ends(BTreeSet<u64>);

impl Ends {
    pub(super) fn knows(&self, number: u64) -> bool {
        self.0.contains(&number)
    }

    pub(super) fn report(&mut self, number: u64) {
        self.0.insert(number);
        if self.0.len() > MOST {
            self.0.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_numbers_are_known() {
        let mut ends = Ends::default();
        let most = MOST as u64;
        for number in 1..=2 * most {
            assert!(!ends.knows(number));
            ends.report(number);
            assert!(ends.knows(number));
        }
        assert_eq!(ends.0, (most + 1..=2 * most).collect());
    }
}
