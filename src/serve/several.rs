//! Several services in one process: each with its own identity, network, terms, addresses and state, none with anything of another.

use std::collections::BTreeSet;

use futures::future::{FutureExt, join_all};
use tokio::sync::watch;

use super::{ServeConfig, run};
use crate::{error::ProgramError, events::Printer};

/// Serves all of them until `stop` is ready, or until each has ended. One that fails ends the others too: who supervises the process starts
/// it again, and what is stored continues. Returns whether the cohorts of all were signed.
///
/// # Errors
/// [`ProgramError`] when one cannot start, or the first that has failed.
pub async fn run_all(configs: Vec<ServeConfig>, stop: impl Future<Output = ()>) -> Result<bool, ProgramError> {
    check_names(&configs)?;
    let unit = configs.iter().find_map(|config| config.unit.clone());
    let (ending, ended) = watch::channel(false);
    let services = configs.into_iter().map(|config| {
        let (mut ended, ending) = (ended.clone(), &ending);
        let printer = Printer::new(config.json).with_times(config.times).named(config.name.as_deref());
        let is_named = config.name.is_some();
        async move {
            // The sender outlives this future.
            let stop = async move { drop(ended.wait_for(|ended| *ended).await) };
            let outcome = run(config, stop).await;
            if let (Err(error), true) = (&outcome, is_named) {
                printer.warn(&format!("ends, and with it all services of this process: {error}"));
            }
            if outcome.is_err() {
                ending.send_replace(true);
            }
            outcome
        }
        .boxed_local()
    });
    let mut services = join_all(services);
    let running = async {
        tokio::select! {
            outcomes = &mut services => outcomes,
            () = stop => {
                if let Some(unit) = &unit {
                    unit.stop();
                }
                ending.send_replace(true);
                services.await
            }
        }
    };
    // Also while it stops: systemd expects signs of life until the end.
    let watching = async {
        match unit.clone() {
            Some(unit) => unit.watch().await,
            None => std::future::pending().await,
        }
    };
    let outcomes = tokio::select! {
        outcomes = running => outcomes,
        never = watching => match never {},
    };
    outcomes.into_iter().try_fold(true, |all, outcome| Ok(all & outcome?))
}

/// Names distinguish the services in what the process prints.
fn check_names(configs: &[ServeConfig]) -> Result<(), ProgramError> {
    let mut names = BTreeSet::new();
    for name in configs.iter().filter_map(|config| config.name.as_deref()) {
        if !names.insert(name) {
            let problem = format!("two services have the name {name}: the names of their files must differ");
            return Err(ProgramError::Usage(problem));
        }
    }
    Ok(())
}
