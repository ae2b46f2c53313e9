//! Opens one cohort after another, stores their results, and detects when all are done.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    ServeConfig,
    alarm::Alarms,
    opening::{Running, next_order},
    operator::Operator,
    orders::{Order, Series},
    public::Ledger,
    register::Register,
    results::CohortReport,
    switches::Switches,
};
use crate::{
    actors::{
        events::{Cursor, Event, Events},
        handle::Service,
        notice::ServiceNotice,
        runtime::Clock,
    },
    bitcoin::{notice::AnnouncementNotice, recovery::CohortFile},
    cost::OUTCOME_FILE,
    error::ProgramError,
    events::Printer,
    files::{file_name, write_whole},
    protocol::{cohort::service::phase::PhaseKind, id::CohortId, output::BeaconOutput, text::shown},
    storage::Storage,
};

/// The time limit for pending work when the program ends.
const SETTLING: Duration = Duration::from_secs(10);

/// The delay after a cohort that failed to form.
const REOPEN_DELAY: Duration = Duration::from_secs(1);

/// The cohorts of a service.
pub(super) struct Rounds {
    pub(super) config: ServeConfig,
    /// The cohorts that are opened one after the other.
    pub(super) series: BTreeMap<String, Running>,
    pub(super) service: Service,
    pub(super) events: Events<ServiceNotice>,
    pub(super) operator: Operator,
    pub(super) storage: Storage,
    pub(super) printer: Printer,
    pub(super) alarms: Alarms,
    pub(super) switches: Switches,
    /// With a control API: what it records of cohorts, and the operator's orders.
    pub(super) control: Option<(Register, mpsc::Receiver<Order>)>,
    /// Where announcements that are final are recorded.
    pub(super) ledger: Ledger,
    /// The cohorts of the command line that count. A re-formed cohort counts instead of its predecessor.
    pub(super) counted: BTreeSet<CohortId>,
    /// The cohorts that still admit members, with their series.
    pub(super) enrolling: BTreeMap<CohortId, Option<String>>,
    /// The cohorts that have not ended.
    pub(super) live: BTreeSet<CohortId>,
    /// The cohorts that ended with a verified transaction.
    pub(super) signed: BTreeSet<CohortId>,
    /// The cohorts whose announcement is not final yet.
    pub(super) announcing: BTreeSet<CohortId>,
    /// The number of signed cohorts that were not announced.
    pub(super) unannounced: u32,
    /// Receives the announcements that had already ended when they were followed.
    pub(super) ended: (mpsc::UnboundedSender<CohortId>, mpsc::UnboundedReceiver<CohortId>),
    /// Whether the limit of running cohorts is reached.
    pub(super) is_full: bool,
    /// The pending work that follows from notices.
    pub(super) settling: Vec<JoinHandle<()>>,
}

/// What the rounds of a service work with.
pub(super) struct RoundParts {
    pub(super) config: ServeConfig,
    pub(super) series: BTreeMap<String, Series>,
    pub(super) service: Service,
    pub(super) operator: Operator,
    pub(super) storage: Storage,
    pub(super) printer: Printer,
    pub(super) alarms: Alarms,
    pub(super) switches: Switches,
    pub(super) control: Option<(Register, mpsc::Receiver<Order>)>,
    pub(super) ledger: Ledger,
}

impl Rounds {
    /// Takes the events of the service from its start on.
    pub(super) fn new(parts: RoundParts) -> Result<Self, ProgramError> {
        let RoundParts { config, series, service, operator, storage, printer, alarms, switches, control, ledger } =
            parts;
        let events = service.events();
        let running = |(name, series): (String, Series)| Ok((name, Running::new(series)?));
        let series = series.into_iter().map(running).collect::<Result<_, String>>().map_err(ProgramError::Usage)?;
        Ok(Self {
            config,
            series,
            service,
            events,
            operator,
            storage,
            printer,
            alarms,
            switches,
            control,
            ledger,
            counted: BTreeSet::new(),
            enrolling: BTreeMap::new(),
            live: BTreeSet::new(),
            signed: BTreeSet::new(),
            announcing: BTreeSet::new(),
            unannounced: 0,
            ended: mpsc::unbounded_channel(),
            is_full: false,
            settling: Vec::new(),
        })
    }

