//! The beacons: those of the current document, and every address that a document ever listed, for resolvers need the data of
//! all later signals of these too (rule R-5). And who can announce from them.

use std::collections::{BTreeMap, BTreeSet};

use ::bitcoin::{Address, Amount, OutPoint, Txid};
use serde::Serialize;

use super::{ChainView, Code, Finding, Report, Status, View};
use crate::{
    bitcoin::{
        chain::Activity,
        recovery::{Maturity, survey},
    },
    protocol::{
        did::Did,
        document::{InitialBeacon, InitialBeaconKind},
        key::XOnlyKey,
        output::BeaconOutput,
        resolution::{Beacon, BeaconKind, Event, beacons},
        text::shown,
    },
    vault::VaultContents,
};

/// An address that a document of the DID lists, or did.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BeaconState {
    /// The address.
    pub address: String,
    /// The type under which it was listed first.
    #[serde(rename = "type")]
    pub kind: BeaconKind,
    /// The service's `id`, fit to be shown.
    pub service: String,
    /// Whether the current document lists it; `None` if the current document is not known.
    pub listed: Option<bool>,
    /// The number of its signals in blocks.
    pub signals: usize,
    /// The last of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_signal: Option<LastSignal>,
    /// For how many of its signals data is missing.
    pub missing: usize,
    /// Unspent coins in blocks, in satoshis; `None` if the coins are not known.
    pub confirmed: Option<u64>,
    /// Coins in the mempool, in satoshis; `None` if the coins are not known.
    pub unconfirmed: Option<u64>,
    /// Whether the identity file has the key of a Singleton beacon; `None` without a file, and for other beacons.
    pub own_key: Option<bool>,
    /// Who can announce from a cohort's beacon; `None` if its terms are not known, and for Singleton beacons.
    pub operator: Option<Operator>,
}

/// The newest signal of a beacon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LastSignal {
    /// Its transaction.
    pub txid: Txid,
    /// The height of its block.
    pub height: u32,
}

/// The trust in the operator of a cohort's beacon, from the terms in the vault.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Operator {
    /// The services with which the beacon was used.
    pub services: BTreeSet<Did>,
    /// How many members sign by the key path: all.
    pub members: usize,
    /// How many of them suffice; `None` without a fallback leaf.
    pub fallback_threshold: Option<usize>,
    /// The key that can spend alone; `None` if there is none.
    pub recovery_key: Option<XOnlyKey>,
    /// From how many blocks above its own on it can spend a coin.
    pub recovery_blocks: Option<u32>,
    /// The unspent coins.
    pub coins: Vec<CoinState>,
}

/// A coin of a cohort's beacon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CoinState {
    /// The output.
    pub outpoint: OutPoint,
    /// Its value, in satoshis.
    pub value: u64,
    /// From which block on the operator can spend it alone; `None` while it is not confirmed.
    pub alone_from: Option<u32>,
}

pub(super) fn evaluate(view: &View<'_>, chain: &ChainView, report: &mut Report) {
    let current = view.current();
    let listed: Option<Vec<Beacon>> =
        current.map(|(document, ..)| beacons(document, view.did.network()).into_iter().flatten().collect());
    if let Err(problem) = &chain.coins {
        report.add(
            Finding::new(
                Code::CoinsUnknown,
                Status::Unknown,
                format!("the coins of the beacons are not known: {problem}"),
            )
            .advice("who can announce from them, and when, is unknown until the chain answers"),
        );
    }
    for (beacon, mut signals) in scanned(chain) {
        let address = beacon.address.to_string();
        let listed = listed.as_ref().map(|listed| listed.iter().any(|other| other.address == beacon.address));
        let missing: BTreeSet<Txid> = chain
            .settled
            .missing()
            .chain(chain.young.missing())
            .filter(|missing| missing.signal.beacon.address == beacon.address)
            .map(|missing| missing.signal.txid)
            .collect();
        signals.sort_unstable();
        signals.dedup();
        let activity = chain.coins.as_ref().ok().map(|coins| coins.get(&address));
        let output = view.vault.and_then(|vault| terms(vault, &address));
        let own_key = match beacon.kind {
            BeaconKind::Singleton => view.keys.map(|keys| {
                let of = |kind| {
                    keys.iter()
                        .any(|key| InitialBeacon::new(*key, view.did.network(), kind).address() == &beacon.address)
                };
                InitialBeaconKind::ALL.into_iter().any(of)
            }),
            _ => None,
        };
        let operator =
            output.as_ref().map(|(output, services)| operator(output, services.clone(), activity.flatten()));
        let state = BeaconState {
            kind: beacon.kind,
            service: beacon.service.strip_prefix(view.did.as_str()).unwrap_or(&beacon.service).to_owned(),
            listed,
            signals: signals.len(),
            last_signal: signals.last().map(|(height, txid)| LastSignal { txid: *txid, height: *height }),
            missing: missing.len(),
            confirmed: activity.map(|activity| value(activity, true)),
            unconfirmed: activity.map(|activity| value(activity, false)),
            own_key,
            operator,
            address,
        };
        if current.is_none_or(|(.., deactivated)| !deactivated) {
            judge_key(&state, report);
        }
        judge_operator(view, &state, output.map(|(output, _)| output).zip(activity.flatten()), report);
        report.add(summary(&state));
        report.beacons.push(state);
    }
    unusable(chain, report);
    if let (Some(listed), Some((.., false))) = (listed, current) {
        judge_document(&listed, report);
    }
}

