//! Fees: an untrusted estimate, bounded by a floor and a ceiling.
//!
//! A beacon transaction is sized for its most likely path, the key path, and pays at least the relay minimum on the
//! fallback path. Its outputs cannot change once the path is known. The fallback witness of a large cohort is so much
//! larger that paying the full rate for it would waste money in almost every cohort.
//! ([`build_beacon_transaction`](crate::output::build_beacon_transaction) does this.) If the transaction ends
//! on the fallback path, a child of the change output pays the difference, which only the operator signs: see
//! [`Bump`](super::change::Bump).

use bitcoin::{Amount, FeeRate};

use crate::chain::ConfirmationTarget;

/// The fee rates that an operator accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeePolicy {
    floor: FeeRate,
    ceiling: FeeRate,
    target: ConfirmationTarget,
    /// The first fee rate, whatever the chain estimates.
    first: Option<FeeRate>,
}

/// The bounds are not valid.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FeePolicyError {
    /// The floor is below the relay minimum.
    #[error("the lowest fee rate is 1 sat/vB: nodes relay nothing below")]
    FloorTooLow,
    /// The ceiling is below the floor.
    #[error("the highest fee rate is below the lowest")]
    CeilingBelowFloor,
    /// The first rate is not within the bounds.
    #[error("the fee rate of {first} sat/vB is not between the lowest, {floor}, and the highest, {ceiling}")]
    OutOfBounds {
        /// The rate, in sat/vB.
        first: f64,
        /// The floor.
        floor: f64,
        /// The ceiling.
        ceiling: f64,
    },
    /// The ceiling is below what the node requires.
    #[error(
        "the highest fee rate is {ceiling} sat/vB, and the node takes nothing below {minimum} now (the larger of \
         mempoolminfee and minrelaytxfee): allow more, or wait"
    )]
    CeilingBelowMinimum {
        /// The ceiling, in sat/vB.
        ceiling: f64,
        /// The node's minimum.
        minimum: f64,
    },
}

impl FeePolicy {
    /// Pays the estimate for `target`, but not less than `floor` and not more than `ceiling`.
    ///
    /// # Errors
    /// [`FeePolicyError`].
    pub fn new(floor: FeeRate, ceiling: FeeRate, target: ConfirmationTarget) -> Result<Self, FeePolicyError> {
        if floor < FeeRate::BROADCAST_MIN {
            return Err(FeePolicyError::FloorTooLow);
        }
        if ceiling < floor {
            return Err(FeePolicyError::CeilingBelowFloor);
        }
        Ok(Self { floor, ceiling, target, first: None })
    }

    /// Starts at the rate `first`, whatever the chain estimates. Bumps continue from there.
    ///
    /// # Errors
    /// [`FeePolicyError::OutOfBounds`].
    pub fn starting_at(self, first: FeeRate) -> Result<Self, FeePolicyError> {
        if first < self.floor || first > self.ceiling {
            let [first, floor, ceiling] = [first, self.floor, self.ceiling].map(sat_per_vb);
            return Err(FeePolicyError::OutOfBounds { first, floor, ceiling });
        }
        Ok(Self { first: Some(first), ..self })
    }

    /// The same policy for a node that accepts no transaction below `minimum`.
    ///
    /// # Errors
    /// [`FeePolicyError::CeilingBelowMinimum`] if the whole range is below the minimum.
    pub fn above(self, minimum: Option<FeeRate>) -> Result<Self, FeePolicyError> {
        let minimum = minimum.unwrap_or(self.floor);
        if minimum > self.ceiling {
            let (ceiling, minimum) = (sat_per_vb(self.ceiling), sat_per_vb(minimum));
            return Err(FeePolicyError::CeilingBelowMinimum { ceiling, minimum });
        }
        Ok(Self { floor: self.floor.max(minimum), ..self })
    }

    /// The first rate.
    pub fn first(&self, estimate: Option<FeeRate>) -> FeeRate {
        self.hold(self.first.or(estimate))
    }

    /// The rate to pay. Without an estimate it is the floor: too low a fee can be bumped, too high a fee is lost.
    pub fn hold(&self, estimate: Option<FeeRate>) -> FeeRate {
        estimate.unwrap_or(self.floor).clamp(self.floor, self.ceiling)
    }

    /// The number of blocks within which a transaction should be confirmed.
    pub fn target(&self) -> ConfirmationTarget {
        self.target
    }

