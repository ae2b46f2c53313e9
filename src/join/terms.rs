//! The terms that a member accepts.

use std::fmt;

use ::bitcoin::FeeRate;
use serde_json::{Value, json};

use crate::protocol::{
    beacon::BeaconType,
    cohort::conditions::Conditions,
    message::keygen::Cost,
    output::{DEFAULT_MAX_FEE_RATE, ScriptTree},
};

/// The terms that a member accepts.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The beacon type, any when absent.
    pub beacon: Option<BeaconType>,
    /// The shortest recovery timelock, in blocks. Once it has passed the operator alone can spend from the beacon.
    pub min_recovery_sequence: u16,
    /// The smallest fallback threshold: at least this many members must sign a transaction.
    pub min_fallback_threshold: u16,
    /// The highest price for joining and for announcing, each, in satoshi.
    pub max_cost: f64,
    /// The highest fee rate of the beacon transaction. The coin is the operator's; this bounds the fee that the member
    /// approves.
    pub max_fee_rate: FeeRate,
}

impl Default for Terms {
    /// Any beacon, a day's timelock, one signature, no cost, at any fee rate that blocks have ever required.
    fn default() -> Self {
        Self {
            beacon: None,
            min_recovery_sequence: 144,
            min_fallback_threshold: 1,
            max_cost: 0.0,
            max_fee_rate: DEFAULT_MAX_FEE_RATE,
        }
    }
}

impl Terms {
    /// Why a cohort's conditions are not acceptable.
    ///
    /// # Errors
    /// The first reason, in words.
    pub fn accept(&self, conditions: &Conditions) -> Result<(), String> {
        if let Some(beacon) = &self.beacon
            && *beacon != conditions.beacon_type
        {
            return Err(format!("its beacon is a {}, not a {beacon}", conditions.beacon_type));
        }
        if let ScriptTree::FallbackAndRecovery { recovery_sequence, fallback_threshold, .. } =
            &conditions.script_tree
        {
            if recovery_sequence.blocks() < self.min_recovery_sequence {
                return Err(format!(
                    "the operator could recover the coin after {} blocks, at least {} are asked for",
                    recovery_sequence.blocks(),
                    self.min_recovery_sequence
                ));
            }
            // The default threshold is all members except one, and there are at least the least number of members.
            let fewest = u16::try_from(conditions.min_participants).unwrap_or(u16::MAX);
            let threshold = fallback_threshold.unwrap_or(fewest.saturating_sub(1).max(1));
            if threshold < self.min_fallback_threshold {
                return Err(format!(
                    "{threshold} members could sign by themselves, at least {} are asked for",
                    self.min_fallback_threshold
                ));
            }
        }
        self.accept_cost("joining", conditions.cost_of_enrollment.as_ref())?;
        self.accept_cost("an announcement", conditions.cost_per_announcement.as_ref())
    }

    /// The accepted terms as an event, in the units of the flags.
    pub fn to_json(&self) -> Value {
        json!({
            "beacon": self.beacon.as_ref().map(BeaconType::as_str),
            "minRecoverySequence": self.min_recovery_sequence,
            "minFallbackThreshold": self.min_fallback_threshold,
            "maxCost": self.max_cost,
            "maxFeeRate": self.max_fee_rate.to_sat_per_vb_ceil(),
        })
    }

    fn accept_cost(&self, what: &str, cost: Option<&Cost>) -> Result<(), String> {
        let Some(cost) = cost else { return Ok(()) };
        let amount = cost.amount.as_f64().unwrap_or(f64::INFINITY);
        if amount == 0.0 || (cost.unit == "sat" && amount <= self.max_cost) {
            Ok(())
        } else {
            Err(format!("{what} costs {} {}, at most {} sat are accepted", cost.amount, cost.unit, self.max_cost))
        }
    }
}

impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let beacon = self.beacon.as_ref().map_or("any beacon", BeaconType::as_str);
        write!(
            f,
            "{beacon}, recovery by the operator after {} blocks or more, a fallback of {} or more members, joining and \
             announcing for up to {} sat, and a transaction fee of up to {} sat/vB; its change may go to any standard address",
            self.min_recovery_sequence,
            self.min_fallback_threshold,
            self.max_cost,
            self.max_fee_rate.to_sat_per_vb_ceil()
        )
    }
}
