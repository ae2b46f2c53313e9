//! Alarms: the events that need an operator at once. They are passed to a command or a web address of the operator
//! (`--on-alarm`).

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    io::Write,
    process::{Command, Stdio},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use reqwest::{Client, Url, header::CONTENT_TYPE, redirect::Policy};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    actors::{standing::notice::StandingNotice, transport::tls::Trust},
    bitcoin::notice::AnnouncementNotice,
    events::Printer,
    metrics::Metrics,
    protocol::text::MOST_SHOWN,
};

/// The events that are alarms, as `docs/operating.md` lists them. `not-ready` is not one of the printed events: it
/// reports that `/readyz` has changed.
pub const ALARMS: [&str; 14] = [
    "foreign-spend",
    "foreign-signal",
    "announcement-failed",
    "announcement-stuck",
    "deposit-too-small",
    "recovery-near",
    "recovery-possible",
    "chain-stalled",
    "chain-unavailable",
    "not-ready",
    "balance-low",
    "number-unconfirmed",
    "numbers-void",
    "standing-halted",
];

/// All cohorts report a problem of the chain that they share; it is one alarm within this time.
const ONCE: Duration = Duration::from_secs(600);

/// The time limit of a command or of a request to a web address.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a request to a web address is tried, and the first delay between two tries.
const TRIES: u32 = 4;
const RETRY: Duration = Duration::from_secs(2);

/// How many alarms may wait for the one in progress.
const BACKLOG: usize = 256;

/// The time limit for the alarms that still wait when the program ends.
const FAREWELL: Duration = Duration::from_secs(10);

/// What to do with an alarm.
#[derive(Clone, PartialEq, Eq)]
pub enum OnAlarm {
    /// Run it by the shell, with the alarm on its standard input.
    Command(String),
    /// Post the alarm to this address.
    Web(Url),
}

impl FromStr for OnAlarm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.starts_with("http://") || text.starts_with("https://") {
            return text.parse().map(Self::Web).map_err(|error| format!("not a web address: {error}"));
        }
        if text.is_empty() {
            Err("a command or a web address expected".to_owned())
        } else {
            Ok(Self::Command(text.to_owned()))
        }
    }
}

impl<'de> Deserialize<'de> for OnAlarm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Omits what may be secret.
impl fmt::Debug for OnAlarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(_) => f.write_str("Command"),
            Self::Web(url) => write!(f, "Web({})", url.host_str().unwrap_or_default()),
        }
    }
}

/// An alarm.
#[derive(Clone, Debug)]
struct Alarm {
    kind: String,
    text: String,
    json: Value,
}

/// The most alarms that are remembered.
const REMEMBERED: usize = 256;

/// The last alarms of this run. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct AlarmLog(Arc<Mutex<VecDeque<Value>>>);

impl AlarmLog {
    fn add(&self, alarm: &Alarm) {
        let mut event = alarm.json.clone();
        crate::output::bound(&mut event, MOST_SHOWN);
        let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let mut alarms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if alarms.len() >= REMEMBERED {
            alarms.pop_front();
        }
        alarms.push_back(json!({ "at": at, "kind": alarm.kind, "text": alarm.text, "event": event }));
    }

    /// The alarms, the last first.
    pub(crate) fn list(&self) -> Vec<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }
}

/// Raises alarms: they are remembered, and passed on if the operator has configured that. Clones share the queue.
#[derive(Clone, Default)]
pub(super) struct Alarms {
    queue: Option<mpsc::Sender<Alarm>>,
    log: AlarmLog,
    metrics: Option<Metrics>,
}

/// The task that executes alarms, until every [`Alarms`] is dropped.
pub(super) struct AlarmTask(Option<JoinHandle<()>>);

impl Alarms {
    /// Starts the task that executes `on_alarm` for each alarm, one after the other.
    pub(super) fn start(on_alarm: Option<OnAlarm>, printer: Printer) -> (Self, AlarmTask) {
        let log = AlarmLog::default();
        let Some(on_alarm) = on_alarm else {
            return (Self { log, ..Self::default() }, AlarmTask(None));
        };
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let task = AlarmTask(Some(actix_rt::spawn(give_all(on_alarm, receiver, printer))));
        (Self { queue: Some(sender), log, metrics: None }, task)
    }

    /// The same, which also counts alarms.
    pub(super) fn counted(self, metrics: Metrics) -> Self {
        metrics.expect_alarms(&ALARMS);
        Self { metrics: Some(metrics), ..self }
    }