/// Every address that was scanned, in the order of the scans, with the blocks and transactions of its signals.
fn scanned(chain: &ChainView) -> Vec<(Beacon, Vec<(u32, Txid)>)> {
    let mut found: Vec<(Beacon, Vec<(u32, Txid)>)> = Vec::new();
    let at = |found: &mut Vec<(Beacon, Vec<(u32, Txid)>)>, beacon: &Beacon| -> usize {
        match found.iter().position(|(known, _)| known.address == beacon.address) {
            Some(position) => position,
            None => {
                found.push((beacon.clone(), Vec::new()));
                found.len() - 1
            }
        }
    };
    for event in chain.young.history.iter().chain(&chain.settled.history) {
        match event {
            Event::Scanned { beacon, ignored, .. } => {
                let position = at(&mut found, beacon);
                let ignored = ignored.iter().filter_map(|signal| Some((signal.height?, signal.txid)));
                found[position].1.extend(ignored);
            }
            Event::Signal { signal, .. } => {
                let position = at(&mut found, &signal.beacon);
                found[position].1.push((signal.block.height, signal.txid));
            }
            _ => {}
        }
    }
    found
}

/// The terms of the beacon with that address, and the services with which it was used.
fn terms<'a>(vault: &'a VaultContents, address: &str) -> Option<(&'a BeaconOutput, BTreeSet<Did>)> {
    let of_it =
        || vault.entries.iter().map(|entry| &entry.record).filter(|record| record.output.address() == address);
    let services = of_it().map(|record| record.service.clone()).collect();
    Some((&of_it().next()?.output, services))
}

fn operator(output: &BeaconOutput, services: BTreeSet<Did>, activity: Option<&Activity>) -> Operator {
    let coins = activity.and_then(|activity| survey(output, activity)).unwrap_or_default();
    let coins = coins.iter().filter(|coin| coin.spent_by.is_none());
    let coin = |coin: &crate::bitcoin::recovery::RecoverableCoin| CoinState {
        outpoint: coin.outpoint,
        value: coin.value.to_sat(),
        alone_from: match coin.maturity {
            Maturity::Unconfirmed => None,
            Maturity::Waiting { height, .. } | Maturity::Mature { height } => Some(height),
        },
    };
    Operator {
        services,
        members: output.keys().len(),
        fallback_threshold: output.fallback().filter(|_| output.fallback_spendable()).map(|leaf| leaf.threshold()),
        recovery_key: output.recovery().map(|leaf| leaf.key()),
        recovery_blocks: output.recovery().map(|leaf| leaf.sequence().blocks().into()),
        coins: coins.map(coin).collect(),
    }
}

/// The value of the coins that nothing spends, in blocks or in the mempool.
fn value(activity: Option<&Activity>, confirmed: bool) -> u64 {
    let Some(activity) = activity else { return 0 };
    let unspent = activity.deposits.iter().filter(|deposit| {
        deposit.place.block().is_some() == confirmed
            && !activity.spends.iter().any(|spend| spend.outpoint == deposit.outpoint)
    });
    unspent.map(|deposit| deposit.value).sum::<Amount>().to_sat()
}

fn judge_key(state: &BeaconState, report: &mut Report) {
    if state.own_key == Some(false) && state.listed == Some(true) {
        let text = format!("the key of the Singleton beacon {} is not in the identity file", state.address);
        let advice = "the owner of that key can announce there, also what makes the DID unresolvable. If it is in a wallet of yours that is \
                      intended; otherwise remove the beacon: `update DID remove-beacon`";
        report.add(Finding::warning(Code::SingletonKey, text).address(&state.address).advice(advice));
    }
}

/// The trust in the operator of a cohort's beacon: it lasts for the life of the DID, also after a removal.
fn judge_operator(
    view: &View<'_>,
    state: &BeaconState,
    known: Option<(&BeaconOutput, &Activity)>,
    report: &mut Report,
) {
    let address = &state.address;
    if state.kind != BeaconKind::Singleton && state.operator.is_none() {
        let text = format!(
            "the terms of the {} {address} are unknown here: so is who can announce from it alone, and when",
            state.kind
        );
        let advice = "the vault has them from the first round with the cohort on; until then trust its operator as if it could \
                      announce from there at any time (docs/trust.md)";
        report.add(Finding::warning(Code::TermsUnknown, text).address(address).advice(advice));
    }
    let Some((output, activity)) = known else { return };
    let coins = survey(output, activity).unwrap_or_default();
    for coin in coins.iter().filter(|coin| coin.spent_by.is_none()) {
        let (outpoint, value) = (coin.outpoint, coin.value.to_sat());
        let finding = match coin.maturity {
            Maturity::Mature { height } => Finding::warning(
                Code::OperatorAlone,
                format!(
                    "the operator of the beacon {address} alone can spend {outpoint} ({value} sat) now (from block {height} on), and \
                     announce what it likes: it cannot forge an update, but a signal without data makes the DID unresolvable"
                ),
            ),
            Maturity::Waiting { height, blocks, .. } if blocks <= view.terms.warn_blocks => Finding::warning(
                Code::OperatorSoon,
                format!(
                    "in {blocks} blocks, from block {height} on, the operator of the beacon {address} alone can spend {outpoint} ({value} \
                     sat), and announce what it likes"
                ),
            ),
            Maturity::Waiting { .. } | Maturity::Unconfirmed => continue,
        };
        let advice =
            "ask the operator to recover the coin; removing the beacon from the document does not help (rule R-5)";
        report.add(finding.address(address).outpoint(outpoint).advice(advice));
    }
}

