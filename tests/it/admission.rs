//! Which DIDs a service admits: those on its operator's list, or with an invite; and how many cohorts run at once.

use std::fs;

use crate::bitcoind_support::{TestChain, faucet::Faucet};
use crate::support::{Program, Service, did_of, directory, external_identity, identity, path, run};
use bitcoin::Amount;
use btcr2_aggregation::{
    actors::{
        runtime::{Clock, Randomness},
        transport::tls::Trust,
    },
    protocol::{
        envelope::SealedEnvelope,
        id::CohortId,
        identity::Identity,
        message::{Body, Bytes, Message, keygen::CohortOptIn},
        output::{InitialBeacon, InitialBeaconKind},
    },
};
use serde_json::{Value, json};

fn refusal(joining: Program) -> String {
    let (status, lines, _) = joining.end();
    assert_eq!(status, Some(1), "{lines:#?}");
    lines.last().unwrap()["reason"].as_str().unwrap().to_owned()
}

#[test]
fn the_allow_list_is_read_again_when_it_changes() {
    let directory = directory("admission-list");
    let files = [identity(&directory, "listed"), identity(&directory, "other")];
    let dids = files.each_ref().map(|file| did_of(file));
    let list = path(&directory, "list");
    fs::write(&list, format!("# members\n\n{}  # the first\n", dids[0])).unwrap();
    let arguments = ["--min-participants", "1", "--cohorts", "2", "--exit-when-done", "--allow-list", &list];
    let mut service = Service::start(&directory, &arguments);
    let reason = refusal(service.join(&files[1], &["--decline"]));
    assert!(reason.contains("not on the operator's list"), "{reason}");
    assert!(
        !service.program.seen().iter().any(|event| event["event"] == "opt-in-received"),
        "nothing is journaled"
    );
    assert_eq!(service.join(&files[0], &["--decline"]).result()["ok"], true);

    // A list that cannot be read changes nothing, and is reported with its line.
    fs::write(&list, "not a DID\n").unwrap();
    service.program.signal("-HUP");
    let warning = service.program.event_where("warning", |event| event["message"].to_string().contains("line 1"));
    assert!(warning["message"].as_str().unwrap().contains("stays as it was"), "{warning}");
    // It is read again on SIGHUP, and without one.
    fs::write(&list, &dids[0]).unwrap();
    service.program.signal("-HUP");
    let reloaded = service.program.event("reloaded");
    assert_eq!((&reloaded["what"], &reloaded["files"]), (&json!("allow-list"), &json!([list])));
    fs::write(&list, dids.join("\n")).unwrap();
    assert_eq!(service.join(&files[1], &["--decline"]).result()["ok"], true);
    assert_eq!(service.program.result()["ok"], true);

    let wrong = path(&directory, "wrong");
    fs::write(&wrong, "did:example:1\n").unwrap();
    let service = path(&directory, "service");
    let ended = run(&["serve", "--identity", &service, "--chain", "offline", "--allow-list", &wrong]);
    assert!(ended.usage().contains("line 1"), "{ended:?}");
}

fn invites(state: &str, arguments: &[&str]) -> Value {
    let all = [&["invites"], arguments, &["--state", state, "--json"]].concat();
    serde_json::from_str(&run(&all).succeeded().stdout).unwrap()
}

#[test]
fn an_invite_admits_its_number_of_dids_until_it_is_revoked() {
    let directory = directory("admission-invites");
    let state = path(&directory, "state");
    let arguments =
        ["--min-participants", "1", "--cohorts", "2", "--exit-when-done", "--state", &state, "--invites"];
    let service = Service::start(&directory, &arguments);
    let files = ["one", "two", "three"].map(|name| identity(&directory, name));
    // Made while the service runs.
    let made = invites(&state, &["new", "--label", "for one\u{1b}[2J"]);
    let (id, token) = (made["invite"].as_str().unwrap(), made["token"].as_str().unwrap());
    let without = refusal(service.join(&files[0], &["--decline"]));
    assert!(without.contains("--invite TOKEN"), "{without}");
    let unknown =
        refusal(service.join(&files[0], &["--decline", "--invite", &format!("btcr2-invite-{}", "00".repeat(16))]));
    assert!(unknown.contains("not one of this service"), "{unknown}");
    assert_eq!(service.join(&files[0], &["--decline", "--invite", token]).result()["ok"], true);
    let used = refusal(service.join(&files[1], &["--decline", "--invite", token]));
    assert!(used.contains("used up"), "{used}");
    let all = invites(&state, &["list"]);
    let [listed] = &all.as_array().unwrap()[..] else { panic!("{all}") };
    assert_eq!((&listed["state"], &listed["admitted"]), (&json!("used up"), &json!([did_of(&files[0])])));
    let text = run(&["invites", "list", "--state", &state]).succeeded().stdout;
    assert!(text.contains(id) && !text.contains('\u{1b}') && !text.contains(token), "{text}");

    let counted = invites(&state, &["new", "--uses", "5", "--for", "1h"]);
    let token = counted["token"].as_str().unwrap();
    invites(&state, &["revoke", counted["invite"].as_str().unwrap()]);
    let revoked = refusal(service.join(&files[2], &["--decline", "--invite", token]));
    assert!(revoked.contains("revoked"), "{revoked}");
    // A DID that was admitted once may come again, also to later cohorts.
    let token = made["token"].as_str().unwrap();
    assert_eq!(service.join(&files[0], &["--decline", "--invite", token]).result()["ok"], true);
    assert_eq!(service.program.result()["ok"], true);
}

