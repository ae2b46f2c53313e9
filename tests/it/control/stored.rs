//! What a restart keeps.

use serde_json::{Value, json};

use super::{Controlled, base, eventually, id};
use crate::support::{did_of, identity};

#[test]
fn a_restart_keeps_templates_settings_tokens_and_pauses() {
    let api = Controlled::start("control-restart", &[]);
    let token = api.token("operator");
    let did = did_of(&identity(&api.directory, "listed"));
    api.ctl(&["template", "put", "kept", "--set", "min-participants=3", "--parallel", "2"]);
    api.ctl(&["template", "put", "draft", "--set", "standing=true", "--set", "min-participants=3"]);
    api.ctl(&["template", "advertise", "kept"]);
    api.ctl(&["settings", "set", "max-live-cohorts=3", "proven-keys-only=true"]);
    api.ctl(&["allow", "add", &did]);
    eventually("two are advertised", || api.ctl(&["cohort", "list"])["cohorts"].as_array().unwrap().len() == 2);
    let paused = id(&api.ctl(&["cohort", "list"])["cohorts"][0]);
    api.ctl(&["cohort", "pause", &paused]);
    let before = (api.ctl(&["template", "list"]), api.ctl(&["settings", "show"]), api.ctl(&["allow", "list"]));
    let of = |api: &Controlled| -> Vec<Value> {
        let cohorts = api.ctl(&["cohort", "list"]);
        cohorts["cohorts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|cohort| json!([cohort["cohortId"], cohort["paused"]]))
            .collect()
    };
    let cohorts = of(&api);
    let api = api.restarted(&[]);
    assert_eq!(
        before,
        (api.ctl(&["template", "list"]), api.ctl(&["settings", "show"]), api.ctl(&["allow", "list"]))
    );
    assert_eq!(api.ask(Some(&token), "GET", &base("/whoami"), None).body["label"], "operator");
    eventually("the same cohorts run, and one is paused", || of(&api) == cohorts);
    // The third one is refused: two run, and a third one of the template would be one too many.
    api.ctl(&["cohort", "create", "--set", "min-participants=2"]);
    let refused = api.ctl_run(&["cohort", "create", "--set", "min-participants=2"]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    let audit = api.audit(2);
    assert_eq!((&audit[0]["of"], &audit[1]["action"]), (&audit[1]["n"], &json!("cohort.create")), "{audit:#?}");
    assert!(audit[0]["refused"].as_str().unwrap().contains("max-live-cohorts"), "{audit:#?}");
    assert_eq!(api.audit(100).last().unwrap()["action"], "token.create");
}

#[test]
fn the_command_line_is_the_first_template() {
    let mut api = Controlled::start("control-first", &["--min-participants", "2", "--parallel", "1"]);
    api.service.program.event("cohort-advertised");
    let templates = api.ctl(&["template", "list"]);
    let first = &templates["templates"][0];
    assert_eq!(
        (&first["name"], &first["source"], &first["state"]),
        (&json!("serve"), &json!("command-line"), &json!("advertised"))
    );
    assert_eq!(
        first["resolved"]["conditions"]["minParticipants"]
            .as_u64()
            .or(first["resolved"]["conditions"]["min_participants"].as_u64()),
        Some(2)
    );
    assert_eq!(api.ctl_run(&["template", "remove", "serve"]).status, Some(1));
    assert_eq!(api.ctl(&["template", "pause", "serve"])["state"], "paused");
    let arguments = ["--min-participants", "2", "--parallel", "1"];
    let api = api.restarted(&arguments);
    assert_eq!(api.ctl(&["template", "show", "serve"])["state"], "paused");
    let cohort = api.ctl(&["cohort", "list"])["cohorts"][0].clone();
    assert_eq!((&cohort["template"], &cohort["paused"]), (&json!("serve"), &json!(true)));
    api.ctl(&["cohort", "cancel", &id(&cohort)]);
    eventually("none runs, and none follows", || api.ctl(&["cohort", "list"])["cohorts"] == json!([]));
}

#[test]
fn an_invite_has_a_link_to_the_page_for_controllers() {
    let with_page = Controlled::start("control-link", &["--public-page", "--public-url", "https://agg.example"]);
    let invite = with_page.ctl(&["invite", "new"]);
    let token = invite["token"].as_str().unwrap();
    assert_eq!(
        invite["link"],
        format!("https://agg.example/#invite={token}"),
        "the token is in the fragment alone"
    );
    let without = Controlled::start("control-no-link", &[]);
    assert_eq!(without.ctl(&["invite", "new"])["link"], Value::Null);
}
