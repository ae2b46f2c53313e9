//! The ledgers of an SMT cohort, whose service does not see of which DIDs updates are, with a seat that is away.

use serde_json::{Value, json};

use super::world::{Setting, World};
use crate::member_support::json as json_of;

async fn ledger(state: &str) -> Value {
    json_of(&["cost", "ledger", "--json", "--state", state]).await
}

fn list<'a>(ledger: &'a Value, name: &str) -> &'a Vec<Value> {
    ledger[name].as_array().unwrap()
}

/// What a seat bears of a number, in satoshi.
fn share(ledger: &Value, seat: &Value, number: &Value) -> u64 {
    let of_seat = list(ledger, "entries").iter().filter(|one| one["seat"] == *seat && one["number"] == *number);
    of_seat.map(|one| one["amount"].as_u64().unwrap()).sum()
}

#[actix_rt::test]
async fn seats_know_what_the_service_of_an_smt_cohort_does_not() {
    let terms = ["--fallback-threshold", "2", "--min-interval", "1s", "--respond-time", "8s", "--fee-rate", "1"];
    let setting = Setting { name: "standing-costs", beacon: "smt", seats: 3, terms: &terms };
    let Some(mut world) = World::formed(&setting, 1, 50_000).await else { return };
    world.stop(&[0, 1, 2]);
    let dids: Vec<usize> = (0..3).map(|seat| world.mint(seat)).collect();
    for seat in 0..3 {
        world.start(seat, &[]);
        world.event(seat, "rows-acknowledged");
    }
    world.prepare(dids[0], "first");
    world.prepare(dids[1], "first");
    world.announce(None).await;
    world.stop(&[2]);
    world.prepare(dids[0], "second");
    world.announce(Some(2)).await;
    world.start(2, &[]);
    world.event(2, "missed");

    let service = ledger(&world.service_state()).await;
    let mut costs = Vec::new();
    for seat in 0..3 {
        costs.push(ledger(&world.seats[seat].file("state")).await);
    }
    let announced = list(&service, "announcements");
    let seats: Vec<Value> = costs[..2].iter().map(|own| own["entries"][0]["seat"].clone()).collect();
    for one in announced {
        let number = &one["number"];
        let (mut sum, fee) = (0, one["fee"].as_u64().unwrap());
        for (own, seat) in costs.iter().zip(&seats) {
            let part = share(own, seat, number);
            assert_eq!(part, share(&service, seat, number), "number {number}: {own:#} {service:#}");
            sum += part;
        }
        assert_eq!(sum, fee, "the third seat has had no updates");
    }
    for entry in list(&service, "entries") {
        assert_eq!((&entry["didUnknown"], &entry["did"]), (&json!(true), &Value::Null), "{entry:#}");
    }
    for (own, did) in costs.iter().zip(&dids).take(2) {
        let did = world.dids[*did].author.did();
        assert!(list(own, "entries").iter().all(|entry| entry["did"] == did), "{own:#}");
    }
    assert_eq!(costs[0]["comparisons"][0]["own"]["updates"], json!({ "atLeast": 2, "isExact": true }));
    let compared = &service["comparisons"][0];
    assert_eq!(compared["updates"]["isExact"], false);
    let by_fallback: Vec<&Value> = announced.iter().filter(|one| one["mode"] == "fallback").collect();
    assert!(!by_fallback.is_empty(), "{service:#}");
    assert_eq!(compared["byFallback"], by_fallback.len());
    // At 1 sat/vB; by key path it has 154 vB.
    let surplus: u64 = by_fallback.iter().map(|one| one["vsize"].as_u64().unwrap() - 154).sum();
    assert_eq!(compared["fallbackSurplus"], surplus);
    // Its board has come later, and not its coins: the fee is not known there, which is not 0.
    let away = &costs[2];
    let last = list(away, "announcements").last().unwrap();
    assert_eq!((&last["number"], &last["fee"]), (&announced.last().unwrap()["number"], &Value::Null));
    assert!(away["comparisons"][0]["unknownFees"].as_u64().unwrap() >= 1, "{away:#}");
    assert_eq!(list(away, "entries").len(), 0, "{away:#}");
}
