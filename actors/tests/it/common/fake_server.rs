//! A server with scripted answers, whatever the protocol specifies.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use tokio::sync::mpsc;

use super::peers::soon;

/// A request as received.
#[derive(Debug)]
pub struct Request {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).expect("JSON")
    }
}

/// An answer to a request.
#[derive(Clone, Debug)]
pub enum Answer {
    Status(u16, &'static str),
    /// A redirect to this URL.
    Redirect(u16, String),
    /// The connection breaks instead.
    Break,
    /// These events, and then silence.
    Events(Vec<String>),
    /// These events, and then the end.
    EventsThenEnd(Vec<String>),
}

#[derive(Default)]
struct Script {
    posts: VecDeque<Answer>,
    /// The answer to every post for which none is scripted.
    every_post: Option<Answer>,
    inbox: VecDeque<Answer>,
    adverts: VecDeque<Answer>,
    well_known: String,
    /// The answers to the next requests for the well-known document, in its place.
    instead: VecDeque<Answer>,
    silent: Vec<TcpStream>,
}

pub struct FakeServer {
    pub port: u16,
    script: Arc<Mutex<Script>>,
    posts: mpsc::UnboundedReceiver<Request>,
    inboxes: mpsc::UnboundedReceiver<Request>,
}

impl FakeServer {
    pub fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").expect("a free port"))
    }

    pub fn on(listener: TcpListener) -> Self {
        let port = listener.local_addr().expect("an address").port();
        let script = Arc::new(Mutex::new(Script { well_known: "{}".to_owned(), ..Script::default() }));
        let (posted, posts) = mpsc::unbounded_channel();
        let (opened, inboxes) = mpsc::unbounded_channel();
        let shared = Arc::clone(&script);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, posted, opened) = (Arc::clone(&shared), posted.clone(), opened.clone());
                thread::spawn(move || serve(stream, &shared, &posted, &opened));
            }
        });
        Self { port, script, posts, inboxes }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Scripts the answers to the next posts; 202 when nothing is left.
    pub fn answer_posts(&self, answers: impl IntoIterator<Item = Answer>) {
        self.script.lock().expect("whole").posts.extend(answers);
    }

    pub fn answer_every_post(&self, answer: Answer) {
        self.script.lock().expect("whole").every_post = Some(answer);
    }

    /// Scripts the answers to the next requests for the inbox; a silent stream when nothing is left.
    pub fn answer_inbox(&self, answers: impl IntoIterator<Item = Answer>) {
        self.script.lock().expect("whole").inbox.extend(answers);
    }

    pub fn answer_adverts(&self, answers: impl IntoIterator<Item = Answer>) {
        self.script.lock().expect("whole").adverts.extend(answers);
    }

    pub fn well_known(&self, document: serde_json::Value) {
        self.script.lock().expect("whole").well_known = document.to_string();
    }

    pub fn answer_well_known(&self, answers: impl IntoIterator<Item = Answer>) {
        self.script.lock().expect("whole").instead.extend(answers);
    }

    /// The next post.
    pub async fn post(&mut self) -> Request {
        soon("a post", self.posts.recv()).await.expect("the server runs")
    }

    /// The number of posts that the test has not read.
    pub fn more_posts(&mut self) -> usize {
        std::iter::from_fn(|| self.posts.try_recv().ok()).count()
    }

    /// The number of requests for the inbox that the test has not read.
    pub fn more_inboxes(&mut self) -> usize {
        std::iter::from_fn(|| self.inboxes.try_recv().ok()).count()
    }

    /// The next request for the inbox.
    pub async fn inbox(&mut self) -> Request {
        soon("a request for the inbox", self.inboxes.recv()).await.expect("the server runs")
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        headers.push((name.to_lowercase(), value.to_owned()));
    }
    let length =
        headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, n)| n.parse().unwrap_or(0));
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { line: line.trim().to_owned(), headers, body: String::from_utf8(body).ok()? })
}

fn serve(
    stream: TcpStream,
    script: &Mutex<Script>,
    posted: &mpsc::UnboundedSender<Request>,
    opened: &mpsc::UnboundedSender<Request>,
) {
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    let mut stream = stream;
    while let Some(request) = read(&mut reader) {
        let mut script = script.lock().expect("whole");
        let silent = Answer::Events(Vec::new());
        let answer = if request.line.starts_with("POST") {
            let answer = script.posts.pop_front().or_else(|| script.every_post.clone());
            let _ = posted.send(request);
            answer.unwrap_or(Answer::Status(202, r#"{"ok":true}"#))
        } else if request.line.contains("/inbox") {
            let answer = script.inbox.pop_front();
            let _ = opened.send(request);
            answer.unwrap_or(silent)
        } else if request.line.contains("/adverts") {
            script.adverts.pop_front().unwrap_or(silent)
        } else if let Some(answer) = script.instead.pop_front() {
            answer
        } else {
            let document = script.well_known.clone();
            let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{document}", document.len());
            continue;
        };
        let (events, ends) = match answer {
            Answer::Status(status, body) => {
                let _ = write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                continue;
            }
            Answer::Redirect(status, to) => {
                let _ = write!(stream, "HTTP/1.1 {status} X\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
                continue;
            }
            Answer::Break => return drop(stream.shutdown(std::net::Shutdown::Both)),
            Answer::Events(events) => (events, false),
            Answer::EventsThenEnd(events) => (events, true),
        };
        let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n{}", events.concat());
        if ends {
            return drop(stream.shutdown(std::net::Shutdown::Both));
        }
        script.silent.push(stream);
        return;
    }
}
