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
}

/// Bounds that make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeePolicyError {
    /// Nodes would not relay what pays the floor.
    #[error("the lowest fee rate is 1 sat/vB: nodes relay nothing below")]
    FloorTooLow,
    /// Nothing is between them.
    #[error("the highest fee rate is below the lowest")]
    CeilingBelowFloor,
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
        Ok(Self { floor, ceiling, target })
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
        Self { floor, ceiling, target: ConfirmationTarget::new(6) }
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
    fn fees_are_rounded_up_and_rates_down() {
        assert_eq!(fee_at(FeeRate::from_sat_per_kwu(251), 154), Amount::from_sat(155));
        assert_eq!(rate_of(Amount::from_sat(155), 154), FeeRate::from_sat_per_kwu(251));
        assert_eq!(fee_at(FeeRate::MAX, u64::MAX), Amount::from_sat(u64::MAX));
        assert_eq!(rate_of(Amount::from_sat(1), 0), FeeRate::from_sat_per_kwu(250));
    }
}
