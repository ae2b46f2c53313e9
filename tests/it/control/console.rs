//! The console: pages of the control listener, as a browser without scripts uses them.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
};

use serde_json::{Value, json};

use super::{Answer, Controlled, base, eventually, id};
use crate::support::{PATIENCE, contains, directory, identity, path, run};

/// What a page may load and do.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Every page that needs no name, and the least role that sees it.
const PAGES: [(&str, &str); 15] = [
    ("/console/", "viewer"),
    ("/console/cohorts", "viewer"),
    ("/console/standing", "viewer"),
    ("/console/templates", "viewer"),
    ("/console/templates/new", "viewer"),
    ("/console/templates/weekly", "viewer"),
    ("/console/invites", "viewer"),
    ("/console/admissions", "viewer"),
    ("/console/bans", "viewer"),
    ("/console/coins", "viewer"),
    ("/console/alarms", "viewer"),
    ("/console/settings", "viewer"),
    ("/console/audit", "operator"),
    ("/console/audit?limit=2", "operator"),
    ("/console/tokens", "admin"),
];

fn console(name: &str, arguments: &[&str]) -> Controlled {
    Controlled::start(name, &[&["--console"], arguments].concat())
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { (byte as char).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn form(fields: &[(&str, &str)]) -> String {
    fields.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect::<Vec<_>>().join("&")
}

/// A browser: it has the cookie of its session, and sends what browsers send.
struct Browser<'a> {
    api: &'a Controlled,
    cookie: String,
    csrf: String,
}

impl<'a> Browser<'a> {
    /// Logs in with a token.
    fn log_in(api: &'a Controlled, token: &str) -> Self {
        let answer = log_in(api, token, "");
        assert_eq!(answer.status, 303, "{answer:?}");
        let cookie = answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        let mut browser = Self { api, cookie, csrf: String::new() };
        let page = browser.get("/console/");
        let (_, rest) = page.text.split_once("name=\"_csrf\" value=\"").unwrap_or_else(|| panic!("{page:?}"));
        browser.csrf = rest.split('"').next().unwrap().to_owned();
        browser
    }

    fn send(&self, method: &str, at: &str, more: &[(&str, &str)], body: &str) -> Answer {
        let mut headers = vec![("Host", "localhost"), ("Cookie", &self.cookie)];
        headers.extend(more);
        send(self.api, method, at, &headers, body)
    }

    fn get(&self, at: &str) -> Answer {
        self.send("GET", at, &[("Sec-Fetch-Site", "same-origin")], "")
    }

    /// Sends a form of a page of ours.
    fn post(&self, at: &str, fields: &[(&str, &str)]) -> Answer {
        let fields = [&[("_csrf", self.csrf.as_str())], fields].concat();
        self.send("POST", at, &OF_FORM, &form(&fields))
    }

    /// Sends a form, and opens the next page.
    fn done(&self, at: &str, fields: &[(&str, &str)]) -> Answer {
        let answer = self.post(at, fields);
        assert_eq!(answer.status, 303, "{at}: {answer:?}");
        let page = self.get(answer.header("location").unwrap());
        assert_eq!(page.status, 200, "{page:?}");
        page
    }
}

/// What a browser sends with a form of our own page.
const OF_FORM: [(&str, &str); 3] = [
    ("Content-Type", "application/x-www-form-urlencoded"),
    ("Origin", "http://localhost"),
    ("Sec-Fetch-Site", "same-origin"),
];

fn send(api: &Controlled, method: &str, at: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let headers: Vec<_> = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    api.send(method, at, &headers, body)
}

fn log_in(api: &Controlled, token: &str, code: &str) -> Answer {
    let headers = [&[("Host", "localhost")], &OF_FORM[..]].concat();
    send(api, "POST", "/console/login", &headers, &form(&[("token", token), ("code", code)]))
}

#[test]
fn every_page_is_there_for_its_roles_with_its_policy() {
    let api = console("console-pages", &[]);
    api.ctl(&["template", "put", "weekly", "--set", "min-participants=3"]);
    let roles = ["viewer", "operator", "admin"];
    let rank = |role: &str| roles.iter().position(|known| *known == role).unwrap();
    for role in roles {
        let browser = Browser::log_in(&api, &api.token(role));
        for (page, least) in PAGES {
            let answer = browser.get(page);
            let expected = if rank(role) >= rank(least) { 200 } else { 403 };
            assert_eq!(answer.status, expected, "{page} {role}: {}", answer.text);
            assert_eq!(answer.header("content-security-policy"), Some(POLICY), "{page}");
            assert_eq!(answer.header("cache-control"), Some("no-store"), "{page}");
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
            assert!(
                answer.text.starts_with("<!doctype html>") && answer.text.matches("<h1").count() == 1,
                "{page}"
            );
            assert!(!answer.text.contains(" style=") && !answer.text.contains("<script>"), "{page}");
        }
        assert_eq!(browser.get("/console/none").status, 404);
        assert_eq!(browser.get("/console/cohorts/none").status, 404);
    }
    // Assets are by their hash, and may be stored.
    let page = send(&api, "GET", "/console/login", &[("Host", "localhost")], "");
    let style = page.text.split('"').find(|text| text.starts_with("/console/assets/console.")).unwrap();
    let asset = send(&api, "GET", style, &[("Host", "localhost")], "");
    assert_eq!((asset.status, asset.header("content-type")), (200, Some("text/css; charset=utf-8")));
    contains(asset.header("cache-control").unwrap(), &["immutable"]);
    assert_eq!(send(&api, "GET", "/console/assets/console.css", &[("Host", "localhost")], "").status, 404);
}

#[test]
fn without_a_login_there_is_only_the_login() {
    let mut api = Controlled::start("console-login", &["--console", "--control-host", "control.example"]);
    let control = api.service.program.seen().iter().find(|event| event["event"] == "control").unwrap().clone();
    assert_eq!(control["console"], format!("http://{}/console/", api.address));
    let host = [("Host", "localhost")];
    for (at, to) in [
        ("/", "/console/"),
        ("/console", "/console/"),
        ("/console/", "/console/login"),
        ("/console/audit?limit=2", "/console/login?next=%2Fconsole%2Faudit%3Flimit%3D2"),
    ] {
        let answer = send(&api, "GET", at, &host, "");
        assert_eq!((answer.status, answer.header("location")), (303, Some(to)), "{at}");
    }
    let login = send(&api, "GET", "/console/login?next=%2Fconsole%2Faudit", &host, "");
    contains(&login.text, &["name=\"_next\" value=\"/console/audit\"", "type=\"password\""]);
    let elsewhere = send(&api, "GET", "/console/login?next=https%3A%2F%2Fevil.example", &host, "");
    assert!(!elsewhere.text.contains("evil.example"));
    for (method, at) in [("GET", "/console/"), ("GET", "/console/login"), ("POST", "/console/login"), ("GET", "/")]
    {
        let answer = send(&api, method, at, &[("Host", "evil.example")], "");
        assert_eq!((answer.status, &answer.body["error"]), (421, &json!("wrong_host")), "{method} {at}");
    }
    assert_eq!(send(&api, "GET", "/console/login", &[("Host", "control.example:8443")], "").status, 200);
    assert_eq!(send(&api, "GET", "/console/cohorts", &[host[0], ("X-Background", "1")], "").status, 401);
    // A guess is slowed down, and the owner of the token is not locked out.
    let token = api.token("viewer");
    let statuses: Vec<u16> = (0..6).map(|_| log_in(&api, &format!("{token}x"), "").status).collect();
    assert!(statuses[..4].iter().all(|status| *status == 401) && statuses.contains(&429), "{statuses:?}");
    let slowed = log_in(&api, &format!("{token}x"), "");
    assert!(slowed.header("retry-after").is_some() && slowed.header("set-cookie").is_none(), "{slowed:?}");
    let cookie = log_in(&api, &token, "");
    let set = cookie.header("set-cookie").unwrap();
    contains(set, &["btcr2-console-", "; Path=/", "; HttpOnly", "; SameSite=Strict", "Max-Age=43200"]);
    assert!(!set.contains("Secure"), "it is not by TLS");
    // The form of another site logs no one in.
    let forged = [("Host", "localhost"), OF_FORM[0], ("Origin", "http://evil.example")];
    assert_eq!(send(&api, "POST", "/console/login", &forged, &form(&[("token", &token)])).status, 403);
    api.service.program.kill();
}

#[test]
fn a_login_has_a_new_session_and_a_logout_ends_it() {
    let api = console("console-sessions", &[]);
    let token = api.token("operator");
    let first = Browser::log_in(&api, &token);
    // Another login in the same browser: the identifier that someone may know is not valid any more.
    let headers = [&[("Host", "localhost"), ("Cookie", first.cookie.as_str())], &OF_FORM[..]].concat();
    let again = send(&api, "POST", "/console/login", &headers, &form(&[("token", &token)]));
    let cookie = again.header("set-cookie").unwrap().split(';').next().unwrap();
    assert_ne!(cookie, first.cookie);
    assert_eq!(first.get("/console/").status, 303);
    let second = Browser::log_in(&api, &token);
    assert_eq!(second.post("/console/logout", &[("_csrf", "wrong")]).status, 403);
    assert_eq!(second.get("/console/").status, 200);
    let out = second.post("/console/logout", &[]);
    assert_eq!((out.status, out.header("location")), (303, Some("/console/login")));
    contains(out.header("set-cookie").unwrap(), &["Max-Age=0"]);
    assert_eq!(second.get("/console/").status, 303);
    assert_eq!(second.post("/console/do/POST/invites", &[]).status, 401);
    assert_eq!(second.send("GET", &base("/whoami"), &[], "").status, 401);
}

#[test]
fn a_revoked_token_ends_its_session_and_stream() {
    let api = console("console-revoked", &[]);
    let token = api.token("viewer");
    let browser = Browser::log_in(&api, &token);
    let who = browser.send("GET", &base("/whoami"), &[], "");
    assert_eq!((who.status, &who.body["label"]), (200, &json!("viewer")));
    let mut stream = TcpStream::connect(api.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request =
        format!("GET {} HTTP/1.1\r\nHost: localhost\r\nCookie: {}\r\n\r\n", base("/events"), browser.cookie);
    stream.write_all(request.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines();
    assert!(lines.any(|line| line.unwrap().contains(": connected")));
    run(&["control", "token", "revoke", token.split('_').nth(1).unwrap(), "--state", &api.state]).succeeded();
    // The last chunk.
    assert!(lines.any(|line| line.unwrap() == "0"));
    assert_eq!(browser.get("/console/").status, 303);
    assert_eq!(browser.send("GET", &base("/whoami"), &[], "").status, 401);
}

#[test]
fn an_idle_session_ends_and_a_refreshed_page_is_idle() {
    let api = console("console-idle", &["--console-idle", "2s"]);
    let browser = Browser::log_in(&api, &api.token("viewer"));
    assert_eq!(browser.get("/console/").status, 200);
    // What a script asks for in the background does not count as use.
    eventually("the session ends", || browser.send("GET", "/console/", &[("X-Background", "1")], "").status == 401);
    assert_eq!(browser.get("/console/").status, 303);
}

#[test]
fn a_forged_change_is_refused() {
    let api = console("console-forged", &[]);
    let browser = Browser::log_in(&api, &api.token("operator"));
    let other = Browser::log_in(&api, &api.token("admin"));
    let at = "/console/do/POST/invites";
    let sent =
        |headers: &[(&str, &str)], fields: &[(&str, &str)]| browser.send("POST", at, headers, &form(fields)).status;
    let own = ("_csrf", browser.csrf.as_str());
    assert_eq!(sent(&OF_FORM, &[]), 403, "no token");
    assert_eq!(sent(&OF_FORM, &[("_csrf", &other.csrf)]), 403, "the token of another session");
    for foreign in [
        ("Origin", "http://evil.example"),
        ("Origin", "null"),
        ("Origin", "http://localhost:3000"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ] {
        assert_eq!(sent(&[OF_FORM[0], foreign], &[own]), 403, "{foreign:?}");
    }
    // By the API: reading needs the cookie alone, a change needs the header.
    let invite = |headers: &[(&str, &str)]| browser.send("POST", &base("/invites"), headers, "{}").status;
    assert_eq!(browser.send("GET", &base("/invites"), &[], "").status, 200);
    assert_eq!(invite(&[]), 403);
    assert_eq!(invite(&[("X-CSRF-Token", &other.csrf)]), 403);
    assert_eq!(invite(&[("X-CSRF-Token", &browser.csrf), ("Origin", "http://evil.example")]), 403);
    assert!(api.ctl(&["invite", "list"])["invites"].as_array().unwrap().is_empty(), "nothing was made");
    assert_eq!(invite(&[("X-CSRF-Token", &browser.csrf)]), 201);
    assert_eq!(sent(&OF_FORM, &[own]), 303);
    let audit = api.audit(1);
    assert_eq!((&audit[0]["action"], &audit[0]["who"]["label"]), (&json!("invite.create"), &json!("operator")));
    // Through a tunnel to the socket the pages of all sites are there: the owner of the socket is not in the browser.
    let headers =
        [("Host", "localhost"), ("Origin", "http://evil.example")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(api.ask_socket("GET", &base("/tokens"), &headers).status, 401);
}

#[test]
fn forms_do_what_the_api_does() {
    let api = console("console-forms", &[]);
    let browser = Browser::log_in(&api, &api.token("admin"));
    // A draft is checked without being stored: the page is shown again, with what was typed.
    let draft =
        [("name", "weekly"), ("terms.min-participants:int", "3"), ("terms.beacon", "smt"), ("parallel:int", "")];
    let checked = [&draft[..], &[("_back", "/console/templates/new"), ("_show", "1")]].concat();
    assert_eq!(browser.post("/console/do/POST/terms/check?only=terms", &checked).status, 200);
    assert!(api.ctl(&["template", "list"])["templates"].as_array().unwrap().is_empty());
    let put = "/console/do/PUT/templates/%7Bname%7D";
    let wrong = [("name", "weekly"), ("terms.min-participants:int", "x"), ("_back", "/console/templates/new")];
    let refused = browser.post(put, &wrong);
    assert_eq!(refused.status, 422, "{refused:?}");
    contains(&refused.text, &["a whole number expected", "New terms"]);
    let stored =
        browser.post(put, &[&draft[..], &[("_next", "/console/templates/{name}"), ("_done", "Stored.")]].concat());
    assert_eq!((stored.status, stored.header("location")), (303, Some("/console/templates/weekly")));
    let background = browser.send("GET", "/console/templates/weekly", &[("X-Background", "1")], "");
    assert!(!background.text.contains("Stored."), "a refreshed page does not take the message");
    assert!(browser.get("/console/templates/weekly").text.contains("Stored."));
    assert!(!browser.get("/console/templates/weekly").text.contains("Stored."), "once");
    assert_eq!(
        api.ctl(&["template", "show", "weekly"])["terms"],
        json!({ "min-participants": 3, "beacon": "smt" })
    );
    // A cohort of it, and its page.
    let created = browser
        .post("/console/do/POST/cohorts", &[("template", "weekly"), ("_next", "/console/cohorts/{cohortId}")]);
    let cohort = id(&api.ctl(&["cohort", "list"])["cohorts"][0]);
    let page = created.header("location").unwrap();
    assert_eq!(page, format!("/console/cohorts/{}", encoded(&cohort).replace("%2D", "-").replace("%5F", "_")));
    assert_eq!(browser.get(page).status, 200);
    browser.done(
        &format!("/console/do/POST/cohorts/{cohort}/cancel"),
        &[("reason", "no one comes"), ("_next", "/console/")],
    );
    eventually("it has ended", || api.ctl(&["cohort", "list"])["cohorts"].as_array().unwrap().is_empty());
    // What is in a path, and settings with all types.
    browser.done(
        "/console/do/PUT/bans/{subject}",
        &[("subject", "2001:db8::/64"), ("for", "2d"), ("reason", "<b>x</b>")],
    );
    assert_eq!(api.ctl(&["ban", "list"])["bans"][0]["address"], "2001:db8::/64");
    browser.done("/console/do/DELETE/bans/2001%3Adb8%3A%3A%2F64", &[("_next", "/console/bans")]);
    let settings = [("invites:bool", "false"), ("invites:bool", "on"), ("max-live-cohorts:int", "5")];
    browser.done("/console/do/PATCH/settings", &settings);
    let shown = api.ctl(&["settings", "show"]);
    assert_eq!((&shown["settings"]["invites"], &shown["settings"]["max-live-cohorts"]), (&json!(true), &json!(5)));
    browser.done("/console/do/PATCH/settings", &[("invites:json", "null"), ("_next", "/console/settings")]);
    assert_eq!(api.ctl(&["settings", "show"])["settings"]["invites"], false);
    // A refusal has a page with the reason, and no form goes anywhere else.
    let viewer = Browser::log_in(&api, &api.token("viewer"));
    let refused = viewer.post("/console/do/PATCH/settings", &[("invites:bool", "on")]);
    assert_eq!(refused.status, 403);
    contains(&refused.text, &["the role admin is needed"]);
    let elsewhere = browser
        .post("/console/do/POST/invites", &[("_next", "https://evil.example/"), ("_back", "//evil.example")]);
    assert_eq!(elsewhere.header("location"), Some("/console/"));
    for at in [
        "/console/do/GET/status",
        "/console/do/POST/none",
        "/console/do/POST",
        "/console/do/PUT/templates/..%2F..%2Ftokens",
    ] {
        assert!(matches!(browser.post(at, &[]).status, 404 | 405 | 422), "{at}");
    }
    assert_eq!(
        browser.send("POST", "/console/do/POST/invites", &[("Content-Type", "application/json")], "{}").status,
        400
    );
}

#[test]
fn a_second_factor_is_for_the_console_and_each_code_for_once() {
    let api = console("console-totp", &[]);
    let made = ["control", "token", "new", "--role", "admin", "--label", "phone", "--totp", "--state", &api.state];
    let made = run(&made).succeeded();
    let token = made.stdout.trim();
    assert!(token.starts_with("btcr2c_") && token.lines().count() == 1, "the token is alone on standard output");
    contains(&made.stderr, &["otpauth://totp/", "secret="]);
    let bearer = api.ask(Some(token), "GET", &base("/whoami"), None);
    assert_eq!(bearer.status, 403, "{bearer:?}");
    contains(bearer.body["detail"].as_str().unwrap(), &["console", "second factor"]);
    assert_eq!(log_in(&api, token, "").status, 401);
    let secret = made.stderr.split("secret=").nth(1).unwrap().split('&').next().unwrap();
    let code = code(secret);
    let wrong = if code == "000000" { "111111" } else { "000000" };
    assert_eq!(log_in(&api, token, wrong).status, 401);
    assert_eq!(log_in(&api, token, &code).status, 303);
    let again = log_in(&api, token, &code);
    assert_eq!(again.status, 401, "the code was used");
    contains(&again.text, &["each works once"]);
    // Codes can be guessed by those who have the token: they wait.
    let statuses: Vec<u16> = (0..4).map(|_| log_in(&api, token, wrong).status).collect();
    assert!(statuses.contains(&429), "{statuses:?}");
    let listed = api.ctl(&["token", "list"]);
    assert_eq!(listed["tokens"][0]["totp"], true, "{listed}");
    assert!(!listed.to_string().contains(secret));
}

/// The code of an authenticator now, by a program of its own.
fn code(secret: &str) -> String {
    let script = "import sys,hmac,hashlib,base64,struct,time\n\
                  k=base64.b32decode(sys.argv[1])\n\
                  h=hmac.new(k,struct.pack('>Q',int(time.time())//30),hashlib.sha1).digest()\n\
                  o=h[19]&15\n\
                  print('%06d'%((struct.unpack('>I',h[o:o+4])[0]&0x7fffffff)%10**6))";
    let output = std::process::Command::new("python3").args(["-c", script, secret]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_console_needs_an_address() {
    let directory = directory("console-usage");
    let (file, state) = (identity(&directory, "service"), path(&directory, "state"));
    let serve = |arguments: &[&str]| {
        let fixed =
            ["serve", "--identity", &file, "--chain", "offline", "--listen", "127.0.0.1:0", "--state", &state];
        run(&[&fixed[..], arguments].concat())
    };
    contains(serve(&["--console"]).usage(), &["--console", "--control ADDR"]);
    contains(serve(&["--console", "--control"]).usage(), &["--console", "127.0.0.1:8081"]);
    contains(serve(&["--control", "127.0.0.1:0", "--console-idle", "1h"]).usage(), &["--console"]);
}

#[test]
fn texts_of_others_are_shown_as_text() {
    let api = console("console-texts", &[]);
    let hostile = "<script>alert(1)</script>\u{202e}";
    run(&[
        "control",
        "token",
        "new",
        "--role",
        "viewer",
        "--label",
        "<img src=x onerror=alert(1)>",
        "--state",
        &api.state,
    ])
    .succeeded();
    api.ctl(&["invite", "new", "--label", hostile]);
    api.ctl(&["ban", "add", "192.0.2.1", "--reason", hostile]);
    let browser = Browser::log_in(&api, &api.token("admin"));
    let cohort = api.ctl(&["cohort", "create", "--set", "min-participants=2"]);
    api.ctl(&["cohort", "cancel", &id(&cohort), "--reason", hostile]);
    for (page, _) in PAGES {
        let text = browser.get(page).text;
        assert!(!text.contains("<script>") && !text.contains("<img src=x") && !text.contains('\u{202e}'), "{page}");
    }
    let refused = browser.post("/console/do/DELETE/bans/%3Cscript%3E", &[]);
    assert!(refused.status == 422 && !refused.text.contains("<script>"), "{refused:?}");
    let values: Vec<Value> = api.audit(10);
    assert!(values.iter().any(|entry| entry["action"] == "invite.create"), "{values:?}");
}