    /// The lowest rate.
    pub fn floor(&self) -> FeeRate {
        self.floor
    }

    /// The highest rate.
    pub fn ceiling(&self) -> FeeRate {
        self.ceiling
    }
}

impl Default for FeePolicy {
    /// 1 to 100 sat/vB, within 6 blocks.
    fn default() -> Self {
        let (floor, ceiling) = (FeeRate::BROADCAST_MIN, FeeRate::from_sat_per_vb_u32(100));
        Self { floor, ceiling, target: ConfirmationTarget::new(6), first: None }
    }
}

/// The fee of `vsize` vB at `rate`, rounded up; saturates.
pub fn fee_at(rate: FeeRate, vsize: u64) -> Amount {
    let sat = (u128::from(rate.to_sat_per_kwu()) * u128::from(vsize)).saturating_mul(4).div_ceil(1000);
    Amount::from_sat(u64::try_from(sat).unwrap_or(u64::MAX))
}

/// The rate at which `fee` pays for `vsize` vB, rounded down.
pub fn rate_of(fee: Amount, vsize: u64) -> FeeRate {
    let rate = u128::from(fee.to_sat()) * 250 / u128::from(vsize.max(1));
    FeeRate::from_sat_per_kwu(u64::try_from(rate).unwrap_or(u64::MAX))
}

/// A rate in sat/vB, as people write it: up to three digits after the point.
pub fn sat_per_vb(rate: FeeRate) -> f64 {
    // Exact for any rate that can be paid: below 2^53 sat/kwu.
    rate.to_sat_per_kwu() as f64 / 250.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(sat_per_vb: u32) -> FeeRate {
        FeeRate::from_sat_per_vb_u32(sat_per_vb)
    }

    #[test]
    fn an_estimate_is_held_by_floor_and_ceiling() {
        let policy = FeePolicy::new(rate(2), rate(50), ConfirmationTarget::new(6)).unwrap();
        assert_eq!(policy.hold(Some(rate(10))), rate(10));
        for lie in [FeeRate::ZERO, rate(1)] {
            assert_eq!(policy.hold(Some(lie)), rate(2));
        }
        for lie in [rate(51), FeeRate::MAX] {
            assert_eq!(policy.hold(Some(lie)), rate(50));
        }
        assert_eq!(policy.hold(None), rate(2));
    }

    #[test]
    fn bounds_are_checked() {
        let target = ConfirmationTarget::new(6);
        assert_eq!(FeePolicy::new(FeeRate::ZERO, rate(5), target), Err(FeePolicyError::FloorTooLow));
        assert_eq!(FeePolicy::new(rate(5), rate(4), target), Err(FeePolicyError::CeilingBelowFloor));
        assert!(FeePolicy::new(rate(5), rate(5), target).is_ok());
    }

    #[test]
    fn the_nodes_minimum_bounds_from_below() {
        let policy = FeePolicy::new(rate(2), rate(50), ConfirmationTarget::new(6)).unwrap();
        assert_eq!(policy.above(Some(rate(1))).unwrap().hold(None), rate(2));
        let above = policy.above(Some(rate(7))).unwrap();
        assert_eq!((above.hold(Some(rate(3))), above.first(None)), (rate(7), rate(7)));
        let error = policy.above(Some(rate(51))).unwrap_err();
        assert!(error.to_string().contains("50 sat/vB") && error.to_string().contains("51"), "{error}");
        let fixed = policy.starting_at(rate(10)).unwrap();
        assert_eq!((fixed.first(Some(rate(3))), fixed.hold(Some(rate(3)))), (rate(10), rate(3)));
        assert_eq!(fixed.above(Some(rate(20))).unwrap().first(None), rate(20));
        assert!(matches!(policy.starting_at(rate(1)), Err(FeePolicyError::OutOfBounds { .. })));
    }

    #[test]
    fn fees_are_rounded_up_and_rates_down() {
        assert_eq!(fee_at(FeeRate::from_sat_per_kwu(251), 154), Amount::from_sat(155));
        assert_eq!(rate_of(Amount::from_sat(155), 154), FeeRate::from_sat_per_kwu(251));
        assert_eq!(fee_at(FeeRate::MAX, u64::MAX), Amount::from_sat(u64::MAX));
        assert_eq!(rate_of(Amount::from_sat(1), 0), FeeRate::from_sat_per_kwu(250));
    }
}
