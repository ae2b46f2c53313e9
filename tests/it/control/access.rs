//! Who may call, and what is refused.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
};

use serde_json::{Value, json};

use super::{Controlled, base, document, eventually};
use crate::support::{PATIENCE, Service, contains, directory, identity, path, run};

/// A request for each operation of the document: its method, a path with something in the braces, and its least role.
fn operations() -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    for (path, operations) in document()["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters") {
            let path: Vec<&str> =
                path.split('/').map(|part| if part.starts_with('{') { "none" } else { part }).collect();
            found.push((method.to_uppercase(), path.join("/"), operation["x-role"].as_str().unwrap().to_owned()));
        }
    }
    found
}

#[test]
fn each_operation_is_allowed_to_its_roles_alone() {
    let api = Controlled::start("control-roles", &[]);
    let roles = ["viewer", "operator", "admin"];
    let tokens: Vec<String> = roles.iter().map(|role| api.token(role)).collect();
    let rank = |role: &str| roles.iter().position(|known| *known == role).unwrap();
    let all = operations();
    assert!(all.len() > 50, "{}", all.len());
    for (method, path, least) in &all {
        let none = api.ask(None, method, path, None);
        assert_eq!((none.status, &none.body["error"]), (401, &json!("unauthorized")), "{method} {path}");
        assert_eq!(none.header("www-authenticate"), Some("Bearer"));
        for (role, token) in roles.iter().zip(&tokens) {
            if path.ends_with("/events") && rank(role) >= rank(least) {
                // It does not end.
                continue;
            }
            // A body that no operation takes: nothing is changed.
            let body = if method == "GET" { None } else { Some(json!([])) };
            let answer = api.ask(Some(token), method, path, body.as_ref());
            let allowed = rank(role) >= rank(least);
            assert_eq!(answer.status != 403, allowed, "{method} {path} {role}: {answer:?}");
            assert!(
                !matches!(answer.status, 401 | 405 | 500) && answer.status != 0,
                "{method} {path} {role}: {answer:?}"
            );
            assert!(answer.header("access-control-allow-origin").is_none(), "there is no CORS");
        }
    }
    // Nothing of it was a change, but that tokens were made.
    assert!(api.audit(1_000).iter().all(|entry| entry["action"] == "token.create"), "{:#?}", api.audit(1_000));
}