#[test]
fn invalid_uses_of_invites_are_refused_with_a_reason() {
    let directory = directory("admission-calls");
    let (service, state) = (identity(&directory, "service"), path(&directory, "state"));
    let ended =
        run(&["serve", "--identity", &service, "--chain", "offline", "--listen", "127.0.0.1:0", "--invites"]);
    assert!(ended.usage().contains("--state"), "{ended:?}");
    let ended = run(&["invites", "new", "--state", &state]);
    assert!(ended.status == Some(1) && ended.stderr.contains("serve --state"), "{ended:?}");
    fs::create_dir(&state).unwrap();
    assert_eq!(run(&["invites", "new", "--state", &state, "--uses", "0"]).status, Some(2));
    assert_eq!(run(&["invites", "new", "--state", &state, "--until", "2020-01-01T00:00:00Z"]).status, Some(2));
    let ended = run(&["invites", "revoke", "0123456789abcdef", "--state", &state]);
    assert!(ended.status == Some(1) && ended.stderr.contains("invites list"), "{ended:?}");
}

#[test]
fn a_did_with_coins_is_admitted_without_being_listed() {
    let name = "a_did_with_coins_is_admitted_without_being_listed";
    actix_rt::System::new().block_on(async {
        let Some(blocks) = TestChain::core(name).await else { return };
        let mut faucet = Faucet::new(&blocks, 1).await;
        let directory = directory("admission-funded");
        let files = [identity(&directory, "rich"), identity(&directory, "poor")];
        let beacon = InitialBeacon::of(&did_of(&files[0]).parse().unwrap(), InitialBeaconKind::P2wpkh).unwrap();
        faucet.pay(&blocks, &beacon.script_pubkey(), Amount::from_sat(6_000)).await;
        blocks.mine(1).await;
        let source = format!("core={}?cookie={}", blocks.node().url(), blocks.node().cookie_file().display());
        let state = path(&directory, "state");
        let arguments =
            ["--min-participants", "1", "--chain", &source, "--state", &state, "--admit-funded", "6000"];
        let mut service = Service::start(&directory, &arguments);
        let reason = refusal(service.join(&files[1], &["--decline"]));
        assert!(reason.contains("hold 0 sat of the 6000 sat"), "{reason}");
        let external = refusal(service.join(&external_identity(&directory, "external"), &["--decline"]));
        assert!(external.contains("this DID is EXTERNAL"), "{external}");
        let _joining = service.join(&files[0], &["--decline"]);
        let admitted = service.program.event("participant-accepted");
        assert_eq!(admitted["participant"], did_of(&files[0]));
    });
}

#[test]
fn admission_by_coins_needs_a_chain() {
    let directory = directory("admission-funded-calls");
    let service = identity(&directory, "service");
    let ended = run(&["serve", "--identity", &service, "--chain", "offline", "--admit-funded", "1000"]);
    assert!(ended.usage().contains("--chain core=URL"), "{ended:?}");
}

