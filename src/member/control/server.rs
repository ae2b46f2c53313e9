//! The agent's side of the control socket.

use std::{
    io,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
};

use super::{MAX_LINE, Request, line_of_answer, parse};
use crate::socket;

/// The most connections at once.
const MOST_CONNECTIONS: usize = 32;

/// How long a connection may be silent, and how long an answer may take to be read.
const IDLE: Duration = Duration::from_secs(60);

/// Who answers requests.
#[async_trait(?Send)]
pub(crate) trait Backend {
    /// The answer.
    async fn answer(&self, request: Request) -> Result<Value, String>;
}

/// The open socket. It is removed when this is dropped.
pub(crate) struct Control {
    listener: UnixListener,
    path: PathBuf,
    owner: u32,
}

impl Control {
    /// Opens the socket, which only its owner can connect to. One that is there is of an earlier process: the caller has the lock of the
    /// state directory.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let (listener, owner) = socket::listen(path)?;
        Ok(Self { listener: UnixListener::from_std(listener)?, path: path.to_owned(), owner })
    }

    /// Answers until it is dropped.
    pub(crate) async fn serve(self, backend: Rc<dyn Backend>) {
        let mut connections: FuturesUnordered<LocalBoxFuture<'static, ()>> = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let problem = refusal(&stream, self.owner, connections.len());
                        connections.push(connection(stream, Rc::clone(&backend), problem).boxed_local());
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the control socket cannot accept a connection");
                        // E.g. no file is left: not at once again.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(()) = connections.next() => {}
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Why a peer gets no answers.
fn refusal(stream: &UnixStream, owner: u32, connections: usize) -> Option<String> {
    let too_many = || (connections >= MOST_CONNECTIONS).then(|| "too many connections".to_owned());
    socket::refusal(stream.peer_cred(), owner).or_else(too_many)
}

async fn connection(stream: UnixStream, backend: Rc<dyn Backend>, problem: Option<String>) {
    let (reader, mut writer) = stream.into_split();
    if let Some(problem) = problem {
        let line = line_of_answer(&Err(problem));
        let _ = tokio::time::timeout(IDLE, writer.write_all(line.as_bytes())).await;
        return;
    }
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut reader).take(MAX_LINE as u64 + 1);
        let read = tokio::time::timeout(IDLE, bounded.read_until(b'\n', &mut line)).await;
        let answer = match read {
            // It is gone, or silent.
            Err(_) | Ok(Err(_) | Ok(0)) => return,
            Ok(Ok(_)) if line.last() != Some(&b'\n') => match line.len() > MAX_LINE {
                true => Err(format!("a line of at most {MAX_LINE} bytes expected")),
                // It ended in the middle of a line.
                false => return,
            },
            Ok(Ok(_)) => match parse(&line) {
                Ok(request) => backend.answer(request).await,
                Err(problem) => Err(problem),
            },
        };
        let text = line_of_answer(&answer);
        match tokio::time::timeout(IDLE, writer.write_all(text.as_bytes())).await {
            // Behind a line that is too long nothing can be read.
            Ok(Ok(())) if line.len() <= MAX_LINE => {}
            _ => return,
        }
    }
}
