//! The policy of `member`: asked for by the socket and by a hook, in time and too late; limits; and dry runs.

use std::fs;

use crate::{
    member_support::{World, json, pending},
    resolve_cli::ran,
    support::path,
};
use serde_json::Value;

#[actix_rt::test]
async fn a_person_approves_the_cohort_and_each_announcement() {
    let policy = "join = \"ask\"\nsign = \"ask-own\"\ntimeout = \"10m\"";
    let Some(mut world) = World::new("member-ask", policy).await else { return };
    world.start();
    let asked = pending(&world.state).await;
    assert_eq!((&asked["kind"], &asked["request"]["seat"]), (&Value::from("join"), &Value::from("home")));
    // What is shown can be asked again, without doing anything.
    let file = path(&world.directory, "advert.json");
    fs::write(&file, asked.to_string()).unwrap();
    let config = world.config.clone();
    let dry = ["member", "dry-run", "--config", &config, "--json"];
    let verdict = json(&[&dry[..], &["--advert", &file]].concat()).await;
    assert_eq!((&verdict["decision"], &verdict["kind"]), (&Value::from("ask"), &Value::from("join")));
    let full = json(&[&dry[..], &["--advert", &file, "--cohorts", "1"]].concat()).await;
    assert_eq!(full["decision"], "decline");
    let id = asked["id"].to_string();
    assert_eq!(ran(&["member", "approve", "77", "--state", &world.state]).await.status, Some(1));
    ran(&["member", "approve", &id, "--state", &world.state]).await.succeeded();
    assert_eq!(ran(&["member", "approve", &id, "--state", &world.state]).await.status, Some(1), "once");
    world.funded().await;
    let dids = world.mint("1").await;

    world.hand_over(&dids[0], "one").await.succeeded();
    let first = pending(&world.state).await;
    assert_eq!(
        (&first["kind"], &first["request"]["updates"][0]["did"]),
        (&Value::from("sign"), &dids[0].0.as_str().into())
    );
    let file = path(&world.directory, "request.json");
    fs::write(&file, first.to_string()).unwrap();
    let verdict = json(&[&dry[..], &["--request", &file]].concat()).await;
    assert_eq!((&verdict["decision"], &verdict["kind"]), (&Value::from("ask"), &Value::from("sign")));
    let text = ran(&["member", "dry-run", "--config", &world.config, "--request", &file]).await.succeeded();
    assert!(text.stdout.contains("member approve"), "{}", text.stdout);
    // Rejected: the number fails, and the identical update is asked for in the next.
    let id = first["id"].to_string();
    ran(&["member", "reject", &id, "--reason", "not today", "--state", &world.state]).await.succeeded();
    let refused = world.program().event("seat-refused-to-sign");
    assert!(refused["reason"].as_str().unwrap().contains("not today"), "{refused}");
    let second = loop {
        let next = pending(&world.state).await;
        if next["id"] != first["id"] {
            break next;
        }
    };
    assert_eq!(second["request"]["updates"], first["request"]["updates"], "the identical update");
    ran(&["member", "approve", &second["id"].to_string(), "--state", &world.state]).await.succeeded();
    world.mined_until(1, "resolvable").await;
    world.stop();
}

#[actix_rt::test]
async fn a_hook_decides_and_what_nobody_decides_in_time_is_not_signed() {
    let Some(mut world) = World::new("member-hook", "").await else { return };
    let (hook, seen, allow) =
        (path(&world.directory, "hook.sh"), path(&world.directory, "seen"), path(&world.directory, "allow"));
    // It approves cohorts, and announcements as soon as a file is there.
    let script = format!(
        "input=$(cat)\necho \"$input\" >> {seen}\ncase \"$input\" in *'\"kind\":\"join\"'*) exit 0;; esac\n\
         [ -e {allow} ] && exit 0\necho 'the file is not there'\nexit 4\n"
    );
    fs::write(&hook, script).unwrap();
    world.configure(&format!("join = \"ask\"\nsign = \"ask-own\"\nhook = [\"sh\", \"{hook}\"]"));
    world.formed().await;
    let dids = world.mint("1").await;
    world.hand_over(&dids[0], "one").await.succeeded();
    let refused = world.program().event("seat-refused-to-sign");
    assert!(refused["reason"].as_str().unwrap().contains("the file is not there"), "{refused}");
    let decided = world.program().event_where("approval-decided", |event| event["approved"] == false);
    assert!(decided["reason"].as_str().unwrap().contains("hook"), "{decided}");
    fs::write(&allow, "").unwrap();
    world.mined_until(1, "resolvable").await;
    let seen = fs::read_to_string(&seen).unwrap();
    let request: Value = serde_json::from_str(seen.lines().last().unwrap()).unwrap();
    assert_eq!(request["request"]["updates"][0]["did"], dids[0].0.as_str());
    world.stop();

    // No answer.
    world.configure("sign = \"ask\"\ntimeout = \"1s\"");
    world.start();
    world.hand_over(&dids[0], "two").await.succeeded();
    let late = world.program().event_where("approval-decided", |event| event["approved"] == false);
    assert_eq!(late["reason"], "it was not decided in time");
    world.program().event("seat-refused-to-sign");
    world.stop();

    // A limit of announcements: one was signed today.
    world.configure("announcements-per-day = 1");
    world.start();
    let refused = world.program().event("seat-refused-to-sign");
    assert!(refused["reason"].as_str().unwrap().contains("in the last 24 hours"), "{refused}");
    world.stop();
}

#[actix_rt::test]
async fn an_offer_beyond_the_policy_is_declined_or_held() {
    let Some(mut world) = World::new("member-held", "least-seats = 3").await else { return };
    world.start();
    let declined = world.program().event("offer-declined");
    assert!(declined["reasons"][0].as_str().unwrap().contains("1 seats only"), "{declined}");
    world.stop();
    world.configure("least-seats = 3\notherwise = \"hold\"");
    world.start();
    let held = pending(&world.state).await;
    assert_eq!((&held["kind"], &held["timeoutSeconds"]), (&Value::from("join"), &Value::Null));
    ran(&["member", "approve", &held["id"].to_string(), "--state", &world.state]).await.succeeded();
    world.program().event("seat-formed");
    world.stop();
}
