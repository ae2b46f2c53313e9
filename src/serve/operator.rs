//! The operator of `serve`: coins from a chain, or made up; announcements are published before they are signed.

use std::{sync::Arc, time::Duration};

use ::bitcoin::FeeRate;
use async_trait::async_trait;

use super::{ServeConfig, admission::AdmissionRules};
use crate::{
    actors::{
        announcement::{AnnouncementSettings, Announcements},
        journal::Journal,
        policy::{Applicant, CohortView, FundedTransaction, PolicyError, ServicePolicy, TransactionRequest},
        runtime::Clock,
        supervision::Vitals,
    },
    bitcoin::{
        announcement::Rules,
        chain::{ChainError, ChainSource, ConfirmationTarget},
        change::ChangeKey,
        fees::FeePolicy,
        offline::OfflineOperator,
        operator::ChainOperator,
    },
    cas::{Content, Publication},
    error::ProgramError,
    events::Printer,
    protocol::{
        beacon::{AggregatedData, BeaconData},
        cohort::Member,
        error::Retry,
        id::CohortId,
        output::Change,
    },
};

/// The source of coins.
#[derive(Clone, Debug)]
pub enum Coins {
    /// Coins are made up, and no transaction is broadcast.
    Offline,
    /// From a chain.
    Chain(Box<ChainConfig>),
}

/// How a chain is used.
#[derive(Clone, Debug)]
pub struct ChainConfig {
    /// The source of the chain.
    pub source: ChainSource,
    /// The poll interval.
    pub poll: Duration,
    /// How long a beacon address is watched for a deposit.
    pub funding_window: Duration,
    /// The confirmations that a deposit needs before members sign a transaction that spends it.
    pub funding_confirmations: u32,
    /// The confirmations after which an announcement is final.
    pub confirmations: u32,
    /// The lowest fee rate.
    pub fee_floor: FeeRate,
    /// The highest fee rate, including bumps.
    pub fee_ceiling: FeeRate,
    /// The first fee rate of an announcement, whatever the chain estimates.
    pub fee_rate: Option<FeeRate>,
    /// The number of blocks within which an announcement is to be confirmed.
    pub fee_target: u16,
    /// How many blocks before a coin can be recovered warnings start.
    pub warn_blocks: u32,
    /// The destination of change. By default the service's own key, so that a stuck transaction can be bumped.
    pub change: Option<Change>,
}

impl ChainConfig {
    /// Defaults: poll every 30 seconds, a day for funding with one confirmation, final at depth 6, 1 to 100 sat/vB,
    /// confirmed within about an hour.
    pub fn new(source: ChainSource) -> Self {
        Self {
            source,
            poll: Duration::from_secs(30),
            funding_window: Duration::from_secs(24 * 3600),
            funding_confirmations: 1,
            confirmations: 6,
            fee_floor: FeeRate::BROADCAST_MIN,
            fee_ceiling: FeeRate::from_sat_per_vb_u32(100),
            fee_rate: None,
            fee_target: 6,
            warn_blocks: 144,
            change: None,
        }
    }

    fn rules(&self, change: Change) -> Result<Rules, ProgramError> {
        let fees = FeePolicy::new(self.fee_floor, self.fee_ceiling, ConfirmationTarget::new(self.fee_target))
            .and_then(|fees| self.fee_rate.map_or(Ok(fees), |rate| fees.starting_at(rate)))
            .map_err(|error| ProgramError::Usage(error.to_string()))?;
        let mut rules = Rules::new(change);
        rules.funding_window = self.funding_window;
        rules.funding_confirmations = self.funding_confirmations;
        rules.confirmations = self.confirmations;
        rules.fees = fees;
        Ok(rules)
    }
}

/// Provides coins as configured.
#[derive(Clone)]
pub(super) enum Operator {
    Offline,
    Chain(ChainOperator),
}

