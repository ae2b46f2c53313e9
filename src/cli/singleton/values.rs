//! Values on the command line: coins, fee rates, kinds of address.

use std::str::FromStr;

use ::bitcoin::{Amount, FeeRate, OutPoint};
use clap::ValueEnum;
use serde::{Deserialize, Deserializer, de};

use crate::{
    protocol::output::{Coin, InitialBeaconKind},
    singleton::order::USUAL_RATE,
};

/// A rate above this is assumed to be a typing error: sat/vB.
const MAX_FEE_RATE: f64 = 10_000.0;

/// The kinds of address.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Kind {
    /// Pay to witness public key hash
    P2wpkh,
    /// Taproot, key path only
    P2tr,
    /// Pay to public key hash
    P2pkh,
}

impl Kind {
    pub(super) const fn beacon(self) -> InitialBeaconKind {
        match self {
            Self::P2wpkh => InitialBeaconKind::P2wpkh,
            Self::P2tr => InitialBeaconKind::P2tr,
            Self::P2pkh => InitialBeaconKind::P2pkh,
        }
    }
}

/// `TXID:VOUT:SATS`.
#[derive(Clone, Copy, Debug)]
pub(super) struct CoinText(pub(super) Coin);

impl FromStr for CoinText {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (outpoint, sats) = text.rsplit_once(':')?;
            let outpoint: OutPoint = outpoint.parse().ok()?;
            let value = Amount::from_sat(sats.parse().ok()?);
            (value <= Amount::MAX_MONEY).then_some(Self(Coin { outpoint, value }))
        };
        parse().ok_or("TXID:VOUT:SATS expected: 64 hex characters, an output number, a value in satoshi")
    }
}

/// A coin on one of a DID's initial beacons, `TYPE:TXID:VOUT:SATS`.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) struct BeaconCoin(pub(in crate::cli) InitialBeaconKind, pub(in crate::cli) Coin);

impl FromStr for BeaconCoin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(kind, coin)| Some((Kind::from_str(kind, true).ok()?, coin)));
        let (kind, coin) = parts.ok_or("TYPE:TXID:VOUT:SATS expected, with p2wpkh, p2tr or p2pkh as TYPE")?;
        let CoinText(coin) = coin.parse()?;
        Ok(Self(kind.beacon(), coin))
    }
}

impl<'de> Deserialize<'de> for BeaconCoin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A fee rate as people write it.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) struct SatPerVb(pub(in crate::cli) FeeRate);

impl Default for SatPerVb {
    fn default() -> Self {
        Self(USUAL_RATE)
    }
}

impl FromStr for SatPerVb {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            // A kilo weight unit is 250 vB. In this range the product is exact enough and fits.
            Ok(rate) if (1.0..=MAX_FEE_RATE).contains(&rate) => {
                Ok(Self(FeeRate::from_sat_per_kwu((rate * 250.0).ceil() as u64)))
            }
            _ => Err(format!("a number between 1 and {MAX_FEE_RATE} expected, in sat/vB")),
        }
    }
}

impl<'de> Deserialize<'de> for SatPerVb {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        f64::deserialize(deserializer)?.to_string().parse().map_err(de::Error::custom)
    }
}