    /// The last alarms.
    pub(super) fn log(&self) -> AlarmLog {
        self.log.clone()
    }

    /// Raises an alarm if this step of an announcement is one.
    pub(super) fn step(&self, step: &AnnouncementNotice) {
        let Ok(json) = serde_json::to_value(step) else { return };
        self.raise(json, step.text().trim().to_owned());
    }

    /// Raises an alarm if this notice of a standing cohort is one.
    pub(super) fn standing(&self, notice: &StandingNotice, text: String) {
        if let Ok(json) = serde_json::to_value(notice) {
            self.raise(json, text);
        }
    }

    /// Raises an alarm because the service is not ready.
    pub(super) fn not_ready(&self, problems: &[String]) {
        let text = format!("the service is not ready: {}", problems.join("; "));
        self.raise(json!({ "event": "not-ready", "problems": problems }), text);
    }

    fn raise(&self, json: Value, text: String) {
        let Some(kind) = json["event"].as_str().filter(|kind| ALARMS.contains(kind)).map(str::to_owned) else {
            return;
        };
        let alarm = Alarm { kind, text, json };
        self.log.add(&alarm);
        if let Some(metrics) = &self.metrics {
            metrics.alarm(&alarm.kind);
        }
        if let Some(sender) = &self.queue
            && sender.try_send(alarm).is_err()
        {
            tracing::error!("an alarm is lost: too many wait for --on-alarm");
        }
    }
}

impl AlarmTask {
    /// Waits until the raised alarms are executed, up to a time limit.
    pub(super) async fn finish(self) {
        if let Some(task) = self.0
            && tokio::time::timeout(FAREWELL, task).await.is_err()
        {
            tracing::error!("alarms are lost: --on-alarm takes long");
        }
    }
}

async fn give_all(on_alarm: OnAlarm, mut alarms: mpsc::Receiver<Alarm>, printer: Printer) {
    let mut given: BTreeMap<String, Instant> = BTreeMap::new();
    while let Some(alarm) = alarms.recv().await {
        if alarm.kind.starts_with("chain-") {
            let now = Instant::now();
            if given.get(&alarm.kind).is_some_and(|given| now.duration_since(*given) < ONCE) {
                continue;
            }
            given.insert(alarm.kind.clone(), now);
        }
        let given = match &on_alarm {
            OnAlarm::Command(command) => run(command.clone(), alarm.clone()).await,
            OnAlarm::Web(url) => post(url, &alarm).await,
        };
        if let Err(problem) = given {
            printer.warn(&format!("--on-alarm: {problem}; the alarm was: {}", alarm.text));
        }
    }
}

/// Runs the command. Its arguments are the operator's; the alarm is on its standard input and in two variables.
async fn run(command: String, alarm: Alarm) -> Result<(), String> {
    let run = move || {
        let (shell, flag) = if cfg!(windows) { ("cmd", "/C") } else { ("sh", "-c") };
        let mut child = Command::new(shell)
            .args([flag, &command])
            .env("BTCR2_ALARM", &alarm.kind)
            .env("BTCR2_ALARM_TEXT", &alarm.text)
            .stdin(Stdio::piped())
            // Standard output belongs to the program's events.
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("the command cannot be run: {error}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A command need not read its input.
            let _ = writeln!(stdin, "{}", alarm.json);
        }
        let until = Instant::now() + PATIENCE;
        loop {
            match child.try_wait().map_err(|error| error.to_string())? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("the command failed: {status}")),
                None if Instant::now() < until => std::thread::sleep(Duration::from_millis(50)),
                None => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(format!("the command was stopped after {} s", PATIENCE.as_secs()));
                }
            }
        }
    };
    tokio::task::spawn_blocking(run).await.map_err(|error| error.to_string())?
}

