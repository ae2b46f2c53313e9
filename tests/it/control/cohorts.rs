//! Cohorts that are operated by `ctl` alone.

use serde_json::{Value, json};

use super::{Controlled, ended, eventually, id};
use crate::support::{contains, did_of, identity, run, verify::service_result};

#[test]
fn a_cohort_is_created_joined_and_finished_by_ctl() {
    let mut api = Controlled::start("control-cohort", &[]);
    assert_eq!(api.ctl(&["status"])["cohorts"], 0, "it waits");
    let mut events = api.events(&[]);
    let cohort = api.ctl(&[
        "cohort",
        "create",
        "--set",
        "min-participants=2",
        "--set",
        "max-participants=5",
        "--set",
        "settle=1h",
    ]);
    assert_eq!(cohort["phase"], "enrolling", "{cohort}");
    let cohort_id = id(&cohort);
    assert_eq!(events.event("cohort-advertised")["cohortId"], json!(cohort_id));
    let refused = api.ctl_run(&["cohort", "finalize", &cohort_id]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    contains(&refused.all(), &["too few members"]);
    let files: Vec<_> = (0..2).map(|index| identity(&api.directory, &format!("member-{index}"))).collect();
    let members: Vec<_> = files.iter().map(|file| api.service.join(file, &["--add-beacon"])).collect();
    eventually("both are admitted", || api.ctl(&["cohort", "show", &cohort_id])["admitted"] == 2);
    let listed = api.ctl(&["cohort", "members", &cohort_id]);
    let mut dids: Vec<String> = files.iter().map(|file| did_of(file)).collect();
    dids.sort();
    let found: Vec<&Value> = listed["members"].as_array().unwrap().iter().map(|member| &member["did"]).collect();
    assert_eq!(json!(found), json!(dids));
    assert_eq!(listed["members"][0]["last"]["event"], "participant-accepted", "{listed}");
    let deadline = api.ctl(&["cohort", "show", &cohort_id])["deadline"].as_u64().unwrap();
    let extended = api.ctl(&["cohort", "extend", &cohort_id, "--by", "10m"]);
    assert_eq!(extended["deadline"].as_u64().unwrap(), deadline + 600_000, "{extended}");
    let too_long = api.ctl(&["cohort", "extend", &cohort_id, "--by", "900d"])["deadline"].as_u64().unwrap();
    assert!(too_long < deadline + 2 * 86_400_000, "never beyond the cohort's time limit");
    assert_eq!(api.ctl_run(&["cohort", "extend", &cohort_id, "--by", "1m"]).status, Some(1));
    api.ctl(&["cohort", "finalize", &cohort_id]);
    let signed = events.event("signing-complete");
    assert_eq!(signed["cohortId"], json!(cohort_id));
    let result = api.service.program.event("result");
    service_result(&result, "key-path");
    for member in members {
        assert_eq!(member.result()["ok"], true);
    }
    eventually("it is over", || api.ctl(&["cohort", "list"])["cohorts"] == json!([]));
    assert_eq!(api.ctl_run(&["cohort", "cancel", &cohort_id]).status, Some(1));
    // How it ended, and what happened in it.
    let shown = api.ctl(&["cohort", "show", &cohort_id]);
    assert_eq!(
        (&shown["phase"], &shown["members"], &shown["txid"]),
        (&json!("completed"), &json!(2), &result["txid"])
    );
    assert_eq!(api.ctl(&["cohort", "ended"])["ended"], json!([shown]));
    let timeline = api.ctl(&["cohort", "timeline", &cohort_id]);
    let kinds: Vec<&str> =
        timeline["events"].as_array().unwrap().iter().filter_map(|event| event["event"].as_str()).collect();
    for kind in ["cohort-advertised", "changed", "keygen-complete", "signing-started", "signing-complete"] {
        assert!(kinds.contains(&kind), "{kind}: {kinds:?}");
    }
    assert!(!kinds.contains(&"nonce-received"), "{kinds:?}");
    contains(
        &run(&["ctl", "--state", &api.state, "cohort", "timeline", &cohort_id]).succeeded().stdout,
        &["signing-complete"],
    );
    // Without what has connected the reader of events.
    let entries = api.audit(50).into_iter().filter(|entry| entry["action"] != "ban.add");
    let actions: Vec<Value> = entries.map(|entry| entry["action"].clone()).collect();
    let [create, extend, finalize] = ["cohort.create", "cohort.extend", "cohort.finalize"];
    // Without an action: the last extension was refused.
    assert_eq!(json!(actions), json!([finalize, null, extend, extend, extend, create]), "{:#?}", api.audit(10));
}

#[test]
fn a_paused_advert_reaches_no_one_until_it_is_resumed() {
    let mut api = Controlled::start("control-pause", &[]);
    let terms = ["cohort", "create", "--set", "min-participants=1", "--set", "advert-repeat=1s"];
    let cohort_id = id(&api.ctl(&terms));
    assert_eq!(api.ctl(&["cohort", "pause", &cohort_id])["paused"], true);
    let file = identity(&api.directory, "member");
    let mut member = api.service.join(&file, &["--add-beacon"]);
    // Another cohort, which it sees: it would have seen the first one before, or as well.
    let other = id(&api.ctl(&terms));
    let joined = member.event("cohort-joined");
    assert_eq!(joined["cohortId"], json!(other));
    assert_eq!(member.result()["ok"], true);
    api.service.program.event_where("signing-complete", |event| event["cohortId"] == json!(other));
    assert_eq!(api.ctl(&["cohort", "resume", &cohort_id])["paused"], false);
    let second = api.service.join(&identity(&api.directory, "second"), &["--add-beacon"]).result();
    assert_eq!((&second["ok"], &second["cohortId"]), (&json!(true), &json!(cohort_id)));
}

#[test]
fn a_template_advertises_one_cohort_after_another_until_it_is_paused() {
    let mut api = Controlled::start("control-template", &[]);
    let put = ["template", "put", "small", "--set", "min-participants=1", "--cohorts", "2"];
    assert_eq!(api.ctl(&put)["state"], "draft");
    assert_eq!(api.ctl(&["cohort", "list"])["cohorts"], json!([]), "a draft advertises nothing");
    assert_eq!(api.ctl(&["template", "advertise", "small"])["state"], "advertised");
    let first = api.service.program.event("cohort-advertised")["cohortId"].clone();
    let one = api.ctl(&["cohort", "show", first.as_str().unwrap()]);
    assert_eq!(one["template"], "small");
    assert_eq!(api.ctl(&["template", "pause", "small"])["state"], "paused");
    assert_eq!(api.ctl(&["cohort", "show", first.as_str().unwrap()])["paused"], true);
    api.ctl(&["template", "advertise", "small"]);
    for name in ["a", "b"] {
        assert_eq!(api.service.join(&identity(&api.directory, name), &["--add-beacon"]).result()["ok"], true);
    }
    eventually("both are over", || api.ctl(&["cohort", "list"])["cohorts"] == json!([]));
    let template = api.ctl(&["template", "show", "small"]);
    assert_eq!((&template["opened"], &template["state"]), (&json!(2), &json!("advertised")));
    assert_eq!(api.ctl(&["template", "remove", "small"])["removed"], true);
    assert_eq!(api.ctl_run(&["template", "show", "small"]).status, Some(1));
}

#[test]
fn a_cancelled_cohort_notifies_its_candidates() {
    let api = Controlled::start("control-cancel", &[]);
    let cohort_id = id(&api.ctl(&["cohort", "create", "--set", "min-participants=2"]));
    let mut member = api.service.join(&identity(&api.directory, "member"), &["--add-beacon"]);
    member.event("opt-in-accepted");
    api.ctl(&["cohort", "cancel", &cohort_id, "--reason", "the wrong day"]);
    let (status, lines) = ended(member);
    let result = lines.last().unwrap();
    assert_eq!((status, &result["ok"]), (Some(1), &json!(false)), "{lines:#?}");
    assert!(result["reason"].as_str().unwrap().contains("the wrong day"), "{result}");
    let shown = api.ctl(&["cohort", "show", &cohort_id]);
    assert_eq!(shown["phase"], "failed", "{shown}");
    contains(shown["reason"].as_str().unwrap(), &["the wrong day"]);
    let api = api.restarted(&[]);
    assert_eq!(api.ctl(&["cohort", "show", &cohort_id]), shown, "after a restart");
    let timeline = api.ctl(&["cohort", "timeline", &cohort_id]).to_string();
    assert!(!timeline.contains("cohort-advertised"), "what came before is not in memory: {timeline}");
    assert_eq!(api.ctl_run(&["cohort", "timeline", "none"]).status, Some(1));
    assert_eq!(api.audit(1)[0]["request"]["reason"], "the wrong day");
}

#[test]
fn bans_invites_lists_and_decisions_admit_or_refuse() {
    let mut api = Controlled::start("control-admission", &[]);
    let files: Vec<_> = ["banned", "invited", "listed", "other", "waits", "refused"]
        .iter()
        .map(|name| identity(&api.directory, name))
        .collect();
    // A DID of its own for each: a message of an earlier try may still be in an inbox.
    let dids: Vec<String> = files.iter().map(|file| did_of(file)).collect();
    api.ctl(&["template", "put", "one", "--set", "min-participants=1"]);
    api.ctl(&["template", "advertise", "one"]);

    assert_eq!(api.ctl(&["ban", "add", &dids[0], "--for", "7d", "--reason", "rude"])["banned"], true);
    assert_eq!(api.ctl(&["ban", "show", &dids[0]])["reason"], "rude");
    let (status, _) = ended(api.service.join(&files[0], &["--add-beacon"]));
    assert_eq!(status, Some(1), "banned");
    assert_eq!(api.ctl(&["ban", "lift", &dids[0]])["banned"], false);
    assert_eq!(api.ctl(&["ban", "list"])["bans"], json!([]));

    api.ctl(&["settings", "set", "invites=true"]);
    let (status, _) = ended(api.service.join(&files[1], &["--add-beacon"]));
    assert_eq!(status, Some(1), "without an invite");
    let invite = api.ctl(&["invite", "new", "--label", "for one"]);
    let token = invite["token"].as_str().unwrap();
    assert_eq!(api.service.join(&files[1], &["--add-beacon", "--invite", token]).result()["ok"], true);
    let listed = api.ctl(&["invite", "list"]);
    assert_eq!(
        (&listed["invites"][0]["state"], &listed["invites"][0]["admitted"]),
        (&json!("used up"), &json!([dids[1]]))
    );
    assert_eq!(api.ctl(&["invite", "revoke", invite["invite"].as_str().unwrap()])["state"], "revoked");

    api.ctl(&["settings", "set", "invites=null", "allow-list=true"]);
    api.ctl(&["allow", "add", &dids[2]]);
    assert_eq!(api.service.join(&files[2], &["--add-beacon"]).result()["ok"], true);
    let (status, _) = ended(api.service.join(&files[3], &["--add-beacon"]));
    assert_eq!(status, Some(1), "not listed");

    api.ctl(&["settings", "set", "allow-list=false", "manual-admission=true"]);
    let member = api.service.join(&files[4], &["--add-beacon"]);
    eventually("it waits", || api.ctl(&["admission", "list"])["admissions"] != json!([]));
    let waiting = api.ctl(&["admission", "list"])["admissions"][0].clone();
    assert_eq!(waiting["did"], json!(dids[4]));
    api.ctl(&["admission", "admit", &waiting["id"].to_string()]);
    assert_eq!(member.result()["ok"], true);
    let refused = api.service.join(&files[5], &["--add-beacon"]);
    eventually("it waits", || api.ctl(&["admission", "list"])["admissions"] != json!([]));
    let waiting = api.ctl(&["admission", "list"])["admissions"][0]["id"].to_string();
    api.ctl(&["admission", "refuse", &waiting, "--reason", "not you"]);
    let (status, lines) = ended(refused);
    assert_eq!(status, Some(1));
    assert!(lines.last().unwrap()["reason"].as_str().unwrap().contains("not you"), "{lines:#?}");

    // Each change is in the log, and no token is.
    let audit = api.audit(100);
    let actions: Vec<&str> = audit.iter().rev().filter_map(|entry| entry["action"].as_str()).collect();
    assert_eq!(
        actions,
        [
            "template.put",
            "template.advertise",
            "ban.add",
            "ban.lift",
            "settings.change",
            "invite.create",
            "invite.revoke",
            "settings.change",
            "allow-list.add",
            "settings.change",
            "admission.admit",
            "admission.refuse",
        ]
    );
    assert!(!json!(audit).to_string().contains(token), "the audit log has a token");
    let shown = run(&["control", "audit", "--state", &api.state]).succeeded().stdout;
    contains(&shown, &["socket (admin, socket, uid", "admission.refuse", "not you"]);
    api.service.program.read();
}
