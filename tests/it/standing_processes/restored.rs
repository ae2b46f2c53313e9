//! A seat whose state directory was restored from a backup.

use std::fs;

use super::world::{DEPTH, Setting, World};
use crate::support::{copy, verify::text};
use serde_json::{Value, json};

#[actix_rt::test]
async fn a_restored_seat_waits_until_its_coins_are_spent() {
    let terms = ["--fallback-threshold", "2", "--min-interval", "1s", "--respond-time", "8s"];
    let setting = Setting { name: "standing-restored", beacon: "smt", seats: 3, terms: &terms };
    let Some(mut world) = World::formed(&setting, 1, 100_000).await else { return };
    world.stop(&[0, 1]);
    let (did, one) = (world.mint(0), world.mint(1));
    for seat in 0..2 {
        world.start(seat, &[]);
        world.event(seat, "rows-acknowledged");
    }
    world.prepare(did, "first");
    world.announce(None).await;

    // A backup; then the seat signs one more update, which is not in a block yet when its disk is lost.
    world.stop(&[0]);
    let (state, backup) = (world.seats[0].file("state"), world.seats[0].file("backup"));
    copy(&state, &backup);
    world.start(0, &[]);
    world.prepare(did, "second");
    let signed = world.signed();
    world.sent(&signed).await;
    world.stop(&[0]);
    fs::remove_dir_all(&state).unwrap();
    copy(&backup, &state);
    // The update is lost too, and its controller makes another one of the same version.
    let updates = world.seats[0].place.join("updates");
    let lost = updates.join(format!("{did}-3.json"));
    let kept = fs::read(&lost).unwrap();
    let author = &mut world.dids[did].author;
    author.documents.pop();
    let second = author.updates.pop().unwrap();
    let other = author.note("another second");
    fs::write(&lost, other.value().to_string()).unwrap();

    world.start(0, &["--restored"]);
    let waits = world.event(0, "seat-restored");
    let coins: Vec<&str> = waits["coins"].as_array().unwrap().iter().map(text).collect();
    // What the transaction in the mempool spends, and its change.
    assert!(coins.contains(&format!("{}:0", text(&signed["txid"])).as_str()), "{coins:?}");
    assert_eq!(coins.len(), 2);
    let refused = world.event(0, "updates-refused");
    assert!(text(&refused["reason"]).contains("restored from a backup"), "{refused:#}");
    // That is remembered without the option.
    world.stop(&[0]);
    world.start(0, &[]);
    assert_eq!(world.event(0, "seat-restored")["coins"], json!(coins));

    // Every coin of that time is spent: by the announcement, and by the one after it.
    let author = &mut world.dids[did].author;
    author.documents.pop();
    author.updates.pop();
    author.note("second");
    assert_eq!(author.updates.last().map(|update| update.hash()), Some(second.hash()));
    fs::write(&lost, kept).unwrap();
    world.blocks.mine(DEPTH).await;
    let number = signed["number"].clone();
    world.service.program.event_where("number-confirmed", |event| event["number"] == number);
    let left = |event: &Value| event["by"] == signed["txid"];
    world.program(0).event_where("coin-spent", left);
    world.prepare(one, "of another seat");
    world.is_announced().await;
    world.event(0, "seat-settled");
    world.resolve(None).await;
    assert_eq!(world.dids[did].version, 3);
    world.prepare(did, "third");
    world.announce(None).await;
    assert_eq!(world.dids[did].version, 4);
    // Not any more after a restart.
    world.stop(&[0]);
    world.start(0, &[]);
    world.event(0, "seat-recovered");
    assert!(world.program(0).seen().iter().all(|event| event["event"] != "seat-restored"));
}

#[actix_rt::test]
async fn without_a_seat_there_is_nothing_to_restore() {
    let terms = ["--absent", "wait", "--min-interval", "1s"];
    let setting = Setting { name: "standing-not-restored", beacon: "cas", seats: 1, terms: &terms };
    let Some(mut world) = World::formed(&setting, 1, 10_000).await else { return };
    world.stop(&[0]);
    fs::remove_dir_all(world.seats[0].file("state")).unwrap();
    world.start(0, &["--restored"]);
    let (status, _, errors) = world.take(0).end();
    assert_eq!(status, Some(2), "{errors}");
    assert!(errors.contains("is it the one of the backup?"), "{errors}");
}
