//! DIDs that leave a cohort: an update removes its address from the document, or puts another one in its place; when that is final the seat
//! unregisters the DID. It is a former one from then on: it submits nothing, and the data of every later announcement are stored for it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    notice::MemberNotice,
    queue::{Change, NewItem, Queue},
    report::Reporter,
    settling::Seed,
    tally::TABLE,
};
use crate::{
    actors::{
        runtime::{Clock, Randomness},
        standing::{SeatRequest, SeatSummary, policy::RowWanted},
        state::{State, Table},
    },
    controller::{Current, CurrentError},
    protocol::{
        beacon::did_index,
        cohort::standing::{RowAction, seat::Seat},
        did::Did,
        document::{self, beacon_address},
        hash::DidIndex,
        id::CohortId,
        time::Timestamp,
        update::{build_update, sign_update},
    },
};

/// The keys of exits in the member's table begin with it.
const PREFIX: &str = "exit/";

/// How far an exit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The update is on its way.
    Leaving,
    /// Resolvers return a document without the address; the seat unregisters the DID.
    Unregistering,
    /// The roster is without it.
    Left,
}

impl Step {
    /// As it is stored and shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Leaving => "leaving",
            Self::Unregistering => "unregistering",
            Self::Left => "left",
        }
    }
}

/// A DID that leaves a cohort, or has left it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// The DID.
    pub did: Did,
    /// The cohort.
    pub cohort_id: CohortId,
    /// The address that its document does not list any more then.
    pub beacon_address: String,
    /// How far it is.
    pub step: Step,
    /// Since when.
    pub since: Timestamp,
}

/// The exits of a member. What it answers is stored.
pub(super) struct Exits {
    table: Table,
    clock: Clock,
    exits: Mutex<BTreeMap<(CohortId, DidIndex), Exit>>,
}

impl Exits {
    pub(super) async fn open(state: &State, clock: Clock) -> Result<Self, String> {
        let table = state.table(TABLE);
        let page = table.scan(PREFIX, None, usize::MAX).await.map_err(|error| error.to_string())?;
        let mut exits = BTreeMap::new();
        for (_, value) in &page.entries {
            let exit: Exit = serde_json::from_slice(value).map_err(|error| error.to_string())?;
            exits.insert((exit.cohort_id.clone(), did_index(&exit.did)), exit);
        }
        Ok(Self { table, clock, exits: Mutex::new(exits) })
    }

    fn exits(&self) -> MutexGuard<'_, BTreeMap<(CohortId, DidIndex), Exit>> {
        // Each change is one call.
        self.exits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a DID leaves a cohort, or has left it: it is not registered there again.
    pub(super) fn has(&self, cohort_id: &CohortId, index: &DidIndex) -> bool {
        self.exits().contains_key(&(cohort_id.clone(), *index))
    }

