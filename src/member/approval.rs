//! Decisions that a person or a command takes: what is asked, and the answers.
//!
//! The command gets the request as JSON on standard input and answers by its exit status: 0 approves, any other rejects; the first line that it
//! prints is the reason. It has as much time as a person.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{notice::MemberNotice, report::Reporter};
use crate::protocol::{id::CohortId, text::shown_within};

/// The most requests that wait for a decision: services can make offers without end.
const MOST_PENDING: usize = 256;

/// The most of what a hook prints that is read.
const MOST_OUTPUT: u64 = 4_096;

/// The pause between two looks at a hook that runs.
const LOOK: Duration = Duration::from_millis(25);

/// How long what a hook has printed may take to arrive behind its end.
const GRACE: Duration = Duration::from_millis(500);

/// A decision: why not, if not.
pub type Decision = Result<(), String>;

/// A question.
#[derive(Clone, Debug)]
pub struct Question {
    /// `join` or `sign`.
    pub kind: &'static str,
    /// The cohort.
    pub cohort_id: CohortId,
    /// The number of the announcement.
    pub number: Option<u64>,
    /// Why it is asked.
    pub reasons: Vec<String>,
    /// After which time it counts as rejected; none for one that is held.
    pub timeout: Option<Duration>,
    /// What is to be decided, as JSON.
    pub request: Value,
}

struct Pending {
    shown: Value,
    answer: oneshot::Sender<Decision>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    pending: BTreeMap<u64, Pending>,
}

/// The requests that wait for a decision. Clones share them.
#[derive(Clone)]
pub struct Approvals {
    hook: Arc<[String]>,
    reporter: Reporter,
    inner: Arc<Mutex<Inner>>,
}

/// Removes a request whose asker is gone.
struct Asked<'a>(&'a Approvals, u64);

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.inner().pending.remove(&self.1);
    }
}

impl Approvals {
    /// Without requests. `hook` is a command with its arguments; empty for none.
    pub fn new(hook: Vec<String>, reporter: Reporter) -> Self {
        Self { hook: hook.into(), reporter, inner: Arc::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Each change is one call.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The requests that wait.
    pub fn pending(&self) -> Vec<Value> {
        self.inner().pending.values().map(|pending| pending.shown.clone()).collect()
    }

    /// Decides a request. Whether there is one.
    pub fn decide(&self, id: u64, decision: Decision) -> bool {
        let Some(pending) = self.inner().pending.remove(&id) else { return false };
        // The asker may be gone in this moment.
        pending.answer.send(decision).is_ok()
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// Why it is rejected, in words.
    pub async fn ask(&self, question: Question) -> Decision {
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut inner = self.inner();
            if inner.pending.len() >= MOST_PENDING {
                return Err("too many requests wait for a decision".to_owned());
            }
            inner.next += 1;
            let id = inner.next;
            let shown = json!({
                "id": id,
                "kind": question.kind,
                "reasons": question.reasons,
                "timeoutSeconds": question.timeout.map(|timeout| timeout.as_secs()),
                "request": question.request,
            });
            inner.pending.insert(id, Pending { shown, answer });
            id
        };
        let _asked = Asked(self, id);
        self.reporter.notice(&MemberNotice::ApprovalAsked {
            id,
            kind: question.kind,
            cohort_id: question.cohort_id.clone(),
            number: question.number,
            reason: question.reasons.join("; "),
            timeout_seconds: question.timeout.map(|timeout| timeout.as_secs()),
        });
        let decision = self.answer(&question, answered).await;
        self.reporter.notice(&MemberNotice::ApprovalDecided {
            id,
            approved: decision.is_ok(),
            reason: decision.clone().err(),
        });
        decision
    }

    async fn answer(&self, question: &Question, answered: oneshot::Receiver<Decision>) -> Decision {
        let by_person = async {
            match answered.await {
                Ok(decision) => decision,
                Err(_) => Err("the program stops".to_owned()),
            }
        };
        let by_hook = async {
            match self.hook.is_empty() {
                true => std::future::pending().await,
                false => {
                    let (hook, request) = (
                        Arc::clone(&self.hook),
                        json!({
                            "kind": question.kind, "reasons": question.reasons, "request": question.request,
                        }),
                    );
                    // One that is held has no time of its own.
                    let timeout = question.timeout.unwrap_or(Duration::from_secs(3_600));
                    let running = tokio::task::spawn_blocking(move || run(&hook, &request, timeout));
                    running.await.unwrap_or_else(|_| Err("the hook could not be run".to_owned()))
                }
            }
        };
        let too_late = async {
            match question.timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            decision = by_person => decision,
            decision = by_hook => decision,
            () = too_late => Err("it was not decided in time".to_owned()),
        }
    }
}

/// Runs the hook. Blocks.
fn run(hook: &[String], request: &Value, timeout: Duration) -> Decision {
    let failed = |problem: &dyn std::fmt::Display| format!("the hook could not be run: {problem}");
    let (program, arguments) = hook.split_first().ok_or("there is no hook")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    // A passphrase is not for it.
    command.env_remove("BTCR2_PASSPHRASE");
    let mut child = command.spawn().map_err(|error| failed(&error))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let text = format!("{request}\n");
    // It may end without reading, or print without end: both are done beside it.
    std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(text.as_bytes())));
    let said = std::thread::spawn(move || {
        let mut said = Vec::new();
        let _ = stdout.map(|stdout| stdout.take(MOST_OUTPUT).read_to_end(&mut said));
        said
    });
    let status = wait(&mut child, timeout).map_err(|error| failed(&error))?;
    let Some(status) = status else { return Err("the hook has not answered in time".to_owned()) };
    if status.success() {
        return Ok(());
    }
    // A child of the hook may hold the pipe: it is not waited for.
    let until = Instant::now() + GRACE;
    while !said.is_finished() && Instant::now() < until {
        std::thread::sleep(LOOK / 5);
    }
    let said = if said.is_finished() { said.join().unwrap_or_default() } else { Vec::new() };
    let said = String::from_utf8_lossy(&said);
    match said.lines().next().map(str::trim).filter(|line| !line.is_empty()) {
        Some(reason) => Err(format!("the hook has rejected it: {}", shown_within(reason, 200))),
        None => Err(format!("the hook has rejected it ({status})")),
    }
}

