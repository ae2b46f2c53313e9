//! The update that saves a DID whose cohort is dead: it takes the cohort's beacon out of the document, and is announced by the DID's own
//! Singleton beacon.

use serde_json::{Value, json};

use super::{
    data::Keeping,
    leaving::{Exits, address_of, destination, item},
    queue::{Change, NewItem, Queue},
    report::Reporter,
    settling::Seed,
};
use crate::{
    controller::Current,
    protocol::{
        beacon::did_index,
        did::Did,
        document,
        hash::{DidIndex, DocumentHash},
        id::CohortId,
        text::shown,
        update::SignedUpdate,
    },
    singleton::places::places,
};

/// What is asked for.
pub(super) struct Order {
    pub(super) did: Did,
    /// The dead cohort; the only one whose address the document lists, if there is one.
    pub(super) cohort_id: Option<CohortId>,
    /// Its address, where there is no seat in it any more.
    pub(super) address: Option<String>,
    /// The cohort whose beacon takes the place of the dead one.
    pub(super) to: Option<CohortId>,
    /// Instead of a new update the one that was submitted to the cohort, and may still be announced.
    pub(super) pending: bool,
}

/// A cohort whose address the document lists.
struct Listed {
    cohort_id: CohortId,
    address: String,
}

/// The cohorts of a seed's seats whose addresses a document lists.
async fn listed(seed: &Seed, document: &Value) -> Vec<Listed> {
    let mut listed = Vec::new();
    for seat in seed.member.seats().await {
        let Some(machine) = seed.member.inspect(&seat.seat).await else { continue };
        let (address, kind) = (address_of(&machine), machine.config().terms.beacon_type.as_str());
        if document::lists_beacon(document, kind, &address) {
            listed.push(Listed { cohort_id: seat.cohort_id, address });
        }
    }
    listed
}

/// The updates of that version that a cohort may still announce: each with its cohort, as far as that is known.
async fn committed(
    seed: &Seed,
    queue: &Queue,
    order: &Order,
    index: &DidIndex,
    version: u64,
) -> Vec<(Option<CohortId>, DocumentHash)> {
    let mut committed = Vec::new();
    for seat in seed.member.seats().await {
        let Some(machine) = seed.member.inspect(&seat.seat).await else { continue };
        let of_version = machine.committed().into_iter().filter(|(of, to, _)| of == index && *to == version);
        committed.extend(of_version.map(|(.., hash)| (Some(seat.cohort_id.clone()), hash)));
    }
    if order.address.is_some() {
        // The seat that knows is lost: what it may have submitted counts.
        let items = queue.open_items().into_iter();
        let submitted =
            items.filter(|item| item.did == order.did && item.version == version && item.may_be_announced);
        committed.extend(submitted.map(|item| (item.place.map(|place| place.cohort_id), *item.update.hash())));
        let moves = seed.controller.address_changes_of(index).into_iter();
        let moves = moves.filter(|update| update.target_version() == Some(version));
        committed.extend(moves.map(|update| (order.cohort_id.clone(), *update.hash())));
    }
    committed
}

/// The dead cohort whose beacon the document lists.
async fn dead(seed: &Seed, order: &Order, document: &Value) -> Result<Listed, String> {
    if let (Some(cohort_id), Some(address)) = (&order.cohort_id, &order.address) {
        return Ok(Listed { cohort_id: cohort_id.clone(), address: address.clone() });
    }
    let mut listed = listed(seed, document).await;
    listed.retain(|one| order.cohort_id.as_ref().is_none_or(|id| *id == one.cohort_id));
    match listed.len() {
        0 => Err("its document lists the beacon of no such cohort in which this member has a seat. For one whose seat is lost give --cohort ID \
                  and --address ADDRESS"
            .to_owned()),
        1 => Ok(listed.remove(0)),
        count => Err(format!("its document lists the beacons of {count} cohorts: give --cohort ID")),
    }
}

/// What the command needs of the agent.
pub(super) struct Agent<'a> {
    pub(super) seeds: &'a [Seed],
    pub(super) queue: &'a Queue,
    pub(super) exits: &'a Exits,
    pub(super) keeping: &'a Keeping,
    pub(super) reporter: &'a Reporter,
}

