//! What the host decides: async traits that the actors ask.
//!
//! A policy may take its time, it holds back nobody but the cohort that asked; past the phase's deadline its answer does
//! not count any more. The protocol's own checks stand whatever a policy says.

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

/// Why a host could not do what its policy was asked for.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not now; ask again.
    #[error(transparent)]
    Retry(#[from] Retry),
    /// Never.
    #[error(transparent)]
    Fatal(#[from] Fatal),
}

/// A formed or forming cohort, as a service's policy sees it.
#[derive(Clone, Debug)]
pub struct CohortView {
    /// The cohort.
    pub cohort_id: CohortId,
    /// Its conditions.
    pub conditions: Conditions,
    /// How many members were admitted so far.
    pub admitted: usize,
}

/// What a beacon transaction must do.
#[derive(Clone, Debug)]
pub struct TransactionRequest {
    /// The cohort.
    pub cohort_id: CohortId,
    /// Whose coin input 0 spends.
    pub output: BeaconOutput,
    /// What the last output, the only `OP_RETURN`, carries.
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

/// Somebody who opts in, as it is known before its opt-in is looked at any further.
#[derive(Clone, Debug)]
pub struct Applicant {
    /// The DID, which the transport has authenticated.
    pub did: Did,
    /// Where it is, where the transport knows that.
    pub address: Option<NetworkAddress>,
    /// By which invite it says that it comes.
    pub invite: Option<InviteProof>,
}

/// The operator of an Aggregation Service.
#[async_trait]
pub trait ServicePolicy: Send + Sync {
    /// Whether to look at an opt-in at all; `Err` refuses it, with the reason, and nothing is journaled for it. Must answer at
    /// once: it is the cheap check, made for each opt-in of whoever is not a candidate yet. Looks at everybody by default.
    fn screen(&self, cohort_id: &CohortId, applicant: &Applicant) -> Result<(), String> {
        let _ = (cohort_id, applicant);
        Ok(())
    }

    /// Whether to admit a candidate; `Err` refuses, with the reason. Admits everybody by default.
    async fn admit(&self, cohort: &CohortView, candidate: &Member) -> Result<(), String> {
        let _ = (cohort, candidate);
        Ok(())
    }

    /// Whether to form the cohort with the members that it has, asked after each admission from the fewest on. Forms it at
    /// once by default; at the most members, or at the phase's deadline, it is formed without asking.
    async fn finalize(&self, cohort: &CohortView) -> bool {
        let _ = cohort;
        true
    }

    /// The beacon transaction, see [`build_beacon_transaction`](btcr2_aggregation_protocol::output::build_beacon_transaction).
    async fn beacon_transaction(&self, request: &TransactionRequest) -> Result<FundedTransaction, PolicyError>;
}

/// What a member may put into its update.
#[derive(Clone, Debug)]
pub struct UpdateRequest {
    /// The cohort's advert.
    pub advert: Arc<Advert>,
    /// The cohort's output; its address can be announced as a beacon.
    pub output: BeaconOutput,
}

/// Aggregated data to validate.
#[derive(Clone, Debug)]
pub struct Validation {
    /// The cohort's advert.
    pub advert: Arc<Advert>,
    /// The data.
    pub data: Arc<BeaconData>,
    /// The signal recomputed from the data, or why the data is wrong.
    pub verdict: Result<SignalBytes, String>,
}

/// A transaction to sign; it has been checked.
#[derive(Clone, Debug)]
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
    /// Whether to think about a cohort at all, decided at once from its advert. What is passed over here takes no session and leaves
    /// nothing behind, however many adverts there are: on a relay anybody can advertise. Thinks about all by default.
    fn considers(&self, advert: &Advert) -> bool {
        let _ = advert;
        true
    }

    /// Whether to join a cohort. Joins none by default: membership lets the service hold up this DID's updates, and the
    /// terms say who can spend from its beacon.
    async fn should_join(&self, advert: &Advert) -> bool {
        let _ = advert;
        false
    }

    /// The invite to opt in with, asked for once: what a service that admits nobody without one has given us. None by default.
    fn invite(&self) -> Option<InviteToken> {
        None
    }

    /// Whether to join the cohort that takes the place of one that we were in, on the same terms. Does by default.
    async fn should_rejoin(&self, advert: &Advert) -> bool {
        let _ = advert;
        true
    }

    /// The signed update to announce, with the document that it starts from where that is not the initial one; or `None` to
    /// decline. An update that breaks a rule of the method is not submitted: the member declines, and
    /// [`UpdateRefused`](crate::notice::ParticipantNotice::UpdateRefused) says why.
    async fn provide_update(&self, request: &UpdateRequest) -> Option<Submission>;

    /// Whether the aggregated data is right. Approves exactly what checks out by default; approving what does not is
    /// overruled.
    async fn validate(&self, validation: &Validation) -> bool {
        validation.verdict.is_ok()
    }

    /// Whether to sign the transaction. Signs by default: it is the announcement that this member approved.
    async fn approve_signing(&self, request: &SigningRequest) -> bool {
        let _ = request;
        true
    }
}
