//! What a transaction pays: an estimate that nobody has to believe, held between a floor and a ceiling.
//!
//! A beacon transaction is sized for the path that it most likely takes, the key path, and pays at least the relay minimum
//! should it be the fallback: its outputs cannot change any more once it is known which one it is, and the fallback witness of
//! a large cohort is so much larger that to pay the full rate for it would burn money in almost every cohort. (That is what
//! [`build_beacon_transaction`](crate::protocol::output::build_beacon_transaction) does.) When it does end on the fallback
//! path, the difference is paid by a child of the change output, which only the operator signs: see [`Bump`](super::change::Bump).

use ::bitcoin::{Amount, FeeRate};

use super::chain::ConfirmationTarget;

/// What an operator is willing to pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeePolicy {
    floor: FeeRate,
    ceiling: FeeRate,
    target: ConfirmationTarget,
    /// What is paid at first, whatever the chain estimates.
    first: Option<FeeRate>,
}

/// Bounds that make no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FeePolicyError {
    /// Nodes would not relay what pays the floor.
    #[error("the lowest fee rate is 1 sat/vB: nodes relay nothing below")]
    FloorTooLow,
    /// Nothing is between them.
    #[error("the highest fee rate is below the lowest")]
    CeilingBelowFloor,
    /// The rate to begin with is not between them.
    #[error("the fee rate of {first} sat/vB is not between the lowest, {floor}, and the highest, {ceiling}")]
    OutOfBounds {
        /// The rate, in sat/vB.
        first: f64,
        /// The least.
        floor: f64,
        /// The most.
        ceiling: f64,
    },
    /// Nodes would not relay what pays the ceiling.
    #[error(
        "the highest fee rate is {ceiling} sat/vB, and the node takes nothing below {minimum} now (the larger of \
         mempoolminfee and minrelaytxfee): allow more, or wait"
    )]
    CeilingBelowMinimum {
        /// The most, in sat/vB.
        ceiling: f64,
        /// What the node asks for.
        minimum: f64,
    },
}

impl FeePolicy {
    /// Pays what confirms within `target`, but not less than `floor` nor more than `ceiling`.
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

    /// Pays `first` at first, whatever the chain estimates. Bumps go on from there.
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

    /// The same policy over a node that takes nothing below `minimum`.
    ///
    /// # Errors
    /// [`FeePolicyError::CeilingBelowMinimum`] when it takes nothing that this policy would pay.
    pub fn above(self, minimum: Option<FeeRate>) -> Result<Self, FeePolicyError> {
        let minimum = minimum.unwrap_or(self.floor);
        if minimum > self.ceiling {
            let (ceiling, minimum) = (sat_per_vb(self.ceiling), sat_per_vb(minimum));
            return Err(FeePolicyError::CeilingBelowMinimum { ceiling, minimum });
        }
        Ok(Self { floor: self.floor.max(minimum), ..self })
    }

    /// The rate to begin with.
    pub fn first(&self, estimate: Option<FeeRate>) -> FeeRate {
        self.hold(self.first.or(estimate))
    }

    /// The rate to pay. Without an estimate that is the floor: what is too cheap can be bumped, what was too dear is gone.
    pub fn hold(&self, estimate: Option<FeeRate>) -> FeeRate {
        estimate.unwrap_or(self.floor).clamp(self.floor, self.ceiling)
    }

    /// Within how many blocks a transaction should be confirmed.
    pub fn target(&self) -> ConfirmationTarget {
        self.target
    }

    /// The least to pay.
    pub fn floor(&self) -> FeeRate {
        self.floor
    }

    /// The most to pay.
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

/// What `vsize` vB cost at `rate`, rounded up; saturates.
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
    // Exact for any rate that could be paid: below 2^53 sat/kwu.
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