    /// The exits of a DID.
    pub(super) fn of(&self, index: &DidIndex) -> Vec<Exit> {
        self.exits().iter().filter(|((_, of), _)| of == index).map(|(_, exit)| exit.clone()).collect()
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Exit> {
        self.exits().values().cloned().collect()
    }

    /// Those that are not over.
    pub(super) fn open_ones(&self) -> Vec<Exit> {
        self.exits().values().filter(|exit| exit.step != Step::Left).cloned().collect()
    }

    /// A DID leaves a cohort.
    pub(super) async fn begin(&self, did: &Did, cohort_id: &CohortId, address: &str) -> Result<Exit, String> {
        if let Some(known) = self.exits().get(&(cohort_id.clone(), did_index(did))) {
            return Ok(known.clone());
        }
        let exit = Exit {
            did: did.clone(),
            cohort_id: cohort_id.clone(),
            beacon_address: address.to_owned(),
            step: Step::Leaving,
            since: self.clock.now(),
        };
        self.put(exit.clone()).await?;
        Ok(exit)
    }

    async fn put(&self, exit: Exit) -> Result<(), String> {
        let key = format!("{PREFIX}{}/{}", exit.cohort_id, exit.did);
        let value = serde_json::to_vec(&exit).map_err(|error| error.to_string())?;
        self.table.put(key, value).await.map_err(|error| error.to_string())?;
        self.exits().insert((exit.cohort_id.clone(), did_index(&exit.did)), exit);
        Ok(())
    }
}

/// The seat of a seed in a cohort that has formed.
pub(super) async fn seat_in(seed: &Seed, cohort_id: &CohortId) -> Option<(SeatSummary, Arc<Seat>)> {
    let seats = seed.member.seats().await;
    let seat = seats.into_iter().find(|seat| seat.cohort_id == *cohort_id)?;
    let machine = seed.member.inspect(&seat.seat).await.filter(|machine| machine.output().is_some())?;
    Some((seat, machine))
}

/// The address of a seat's cohort.
pub(super) fn address_of(machine: &Seat) -> String {
    machine.output().map(|output| output.address().to_owned()).unwrap_or_default()
}

/// Address and type of the beacon of the cohort to which a DID goes: k seats there have signed that it is registered. One that is not is
/// registered now.
///
/// # Errors
/// Why it cannot go there yet, in words.
pub(super) async fn destination(seed: &Seed, did: &Did, to: &CohortId) -> Result<(String, String), String> {
    let Some((seat, machine)) = seat_in(seed, to).await else {
        return Err(format!("there is no seat in a cohort {to} that has formed"));
    };
    let index = did_index(did);
    if machine.confirmed_indexes().any(|confirmed| *confirmed == index) {
        return Ok((address_of(&machine), machine.config().terms.beacon_type.as_str().to_owned()));
    }
    if !machine.has_asked(&index, RowAction::Register) {
        let row = RowWanted { did: did.clone(), action: RowAction::Register };
        // A seat that has ended is asked again.
        let _ = seed.member.request(&seat.seat, SeatRequest::Rows(vec![row])).await;
    }
    Err(format!(
        "{did} is not registered in cohort {to} yet. That is asked for: try again when `member dids` shows it"
    ))
}

/// The update of a DID that takes the address `from` out of its current document. `None` if that does not list it.
pub(super) fn item(
    seed: &Seed,
    did: &Did,
    current: &Current,
    from: &str,
    to: Option<(String, String)>,
) -> Result<Option<NewItem>, String> {
    let (source, version) = (&current.document, current.version);
    // It may list the other one already.
    let to = to.filter(|(address, kind)| !document::lists_beacon(source, kind, address));
    let change = Change::Address { from: from.to_owned(), to };
    let Ok(patch) = change.on(source) else { return Ok(None) };
    let unsigned = build_update(source, version, patch).map_err(|error| error.to_string())?;
    let concerns: Vec<String> =
        document::concerns(source, unsigned.target_document()).iter().map(ToString::to_string).collect();
    if !concerns.is_empty() {
        let more = "; give the cohort in which it goes on: --to COHORT, or add a Singleton beacon first";
        return Err(format!("{did}: {}{more}", concerns.join("; ")));
    }
    let controlled = seed.controller.signer_of(did, current).ok_or("it is not a DID of this seat")?;
    let signer = controlled.keys.signer(source, version).map_err(|error| error.to_string())?;
    let mut rng = Randomness::System.for_actor("update");
    let update = sign_update(&unsigned, did, &signer.0, signer.1, &mut rng).map_err(|error| error.to_string())?;
    Ok(Some(NewItem { did: did.clone(), change, update, allow_risky: false }))
}

/// What is asked for.
pub(super) struct Order {
    pub(super) dids: Vec<Did>,
    /// All DIDs that are registered in the cohort.
    pub(super) all: bool,
    pub(super) cohort_id: CohortId,
    /// The cohort whose beacon takes the place of the other.
    pub(super) to: Option<CohortId>,
}

/// Puts the updates by which DIDs leave a cohort into the queue. Those that can leave do, whatever is with others.
///
/// # Errors
/// Why nothing was done, in words.
pub(super) async fn leave(
    seeds: &[Seed],
    queue: &Queue,
    exits: &Exits,
    reporter: &Reporter,
    order: &Order,
) -> Result<Value, String> {
    let (mut done, mut refused, mut seats) = (Vec::new(), Vec::new(), 0);
    let mut wanted: BTreeMap<DidIndex, &Did> = order.dids.iter().map(|did| (did_index(did), did)).collect();
    for seed in seeds {
        let Some((_, machine)) = seat_in(seed, &order.cohort_id).await else { continue };
        seats += 1;
        let (from, known) = (address_of(&machine), seed.controller.indexes());
        for index in machine.indexes() {
            if wanted.remove(index).is_none() && !order.all {
                continue;
            }
            let Some(did) = known.get(index) else { continue };
            match one(seed, queue, reporter, did, &from, order.to.as_ref()).await {
                Ok(update) => {
                    let exit = exits.begin(did, &order.cohort_id, &from).await?;
                    done.push(json!({ "did": did, "step": exit.step, "update": update }));
                }
                Err(reason) => refused.push(json!({ "did": did, "reason": reason })),
            }
        }
    }
    if seats == 0 {
        return Err(format!("there is no seat in a cohort {} that has formed", order.cohort_id));
    }
    let elsewhere = wanted.into_values();
    let reason = "it is not registered in that cohort";
    refused.extend(elsewhere.map(|did| json!({ "did": did, "reason": reason })));
    Ok(json!({ "cohortId": order.cohort_id, "leaving": done, "refused": refused }))
}

/// The number in the queue of the update by which a DID leaves; none if its document does not list the address.
async fn one(
    seed: &Seed,
    queue: &Queue,
    reporter: &Reporter,
    did: &Did,
    from: &str,
    to: Option<&CohortId>,
) -> Result<Option<u64>, String> {
    let to = match to {
        Some(to) => Some(destination(seed, did, to).await?),
        None => None,
    };
    let waiting = queue.open_items().into_iter().find(|item| {
        let leaves = |change: &Change| matches!(change, Change::Address { from: left, .. } if left == from);
        item.did == *did && leaves(&item.change)
    });
    if let Some(waiting) = waiting {
        return Ok(Some(waiting.id));
    }
    let current = seed.controller.current(did).await.map_err(|error| error.to_string())?;
    let Some(new) = item(seed, did, &current, from, to)? else { return Ok(None) };
    let item = queue.add(new).await.map_err(|error| error.to_string())?;
    reporter.update(&item);
    Ok(Some(item.id))
}

/// Takes the exits a step further, as far as they can be.
pub(super) async fn go_on(seeds: &[Seed], exits: &Exits, reporter: &Reporter) {
    for exit in exits.open_ones() {
        let index = did_index(&exit.did);
        let Some(seed) = seeds.iter().find(|seed| seed.controller.indexes().contains_key(&index)) else { continue };
        let Some(lists) = lists(seed, &exit).await else { continue };
        let seat = seat_in(seed, &exit.cohort_id).await;
        let step = match &seat {
            _ if lists => Step::Leaving,
            Some((_, machine)) if machine.indexes().any(|known| *known == index) => Step::Unregistering,
            // Without a seat there is nothing to unregister.
            _ => Step::Left,
        };
        if let Some((seat, machine)) = &seat
            && step == Step::Unregistering
            && !machine.has_asked(&index, RowAction::Unregister)
        {
            let row = RowWanted { did: exit.did.clone(), action: RowAction::Unregister };
            // A seat that has ended is asked again when it runs.
            let _ = seed.member.request(&seat.seat, SeatRequest::Rows(vec![row])).await;
        }
        if step == exit.step {
            continue;
        }
        let changed = Exit { step, since: exits.clock.now(), ..exit };
        if let Err(problem) = exits.put(changed.clone()).await {
            return reporter.storage_failed(&problem);
        }
        reporter.notice(&MemberNotice::DidLeaves { did: changed.did, cohort_id: changed.cohort_id, step });
    }
}

/// Whether the document of a DID lists the address that it leaves, finally; `None` if that is not known now.
async fn lists(seed: &Seed, exit: &Exit) -> Option<bool> {
    match seed.controller.current(&exit.did).await {
        Ok(current) if current.unsettled.is_some() => None,
        Ok(current) => {
            let mut services = current.document["service"].as_array().into_iter().flatten();
            let address =
                |service: &Value| service["serviceEndpoint"].as_str().and_then(beacon_address).map(str::to_owned);
            Some(services.any(|service| address(service).as_deref() == Some(&*exit.beacon_address)))
        }
        Err(CurrentError::Deactivated { .. }) => Some(false),
        Err(error) => {
            tracing::debug!(did = %exit.did, %error, "whether it has left is not known");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::protocol::{identity::Identity, key::SecretKey, network::Network};

    #[tokio::test]
    async fn an_exit_survives_the_program_and_begins_once() {
        let dir = tempfile::tempdir().unwrap();
        let did = Identity::from_key(SecretKey::from_bytes(&[1; 32]).unwrap(), Network::Regtest).did().clone();
        let (index, cohort) = (did_index(&did), CohortId::parse("c").unwrap());
        let state = State::open(dir.path()).unwrap();
        let exits = Exits::open(&state, Clock::system()).await.unwrap();
        assert!(!exits.has(&cohort, &index));
        let first = exits.begin(&did, &cohort, "bcrt1pold").await.unwrap();
        assert_eq!(exits.begin(&did, &cohort, "another").await.unwrap(), first);
        state.close().await;
        let state = State::open(dir.path()).unwrap();
        let exits = Exits::open(&state, Clock::system()).await.unwrap();
        assert_eq!(exits.open_ones(), std::slice::from_ref(&first));
        exits.put(Exit { step: Step::Left, ..first }).await.unwrap();
        assert!(exits.open_ones().is_empty());
        assert!(exits.has(&cohort, &index), "it is not registered there again");
        assert_eq!(exits.of(&index)[0].step, Step::Left);
        state.close().await;
    }
}
