//! New DIDs at no cost: EXTERNAL DIDs whose genesis documents list the cohort's beacon, and a Singleton beacon of their own. A DID is named to
//! no party before its index is registered: the order that standing.md, section 2, asks for.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::{Value, json};

use super::{config::MINTED, settling::Seed, tally::Tally};
use crate::{
    actors::standing::{SeatRequest, SeatSummary, boards::BoardStore, policy::RowWanted},
    controller::{self, Keys},
    keyfile::{self, KeyFile},
    protocol::{
        beacon::did_index,
        cohort::standing::{RowAction, seat::Seat},
        id::CohortId,
        key::SecretKey,
        network::Network,
        resolution::BeaconKind,
    },
    standing::controller::ControlledDid,
};

/// The most DIDs of one request.
pub(super) const MOST: usize = 1_000;

/// How many boards are read at once.
const PAGE: usize = 100;

/// What is to be made.
pub(super) struct Order {
    /// The seed; the only one if there is one.
    pub(super) seat: Option<String>,
    /// The cohort; the only one if there is one.
    pub(super) cohort_id: Option<CohortId>,
    /// The names of the files.
    pub(super) names: Vec<String>,
    /// Whether a Singleton beacon is listed too.
    pub(super) singleton: bool,
}

/// A name that is one of a file, and hidden nowhere.
fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= 100 && !name.starts_with('.') && name.bytes().all(plain)
}

/// The seed and the seat that an order names.
async fn place(seeds: &[Seed], tally: &Tally, order: &Order) -> Result<(Seed, SeatSummary, Arc<Seat>), String> {
    let mut found = Vec::new();
    for seed in seeds.iter().filter(|seed| order.seat.as_ref().is_none_or(|name| seed.name == *name)) {
        for seat in seed.member.seats().await {
            let is_named = order.cohort_id.as_ref() == Some(&seat.cohort_id);
            // New DIDs begin at the successor of a cohort.
            if order.cohort_id.is_some() && !is_named || tally.has_successor(&seat.cohort_id) {
                continue;
            }
            if let Some(machine) = seed.member.inspect(&seat.seat).await.filter(|seat| seat.output().is_some()) {
                found.push((seed.clone(), seat, machine));
            }
        }
    }
    match found.len() {
        0 => Err("there is no such seat in a cohort that has formed: enrol one first (`member enrol`)".to_owned()),
        1 => Ok(found.remove(0)),
        count => Err(format!("{count} seats are possible: give --seat NAME and --cohort ID")),
    }
}

/// Makes DIDs, stores their identities, and sends their rows.
///
/// # Errors
/// Why nothing was made, or how far it went, in words.
pub(super) async fn mint(
    seeds: &[Seed],
    boards: &dyn BoardStore,
    tally: &Tally,
    state: &Path,
    network: Network,
    order: Order,
) -> Result<Value, String> {
    if order.names.is_empty() || order.names.len() > MOST {
        return Err(format!("1 to {MOST} names expected"));
    }
    if let Some(wrong) = order.names.iter().find(|name| !is_name(name)) {
        return Err(format!("{wrong:?} is not the name of a file: letters, digits, `-`, `_` and `.` expected"));
    }
    let (seed, seat, machine) = place(seeds, tally, &order).await?;
    let terms = &machine.config().terms;
    let most = usize::try_from(terms.max_dids_per_participant).unwrap_or(usize::MAX);
    let has = machine.indexes().count();
    if has + order.names.len() > most {
        return Err(format!("the seat has {has} DIDs, and the terms permit {most}"));
    }
    let address = machine.output().map(|output| output.address().to_owned()).unwrap_or_default();
    let kind = terms.beacon_type.kind();
    let name = if kind == BeaconKind::Smt { "beacon-smt" } else { "beacon-cas" };
    let beacons = [(name, kind, address.clone())];
    let directory = state.join(MINTED).join(&seed.name);
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", directory.display());
    std::fs::create_dir_all(&directory).map_err(|error| failed(&error))?;
    let exists = |name: &&String| directory.join(format!("{name}.id")).exists();
    if let Some(taken) = order.names.iter().find(exists) {
        return Err(failed(&format!("there is a DID called {taken} already")));
    }
    let mut rng = ChaCha20Rng::from_os_rng();
    let (mut made, mut rows) = (Vec::new(), Vec::new());
    for name in &order.names {
        let secret = SecretKey::generate(&mut rng);
        let genesis = controller::genesis_with(&secret.public_key(), network, &beacons, order.singleton);
        let identity = keyfile::identity(secret, Some(genesis), network).map_err(|error| failed(&error))?;
        let path = directory.join(format!("{name}.id"));
        keyfile::write(&path, &identity, None).map_err(|error| failed(&error))?;
        let file = KeyFile::read(&path, || None).map_err(|error| failed(&error))?;
        let did = identity.did().clone();
        let keys = Arc::new(Keys::File(Box::new(file), path.display().to_string()));
        seed.controller.add(ControlledDid { identity, keys })?;
        rows.push(RowWanted { did: did.clone(), action: RowAction::Register });
        made.push(json!({ "name": name, "did": did, "file": path.display().to_string() }));
    }
    let dids = rows.iter().map(|row| (did_index(&row.did), row.did.clone())).collect();
    earlier(&seed, &seat.cohort_id, boards, &machine, &dids).await?;
    let sent = seed.member.request(&seat.seat, SeatRequest::Rows(rows)).await;
    match sent {
        Ok(true) => Ok(json!({ "cohortId": seat.cohort_id, "beaconAddress": address, "dids": made })),
        _ => Err("the seat has ended: the DIDs are registered when the agent starts again".to_owned()),
    }
}

/// Stores what resolvers need of the announcements that came before these DIDs: their genesis documents list the address.
async fn earlier(
    seed: &Seed,
    cohort_id: &CohortId,
    boards: &dyn BoardStore,
    machine: &Seat,
    dids: &BTreeMap<crate::protocol::hash::DidIndex, crate::protocol::did::Did>,
) -> Result<(), String> {
    let beacon = machine.config().terms.beacon_type;
    let mut after = 0;
    loop {
        let page = boards.list(cohort_id, after, PAGE).await.map_err(|error| error.to_string())?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after = *last;
        for (number, hash) in &page {
            let bytes = boards.get(hash).await.map_err(|error| error.to_string())?;
            let bytes = bytes.ok_or_else(|| format!("the board of number {number} is gone"))?;
            seed.controller.store_earlier(dids, beacon, &bytes)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn names_are_those_of_files() {
        assert!(["a", "alice-2", "A_b.c"].into_iter().all(is_name));
        assert!(!["", ".", "..", ".hidden", "a/b", "../a", "a b", "ä"].into_iter().any(is_name));
        assert!(!is_name(&"x".repeat(101)));
    }
}
