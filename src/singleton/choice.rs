//! Which Singleton beacon announces, and with which coins.

use std::fmt::Write;

use ::bitcoin::{Amount, FeeRate, OutPoint, Txid};

use super::places::{Funded, Place};
use crate::{
    controller::Keys,
    protocol::{
        did::Did,
        document::InitialBeaconKind,
        hash::SignalBytes,
        output::{
            BuildError, Change, Coin, SingletonAnnouncement, SingletonBeacon, SingletonError, eligible_coins,
            select_coins,
        },
    },
};

/// What the controller asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// The beacon's service, by its id, a fragment of it, or the address.
    pub service: Option<&'a str>,
    /// The kind of the beacon's address.
    pub kind: Option<InitialBeaconKind>,
    /// The coins to spend, in this order; none for those of rule T-7.
    pub coins: &'a [Coin],
}

/// The beacon and the coins of an announcement.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The position of the beacon.
    pub index: usize,
    /// The beacon.
    pub place: Place,
    /// The same, as its transactions depend on it.
    pub beacon: SingletonBeacon,
    /// The coins, in the order of the inputs.
    pub coins: Vec<Coin>,
    /// Why this beacon, where the controller has not named it.
    pub note: Option<String>,
}

/// Why there is no choice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    /// There is no Singleton beacon.
    #[error(
        "the document lists no Singleton beacon: only a cohort whose address is among its beacons can announce this update"
    )]
    NoSingleton,
    /// There is none of that name or kind.
    #[error("the document has no Singleton beacon {wanted}; it has: {listed}")]
    NoSuchBeacon {
        /// The one that is asked for.
        wanted: String,
        /// Those of the document.
        listed: String,
    },
    /// Several are meant.
    #[error("{wanted} are several Singleton beacons of the document: {listed}; choose one with --service ID")]
    Several {
        /// What is asked for.
        wanted: String,
        /// Those of the document.
        listed: String,
    },
    /// No single key spends from its address.
    #[error(
        "the address of {name}, {address}, is not one that a single key spends from (P2PKH, P2WPKH or P2TR): only the wallet \
         that made it can announce there"
    )]
    Unspendable {
        /// The service's id.
        name: String,
        /// The address.
        address: String,
    },
    /// A coin that was named cannot be spent.
    #[error("the coin {outpoint} {problem}")]
    Coin {
        /// The coin.
        outpoint: OutPoint,
        /// Why not, in words that follow it.
        problem: String,
    },
    /// There is nothing to spend.
    #[error("{0}")]
    NoCoin(String),
}

impl ChoiceError {
    /// Whether the same request may succeed later, e.g. when a coin was paid.
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::NoCoin(_))
    }
}

fn listed(places: &[&Place]) -> String {
    let names: Vec<_> = places.iter().map(|place| format!("{} {}", place.name(), place.address)).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

impl Wanted<'_> {
    /// The positions of the beacons that are meant, at least one. Without a name or a kind these are all of them.
    ///
    /// # Errors
    /// [`ChoiceError::NoSingleton`], [`ChoiceError::NoSuchBeacon`].
    pub fn among(&self, did: &Did, places: &[&Place]) -> Result<Vec<usize>, ChoiceError> {
        if places.is_empty() {
            return Err(ChoiceError::NoSingleton);
        }
        let is_meant = |place: &Place| {
            self.service.is_none_or(|service| place.is_meant_by(did, service))
                && self.kind.is_none_or(|kind| place.beacon.as_ref().is_some_and(|beacon| beacon.kind() == kind))
        };
        let found: Vec<_> =
            places.iter().enumerate().filter(|(_, place)| is_meant(place)).map(|(index, _)| index).collect();
        if found.is_empty() {
            return Err(ChoiceError::NoSuchBeacon { wanted: self.to_string(), listed: listed(places) });
        }
        Ok(found)
    }

    /// The beacon that is meant, where no chain shows the coins.
    ///
    /// # Errors
    /// [`ChoiceError`].
    pub fn without_chain(&self, did: &Did, places: &[Place]) -> Result<(Place, SingletonBeacon), ChoiceError> {
        let places: Vec<&Place> = places.iter().collect();
        let found = self.among(did, &places)?;
        let [index] = found[..] else {
            let several: Vec<_> = found.iter().map(|index| places[*index]).collect();
            return Err(ChoiceError::Several { wanted: self.to_string(), listed: listed(&several) });
        };
        Ok((places[index].clone(), spendable(places[index])?))
    }
}

impl std::fmt::Display for Wanted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.service, self.kind) {
            (Some(service), None) => write!(f, "{service}"),
            (None, Some(kind)) => write!(f, "at a {kind} address"),
            (Some(service), Some(kind)) => write!(f, "{service} at a {kind} address"),
            (None, None) => f.write_str("these"),
        }
    }
}

