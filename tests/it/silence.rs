//! A member reports why it cannot reach a service, once for each cause, with advice: as processes.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Stdio,
    thread,
};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Program, Service, command, directory, identity, verify::text};

/// A web server that gives every request the same answer.
fn answering(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            thread::spawn(move || {
                read_request(&mut stream);
                let _ = stream.write_all(answer.as_bytes());
            });
        }
    });
    format!("http://{address}")
}

fn read_request(stream: &mut TcpStream) {
    const TLS: u8 = 0x16;
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) && byte[0] != TLS {
        request.push(byte[0]);
    }
}

/// A relay that answers every message with `frames`.
fn relay(frames: Vec<Value>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let frames = frames.clone();
                tokio::spawn(async move {
                    let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
                    while let Some(Ok(message)) = socket.next().await {
                        let Ok(asked) = serde_json::from_str::<Value>(message.to_text().unwrap_or_default()) else {
                            continue;
                        };
                        for frame in &frames {
                            // A frame about a subscription gets the identifier of the requested one.
                            let frame = frame.to_string().replace("SUBSCRIPTION", asked[1].as_str().unwrap_or(""));
                            if socket.send(Message::text(frame)).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
    });
    format!("ws://{address}")
}

/// Runs a member until it gives up: the problem that it reports, and its advice.
fn gives_up(name: &str, place: &[&str]) -> (String, String) {
    let directory = directory(name);
    let member = identity(&directory, "member");
    let fixed = ["join", "--identity", &member, "--decline", "--events", "json", "--connect-timeout", "13s"];
    let (status, lines, errors) = Program::start(&[&fixed[..], place].concat()).end();
    assert_eq!(status, Some(1), "{lines:#?}{errors}");
    let reported: Vec<&Value> = lines.iter().filter(|line| line["event"] == "unreachable").collect();
    assert!(!reported.is_empty(), "{lines:#?}");
    // Each purpose is reported once in these seconds.
    let purposes: std::collections::BTreeSet<_> =
        reported.iter().map(|line| (line["purpose"].to_string(), line["problem"].to_string())).collect();
    assert_eq!(reported.len(), purposes.len(), "a purpose is reported twice: {reported:#?}");
    let result = lines.iter().find(|line| line["event"] == "result").unwrap();
    assert!(text(&result["reason"]).contains("--connect-timeout"), "{result}");
    (text(&reported[0]["problem"]).to_owned(), reported[0]["advice"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_server_that_is_not_a_service_is_reported() {
    let causes: [(&str, &str, &str, &str); 4] = [
        (
            "silence-html",
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\nConnection: close\r\n\r\n<html",
            "text/html",
            "Another web server",
        ),
        (
            "silence-404",
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            "404",
            "Another web server",
        ),
        (
            "silence-429",
            "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            "429",
            "fewer requests",
        ),
        (
            "silence-elsewhere",
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.2:9/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            "302",
            "",
        ),
    ];
    // At the same time: each of them waits until its timeout.
    let waiting = causes.map(|(name, answer, problem, advice)| {
        thread::spawn(move || {
            let url = answering(answer);
            let (reported, advised) = gives_up(name, &["--service", &url]);
            assert!(reported.contains(problem), "{name}: {reported}");
            assert!(advised.contains(advice), "{name}: {advised}");
        })
    });
    waiting.into_iter().for_each(|waiting| waiting.join().unwrap());
}

#[test]
fn wrong_names_ports_and_schemes_are_reported() {
    let https = answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").replace("http://", "https://");
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // It accepts connections, and does not answer.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mute = format!("https://{}", listener.local_addr().unwrap());
    let causes = [
        ("silence-port", format!("http://{unused}"), "efused", "is the port right?"),
        ("silence-name", "http://no-such-host.invalid".to_owned(), "", "Is the host name right?"),
        ("silence-scheme", https, "", "http:// or ws:// rather than https://"),
        ("silence-handshake", mute, "timed out", ""),
    ];
    let waiting = causes.map(|(name, url, problem, advice)| {
        thread::spawn(move || {
            let (reported, advised) = gives_up(name, &["--service", &url]);
            assert!(reported.contains(problem), "{name}: {reported}");
            assert!(advised.contains(advice), "{name}: {reported}: {advised}");
        })
    });
    waiting.into_iter().for_each(|waiting| waiting.join().unwrap());
}

#[test]
fn relays_that_refuse_or_do_not_answer_are_reported() {
    let causes = [
        (
            "silence-auth",
            vec![json!(["AUTH", "challenge"]), json!(["CLOSED", "SUBSCRIPTION", "auth-required: members only"])],
            "auth-required: members only",
            "demands authentication",
        ),
        ("silence-notice", vec![json!(["NOTICE", "we are full"])], "we are full", "answers nothing"),
        ("silence-mute", vec![], "has not answered a subscription", "answers nothing"),
    ];
    let waiting = causes.map(|(name, frames, problem, advice)| {
        thread::spawn(move || {
            let (reported, advised) = gives_up(name, &["--relay", &relay(frames)]);
            assert!(reported.contains(problem), "{name}: {reported}");
            assert!(advised.contains(advice), "{name}: {reported}: {advised}");
        })
    });
    waiting.into_iter().for_each(|waiting| waiting.join().unwrap());
}

#[test]
fn a_service_reports_problems_of_its_relays() {
    let directory = directory("silence-service");
    let (mute, unused) = (relay(vec![json!(["NOTICE", "we are full"])]), TcpListener::bind("127.0.0.1:0").unwrap());
    let closed = format!("ws://{}", unused.local_addr().unwrap());
    drop(unused);
    let mut service =
        Service::start(&directory, &["--relay", &mute, "--relay", &closed, "--min-participants", "1"]);
    let reported = |service: &mut Service, peer: &str, problem: &str| {
        service.program.event_where("unreachable", |event| {
            text(&event["peer"]).contains(peer) && text(&event["problem"]).contains(problem)
        });
    };
    reported(&mut service, closed.trim_start_matches("ws://"), "efused");
    reported(&mut service, mute.trim_start_matches("ws://"), "we are full");
    // Over HTTP it is reachable nevertheless.
    assert_eq!(service.join(&identity(&directory, "member"), &["--decline"]).result()["ok"], true);
}

#[test]
fn a_member_that_reads_too_slowly_is_warned() {
    let url = answering(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n\
         : too slow: there was no room \u{1b}[31m for the messages of 3 cohorts\n\n",
    );
    let directory = directory("silence-too-slow");
    let member = identity(&directory, "member");
    let join = ["join", "--identity", &member, "--decline", "--service", &url];
    let reported = Program::start(&[&join[..], &["--events", "json"]].concat()).event("read-too-slowly");
    assert_eq!(reported["detail"], "there was no room \\u{1b}[31m for the messages of 3 cohorts");
    let mut command = command(&join);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let warning = lines.into_iter().find(|line| line.contains("warning:"));
    child.kill().unwrap();
    child.wait().unwrap();
    let warning = warning.expect("the text has it too");
    assert!(warning.contains("read too slowly") && warning.contains("the messages of 3 cohorts"), "{warning}");
}

#[test]
fn a_notice_of_a_relay_in_place_of_an_answer_is_shown() {
    let relay = relay(vec![json!(["EOSE", "SUBSCRIPTION"]), json!(["NOTICE", "pay \u{202e}first"])]);
    let directory = directory("silence-notice");
    let service = identity(&directory, "service");
    let mut serve = Program::start(&[
        "serve",
        "--identity",
        &service,
        "--chain",
        "offline",
        "--relay",
        &relay,
        "--min-participants",
        "2",
        "--publish-timeout",
        "1s",
        "--events",
        "json",
    ]);
    let reported = serve.event("relay-says");
    assert_eq!(reported["words"], "NOTICE pay \\u{202e}first");
    serve.kill();
}
