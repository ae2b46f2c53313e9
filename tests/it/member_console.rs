//! `member --console`: login, what protects the page, and decisions through it.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use serde_json::Value;

use crate::{
    member_support::{World, json, pending},
    resolve_cli::ran,
    support::{PATIENCE, contains, run},
};

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// A browser without a script: it has a cookie, and sends forms.
struct Browser {
    address: String,
    cookie: Option<String>,
}

impl Browser {
    fn send(&self, method: &str, at: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut request =
            format!("{method} {at} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "Host") {
            request.push_str(&format!("Host: {}\r\n", self.address));
        }
        if let Some(cookie) = &self.cookie {
            request.push_str(&format!("Cookie: {cookie}\r\n"));
        }
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        let _ = stream.write_all(format!("{request}\r\n{body}").as_bytes());
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }

    fn get(&self, at: &str) -> Answer {
        self.send("GET", at, &[], "")
    }

    /// A page, which has to be there, and safe.
    fn page(&self, at: &str) -> String {
        let answer = self.get(at);
        assert_eq!(answer.status, 200, "{at}: {answer:?}");
        let policy = answer.header("content-security-policy").unwrap();
        contains(policy, &["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"]);
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        answer.body
    }

    /// Sends a form as a page of its own does.
    fn form(&self, at: &str, body: &str) -> Answer {
        let origin = format!("http://{}", self.address);
        let headers = [("Content-Type", "application/x-www-form-urlencoded"), ("Origin", &origin)];
        self.send("POST", at, &headers, body)
    }

    /// Logs in with the secret of an address.
    fn log_in(&mut self, url: &str) -> Answer {
        let secret = url.split_once("#secret=").unwrap().1;
        let answer = self.form("/login", &format!("secret={secret}"));
        if let Some(cookie) = answer.header("set-cookie") {
            self.cookie = Some(cookie.split(';').next().unwrap().to_owned());
        }
        answer
    }

    /// The token that the forms of a page have.
    fn csrf(&self, page: &str) -> String {
        let (_, rest) = page.split_once("name=\"_csrf\" value=\"").unwrap();
        rest.split_once('"').unwrap().0.to_owned()
    }
}

/// Starts the agent with a page, and a browser that is not logged in.
fn with_page(world: &mut World) -> Browser {
    let mut command =
        crate::support::command(&["member", "--config", &world.config, "--state", &world.state, "--json"]);
    command.args(["--console", "127.0.0.1:0"]).env("BTCR2_PASSPHRASE", "horse");
    world.agent = Some(crate::support::Program::launch(command));
    let opened = world.program().event("console-opened");
    world.program().event("member-ready");
    let url = opened["url"].as_str().unwrap();
    assert!(!url.contains("secret"), "{url}");
    Browser { address: url.strip_prefix("http://").unwrap().to_owned(), cookie: None }
}

async fn console_url(world: &World) -> String {
    let run = ran(&["member", "console-url", "--state", &world.state]).await.succeeded();
    run.stdout.trim().to_owned()
}