fn spendable(place: &Place) -> Result<SingletonBeacon, ChoiceError> {
    place.beacon.clone().ok_or_else(|| ChoiceError::Unspendable {
        name: place.name().to_owned(),
        address: place.address.to_string(),
    })
}

/// Chooses the beacon and the coins of an announcement at `rate`: what is `wanted`; else, of the beacons that have coins, one
/// whose key is among `keys`, and of those the one with the largest balance.
///
/// # Errors
/// [`ChoiceError`].
pub fn choose(
    did: &Did,
    funded: &[Funded],
    wanted: &Wanted<'_>,
    keys: Option<&Keys>,
    rate: FeeRate,
) -> Result<Choice, ChoiceError> {
    let places: Vec<&Place> = funded.iter().map(|funded| &funded.place).collect();
    let meant = wanted.among(did, &places)?;
    if !wanted.coins.is_empty() {
        return with_coins(funded, &meant, wanted.coins);
    }
    let mut candidates: Vec<Choice> = Vec::new();
    for index in &meant {
        let Funded { place, activity } = &funded[*index];
        let beacon = match spendable(place) {
            Ok(beacon) => beacon,
            Err(error) if meant.len() == 1 => return Err(error),
            Err(_) => continue,
        };
        let coins = select_coins(activity, &beacon.script_pubkey(), rate);
        if !coins.is_empty() {
            candidates.push(Choice { index: *index, place: place.clone(), beacon, coins, note: None });
        }
    }
    let others = candidates.len().saturating_sub(1);
    let balance = |choice: &Choice| choice.coins.iter().map(|coin| coin.value).sum::<Amount>();
    // The first of several that are equal: the order of the document.
    candidates.reverse();
    let best = candidates.into_iter().max_by_key(|choice| (choice.place.secret(keys).is_some(), balance(choice)));
    let Some(mut best) = best else { return Err(no_coin(funded, &meant, rate)) };
    if others > 0 {
        best.note = Some(format!(
            "{} Singleton beacons have coins: {} is used, with {} sat; --service ID chooses another",
            others + 1,
            best.place.name(),
            balance(&best).to_sat()
        ));
    }
    Ok(best)
}

/// The beacon on which these coins are, each checked.
fn with_coins(funded: &[Funded], meant: &[usize], coins: &[Coin]) -> Result<Choice, ChoiceError> {
    let refuse = |coin: &Coin, problem: String| ChoiceError::Coin { outpoint: coin.outpoint, problem };
    let mut chosen: Option<usize> = None;
    for coin in coins {
        let here = |index: &&usize| {
            funded[**index].activity.deposits.iter().any(|deposit| deposit.outpoint == coin.outpoint)
        };
        let Some(index) = meant.iter().find(here).copied() else {
            let places: Vec<_> = meant.iter().map(|index| &funded[*index].place).collect();
            let problem = format!("is not an unspent output of a Singleton beacon: {}", listed(&places));
            return Err(refuse(coin, problem));
        };
        if chosen.is_some_and(|chosen| chosen != index) {
            let problem = format!(
                "is on {}, and the others are on another beacon: give coins of one",
                funded[index].place.name()
            );
            return Err(refuse(coin, problem));
        }
        chosen = Some(index);
        let activity = &funded[index].activity;
        let deposit = activity.deposits.iter().find(|deposit| deposit.outpoint == coin.outpoint);
        let spend = activity.spends.iter().find(|spend| spend.outpoint == coin.outpoint);
        let problem = match (deposit, spend) {
            (_, Some(spend)) => {
                format!(
                    "is spent by {}, which waits in the mempool: `singleton --bump` replaces an announcement",
                    spend.by
                )
            }
            (Some(deposit), None) if deposit.place.block().is_none() => {
                "is not confirmed yet: only confirmed coins are spent".to_owned()
            }
            (Some(deposit), None) if deposit.is_immature(&activity.tip) => {
                "is a block's reward that cannot be spent yet: it must be 100 blocks deep".to_owned()
            }
            (Some(deposit), None) if deposit.value != coin.value => {
                format!("holds {} sat, not {}", deposit.value.to_sat(), coin.value.to_sat())
            }
            _ => continue,
        };
        return Err(refuse(coin, problem));
    }
    let Some(index) = chosen else { return Err(ChoiceError::NoSingleton) };
    let place = funded[index].place.clone();
    let beacon = spendable(&place)?;
    Ok(Choice { index, place, beacon, coins: coins.to_vec(), note: None })
}

