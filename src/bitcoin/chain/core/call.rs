//! The calls of a node's RPC, and why one has no result.

use std::{fmt, path::PathBuf, time::Duration};

use jsonrpc::{bitreq_http_async, client_async::Client};
use serde::de::DeserializeOwned;
use serde_json::{Value, value::to_raw_value};
use zeroize::Zeroizing;

use crate::actors::chain::ChainError;

/// The timeout of calls that a node answers from memory.
pub(super) const QUICK: Duration = Duration::from_secs(30);

/// The timeout of calls that read blocks from disk.
pub(super) const BLOCKS: Duration = Duration::from_secs(120);

/// The credentials of a node.
#[derive(Clone)]
pub enum CoreAuth {
    /// The cookie file that a node writes at each start.
    Cookie(PathBuf),
    /// User and password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: Zeroizing<String>,
    },
}

impl fmt::Debug for CoreAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cookie(path) => write!(f, "Cookie({})", path.display()),
            Self::Password { user, .. } => write!(f, "Password({user})"),
        }
    }
}

/// A node's RPC server.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) url: String,
    pub(super) auth: CoreAuth,
}

impl Node {
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: &'static str,
        arguments: Value,
        timeout: Duration,
    ) -> Result<T, CallError> {
        let transport =
            bitreq_http_async::Builder::new().url(&self.url).map_err(|error| self.unreachable(&error))?;
        let transport = match &self.auth {
            // Read for each call, because the node writes a new one at each start. It is one line of a local file: the
            // read does not block for long.
            CoreAuth::Cookie(path) => transport.cookie_auth(Zeroizing::new(
                std::fs::read_to_string(path)
                    .map_err(|error| {
                        let problem = format!("{}: {error} (is the node running?)", path.display());
                        CallError::Chain(ChainError::Unavailable(problem))
                    })?
                    .trim_end()
                    .to_owned(),
            )),
            CoreAuth::Password { user, password } => {
                transport.basic_auth(user.clone(), Some(String::clone(password)))
            }
        };
        let client = Client::with_transport(transport.timeout(timeout).build());
        let arguments = to_raw_value(&arguments).map_err(|error| bad_answer(method, &error))?;
        let request = client.build_request(method, Some(&arguments));
        let sent = tokio::time::timeout(timeout, client.send_request(request)).await;
        let answer = sent
            .map_err(|_| self.unreachable(&format!("no answer to {method} within {} s", timeout.as_secs())))?
            .map_err(|error| self.transport_error(method, error))?;
        match answer.result() {
            Ok(result) => Ok(result),
            Err(jsonrpc::Error::Rpc(error)) => Err(CallError::Node { code: error.code, message: error.message }),
            Err(error) => Err(bad_answer(method, &error)),
        }
    }

    pub(super) fn unreachable(&self, problem: &dyn fmt::Display) -> CallError {
        CallError::Chain(ChainError::Unavailable(format!("the node at {}: {problem}", self.url)))
    }

    pub(super) fn transport_error(&self, method: &str, error: jsonrpc::Error) -> CallError {
        let jsonrpc::Error::Transport(error) = error else {
            return bad_answer(method, &error);
        };
        match error.downcast_ref::<bitreq_http_async::Error>() {
            Some(bitreq_http_async::Error::Http(http)) if http.status_code == 401 => match &self.auth {
                // A node writes its cookie some time after it starts to listen. Until then the file has the cookie of
                // its previous run.
                CoreAuth::Cookie(path) => self.unreachable(&format!(
                    "it refuses the cookie in {}: the file is from a previous run, if the node is starting, or \
                     from another node",
                    path.display()
                )),
                CoreAuth::Password { user, .. } => {
                    let problem = format!("the node at {} refuses the user {user} or the password", self.url);
                    CallError::Chain(ChainError::Misconfigured(problem))
                }
            },
            Some(bitreq_http_async::Error::Http(http)) if http.status_code == 403 => {
                let problem = format!(
                    "the node at {} forbids {method}: its -rpcwhitelist must name it for this user, and its \
                     -rpcallowip this address",
                    self.url
                );
                CallError::Chain(ChainError::Misconfigured(problem))
            }
            Some(bitreq_http_async::Error::Http(http)) => {
                self.unreachable(&format!("HTTP status {}", http.status_code))
            }
            _ => self.unreachable(&error),
        }
    }
}

/// Bitcoin Core's RPC error codes (`src/rpc/protocol.h`).
pub(super) mod code {
    pub(crate) const MISC_ERROR: i32 = -1;
    pub(crate) const INVALID_ADDRESS_OR_KEY: i32 = -5;
    pub(crate) const INVALID_PARAMETER: i32 = -8;
    pub(crate) const VERIFY_ERROR: i32 = -25;
    pub(crate) const VERIFY_REJECTED: i32 = -26;
    pub(crate) const ALREADY_IN_UTXO_SET: i32 = -27;
    pub(crate) const IN_WARMUP: i32 = -28;
    pub(crate) const METHOD_NOT_FOUND: i32 = -32601;
}

/// Why a call has no result.
pub(super) enum CallError {
    /// The request failed.
    Chain(ChainError),
    /// The node returned an error.
    Node { code: i32, message: String },
}

pub(super) fn bad_answer(method: &str, error: &dyn fmt::Display) -> CallError {
    CallError::Chain(ChainError::BadAnswer(format!("{method}: {error}")))
}

impl From<CallError> for ChainError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Chain(error) => error,
            CallError::Node { code: code::IN_WARMUP, message } => {
                Self::Unavailable(format!("the node is starting: {message}"))
            }
            CallError::Node { code: code::MISC_ERROR, message } if message.contains("pruned") => {
                Self::Pruned(message)
            }
            CallError::Node { code: code::METHOD_NOT_FOUND, message } => {
                Self::Misconfigured(format!("{message}; Bitcoin Core 29 or newer is needed"))
            }
            CallError::Node { message, .. } => Self::Unavailable(message),
        }
    }
}
