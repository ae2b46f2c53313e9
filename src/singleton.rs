//! Announcing without a cohort: what a member can do by itself when no cohort announces its update.
//!
//! The transaction comes from the protocol crate ([`SingletonAnnouncement`]). This module checks it as a node would,
//! and writes it with instructions for sending it: [`write_fallback`]. It sends nothing: the coin belongs to the
//! controller, who decides whether to spend it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ::bitcoin::{Transaction, consensus::encode::serialize_hex};
use rand_chacha::rand_core::CryptoRng;
use serde_json::Value;

use crate::{
    bitcoin::verify::consensus_accepts,
    files::write_whole,
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
        "{0} is an EXTERNAL DID: it has no initial beacons. Announce from a beacon of its document, with the wallet that \
         holds that beacon's key: the last output is an OP_RETURN with the 32 bytes of the update's hash"
    )]
    External(Did),
    /// The update is not a valid one of this DID.
    #[error("not a valid update of this DID: {0}")]
    Update(#[from] UpdateError),
    /// The transaction cannot be made as requested.
    #[error(transparent)]
    Transaction(#[from] SingletonError),
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

/// Checks that `update` is a valid update of `did`, a KEY identifier, by its own key. `source` is the document that it
/// starts from and its version, if that is not the initial document.
///
/// # Errors
/// [`FallbackError::External`], [`FallbackError::Update`].
pub fn check_update(did: &Did, update: &SignedUpdate, source: Option<&(Value, u64)>) -> Result<(), FallbackError> {
    if did.key().is_none() {
        return Err(FallbackError::External(did.clone()));
    }
    let initial = document::initial_document(did, None)?;
    let (document, version) = source.map_or((&initial, 1), |(document, version)| (document, *version));
    let context = UpdateContext { did, document, version, block: None };
    match update.target_version() {
        // Its source document is not known here.
        Some(version) if version > 2 && source.is_none() => verify_proof(update, &context)?,
        _ => drop(verify_update(update, &context)?),
    }
    Ok(())
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
    let initial = document::initial_document(did, None)?;
    let (document, version) = source.map_or((&initial, 1), |(document, version)| (document, *version));
    let context = UpdateContext { did, document, version, block: None };
    Ok(document::concerns(document, &verify_update(update, &context)?))
}

/// The announcement signed with the DID's key, checked by Bitcoin Core's consensus code.
///
/// # Errors
/// [`FallbackError::Transaction`] if the key is another DID's.
pub fn sign(
    announcement: &SingletonAnnouncement,
    key: &SecretKey,
    rng: &mut dyn CryptoRng,
) -> Result<Transaction, FallbackError> {
    let signed = announcement.sign(key, rng)?;
    if consensus_accepts(&signed, &announcement.prevout()) {
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

/// Writes the files that the controller of `did` needs to announce `update` itself into `directory`, and returns their
/// paths: `update.json`, `README.txt`, and if a coin is known `unsigned.hex`, `unsigned.psbt` (BIP-174, binary) and
/// `signed.hex`. Existing files of these names are replaced, and those that would not match the others removed.
///
/// # Errors
/// Those of the file system.
pub fn write_fallback(
    directory: &Path,
    did: &Did,
    update: &SignedUpdate,
    prepared: Option<&Prepared>,
) -> io::Result<Vec<PathBuf>> {
    let transactions = prepared.map(|Prepared { announcement, signed }| {
        let psbt = announcement.to_psbt().serialize();
        (line(announcement.unsigned()), psbt, signed.as_ref().map(line))
    });
    let (unsigned, psbt, signed) = match transactions {
        Some((unsigned, psbt, signed)) => (Some(unsigned), Some(psbt), signed),
        None => (None, None, None),
    };
    let files = [
        ("update.json", Some((serde_json::to_string_pretty(update.value())? + "\n").into_bytes())),
        ("README.txt", Some(explanation(did, update, prepared).into_bytes())),
        ("unsigned.hex", unsigned),
        ("unsigned.psbt", psbt),
        ("signed.hex", signed),
    ];
    fs::create_dir_all(directory)?;
    let mut written = Vec::new();
    for (name, content) in files {
        let path = directory.join(name);
        match content {
            Some(content) => {
                write_whole(&path, &content)?;
                written.push(path);
            }
            // A transaction of another coin would be sent by mistake.
            None if path.exists() => fs::remove_file(&path)?,
            None => {}
        }
    }
    Ok(written)
}

fn line(transaction: &Transaction) -> Vec<u8> {
    (serialize_hex(transaction) + "\n").into_bytes()
}

fn explanation(did: &Did, update: &SignedUpdate, prepared: Option<&Prepared>) -> String {
    let steps = match prepared {
        Some(prepared) => how_to_send(prepared),
        None => how_to_fund(did),
    };
    format!(
        "Announcing an update without a cohort\n\n\
         DID     {did}\n\
         update  {} (update.json)\n\n\
         {steps}\n\
         Keep update.json: a resolver asks for it (as Sidecar Data), or finds it by its hash where it is published:\n\
         btcr2-aggregation cas put update.json --cas dir=PATH\n\n\
         Announcing the same update twice is harmless, so a cohort may still announce it too. Another update of the same\n\
         version must never be announced: the DID would not resolve any more.\n",
        update.hash()
    )
}

fn how_to_fund(did: &Did) -> String {
    let addresses = match initial_beacons(did) {
        Ok(beacons) => beacons.map(|beacon| format!("   {:8}{}\n", beacon.kind(), beacon.address())).concat(),
        Err(error) => format!("   {error}\n"),
    };
    format!(
        "1. Send a coin to one of these addresses, the initial beacons of the DID; 10000 satoshi are ample at usual fee\n   \
            rates. Use them for announcements only.\n\
         {addresses}\
         2. Make the transaction, with the coin's transaction id, output number and value in satoshi:\n   \
            btcr2-aggregation singleton --identity FILE --update update.json --coin TXID:VOUT:SATS \\\n       \
            --type p2wpkh --fee-rate SAT_PER_VB --sign --out .\n\
         3. Send it: bitcoin-cli sendrawtransaction \"$(cat signed.hex)\"\n"
    )
}

fn how_to_send(Prepared { announcement, signed }: &Prepared) -> String {
    let steps = if signed.is_some() {
        "It is signed already. Send it: bitcoin-cli sendrawtransaction \"$(cat signed.hex)\""
    } else {
        "1. Sign unsigned.psbt with the wallet that holds the DID's key, or make it again with --sign.\n\
         2. Send what that gives: bitcoin-cli sendrawtransaction HEX"
    };
    format!(
        "It spends a coin of {} sat on the beacon {}, {}, and pays a fee of {} sat.\n\n{steps}\n",
        announcement.prevout().value.to_sat(),
        announcement.beacon().kind().service(),
        announcement.beacon().address(),
        announcement.fee().to_sat(),
    )
}
