//! The decisions of the host: async traits that the actors ask.
//!
//! A policy may take its time: it delays only the cohort that asked, and an answer after the phase's deadline is
//! ignored. The protocol's own checks apply whatever a policy decides.

use std::sync::Arc;

use async_trait::async_trait;
use bitcoin::{Amount, Transaction};
use btcr2_aggregation_protocol::{
    beacon::BeaconData,
    cohort::{Member, conditions::Conditions, event::SpendPath, participant::Advert, service::phase::Aggregated},
    did::Did,
    error::{Fatal, Retry},
    hash::SignalBytes,
    id::CohortId,
    invite::{InviteProof, InviteToken},
    output::BeaconOutput,
    update::Submission,
};

use crate::subject::NetworkAddress;

/// Why a host could not provide what its policy was asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Not now; ask again later.
    #[error(transparent)]
    Retry(#[from] Retry),
    /// Permanently.
    #[error(transparent)]
    Fatal(#[from] Fatal),
}

/// A formed or forming cohort, as a service's policy sees it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CohortView {
    /// The cohort.
    pub cohort_id: CohortId,
    /// Its conditions.
    pub conditions: Conditions,
    /// The number of members admitted so far.
    pub admitted: usize,
}

/// What a beacon transaction must do.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TransactionRequest {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The output whose coin input 0 spends.
    pub output: BeaconOutput,
    /// The data of the last output, the only `OP_RETURN`.
    pub signal: SignalBytes,
    /// What the signal announces, approved by every member.
    pub aggregated: Arc<Aggregated>,
}

/// An unsigned beacon transaction and the value of the coin that it spends.
#[derive(Clone, Debug)]
pub struct FundedTransaction {
    /// The transaction.
    pub transaction: Transaction,
    /// The value of the output that input 0 spends.
    pub value: Amount,
}

/// A participant that opts in, as known before its opt-in is checked any further.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Applicant {
    /// The DID, which the transport has authenticated.
    pub did: Did,
    /// Its network address, if the transport knows it.
    pub address: Option<NetworkAddress>,
    /// The invite that it presents.
    pub invite: Option<InviteProof>,
}

/// The operator of an Aggregation Service.
#[async_trait]
pub trait ServicePolicy: Send + Sync {
    /// Whether to consider an opt-in at all; `Err` refuses it, with the reason, and nothing is journaled. Must answer
    /// at once: this is the cheap check, made for each opt-in of a participant that is not a candidate yet. Considers
    /// every opt-in by default.
    fn screen(&self, cohort_id: &CohortId, applicant: &Applicant) -> Result<(), String> {
        let _ = (cohort_id, applicant);
        Ok(())
    }

    /// Whether to admit a candidate; `Err` refuses, with the reason. Admits every candidate by default.
    async fn admit(&self, cohort: &CohortView, candidate: &Member) -> Result<(), String> {
        let _ = (cohort, candidate);
        Ok(())
    }

    /// Whether to form the cohort with its current members. Asked after each admission once the minimum is reached.
    /// Forms it at once by default; at the maximum, or at the phase's deadline, the cohort forms without asking.
    async fn finalize(&self, cohort: &CohortView) -> bool {
        let _ = cohort;
        true
    }

    /// The beacon transaction, see [`build_beacon_transaction`](btcr2_aggregation_protocol::output::build_beacon_transaction).
    async fn beacon_transaction(&self, request: &TransactionRequest) -> Result<FundedTransaction, PolicyError>;
}

/// A request for the member's update.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UpdateRequest {
    /// The cohort's advert.
    pub advert: Arc<Advert>,
    /// The cohort's output; its address can be announced as a beacon.
    pub output: BeaconOutput,
}

/// Aggregated data to validate.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Validation {
    /// The cohort's advert.
    pub advert: Arc<Advert>,
    /// The data.
    pub data: Arc<BeaconData>,
    /// The signal recomputed from the data, or why the data is wrong.
    pub verdict: Result<SignalBytes, String>,
}

/// A transaction to sign, already checked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SigningRequest {
    /// The cohort's advert.
    pub advert: Arc<Advert>,
    /// The unsigned transaction.
    pub transaction: Transaction,
    /// The value of the coin that it spends.
    pub value: Amount,
    /// The path that the signature is for.
    pub path: SpendPath,
}

/// A DID controller.
#[async_trait]
pub trait ParticipantPolicy: Send + Sync {
    /// Whether to consider a cohort at all, decided at once from its advert. An ignored advert uses no session and
    /// leaves nothing behind, however many there are: any peer can advertise on a relay. Considers all by default.
    fn considers(&self, advert: &Advert) -> bool {
        let _ = advert;
        true
    }

    /// Whether to join a cohort. Joins none by default: membership lets the service delay this DID's updates, and the
    /// terms define who can spend from its beacon.
    async fn should_join(&self, advert: &Advert) -> bool {
        let _ = advert;
        false
    }

    /// The invite to opt in with, which the operator of an invite-only service has given us; asked for once. None by
    /// default.
    fn invite(&self) -> Option<InviteToken> {
        None
    }

    /// Whether to join the cohort that replaces one that we were in, on the same terms. Joins it by default.
    async fn should_rejoin(&self, advert: &Advert) -> bool {
        let _ = advert;
        true
    }

    /// The signed update to announce, with the document on which it is based if that is not the initial one; or `None`
    /// to decline. An update that breaks a rule of the method is not submitted: the member declines, and
    /// [`UpdateRefused`](crate::notice::ParticipantNotice::UpdateRefused) has the reason.
    async fn provide_update(&self, request: &UpdateRequest) -> Option<Submission>;

    /// Whether the aggregated data is correct. Approves exactly the data that passes the checks by default; an approval
    /// of other data is overruled.
    async fn validate(&self, validation: &Validation) -> bool {
        validation.verdict.is_ok()
    }

    /// Whether to sign the transaction. Signs by default: it is the announcement that this member approved.
    async fn approve_signing(&self, request: &SigningRequest) -> bool {
        let _ = request;
        true
    }
}
