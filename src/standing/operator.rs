//! The operator of standing cohorts: checks control of DIDs and their updates, names prices, and publishes announcement maps before they are
//! signed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ::bitcoin::{FeeRate, TxOut};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::{registered::Registered, resolver::Resolver};
use crate::{
    actors::{
        policy::PolicyError,
        standing::{
            boards::BoardStore,
            policy::{Price, PriceRequest, SeatApplicant, StandingServicePolicy, UpdatesToCheck},
        },
        state::Table,
    },
    bitcoin::chain::{Chain, ConfirmationTarget},
    cas::{Content, Publication},
    controller::{Current, CurrentError},
    protocol::{
        beacon::did_index,
        cohort::standing::{BoardContent, RowAction, message::AskedRow},
        did::Did,
        document,
        error::Retry,
        hash::DidIndex,
        id::CohortId,
        key::PublicKey,
        update::{SignedUpdate, refuse_expiring},
    },
    resolve::Given,
};

/// How many cohorts may have outputs of their own.
const MOST_OUTPUTS: usize = 10_000;

/// How many registered DIDs are in memory at once.
const MOST_KNOWN: usize = 100_000;

/// Whom the operator gives seats.
#[async_trait]
pub trait SeatAdmission: Send + Sync {
    /// Whether an applicant could be admitted; answered at once, and nothing is used up.
    fn screen(&self, cohort_id: &CohortId, applicant: &SeatApplicant) -> Result<(), String>;

    /// Whether it is admitted. An invite is counted.
    async fn admit(&self, cohort_id: &CohortId, applicant: &SeatApplicant) -> Result<(), String>;

    /// It has no seat after all: its invite counts no more.
    async fn release(&self, applicant: &SeatApplicant);
}

/// What an announcement may cost.
#[derive(Clone, Debug)]
pub struct Fees {
    /// The lowest rate.
    pub floor: FeeRate,
    /// The highest rate.
    pub ceiling: FeeRate,
    /// The rate, whatever the chain estimates.
    pub fixed: Option<FeeRate>,
    /// The blocks within which an announcement is to be confirmed.
    pub target: u16,
}

/// The operator of standing cohorts.
pub struct StandingOperator {
    chain: Option<Arc<dyn Chain>>,
    resolver: Option<Resolver>,
    fees: Fees,
    output: Option<TxOut>,
    /// Those of single cohorts, and where they are stored.
    outputs: Mutex<BTreeMap<CohortId, Option<TxOut>>>,
    stored_outputs: Option<Table>,
    publication: Publication,
    boards: Arc<dyn BoardStore>,
    admission: Option<Arc<dyn SeatAdmission>>,
    /// Where registered DIDs are stored, if anywhere.
    table: Option<Table>,
    known: Mutex<BTreeMap<DidIndex, Arc<Registered>>>,
    clock: crate::actors::runtime::Clock,
}

impl StandingOperator {
    /// An operator without a chain, whose DIDs have never been updated.
    pub fn new(fees: Fees, publication: Publication, boards: Arc<dyn BoardStore>, table: Option<Table>) -> Self {
        Self {
            chain: None,
            resolver: None,
            fees,
            output: None,
            outputs: Mutex::default(),
            stored_outputs: None,
            publication,
            boards,
            admission: None,
            table,
            known: Mutex::default(),
            clock: crate::actors::runtime::Clock::system(),
        }
    }

    /// With a chain, from which fees are estimated and DIDs are resolved.
    #[must_use]
    pub fn with_chain(mut self, chain: Arc<dyn Chain>, resolver: Resolver) -> Self {
        (self.chain, self.resolver) = (Some(chain), Some(resolver));
        self
    }

    /// With an output of the operator in every announcement, which can pay for bumps.
    #[must_use]
    pub fn with_output(mut self, output: Option<TxOut>) -> Self {
        self.output = output;
        self
    }

