//! An exact amount of some unit.

use std::{fmt, iter::Sum, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Number;

/// How many parts a unit has.
const PARTS: u128 = 1_000;

/// An amount that is not negative, exact to a thousandth of its unit. A price may be 2.5 sat; what the chain shows is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(u128);

/// A text that is not an amount of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a number that is not negative, with at most three decimal places, expected")]
pub struct QuantityError;

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// So many whole units.
    pub const fn whole(units: u64) -> Self {
        Self(units as u128 * PARTS)
    }

    /// An advertised amount; `None` if it is negative, or finer than a thousandth.
    pub fn of(number: &Number) -> Option<Self> {
        number.to_string().parse().ok()
    }

    /// The sum.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// As a number for a calculation that need not be exact.
    pub fn to_f64(self) -> f64 {
        self.0 as f64 / PARTS as f64
    }
}

impl Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::ZERO, Self::plus)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (units, parts) = (self.0 / PARTS, self.0 % PARTS);
        if parts == 0 {
            return write!(f, "{units}");
        }
        let decimals = format!("{parts:03}");
        write!(f, "{units}.{}", decimals.trim_end_matches('0'))
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let (units, decimals) = text.split_once('.').unwrap_or((text, ""));
        let decimals = decimals.trim_end_matches('0');
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if units.is_empty() || !digits(units) || !digits(decimals) || decimals.len() > 3 {
            return Err(QuantityError);
        }
        let units: u128 = units.parse().map_err(|_| QuantityError)?;
        let parts: u128 = format!("{decimals:0<3}").parse().map_err(|_| QuantityError)?;
        units.checked_mul(PARTS).and_then(|units| units.checked_add(parts)).map(Self).ok_or(QuantityError)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match u64::try_from(self.0 / PARTS) {
            Ok(units) if self.0.is_multiple_of(PARTS) => serializer.serialize_u64(units),
            _ => serializer.serialize_f64(self.to_f64()),
        }
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::of(&Number::deserialize(deserializer)?).ok_or_else(|| de::Error::custom(QuantityError))
    }
}
