//! The process that is killed: this test binary again, running one test that reads its task from the environment.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{PATIENCE, Point};

const TASK: &str = "CRASH_CHILD";

/// The task of a child.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    pub scenario: String,
    /// Its state directory.
    pub state: PathBuf,
    /// The relay or the service that it connects to, if it does not open one itself.
    pub place: Option<String>,
    /// Where it kills itself.
    pub crash: Option<Point>,
}

/// The task of this process, when it is a child.
pub fn task() -> Option<Task> {
    env::var(TASK).ok().map(|task| serde_json::from_str(&task).unwrap())
}

/// Sends a line to the parent.
pub fn report(event: &Value) {
    let mut out = std::io::stdout().lock();
    // The parent may have stopped reading.
    let _ = writeln!(out, "{event}").and_then(|()| out.flush());
}

/// A child that runs. Killed when dropped.
pub struct Child {
    process: Arc<Mutex<std::process::Child>>,
    lines: UnboundedReceiver<Value>,
}

impl Child {
    /// Starts this binary again, to run only `test`.
    pub fn start(test: &str, task: &Task) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(TASK, serde_json::to_string(task).unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = unbounded_channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The harness prints lines too, also before our first one.
                if let Some(start) = line.find('{')
                    && let Ok(event) = serde_json::from_str(&line[start..])
                    && sender.send(event).is_err()
                {
                    break;
                }
            }
        });
        Self { process: Arc::new(Mutex::new(process)), lines }
    }

    /// Its next line; `None` when it has ended.
    pub async fn line(&mut self) -> Option<Value> {
        tokio::time::timeout(PATIENCE, self.lines.recv()).await.expect("the child prints a line or ends")
    }

    /// What kills it.
    pub fn killer(&self) -> impl Fn() + Send + 'static {
        let process = Arc::clone(&self.process);
        move || process.lock().unwrap().kill().unwrap()
    }

    /// Asserts that it was killed, and did not end in another way.
    pub fn assert_killed(&self) {
        let status = self.process.lock().unwrap().wait().unwrap();
        assert_eq!(status.signal(), Some(9), "the child ended by itself: {status}");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let mut process = self.process.lock().unwrap();
        let _ = process.kill();
        let _ = process.wait();
    }
}