async fn post(url: &Url, alarm: &Alarm) -> Result<(), String> {
    let client: Client = Trust::system()
        .http_client()
        .map_err(|error| error.to_string())?
        .timeout(PATIENCE)
        .redirect(Policy::none())
        .build()
        .map_err(|error| error.to_string())?;
    let mut body = alarm.json.clone();
    body["text"] = json!(alarm.text);
    let (mut wait, mut problem) = (RETRY, String::new());
    for attempt in 0..TRIES {
        if attempt > 0 {
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        let request = client.post(url.clone()).header(CONTENT_TYPE, "application/json").body(body.to_string());
        match request.send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => problem = format!("the web address answers HTTP {}", answer.status()),
            // Without the address, which may contain a token.
            Err(error) => problem = format!("the web address cannot be reached: {}", error.without_url()),
        }
    }
    Err(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_and_a_web_address_are_told_apart() {
        assert_eq!("mail -s alarm me".parse(), Ok(OnAlarm::Command("mail -s alarm me".to_owned())));
        assert!(matches!("https://hooks.example/T0K3N".parse(), Ok(OnAlarm::Web(_))));
        assert!("https://".parse::<OnAlarm>().is_err() && " ".parse::<OnAlarm>().is_err());
        let shown = format!("{:?}", "https://hooks.example/T0K3N".parse::<OnAlarm>().unwrap());
        assert!(!shown.contains("T0K3N"), "{shown}");
    }

    #[test]
    fn every_alarm_is_documented() {
        let manual = include_str!("../../docs/operating.md");
        for kind in ALARMS {
            assert!(manual.contains(&format!("| `{kind}` |")), "{kind} is in no table of operating.md");
        }
    }

    #[test]
    fn prometheus_alerts_are_for_every_alarm_and_no_other() {
        let alerts = include_str!("../../deploy/alerts.yaml");
        let kinds = |part: &str| part.split('"').next().unwrap().split('|').map(str::to_owned).collect::<Vec<_>>();
        let by_name = alerts.split("alarm=\"").skip(1).flat_map(kinds);
        let by_list = alerts.split("alarm=~\"").skip(1).flat_map(kinds);
        let alerted: std::collections::BTreeSet<_> = by_name.chain(by_list).collect();
        assert_eq!(alerted, ALARMS.iter().map(|kind| (*kind).to_owned()).collect());
    }

    #[test]
    fn a_web_address_gets_the_alarm_until_it_answers() {
        use std::io::{BufRead, BufReader, Read};
        actix_rt::System::new().block_on(async {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}/T0K3N", listener.local_addr().unwrap());
            let server = std::thread::spawn(move || {
                let answers = ["HTTP/1.1 500 Internal Server Error", "HTTP/1.1 204 No Content"];
                answers.map(|answer| {
                    let (stream, _) = listener.accept().unwrap();
                    let mut stream = BufReader::new(stream);
                    let (mut line, mut length) = (String::new(), 0);
                    while stream.read_line(&mut line).unwrap() > 2 {
                        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                            length = value.trim().parse().unwrap();
                        }
                        line.clear();
                    }
                    let mut body = vec![0; length];
                    stream.read_exact(&mut body).unwrap();
                    let end = "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                    write!(stream.get_mut(), "{answer}{end}").unwrap();
                    serde_json::from_slice::<Value>(&body).unwrap()
                })
            });
            let (alarms, alarm_task) = Alarms::start(Some(url.parse().unwrap()), Printer::new(true));
            alarms.not_ready(&["state: full".to_owned()]);
            drop(alarms);
            alarm_task.finish().await;
            let text = "the service is not ready: state: full";
            let body = json!({ "event": "not-ready", "problems": ["state: full"], "text": text });
            assert_eq!(server.join().unwrap(), [body.clone(), body]);
        });
    }

    #[test]
    fn the_shell_gets_the_alarm_and_the_chain_is_an_alarm_once() {
        actix_rt::System::new().block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("alarms");
            let command = format!("cat >> {0}; echo \"$BTCR2_ALARM\" >> {0}", file.display());
            let (alarms, alarm_task) = Alarms::start(Some(command.parse().unwrap()), Printer::new(true));
            for _ in 0..3 {
                alarms.raise(json!({ "event": "chain-stalled", "cohortId": "x" }), "no block".to_owned());
            }
            alarms.raise(json!({ "event": "deposit-seen" }), "no alarm".to_owned());
            alarms.not_ready(&["chain: gone".to_owned()]);
            drop(alarms);
            alarm_task.finish().await;
            let lines: Vec<_> = std::fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect();
            let not_ready = json!({ "event": "not-ready", "problems": ["chain: gone"] }).to_string();
            let stalled = json!({ "event": "chain-stalled", "cohortId": "x" }).to_string();
            assert_eq!(lines, [stalled.as_str(), "chain-stalled", not_ready.as_str(), "not-ready"]);
        });
    }
}
