//! The output of a running program: lines for people, or one JSON object per line for machines.

mod board;
mod text;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ::bitcoin::Txid;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::{self, error::RecvError};

use self::{
    board::Board,
    text::{is_participant_progress, is_service_progress, participant_text, service_text},
};
use crate::{
    actors::{
        notice::{ParticipantNotice, ServiceNotice},
        transport::contact::ContactNotice,
    },
    bitcoin::notice::AnnouncementNotice,
    join::{Sighting, Terms},
    output::{self, bound},
    protocol::{
        did::Did,
        id::CohortId,
        network::Network,
        resolution::Beacon,
        text::{MOST_SHOWN, shown, shown_within},
    },
    vault::watch::WatchNotice,
};

/// The kinds of events that the programs print themselves, beside the notices of actors, announcements and watches.
pub const PROGRAM_KINDS: [&str; 21] = [
    "serving",
    "resolving",
    "metrics",
    "control",
    "warning",
    "reloaded",
    "terms",
    "cohort-passed-over",
    "resolved",
    "update-submitting",
    "update-withheld",
    "lingering",
    "waiting-for-confirmations",
    "transaction-in-mempool",
    "transaction-in-block",
    "transaction-gone",
    "transaction-replaced",
    "singleton-written",
    "watching",
    "result",
    "earlier",
];

/// Prints events. Standard output has nothing else. Clones share the counts.
#[derive(Clone, Debug)]
pub struct Printer {
    json: bool,
    times: bool,
    in_place: bool,
    /// The name of the service in a process with several.
    service: Option<Arc<str>>,
    board: Arc<Mutex<Board>>,
}

/// The longest line for people, in characters: enough for one with the names of some members.
const MOST_LINE: usize = 4_000;

/// A line for people.
struct Line {
    text: String,
    /// Whether the next line may overwrite this one in a terminal: it is progress, and later lines supersede it.
    is_progress: bool,
}

impl Line {
    fn lasting(text: String) -> Self {
        Self { text, is_progress: false }
    }
}

impl Printer {
    /// A printer for machines (`json`) or for people.
    pub fn new(json: bool) -> Self {
        let in_place = !json && output::can_show_in_place();
        Self { json, times: false, in_place, service: None, board: Arc::default() }
    }

    /// Puts the name of a service into each event and before each line, for a process with several.
    #[must_use]
    pub fn named(self, service: Option<&str>) -> Self {
        // Progress of one must not overwrite that of another.
        let in_place = self.in_place && service.is_none();
        Self { in_place, service: service.map(Arc::from), ..self }
    }

    /// Puts the time before each line for people. Events for machines always have it.
    #[must_use]
    pub fn with_times(self, times: bool) -> Self {
        Self { times, ..self }
    }

    /// The service can be reached at these addresses.
    pub fn serving(&self, did: &Did, url: Option<&str>, relays: &[String], network: Network) {
        let mut json = json!({ "event": "serving", "did": did, "network": network });
        if let Some(url) = url {
            json["url"] = json!(url);
        }
        if !relays.is_empty() {
            json["relays"] = json!(relays);
        }
        let places: Vec<_> = url.into_iter().chain(relays.iter().map(String::as_str)).collect();
        self.line(&json, &format!("{did}\nserves {network} at {}", places.join(", ")));
    }

    /// The resolver can be reached at this address, and resolves DIDs of these networks.
    pub fn resolving(&self, url: &str, networks: &[Network]) {
        let names: Vec<_> = networks.iter().map(|network| network.name()).collect();
        let names = if names.is_empty() { "no network yet".to_owned() } else { names.join(", ") };
        self.line(
            &json!({ "event": "resolving", "url": url, "networks": networks }),
            &format!("resolves DIDs of {names} at {url}/1.0/identifiers/"),
        );
    }

    /// The address of the metrics and health server.
    pub fn metrics(&self, url: &str) {
        self.line(&json!({ "event": "metrics", "url": url }), &format!("metrics at {url}/metrics"));
    }

    /// The socket and the address of the control API, and the URL of the console.
    pub(crate) fn controlled(&self, socket: Option<&std::path::Path>, url: Option<&str>, console: Option<&str>) {
        let mut json = json!({ "event": "control" });
        let socket = socket.map(|path| path.display().to_string());
        if let Some(socket) = &socket {
            json["socket"] = json!(socket);
        }
        if let Some(url) = url {
            json["url"] = json!(url);
        }
        let places: Vec<&str> = socket.as_deref().into_iter().chain(url).collect();
        let mut text = format!("control API at {}", places.join(", "));
        if let Some(console) = console {
            json["console"] = json!(console);
            text.push_str(&format!("; console at {console}"));
        }
        self.line(&json, &text);
    }