    /// Runs cohorts until all requested ones have ended, if that ends the program. Returns whether all were signed and,
    /// if there is a chain, announced.
    pub(super) async fn run(
        &mut self,
        mut announcements: Option<Events<AnnouncementNotice>>,
    ) -> Result<bool, ProgramError> {
        let recovered: Vec<_> = self.service.cohorts().await.iter().map(|cohort| cohort.id().clone()).collect();
        // Cohorts that counted in earlier runs still count, even if they have ended: `--cohorts` is not per process.
        if self.config.cohorts.is_some() {
            for (cohort_id, signed) in self.storage.counted().await? {
                if signed {
                    self.signed.insert(cohort_id.clone());
                }
                self.counted.insert(cohort_id);
            }
        }
        if let Some(most) = self.config.cohorts
            && self.opened() >= most
        {
            self.printer.warn(&format!(
                "all {most} cohorts of --cohorts were opened in earlier runs with this state: a higher number opens more"
            ));
        }
        // They count, and each reports its phase before new ones are opened.
        let ours: Vec<_> =
            recovered.iter().filter(|cohort_id| self.is_of_command_line(cohort_id)).cloned().collect();
        self.counted.extend(ours);
        self.live.extend(recovered.iter().cloned());
        let mut silent: BTreeSet<CohortId> = recovered.into_iter().collect();
        while !silent.is_empty() {
            let next = next(&mut self.events).await;
            if let (_, Event::Notice(step)) = &next
                && let ServiceNotice::CohortRecovered { cohort_id, .. }
                | ServiceNotice::SigningComplete { cohort_id, .. }
                | ServiceNotice::CohortFailed { cohort_id, .. } = &**step
            {
                silent.remove(cohort_id);
            }
            self.take(next).await?;
        }
        if let Operator::Chain(operator) = &self.operator {
            let resumed =
                operator.announcements().resume().await.map_err(|error| ProgramError::State(error.to_string()))?;
            for cohort_id in resumed.into_iter().filter(|cohort_id| !self.live.contains(cohort_id)) {
                if self.is_of_command_line(&cohort_id) {
                    self.counted.insert(cohort_id.clone());
                }
                self.signed.insert(cohort_id.clone());
                self.announcing.insert(cohort_id);
            }
        }
        loop {
            self.open().await?;
            if self.config.exit_when_done && self.is_done() {
                // The next run starts to count again.
                self.storage.count(&BTreeMap::new()).await?;
                return Ok(self.signed.is_superset(&self.counted) && self.unannounced == 0);
            }
            tokio::select! {
                next = next(&mut self.events) => self.take(next).await?,
                order = next_order(&mut self.control) => self.obey(order).await,
                Some(next) = announcement(&mut announcements) => self.take_announcement(next),
                Some(cohort_id) = self.ended.1.recv() => {
                    self.announcing.remove(&cohort_id);
                }
            }
        }
    }

    fn is_done(&self) -> bool {
        let enough = self.config.cohorts.is_some_and(|most| self.opened() >= most);
        enough && self.live.is_empty() && self.announcing.is_empty()
    }

    pub(super) fn opened(&self) -> u32 {
        u32::try_from(self.counted.len()).unwrap_or(u32::MAX)
    }

    /// Persists which cohorts count.
    pub(super) async fn count(&self) -> Result<(), ProgramError> {
        if self.config.cohorts.is_none() {
            return Ok(());
        }
        let counted = self.counted.iter().map(|cohort_id| (cohort_id.clone(), self.signed.contains(cohort_id)));
        self.storage.count(&counted.collect()).await
    }

    fn take_announcement(&mut self, (cursor, event): (Cursor, Event<AnnouncementNotice>)) {
        let step = match event {
            Event::Notice(step) => step,
            // The ends among them follow.
            Event::Gap(lost) => return self.printer.missed(lost),
            _ => return,
        };
        if !cursor.is_decisive() {
            self.printer.announcement_step(&step);
            return self.alarms.step(&step);
        }
        // An outcome that a previous run has stored was printed by it.
        if !self.is_stored(&step) {
            self.printer.announcement_step(&step);
            self.alarms.step(&step);
            if !self.store_outcome(&step) {
                // It is delivered again after a restart.
                return self.end_announcing(&step);
            }
        }
        self.end_announcing(&step);
        if let Some((register, _)) = &self.control {
            let ends = register.ends().clone();
            let step = Arc::clone(&step);
            self.spawn(async move {
                if let Err(error) = ends.announced(&step).await {
                    tracing::error!(%error, "the end of an announcement is not among those of cohorts");
                }
            });
        }
        if let Operator::Chain(operator) = &self.operator {
            let (announcements, acks) = (operator.announcements().clone(), operator.announcements().acks());
            let (ledger, network) = (self.ledger.clone(), self.config.network);
            self.spawn(async move {
                if let Err(error) = ledger.record(&step, &announcements, network, Clock::system()).await {
                    tracing::error!(%error, "the end of an announcement is not recorded, and will be reported again");
                    return;
                }
                if let Err(error) = acks.ack(&cursor).await {
                    tracing::error!(%error, "the end of an announcement will be reported again");
                }
            });
        }
    }

