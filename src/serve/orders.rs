//! What the operator orders while the service runs, for the loop that opens cohorts; and the series of cohorts that it opens by itself.

use tokio::sync::oneshot;

use super::terms::RoundTerms;
use crate::{bitcoin::announcement::Input, protocol::id::CohortId};

/// The series that the command line describes.
pub(crate) const COMMAND_LINE: &str = "serve";

/// How many orders wait.
pub(crate) const BACKLOG: usize = 64;

/// Cohorts on the same terms, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series {
    /// The terms.
    pub(crate) terms: RoundTerms,
    /// How many are advertised at once.
    pub(crate) parallel: u32,
    /// How many there are in all.
    pub(crate) cohorts: Option<u32>,
    /// Whether no further one is opened.
    pub(crate) is_paused: bool,
}

/// The answer to an order: an error is the reason, in words.
pub(crate) type Done<T> = oneshot::Sender<Result<T, String>>;

/// An order.
#[derive(Debug)]
pub(crate) enum Order {
    /// Advertise a cohort now.
    Open {
        /// Its terms.
        terms: Box<RoundTerms>,
        /// The template that they are of, if they are of one.
        template: Option<String>,
        done: Done<CohortId>,
    },
    /// Run a series of this name, or change it. The adverts of its cohorts are paused and resumed with it.
    Run { name: String, series: Box<Series>, done: Done<()> },
    /// Open no more cohorts of the series of this name. Those that run continue.
    Drop { name: String, done: Done<()> },
    /// Settings have changed: open what may be opened now.
    Wake,
    /// Bump the announcement of a cohort, hold it back, or release it.
    Announcement { cohort_id: CohortId, input: Box<Input>, done: Done<()> },
}