/// Prepares the update, and records that it may be announced from now on. The same one each time, until resolvers return it.
///
/// # Errors
/// Why there is none, and what to wait for, in words.
pub(super) async fn rescue(agent: &Agent<'_>, order: &Order) -> Result<Value, String> {
    let Agent { seeds, queue, exits, keeping, reporter } = *agent;
    let (did, index) = (&order.did, did_index(&order.did));
    let seed = seeds.iter().find(|seed| seed.controller.indexes().contains_key(&index));
    let seed = seed.ok_or_else(|| format!("{did} is not a DID of this member"))?;
    if let (Some(cohort_id), Some(address)) = (&order.cohort_id, &order.address) {
        // No seat stores what was announced there meanwhile. From now on it is fetched without end.
        exits.begin(did, cohort_id, address).await?;
        if let Err(problem) = keeping.fetch(seed, None, cohort_id, std::slice::from_ref(did)).await {
            reporter
                .printer()
                .warn(&format!("what cohort {cohort_id} has announced cannot be fetched now: {problem}"));
        }
    }
    let current = seed.controller.current(did).await.map_err(|error| {
        let hint = "; where the seat of its cohort is lost, --cohort ID and --address ADDRESS fetch what was announced without it";
        format!("{error}{}", if order.address.is_none() { hint } else { "" })
    })?;
    if let Some(known) = queue.by_singleton(&index) {
        return answer(seed, did, &current, &known.update);
    }
    if let Some(young) = &current.young {
        return Err(format!(
            "version {} is in a block, with {} confirmations: wait until it is final, and ask again",
            young.version, young.confirmations
        ));
    }
    if let Some(unsettled) = &current.unsettled {
        return Err(unsettled.clone());
    }
    let version = current.version + 1;
    let committed = committed(seed, queue, order, &index, version).await;
    let (new, left) = match (order.pending, committed.first()) {
        (true, None) => return Err(format!("no update of version {version} was submitted that may be announced")),
        (true, Some((_, hash))) => {
            let known = seed.controller.known_update(&index, &|update| update.hash() == hash);
            let update = known.ok_or_else(|| format!("the update {hash} is not here"))?;
            (NewItem { did: did.clone(), change: Change::Signed, update, allow_risky: true }, None)
        }
        (false, Some((cohort_id, hash))) => {
            let cohort = cohort_id.as_ref().map_or_else(|| "a cohort".to_owned(), |id| format!("cohort {id}"));
            return Err(format!(
                "{cohort} may still announce the update {hash} of version {version}: it is in a response of this seat, and k seats \
                 can sign it without it. Two updates of one version end the DID. Wait until a final transaction has spent the coin of that \
                 number (then this command works), or announce that very update by the Singleton beacon first (--pending), and the rescue \
                 after it"
            ));
        }
        (false, None) => {
            let dead = dead(seed, order, &current.document).await?;
            let to = match &order.to {
                Some(to) => Some(destination(seed, did, to).await?),
                None => None,
            };
            let new = item(seed, did, &current, &dead.address, to)?;
            (new.ok_or("its document does not list the address")?, Some(dead))
        }
    };
    // Nothing is promised that cannot be announced.
    answer(seed, did, &current, &new.update)?;
    let update = new.update.clone();
    // Resolvers need it as soon as it is in a block.
    seed.controller.store_update(did, &update)?;
    let known = queue.open_items().into_iter().find(|known| known.update.hash() == update.hash());
    if known.is_none() {
        let item = queue.add_by_singleton(new).await.map_err(|error| error.to_string())?;
        reporter.update(&item);
    }
    if let Some(Listed { cohort_id, address }) = left {
        exits.begin(did, &cohort_id, &address).await?;
    }
    answer(seed, did, &current, &update)
}

/// The update with what the command needs that announces it.
fn answer(seed: &Seed, did: &Did, current: &Current, update: &SignedUpdate) -> Result<Value, String> {
    let controlled = seed.controller.signer_of(did, current).ok_or("it is not a DID of this seat")?;
    let places = places(&current.document, did, Some(&controlled.keys));
    if places.is_empty() {
        return Err(format!(
            "{did} has no Singleton beacon: no update of it can be announced but by its cohort. It stays as it is"
        ));
    }
    let beacons: Vec<Value> = places
        .iter()
        .map(|place| {
            let is_own = place.secret(Some(&controlled.keys)).is_some();
            json!({ "id": shown(place.name()), "address": place.address.to_string(), "own": is_own })
        })
        .collect();
    Ok(json!({
        "did": did,
        "versionId": update.target_version().map(|version| version.to_string()),
        "update": update.value(),
        "sourceDocument": current.document,
        "sidecar": seed.controller.sidecar(did),
        "identity": controlled.keys.name(),
        "beacons": beacons,
    }))
}