    fn end_announcing(&mut self, step: &AnnouncementNotice) {
        match step {
            AnnouncementNotice::AnnouncementFinal { cohort_id, .. } => {
                self.announcing.remove(cohort_id);
            }
            AnnouncementNotice::AnnouncementFailed { cohort_id, .. } if self.announcing.remove(cohort_id) => {
                self.unannounced += 1;
            }
            _ => {}
        }
    }

    async fn take(&mut self, (cursor, event): (Cursor, Event<ServiceNotice>)) -> Result<(), ProgramError> {
        match event {
            Event::Notice(step) => self.follow(&step, cursor).await,
            // The decisive ones among them follow.
            Event::Gap(lost) => {
                self.printer.missed(lost);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn follow(&mut self, step: &Arc<ServiceNotice>, cursor: Cursor) -> Result<(), ProgramError> {
        self.printer.service_step(step);
        match &**step {
            ServiceNotice::CohortRecovered { cohort_id, phase, output } => {
                if *phase == PhaseKind::Enrolling {
                    self.enrolling.insert(cohort_id.clone(), self.series_of(cohort_id));
                    let record = self.control.as_ref().and_then(|(register, _)| register.get(cohort_id));
                    if record.is_some_and(|record| record.paused) {
                        self.service.cohort(cohort_id).advertise(false).await;
                    }
                }
                if let Some(output) = output {
                    self.store_output(cohort_id, output)?;
                }
                self.settle(step, None);
            }
            ServiceNotice::KeygenComplete { cohort_id, output, .. } => {
                self.enrolling.remove(cohort_id);
                self.store_output(cohort_id, output)?;
                self.settle(step, None);
            }
            ServiceNotice::SigningComplete { cohort_id, result, .. } => {
                self.enrolling.remove(cohort_id);
                if !self.live.remove(cohort_id) {
                    // A repeated notice.
                    return Ok(());
                }
                let (of, result) = (cohort_id.clone(), Arc::clone(result));
                let report = off_the_arbiter(move || Arc::new(CohortReport::new(of, result))).await?;
                self.unregister(cohort_id, None, report.end()).await?;
                if report.verified() {
                    self.signed.insert(cohort_id.clone());
                }
                self.count().await?;
                if let Some(directory) = self.config.out.clone() {
                    let writing = Arc::clone(&report);
                    let written = off_the_arbiter(move || {
                        writing.write_to(&directory).map_err(|error| cannot_write(&directory, error))
                    });
                    written.await??;
                }
                self.printer.result(&report.to_json(), &report.to_text());
                if matches!(self.operator, Operator::Chain(_)) {
                    self.announcing.insert(cohort_id.clone());
                }
                self.settle(step, Some((cohort_id, cursor)));
            }
            ServiceNotice::CohortFailed { cohort_id, reason, code, next, .. } => {
                if !self.live.remove(cohort_id) {
                    return Ok(());
                }
                let was_enrolling = self.enrolling.remove(cohort_id).is_some();
                let series = self.series_of(cohort_id);
                let end = serde_json::json!({ "phase": "failed", "code": code, "reason": reason, "next": next });
                self.unregister(cohort_id, next.as_ref(), end).await?;
                match next {
                    Some(next) => {
                        if self.counted.remove(cohort_id) {
                            self.counted.insert(next.clone());
                        }
                        self.live.insert(next.clone());
                        self.enrolling.insert(next.clone(), series);
                        self.count().await?;
                    }
                    None if was_enrolling => tokio::time::sleep(REOPEN_DELAY).await,
                    None => {}
                }
                let result = serde_json::json!({
                    "event": "result", "ok": false, "cohortId": cohort_id, "code": code, "reason": reason, "next": next,
                });
                self.printer.result(&result, &format!("cohort {cohort_id} failed: {}", shown(reason)));
                self.settle(step, Some((cohort_id, cursor)));
            }
            _ => {}
        }
        Ok(())
    }

    /// A cohort has ended in this way, and another one replaces it or not.
    async fn unregister(
        &self,
        cohort_id: &CohortId,
        next: Option<&CohortId>,
        end: serde_json::Value,
    ) -> Result<(), ProgramError> {
        let Some((register, _)) = &self.control else { return Ok(()) };
        let template = register.get(cohort_id).and_then(|record| record.template);
        register.ends().add(cohort_id, template, end).await?;
        register.replace(cohort_id, next).await
    }

    /// Lets the operator do what follows from a notice, without waiting for a chain here. If the cohort has `ended`,
    /// acknowledges the end afterwards, when the consequences are persisted.
    fn settle(&mut self, step: &Arc<ServiceNotice>, ended: Option<(&CohortId, Cursor)>) {
        let (operator, step) = (self.operator.clone(), Arc::clone(step));
        let ended = ended.map(|(cohort_id, cursor)| (cohort_id.clone(), cursor));
        let (acks, announced) = (self.service.acks(), self.ended.0.clone());
        self.spawn(async move {
            if let Operator::Chain(operator) = operator {
                if let Err(error) = operator.follow(&step).await {
                    // The end is not acknowledged, so it is delivered again after a restart.
                    tracing::error!(%error, "an announcement cannot be followed");
                    return;
                }
                if let Some((cohort_id, _)) = &ended
                    && operator.announcements().has_ended(cohort_id).await
                {
                    let _ = announced.send(cohort_id.clone());
                }
            }
            if let Some((cohort_id, cursor)) = ended
                && let Err(error) = acks.ack(&cursor).await
            {
                tracing::error!(%cohort_id, %error, "the journal of an ended cohort cannot be archived");
            }
        });
    }

    /// Runs what is to be complete before the program ends.
    pub(super) fn spawn(&mut self, work: impl Future<Output = ()> + 'static) {
        self.settling.retain(|task| !task.is_finished());
        self.settling.push(actix_rt::spawn(work));
    }

    /// Ready when all consequences of the notices are persisted, or after a time limit: a chain may not answer.
    pub(super) async fn settled(&mut self) {
        let settling = futures::future::join_all(self.settling.drain(..));
        if tokio::time::timeout(SETTLING, settling).await.is_err() {
            self.printer
                .warn("not every ended cohort was archived in time: the next run with this state reports it again");
        }
    }

    /// The directory of an announcement's outcome, beside the cohort's result, and the outcome.
    fn outcome(&self, step: &AnnouncementNotice) -> Option<(PathBuf, String)> {
        let directory = self.config.out.as_ref()?.join(file_name(step.cohort_id()));
        // A notice serializes.
        let text = serde_json::to_string_pretty(step).ok()?;
        Some((directory, text + "\n"))
    }

    fn is_stored(&self, step: &AnnouncementNotice) -> bool {
        self.outcome(step).is_some_and(|(directory, text)| {
            std::fs::read_to_string(directory.join(OUTCOME_FILE)).is_ok_and(|stored| stored == text)
        })
    }

    /// Stores how an announcement ended, if results are written. The command `cost` reads the fees from it. Returns whether
    /// it is stored.
    fn store_outcome(&self, step: &AnnouncementNotice) -> bool {
        let Some((directory, text)) = self.outcome(step) else { return true };
        let file = directory.join(OUTCOME_FILE);
        let written = std::fs::create_dir_all(&directory).and_then(|()| write_whole(&file, text.as_bytes()));
        if let Err(error) = &written {
            self.printer.warn(&format!("{}: {error}", file.display()));
        }
        written.is_ok()
    }

    fn store_output(&self, cohort_id: &CohortId, output: &BeaconOutput) -> Result<(), ProgramError> {
        let Some(directory) = &self.config.out else { return Ok(()) };
        let file = CohortFile { cohort_id: cohort_id.clone(), output: output.clone() };
        file.write_to(directory).map_err(|error| cannot_write(directory, error))
    }

    /// Cancels the cohorts that have not ended, because the program stops.
    pub(super) async fn cancel(&self) {
        for cohort_id in &self.live {
            self.service.cohort(cohort_id).cancel("the service is stopping").await;
        }
    }
}

/// Runs what computes or writes for long where no actor waits for it.
async fn off_the_arbiter<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ProgramError> {
    actix_rt::task::spawn_blocking(work).await.map_err(|error| ProgramError::Internal(error.to_string()))
}

fn cannot_write(directory: &Path, error: io::Error) -> ProgramError {
    ProgramError::Io { what: format!("writing results to {}", directory.display()), error }
}

/// The next event of the service. Never ready once it has ended, which its handle reports.
async fn next(events: &mut Events<ServiceNotice>) -> (Cursor, Event<ServiceNotice>) {
    match events.next().await {
        Some(next) => next,
        None => std::future::pending().await,
    }
}

/// The next event of an announcement. Never ready without a chain.
async fn announcement(
    announcements: &mut Option<Events<AnnouncementNotice>>,
) -> Option<(Cursor, Event<AnnouncementNotice>)> {
    match announcements {
        Some(announcements) => announcements.next().await,
        None => std::future::pending().await,
    }
}
