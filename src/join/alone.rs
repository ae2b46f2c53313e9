//! When no cohort announces the member's update: writes the member's own announcement for its controller to send.

use std::{path::PathBuf, sync::Arc};

use ::bitcoin::FeeRate;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::json;

use super::{ChainQuestions, JoinConfig, MemberPolicy};
use crate::{
    actors::state::vault::Vault,
    bitcoin::chain::Chain,
    controller::{Current, current::current},
    error::ProgramError,
    events::Printer,
    protocol::{
        output::{Change, Coin, InitialBeacon, InitialBeaconKind, SingletonAnnouncement},
        update::SignedUpdate,
    },
    resolve::{Given, Sources},
    singleton::{
        self, FallbackError, Prepared,
        choice::Wanted,
        order::{self, Made, Order, USUAL_RATE},
        places::places,
        standing::{NotNext, Standing, standing},
    },
    storage::Storage,
    vault::VaultContents,
};

/// The confirmations with which a signal counts for resolvers, unless they are asked for another number (rule R-2).
const MIN_CONF: u32 = 6;

/// What to do when no cohort announces the update.
#[derive(Clone, Debug)]
pub struct SingletonFallback {
    /// Where to write the announcement.
    pub directory: PathBuf,
    /// The coin that it spends, and the kind of the initial beacon that holds it. Without a coin, the coins of the current
    /// document's Singleton beacons are spent, where there is a chain to find them; else the files explain how to continue.
    pub coin: Option<(InitialBeaconKind, Coin)>,
    /// Its fee rate; `None` for the chain's estimate, or what is usual.
    pub fee_rate: Option<FeeRate>,
}

/// The chain, and the document that it leads to.
struct Online {
    chain: Arc<dyn Chain>,
    given: Given,
    current: Current,
}

/// Writes the member's own announcement of its update, if configured, and if the update does not depend on a cohort.
pub(super) async fn fall_back(
    config: &JoinConfig,
    policy: &MemberPolicy,
    storage: &Storage,
    printer: &Printer,
) -> Result<(), ProgramError> {
    let Some(fallback) = &config.singleton_fallback else { return Ok(()) };
    let Some((update, document)) = policy.alone().await? else {
        printer.warn("nothing to announce alone: only an update of --update does not depend on a cohort");
        return Ok(());
    };
    let did = config.identity.did();
    let online = match &config.chain {
        Some(questions) => match by_chain(config, questions, storage, &update, printer).await? {
            Some(online) => Some(online),
            None => return Ok(()),
        },
        None => None,
    };
    let document = online.as_ref().map_or(&document, |online| &online.current.document);
    let places = places(document, did, Some(&config.keys));
    if places.is_empty() {
        printer.warn(
            "nothing is written: the document that the update starts from has no Singleton beacon that could announce it",
        );
        return Ok(());
    }
    let prepared = match (&fallback.coin, &online) {
        (Some((kind, coin)), _) => {
            let beacon = InitialBeacon::of(did, *kind).ok_or_else(|| FallbackError::External(did.clone()))?;
            if !places.iter().any(|place| place.address == *beacon.address()) {
                printer.warn(&format!(
                    "nothing is written: the coin of --singleton-coin is at {}, which is not a Singleton beacon of the document that the \
                     update starts from: resolvers would not find it",
                    beacon.address()
                ));
                return Ok(());
            }
            let rate = fallback.fee_rate.unwrap_or(USUAL_RATE);
            let announcement = SingletonAnnouncement::new(beacon, &[*coin], &update, rate, &Change::Beacon)
                .map_err(FallbackError::from)?;
            let key = config.identity.secret_key();
            let signed = Some(singleton::sign(&announcement, key, &mut ChaCha20Rng::from_os_rng())?);
            Some(Prepared { announcement, signed })
        }
        (None, Some(online)) => match made(config, fallback, online, &update, printer).await {
            Some(prepared) => prepared,
            None => return Ok(()),
        },
        (None, None) => None,
    };
    // Before the announcement is written: it may be sent from then on.
    storage.prepare(&update).await?;
    policy.is_prepared(&update);
    let directory = &fallback.directory;
    let written = singleton::write_fallback(directory, did, &update, &places, prepared.as_ref());
    let files = written.map_err(|error| ProgramError::Io { what: directory.display().to_string(), error })?;
    printer.announced_alone(&files);
    Ok(())
}

