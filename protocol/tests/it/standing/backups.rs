//! Seats that were restored from a backup: what they have signed since then is not in it.

use std::sync::Arc;

use btcr2_aggregation_protocol::{
    cohort::standing::{CoinRef, Entry, Mode, StandingBeacon, StandingTerms, number::NumberEnd, seat::SeatInput},
    hash::{DidIndex, DocumentHash},
};

use super::{cohort::NETWORK, world::World};

fn terms() -> StandingTerms {
    let mut terms = StandingTerms::new(StandingBeacon::Cas, NETWORK, 3, 3).proceeding(2);
    terms.pending_update_trigger = Some(1);
    terms
}

#[track_caller]
fn signed_by_all(world: &World, number: u64) {
    let end = &world.service.ends[&number];
    assert!(matches!(end, NumberEnd::Signed { mode: Mode::Key, .. }), "number {number}: {end:?}");
}

/// A cohort whose seat 0 has signed an update in number 1, which is not in a block, and was then restored from a backup that does not have that
/// number; and the hash of that update.
fn restored(seed: u64, in_backup: bool) -> World {
    let mut world = World::formed(seed, &terms(), 3, 1);
    let backup = world.seats[0].events.clone();
    world.wants(0, &[0]);
    world.pass(2 * 3600);
    signed_by_all(&world, 1);
    let Some(Entry::Cas { update_hash, .. }) = world.seats[0].responses[&1].entries.first().cloned() else {
        panic!("no update")
    };
    let index = world.seats[0].dids[0].index;
    let spent = world.service.mempool[0].input[0].previous_output;
    let change = &world.service.mempool[0];
    let coins = vec![
        CoinRef { txid: spent.txid, vout: spent.vout, value: world.coins[&spent] },
        CoinRef { txid: change.compute_txid(), vout: 0, value: change.output[0].value.to_sat() },
    ];
    let updates: Vec<(DidIndex, u64, DocumentHash)> = match in_backup {
        true => vec![(index, 2, update_hash)],
        false => Vec::new(),
    };
    world.seats[0].restore(backup);
    world.feed_seat(0, &SeatInput::RestoredFromBackup { coins, updates });
    world
}

#[test]
fn a_restored_seat_submits_no_other_update_until_every_coin_is_spent() {
    let mut world = restored(61, false);
    // Its controller knows nothing of the update that it has submitted, and makes another one.
    world.seats[0].dids[0].salt += 1;
    world.wants(0, &[0]);
    world.pass(2 * 3600);
    let refused = &world.seats[0].refused_updates;
    assert!(refused.iter().any(|reject| reject.detail.contains("restored from a backup")), "{refused:?}");
    // Nor after a restart.
    world.crash_seat(0);
    let before = world.seats[0].refused_updates.len();
    world.wants(1, &[0]);
    world.pass(2 * 3600);
    assert!(world.seats[0].refused_updates.len() > before);
    signed_by_all(&world, *world.service.ends.keys().last().unwrap());
    // What it has signed is final, and its controller resolves the DID.
    let announced = Arc::clone(&world.service.mempool[0]);
    world.mine();
    assert!(world.confirmed.contains(&announced));
    let index = world.seats[0].dids[0].index;
    world.seats[0].dids[0].version = 2;
    world.feed_seat(0, &SeatInput::Resolved { index, version: 2 });
    let refused = world.seats[0].refused_updates.len();
    world.wants(0, &[0]);
    world.pass(2 * 3600);
    world.mine();
    assert_eq!(world.seats[0].refused_updates.len(), refused, "{:?}", world.seats[0].refused_updates);
    assert_eq!(world.seats[0].dids[0].version, 3);
}

#[test]
fn a_restored_seat_submits_the_update_of_its_backup_again() {
    let mut world = restored(62, true);
    world.wants(0, &[0]);
    world.pass(2 * 3600);
    assert!(world.seats[0].refused_updates.is_empty(), "{:?}", world.seats[0].refused_updates);
    let last = *world.service.ends.keys().last().unwrap();
    signed_by_all(&world, last);
    assert!(last > 1);
    let entries = |number: u64| {
        world
            .service
            .boards
            .values()
            .filter_map(move |bytes| {
                let board: serde_json::Value = serde_json::from_slice(bytes).unwrap();
                (board["number"] == number).then(|| board["responses"].to_string())
            })
            .collect::<Vec<_>>()
    };
    let hash = world.seats[0].dids[0].did.to_string();
    assert!(entries(last)[0].contains(&hash), "the same update once more");
}
