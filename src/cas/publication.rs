//! Publishing to several stores at once.

use std::{fmt, sync::Arc};

use futures::{StreamExt, future::join_all, stream};

use super::{Cas, CasError, Content, ContentHash};

/// How many contents are sent to one store concurrently.
const AT_ONCE: usize = 8;

/// The stores to publish to, and whether a failure blocks the spend that announces the content.
#[derive(Clone, Debug, Default)]
pub struct Publication {
    /// The stores; with none, publishing succeeds without effect.
    pub stores: Vec<Arc<dyn Cas>>,
    /// Whether every store must have everything. If not, failures are only reported.
    pub hold_on_failure: bool,
}

impl Publication {
    /// Publishes `contents` to all stores concurrently. After a failure a store gets no further requests: each would
    /// fail, or hang, as well.
    ///
    /// # Errors
    /// [`IncompletePublication`] when a store failed and [`Self::hold_on_failure`] is set. Publishing again later is harmless.
    pub async fn publish(&self, contents: &[Content]) -> Result<PublicationReport, IncompletePublication> {
        let report = PublicationReport {
            stores: join_all(self.stores.iter().map(|store| publish_to(&**store, contents))).await,
        };
        if self.hold_on_failure && !report.is_complete() { Err(IncompletePublication(report)) } else { Ok(report) }
    }
}

async fn publish_to(store: &dyn Cas, contents: &[Content]) -> StoreReport {
    let mut report = StoreReport { store: store.name().to_owned(), published: 0, failure: None };
    let mut outcomes = stream::iter(contents.to_vec())
        .map(|content| async move { (content.hash(), store.put(&content).await) })
        .buffered(AT_ONCE);
    while let Some((hash, outcome)) = outcomes.next().await {
        match outcome {
            Ok(()) => report.published += 1,
            Err(error) => {
                report.failure = Some((hash, error));
                break;
            }
        }
    }
    report
}

/// The result of a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicationReport {
    /// The result of each store, in the order of [`Publication::stores`].
    pub stores: Vec<StoreReport>,
}

impl PublicationReport {
    /// Whether every store has everything.
    pub fn is_complete(&self) -> bool {
        self.failures().next().is_none()
    }

    /// The failures, at most one per store.
    pub fn failures(&self) -> impl Iterator<Item = &CasError> {
        self.stores.iter().filter_map(|store| store.failure.as_ref().map(|(_, error)| error))
    }
}

/// The result of one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreReport {
    /// The store's name.
    pub store: String,
    /// How many contents it certainly has, counted from the first.
    pub published: usize,
    /// The content at which it failed, and the error; later ones may or may not be stored.
    pub failure: Option<(ContentHash, CasError)>,
}

/// An incomplete publication that must be complete before anything is announced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct IncompletePublication(pub PublicationReport);

impl fmt::Display for IncompletePublication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not everything is published")?;
        self.0.failures().try_for_each(|error| write!(f, "; {error}"))
    }
}