    /// With outputs of single cohorts, which are stored in a table.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn with_outputs(mut self, table: Table) -> Result<Self, String> {
        let page = table.scan(Vec::new(), None, MOST_OUTPUTS).await.map_err(|error| error.to_string())?;
        let read = |(key, value): &(Vec<u8>, Vec<u8>)| {
            let cohort_id = CohortId::parse(&String::from_utf8_lossy(key)).ok()?;
            Some((cohort_id, serde_json::from_slice(value).ok()?))
        };
        self.outputs = Mutex::new(page.entries.iter().filter_map(read).collect());
        self.stored_outputs = Some(table);
        Ok(self)
    }

    /// Sets the output of one cohort, in place of the one of all; durable when this returns.
    ///
    /// # Errors
    /// It cannot be stored.
    pub async fn set_output(&self, cohort_id: &CohortId, output: Option<TxOut>) -> Result<(), String> {
        if let Some(table) = &self.stored_outputs {
            let value = serde_json::to_vec(&output).map_err(|error| error.to_string())?;
            table.put(cohort_id.as_str(), value).await.map_err(|error| error.to_string())?;
        }
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner).insert(cohort_id.clone(), output);
        Ok(())
    }

    fn output_of(&self, cohort_id: &CohortId) -> Option<TxOut> {
        let outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        outputs.get(cohort_id).cloned().unwrap_or_else(|| self.output.clone())
    }

    /// Gives seats by these rules; without them to every participant.
    #[must_use]
    pub fn with_admission(mut self, admission: Arc<dyn SeatAdmission>) -> Self {
        self.admission = Some(admission);
        self
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DidIndex, Arc<Registered>>> {
        // Each change is one call.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn registered(&self, index: &DidIndex) -> Result<Option<Arc<Registered>>, String> {
        if let Some(known) = self.lock().get(index) {
            return Ok(Some(Arc::clone(known)));
        }
        let Some(table) = &self.table else { return Ok(None) };
        let stored = table.get(*index.as_bytes()).await.map_err(|error| error.to_string())?;
        let stored = stored.map(|bytes| serde_json::from_slice(&bytes)).transpose();
        let stored: Option<Registered> =
            stored.map_err(|error| format!("what is stored of {index} cannot be read: {error}"))?;
        Ok(stored.map(Arc::new))
    }

    async fn store(&self, index: DidIndex, registered: Registered) -> Result<(), String> {
        if let Some(table) = &self.table {
            let bytes = serde_json::to_vec(&registered).map_err(|error| error.to_string())?;
            table.put(*index.as_bytes(), bytes).await.map_err(|error| error.to_string())?;
        }
        let mut known = self.lock();
        if known.len() >= MOST_KNOWN && !known.contains_key(&index) {
            if self.table.is_none() {
                return Err(format!("{MOST_KNOWN} DIDs are registered here, and no more fit"));
            }
            // Any other one: it is read again when it is needed.
            known.pop_first();
        }
        known.insert(index, Arc::new(registered));
        Ok(())
    }

    /// The document of a DID, and its version: resolved, or without a chain the initial one.
    async fn document(&self, did: &Did, row: &AskedRow) -> Result<(Value, u64), String> {
        let Some(resolver) = &self.resolver else {
            let initial = document::initial_document(did, row.genesis_document.as_ref());
            return Ok((initial.map_err(|error| error.to_string())?, 1));
        };
        let mut given = Given::default();
        if let Some(genesis) = &row.genesis_document {
            let genesis = json!({ "genesisDocument": genesis });
            given.add(genesis, "the registration").map_err(|error| error.to_string())?;
        }
        if let Some(sidecar) = &row.sidecar {
            given.add(sidecar.clone(), "the registration").map_err(|error| error.to_string())?;
        }
        match resolver.current(did, given).await {
            Ok(Current { document, version, .. }) => Ok((document, version)),
            Err(CurrentError::Unreadable(error)) => {
                Err(format!("the chain cannot be read now, try again: {error}"))
            }
            Err(error) => Err(format!("the DID does not resolve here: {error}")),
        }
    }

    /// Checks one update on the documents that are known of its DID.
    async fn check(&self, index: &DidIndex, update: &Value) -> Result<(), String> {
        let known = self.registered(index).await?;
        let known = known.ok_or_else(|| format!("{index} was not registered here with its DID"))?;
        let signed = SignedUpdate::from_value(update.clone()).map_err(|error| error.to_string())?;
        refuse_expiring(&signed, self.clock.now()).map_err(|error| error.to_string())?;
        match known.after(&signed)? {
            Some(changed) => self.store(*index, changed).await,
            None => Ok(()),
        }
    }

    /// Puts the announcement map of a number into the content stores.
    async fn publish(&self, cohort_id: &CohortId, number: u64) -> Result<(), String> {
        if self.publication.stores.is_empty() {
            return Ok(());
        }
        let listed =
            self.boards.list(cohort_id, number.saturating_sub(1), 16).await.map_err(|error| error.to_string())?;
        for (_, hash) in listed.into_iter().filter(|(of, _)| *of == number) {
            let Some(bytes) = self.boards.get(&hash).await.map_err(|error| error.to_string())? else { continue };
            let content: BoardContent = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
            let map = content.announcement();
            if map.is_empty() {
                continue;
            }
            let content = Content::try_from(&map).map_err(|error| error.to_string())?;
            self.publication.publish(&[content]).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

#[async_trait]
impl StandingServicePolicy for StandingOperator {
    async fn check_control(&self, _: &CohortId, row: &AskedRow, digest: &[u8; 32]) -> Result<(), String> {
        if row.action == RowAction::Unregister {
            // The seat's own signature is enough to give it up.
            return Ok(());
        }
        let did = row.did.as_deref().ok_or("the DID is missing")?;
        let did = Did::parse(did).map_err(|error| error.to_string())?;
        if did_index(&did) != row.did_index {
            return Err("the index is not that of the DID".to_owned());
        }
        let proof = row.proof.as_ref().ok_or("the proof of control is missing")?;
        let (document, version) = self.document(&did, row).await?;
        let (genesis, sidecar) = (row.genesis_document.clone(), row.sidecar.clone());
        let key =
            document::invocation_key(&document, &proof.verification_method).map_err(|error| error.to_string())?;
        if !key.x_only().verify(digest, &proof.signature) {
            return Err(format!("{} has not signed the row", proof.verification_method));
        }
        let registered = match self.registered(&row.did_index).await? {
            // Registered again, or sent again because the answer was lost: what it may have announced since is still to come.
            Some(known) => known.resolved(document, version),
            None => Registered::new(did, document, version),
        };
        let registered = registered.with_sidecar(genesis, sidecar);
        self.store(row.did_index, registered).await
    }

    fn screen(&self, cohort_id: &CohortId, applicant: &SeatApplicant) -> Result<(), String> {
        self.admission.as_ref().map_or(Ok(()), |admission| admission.screen(cohort_id, applicant))
    }

    async fn admit(&self, cohort_id: &CohortId, applicant: &SeatApplicant) -> Result<(), String> {
        match &self.admission {
            Some(admission) => admission.admit(cohort_id, applicant).await,
            None => Ok(()),
        }
    }

    async fn release(&self, _: &CohortId, applicant: &SeatApplicant) {
        if let Some(admission) = &self.admission {
            admission.release(applicant).await;
        }
    }

    async fn control_keys(&self, _: &CohortId, did: &Did) -> Result<Vec<PublicKey>, String> {
        let registered = self.registered(&did_index(did)).await?;
        let known = registered.as_deref();
        let resolved = match &self.resolver {
            Some(resolver) => {
                let mut given = Given::default();
                for data in known.into_iter().flat_map(Registered::sidecars) {
                    given.add(data, "the registration").map_err(|error| error.to_string())?;
                }
                resolver.current(did, given).await.ok().map(|current| current.document)
            }
            None => None,
        };
        // Without the data of all its announcements no resolver finds its current document: the client may ask for them to resolve it.
        let document = resolved.or_else(|| known.map(|known| known.settled().clone()));
        let document = match document {
            Some(document) => document,
            None => document::initial_document(did, None).map_err(|error| error.to_string())?,
        };
        Ok(document::invocation_methods(&document).map(|(_, key)| key).collect())
    }

    async fn check_updates(&self, updates: &UpdatesToCheck) -> Result<(), String> {
        for (index, update) in &updates.updates {
            self.check(index, update).await?;
        }
        Ok(())
    }

    async fn price(&self, request: &PriceRequest) -> Result<Price, PolicyError> {
        if let Err(problem) = self.publish(&request.cohort_id, request.number).await {
            if self.publication.hold_on_failure {
                return Err(Retry(format!("the announcement map could not be published: {problem}")).into());
            }
            tracing::warn!(number = request.number, problem, "an announcement map could not be published");
        }
        let Fees { floor, ceiling, fixed, target } = self.fees.clone();
        let estimate = match (fixed, &self.chain) {
            (Some(rate), _) => Some(rate),
            (None, Some(chain)) => {
                let target = ConfirmationTarget::new(target);
                chain.fee_estimate(target).await.map_err(|error| Retry(error.to_string()))?
            }
            (None, None) => None,
        };
        let rate = estimate.unwrap_or(floor).clamp(floor, ceiling);
        Ok(Price { rate, operator: self.output_of(&request.cohort_id) })
    }
}