#[actix_rt::test]
async fn the_page_is_for_who_has_a_secret_and_for_forms_of_its_own() {
    let Some(mut world) = World::new("member-console", "").await else { return };
    let mut browser = with_page(&mut world);
    // Without a session there is nothing but the login.
    for at in ["/", "/dids", "/queue", "/queue/1", "/requests/1", "/log", "/costs", "/dids/did:btcr2:k1x"] {
        let answer = browser.get(at);
        assert_eq!((answer.status, answer.header("location")), (303, Some("/login")), "{at}");
    }
    let background = browser.send("GET", "/", &[("X-Background", "1")], "");
    assert_eq!(background.status, 401);
    for at in ["/approve", "/reject", "/cancel", "/backup", "/logout"] {
        assert_eq!(browser.form(at, "id=1&_csrf=x").status, 401, "{at}");
    }
    contains(&browser.page("/login"), &["member console-url", "name=\"secret\""]);
    assert_eq!(browser.form("/login", "secret=x").status, 401);
    // A secret works once.
    let url = console_url(&world).await;
    assert!(url.starts_with(&format!("http://{}/login#secret=", browser.address)), "{url}");
    let foreign = browser.send(
        "POST",
        "/login",
        &[("Content-Type", "application/x-www-form-urlencoded"), ("Origin", "http://evil.example")],
        &format!("secret={}", url.split_once("#secret=").unwrap().1),
    );
    assert_eq!(foreign.status, 403);
    let logged_in = browser.log_in(&url);
    assert_eq!((logged_in.status, logged_in.header("location")), (303, Some("/")));
    contains(logged_in.header("set-cookie").unwrap(), &["HttpOnly", "SameSite=Strict"]);
    let mut other = Browser { address: browser.address.clone(), cookie: None };
    assert_eq!(other.log_in(&url).status, 401, "it works once");
    // Names that lead here are not ours, and a tunnel has another port.
    for host in ["evil.example", "127.0.0.1.evil.example", "192.0.2.1:80", "", "localhost.evil.example:8087"] {
        assert_eq!(browser.send("GET", "/", &[("Host", host)], "").status, 421, "{host}");
    }
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:9"] {
        assert_eq!(browser.send("GET", "/", &[("Host", host)], "").status, 200, "{host}");
    }
    // Every page is there without a script.
    for (at, text) in
        [("/", "Overview"), ("/dids", "DIDs"), ("/queue", "Queue"), ("/costs", "Costs"), ("/log", "member-ready")]
    {
        contains(&browser.page(at), &[text, "Log out"]);
    }
    for missing in ["/x", "/requests/77", "/dids/did:btcr2:k1x", "/queue/x"] {
        assert_eq!(browser.get(missing).status, 404, "{missing}");
    }
    // A form needs the token of the session, and a page of this origin.
    let csrf = browser.csrf(&browser.page("/"));
    assert_eq!(browser.form("/backup", "").status, 403);
    assert_eq!(browser.form("/backup", "_csrf=x").status, 403);
    let from = |origin: &str| {
        let headers = [("Content-Type", "application/x-www-form-urlencoded"), ("Origin", origin)];
        browser.send("POST", "/backup", &headers, &format!("_csrf={csrf}")).status
    };
    assert_eq!((from("http://evil.example"), from("null"), from("http://127.0.0.1:1")), (403, 403, 403));
    let refused = browser.form("/backup", &format!("_csrf={csrf}"));
    assert_eq!(refused.status, 409);
    contains(&refused.body, &["[backup]", "vault backup FILE"]);
    assert_eq!(browser.send("PUT", "/backup", &[], "").status, 405);
    let out = browser.form("/logout", &format!("_csrf={csrf}"));
    contains(out.header("set-cookie").unwrap(), &["Max-Age=0"]);
    assert_eq!(browser.get("/").status, 303, "the session has ended");
    world.stop();
    // Only this machine reaches it.
    let open = run(&["member", "--config", &world.config, "--state", &world.state, "--console", "0.0.0.0:0"]);
    contains(open.usage(), &["--console 0.0.0.0:0", "other machines reach this address"]);
    // An agent without a page has no secret to give.
    world.start();
    let none = ran(&["member", "console-url", "--state", &world.state]).await;
    assert_eq!(none.status, Some(1));
    contains(&none.stderr, &["without --console"]);
    world.stop();
}