/// The current document, if it is known and the update is the next one; otherwise there is nothing to announce, and the
/// reason is a warning.
async fn by_chain(
    config: &JoinConfig,
    questions: &ChainQuestions,
    storage: &Storage,
    update: &SignedUpdate,
    printer: &Printer,
) -> Result<Option<Online>, ProgramError> {
    let did = config.identity.did();
    let nothing = |reason: String| {
        printer.warn(&format!("nothing is written: {reason}"));
        Ok(None)
    };
    let given = given(config, storage, update).await?;
    let source = &questions.source;
    let chain = match source.connect(did.network()).await {
        Ok(chain) => chain,
        Err(error) => return nothing(format!("{source}: {error}")),
    };
    let (stores, chain_name) = (config.publication.stores.clone(), source.to_string());
    let sources = Sources { chain: Arc::clone(&chain), chain_name, stores, max_addresses: usize::MAX };
    let current = match current(&sources, did, &given, MIN_CONF).await {
        Ok(current) => current,
        Err(error) => return nothing(format!("the current document and its beacons are not known: {error}")),
    };
    match standing(&current, update, MIN_CONF) {
        Ok(Standing::Next) => {}
        Err(NotNext::Unsettled(reason)) if config.allow_risky => printer.warn(&reason),
        Ok(Standing::Announced { signal, .. }) => {
            return nothing(format!("the update is announced already, by transaction {}", signal.txid));
        }
        Err(error) => return nothing(format!("resolvers would not apply the update: {error}")),
    }
    Ok(Some(Online { chain, given, current }))
}

/// The announcement from a coin of a Singleton beacon of the current document. What the chain does not allow is a warning: the
/// files explain how to continue. The outer `None`: there is nothing to announce.
async fn made(
    config: &JoinConfig,
    fallback: &SingletonFallback,
    Online { chain, given, current }: &Online,
    update: &SignedUpdate,
    printer: &Printer,
) -> Option<Option<Prepared>> {
    let order = Order {
        did: config.identity.did(),
        document: &current.document,
        update,
        keys: Some(&config.keys),
        wanted: Wanted::default(),
        rate: fallback.fee_rate,
        change: &Change::Beacon,
        sign: true,
        given,
        min_conf: MIN_CONF,
        allow_risky: false,
    };
    match order::make(&**chain, &order).await {
        Ok(Made::New(new)) => {
            new.notes.iter().for_each(|note| printer.warn(note));
            Some(Some(new.prepared))
        }
        Ok(Made::Waiting(waiting)) => {
            let txid = waiting.unconfirmed.txid;
            printer.warn(&format!("nothing is written: the update waits in the mempool, as {txid}"));
            None
        }
        Err(error) => {
            printer.warn(&error.to_string());
            Some(None)
        }
    }
}

/// What the member has stored of its DID.
async fn given(config: &JoinConfig, storage: &Storage, update: &SignedUpdate) -> Result<Given, ProgramError> {
    let did = config.identity.did();
    let mut contents = VaultContents { prepared: storage.prepared().await?, ..VaultContents::default() };
    if let Some(vault) = storage.vault() {
        let failed = |error: crate::actors::state::vault::VaultError| ProgramError::State(error.to_string());
        for key in vault.list(did).await.map_err(failed)? {
            contents.entries.extend(vault.get(&key).await.map_err(failed)?);
        }
    }
    let mut given = Given::default();
    let mut more = json!({ "updates": [update.value()] });
    if let Some(genesis) = config.identity.genesis_document() {
        more["genesisDocument"] = (**genesis).clone();
    }
    let failed = |error: crate::protocol::resolution::SidecarError| ProgramError::Internal(error.to_string());
    given.add(more, "this program").map_err(failed)?;
    given.add_vault(&contents, did, "the state directory").map_err(failed)?;
    Ok(given)
}
