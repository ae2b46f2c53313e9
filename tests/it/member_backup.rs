//! Backups of `member`: by a command while it runs, after each change, and restored on another machine.

use std::fs;

use crate::{
    member_support::World,
    resolve_cli::ran,
    support::{path, run_with},
};

#[actix_rt::test]
async fn a_restored_agent_announces_only_what_its_backup_has_until_the_coin_is_spent() {
    let Some(mut world) = World::new("member-backup", "").await else { return };
    let saved = path(&world.directory, "saved");
    world.configure(&format!("[backup]\ndirectory = \"{saved}\"\nkeep = 2\npause = \"100ms\""));
    world.formed().await;
    let dids = world.mint("2").await;
    world.hand_over(&dids[0], "one").await.succeeded();
    world.mined_until(1, "resolvable").await;
    // Continuous ones: encrypted, and not without end.
    world.program().event("backup-written");
    let secret = [("BTCR2_PASSPHRASE", "horse")];
    let file = path(&world.directory, "backup.age");
    let backup = ["vault", "backup", &file, "--state", &world.state, "--json"];
    let made = run_with(&backup, &secret).succeeded();
    assert!(made.stdout.contains("\"seats\":1") && made.stdout.contains("\"updates\":1"), "{}", made.stdout);
    assert!(fs::read(&file).unwrap().starts_with(b"age-encryption.org/"));
    assert_eq!(run_with(&backup, &secret).status, Some(1), "it is not replaced");

    // The lost machine signs more than the backup knows.
    world.hand_over(&dids[1], "unknown").await.succeeded();
    world.step(2, "announced");
    world.kill();
    assert!(fs::read_dir(&saved).unwrap().count() <= 3, "the last one may not be complete");

    let (state, files) = (path(&world.directory, "restored"), path(&world.directory, "files"));
    let restore = ["vault", "restore", &file, "--state", &state, "--files", &files];
    assert_eq!(run_with(&restore, &[("BTCR2_PASSPHRASE", "donkey")]).status, Some(1));
    assert!(!fs::exists(&state).unwrap());
    run_with(&restore, &secret).succeeded();
    assert_eq!(run_with(&restore, &secret).status, Some(1), "never over something");
    // Another update of the version that the lost agent has announced: not before the coin is spent at depth.
    let config = format!("{files}/member.toml");
    fs::write(&config, fs::read_to_string(&config).unwrap().replace(&saved, &path(&world.directory, "saved-2")))
        .unwrap();
    world.state = state.clone();
    world.agent = Some(world.launched(&config, &state));
    world.program().event("member-ready");
    world.program().event("seat-restored");
    let file = dids[1].1.replace(&path(&world.directory, "state"), &state);
    let file = if fs::exists(&file).unwrap() { file } else { dids[1].1.clone() };
    world.hand_over(&(dids[1].0.clone(), file), "another").await.succeeded();
    let refused = world.program().event("updates-refused");
    assert!(refused["reason"].as_str().unwrap().contains("backup"), "{refused}");
    // The lost agent's announcement is final: the DID's data of it are at the lost machine, and its new update waits for nothing worse.
    world.mined().await;
    world.program().event("coin-spent");
    world.stop();
    let shown = ran(&["member", "queue", "--state", &state, "--json"]).await.succeeded();
    assert!(shown.stdout.contains(&dids[1].0), "{}", shown.stdout);
}

#[test]
fn a_directory_that_is_not_a_members_has_no_backup() {
    let directory = crate::support::directory("member-no-backup");
    let (file, state) = (path(&directory, "backup.age"), path(&directory, "state"));
    let secret = [("BTCR2_PASSPHRASE", "horse")];
    assert_eq!(run_with(&["vault", "backup", &file, "--state", &state], &secret).status, Some(1));
    assert!(!fs::exists(&state).unwrap(), "it makes none");
}