    /// A warning for the operator.
    pub fn warn(&self, text: &str) {
        let text = &*shown_within(text, MOST_LINE);
        if self.json {
            self.event(json!({ "event": "warning", "message": text }));
        } else {
            err!("{}", self.stamped(&format!("warning: {text}")));
        }
    }

    /// Events were lost because too many came at once.
    pub fn missed(&self, events: u64) {
        self.board().missed();
        self.warn(&format!("{events} events were not shown"));
    }

    /// The list of DIDs that are admitted was read again because the program got SIGHUP.
    pub fn reloaded_list(&self, file: &std::path::Path) {
        self.line(
            &json!({ "event": "reloaded", "what": "allow-list", "files": [file.display().to_string()] }),
            &format!("the list of DIDs that are admitted was reloaded from {}", file.display()),
        );
    }

    /// The certificate and key were read again because the program got SIGHUP.
    pub fn reloaded(&self, files: &[std::path::PathBuf]) {
        let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        self.line(
            &json!({ "event": "reloaded", "what": "tls-certificate", "files": names }),
            &format!(
                "TLS certificate and key reloaded from {}; every other setting needs a restart",
                names.join(" and ")
            ),
        );
    }

    /// SIGHUP had no effect.
    pub fn nothing_reloaded(&self, reason: &str) {
        self.warn(&format!("SIGHUP: nothing to reload, {reason}; every other setting needs a restart"));
    }

    /// The participant has signed and stays in case the fallback is needed: at most for `time`, or until it receives
    /// the end.
    pub fn lingering(&self, time: Option<std::time::Duration>) {
        let time = time.map(|time| humantime::format_duration(time).to_string());
        let text = match &time {
            Some(time) => format!("staying for {time} in case the service asks for the fallback (--linger)"),
            None => "staying until the service reports the end, or the time limit passes: the fallback may need us"
                .to_owned(),
        };
        self.line(&json!({ "event": "lingering", "atMost": time }), &text);
    }

    /// A member waits until the transaction of a cohort has so many confirmations.
    pub fn waits_for_confirmations(&self, cohort_id: &CohortId, txid: Option<Txid>, needed: u32) {
        let transaction = txid.map_or_else(|| "its transaction".to_owned(), |txid| txid.to_string());
        let text = format!("cohort {cohort_id}: waiting until {transaction} has {needed} confirmations");
        self.line(
            &json!({ "event": "waiting-for-confirmations", "cohortId": cohort_id, "txid": txid, "needed": needed }),
            &text,
        );
    }

    /// What a member knows about the announcement of a cohort.
    pub(crate) fn sighted(&self, cohort_id: &CohortId, sighting: Sighting, needed: u32) {
        let (json, text) = match sighting {
            Sighting::Gone => (
                json!({ "event": "transaction-gone", "cohortId": cohort_id }),
                "its transaction is neither in a block nor in the mempool any more".to_owned(),
            ),
            Sighting::Mempool(txid) => (
                json!({ "event": "transaction-in-mempool", "cohortId": cohort_id, "txid": txid }),
                format!("{txid} is in the mempool"),
            ),
            Sighting::Block { txid, height, confirmations } => (
                json!({
                    "event": "transaction-in-block",
                    "cohortId": cohort_id,
                    "txid": txid,
                    "height": height,
                    "confirmations": confirmations,
                    "needed": needed,
                }),
                format!("{txid} is in block {height}, {confirmations} of {needed} confirmations"),
            ),
            Sighting::Replaced(txid) => (
                json!({ "event": "transaction-replaced", "cohortId": cohort_id, "by": txid }),
                format!("its coin was spent by {txid}, which announces something else"),
            ),
        };
        self.line(&json, &format!("cohort {cohort_id}: {text}"));
    }

    /// The member's own announcement was written, because no cohort announces its update.
    pub fn announced_alone(&self, files: &[std::path::PathBuf]) {
        let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        self.line(
            &json!({ "event": "singleton-written", "files": names }),
            &format!("no cohort announces the update; to announce it alone, see {}", names.join(", ")),
        );
    }