#[test]
fn the_socket_is_its_owners_and_a_token_limits_even_there() {
    let api = Controlled::start("control-socket", &[]);
    let socket = std::path::Path::new(&api.state).join("control.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let who = api.ask_socket("GET", &base("/whoami"), &[("Host".to_owned(), "evil.example".to_owned())]);
    assert_eq!((who.status, &who.body["role"], &who.body["label"]), (200, &json!("admin"), &json!("socket")));
    let viewer = format!("Bearer {}", api.token("viewer"));
    let headers = [("Host".to_owned(), "localhost".to_owned()), ("Authorization".to_owned(), viewer)];
    assert_eq!(api.ask_socket("GET", &base("/tokens"), &headers).status, 403);
    let state = api.state.clone();
    drop(api);
    let refused = run(&["ctl", "--state", &state, "status"]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    contains(&refused.stderr, &["serve --control"]);
}

#[test]
fn another_host_and_wrong_tokens_are_refused() {
    let api = Controlled::start("control-hosts", &["--control-host", "control.example"]);
    let token = api.token("viewer");
    let asked = |host: &str| {
        let headers =
            [("Host".to_owned(), host.to_owned()), ("Authorization".to_owned(), format!("Bearer {token}"))];
        api.send("GET", &base("/whoami"), &headers, "")
    };
    for host in ["localhost", "127.0.0.1:99", "[::1]", "Control.Example:443"] {
        assert_eq!(asked(host).status, 200, "{host}");
    }
    for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80"] {
        let answer = asked(host);
        assert_eq!((answer.status, &answer.body["error"]), (421, &json!("wrong_host")), "{host}");
    }
    // Guesses at a token are slowed down, and its owner is not.
    let wrong = format!("{token}x");
    let statuses: Vec<u16> = (0..8).map(|_| api.ask(Some(&wrong), "GET", &base("/whoami"), None).status).collect();
    assert!(statuses[..3].iter().all(|status| *status == 401) && statuses.contains(&429), "{statuses:?}");
    let slowed = api.ask(Some(&wrong), "GET", &base("/whoami"), None);
    assert!(slowed.status == 401 || slowed.header("retry-after").is_some(), "{slowed:?}");
    assert_eq!(api.ask(Some(&token), "GET", &base("/whoami"), None).status, 200);
}

#[test]
fn bodies_are_bounded_and_errors_are_precise() {
    let api = Controlled::start("control-bodies", &[]);
    let token = api.token("operator");
    let put = |body: &str| {
        let headers =
            [("Host".to_owned(), "localhost".to_owned()), ("Authorization".to_owned(), format!("Bearer {token}"))];
        api.send("PUT", &base("/templates/a"), &headers, body)
    };
    assert_eq!(put(&"x".repeat(70_000)).body["error"], "payload_too_large");
    assert_eq!(put("{").body["error"], "invalid_json");
    let wrong = json!({ "terms": { "min-participants": "x", "phase-timeout": "0s", "listen": "x" } });
    let answer = put(&wrong.to_string());
    assert_eq!((answer.status, &answer.body["error"]), (422, &json!("invalid")));
    let fields: Vec<&Value> =
        answer.body["problems"].as_array().unwrap().iter().map(|problem| &problem["field"]).collect();
    assert_eq!(fields, ["min-participants", "phase-timeout", "listen"]);
    for (method, at, status) in [
        ("GET", "/none", 404),
        ("POST", "/cohorts/none/cancel", 404),
        ("PATCH", "/cohorts", 405),
        ("GET", "/audit?limit=x", 422),
        ("GET", "/audit?limit=100000", 422),
        ("DELETE", "/bans/did%3Abtcr2%3Anone", 422),
    ] {
        assert_eq!(api.ask(Some(&token), method, &base(at), None).status, status, "{method} {at}");
    }
    assert_eq!(api.ask(Some(&token), "OPTIONS", &base("/cohorts"), None).status, 405);
    // The command line explains the same.
    let refused =
        api.ctl_run(&["template", "put", "a", "--set", "min-participants=3", "--set", "max-participants=2"]);
    assert_eq!(refused.status, Some(2), "{refused:?}");
    contains(&refused.all(), &["maxParticipants"]);
    assert_eq!(api.audit(10).len(), 1, "what does not fit is not a change: {:?}", api.audit(10));
}

#[test]
fn an_address_that_others_reach_needs_permission_and_tls() {
    let directory = directory("control-remote");
    let (file, state) = (identity(&directory, "service"), path(&directory, "state"));
    let serve = |arguments: &[&str]| {
        let fixed = ["serve", "--identity", &file, "--chain", "offline", "--listen", "127.0.0.1:0"];
        run(&[&fixed[..], arguments].concat())
    };
    contains(serve(&["--control", "0.0.0.0:0", "--state", &state]).usage(), &["--control-remote", "ssh -L"]);
    let no_tls = serve(&["--control", "0.0.0.0:0", "--control-remote", "--state", &state]);
    contains(no_tls.usage(), &["--tls-cert"]);
    contains(serve(&["--control"]).usage(), &["--state"]);
    let done = ["--control", "--state", &state, "--cohorts", "1", "--exit-when-done"];
    contains(serve(&done).usage(), &["--exit-when-done"]);
    contains(serve(&["--control-remote"]).usage(), &["--control"]);
}

#[test]
fn other_machines_reach_it_by_tls_with_a_token() {
    let directory = directory("control-tls");
    let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let [pem, key, state, token] = ["cert.pem", "key.pem", "state", "token"].map(|name| path(&directory, name));
    std::fs::write(&pem, certificate.cert.pem()).unwrap();
    std::fs::write(&key, certificate.signing_key.serialize_pem()).unwrap();
    let tls = ["--tls-cert", &pem, "--tls-key", &key, "--state", &state];
    let control = ["--control", "0.0.0.0:0", "--control-remote"];
    let mut service = Service::start(&directory, &[&tls[..], &control].concat());
    let url = service.program.event("control")["url"].as_str().unwrap().to_owned();
    assert!(url.starts_with("https://0.0.0.0:"), "{url}");
    let url = url.replace("0.0.0.0", "localhost");
    let made =
        run(&["control", "token", "new", "--role", "viewer", "--label", "far", "--state", &state]).succeeded();
    std::fs::write(&token, made.stdout).unwrap();
    let ctl = |arguments: &[&str]| run(&[&["ctl", "--url", &url, "--tls-ca", &pem, "--json"], arguments].concat());
    let who = ctl(&["--token-file", &token, "whoami"]).succeeded().stdout;
    assert_eq!(serde_json::from_str::<Value>(&who).unwrap()["label"], "far");
    let refused = ctl(&["whoami"]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    contains(&refused.all(), &["unauthorized", "a token is needed"]);
}

#[test]
fn a_stream_of_events_ends_when_its_token_is_revoked() {
    let api = Controlled::start("control-revoked", &[]);
    let token = api.token("viewer");
    let mut stream = TcpStream::connect(api.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request =
        format!("GET {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n", base("/events"));
    stream.write_all(request.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while !line.contains(": connected") {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0);
    }
    let id = token.split('_').nth(1).unwrap();
    run(&["control", "token", "revoke", id, "--state", &api.state]).succeeded();
    let mut rest = String::new();
    // The last chunk, and nothing more of the stream.
    let ended = |lines: &mut BufReader<TcpStream>, rest: &mut String| {
        let mut byte = [0];
        while lines.read(&mut byte).unwrap() > 0 {
            rest.push(byte[0] as char);
            if rest.ends_with("0\r\n\r\n") {
                return;
            }
        }
    };
    ended(&mut lines, &mut rest);
    assert!(!rest.contains("data:") || rest.contains("changed"), "{rest}");
    assert_eq!(api.ask(Some(&token), "GET", &base("/whoami"), None).status, 401);
    eventually("the revocation is in the audit log", || api.audit(1)[0]["action"] == "token.revoke");
}
