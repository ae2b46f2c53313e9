//! When no cohort announces the member's update: writes the member's own announcement for its controller to send.

use std::path::PathBuf;

use ::bitcoin::FeeRate;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::json;

use super::{ChainQuestions, JoinConfig, MemberPolicy};
use crate::{
    actors::state::vault::Vault,
    controller::{Keys, current::current},
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
        places::{Place, initial_places, places},
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

/// The announcement, and the beacons that can make it.
type Alone = (Vec<Place>, Option<Prepared>);

/// Writes the member's own announcement of its update, if configured, and if the update does not depend on a cohort.
pub(super) async fn fall_back(
    config: &JoinConfig,
    policy: &MemberPolicy,
    storage: &Storage,
    printer: &Printer,
) -> Result<(), ProgramError> {
    let Some(fallback) = &config.singleton_fallback else { return Ok(()) };
    let Some(update) = policy.alone().await? else {
        printer.warn("nothing to announce alone: only an update of --update does not depend on a cohort");
        return Ok(());
    };
    let did = config.identity.did();
    let (places, prepared) = match (&fallback.coin, &config.chain) {
        (Some((kind, coin)), _) => {
            let beacon = InitialBeacon::of(did, *kind).ok_or_else(|| FallbackError::External(did.clone()))?;
            let announcement =
                SingletonAnnouncement::new(beacon, &[*coin], &update, fallback.fee_rate.unwrap_or(USUAL_RATE), &Change::Beacon)
                    .map_err(FallbackError::from)?;
            let key = config.identity.secret_key();
            let signed = Some(singleton::sign(&announcement, key, &mut ChaCha20Rng::from_os_rng())?);
            (initial_places(did), Some(Prepared { announcement, signed }))
        }
        (None, Some(questions)) => match by_chain(config, questions, fallback, storage, &update, printer).await? {
            Some(alone) => alone,
            None => return Ok(()),
        },
        (None, None) => (initial_places(did), None),
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

/// The announcement from a Singleton beacon of the current document, which the chain leads to; `None` where there is nothing to
/// announce. What the chain does not allow is a warning: the files explain how to continue.
async fn by_chain(
    config: &JoinConfig,
    questions: &ChainQuestions,
    fallback: &SingletonFallback,
    storage: &Storage,
    update: &SignedUpdate,
    printer: &Printer,
) -> Result<Option<Alone>, ProgramError> {
    let did = config.identity.did();
    let given = given(config, storage, update).await?;
    let source = &questions.source;
    let chain = match source.connect(did.network()).await {
        Ok(chain) => chain,
        Err(error) => {
            printer.warn(&format!("no coin is looked for: {source}: {error}"));
            return Ok(Some((initial_places(did), None)));
        }
    };
    let chain_name = source.to_string();
    let sources =
        Sources { chain, chain_name, stores: config.publication.stores.clone(), max_addresses: usize::MAX };
    let current = match current(&sources, did, &given, MIN_CONF).await {
        Ok(current) => current,
        Err(error) => {
            printer.warn(&format!("the current document and its beacons are not known: {error}"));
            return Ok(Some((initial_places(did), None)));
        }
    };
    match standing(&current, update, MIN_CONF) {
        Ok(Standing::Next) => {}
        Err(NotNext::Unsettled(reason)) if config.allow_risky => printer.warn(&reason),
        Ok(Standing::Announced { signal, .. }) => {
            printer.warn(&format!(
                "nothing is written: the update is announced already, by transaction {}",
                signal.txid
            ));
            return Ok(None);
        }
        Err(error) => {
            printer.warn(&format!("nothing is written: resolvers would not apply the update: {error}"));
            return Ok(None);
        }
    }
    let keys = Keys::of(&config.identity);
    let listed = places(&current.document, did, Some(&keys));
    let order = Order {
        did,
        document: &current.document,
        update,
        keys: Some(&keys),
        wanted: Wanted::default(),
        rate: fallback.fee_rate,
        change: &Change::Beacon,
        sign: true,
        given: &given,
        min_conf: MIN_CONF,
        allow_risky: false,
    };
    match order::make(&*sources.chain, &order).await {
        Ok(Made::New(new)) => {
            new.notes.iter().for_each(|note| printer.warn(note));
            Ok(Some((listed, Some(new.prepared))))
        }
        Ok(Made::Waiting(waiting)) => {
            let txid = waiting.unconfirmed.txid;
            printer.warn(&format!("nothing is written: the update waits in the mempool, as {txid}"));
            Ok(None)
        }
        Err(error) => {
            printer.warn(&error.to_string());
            Ok(Some((listed, None)))
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