/// The exit status of a child, which is killed when the time has passed.
fn wait(child: &mut Child, timeout: Duration) -> std::io::Result<Option<std::process::ExitStatus>> {
    let until = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{
        actors::{runtime::Clock, state::State},
        events::Printer,
        member::report::Log,
    };

    async fn approvals(dir: &std::path::Path, hook: &[&str]) -> Approvals {
        let state = State::open(dir).unwrap();
        let log = Log::open(&state, Clock::system()).await.unwrap();
        Approvals::new(hook.iter().map(ToString::to_string).collect(), Reporter::new(Printer::new(true), log))
    }

    fn question(timeout: Option<Duration>) -> Question {
        Question {
            kind: "sign",
            cohort_id: CohortId::parse("c").unwrap(),
            number: Some(1),
            reasons: vec!["asked".to_owned()],
            timeout,
            request: json!({ "number": 7 }),
        }
    }

    #[tokio::test]
    async fn a_person_decides_once_and_what_nobody_decides_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let approvals = approvals(dir.path(), &[]).await;
        for decision in [Ok(()), Err("no".to_owned())] {
            let asking = approvals.ask(question(None));
            tokio::pin!(asking);
            assert!(futures::poll!(&mut asking).is_pending());
            let pending = approvals.pending();
            assert_eq!((pending.len(), &pending[0]["request"]["number"]), (1, &json!(7)));
            let id = pending[0]["id"].as_u64().unwrap();
            assert!(approvals.decide(id, decision.clone()) && !approvals.decide(id, Ok(())));
            assert_eq!(asking.await, decision);
        }
        let late = approvals.ask(question(Some(Duration::ZERO))).await;
        assert_eq!(late, Err("it was not decided in time".to_owned()));
        assert!(approvals.pending().is_empty());
        // The asker is gone.
        {
            let asking = approvals.ask(question(None));
            tokio::pin!(asking);
            assert!(futures::poll!(&mut asking).is_pending());
            assert_eq!(approvals.pending().len(), 1);
        }
        assert!(approvals.pending().is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn a_hook_decides_by_its_exit_status() {
        let run = |script: &str, timeout| {
            run(&["sh".to_owned(), "-c".to_owned(), script.to_owned()], &json!({ "number": 7 }), timeout)
        };
        let long = Duration::from_secs(60);
        assert_eq!(run("grep -q '\"number\":7'", long), Ok(()), "the request is on its standard input");
        assert_eq!(run("echo 'too much'; exit 3", long), Err("the hook has rejected it: too much".to_owned()));
        assert!(run("exit 3", long).unwrap_err().contains("exit status: 3"));
        assert_eq!(
            run("exec sleep 60", Duration::from_millis(50)),
            Err("the hook has not answered in time".to_owned())
        );
        assert!(super::run(&["/nonexistent".to_owned()], &json!({}), long).is_err());
        // It prints more than is read, and reads nothing.
        assert_eq!(run("head -c 1000000 /dev/zero | tr '\\0' x 2>/dev/null; exit 0", long), Ok(()));
    }
}
