//! The updates of the vault that are not part of the confirmed history: what may be announced from now on, and what that would
//! do to the DID.

use std::collections::BTreeMap;

use ::bitcoin::Txid;
use serde::Serialize;

use super::{ChainView, Code, Finding, Report, View};
use crate::{
    protocol::{
        hash::{DocumentHash, SignalBytes},
        id::CohortId,
        resolution::{Event, beacons},
        update::{BlockTimes, SignedUpdate, UpdateContext, UpdateError, verify_update, violations},
    },
    vault::{VaultContents, target},
};

/// The name that stands for the cohort of an update that is announced without one.
const ALONE: &str = "singleton";

/// How far an update has got, as the vault and the chain show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, strum::Display)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum UpdateStanding {
    /// It was given to its controller, to be announced without a cohort: possibly announced.
    Prepared,
    /// It was approved in a cohort: possibly announced from then on.
    Approved,
    /// The cohort's transaction was seen signed.
    Signed,
    /// A transaction in the mempool announces it.
    InMempool,
    /// It is in a block, with too few confirmations to count.
    InBlock,
    /// Another update of its version was applied: it must never be announced.
    Superseded,
}

/// An update that the confirmed history does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdateState {
    /// The version to which it leads.
    pub version: u64,
    /// Its hash.
    pub hash: DocumentHash,
    /// How far it has got.
    pub standing: UpdateStanding,
    /// The cohorts in which it was approved; empty if it was only prepared without one.
    pub cohorts: Vec<CohortId>,
    /// The transaction that was seen signed for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub txid: Option<Txid>,
}

/// Where an update may come from.
struct Place<'a> {
    cohort_id: Option<&'a CohortId>,
    address: Option<&'a str>,
    signal: SignalBytes,
    txid: Option<Txid>,
    /// Whether `vault recover` found it announced: then it was not only prepared.
    was_recovered: bool,
}

struct Known<'a> {
    version: u64,
    update: &'a SignedUpdate,
    places: Vec<Place<'a>>,
}

pub(super) fn evaluate(view: &View<'_>, chain: &ChainView, report: &mut Report) {
    let (Some(vault), Some((document, current, deactivated))) = (view.vault, view.current()) else { return };
    let settled = applied(&chain.settled.history);
    let young = applied(&chain.young.history);
    let listed: Vec<String> = beacons(document, view.did.network())
        .into_iter()
        .flatten()
        .map(|beacon| beacon.address.to_string())
        .collect();
    let (known, disproved) = known(view, vault, chain);
    disproved.into_iter().for_each(|finding| report.add(finding));
    let open = known.into_iter().filter(|known| !settled.values().any(|hash| hash == known.update.hash()));
    // By version, all whose unsigned forms differ, and whether the controller cannot leave them unannounced any more.
    let mut versions: BTreeMap<u64, BTreeMap<DocumentHash, bool>> = BTreeMap::new();
    for known in open {
        let Ok(unsigned) = known.update.unsigned_hash() else { continue };
        let same = |hash: &DocumentHash| {
            chain.updates.get(hash).and_then(|update| update.unsigned_hash().ok()) == Some(unsigned)
        };
        match young.get(&known.version) {
            // Announced again, or signed again, it changes nothing (rule R-8).
            Some(hash) if hash == known.update.hash() || same(hash) => {
                if !settled.contains_key(&known.version) {
                    report.updates.push(known.state(UpdateStanding::InBlock));
                }
            }
            Some(_) => superseded(chain, &known, &listed, (current, deactivated), report),
            None => {
                // What is in the mempool is announced already.
                let by_others =
                    known.places.iter().any(|place| place.cohort_id.is_some() || place.is_in_mempool(chain));
                *versions.entry(known.version).or_default().entry(unsigned).or_default() |= by_others;
                pending(view, chain, &known, (document, current, deactivated), &listed, report);
            }
        }
    }
    if deactivated {
        return;
    }
    for (version, different) in versions.iter().filter(|(_, different)| different.len() > 1) {
        report.add(contradiction(*version, different));
    }
    // Of a resolution that failed, the versions up to there.
    let reached = young.keys().last().copied().unwrap_or(current).max(current);
    let Some(gap) = (reached + 1..).find(|version| !versions.contains_key(version)) else { return };
    for version in versions.keys().filter(|version| **version > gap) {
        let text = format!(
            "the vault has an update of version {version}, but none of version {gap}: announced first, it ends the DID (rule R-9)"
        );
        report.add(
            Finding::warning(Code::VersionGap, text)
                .version(*version)
                .advice("do not announce it before the versions between are confirmed"),
        );
    }
}