/// The least value that pays for an announcement from one coin of `beacon`.
pub fn least(beacon: &SingletonBeacon, rate: FeeRate) -> Amount {
    let coin = Coin {
        outpoint: OutPoint::new(Txid::from_raw_hash(::bitcoin::hashes::Hash::all_zeros()), 0),
        value: Amount::ZERO,
    };
    let signal = SignalBytes::from_bytes([0; 32]);
    match SingletonAnnouncement::of_signal(beacon.clone(), &[coin], signal, rate, &Change::Beacon) {
        // Above the fee (rule T-6).
        Err(SingletonError::Build(BuildError::InsufficientFunds { needed, .. })) => needed + Amount::ONE_SAT,
        _ => Amount::ONE_SAT,
    }
}

/// What is on each beacon, and what to do.
fn no_coin(funded: &[Funded], meant: &[usize], rate: FeeRate) -> ChoiceError {
    let rate_text = crate::bitcoin::fees::sat_per_vb(rate);
    let mut text = format!("no coin can be spent for the announcement at {rate_text} sat/vB:");
    for index in meant {
        let Funded { place, activity } = &funded[*index];
        let script = place.address.script_pubkey();
        let unconfirmed = activity.deposits.iter().filter(|deposit| deposit.place.block().is_none()).count();
        let young = activity
            .deposits
            .iter()
            .filter(|deposit| deposit.place.block().is_some() && deposit.is_immature(&activity.tip))
            .count();
        let eligible = eligible_coins(activity, &script, rate).count();
        let mut states = Vec::new();
        let mut state = |count: usize, what: &str| {
            if count > 0 {
                states.push(format!("{count} {what}"));
            }
        };
        let small = activity.deposits.len().saturating_sub(unconfirmed + young + eligible + activity.spends.len());
        state(unconfirmed, "not confirmed yet");
        state(young, "of a block's reward, too young");
        state(activity.spends.len(), "spent by the mempool");
        state(small, "worth less than the fee of its own input");
        let states = if states.is_empty() { "no coin".to_owned() } else { states.join(", ") };
        let _ = write!(text, "\n  {} {}: {states}", place.name(), place.address);
    }
    let first = meant.iter().find_map(|index| funded[*index].place.beacon.as_ref());
    if let Some(beacon) = first {
        let least = least(beacon, rate).to_sat();
        let _ = write!(
            text,
            "\nPay at least {least} sat to one of them, e.g. {} (more lasts for further announcements), and wait for the \
             confirmation",
            beacon.address()
        );
    }
    ChoiceError::NoCoin(text)
}

#[cfg(test)]
mod tests {
    use ::bitcoin::{BlockHash, hashes::Hash};

    use super::*;
    use crate::{
        protocol::{
            chain::{Activity, BlockId, Deposit, Place as ChainPlace, Spend, Tip},
            identity::Identity,
            key::SecretKey,
            network::Network,
        },
        singleton::places::places,
    };

    const RATE: FeeRate = FeeRate::from_sat_per_vb_u32(1);

    fn identity() -> Identity {
        Identity::from_key(SecretKey::from_bytes(&[5; 32]).unwrap(), Network::Regtest)
    }

    fn block(height: u32) -> ChainPlace {
        ChainPlace::Block(BlockId { height, hash: BlockHash::all_zeros() })
    }

    fn coin(n: u8, value: u64) -> Coin {
        let outpoint = OutPoint::new(Txid::from_byte_array([n; 32]), 0);
        Coin { outpoint, value: Amount::from_sat(value) }
    }

    /// The initial beacons with coins of these values, confirmed one after the other; the keys of the controller.
    fn funded(values: [&[u64]; 3]) -> (Identity, Keys, Vec<Funded>) {
        let identity = identity();
        let keys = Keys::of(&identity);
        let document = identity.initial_document().unwrap();
        let tip = Tip { block: BlockId { height: 200, hash: BlockHash::all_zeros() }, median_time: 0 };
        let mut n = 0;
        let mut deposit = |value: &u64| {
            n += 1;
            Deposit::new(coin(n, *value).outpoint, Amount::from_sat(*value), block(n.into()))
        };
        let places = places(&document, identity.did(), Some(&keys)).into_iter().zip(values);
        let funded = places.map(|(place, values)| {
            let deposits = values.iter().map(&mut deposit).collect();
            Funded { place, activity: Activity { tip, deposits, spends: Vec::new() } }
        });
        let funded = funded.collect();
        (identity, keys, funded)
    }

    fn choice(funded: &[Funded], wanted: &Wanted<'_>, keys: Option<&Keys>) -> Result<Choice, ChoiceError> {
        choose(identity().did(), funded, wanted, keys, RATE)
    }

