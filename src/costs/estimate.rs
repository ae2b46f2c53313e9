//! What a cohort would cost, before there is one.

use serde::Serialize;

use crate::{
    cost::WalletKind,
    protocol::{
        cohort::standing::{Mode, StandingBeacon, StandingTerms, announcement_vsize, refresh_vsize},
        network::Network,
    },
};

/// A cohort, and what happens in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// The seats.
    pub seats: u16,
    /// k, of a cohort that goes on without absent seats.
    pub threshold: Option<u16>,
    /// The DIDs of each seat.
    pub dids: u64,
    /// The announcements.
    pub announcements: u64,
    /// The updates in all of them, each once.
    pub updates: u64,
    /// The DIDs that list the beacon by a Singleton transaction first.
    pub registrations: u64,
    /// The announcements that are signed by fallback, since a seat was absent or has refused.
    pub fallbacks: u64,
    /// Further announcements that only repeat updates.
    pub repeats: u64,
    /// The transactions that join two coins.
    pub refreshes: u64,
    /// What the operator's output of each announcement holds, in satoshi; none without one.
    pub operator_output: Option<u64>,
    /// The announcements that a child bumps.
    pub bumps: u64,
    /// In sat/vB, of all transactions.
    pub fee_rate: f64,
    /// What the wallets of members, and of the operator, spend.
    pub wallet: WalletKind,
}

/// What a plan costs. Sizes are in vB, amounts in satoshi.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Estimate {
    /// An announcement by key path.
    pub by_key_vsize: u64,
    /// One by fallback; none in a cohort that waits for every seat.
    pub by_fallback_vsize: Option<u64>,
    /// A Singleton transaction.
    pub singleton_vsize: u64,
    /// A child: it pays at least for itself.
    pub child_vsize: u64,
    /// All announcements, repeats and refreshes.
    pub announcements_vsize: u64,
    /// All children.
    pub children_vsize: u64,
    /// All registrations.
    pub registrations_vsize: u64,
    /// The Singleton transactions of all updates.
    pub singletons_vsize: u64,
    /// What the cohort pays: announcements, children and registrations.
    pub paid: u64,
    /// What Singleton transactions would pay.
    pub singletons: u64,
    /// The difference; negative if the cohort is dearer.
    pub saved: i64,
    /// What goes to the operator's outputs in all. It is not in what is paid.
    pub operator_outputs: u64,
    /// From how many updates of a DID on the cohort is cheaper, if every DID has as many; none if it never is.
    pub cheaper_from_updates_per_did: Option<u64>,
}

impl Plan {
    /// What is wrong with the plan, in words.
    ///
    /// # Errors
    /// That.
    pub fn check(&self) -> Result<(), String> {
        if self.seats == 0 || self.dids == 0 {
            return Err("at least one seat and one DID expected".to_owned());
        }
        if self.threshold.is_some_and(|k| k == 0 || k >= self.seats || usize::from(self.seats) > 999) {
            return Err("a threshold below the number of seats expected, which is at most 999 then".to_owned());
        }
        if self.fallbacks > 0 && self.threshold.is_none() {
            return Err("announcements by fallback need a threshold".to_owned());
        }
        if self.fallbacks > self.announcements.saturating_add(self.repeats) {
            return Err("more announcements by fallback than announcements".to_owned());
        }
        if self.bumps > 0 && self.operator_output.is_none() {
            return Err("a bump spends an operator's output".to_owned());
        }
        if self.registrations > self.dids.saturating_mul(u64::from(self.seats)) {
            return Err("more registrations than DIDs".to_owned());
        }
        if !self.fee_rate.is_finite() || self.fee_rate <= 0.0 {
            return Err("a fee rate above 0 expected".to_owned());
        }
        Ok(())
    }