/// What is known of a beacon, for people.
fn summary(state: &BeaconState) -> Finding {
    let BeaconState { address, kind, service, signals, .. } = state;
    let listed = match state.listed {
        Some(true) => "",
        Some(false) => ", removed from the document (its signals still need their data)",
        None => ", of an earlier document at least",
    };
    let last = match state.last_signal {
        Some(LastSignal { height, .. }) if *signals == 1 => format!("1 signal, in block {height}"),
        Some(LastSignal { height, .. }) => format!("{signals} signals, the last in block {height}"),
        None => "no signal".to_owned(),
    };
    let coins = match (state.confirmed, state.unconfirmed) {
        (Some(confirmed), Some(0)) => format!("{confirmed} sat"),
        (Some(confirmed), Some(unconfirmed)) => format!("{confirmed} sat, and {unconfirmed} sat unconfirmed"),
        _ => "coins unknown".to_owned(),
    };
    let trust = match &state.operator {
        None => String::new(),
        Some(operator) => format!("; {}", operator.sentence()),
    };
    let text = format!("{kind} {address} ({}){listed}: {last}; {coins}{trust}", shown(service));
    Finding::ok(Code::Beacon, text).address(address)
}

impl Operator {
    /// Who can announce, in words.
    fn sentence(&self) -> String {
        let some = match self.fallback_threshold {
            Some(threshold) => {
                format!("any {threshold} of the {} members can announce without the others", self.members)
            }
            None => format!("all {} members announce together", self.members),
        };
        let Some(blocks) = self.recovery_blocks else {
            return format!("{some}, and its operator never alone");
        };
        let coins: Vec<_> = self
            .coins
            .iter()
            .map(|coin| match coin.alone_from {
                Some(height) => format!("{} ({} sat) from block {height} on", coin.outpoint, coin.value),
                None => format!("{} ({} sat) {blocks} blocks after its confirmation", coin.outpoint, coin.value),
            })
            .collect();
        let alone = match coins.is_empty() {
            true => format!(
                "its operator alone can spend a coin there once it is {blocks} blocks old (there is none now, but anyone can pay \
                 one to it)"
            ),
            false => format!("its operator alone can spend {}", coins.join(", ")),
        };
        format!("{some}, and {alone}")
    }
}

fn unusable(chain: &ChainView, report: &mut Report) {
    let mut seen = BTreeSet::new();
    for event in chain.young.history.iter().chain(&chain.settled.history) {
        let Event::Unusable { beacon, .. } = event else { continue };
        if seen.insert(beacon.clone()) {
            let text = format!(
                "the {} {} names no address of the DID's network: nothing can be announced there",
                beacon.kind,
                shown(&beacon.service)
            );
            report
                .add(Finding::warning(Code::UnusableBeacon, text).advice("remove it: `update DID remove-beacon`"));
        }
    }
}

fn judge_document(listed: &[Beacon], report: &mut Report) {
    if listed.is_empty() {
        let text = "the current document lists no beacon: no update of the DID can be announced any more";
        report.add(Finding::warning(Code::NoBeacon, text).advice("the DID stays as it is; keep the vault"));
    } else if !listed.iter().any(|beacon| beacon.kind == BeaconKind::Singleton) {
        let text =
            "no Singleton beacon is listed: if the cohorts of its beacons end, the DID can never be updated again";
        let advice = "add one of your own key with the next update: `update DID add-beacon ADDRESS,singleton`";
        report.add(Finding::warning(Code::NoSingleton, text).advice(advice));
    }
}

/// The script addresses to look at for coins.
pub(super) fn addresses(chain: &[&[Event]]) -> BTreeMap<String, (Address, BeaconKind)> {
    let scans = chain.iter().flat_map(|history| history.iter()).filter_map(|event| match event {
        Event::Scanned { beacon, .. } => Some((beacon.address.to_string(), (beacon.address.clone(), beacon.kind))),
        _ => None,
    });
    // The first listing counts (rule C8).
    scans.fold(BTreeMap::new(), |mut found, (text, beacon)| {
        found.entry(text).or_insert(beacon);
        found
    })
}
