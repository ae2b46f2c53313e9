//! The directory of a service: `serve --directory`, and joining by what it has.
#![cfg(unix)]

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Command,
    sync::LazyLock,
    time::{Duration, Instant},
};

use bitcoin::{Address, Amount, ScriptBuf, address::NetworkUnchecked};
use jsonschema::Validator;
use serde_json::{Value, json};

use crate::{
    bitcoind_support::{TestChain, faucet::Faucet},
    support::{
        PATIENCE, Program, Service, contains, did_of, directory, identity, path, run,
        verify::{participant_result, service_result},
    },
};

static SCHEMA: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../docs/directory.schema.json")).unwrap());

/// Fails on a value that the schema does not describe.
fn described(kind: &str, value: &Value) {
    let schema = json!({ "$ref": format!("#/$defs/{kind}"), "$defs": SCHEMA["$defs"] });
    let validator: Validator = jsonschema::draft202012::new(&schema).unwrap();
    let problems: Vec<_> = validator.iter_errors(value).map(|error| error.to_string()).collect();
    assert!(problems.is_empty(), "{problems:#?} in {value:#}");
}

/// Status, head and body.
fn get(service: &Service, at: &str, headers: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(service.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET {at} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_ascii_lowercase(), body.to_owned())
}

fn directory_of(service: &Service) -> Value {
    let (status, head, body) = get(service, "/v1/directory", "Origin: https://page.example\r\n");
    assert_eq!(status, 200, "{head} {body}");
    contains(&head, &["access-control-allow-origin: *", "content-type: application/json", "etag: ", "max-age=1"]);
    let shown = serde_json::from_str(&body).unwrap();
    described("directory", &shown);
    shown
}

/// The directory, once it lists the first cohort.
fn listed(service: &Service) -> Value {
    once(service, "a cohort is listed", |shown| shown["cohorts"].as_array().is_some_and(|all| !all.is_empty()))
}