#[actix_rt::test]
async fn decisions_on_the_page_lead_to_signatures_and_rejections() {
    let policy = "join = \"ask\"\nsign = \"ask-own\"\ntimeout = \"10m\"\n[backup]\ndirectory = \"backups\"";
    let Some(mut world) = World::new("member-decides", policy).await else { return };
    let mut browser = with_page(&mut world);
    browser.log_in(&console_url(&world).await);
    // The terms in words, then the seat.
    let asked = pending(&world.state).await;
    contains(&browser.page("/"), &["Join a cohort", &format!("/requests/{}", asked["id"])]);
    let page = browser.page(&format!("/requests/{}", asked["id"]));
    contains(
        &page,
        &["Take a seat in a cohort?", "Only all seats together can spend the coin", &world.service.did],
    );
    let csrf = browser.csrf(&page);
    let approve = |id: &Value| browser.form("/approve", &format!("_csrf={csrf}&id={id}"));
    assert_eq!(approve(&Value::from(77)).status, 409);
    let approved = approve(&asked["id"]);
    assert_eq!((approved.status, approved.header("location")), (303, Some("/")));
    assert_eq!(approve(&asked["id"]).status, 409, "once");
    let address = world.funded().await;
    contains(&browser.page("/"), &["It is approved.", &address]);
    let dids = world.mint("1").await;
    let (did, identity) = &dids[0];

    // Hostile text in the document becomes no markup.
    let endpoint = "{\"uri\":\"https://x.example\",\"note\":\"<script>alert(1)</script>\u{202e}\"}";
    let verb = ["add-service", "one", "--type", "X", "--endpoint", endpoint];
    let fixed = ["update", did, "--identity", identity, "--chain", &world.source, "--min-conf", "2"];
    ran(&[&fixed[..], &["--queue", &world.state], &verb].concat()).await.succeeded();
    let first = pending(&world.state).await;
    let at = format!("/requests/{}", first["id"]);
    let page = browser.page(&at);
    // What is signed, and what it changes.
    let request = &first["request"];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    contains(
        &page,
        &[&text(&request["txid"]), &text(&request["beaconAddress"]), &text(&request["transaction"]["signal"])],
    );
    contains(&page, &["sat/vB", "the rest, back to the beacon", "From version 1 to 2", "class=\"add\"", "#one"]);
    assert!(page.contains("&lt;script&gt;alert(1)") && !page.contains("<script>alert"), "{page}");
    assert!(!page.contains('\u{202e}'), "{page}");
    // The amounts add up.
    let sum = |list: &Value| list.as_array().unwrap().iter().map(|one| one["value"].as_u64().unwrap()).sum::<u64>();
    let transaction = &request["transaction"];
    assert_eq!(sum(&transaction["inputs"]), sum(&transaction["outputs"]) + transaction["fee"].as_u64().unwrap());

    // Rejected, with a reason that the page escapes too.
    let csrf = browser.csrf(&page);
    let reason = "not%20%3Cb%3Etoday%3C%2Fb%3E";
    let rejected = browser.form("/reject", &format!("_csrf={csrf}&id={}&reason={reason}", first["id"]));
    assert_eq!(rejected.status, 303);
    let refused = world.program().event("seat-refused-to-sign");
    contains(refused["reason"].as_str().unwrap(), &["not <b>today</b>"]);
    let log = browser.page("/log");
    assert!(log.contains("&lt;b&gt;today") && !log.contains("<b>today"), "{log}");
    let second = loop {
        let next = pending(&world.state).await;
        if next["id"] != first["id"] {
            break next;
        }
    };
    // Approved: it is signed, announced, and in the document.
    assert_eq!(browser.form("/approve", &format!("_csrf={csrf}&id={}", second["id"])).status, 303);
    world.mined_until(1, "resolvable").await;
    let page = browser.page(&format!("/dids/{did}"));
    contains(&page, &["Version 2", "#one", "Check it"]);
    assert!(!page.contains("<script>alert"), "{page}");
    let checked = browser.page(&format!("/dids/{did}?check=1"));
    contains(&checked, &["class=\"tag good\""]);
    assert!(!checked.contains("It cannot be checked now"), "{checked}");
    contains(&browser.page("/queue/1"), &["resolvable", "it is in the document", "JSON Patch"]);
    contains(&browser.page("/costs"), &["fee-share"]);
    // A backup on request.
    let written = browser.form("/backup", &format!("_csrf={csrf}"));
    assert_eq!(written.status, 303, "{written:?}");
    contains(&browser.page("/"), &["A backup is written, and verified.", "member-0"]);
    let shown = json(&["member", "show", "1", "--json", "--state", &world.state]).await;
    assert_eq!((&shown["stage"], &shown["change"]["kind"]), (&Value::from("resolvable"), &Value::from("edit")));
    world.stop();
}
