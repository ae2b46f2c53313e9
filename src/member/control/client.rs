//! A command's side of the control socket.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Request;

/// Why an agent has not done what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket cannot be used.
    #[error("{path}: {error}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The error.
        error: std::io::Error,
    },
    /// The answer is none.
    #[error("{0}: the answer is not one of an agent")]
    Answer(PathBuf),
    /// The agent refuses.
    #[error("{0}")]
    Refused(String),
}

/// Asks the agent of a state directory; `None` if none runs. Blocks.
///
/// # Errors
/// [`ControlError`].
#[cfg(unix)]
pub fn ask(state: &Path, request: &Request) -> Result<Option<Value>, ControlError> {
    use std::{
        io::{BufRead, BufReader, ErrorKind, Read, Write},
        os::unix::net::UnixStream,
        time::Duration,
    };

    /// How long an answer may take: minting hundreds of DIDs resolves each of them.
    const PATIENCE: Duration = Duration::from_secs(120);
    /// The longest answer. It comes from the owner's own program.
    const MOST: u64 = 64 << 20;

    let path = super::socket_of(state);
    let failed = |error| ControlError::Io { path: path.clone(), error };
    let mut stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    let line = super::line_of(request).map_err(|error| failed(error.into()))?;
    stream.write_all(line.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    BufReader::new(stream.take(MOST)).read_line(&mut answer).map_err(failed)?;
    let answer: Value = serde_json::from_str(&answer).map_err(|_| ControlError::Answer(path.clone()))?;
    match answer.get("ok").and_then(Value::as_bool) {
        Some(true) => Ok(Some(answer.get("result").cloned().unwrap_or_default())),
        Some(false) => {
            let error = answer.get("error").and_then(Value::as_str).unwrap_or("refused");
            Err(ControlError::Refused(error.to_owned()))
        }
        None => Err(ControlError::Answer(path)),
    }
}

/// There is no socket on this system.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn ask(_: &Path, _: &Request) -> Result<Option<Value>, ControlError> {
    Ok(None)
}
