//! What the program reports to systemd (`Type=notify`): that it is ready, reads its files again or stops, and that it is alive.
//!
//! Without `NOTIFY_SOCKET` in the environment nothing is sent.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sd_notify::NotifyState;

use crate::{actors::supervision::Vitals, metrics::http::Readiness};

/// The interval in which the state of the services is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// By how much each look at a process that starts extends the time for its start, in microseconds: a node may take hours until it
/// answers, and a start that is ended would have to wait again.
const LONGER: u32 = 120_000_000;

/// Reports that the start goes on: what is needed, e.g. the node, may come later.
pub(crate) fn starts_longer() {
    notify(&[NotifyState::ExtendTimeoutUsec(LONGER)]);
}

/// Sends one state to systemd.
pub(crate) fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be notified");
    }
}

/// The time between two signs of life, if systemd expects some: a third of `WatchdogSec`, so that a lost one does no harm.
fn beat_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 3)
}

/// Sends signs of life without end. The event loop that runs it is alive as long as they come.
pub(crate) async fn beat() -> Infallible {
    let Some(every) = beat_interval() else { return std::future::pending().await };
    loop {
        notify(&[NotifyState::Watchdog]);
        tokio::time::sleep(every).await;
    }
}

/// What systemd is to know of the services of one process. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Unit(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// How many services have not started yet.
    missing: usize,
    parts: Vec<Part>,
    next: u64,
    was_ready: bool,
    is_stopping: bool,
    reloads: usize,
    status: String,
}

#[derive(Debug)]
struct Part {
    number: u64,
    name: Option<String>,
    readiness: Readiness,
    vitals: Vitals,
}

/// What is to be sent.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    ready: bool,
    starts: bool,
    status: Option<String>,
    alive: bool,
}

impl Unit {
    /// A process of so many services. It is ready when all of them are.
    pub fn new(services: usize) -> Self {
        Self(Arc::new(Mutex::new(State { missing: services, ..State::default() })))
    }

    /// Adds a service that starts. It is removed when the returned value is dropped.
    pub(crate) fn add(&self, name: Option<&str>, readiness: Readiness, vitals: Vitals) -> Added {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.missing = state.missing.saturating_sub(1);
        state.parts.push(Part { number, name: name.map(str::to_owned), readiness, vitals });
        Added { unit: self.clone(), number }
    }

    /// Reports that files are read again, until the returned value is dropped.
    pub(crate) fn reload(&self) -> Reloading {
        let mut state = self.state();
        state.reloads += 1;
        // Before its start is complete, systemd does not expect a reload.
        if state.reloads == 1 && state.was_ready {
            // systemd 253 and newer expects the time with it.
            match NotifyState::monotonic_usec_now() {
                Ok(now) => notify(&[NotifyState::Reloading, now]),
                Err(_) => notify(&[NotifyState::Reloading]),
            }
        }
        Reloading(self.clone())
    }

    /// Reports that the process stops.
    pub(crate) fn stop(&self) {
        self.state().is_stopping = true;
        notify(&[NotifyState::Stopping]);
    }

    /// Reports changes and signs of life without end.
    pub(crate) async fn watch(self) -> Infallible {
        let every = beat_interval().map_or(LOOK, |beat| beat.min(LOOK));
        loop {
            let report = self.state().report();
            let mut states = Vec::new();
            states.extend(report.ready.then_some(NotifyState::Ready));
            states.extend(report.starts.then_some(NotifyState::ExtendTimeoutUsec(LONGER)));
            states.extend(report.status.as_deref().map(NotifyState::Status));
            states.extend(report.alive.then_some(NotifyState::Watchdog));
            if !states.is_empty() {
                notify(&states);
            }
            tokio::time::sleep(every).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn report(&mut self) -> Report {
        let all_ready = self.missing == 0 && self.parts.iter().all(|part| part.readiness.is_ready());
        let ready = all_ready && !self.was_ready && !self.is_stopping;
        self.was_ready |= ready;
        let status = self.describe(all_ready);
        let status = (status != self.status).then(|| {
            self.status.clone_from(&status);
            status
        });
        // A chain that does not answer must not cause a restart: a new process would wait for the same chain. A part of the
        // supervision tree that has ended is one, if the process did not end by itself.
        let alive = self.parts.iter().all(|part| part.vitals.gone().is_none());
        Report { ready, starts: !self.was_ready && !self.is_stopping, status, alive }
    }

    fn describe(&self, all_ready: bool) -> String {
        if self.is_stopping {
            return "stopping".to_owned();
        }
        if all_ready {
            return "ready".to_owned();
        }
        let problems: Vec<String> = self
            .parts
            .iter()
            .flat_map(|part| {
                let of = part.name.as_ref().map_or_else(String::new, |name| format!("{name}: "));
                part.readiness.problems().into_iter().map(move |problem| format!("{of}{problem}"))
            })
            .collect();
        match (problems.is_empty(), self.was_ready) {
            (true, true) => "ending".to_owned(),
            (true, false) => "starting".to_owned(),
            (false, _) => one_line(&problems.join("; ")),
        }
    }
}

/// The protocol is one of lines.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A service of the process, for as long as it runs.
#[derive(Debug)]
pub(crate) struct Added {
    unit: Unit,
    number: u64,
}

impl Drop for Added {
    fn drop(&mut self) {
        let number = self.number;
        self.unit.state().parts.retain(|part| part.number != number);
    }
}

/// A reload that is not done yet.
#[derive(Debug)]
pub(crate) struct Reloading(Unit);

impl Drop for Reloading {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.reloads -= 1;
        if state.reloads == 0 && state.was_ready && !state.is_stopping {
            notify(&[NotifyState::Ready]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_when_all_its_services_are() {
        let unit = Unit::new(2);
        let (first, second) = (Readiness::default(), Readiness::default());
        let _one = unit.add(Some("one"), first.clone(), Vitals::default());
        first.set(true);
        let starts = Report { ready: false, starts: true, status: Some("starting".to_owned()), alive: true };
        assert_eq!(unit.state().report(), starts);
        let two = unit.add(Some("two"), second.clone(), Vitals::default());
        second.set(true);
        second.report("chain", Some("no answer\nat all".to_owned()));
        let waits = Some("two: chain: no answer at all".to_owned());
        assert_eq!(unit.state().report(), Report { ready: false, starts: true, status: waits, alive: true });
        second.report("chain", None);
        let is_ready = Report { ready: true, starts: false, status: Some("ready".to_owned()), alive: true };
        assert_eq!(unit.state().report(), is_ready);
        // Once.
        assert_eq!(unit.state().report(), Report { ready: false, starts: false, status: None, alive: true });
        drop(two);
        first.set(false);
        unit.stop();
        let stops = Report { ready: false, starts: false, status: Some("stopping".to_owned()), alive: true };
        assert_eq!(unit.state().report(), stops);
    }
}