    #[test]
    fn the_largest_balance_announces_unless_a_beacon_is_named() {
        let (_, keys, funded) = funded([&[9_000], &[5_000, 6_000], &[]]);
        let best = choice(&funded, &Wanted::default(), Some(&keys)).unwrap();
        assert_eq!((best.place.name(), best.coins.len()), ("#initialP2WPKH", 2));
        assert!(best.note.unwrap().contains("2 Singleton beacons have coins"));
        for name in ["initialP2PKH", "#initialP2PKH", &format!("{}#initialP2PKH", identity().did())] {
            let named = choice(&funded, &Wanted { service: Some(name), ..Wanted::default() }, Some(&keys)).unwrap();
            assert_eq!((named.place.name(), named.note), ("#initialP2PKH", None));
        }
        let kind = Some(InitialBeaconKind::P2tr);
        let empty = choice(&funded, &Wanted { kind, ..Wanted::default() }, Some(&keys)).unwrap_err();
        assert!(empty.may_pass() && empty.to_string().contains("#initialP2TR"), "{empty}");
        let wrong = choice(&funded, &Wanted { service: Some("other"), kind, coins: &[] }, None).unwrap_err();
        assert!(matches!(wrong, ChoiceError::NoSuchBeacon { .. }), "{wrong}");
        assert_eq!(choice(&[], &Wanted::default(), None).unwrap_err(), ChoiceError::NoSingleton);
    }

    #[test]
    fn a_beacon_whose_key_is_known_comes_first() {
        let (_, keys, mut funded) = funded([&[50_000], &[5_000], &[]]);
        let other = SecretKey::from_bytes(&[6; 32]).unwrap().public_key();
        let foreign =
            crate::protocol::document::InitialBeacon::new(other, Network::Regtest, InitialBeaconKind::P2pkh);
        funded[0].place.address = foreign.address().clone();
        funded[0].place.beacon = SingletonBeacon::at(foreign.address());
        let best = choice(&funded, &Wanted::default(), Some(&keys)).unwrap();
        assert_eq!(best.place.name(), "#initialP2WPKH");
        // Without keys all are equal in this.
        assert_eq!(choice(&funded, &Wanted::default(), None).unwrap().place.name(), "#initialP2PKH");
    }

    #[test]
    fn named_coins_are_checked_and_spent_in_their_order() {
        let (_, keys, mut funded) = funded([&[9_000], &[5_000, 6_000, 7_000], &[]]);
        let with =
            |funded: &[Funded], coins: &[Coin]| choice(funded, &Wanted { coins, ..Wanted::default() }, Some(&keys));
        let given = [coin(3, 6_000), coin(2, 5_000)];
        let chosen = with(&funded, &given).unwrap();
        assert_eq!((chosen.place.name(), &chosen.coins[..]), ("#initialP2WPKH", &given[..]));
        let problem = |funded: &[Funded], coins: &[Coin]| with(funded, coins).unwrap_err().to_string();
        assert!(problem(&funded, &[coin(3, 6_001)]).contains("holds 6000 sat, not 6001"));
        assert!(problem(&funded, &[coin(3, 6_000), coin(1, 9_000)]).contains("is on #initialP2PKH"));
        assert!(problem(&funded, &[coin(9, 1)]).contains("is not an unspent output"));
        let spender = Txid::from_byte_array([0xee; 32]);
        let outpoint = given[0].outpoint;
        funded[1].activity.spends.push(Spend { outpoint, by: spender, place: ChainPlace::Mempool });
        assert!(problem(&funded, &given).contains("which waits in the mempool"));
        funded[1].activity.deposits[0].place = ChainPlace::Mempool;
        assert!(problem(&funded, &[coin(2, 5_000)]).contains("is not confirmed yet"));
        funded[1].activity.deposits[2].coinbase = true;
        funded[1].activity.deposits[2].place = block(150);
        assert!(problem(&funded, &[coin(4, 7_000)]).contains("block's reward"));
    }

    #[test]
    fn the_least_value_pays_for_the_announcement() {
        let beacon = SingletonBeacon::at(
            crate::protocol::document::InitialBeacon::of(identity().did(), InitialBeaconKind::P2wpkh)
                .unwrap()
                .address(),
        )
        .unwrap();
        let least = least(&beacon, RATE);
        let make = |value: Amount| {
            let coin = Coin { value, ..coin(1, 0) };
            let signal = SignalBytes::from_bytes([1; 32]);
            SingletonAnnouncement::of_signal(beacon.clone(), &[coin], signal, RATE, &Change::Beacon)
        };
        assert!(make(least).is_ok() && make(least - Amount::ONE_SAT).is_err());
    }
}