    /// The terms on which a participant joins.
    pub fn terms(&self, terms: &Terms) {
        let mut json = json!({ "event": "terms" });
        if let (Value::Object(event), Value::Object(terms)) = (&mut json, terms.to_json()) {
            event.extend(terms);
        }
        self.line(&json, &format!("joins on these terms: {terms}"));
    }

    /// A participant does not join this cohort, for this reason.
    pub fn passed_over(&self, cohort_id: &CohortId, service: &Did, reason: &str) {
        let reason = &*shown(reason);
        self.line(
            &json!({ "event": "cohort-passed-over", "cohortId": cohort_id, "service": service, "reason": reason }),
            &format!("cohort {cohort_id} is passed over: {reason}"),
        );
    }

    /// The document that a member's update starts from, as resolvers give it, and its beacons.
    pub(crate) fn resolved(&self, did: &Did, version: u64, min_conf: u32, beacons: &[Beacon], listing: &str) {
        self.line(
            &json!({ "event": "resolved", "did": did, "versionId": version.to_string(), "minConf": min_conf, "beacons": beacons }),
            &format!(
                "resolvers return version {version} of {did} ({min_conf} confirmations); updates of it are found at: {listing}"
            ),
        );
    }

    /// A member submits its update to a cohort.
    pub(crate) fn submits(&self, cohort_id: &CohortId, address: &str, version: u64, resolved: bool, listed: bool) {
        let json = json!({
            "event": "update-submitting",
            "cohortId": cohort_id,
            "beaconAddress": address,
            "versionId": version.to_string(),
            "resolved": resolved,
            "listed": listed,
        });
        let start = match resolved {
            true => "it starts from the document that resolvers return",
            false => {
                "the document that it starts from is only believed to be the current one: no resolution verifies that (--chain)"
            }
        };
        let place = match listed {
            true => format!("{address} is a beacon of that document"),
            false => format!(
                "NO RESOLVER will find it by this cohort: that document does not list {address} as its beacon. Announce it by a \
                 listed one too (`singleton`)"
            ),
        };
        self.line(
            &json,
            &format!("cohort {cohort_id}: submitting the update to version {version}; {start}; {place}"),
        );
    }

    /// A member holds its update back, and goes on in the cohort without one.
    pub(crate) fn withholds(&self, cohort_id: &CohortId, address: &str, reason: &str) {
        let reason = &*shown_within(reason, MOST_LINE);
        self.line(
            &json!({ "event": "update-withheld", "cohortId": cohort_id, "beaconAddress": address, "reason": reason }),
            &format!("cohort {cohort_id}: no update of ours is submitted, declining: {reason}"),
        );
    }

    /// A notice of a service.
    pub fn service_step(&self, step: &ServiceNotice) {
        self.step(step, || self.service_line(step));
    }

    /// A notice of an announcement.
    pub fn announcement_step(&self, step: &AnnouncementNotice) {
        self.step(step, || {
            let mut board = self.board();
            board.announcement(step);
            let is_progress = matches!(step, AnnouncementNotice::AnnouncementConfirmed { .. });
            Line { text: board.name(step.text(), Some(step.cohort_id())), is_progress }
        });
    }

    /// A notice of a participant.
    pub fn participant_step(&self, step: &ParticipantNotice) {
        self.step(step, || self.participant_line(step));
    }