/// The directory, as soon as it is as wanted: it is read once a second.
fn once(service: &Service, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let shown = directory_of(service);
        if wanted(&shown) {
            return shown;
        }
        assert!(Instant::now() < until, "{what}: {shown:#}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Runs a line of the directory in a shell, in a directory of a controller who has nothing but the program.
fn shell(place: &Path, line: &str) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_btcr2-aggregation")).parent().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(place);
    command.env("PATH", format!("{}:/usr/bin:/bin", program.display()));
    command
}

/// Prepares what the directory asks for, and starts the command with these placeholders replaced.
fn joins(place: &Path, join: &Value, replaced: &[(&str, &str)], more: &str) -> Program {
    fs::create_dir_all(place).unwrap();
    for step in join["prepare"].as_array().unwrap() {
        let done = shell(place, step["shell"].as_str().unwrap()).output().unwrap();
        assert!(done.status.success(), "{step}: {done:?}");
    }
    let mut line = join["command"]["shell"].as_str().unwrap().to_owned();
    for (word, value) in replaced {
        assert!(join["placeholders"].as_array().unwrap().iter().any(|one| one["word"] == *word), "{join:#}");
        line = line.replace(word, value);
    }
    Program::launch(shell(place, &format!("exec {line} --events json {more}")))
}

#[test]
fn a_member_joins_by_the_command_of_the_directory() {
    let directory = directory("directory-join");
    let mut service = Service::once(&directory, 2, &["--directory"]);
    let shown = listed(&service);
    assert_eq!((&shown["v"], &shown["service"]["did"]), (&json!(1), &json!(service.did)));
    assert_eq!((&shown["service"]["url"], &shown["admission"]["everyone"]), (&json!(service.url), &json!(true)));
    let cohort = &shown["cohorts"][0];
    assert_eq!((&cohort["kind"], &cohort["terms"]["minParticipants"]), (&json!("one-time"), &json!(2)));
    assert!(cohort["terms"].get("communicationPk").is_none(), "{cohort}");
    contains(
        &cohort["inWords"].to_string(),
        &["2 members sign", "4320 blocks (about 30 days)", "asks for no payment"],
    );
    let members = ["a", "b"].map(|name| joins(&directory.join(name), &cohort["join"], &[], ""));
    let result = service.program.event("result");
    service_result(&result, "key-path");
    for (name, member) in ["a", "b"].iter().zip(members) {
        participant_result(&member.result(), &did_of(&path(&directory.join(name), "my.id")), &result);
    }
    assert!(service.program.ends_well());
}

#[test]
fn nothing_of_members_and_candidates_is_in_it() {
    let directory = directory("directory-private");
    let mut service = Service::start(&directory, &["--directory", "--min-participants", "3"]);
    let file = identity(&directory, "alice");
    let _member = service.join(&file, &["--decline"]);
    service.program.event("opt-in-received");
    let (_, head, body) = get(&service, "/v1/directory", "");
    let did = did_of(&file);
    let key: Value = serde_json::from_str(&run(&["identity", "show", "--json", &file]).stdout).unwrap();
    assert!(!body.contains(&did) && !body.contains(key["publicKey"].as_str().unwrap()), "{body}");
    // A client that has it gets no body.
    let etag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
    for known in [etag.clone(), format!("W/{etag}"), format!("\"x\", {etag}"), "*".to_owned()] {
        let (status, _, body) = get(&service, "/v1/directory", &format!("If-None-Match: {known}\r\n"));
        assert_eq!((status, body.as_str()), (304, ""), "{known}");
    }
    assert_eq!(get(&service, "/v1/directory", "If-None-Match: \"x\"\r\n").0, 200);
    for wrong in ["?before=x", "?limit=-1"] {
        assert_eq!(get(&service, &format!("/v1/directory/announcements{wrong}"), "").0, 400, "{wrong}");
    }
    let (status, _, body) = get(&service, "/v1/directory/announcements?limit=1000000", "");
    assert_eq!((status, body.as_str()), (200, r#"{"items":[],"next":null}"#));
    // The routes of the protocol are beside it.
    assert_eq!(get(&service, "/v1/.well-known/aggregation", "").0, 200);
    assert_eq!(get(&service, "/v1/directory/x", "").0, 404);
}

#[test]
fn by_invite_there_are_no_terms_but_the_command() {
    let directory = directory("directory-invite");
    let state = path(&directory, "state");
    fs::create_dir_all(&state).unwrap();
    let made = run(&["invites", "new", "--state", &state, "--uses", "2"]).succeeded();
    let token = made.stdout.trim().to_owned();
    let arguments = ["--directory", "--invites", "--state", &state];
    let mut service = Service::once(&directory, 2, &arguments);
    let shown = listed(&service);
    assert_eq!(
        shown["admission"],
        json!({ "everyone": false, "list": false, "invites": true, "byOperator": false, "provenKeysOnly": false })
    );
    let cohort = &shown["cohorts"][0];
    assert_eq!(cohort["byInvite"], true, "{cohort:#}");
    assert!(cohort.get("terms").is_none() && cohort.get("inWords").is_none(), "{cohort:#}");
    assert!(!shown.to_string().contains(&token));
    let invited = [("TOKEN", token.as_str())];
    let members = ["a", "b"].map(|name| joins(&directory.join(name), &cohort["join"], &invited, ""));
    assert_eq!(service.program.event("result")["ok"], true);
    for member in members {
        assert_eq!(member.end().0, Some(0));
    }
}

#[test]
fn without_the_option_there_is_none() {
    let directory = directory("directory-none");
    let service = Service::start(&directory, &[]);
    assert_eq!(get(&service, "/v1/directory", "").0, 404);
    assert_eq!(get(&service, "/v1/directory/announcements", "").0, 404);
    drop(service);
    let file = path(&directory, "service");
    let serve = |more: &[&str]| run(&[&["serve", "--identity", &file, "--chain", "offline"][..], more].concat());
    let open = serve(&["--directory", "--listen", "0.0.0.0:0"]);
    contains(open.usage(), &["--public-url", "every address of this machine"]);
    for wrong in [
        "service.example",
        "ftp://a.example",
        "https://u:p@a.example",
        "https://a.example/?x",
        "https://a.example/#x",
    ] {
        contains(serve(&["--directory", "--public-url", wrong]).usage(), &["--public-url", wrong]);
    }
    contains(serve(&["--directory", "--relay", "ws://127.0.0.1:1"]).usage(), &["--listen"]);
    let behind =
        Service::start(&directory, &["--directory", "--public-url", "https://service.example/aggregation/"]);
    let shown = directory_of(&behind);
    assert_eq!(shown["service"]["url"], "https://service.example/aggregation");
    contains(
        shown["cohorts"][0]["join"]["command"]["shell"].as_str().unwrap(),
        &["join --service https://service.example/aggregation --service-did"],
    );
}

fn script(address: &Value) -> ScriptBuf {
    address.as_str().unwrap().parse::<Address<NetworkUnchecked>>().unwrap().assume_checked().script_pubkey()
}

#[actix_rt::test]
async fn announcements_are_listed_with_their_confirmations() {
    let Some(blocks) = TestChain::core("directory-chain").await else { return };
    let mut faucet = Faucet::new(&blocks, 4).await;
    let directory = directory("directory-chain");
    let state = path(&directory, "state");
    let node = blocks.node();
    let source = format!("core={}?cookie={}", node.url(), node.cookie_file().display());
    let chain = ["--chain", &source, "--chain-poll", "200ms", "--confirmations", "2"];
    let page = ["--public-page", "--explorer", "https://explorer.example"];
    let arguments =
        [&["--state", &state, "--min-participants", "1", "--max-participants", "1"][..], &page, &chain].concat();
    let mut service = Service::start(&directory, &arguments);
    let cohort = once(&service, "a cohort is open", |shown| !shown["cohorts"][0].is_null())["cohorts"][0].clone();
    let more = format!("--chain '{source}' --chain-poll 200ms --confirmations 2");
    let member = joins(&directory.join("member"), &cohort["join"], &[], &more);
    let wanted = service.program.event("funding-wanted");
    faucet.pay(&blocks, &script(&wanted["beaconAddress"]), Amount::from_sat(60_000)).await;
    blocks.mine(1).await;
    let broadcast = service.program.event("announcement-broadcast");
    let first = |shown: &Value| shown["announcements"]["items"][0].clone();
    let shown = once(&service, "it is broadcast", |shown| first(shown)["state"] == "broadcast");
    assert_eq!(
        first(&shown),
        json!({
            "cohortId": wanted["cohortId"], "beaconAddress": wanted["beaconAddress"], "txid": broadcast["txid"],
            "state": "broadcast", "confirmations": 0,
        })
    );
    // The next cohort is open; this one is not.
    assert!(shown["cohorts"].as_array().unwrap().iter().all(|one| one["cohortId"] != wanted["cohortId"]));
    blocks.mine(1).await;
    let shown = once(&service, "it is confirmed", |shown| first(shown)["state"] == "confirmed");
    assert_eq!(first(&shown)["confirmations"], 1);
    blocks.mine(1).await;
    let shown = once(&service, "it is final", |shown| first(shown)["state"] == "final");
    let last = first(&shown);
    assert_eq!((&last["txid"], &last["confirmations"]), (&broadcast["txid"], &json!(2)));
    assert_eq!(last["beaconAddress"], wanted["beaconAddress"]);
    assert_eq!(shown["announcements"]["items"].as_array().unwrap().len(), 1);
    let (_, _, page) = get(&service, "/", "");
    let links = [("tx", &last["txid"]), ("address", &last["beaconAddress"])]
        .map(|(kind, what)| format!("href=\"https://explorer.example/{kind}/{}\"", what.as_str().unwrap()));
    contains(&page.replace("&#x2f;", "/"), &[&links[0], &links[1], "2 or more"]);
    assert_eq!(member.end().0, Some(0));
    // Also after a restart, and by the route of pages.
    service.program.kill();
    let service = Service::start(&directory, &arguments);
    assert_eq!(first(&directory_of(&service)), last);
    let (status, _, body) = get(&service, "/v1/directory/announcements?limit=1", "");
    let page: Value = serde_json::from_str(&body).unwrap();
    described("page", &page);
    assert_eq!((status, &page), (200, &json!({ "items": [last], "next": null })));
    let (_, _, body) = get(&service, "/v1/directory/announcements?before=1", "");
    assert_eq!(body, r#"{"items":[],"next":null}"#);
}

#[actix_rt::test]
async fn a_standing_cohort_is_joined_and_then_listed() {
    let Some(blocks) = TestChain::core("directory-standing").await else { return };
    let mut faucet = Faucet::new(&blocks, 4).await;
    let directory = directory("directory-standing");
    let state = path(&directory, "state");
    let node = blocks.node();
    let source = format!("core={}?cookie={}", node.url(), node.cookie_file().display());
    let chain = ["--chain", &source, "--chain-poll", "200ms", "--confirmations", "1"];
    let terms = [
        "--standing",
        "--min-participants",
        "2",
        "--max-participants",
        "2",
        "--absent",
        "wait",
        "--min-interval",
        "1s",
    ];
    let arguments = [&["--directory", "--state", &state][..], &terms, &chain].concat();
    let mut service = Service::start(&directory, &arguments);
    let cohort = once(&service, "a cohort is open", |shown| !shown["cohorts"][0].is_null())["cohorts"][0].clone();
    assert_eq!((&cohort["kind"], &cohort["join"]["consents"]), (&json!("standing"), &json!([])));
    contains(
        &cohort["inWords"].to_string(),
        &["2 seats share one beacon address", "Only all seats together can spend"],
    );
    let replaced = [("esplora=URL", source.as_str())];
    let quoted = format!("'{source}'");
    assert!(cohort["join"]["agent"]["config"].as_str().unwrap().contains(&service.did));
    let replaced = replaced.map(|(word, _)| (word, quoted.as_str()));
    let more = "--chain-poll 200ms --confirmations 1";
    let _seats = ["a", "b"].map(|name| joins(&directory.join(name), &cohort["join"], &replaced, more));
    let formed = service.program.event("standing-formed");
    faucet.pay(&blocks, &script(&formed["beaconAddress"]), Amount::from_sat(80_000)).await;
    blocks.mine(1).await;
    let shown = once(&service, "it is listed", |shown| !shown["standing"][0].is_null());
    let listed = &shown["standing"][0];
    assert_eq!((&listed["beaconAddress"], &listed["seats"]), (&formed["beaconAddress"], &json!(2)));
    assert_eq!((&listed["cohortId"], &shown["cohorts"]), (&cohort["cohortId"], &json!([])));
    let (status, _, all) = get(&service, &format!("/{}", listed["announcements"].as_str().unwrap()), "");
    assert_eq!(status, 200, "{all}");
}

/// What a browser loads or follows from a page.
fn links(page: &str) -> Vec<String> {
    let of = |name: &str| {
        let begin = format!(" {name}=\"");
        let rests = page.split(begin.as_str()).skip(1);
        rests.map(|rest| rest.split('"').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    [of("href"), of("src")].concat()
}

#[test]
fn people_see_the_same_on_the_page_without_a_script() {
    let directory = directory("directory-page");
    let arguments = ["--public-page", "--explorer", "https://explorer.example/signet/", "--min-participants", "2"];
    let service = Service::start(&directory, &arguments);
    let shown = listed(&service);
    let (status, head, page) = get(&service, "/", "Origin: https://page.example\r\n");
    assert_eq!(status, 200, "{head}");
    contains(
        &head,
        &["content-type: text/html", "default-src 'none'; script-src 'self'", "frame-ancestors 'none'", "nosniff"],
    );
    assert!(!head.contains("access-control-allow-origin"), "{head}");
    let cohort = &shown["cohorts"][0];
    let unescaped = page.replace("&#39;", "'").replace("&quot;", "\"").replace("&#x2f;", "/");
    for text in cohort["inWords"]
        .as_array()
        .unwrap()
        .iter()
        .chain([&cohort["join"]["command"]["shell"], &shown["service"]["did"]])
    {
        assert!(unescaped.contains(text.as_str().unwrap()), "{text} in {unescaped}");
    }
    contains(&page, &["Open cohorts", "<noscript>", "#invite=", "--invite"]);
    // Behind a proxy with a path prefix everything is below the page's own path.
    let links = links(&unescaped);
    for link in &links {
        assert!(link.starts_with("./") || link.starts_with('#') || link == "data:,", "{link}");
    }
    for link in links.iter().filter(|link| link.starts_with("./")) {
        let (status, head, _) = get(&service, &link[1..], "");
        assert_eq!(status, 200, "{link}");
        if link.contains("/assets/") {
            contains(&head, &["immutable", "content-security-policy"]);
        }
    }
    assert!(!page.contains(" style=") && !page.contains("onclick") && !page.contains("<script>"), "{page}");
    let etag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    assert_eq!(get(&service, "/", &format!("If-None-Match: {etag}\r\n")).0, 304);
    let (status, _, older) = get(&service, "/?before=1", "");
    assert_eq!(status, 200);
    contains(&older, &["None before these."]);
    assert_eq!(get(&service, "/?before=x", "").0, 400);
    assert_eq!(get(&service, "/assets/x.css", "").0, 404);
    drop(service);
    // With the directory alone there is no page.
    let service = Service::start(&directory, &["--directory"]);
    assert_eq!(get(&service, "/", "").0, 404);
    drop(service);
    let file = path(&directory, "service");
    let wrong =
        run(&["serve", "--identity", &file, "--chain", "offline", "--explorer", "https://explorer.example"]);
    contains(wrong.usage(), &["--explorer needs --public-page"]);
}

#[test]
fn by_invite_the_page_has_the_command_and_no_terms() {
    let directory = directory("directory-page-invite");
    let state = path(&directory, "state");
    let service = Service::start(&directory, &["--public-page", "--invites", "--state", &state]);
    listed(&service);
    let (_, _, page) = get(&service, "/", "");
    contains(&page, &["DIDs with an invite of the operator", "by invite", "--invite TOKEN", "data-join"]);
    assert!(!page.contains("The terms as data"), "{page}");
}