/// Different updates of one version. Its controller can leave a prepared one unannounced; what cohorts approved others can announce.
fn contradiction(version: u64, different: &BTreeMap<DocumentHash, bool>) -> Finding {
    let by_others = different.values().filter(|by_others| **by_others).count();
    let text = format!(
        "the vault has {} different updates of version {version} that may be announced, {by_others} of them by cohorts, or announced \
         in the mempool: two of them end the DID",
        different.len()
    );
    let finding = match by_others {
        0 | 1 => Finding::warning(Code::Contradiction, text),
        _ => Finding::problem(Code::Contradiction, text),
    };
    finding.version(version).advice(
        "let only one of them be announced. If another confirmed transaction has spent the coin of a cohort, its update can never be \
         announced there; state that with --supersede COHORT (`singleton` for those that were prepared without a cohort)",
    )
}

/// The updates of the vault, each with every place from which it may be announced; and which statements of the controller, that an
/// update will never be announced, are not true.
fn known<'a>(view: &View<'a>, vault: &'a VaultContents, chain: &ChainView) -> (Vec<Known<'a>>, Vec<Finding>) {
    let mut found: BTreeMap<DocumentHash, Known<'a>> = BTreeMap::new();
    let mut disproved = Vec::new();
    let superseded = |name: &str| view.terms.superseded.iter().any(|cohort_id| cohort_id.as_str() == name);
    let mut add = |update: &'a SignedUpdate, place: Place<'a>| {
        let Some(version) = update.target_version() else { return };
        let name = place.cohort_id.map_or(ALONE, CohortId::as_str);
        if superseded(name) && !place.was_recovered {
            let Some((txid, at)) = place.announced(chain) else { return };
            let text = format!(
                "--supersede {name} states that the update of version {version} will never be announced there, but transaction {txid} {at} \
                 announces it: it counts"
            );
            let finding = Finding::warning(Code::Contradiction, text).version(version).hash(*update.hash());
            let advice = "take --supersede away for it, and never sign another update of that version";
            disproved.push(finding.txid(txid).cohort(place.cohort_id).advice(advice));
        }
        let known = found.entry(*update.hash()).or_insert_with(|| Known { version, update, places: Vec::new() });
        known.places.push(place);
    };
    for entry in &vault.entries {
        if let Some(update) = &entry.record.update {
            let record = &entry.record;
            add(
                update,
                Place {
                    cohort_id: Some(&record.cohort_id),
                    address: Some(record.output.address()),
                    signal: record.signal,
                    txid: entry.txid,
                    was_recovered: false,
                },
            );
        }
    }
    for update in vault.prepared.iter().filter(|update| target(update).is_none_or(|did| did == *view.did)) {
        let signal = SignalBytes::from_bytes(*update.hash().as_bytes());
        let was_recovered = vault.was_recovered(update.hash());
        add(update, Place { cohort_id: None, address: None, signal, txid: None, was_recovered });
    }
    let mut known: Vec<_> = found.into_values().collect();
    known.sort_by_key(|known| known.version);
    (known, disproved)
}

/// The updates that made each version.
fn applied(history: &[Event]) -> BTreeMap<u64, DocumentHash> {
    let steps = history.iter().filter_map(|event| match event {
        Event::Applied(step) => Some((step.version, step.update)),
        _ => None,
    });
    steps.collect()
}

