//! Which cohorts are opened: those of each series, one after the other, and what the operator orders.

use tokio::sync::mpsc;

use super::{
    operator::Operator,
    orders::{COMMAND_LINE, Order, Series},
    register::{CohortRecord, Register},
    rounds::Rounds,
    terms::RoundTerms,
};
use crate::{
    actors::service::{OpenCohort, OpenCohortError},
    error::ProgramError,
    protocol::{
        cohort::{
            conditions::{Conditions, TooManyMembers},
            service::ServiceConfigError,
        },
        id::CohortId,
    },
};

/// A series, and the conditions of its adverts.
pub(super) struct Running {
    series: Series,
    conditions: Conditions,
}

impl Running {
    pub(super) fn new(series: Series) -> Result<Self, String> {
        let conditions = series.terms.conditions().map_err(|problems| {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            problems.join("; ")
        })?;
        Ok(Self { series, conditions })
    }

    /// Reduces the margin of members above the least number to the limit of the transport. Returns whether that helps.
    fn cut_margin(&mut self, limit: usize) -> bool {
        let terms = &self.series.terms;
        let most = u32::try_from(limit).unwrap_or(u32::MAX).max(terms.min_participants);
        let helps = terms.max_is_margin && self.conditions.max_participants.is_some_and(|asked| most < asked);
        if helps {
            self.conditions.max_participants = Some(most);
        }
        helps
    }
}

impl Rounds {
    /// The series of a cohort of a previous run; that of the command line if nothing is recorded.
    pub(super) fn series_of(&self, cohort_id: &CohortId) -> Option<String> {
        let record = self.control.as_ref().and_then(|(register, _)| register.get(cohort_id));
        record.map_or_else(|| Some(COMMAND_LINE.to_owned()), |record| record.template)
    }

    pub(super) fn is_of_command_line(&self, cohort_id: &CohortId) -> bool {
        self.series_of(cohort_id).as_deref() == Some(COMMAND_LINE)
    }

    /// How many cohorts of a series were opened so far.
    fn opened_of(&self, name: &str) -> u32 {
        match &self.control {
            Some((register, _)) if name != COMMAND_LINE => register.opened(name),
            _ => self.opened(),
        }
    }

    /// Opens cohorts until enough are advertised, or enough were opened.
    pub(super) async fn open(&mut self) -> Result<(), ProgramError> {
        if !self.switches.values().adverts {
            return Ok(());
        }
        let names: Vec<String> = self.series.keys().cloned().collect();
        for name in names {
            self.open_of(&name).await?;
        }
        Ok(())
    }

    /// The same for one series.
    async fn open_of(&mut self, name: &str) -> Result<(), ProgramError> {
        while let Some(running) = self.series.get(name).filter(|running| !running.series.is_paused) {
            let (parallel, cohorts) = (running.series.parallel, running.series.cohorts);
            let open = self.order_of(running.conditions.clone(), &running.series.terms);
            let advertised = self.enrolling.values().filter(|of| of.as_deref() == Some(name)).count();
            let is_enough = advertised >= usize::try_from(parallel).unwrap_or(usize::MAX);
            if is_enough || cohorts.is_some_and(|most| self.opened_of(name) >= most) || self.is_full() {
                break;
            }
            match self.service.open(open).await {
                Ok(cohort) => self.opened_now(cohort.id().clone(), Some(name.to_owned())).await?,
                Err(OpenCohortError::Config(ServiceConfigError::TooManyMembers(TooManyMembers {
                    limit, ..
                }))) if self.series.get_mut(name).is_some_and(|running| running.cut_margin(limit)) => {}
                Err(error) if self.control.is_none() => return Err(ProgramError::Usage(error.to_string())),
                Err(error) => {
                    self.printer
                        .warn(&format!("template {name} is paused: no cohort of it can be advertised: {error}"));
                    if let Some(running) = self.series.get_mut(name) {
                        running.series.is_paused = true;
                    }
                }
            }
        }
        Ok(())
    }

    fn order_of(&self, conditions: Conditions, terms: &RoundTerms) -> OpenCohort {
        OpenCohort {
            conditions,
            network: self.config.network,
            timing: terms.timing,
            limits: self.config.limits,
            rules: terms.rules.clone(),
        }
    }

