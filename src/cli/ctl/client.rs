//! The client of the control API: over the socket in a state directory, or at a URL with a token.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use futures::StreamExt;
use reqwest::{Client, Method, Response, Url, header::AUTHORIZATION};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::{
    actors::transport::tls::Trust,
    cli::{Failure, WRONG_CALL, relay::trust},
    control::{BASE, SOCKET},
    inputs,
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The longest answer, in bytes.
const MOST: usize = 64 << 20;

/// Why a call has failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CtlError {
    /// It was called wrongly.
    #[error("{0}")]
    Usage(String),
    /// The service cannot be reached.
    #[error("{0}")]
    Unreachable(String),
    /// The service refuses.
    #[error("{}", explained(.detail, .problems))]
    Refused { status: u16, code: String, detail: String, problems: Vec<String> },
    /// The answer is none of the API.
    #[error("the answer is not one of the control API (HTTP {0}): is the URL right?")]
    Foreign(u16),
}

/// Several problems have a line each.
fn explained(detail: &str, problems: &[String]) -> String {
    match problems {
        [] | [_] => detail.to_owned(),
        problems => format!("the request does not fit:\n  {}", problems.join("\n  ")),
    }
}

impl Failure for CtlError {
    fn status(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Refused { status: 400 | 422, .. } => WRONG_CALL,
            _ => 1,
        }
    }
}

impl CtlError {
    /// For `--json`.
    pub(super) fn json(&self) -> Value {
        match self {
            Self::Refused { code, detail, problems, .. } => {
                serde_json::json!({ "error": code, "detail": detail, "problems": problems })
            }
            other => serde_json::json!({ "error": "failed", "detail": other.to_string() }),
        }
    }
}

/// Where the API is.
pub(super) struct Place<'a> {
    pub(super) state: Option<&'a Path>,
    pub(super) socket: Option<&'a Path>,
    pub(super) url: Option<&'a str>,
    pub(super) token_file: Option<&'a Path>,
    pub(super) tls_ca: Option<&'a Path>,
}

/// A client of the API.
pub(super) struct Api {
    client: Client,
    base: Url,
    token: Option<Zeroizing<String>>,
    /// How it is called in errors.
    name: String,
}

impl Api {
    pub(super) fn new(place: &Place<'_>) -> Result<Self, CtlError> {
        let usage = |problem: String| CtlError::Usage(problem);
        let token = match place.token_file {
            Some(path) => Some(Zeroizing::new(
                inputs::text(path).map_err(|error| usage(error.to_string()))?.trim().to_owned(),
            )),
            None => None,
        };
        if let Some(url) = place.url {
            let trust: Trust = trust(place.tls_ca).map_err(usage)?;
            let base: Url = url.parse().map_err(|error| usage(format!("--url {url}: {error}")))?;
            let client = trust.http_client().map_err(|error| usage(error.to_string()))?;
            let client = client.redirect(reqwest::redirect::Policy::none());
            let client = client.build().map_err(|error| usage(error.to_string()))?;
            return Ok(Self { client, base, token, name: url.to_owned() });
        }
        let socket: PathBuf = match (place.socket, place.state) {
            (Some(socket), _) => socket.to_owned(),
            (None, Some(state)) => state.join(SOCKET),
            (None, None) => return Err(usage("--state DIR, --socket PATH or --url URL is missing".to_owned())),
        };
        Self::at_socket(&socket, token)
    }

    #[cfg(unix)]
    fn at_socket(socket: &Path, token: Option<Zeroizing<String>>) -> Result<Self, CtlError> {
        let failed = |error: &dyn std::fmt::Display| CtlError::Usage(error.to_string());
        let client = Trust::system().http_client().map_err(|error| failed(&error))?;
        let client = client.unix_socket(socket).build().map_err(|error| failed(&error))?;
        let base = Url::parse("http://localhost").map_err(|error| failed(&error))?;
        Ok(Self { client, base, token, name: socket.display().to_string() })
    }

    #[cfg(not(unix))]
    fn at_socket(_: &Path, _: Option<Zeroizing<String>>) -> Result<Self, CtlError> {
        Err(CtlError::Usage("this system has no UNIX sockets: --url URL and --token-file FILE".to_owned()))
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        last: Option<&str>,
    ) -> Result<Response, CtlError> {
        let usage = |problem: String| CtlError::Usage(problem);
        let method = Method::from_bytes(method.as_bytes()).map_err(|error| usage(error.to_string()))?;
        let prefix = self.base.as_str().trim_end_matches('/');
        let url: Url =
            format!("{prefix}{BASE}{path}").parse().map_err(|error| usage(format!("{path}: {error}")))?;
        let mut request = self.client.request(method, url);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", &**token));
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        request.send().await.map_err(|error| {
            let why = inputs::explained(&error.without_url());
            CtlError::Unreachable(format!("{}: {why}; does `serve --control` run?", self.name))
        })
    }

    /// The answer to a call.
    pub(super) async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, CtlError> {
        let answered = tokio::time::timeout(PATIENCE, async {
            let response = self.send(method, path, body, None).await?;
            read(response).await
        });
        let late = || CtlError::Unreachable(format!("{}: no answer within {PATIENCE:?}", self.name));
        answered.await.unwrap_or_else(|_| Err(late()))
    }

    /// Passes each event to `event` with its id, from the one after `last` on, until the stream ends, or `event` returns `false`.
    pub(super) async fn events(
        &self,
        last: Option<&str>,
        mut event: impl FnMut(Option<&str>, &str) -> bool,
    ) -> Result<(), CtlError> {
        let response = self.send("GET", "/events", None, last).await?;
        if !response.status().is_success() {
            return read(response).await.map(|_| ());
        }
        let (mut stream, mut rest, mut id) = (response.bytes_stream(), Vec::new(), None);
        while let Some(piece) = stream.next().await {
            // An end in the middle is one.
            let Ok(piece) = piece else { return Ok(()) };
            rest.extend_from_slice(&piece);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                let line = line.trim_end();
                if let Some(named) = line.strip_prefix("id: ") {
                    id = Some(named.to_owned());
                } else if let Some(data) = line.strip_prefix("data: ")
                    && !event(id.take().as_deref(), data)
                {
                    return Ok(());
                }
            }
            if rest.len() > MOST {
                return Err(CtlError::Foreign(200));
            }
        }
        Ok(())
    }
}

/// The answer in a response.
async fn read(response: Response) -> Result<Value, CtlError> {
    let status = response.status();
    let (mut body, mut stream) = (Vec::new(), response.bytes_stream());
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| CtlError::Unreachable(error.without_url().to_string()))?;
        body.extend_from_slice(&piece);
        if body.len() > MOST {
            return Err(CtlError::Foreign(status.as_u16()));
        }
    }
    let foreign = || CtlError::Foreign(status.as_u16());
    let value: Value = serde_json::from_slice(&body).map_err(|_| foreign())?;
    if status.is_success() {
        return Ok(value);
    }
    let text = |field: &str| value[field].as_str().map(str::to_owned).ok_or_else(foreign);
    let of = |problem: &Value| match problem["field"].as_str() {
        Some(field) => format!("{field}: {}", problem["detail"].as_str().unwrap_or_default()),
        None => problem["detail"].as_str().unwrap_or_default().to_owned(),
    };
    let problems =
        value["problems"].as_array().map(|problems| problems.iter().map(of).collect()).unwrap_or_default();
    Err(CtlError::Refused { status: status.as_u16(), code: text("error")?, detail: text("detail")?, problems })
}