impl Operator {
    /// Connects to the chain, if there is one. Change goes to the service's own key, so that a stuck transaction can be
    /// bumped, unless the operator configured otherwise.
    pub(super) async fn new(
        config: &ServeConfig,
        journal: Arc<dyn Journal>,
        clock: Clock,
        vitals: Vitals,
        printer: &Printer,
    ) -> Result<Self, ProgramError> {
        let Coins::Chain(chain) = &config.coins else { return Ok(Self::Offline) };
        let change_key = ChangeKey::new(config.identity.secret_key());
        let own = Change::To(change_key.script_pubkey().to_owned());
        let mut rules = chain.rules(chain.change.clone().unwrap_or_else(|| own.clone()))?;
        rules.change_is_ours = rules.change == own;
        if !rules.change_is_ours {
            printer.warn(
                "--change: a stuck transaction cannot be bumped, because the service does not have the key of the \
                 change",
            );
        }
        let connected = loop {
            match chain.source.connect(config.network).await {
                Ok(connected) => break connected,
                // The node may still be starting: wait for it.
                Err(error) if error.is_transient() => {
                    printer.warn(&format!("the chain cannot be queried yet: {error}"));
                    tokio::time::sleep(chain.poll.min(Duration::from_secs(5))).await;
                }
                Err(error) => return Err(refuse(&error)),
            }
        };
        if let Ok(minimum) = connected.minimum_fee().await
            && let Err(error) = rules.fees.above(minimum)
        {
            printer.warn(&format!("--fee-ceiling: {error}; until then nothing can be announced"));
        }
        let mut settings = AnnouncementSettings::new(connected, config.network, journal);
        settings.change_key = Some(Arc::new(change_key));
        settings.clock = clock;
        settings.poll = chain.poll;
        settings.vitals = vitals;
        Ok(Self::Chain(ChainOperator::new(Announcements::new(settings, rules))))
    }

    /// The announcements, if there is a chain.
    pub(super) fn announcements(&self) -> Option<&Announcements> {
        match self {
            Self::Offline => None,
            Self::Chain(operator) => Some(operator.announcements()),
        }
    }

    pub(super) async fn stop(&self) {
        if let Self::Chain(operator) = self {
            operator.announcements().stop().await;
        }
    }
}

fn refuse(error: &ChainError) -> ProgramError {
    ProgramError::Usage(format!("--chain: {error}"))
}

/// Publishes the content of an announcement, then provides its transaction. Without a coin the call is repeated, and
/// publishes again: a [`ChainOperator`] answers only after it has waited long.
pub(super) struct Publisher {
    pub(super) operator: Operator,
    pub(super) publication: Publication,
    pub(super) printer: Printer,
    pub(super) admission: AdmissionRules,
}

#[async_trait]
impl ServicePolicy for Publisher {
    fn screen(&self, cohort_id: &CohortId, applicant: &Applicant) -> Result<(), String> {
        self.admission.screen(cohort_id, applicant)
    }

    async fn admit(&self, cohort: &CohortView, candidate: &Member) -> Result<(), String> {
        self.admission.admit(&cohort.cohort_id, candidate).await
    }

    async fn beacon_transaction(&self, request: &TransactionRequest) -> Result<FundedTransaction, PolicyError> {
        let contents = contents(request).map_err(|problem| PolicyError::Retry(Retry(problem)))?;
        match self.publication.publish(&contents).await {
            Ok(report) => {
                for failure in report.failures() {
                    self.printer.warn(&format!("an announcement is not published everywhere: {failure}"));
                }
            }
            // A resolver that does not find the content cannot resolve: announcing later is better.
            Err(incomplete) => return Err(PolicyError::Retry(Retry(incomplete.to_string()))),
        }
        match &self.operator {
            Operator::Offline => OfflineOperator.beacon_transaction(request).await,
            Operator::Chain(operator) => operator.beacon_transaction(request).await,
        }
    }
}

/// The content that resolvers look up by its hash: the announcement map of a CAS beacon. Each member of an SMT beacon
/// has its own proof, and updates are published by their controllers.
fn contents(request: &TransactionRequest) -> Result<Vec<Content>, String> {
    match &request.aggregated.aggregation.data {
        AggregatedData::Shared(data) => match &**data {
            BeaconData::Cas(map) => Content::try_from(map).map(|content| vec![content]).map_err(|e| e.to_string()),
            _ => Ok(Vec::new()),
        },
        AggregatedData::PerMember(_) => Ok(Vec::new()),
    }
}
