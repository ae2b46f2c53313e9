//! Announcing without a cohort: what a controller can do by itself.
//!
//! The transaction comes from the protocol crate ([`SingletonAnnouncement`]). Here it is checked as a node would, and
//! written with instructions for sending it: [`write_fallback`]. With a chain, [`places`] has the Singleton beacons of a
//! document and the coins on them, [`choice`] decides which of them announces, [`order`] makes the transaction, [`bump`]
//! replaces one that waits too long, [`standing`] states whether resolvers would find the update, and [`follow`]
//! waits for confirmations.

pub mod bump;
pub mod choice;
mod files;
pub mod follow;
pub mod order;
pub mod places;
pub mod standing;

use ::bitcoin::{OutPoint, Transaction};
use rand_chacha::rand_core::CryptoRng;
use serde_json::Value;

pub use self::files::write_fallback;
use crate::{
    bitcoin::verify::consensus_accepts_all,
    protocol::{
        did::Did,
        document::{self, Concern, DocumentError},
        error::Fatal,
        key::SecretKey,
        output::{InitialBeacon, InitialBeaconKind, SingletonAnnouncement, SingletonError},
        update::{SignedUpdate, UpdateContext, UpdateError, verify_proof, verify_update},
    },
};

/// Why a DID cannot announce an update by itself.
#[derive(Debug, thiserror::Error)]
pub enum FallbackError {
    /// An EXTERNAL identifier has no beacons except those that its document names.
    #[error(
        "{0} is an EXTERNAL DID: only its document states its beacons. Give a chain, from which the document is resolved \
         (--chain), or the document that the update starts from (--source-document, or a file of `update --out`)"
    )]
    External(Did),
    /// The update is not a valid one of this DID.
    #[error("not a valid update of this DID: {0}")]
    Update(#[from] UpdateError),
    /// The transaction cannot be made as requested.
    #[error(transparent)]
    Transaction(#[from] SingletonError),
    /// The signature would not commit to the value of a coin, and nothing proves it.
    #[error(
        "the value of {0} is not proven: a signature for a P2PKH coin does not commit to it, so that a wrong one would be paid as fee. \
         Give the transaction that created it (--funding-tx), let a chain find the coin (--chain), or use the P2WPKH or P2TR beacon"
    )]
    Unproven(OutPoint),
    /// The initial document cannot be derived from the DID. A bug.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The signed transaction is not valid by consensus. A bug.
    #[error(transparent)]
    Invalid(Fatal),
}

/// The initial beacons of `did`: the only ones that it can announce from while its document is unknown.
///
/// # Errors
/// [`FallbackError::External`].
pub fn initial_beacons(did: &Did) -> Result<[InitialBeacon; 3], FallbackError> {
    let key = did.key().ok_or_else(|| FallbackError::External(did.clone()))?;
    Ok(InitialBeaconKind::ALL.map(|kind| InitialBeacon::new(key, did.network(), kind)))
}

/// Checks that `update` is a valid update of `did`. `source` is the document that it starts from and its version, if that
/// is not the initial document of a KEY identifier.
///
/// # Errors
/// [`FallbackError::External`], [`FallbackError::Update`].
pub fn check_update(did: &Did, update: &SignedUpdate, source: Option<&(Value, u64)>) -> Result<(), FallbackError> {
    if let Some((document, version)) = source {
        verify_update(update, &UpdateContext { did, document, version: *version, block: None })?;
        return Ok(());
    }
    let initial = initial(did)?;
    let context = UpdateContext { did, document: &initial, version: 1, block: None };
    match update.target_version() {
        // Its source document is not known here.
        Some(version) if version > 2 => verify_proof(update, &context)?,
        _ => drop(verify_update(update, &context)?),
    }
    Ok(())
}

/// The initial document of a KEY identifier.
fn initial(did: &Did) -> Result<Value, FallbackError> {
    if did.key().is_none() {
        return Err(FallbackError::External(did.clone()));
    }
    Ok(document::initial_document(did, None)?)
}

/// The effects of `update`, which [`check_update`] has found valid, that its controller may not intend. Without the
/// `source` of a later update than the first, only those that the patch itself shows.
///
/// # Errors
/// Those of [`check_update`].
pub fn concerns(
    did: &Did,
    update: &SignedUpdate,
    source: Option<&(Value, u64)>,
) -> Result<Vec<Concern>, FallbackError> {
    if source.is_none() && update.target_version().is_some_and(|version| version > 2) {
        return Ok(document::secret_concerns(&update.value()["patch"]));
    }
    let (document, version) = match source {
        Some((document, version)) => (document.clone(), *version),
        None => (initial(did)?, 1),
    };
    let context = UpdateContext { did, document: &document, version, block: None };
    Ok(document::concerns(&document, &verify_update(update, &context)?))
}

/// The announcement signed with the beacon's key, every input checked by Bitcoin Core's consensus code.
///
/// # Errors
/// [`FallbackError::Transaction`] if the key is another beacon's; [`FallbackError::Unproven`].
pub fn sign(
    announcement: &SingletonAnnouncement,
    key: &SecretKey,
    rng: &mut dyn CryptoRng,
) -> Result<Transaction, FallbackError> {
    if let Some(coin) = announcement.unproven() {
        return Err(FallbackError::Unproven(coin.outpoint));
    }
    let signed = announcement.sign(key, rng)?;
    if consensus_accepts_all(&signed, &announcement.prevouts()) {
        Ok(signed)
    } else {
        Err(FallbackError::Invalid(Fatal("the signed transaction is not valid by consensus".to_owned())))
    }
}

/// An announcement that is ready to be sent, or to be signed if the key is not known here.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The announcement.
    pub announcement: SingletonAnnouncement,
    /// The signed transaction, from [`sign`].
    pub signed: Option<Transaction>,
}
