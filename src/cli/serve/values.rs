//! The values of `serve`'s settings, as people write them.

use std::{convert::Infallible, str::FromStr};

use clap::ValueEnum;
use serde::Deserialize;

use crate::{
    actors::seats::SeatLimit,
    cli::ChainArg,
    config::Period,
    costs::{Quantity, SAT},
    protocol::{
        beacon::BeaconType,
        cohort::service::rules::{PhaseRule, PhaseRules, RuleError, TimedPhase},
        message::keygen::{Cost, CostBasis},
    },
};

/// How updates are aggregated.
#[derive(Clone, Copy, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum Beacon {
    /// A map from each DID to the hash of its update; every member sees every DID in it
    Cas,
    /// A sparse Merkle tree; a member sees its own proof only
    Smt,
}

impl Beacon {
    pub(in crate::cli) fn beacon_type(self) -> BeaconType {
        match self {
            Self::Cas => BeaconType::cas(),
            Self::Smt => BeaconType::smt(),
        }
    }
}

/// The source of coins, as given.
#[derive(Clone, Debug)]
pub(super) enum Chain {
    Offline,
    Named(ChainArg),
}

impl FromStr for Chain {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "offline" { Self::Offline } else { Self::Named(text.parse()?) })
    }
}

impl<'de> Deserialize<'de> for Chain {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Parsed from any string: an error of the deserializer would show the file's line, and a password with it.
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A limit of seats: `64/16`, or `64`.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeatsArg(pub(super) SeatLimit);

impl FromStr for SeatsArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.trim().parse() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!("{text}: a number of cohorts expected, or two, e.g. 64/16")),
        };
        let (cohorts, pending) = text.split_once('/').unwrap_or((text, text));
        Ok(Self(SeatLimit { cohorts: number(cohorts)?, pending: number(pending)? }))
    }
}

impl<'de> Deserialize<'de> for SeatsArg {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A rule of `--on-timeout`.
#[derive(Clone, Debug)]
pub(super) struct TimeoutRule(pub(super) TimedPhase, pub(super) PhaseRule);

impl FromStr for TimeoutRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',').map(str::trim);
        let rule = parts.next().and_then(|rule| rule.split_once('='));
        let (phase, then) = rule.ok_or("PHASE=ANSWER expected, e.g. `updates=reform`")?;
        let phase: TimedPhase = phase.parse().map_err(|error: RuleError| error.to_string())?;
        let then = then.parse().map_err(|error: RuleError| error.to_string())?;
        let mut rule = PhaseRule { timeout: None, extensions: 0, then };
        for part in parts {
            match part.split_once('=') {
                Some(("extend", times)) => {
                    rule.extensions = times.parse().map_err(|_| format!("extend={times}: a number expected"))?;
                }
                Some(("after", time)) => {
                    let span: Period = time.parse().map_err(|error| format!("after={time}: {error}"))?;
                    rule.timeout = Some(span.0);
                }
                _ => return Err(format!("{part}: extend=N or after=TIME expected")),
            }
        }
        PhaseRules::default().set(phase, rule).map_err(|error| error.to_string())?;
        Ok(Self(phase, rule))
    }
}

impl<'de> Deserialize<'de> for TimeoutRule {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What the service of a standing cohort receives of updates.
#[derive(Clone, Copy, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum UpdatesArg {
    /// Updates, which it verifies
    Full,
    /// Hashes; only the member checks its updates
    Hash,
}

/// Who may register a DID in a standing cohort.
#[derive(Clone, Copy, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RegistrationArg {
    /// A controller that proves control of it
    Proven,
    /// Every seat: the service sees hashes of DIDs only. With --beacon smt and --updates hash
    Blind,
}

/// What happens in a standing cohort when a seat is absent.
#[derive(Clone, Copy, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum AbsentArg {
    /// The others wait for it: only all seats together can spend
    Wait,
    /// After a deadline --fallback-threshold seats sign without it
    Proceed,
}

/// A price: `500`, `500sat/did`, `2.5credits/participant`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PriceArg(pub(super) Cost);

impl FromStr for PriceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text}: an amount with its unit expected, e.g. 500sat, or 500sat/did");
        let (price, basis) = match text.split_once('/') {
            Some((price, "did")) => (price, Some(CostBasis::PerDid)),
            Some((price, "participant")) => (price, Some(CostBasis::PerParticipant)),
            Some(_) => return Err(format!("{text}: /did or /participant expected")),
            None => (text, None),
        };
        let end = price.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(price.len());
        let (amount, unit) = price.split_at(end);
        amount.parse::<Quantity>().map_err(|error| format!("{text}: {error}"))?;
        let amount = serde_json::from_str(amount).map_err(|_| wrong())?;
        let unit = if unit.trim().is_empty() { SAT } else { unit.trim() };
        if !unit.chars().all(char::is_alphabetic) {
            return Err(wrong());
        }
        Ok(Self(Cost { amount, unit: unit.to_owned(), basis }))
    }
}

impl<'de> Deserialize<'de> for PriceArg {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An output: `ADDRESS:SAT`.
#[derive(Clone, Debug)]
pub(super) struct OutputArg {
    pub(super) address: String,
    pub(super) satoshi: u64,
}

impl FromStr for OutputArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.rsplit_once(':').and_then(|(address, satoshi)| Some((address, satoshi.parse().ok()?)));
        let (address, satoshi) = parts.ok_or("an address and satoshi expected, e.g. bc1q...:1000")?;
        Ok(Self { address: address.to_owned(), satoshi })
    }
}

impl<'de> Deserialize<'de> for OutputArg {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_read_with_their_unit_and_basis() {
        let read = |text: &str| {
            text.parse::<PriceArg>().map(|PriceArg(cost)| (cost.amount.to_string(), cost.unit, cost.basis))
        };
        let price = |amount: &str, unit: &str, basis| Ok((amount.to_owned(), unit.to_owned(), basis));
        assert_eq!(read("500"), price("500", "sat", None));
        assert_eq!(read("500sat/did"), price("500", "sat", Some(CostBasis::PerDid)));
        assert_eq!(read("2.5 credits/participant"), price("2.5", "credits", Some(CostBasis::PerParticipant)));
        for wrong in ["", "sat", "-1", "1.2345", "1e3", "5/year", "5=1", "007"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