    /// What it costs.
    pub fn estimate(&self) -> Estimate {
        let mut terms = StandingTerms::new(StandingBeacon::Cas, Network::Bitcoin, self.seats, self.seats);
        if let Some(threshold) = self.threshold {
            terms = terms.proceeding(threshold);
        }
        let seats = usize::from(self.seats);
        let output = if self.operator_output.is_some() { self.wallet.output_vsize() } else { 0 };
        let size = |mode| announcement_vsize(&terms, seats, mode) + output;
        let (by_key, by_fallback) = (size(Mode::Key), self.threshold.map(|_| size(Mode::Fallback)));
        let singleton = self.wallet.singleton_vsize();
        let announcements = self.announcements.saturating_add(self.repeats);
        let fallbacks = self.fallbacks.min(announcements);
        let refresh = refresh_vsize(&terms, seats, 2, Mode::Key) + output;
        let times = u64::saturating_mul;
        let announcements_vsize = times(by_key, announcements - fallbacks)
            .saturating_add(times(by_fallback.unwrap_or(by_key), fallbacks))
            .saturating_add(times(refresh, self.refreshes));
        let children_vsize = times(self.wallet.child_vsize(), self.bumps);
        let registrations_vsize = times(singleton, self.registrations);
        let singletons_vsize = times(singleton, self.updates);
        let sat = |vsize: u64| (vsize as f64 * self.fee_rate).ceil() as u64;
        let fixed = announcements_vsize.saturating_add(children_vsize).saturating_add(registrations_vsize);
        let (paid, singletons) = (sat(fixed), sat(singletons_vsize));
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let all_dids = times(self.dids, u64::from(self.seats));
        let per_did = times(singleton, all_dids);
        Estimate {
            by_key_vsize: by_key,
            by_fallback_vsize: by_fallback,
            singleton_vsize: singleton,
            child_vsize: self.wallet.child_vsize(),
            announcements_vsize,
            children_vsize,
            registrations_vsize,
            singletons_vsize,
            paid,
            singletons,
            saved: signed(singletons) - signed(paid),
            operator_outputs: times(self.operator_output.unwrap_or(0), announcements + self.refreshes),
            // The first number of updates of all DIDs whose Singleton transactions are larger.
            cheaper_from_updates_per_did: fixed.checked_div(per_did).map(|times| times + 1),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            seats: 15,
            threshold: Some(10),
            dids: 1,
            announcements: 12,
            updates: 60,
            registrations: 0,
            fallbacks: 0,
            repeats: 0,
            refreshes: 0,
            operator_output: None,
            bumps: 0,
            fee_rate: 1.0,
            wallet: WalletKind::P2tr,
        }
    }

    #[test]
    fn an_estimate_counts_what_a_cohort_costs_beside() {
        let cheap = plan().estimate();
        assert_eq!((cheap.by_key_vsize, cheap.by_fallback_vsize, cheap.singleton_vsize), (154, Some(439), 154));
        assert_eq!((cheap.paid, cheap.singletons, cheap.saved), (12 * 154, 60 * 154, 48 * 154));
        assert_eq!(cheap.cheaper_from_updates_per_did, Some(1));
        // Every DID has listed the beacon first, one third goes by fallback, two are bumped, and one is repeated.
        let dear = Plan {
            updates: 12,
            registrations: 15,
            fallbacks: 4,
            repeats: 1,
            operator_output: Some(1_000),
            bumps: 2,
            ..plan()
        };
        let dear = dear.estimate();
        assert_eq!((dear.by_key_vsize, dear.by_fallback_vsize), (154 + 43, Some(439 + 43)));
        let fees = 9 * 197 + 4 * 482 + 2 * dear.child_vsize + 15 * 154;
        assert_eq!((dear.paid, dear.singletons), (fees, 12 * 154));
        assert!(dear.saved < 0, "{dear:?}");
        assert_eq!(dear.operator_outputs, 13_000);
        assert_eq!(dear.cheaper_from_updates_per_did, Some(fees / (15 * 154) + 1));
    }

    #[test]
    fn impossible_plans_are_refused() {
        for wrong in [
            Plan { seats: 0, ..plan() },
            Plan { threshold: Some(15), ..plan() },
            Plan { threshold: None, fallbacks: 1, ..plan() },
            Plan { fallbacks: 13, ..plan() },
            Plan { bumps: 1, ..plan() },
            Plan { registrations: 16, ..plan() },
            Plan { fee_rate: 0.0, ..plan() },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
        plan().check().unwrap();
    }
}