impl Known<'_> {
    fn state(&self, standing: UpdateStanding) -> UpdateState {
        UpdateState {
            version: self.version,
            hash: *self.update.hash(),
            standing,
            cohorts: self.places.iter().filter_map(|place| place.cohort_id.cloned()).collect(),
            txid: self.places.iter().find_map(|place| place.txid),
        }
    }

    /// How far it has got that is not in a block.
    fn standing(&self, chain: &ChainView) -> UpdateStanding {
        if self.places.iter().any(|place| place.is_in_mempool(chain)) {
            UpdateStanding::InMempool
        } else if self.places.iter().any(|place| place.txid.is_some()) {
            UpdateStanding::Signed
        } else if self.places.iter().any(|place| place.cohort_id.is_some()) {
            UpdateStanding::Approved
        } else {
            UpdateStanding::Prepared
        }
    }

    /// Where it may come from, for people.
    fn origin(&self) -> String {
        let of = |place: &Place<'_>| match place.cohort_id {
            Some(cohort_id) => format!("in cohort {cohort_id}"),
            None => "without a cohort".to_owned(),
        };
        let places: Vec<_> = self.places.iter().map(of).collect();
        places.join(" and ")
    }

    /// Whether a resolver could still find it: from a coin at an address that the document lists.
    fn may_be_found(&self, chain: &ChainView, listed: &[String]) -> bool {
        self.places.iter().any(|place| place.is_listed(listed) && place.has_coin(chain))
    }
}

impl Place<'_> {
    fn is_in_mempool(&self, chain: &ChainView) -> bool {
        chain.unconfirmed.iter().any(|signal| signal.bytes == self.signal)
    }

    /// The transaction that announces it, in a block or in the mempool.
    fn announced(&self, chain: &ChainView) -> Option<(Txid, String)> {
        let in_block = chain.young.history.iter().find_map(|event| match event {
            Event::Signal { signal, .. } if signal.bytes == self.signal => {
                Some((signal.txid, format!("in block {}", signal.block.height)))
            }
            _ => None,
        });
        let waiting = || {
            let signal = chain.unconfirmed.iter().find(|signal| signal.bytes == self.signal)?;
            Some((signal.txid, "in the mempool".to_owned()))
        };
        in_block.or_else(waiting)
    }

    /// Whether the document lists its address. Its controller can announce a prepared update from any beacon.
    fn is_listed(&self, listed: &[String]) -> bool {
        self.address.is_none_or(|address| listed.iter().any(|listed| listed == address))
    }

    /// Whether there is a coin with which it can be announced there, as far as is known.
    fn has_coin(&self, chain: &ChainView) -> bool {
        let Some(address) = self.address else { return true };
        let coins = chain.coins.as_ref().ok().and_then(|coins| coins.get(address));
        coins.is_none_or(|activity| !activity.deposits.is_empty())
    }
}

/// Another update of its version was applied. A resolver compares the two right after the one that was applied, before any later
/// version (rules ). So "deactivated" and "not listed" protect only as facts of the document of that version, which is
/// known here if it is the current one; where its address is listed later, that is not known.
fn superseded(
    chain: &ChainView,
    known: &Known<'_>,
    listed: &[String],
    (current, deactivated): (u64, bool),
    report: &mut Report,
) {
    report.updates.push(known.state(UpdateStanding::Superseded));
    let (version, origin) = (known.version, known.origin());
    let cohort = known.places.iter().find_map(|place| place.cohort_id);
    let is_newest = version == current;
    let harmless = if known.places.iter().any(|place| place.is_in_mempool(chain)) {
        None
    } else if !known.places.iter().any(|place| place.has_coin(chain)) {
        Some("its cohort's beacon has no coin to announce it with")
    } else if is_newest && deactivated {
        Some("the DID is deactivated")
    } else if is_newest && !known.may_be_found(chain, listed) {
        Some("its cohort's beacon is not in the document, or has no coin to announce it with")
    } else {
        None
    };
    if let Some(why) = harmless {
        let text = format!(
            "an update of version {version}, {origin}, is superseded by another one; {why}: it does no harm now"
        );
        report.add(
            Finding::ok(Code::SupersededUpdate, text).version(version).hash(*known.update.hash()).cohort(cohort),
        );
        return;
    }
    let signed = known.places.iter().find_map(|place| place.txid);
    let how = match signed {
        _ if known.places.iter().any(|place| place.is_in_mempool(chain)) => {
            "a transaction in the mempool announces it".to_owned()
        }
        Some(txid) => format!(
            "its transaction {txid} is signed, so that anyone who has it can announce it while its coin is unspent"
        ),
        None => "it may still be announced".to_owned(),
    };
    let later = match is_newest {
        true => "",
        false => {
            ". That the document changed later, or deactivates the DID, does not protect it: resolvers compare the two first"
        }
    };
    let text = format!(
        "another update of version {version}, {origin}, is superseded, but {how}: if it is confirmed, the DID never resolves again (rule \
         R-8){later}"
    );
    let advice =
        "never announce it; once the coin of its cohort is spent by another confirmed transaction it is harmless";
    report.add(
        Finding::warning(Code::SupersededUpdate, text)
            .version(version)
            .hash(*known.update.hash())
            .cohort(cohort)
            .advice(advice),
    );
}