#[test]
fn the_number_of_live_cohorts_is_bounded() {
    let directory = directory("admission-live");
    let mut service = Service::start(&directory, &["--min-participants", "1", "--max-live-cohorts", "1"]);
    let first = service.program.event("cohort-advertised");
    let member = identity(&directory, "member");
    let joining = service.join(&member, &["--decline"]);
    service.program.event_where("warning", |event| event["message"].to_string().contains("--max-live-cohorts"));
    assert_eq!(joining.result()["ok"], true);
    service.program.event_where("cohort-advertised", |event| event["cohortId"] != first["cohortId"]);
    let seen = service.program.seen();
    let place = |name: &str| seen.iter().position(|event| event["event"] == name).unwrap();
    let next = seen.iter().rposition(|event| event["event"] == "cohort-advertised").unwrap();
    assert!(place("signing-complete") < next, "{seen:#?}");
}

/// Sends a message of an identity over HTTP, without a participant.
fn post(url: &str, from: &Identity, to: &str, body: impl Into<Body>) -> u16 {
    post_from(url, "192.0.2.1", from, to, body)
}

/// The same through a proxy that names the address from which it came.
fn post_from(url: &str, address: &str, from: &Identity, to: &str, body: impl Into<Body>) -> u16 {
    let message = Message::new(from.did().clone(), Some(to.parse().unwrap()), body.into());
    let mut rng = Randomness::System.for_actor("peer");
    let envelope =
        SealedEnvelope::seal_with_rng(&message, from.secret_key(), Clock::system().now(), &mut rng).unwrap();
    actix_rt::System::new().block_on(async {
        let client = Trust::system().http_client().unwrap().build().unwrap();
        let request = client.post(format!("{url}/v1/messages")).header("x-forwarded-for", address);
        let answer = request.body(envelope.to_json()).send().await.unwrap();
        answer.status().as_u16()
    })
}

#[test]
fn a_seat_with_a_foreign_key_can_be_refused() {
    let directory = directory("admission-keys");
    let arguments = ["--min-participants", "1", "--cohorts", "1", "--exit-when-done", "--proven-keys-only"];
    let mut service = Service::start(&directory, &arguments);
    let cohort_id: CohortId =
        service.program.event("cohort-advertised")["cohortId"].as_str().unwrap().parse().unwrap();
    let [thief, owner] = ["thief", "owner"].map(crate::nostr_support::identity);
    let opt_in = CohortOptIn {
        cohort_id,
        participant_pk: Bytes(owner.public_key().to_bytes()),
        communication_pk: Bytes(thief.public_key().to_bytes()),
        genesis_document: None,
        invite: None,
    };
    assert_eq!(post(&service.url, &thief, &service.did, opt_in), 202);
    let refused = service.program.event("participant-refused");
    assert_eq!(refused["participant"], json!(thief.did()));
    assert!(refused["reason"].as_str().unwrap().contains("participantPk"), "{refused}");
    let member = identity(&directory, "member");
    assert_eq!(service.join(&member, &["--decline"]).result()["ok"], true);
    assert_eq!(service.program.result()["ok"], true);
}

#[test]
fn seats_and_bans_go_by_network_address() {
    let directory = directory("admission-addresses");
    let state = path(&directory, "state");
    let arguments = ["--min-participants", "5", "--trust-forwarded", "--address-seats", "1", "--state", &state];
    let mut service = Service::start(&directory, &arguments);
    let cohort_id: CohortId =
        service.program.event("cohort-advertised")["cohortId"].as_str().unwrap().parse().unwrap();
    let opts_in = |name: &str, address: &str| {
        let member = crate::nostr_support::identity(name);
        let key = Bytes(member.public_key().to_bytes());
        let opt_in = CohortOptIn {
            cohort_id: cohort_id.clone(),
            participant_pk: key,
            communication_pk: key,
            genesis_document: None,
            invite: None,
        };
        assert_eq!(post_from(&service.url, address, &member, &service.did, opt_in), 202);
        json!(member.did())
    };
    let first = opts_in("first", "2001:db8::1");
    let same_network = opts_in("second", "2001:db8::2");
    let other = opts_in("third", "2001:db8:0:1::1");
    run(&["bans", "add", "203.0.113.7", "--state", &state]).succeeded();
    let banned = opts_in("fourth", "203.0.113.7");
    let mut reported = |event: &str, participant: &Value| {
        service.program.event_where(event, |event| event["participant"] == *participant)
    };
    reported("participant-accepted", &first);
    let reason = reported("participant-refused", &same_network)["reason"].to_string();
    assert!(reason.contains("this network address has 1 seats"), "{reason}");
    reported("participant-accepted", &other);
    assert!(reported("participant-refused", &banned)["reason"].to_string().contains("banned until it is lifted"));
}