    /// Whether as many cohorts run as may.
    fn is_full(&mut self) -> bool {
        let most = self.switches.values().max_live_cohorts;
        let is_full = self.live.len() >= usize::try_from(most).unwrap_or(usize::MAX);
        if is_full != std::mem::replace(&mut self.is_full, is_full) && is_full {
            self.printer.warn(&format!(
                "{most} cohorts run (--max-live-cohorts): the next is advertised when one of them has ended"
            ));
        }
        is_full
    }

    /// A cohort was opened.
    async fn opened_now(&mut self, cohort_id: CohortId, series: Option<String>) -> Result<(), ProgramError> {
        if let Some((register, _)) = &self.control {
            register.add(&cohort_id, CohortRecord { template: series.clone(), paused: false }).await?;
        }
        if series.as_deref() == Some(COMMAND_LINE) {
            self.counted.insert(cohort_id.clone());
        }
        self.enrolling.insert(cohort_id.clone(), series);
        self.live.insert(cohort_id);
        self.count().await?;
        if self.config.cohorts.is_none() {
            // The count is not needed: a service that runs for years must not remember every cohort.
            self.counted.retain(|counted| self.live.contains(counted));
            self.signed.clear();
        }
        Ok(())
    }

    /// Does what the operator orders.
    pub(super) async fn obey(&mut self, order: Order) {
        // The caller may have left.
        match order {
            Order::Open { terms, template, done } => drop(done.send(self.open_one(*terms, template).await)),
            Order::Run { name, series, done } => drop(done.send(self.run_series(name, *series).await)),
            Order::Drop { name, done } => {
                self.series.remove(&name);
                let _ = done.send(Ok(()));
            }
            Order::Wake => {}
            Order::Announcement { cohort_id, input, done } => {
                let Operator::Chain(operator) = &self.operator else {
                    let _ = done.send(Err("there is no chain (--chain offline)".to_owned()));
                    return;
                };
                let announcements = operator.announcements().clone();
                self.spawn(async move {
                    let obeyed = match announcements.feed(&cohort_id, None, *input).await {
                        Ok(Ok(())) => Ok(()),
                        Ok(Err(reject)) => Err(reject.detail),
                        Err(error) => Err(error.to_string()),
                    };
                    let _ = done.send(obeyed);
                });
            }
        }
    }

    /// Advertises one cohort on these terms.
    async fn open_one(&mut self, terms: RoundTerms, template: Option<String>) -> Result<CohortId, String> {
        if self.is_full() {
            let most = self.switches.values().max_live_cohorts;
            return Err(format!("{most} cohorts run, and more may not (max-live-cohorts)"));
        }
        let mut running = Running::new(Series { terms, parallel: 1, cohorts: None, is_paused: false })?;
        let cohort_id = loop {
            let open = self.order_of(running.conditions.clone(), &running.series.terms);
            match self.service.open(open).await {
                Ok(cohort) => break cohort.id().clone(),
                Err(OpenCohortError::Config(ServiceConfigError::TooManyMembers(TooManyMembers {
                    limit, ..
                }))) if running.cut_margin(limit) => {}
                Err(error) => return Err(error.to_string()),
            }
        };
        self.opened_now(cohort_id.clone(), template).await.map_err(|error| error.to_string())?;
        Ok(cohort_id)
    }

    /// Runs a series, or changes it; its cohorts that still admit members are advertised, or not, as it is.
    async fn run_series(&mut self, name: String, series: Series) -> Result<(), String> {
        let is_paused = series.is_paused;
        self.series.insert(name.clone(), Running::new(series)?);
        let of = |(_, series): &(&CohortId, &Option<String>)| series.as_deref() == Some(name.as_str());
        let cohorts: Vec<CohortId> =
            self.enrolling.iter().filter(of).map(|(cohort_id, _)| cohort_id.clone()).collect();
        for cohort_id in cohorts {
            self.service.cohort(&cohort_id).advertise(!is_paused).await;
            if let Some((register, _)) = &self.control
                && let Some(record) = register.get(&cohort_id)
            {
                let record = CohortRecord { paused: is_paused, ..record };
                register.set(&cohort_id, record).await.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }
}

/// The next order of the operator. Never ready without a control API.
pub(super) async fn next_order(control: &mut Option<(Register, mpsc::Receiver<Order>)>) -> Order {
    match control {
        Some((_, orders)) => match orders.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}