/// An update that no resolver applies: others can announce it once it is signed.
fn cannot_apply(
    known: &Known<'_>,
    chain: &ChainView,
    standing: UpdateStanding,
    listed: &[String],
    text: String,
) -> Finding {
    match standing {
        UpdateStanding::Signed | UpdateStanding::InMempool if known.may_be_found(chain, listed) => {
            Finding::problem(Code::CannotApply, text)
        }
        _ => Finding::warning(Code::CannotApply, text),
    }
    .state(standing)
}

/// The `expires` of an update that is before the tip's median time: that of no later block is earlier.
fn expired<'a>(known: &Known<'a>, context: UpdateContext<'_>, chain: &ChainView) -> Option<&'a str> {
    let block = BlockTimes { time: u32::MAX, mediantime: chain.tip?.median_time };
    let broken = violations(known.update, &UpdateContext { block: Some(block), ..context });
    let has_expired = broken.iter().any(|error| matches!(error, UpdateError::ExpiredInBlock));
    known.update.value().pointer("/proof/expires")?.as_str().filter(|_| has_expired)
}

/// It leads to a version that no block has yet.
fn pending(
    view: &View<'_>,
    chain: &ChainView,
    known: &Known<'_>,
    (document, current, deactivated): (&serde_json::Value, u64, bool),
    listed: &[String],
    report: &mut Report,
) {
    let standing = known.standing(chain);
    let (version, origin) = (known.version, known.origin());
    let state = known.state(standing);
    let (cohort, txid) = (known.places.iter().find_map(|place| place.cohort_id), state.txid);
    report.updates.push(state);
    let stands = match (standing, txid) {
        (UpdateStanding::Prepared, _) => "prepared, and possibly announced".to_owned(),
        (UpdateStanding::Approved, _) => "approved, and possibly announced".to_owned(),
        (UpdateStanding::InMempool, _) => "in the mempool".to_owned(),
        (_, Some(txid)) => format!("signed as {txid}, and not confirmed"),
        (_, None) => "signed, and not confirmed".to_owned(),
    };
    let text = format!("an update of version {version}, {origin}, is {stands}");
    if deactivated {
        let text = format!("{text}; the DID is deactivated, so that it cannot apply any more and does no harm");
        report
            .add(Finding::ok(Code::PendingUpdate, text).version(version).hash(*known.update.hash()).cohort(cohort));
        return;
    }
    let context = UpdateContext { did: view.did, document, version: current, block: None };
    if let Some(expired) = expired(known, context, chain) {
        let text = format!("{text}, but it has expired ({expired}): no resolver applies it any more (rule U-10)");
        let advice =
            "if it is announced at a beacon of the document, the DID never resolves again: do not announce it";
        report.add(
            cannot_apply(known, chain, standing, listed, text)
                .version(version)
                .hash(*known.update.hash())
                .cohort(cohort)
                .advice(advice),
        );
        return;
    }
    if version == current + 1
        && let Err(error) = verify_update(known.update, &context)
    {
        let text = format!("{text}, but it cannot apply to the current document: {error}");
        let advice =
            "if it is announced at a beacon of the document, the DID never resolves again: do not announce it";
        let finding = cannot_apply(known, chain, standing, listed, text);
        report.add(finding.version(version).hash(*known.update.hash()).cohort(cohort).advice(advice));
        return;
    }
    let elsewhere =
        known.places.iter().all(|place| place.address.is_some_and(|address| !listed.iter().any(|l| l == address)));
    let mut finding = Finding::ok(Code::PendingUpdate, text)
        .state(standing)
        .version(version)
        .hash(*known.update.hash())
        .cohort(cohort);
    if elsewhere {
        finding = finding.advice(
            "no beacon of the current document is one of that cohort, so that resolvers do not find it there: announce the same \
             update from a beacon that the document lists, e.g. with `singleton`",
        );
    }
    report.add(finding);
}
