//! Without a chain: a transaction of coins that the controller knows, to be sent by hand.

use std::{path::Path, process::ExitCode};

use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::Value;

use super::{
    super::{
        refuse_risky,
        update::{Record, ledger_of},
    },
    SingletonArgs, SingletonFailure, UpdateFile, change, read_update, record, refuse_contradiction,
    refuse_expiring,
    report::Shown,
    usage,
    values::{CoinText, SatPerVb},
};
use crate::{
    controller::Keys,
    inputs,
    join::ledger::Ledger,
    protocol::{
        did::Did,
        document::{self, Concern, InitialBeaconKind},
        output::{Coin, SingletonAnnouncement},
        update::SignedUpdate,
    },
    singleton::{
        self, FallbackError, Prepared,
        choice::Wanted,
        places::{Place, initial_places, places},
    },
};

/// Prepares the transaction.
pub(super) async fn run(
    args: &SingletonArgs,
    path: &Path,
    did: &Did,
    keys: Option<&Keys>,
) -> Result<ExitCode, SingletonFailure> {
    if args.sign && args.coins.is_empty() {
        return Err(usage("--sign needs the coin to spend: --coin TXID:VOUT:SATS, or --chain, which finds it"));
    }
    let UpdateFile { update, source: from, .. } = read_update(path)?;
    let initial = initial(did, keys);
    let known = match &args.state {
        Some(directory) => {
            let initial = initial.clone().ok_or_else(|| FallbackError::External(did.clone()))?;
            let record = Record::read(directory, did).await?;
            record.check()?;
            Some(ledger_of(initial, &record, &args.supersede))
        }
        None => None,
    };
    let source = source(args, known.as_ref(), initial.clone(), &update, from)?;
    singleton::check_update(did, &update, source.as_ref())?;
    refuse_expiring(args, &update)?;
    let mut concerns: Vec<String> =
        singleton::concerns(did, &update, source.as_ref())?.iter().map(Concern::to_string).collect();
    if let Some(ledger) = &known {
        refuse_contradiction(ledger, &update)?;
        if !ledger.knows(&update) {
            concerns.extend(doubts(ledger, source.as_ref(), &update));
        }
    }
    refuse_risky(&concerns, path, args.allow_risky_update)?;

    let listed = match &source {
        Some((document, _)) => places(document, did, keys),
        None => {
            err!(
                "note: a resolver looks at the beacons of the current document: make sure that it still has the one that announces"
            );
            initial_places(did)
        }
    };
    let coins: Vec<Coin> = args.coins.iter().map(|CoinText(coin)| *coin).collect();
    let made = match &coins[..] {
        [] => None,
        coins => Some(prepare(args, did, keys, &listed, coins, &update)?),
    };
    // Before the transaction is returned: it may be announced from then on.
    if let (Some(directory), Some(ledger), Some(initial)) = (&args.state, &known, initial)
        && !(ledger.knows(&update) && args.supersede.is_empty())
    {
        record(directory, did, initial, &update, &args.supersede).await?;
    }
    let prepared = made.as_ref().map(|(_, prepared)| prepared);
    super::write(args, did, &update, &listed, prepared)?;
    let made = made.as_ref().map(|(place, prepared)| (place, prepared));
    let shown = Shown { did, update: &update, places: &listed, made, sent: None };
    out!("{}", if args.json { shown.to_json().to_string() } else { shown.to_text() });
    Ok(ExitCode::SUCCESS)
}

/// The initial document, as far as it is known without a chain.
fn initial(did: &Did, keys: Option<&Keys>) -> Option<Value> {
    document::initial_document(did, keys.and_then(Keys::genesis_document)).ok()
}

/// The document that the update starts from, and its version: as given, or as the announced updates lead to it.
fn source(
    args: &SingletonArgs,
    known: Option<&Ledger>,
    initial: Option<Value>,
    update: &SignedUpdate,
    from: Option<Value>,
) -> Result<Option<(Value, u64)>, SingletonFailure> {
    let version = update.target_version().map_or(1, |target| target.saturating_sub(1));
    let given = match &args.source_document {
        Some(path) => Some(inputs::json(path).map_err(usage)?),
        None => from,
    };
    if let Some(document) = given {
        return Ok(Some((document, version)));
    }
    let announced = known.map(Ledger::current).filter(|(_, current)| *current == version);
    Ok(announced.or_else(|| initial.filter(|_| version <= 1).map(|document| (document, 1))))
}

/// Why the update is not the next one, according to the state directory. An update that is already announced may be
/// announced again.
fn doubts(ledger: &Ledger, source: Option<&(Value, u64)>, update: &SignedUpdate) -> Option<String> {
    let (_, current) = ledger.current();
    let target = update.target_version()?;
    if target <= current {
        return None;
    }
    match source {
        Some((document, version)) => ledger.doubts(document, *version),
        None => ledger.doubts(&Value::Null, target - 1),
    }
}

fn prepare(
    args: &SingletonArgs,
    did: &Did,
    keys: Option<&Keys>,
    listed: &[Place],
    coins: &[Coin],
    update: &SignedUpdate,
) -> Result<(Place, Prepared), SingletonFailure> {
    let is_usual =
        |place: &Place| place.beacon.as_ref().is_some_and(|beacon| beacon.kind() == InitialBeaconKind::P2wpkh);
    let mut wanted = Wanted {
        service: args.announcement.service.as_deref(),
        kind: args.kind.map(super::values::Kind::beacon),
        coins,
    };
    if wanted.service.is_none() && wanted.kind.is_none() && listed.len() > 1 && listed.iter().any(is_usual) {
        wanted.kind = Some(InitialBeaconKind::P2wpkh);
    }
    let (place, beacon) = wanted.without_chain(did, listed)?;
    let rate = args.announcement.fee_rate.unwrap_or_default();
    let SatPerVb(rate) = rate;
    let announcement = SingletonAnnouncement::new(beacon, coins, update, rate, &change(args, did)?);
    let mut announcement = announcement.map_err(FallbackError::from)?;
    for path in &args.funding_tx {
        let funding = inputs::transaction(path).map_err(usage)?;
        announcement = announcement.with_funding(funding).map_err(FallbackError::from)?;
    }
    let signed = match (args.sign, place.secret(keys)) {
        (false, _) => None,
        (true, Some(key)) => Some(singleton::sign(&announcement, key, &mut ChaCha20Rng::from_os_rng())?),
        (true, None) => {
            return Err(usage(format!(
                "--sign: no key that is given here belongs to {} ({})",
                place.name(),
                place.address
            )));
        }
    };
    Ok((place, Prepared { announcement, signed }))
}
