//! An operator with a chain: the policy that provides transactions, and that announces what cohorts have signed. The
//! announcements themselves are actors: [`actors::announcement`](crate::actors::announcement).

use async_trait::async_trait;

use crate::{
    actors::{
        announcement::{Address, AnnouncementError, Announcements, PrepareError},
        notice::ServiceNotice,
        policy::{FundedTransaction, PolicyError, ServicePolicy, TransactionRequest},
    },
    protocol::{
        announcement::Input,
        cohort::service::phase::PhaseKind,
        error::{Fatal, Retry},
        id::CohortId,
        output::BeaconOutput,
    },
};

/// An operator with a chain. Clones share the announcements.
#[derive(Clone)]
pub struct ChainOperator {
    announcements: Announcements,
}

impl ChainOperator {
    /// The operator of `announcements`.
    pub fn new(announcements: Announcements) -> Self {
        Self { announcements }
    }

    /// Its announcements.
    pub fn announcements(&self) -> &Announcements {
        &self.announcements
    }

    /// Follows a notice of the service: starts to watch, announces a signed transaction, ends a failed announcement.
    /// When it returns, the fact is persisted. A repeated notice has no effect.
    ///
    /// # Errors
    /// [`AnnouncementError`].
    pub async fn follow(&self, step: &ServiceNotice) -> Result<(), AnnouncementError> {
        match step {
            ServiceNotice::KeygenComplete { cohort_id, output, .. } => self.watch(cohort_id, output).await,
            ServiceNotice::CohortRecovered { cohort_id, output: Some(output), phase }
                if *phase != PhaseKind::Failed =>
            {
                self.watch(cohort_id, output).await
            }
            ServiceNotice::SigningComplete { cohort_id, result, .. } => {
                let (transaction, value) = (result.signed.transaction.clone(), result.signed.value);
                // Also if the announcement had failed: a signed transaction is worth announcing.
                let signed = Input::Signed { transaction, value };
                self.feed(cohort_id, Some(&result.output), signed).await
            }
            ServiceNotice::CohortFailed { cohort_id, reason, .. } => {
                self.feed(cohort_id, None, Input::CohortFailed { reason: reason.clone() }).await
            }
            _ => Ok(()),
        }
    }

    async fn watch(&self, cohort_id: &CohortId, output: &BeaconOutput) -> Result<(), AnnouncementError> {
        self.announcements.watch(cohort_id, Address::Output(output.clone())).await
    }

    async fn feed(
        &self,
        cohort_id: &CohortId,
        output: Option<&BeaconOutput>,
        input: Input,
    ) -> Result<(), AnnouncementError> {
        // A rejection is logged: the announcement is further than the notice.
        let _ = self.announcements.feed(cohort_id, output, input).await?;
        Ok(())
    }
}

#[async_trait]
impl ServicePolicy for ChainOperator {
    async fn beacon_transaction(&self, request: &TransactionRequest) -> Result<FundedTransaction, PolicyError> {
        let TransactionRequest { cohort_id, output, signal, .. } = request;
        let retry = |problem: &dyn std::fmt::Display| PolicyError::Retry(Retry(problem.to_string()));
        self.watch(cohort_id, output).await.map_err(|error| retry(&error))?;
        match self.announcements.prepare(cohort_id, output, *signal).await {
            Ok(prepared) => Ok(FundedTransaction { transaction: prepared.transaction, value: prepared.coin.value }),
            Err(PrepareError::Never(problem)) => Err(Fatal(problem).into()),
            Err(problem) => Err(retry(&problem)),
        }
    }
}