    /// Prints whether services and relays can be reached, for as long as the program runs.
    pub async fn follow(self, mut contacts: broadcast::Receiver<ContactNotice>) -> Infallible {
        loop {
            match contacts.recv().await {
                Ok(notice) => self.step(&notice, || Line::lasting(notice.text())),
                Err(RecvError::Lagged(missed)) => self.missed(missed),
                // The transports are gone: the program ends.
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    /// A notice of the watch of a member's beacon.
    pub fn watch_notice(&self, notice: &WatchNotice) {
        self.step(notice, || Line::lasting(notice.text()));
    }

    /// A notice of another part of the program, and its line for people.
    pub fn notice(&self, notice: &impl Serialize, text: String) {
        self.step(notice, || Line::lasting(text));
    }

    /// The result of the program.
    pub fn result(&self, result: &Value, text: &str) {
        self.line(result, text);
    }

    fn service_line(&self, step: &ServiceNotice) -> Line {
        let mut board = self.board();
        let text = service_text(step) + &board.service(step);
        Line { text: board.name(text, step.cohort_id()), is_progress: is_service_progress(step) }
    }

    fn participant_line(&self, step: &ParticipantNotice) -> Line {
        let mut board = self.board();
        board.participant(step);
        let text = board.name(participant_text(step), step.cohort_id());
        Line { text, is_progress: is_participant_progress(step) }
    }

    fn step(&self, step: &impl Serialize, line: impl FnOnce() -> Line) {
        if self.json {
            match serde_json::to_value(step) {
                Ok(mut json) => {
                    // The program's own texts are shorter.
                    bound(&mut json, MOST_SHOWN);
                    self.event(json);
                }
                Err(error) => tracing::error!(%error, "an event does not serialize"),
            }
            return;
        }
        let Line { text, is_progress } = line();
        // A notice is one line, whatever text of peers it contains.
        let text = shown_within(&text, MOST_LINE);
        if is_progress && self.in_place {
            output::in_place(&self.stamped(&text));
        } else {
            output::line(&self.stamped(&text));
        }
    }

    fn line(&self, json: &Value, text: &str) {
        debug_assert!(PROGRAM_KINDS.iter().any(|kind| json["event"] == *kind), "{json}");
        if self.json {
            let mut json = json.clone();
            // Texts of peers, e.g. the reason of a service. A transaction in a result is not cut.
            for field in ["reason", "message"] {
                json.get_mut(field).into_iter().for_each(|text| bound(text, MOST_SHOWN));
            }
            self.event(json);
        } else {
            output::line(&self.stamped(text));
        }
    }

    /// One event for machines.
    fn event(&self, json: Value) {
        let mut event = timed(json, SystemTime::now());
        if let (Value::Object(fields), Some(service)) = (&mut event, &self.service) {
            fields.shift_insert(fields.len().min(2), "instance".to_owned(), json!(&**service));
        }
        output::line(&event.to_string());
    }

    fn stamped(&self, text: &str) -> String {
        let time =
            self.times.then(|| format!("{} ", humantime::format_rfc3339_seconds(in_range(SystemTime::now()))));
        let service = self.service.as_ref().map(|service| format!("[{service}] "));
        format!("{}{}{text}", time.unwrap_or_default(), service.unwrap_or_default())
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds the time to an event, after its name.
fn timed(mut event: Value, now: SystemTime) -> Value {
    if let Value::Object(fields) = &mut event {
        let time = humantime::format_rfc3339_millis(in_range(now)).to_string();
        fields.shift_insert(fields.len().min(1), "time".to_owned(), Value::String(time));
    }
    event
}

/// The nearest time that RFC 3339 can express: a clock may be wrong by any amount.
fn in_range(time: SystemTime) -> SystemTime {
    /// The last second of the year 9999.
    const LAST: u64 = 253_402_300_799;
    let last = UNIX_EPOCH.checked_add(Duration::from_secs(LAST)).unwrap_or(UNIX_EPOCH);
    time.clamp(UNIX_EPOCH, last)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_event_has_its_time_behind_its_name() {
        let time = UNIX_EPOCH + Duration::from_millis(1_790_000_000_007);
        let event = timed(json!({ "event": "serving", "url": "http://x" }), time);
        assert_eq!(event.to_string(), r#"{"event":"serving","time":"2026-09-21T14:13:20.007Z","url":"http://x"}"#);
        assert_eq!(timed(json!({}), time).as_object().map(serde_json::Map::len), Some(1));
    }

    #[test]
    fn a_clock_that_is_wrong_by_any_amount_has_a_time() {
        let before = UNIX_EPOCH - Duration::from_secs(1);
        let after = UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(timed(json!({}), before)["time"], "1970-01-01T00:00:00.000Z");
        assert_eq!(timed(json!({}), after)["time"], "9999-12-31T23:59:59.000Z");
    }

    #[test]
    fn lines_for_people_have_times_only_if_asked_for() {
        let printer = Printer::new(false);
        assert_eq!(printer.stamped("text"), "text");
        let stamped = printer.with_times(true).stamped("text");
        assert!(stamped.ends_with("Z text") && stamped.len() == "2026-09-21T14:13:20Z text".len(), "{stamped}");
        assert_eq!(Printer::new(false).named(Some("mutinynet")).stamped("text"), "[mutinynet] text");
    }
}
