//! A call that was admitted: what it names, and how it changes something.

use std::{collections::BTreeMap, sync::Arc};

use actix_web::web;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    answer::{Refusal, failed, invalid},
    audit::Change,
    role::Who,
    shared::Shared,
};
use crate::protocol::{id::CohortId, time::Timestamp};

/// A call.
pub(crate) struct Call {
    pub(crate) shared: Arc<Shared>,
    pub(crate) who: Who,
    pub(super) captures: Vec<String>,
    pub(super) query: BTreeMap<String, String>,
    pub(super) body: Option<Value>,
    pub(super) last_event_id: Option<String>,
}

impl Call {
    pub(crate) fn now(&self) -> Timestamp {
        self.shared.parts.clock.now()
    }

    /// What the path names.
    pub(crate) fn named(&self) -> &str {
        self.captures.first().map_or("", String::as_str)
    }

    /// The cohort that the path names.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub(crate) fn cohort_id(&self) -> Result<CohortId, Refusal> {
        CohortId::parse(self.named()).map_err(|_| self.unknown("cohort"))
    }

    /// There is nothing of this kind with the name in the path.
    pub(crate) fn unknown(&self, what: &str) -> Refusal {
        Refusal::NotFound(format!("there is no {what} {}", crate::protocol::text::shown(self.named())))
    }

    /// The body; without one an empty object.
    ///
    /// # Errors
    /// [`Refusal::Invalid`].
    pub(crate) fn body<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        let body = self.body.clone().unwrap_or_else(|| json!({}));
        if !body.is_object() {
            return Err(invalid(None, "an object expected"));
        }
        serde_json::from_value(body).map_err(|error| invalid(None, error))
    }

    /// A number of the query.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if it is none, or not from 1 to `most`.
    pub(crate) fn number(&self, name: &str, most: u64) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.query.get(name) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| (1..=most).contains(number));
        number.map(Some).ok_or_else(|| invalid(Some(name), format!("a number from 1 to {most} expected")))
    }

    /// Records a change, makes it, and records if it was refused. What does not fit was refused before.
    ///
    /// # Errors
    /// Those of the change, and [`Refusal::Failed`] if it cannot be recorded: then it is not made.
    pub(crate) async fn change<T>(
        &self,
        action: &'static str,
        target: Option<&str>,
        request: Value,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let change = Change { action, target: target.map(str::to_owned), request };
        let (audit, who, now) = (self.shared.audit.clone(), self.who.clone(), self.now());
        let entry = blocking(move || audit.append(&who, now, &change)).await?;
        self.shared.feed.push(&changed(&entry));
        let done = work.await;
        if let Err(refusal) = &done {
            let (audit, now, reason) = (self.shared.audit.clone(), self.now(), refusal.detail());
            let of = entry["n"].as_u64().unwrap_or_default();
            match blocking(move || audit.refused(of, now, &reason)).await {
                Ok(entry) => self.shared.feed.push(&changed(&entry)),
                Err(error) => {
                    tracing::error!(error = error.detail(), of, "the audit log lacks that a change was refused")
                }
            }
        }
        done
    }
}

fn changed(entry: &Value) -> Value {
    json!({ "event": "changed", "change": entry })
}

/// Runs what reads or writes a file.
///
/// # Errors
/// [`Refusal::Failed`].
pub(crate) async fn blocking<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Refusal> {
    web::block(work).await.map_err(failed)?.map_err(failed)
}
