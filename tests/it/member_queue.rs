//! The queue of `member`: by the socket, without an agent, through a kill, made again on a newer document, and refused.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    process::Command,
    time::Instant,
};

use crate::{
    full_disk::Small,
    member_support::{World, json, socket},
    resolve_cli::ran,
    support::PATIENCE,
};
use serde_json::Value;

#[actix_rt::test]
async fn updates_are_handed_over_followed_made_again_and_refused() {
    let Some(mut world) = World::new("member-queue", "").await else { return };
    world.formed().await;
    let dids = world.mint("2").await;
    assert_eq!(dids.len(), 2);
    let shown = json(&["member", "dids", "--json", "--state", &world.state]).await;
    assert!(shown.as_array().unwrap().iter().all(|did| did["registeredIn"].as_array().unwrap().len() == 1));
    // Three for one document: the first is announced as it is, the second is made again, the third adds what is there already.
    world.hand_over(&dids[0], "one").await.succeeded();
    world.hand_over(&dids[0], "two").await.succeeded();
    world.hand_over(&dids[0], "one").await.succeeded();
    assert_eq!(world.step(1, "submitted")["versionId"], "2");
    assert_eq!(
        ran(&["member", "cancel", "1", "--state", &world.state]).await.status,
        Some(1),
        "it may be announced"
    );
    world.step(1, "approved");
    world.step(1, "announced");
    world.mined_until(1, "resolvable").await;
    let again = world.mined_until(2, "resolvable").await;
    assert_eq!((&again["versionId"], &again["rebuilt"]), (&Value::from("3"), &Value::from(1)));
    let refused = world.mined_until(3, "refused").await;
    assert!(
        refused["reason"].as_str().unwrap().contains("has") && refused["reason"].as_str().unwrap().contains("#one")
    );
    assert_eq!(
        world.resolved(&dids[0].0, &world.state).await,
        ("3".to_owned(), vec!["one".to_owned(), "two".to_owned()])
    );
    // The other DID was never updated, and resolves from its data.
    assert_eq!(world.resolved(&dids[1].0, &world.state).await.0, "1");
    // Of a DID that is not its own it takes nothing.
    let foreign = crate::support::identity(&world.directory, "foreign.id");
    let strange = (crate::support::did_of(&foreign), foreign);
    assert_eq!(world.hand_over(&strange, "x").await.status, Some(1));

    // Killed with an update that was just taken; one comes while nothing runs.
    world.hand_over(&dids[1], "three").await.succeeded();
    world.kill();
    world.hand_over(&dids[0], "four").await.succeeded();
    world.hand_over(&dids[0], "five").await.succeeded();
    let cancelled = json(&["member", "cancel", "6", "--json", "--state", &world.state]).await;
    assert_eq!(cancelled["stage"], "cancelled");
    let status = json(&["member", "status", "--json", "--state", &world.state]).await;
    assert_eq!((&status["running"], &status["queue"]["cancelled"]), (&Value::from(false), &Value::from(1)));
    world.start();
    world.mined_until(4, "resolvable").await;
    world.mined_until(5, "resolvable").await;
    assert_eq!(world.resolved(&dids[1].0, &world.state).await, ("2".to_owned(), vec!["three".to_owned()]));
    assert_eq!(world.resolved(&dids[0].0, &world.state).await.0, "4");
    let log = ran(&["member", "log", "--state", &world.state]).await.succeeded();
    assert!(log.stdout.contains("update-step") && log.stdout.contains("resolvable"), "{}", log.stdout);
    world.stop();
    assert!(!socket(&world.state).exists());
}

#[actix_rt::test]
async fn it_goes_on_when_a_full_disk_has_room_again() {
    let Some(mut world) = World::new("member-disk", "").await else { return };
    let Some(small) = Small::of(&world.directory, "8m") else { return };
    world.state = small.path("state");
    world.formed().await;
    let dids = world.mint("1").await;
    let filling = small.filled("filling");
    // Nothing is acknowledged that is not stored.
    let mut handed = 0;
    while world.hand_over(&dids[0], &format!("x{handed}")).await.status == Some(0) {
        handed += 1;
        assert!(handed < 50, "the disk is full");
    }
    let interrupted = world.program().event("member-interrupted");
    assert!(interrupted["retrySeconds"].as_u64().unwrap() >= 1, "{interrupted}");
    drop(filling);
    fs::remove_file(small.path("filling")).unwrap();
    // It starts again by itself, and takes updates as soon as it does.
    let until = Instant::now() + PATIENCE;
    while world.hand_over(&dids[0], "last").await.status != Some(0) {
        assert!(Instant::now() < until, "it does not go on");
    }
    let last = world.queue().await.len() as u64;
    world.mined_until(last, "resolvable").await;
    world.stop();
}

fn ask(stream: &mut BufReader<UnixStream>, line: &[u8]) -> Value {
    stream.get_mut().write_all(line).unwrap();
    let mut answer = String::new();
    stream.read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap()
}

#[actix_rt::test]
async fn the_socket_takes_requests_of_its_owner_only_and_no_garbage() {
    let Some(mut world) = World::new("member-socket", "").await else { return };
    world.start();
    let path = socket(&world.state);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(world.state.as_ref())), (0o600, 0o700));
    let connect = || BufReader::new(UnixStream::connect(&path).unwrap());
    let mut stream = connect();
    for garbage in [&b"hello\n"[..], b"\xff\xff\n", b"{\"v\":9,\"op\":\"status\"}\n", b"{\"v\":1,\"op\":\"no\"}\n"]
    {
        assert_eq!(ask(&mut stream, garbage)["ok"], false);
    }
    assert_eq!(ask(&mut stream, b"{\"v\":1,\"op\":\"status\"}\n")["result"]["running"], true);
    // Longer than a line may be, without an end.
    let mut long = connect();
    let page = vec![b'x'; 1 << 20];
    let mut sent = 0;
    while sent < 64 && long.get_mut().write_all(&page).is_ok() {
        sent += 1;
    }
    assert!(sent < 64, "it reads a line without end");
    let mut rest = Vec::new();
    let _ = long.read_to_end(&mut rest);
    assert_eq!(ask(&mut stream, b"{\"v\":1,\"op\":\"status\"}\n")["ok"], true, "others are served");

    // Another user, whom the modes let in by mistake. It takes root to become one.
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(&world.state, open.clone()).unwrap();
    std::fs::set_permissions(&path, open).unwrap();
    let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
                  s.sendall(b'{\"v\":1,\"op\":\"status\"}\\n')\nprint(s.makefile().readline())";
    let other = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "python3", "-c", script])
        .arg(&path)
        .output();
    match other {
        Ok(output) if output.status.success() => {
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(
                (&answer["ok"], &answer["error"]),
                (&Value::from(false), &Value::from("this socket is of another user"))
            );
        }
        other => println!("skipped: member-socket: no other user can connect here: {other:?}"),
    }
    world.stop();
}
