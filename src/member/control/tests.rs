#![allow(clippy::unwrap_used)]

use std::{os::unix::fs::PermissionsExt, path::Path, rc::Rc};

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

use super::{
    MAX_LINE, Request, line_of, parse,
    server::{Backend, Control},
};

struct Echo;

#[async_trait(?Send)]
impl Backend for Echo {
    async fn answer(&self, request: Request) -> Result<Value, String> {
        match request {
            Request::Cancel { id } => Err(format!("no {id}")),
            request => Ok(json!(request)),
        }
    }
}

/// Runs `test` with a socket that is served.
async fn served(test: impl AsyncFnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    // What an earlier process has left.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let control = Control::open(&path).unwrap();
    tokio::select! {
        () = control.serve(Rc::new(Echo)) => {}
        () = test(&path) => {}
    }
    assert!(!path.exists(), "the socket stays behind");
}

async fn ask(stream: &mut BufReader<UnixStream>, line: &[u8]) -> Value {
    stream.write_all(line).await.unwrap();
    answer(stream).await
}

async fn answer(stream: &mut BufReader<UnixStream>) -> Value {
    let mut answer = String::new();
    stream.read_line(&mut answer).await.unwrap();
    serde_json::from_str(&answer).unwrap_or(Value::Null)
}

#[tokio::test]
async fn requests_are_answered_in_turn() {
    served(async |path| {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut stream = BufReader::new(UnixStream::connect(path).await.unwrap());
        let first = ask(&mut stream, b"{\"v\":1,\"op\":\"status\"}\n").await;
        assert_eq!(first, json!({ "v": 1, "ok": true, "result": { "op": "status" } }));
        let second = ask(&mut stream, line_of(&Request::Cancel { id: 3 }).unwrap().as_bytes()).await;
        assert_eq!(second, json!({ "v": 1, "ok": false, "error": "no 3" }));
    })
    .await;
}

#[tokio::test]
async fn garbage_is_refused_and_what_is_too_long_ends_the_connection() {
    served(async |path| {
        let mut stream = BufReader::new(UnixStream::connect(path).await.unwrap());
        let garbage: [&[u8]; 7] = [
            b"hello\n",
            b"\xff\xfe\n",
            b"[]\n",
            b"{\"op\":\"status\"}\n",
            b"{\"v\":2,\"op\":\"status\"}\n",
            b"{\"v\":1,\"op\":\"delete\"}\n",
            b"{\"v\":1,\"op\":\"cancel\",\"id\":\"x\"}\n",
        ];
        for line in garbage {
            let refused = ask(&mut stream, line).await;
            assert_eq!(refused["ok"], false, "{line:?}: {refused}");
        }
        assert_eq!(ask(&mut stream, b"{\"v\":1,\"op\":\"pending\"}\n").await["ok"], true, "it goes on");
        let mut long = BufReader::new(UnixStream::connect(path).await.unwrap());
        let refused = ask(&mut long, &vec![b'x'; MAX_LINE + 1]).await;
        assert!(refused["error"].as_str().unwrap().contains("bytes expected"), "{refused}");
        let _ = long.write_all(b"\n").await;
        assert_eq!(answer(&mut long).await, Value::Null, "the connection is closed");
        // One that never ends its line, beside it.
        let mut silent = UnixStream::connect(path).await.unwrap();
        silent.write_all(b"{\"v\":1").await.unwrap();
        assert_eq!(ask(&mut stream, b"{\"v\":1,\"op\":\"pending\"}\n").await["ok"], true);
    })
    .await;
}

#[tokio::test]
async fn there_are_not_too_many_connections() {
    served(async |path| {
        let mut open = Vec::new();
        for _ in 0..32 {
            let mut stream = BufReader::new(UnixStream::connect(path).await.unwrap());
            assert_eq!(ask(&mut stream, b"{\"v\":1,\"op\":\"status\"}\n").await["ok"], true);
            open.push(stream);
        }
        let mut more = BufReader::new(UnixStream::connect(path).await.unwrap());
        assert_eq!(answer(&mut more).await["error"], "too many connections");
    })
    .await;
}

#[test]
fn an_unknown_field_is_refused() {
    assert!(parse(b"{\"v\":1,\"op\":\"cancel\",\"id\":1}").is_ok());
    assert!(parse(b"{\"v\":1,\"op\":\"cancel\",\"id\":1,\"x\":1}").is_err());
}

#[tokio::test]
async fn a_path_that_is_too_long_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Control::open(&dir.path().join("x".repeat(120))).err().unwrap();
    assert!(error.to_string().contains("--state"), "{error}");
}
