//! The agent as a program: it starts again by itself after what can pass, e.g. a full disk.

use std::time::Duration;

use sd_notify::NotifyState;

use super::{agent, config::MemberConfig, notice::MemberNotice};
use crate::{error::ProgramError, events::Printer, systemd};

/// The pause before it starts again, which doubles with each attempt.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How one life of the agent has ended.
pub(super) enum End {
    /// It was asked to stop.
    Stopped,
    /// It cannot run as it is configured.
    Refused(ProgramError),
    /// It may go on later.
    Interrupted(String),
}

impl From<ProgramError> for End {
    fn from(error: ProgramError) -> Self {
        Self::Refused(error)
    }
}

/// Runs until `stop` is ready.
///
/// # Errors
/// [`ProgramError`] when it cannot start. Once it was ready it reports errors and starts again.
pub async fn run(config: MemberConfig, stop: impl Future<Output = ()>) -> Result<(), ProgramError> {
    let printer = Printer::new(config.json).with_times(config.times);
    tokio::pin!(stop);
    #[cfg(unix)]
    if let Some(address) = &config.console {
        super::console::check(address)?;
    }
    let (mut was_ready, mut pause) = (false, FIRST_PAUSE);
    loop {
        let mut is_ready = false;
        let problem = match agent::live(&config, &printer, stop.as_mut(), &mut is_ready).await {
            End::Stopped => {
                systemd::notify(&[NotifyState::Stopping]);
                let stopped = MemberNotice::MemberStopped;
                printer.notice(&stopped, stopped.text());
                return Ok(());
            }
            End::Refused(error) if !was_ready && !is_ready => return Err(error),
            End::Refused(error) => error.to_string(),
            End::Interrupted(problem) => problem,
        };
        if std::mem::take(&mut is_ready) {
            (was_ready, pause) = (true, FIRST_PAUSE);
        }
        let interrupted = MemberNotice::MemberInterrupted { problem, retry_seconds: pause.as_secs() };
        printer.notice(&interrupted, interrupted.text());
        if !was_ready {
            // E.g. while the node starts.
            systemd::starts_longer();
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = &mut stop => {
                systemd::notify(&[NotifyState::Stopping]);
                return Ok(());
            }
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
