//! A standing cohort, and a seat, move to other state directories by `state export` and `state import`.

use serde_json::Value;

use super::world::{Setting, World};
use crate::support::{contains, path, run};

#[actix_rt::test]
async fn a_cohort_and_a_seat_move_by_export_and_import() {
    let terms = ["--absent", "wait", "--min-interval", "1s"];
    let setting = Setting { name: "standing-transfer", beacon: "smt", seats: 2, terms: &terms };
    let Some(mut world) = World::formed(&setting, 1, 50_000).await else { return };
    world.stop(&[0, 1]);
    let dids: Vec<usize> = (0..2).map(|seat| world.mint(seat)).collect();
    for seat in 0..2 {
        world.start(seat, &[]);
        world.event(seat, "rows-acknowledged");
    }
    world.prepare(dids[0], "first");
    world.announce(None).await;

    let file = |name: &str| path(&world.directory, name);
    let (cohort, seat) = (file("cohort.json"), file("seat.json"));
    world.move_by(&cohort);
    world.stop(&[0]);
    let state = world.seats[0].file("state");
    let shown = run(&["state", "show", &world.cohort_id, "--state", &state]).succeeded().stdout;
    contains(&shown, &["seat/did", "OptedIn", "watch/did", "boards of numbers 1 to "]);
    run(&["state", "export", &world.cohort_id, "--out", &seat, "--forget", "--state", &state]).succeeded();
    assert_eq!(run(&["state", "list", "--json", "--state", &state]).succeeded().stdout.trim(), "[]");
    std::fs::remove_dir_all(&state).unwrap();
    run(&["state", "import", &seat, "--state", &state]).succeeded();
    let document: Value = serde_json::from_str(&std::fs::read_to_string(&cohort).unwrap()).unwrap();
    let announced = |board: &Value| board["number"] == world.last;
    assert!(document["boards"].as_array().unwrap().iter().any(announced));
    assert_eq!(document["dids"].as_array().unwrap().len(), 4, "the operator's knowledge of each DID");
    world.start(0, &[]);
    world.event(0, "seat-recovered");

    // The service verifies what follows on an update that it has only received before; the seats go on after number 1.
    world.prepare(dids[0], "second");
    world.prepare(dids[1], "second");
    world.announce(None).await;
    // A board of the time before the move is served: to a seat, and in what it resolves.
    world.resolve(None).await;
}
