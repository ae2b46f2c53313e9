//! The Singleton beacons of a document, the keys that they belong to, and the coins that are on them.

use ::bitcoin::{Address, ScriptBuf, Transaction, Txid};
use serde_json::Value;

use crate::{
    bitcoin::chain::{Activity, Chain, ChainError, Place as ChainPlace, SignalSeen, Signals, signal_of},
    controller::Keys,
    protocol::{
        did::Did,
        document::{InitialBeacon, InitialBeaconKind, invocation_methods},
        hash::SignalBytes,
        key::{PublicKey, SecretKey},
        output::SingletonBeacon,
        resolution::{BeaconKind, beacons},
    },
};

/// A Singleton beacon of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The service's id as the document has it, fit to be shown.
    pub service: String,
    /// Its address.
    pub address: Address,
    /// What a transaction needs to know of it; `None` where no single key spends from the address by itself (P2SH, P2WSH).
    pub beacon: Option<SingletonBeacon>,
}

impl Place {
    /// The initial beacon of a KEY identifier.
    fn initial(did: &Did, kind: InitialBeaconKind) -> Option<Self> {
        let beacon = InitialBeacon::of(did, kind)?;
        let (service, address) = (format!("{did}#{}", kind.service()), beacon.address().clone());
        Some(Self { service, address, beacon: Some(beacon.into()) })
    }

    /// The service's id without the DID.
    pub fn name(&self) -> &str {
        self.service.find('#').map_or(&self.service, |at| &self.service[at..])
    }

    /// Whether a person means this one by `text`: an absolute id, a fragment with or without `#`, or the address.
    pub fn is_meant_by(&self, did: &Did, text: &str) -> bool {
        let absolute = |id: &str| if id.starts_with('#') { format!("{did}{id}") } else { id.to_owned() };
        absolute(text) == absolute(&self.service)
            || self.name().strip_prefix('#') == Some(text)
            || self.address.to_string() == text
    }

    /// The secret key of the address, if it is one of `keys`.
    pub fn secret<'a>(&self, keys: Option<&'a Keys>) -> Option<&'a SecretKey> {
        keys?.key_of(self.beacon.as_ref()?.key()?)
    }
}

/// The public keys of the controller.
fn public_keys(keys: Option<&Keys>) -> Vec<PublicKey> {
    match keys {
        Some(Keys::File(file, _)) => {
            let later = file.later().iter().map(|later| later.key.public_key());
            std::iter::once(file.identity.public_key()).chain(later).collect()
        }
        Some(Keys::One(key, _)) => vec![key.public_key()],
        None => Vec::new(),
    }
}

/// The Singleton beacons of `document`, in its order. Of two services on one address the first counts (rule C8). The key of
/// each is looked for among those of the controller, those that may update the document, and the one that a KEY DID began
/// with.
pub fn places(document: &Value, did: &Did, keys: Option<&Keys>) -> Vec<Place> {
    let mut known = public_keys(keys);
    known.extend(invocation_methods(document).map(|(_, key)| key));
    known.extend(did.key());
    let network = did.network();
    let singletons =
        beacons(document, network).into_iter().flatten().filter(|beacon| beacon.kind == BeaconKind::Singleton);
    let place = |beacon: crate::protocol::resolution::Beacon| {
        let spendable = SingletonBeacon::at(&beacon.address);
        let spendable = spendable.map(|spendable| spendable.with_key_among(known.iter().copied(), network));
        Place { service: beacon.service, address: beacon.address, beacon: spendable }
    };
    singletons.map(place).collect()
}

/// The beacons of the initial document of a KEY identifier; none of an EXTERNAL one.
pub fn initial_places(did: &Did) -> Vec<Place> {
    InitialBeaconKind::ALL.into_iter().filter_map(|kind| Place::initial(did, kind)).collect()
}

/// A Singleton beacon with what is on it.
#[derive(Clone, Debug)]
pub struct Funded {
    /// The beacon.
    pub place: Place,
    /// Its coins, confirmed or in the mempool, and what in the mempool spends them.
    pub activity: Activity,
}

/// What is on each of `places`. A node without an address index reads its whole set of unspent outputs for this, once for
/// all of them.
///
/// # Errors
/// [`ChainError`].
pub async fn look(chain: &dyn Chain, places: Vec<Place>) -> Result<Vec<Funded>, ChainError> {
    let scripts: Vec<ScriptBuf> = places.iter().map(|place| place.address.script_pubkey()).collect();
    if scripts.is_empty() {
        return Ok(Vec::new());
    }
    let found = chain.coins_of_all(&scripts).await?;
    if found.len() != scripts.len() {
        return Err(ChainError::BadAnswer(format!("{} answers about {} addresses", found.len(), scripts.len())));
    }
    Ok(places.into_iter().zip(found).map(|(place, activity)| Funded { place, activity }).collect())
}

/// An announcement that waits in the mempool.
#[derive(Clone, Debug)]
pub struct Unconfirmed {
    /// The position of its beacon.
    pub beacon: usize,
    /// Its transaction.
    pub txid: Txid,
    /// The transaction.
    pub transaction: Transaction,
    /// What it announces.
    pub signal: SignalBytes,
}

/// The announcements of these beacons that wait in the mempool.
///
/// # Errors
/// [`ChainError`].
pub async fn unconfirmed(chain: &dyn Chain, funded: &[Funded]) -> Result<Vec<Unconfirmed>, ChainError> {
    let mut found: Vec<Unconfirmed> = Vec::new();
    for (beacon, Funded { activity, .. }) in funded.iter().enumerate() {
        for spend in activity.spends.iter().filter(|spend| spend.place == ChainPlace::Mempool) {
            if found.iter().any(|known| known.txid == spend.by) {
                continue;
            }
            // One that has left the mempool may be in a block, which the resolution of the document has not seen.
            let transaction = chain.transaction(&spend.by, None).await?.ok_or_else(|| {
                ChainError::Unavailable(format!(
                    "transaction {} has just left the mempool: run this again",
                    spend.by
                ))
            })?;
            if let Some(signal) = signal_of(&transaction) {
                found.push(Unconfirmed { beacon, txid: spend.by, transaction, signal });
            }
        }
    }
    Ok(found)
}

/// An announcement in a block that is not deep enough to count.
#[derive(Clone, Debug)]
pub struct Young {
    /// The position of its beacon.
    pub beacon: usize,
    /// What it announces.
    pub signal: SignalSeen,
    /// How many blocks confirm it.
    pub confirmations: u32,
}

/// The announcements of these beacons that have fewer than `min_conf` confirmations: a resolution does not see them.
///
/// # Errors
/// [`ChainError`].
pub async fn young(chain: &dyn Chain, funded: &[Funded], min_conf: u32) -> Result<Vec<Young>, ChainError> {
    let Some(tip) = funded.first().map(|funded| funded.activity.tip).filter(|_| min_conf > 1) else {
        return Ok(Vec::new());
    };
    let scripts: Vec<ScriptBuf> = funded.iter().map(|funded| funded.place.address.script_pubkey()).collect();
    let since = (tip.block.height + 2).saturating_sub(min_conf);
    let found = chain.signals(&scripts, since).await?.into_iter().enumerate();
    let young = found.flat_map(|(beacon, Signals { tip, seen })| {
        seen.into_iter().map(move |signal| Young { beacon, signal, confirmations: tip.depth(&signal.block) })
    });
    Ok(young.filter(|young| young.confirmations < min_conf).collect())
}
