//! Announcing without a cohort: what a member can do by itself when no cohort announces for it.
//!
//! The transaction is the protocol crate's ([`SingletonAnnouncement`]). Here it is checked as a node would check it, and
//! written out with what a person needs to know to send it: [`write_fallback`]. Nothing is sent: the coin is the
//! controller's, and so is the decision to spend it.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use ::bitcoin::{Transaction, consensus::encode::serialize_hex};
use rand_chacha::rand_core::CryptoRng;
use serde_json::Value;

use crate::{
    bitcoin::verify::consensus_accepts,
    protocol::{
        did::Did,
        document::{self, DocumentError},
        error::Fatal,
        key::SecretKey,
        output::{InitialBeacon, InitialBeaconKind, SingletonAnnouncement, SingletonError},
        update::{SignedUpdate, UpdateContext, UpdateError, verify_update},
    },
};

/// Why a DID cannot announce an update by itself.
#[derive(Debug, thiserror::Error)]
pub enum FallbackError {
    /// An EXTERNAL identifier has no beacons but those that its document names.
    #[error(
        "{0} is an EXTERNAL DID: it has no initial beacons. Announce from a beacon of its document, with the wallet that \
         holds that beacon's key: the last output is an OP_RETURN with the 32 bytes of the update's hash"
    )]
    External(Did),
    /// The update is not a valid one of this DID.
    #[error("not a valid update of this DID: {0}")]
    Update(#[from] UpdateError),
    /// The transaction cannot be made as asked for.
    #[error(transparent)]
    Transaction(#[from] SingletonError),
    /// The initial document, which follows from the DID, does not. Our fault.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// We signed what consensus refuses. Our fault.
    #[error("internal error: {0}")]
    Invalid(Fatal),
}

/// The initial beacons of `did`, which are all that it can announce from without knowing its document.
///
/// # Errors
/// [`FallbackError::External`].
pub fn initial_beacons(did: &Did) -> Result<[InitialBeacon; 3], FallbackError> {
    let key = did.key().ok_or_else(|| FallbackError::External(did.clone()))?;
    Ok(InitialBeaconKind::ALL.map(|kind| InitialBeacon::new(key, did.network(), kind)))
}

/// Whether `update` is a valid update of `did`, a KEY identifier, by its own key.
///
/// # Errors
/// [`FallbackError::External`], [`FallbackError::Update`].
pub fn check_update(did: &Did, update: &SignedUpdate) -> Result<(), FallbackError> {
    if did.key().is_none() {
        return Err(FallbackError::External(did.clone()));
    }
    let (method, key) = document::genesis_key(did, None)?;
    let initial = document::initial_document(did, None)?;
    let context = UpdateContext { did, verification_method: &method, key: &key, initial_document: Some(&initial) };
    Ok(verify_update(update, &context)?)
}

/// The announcement signed with the DID's key, and found valid by Bitcoin Core's consensus code.
///
/// # Errors
/// [`FallbackError::Transaction`] when it is another DID's key.
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

/// An announcement, ready but for being sent, and where we hold the key also signed.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The announcement.
    pub announcement: SingletonAnnouncement,
    /// Signed, with [`sign`].
    pub signed: Option<Transaction>,
}

/// Writes into `directory` what the controller of `did` needs to announce `update` itself, and returns the files:
/// `update.json`, `README.txt`, and where a coin is known `unsigned.hex`, `unsigned.psbt` (BIP-174, binary) and
/// `signed.hex`. Files of these names are replaced.
///
/// # Errors
/// What the file system says.
pub fn write_fallback(
    directory: &Path,
    did: &Did,
    update: &SignedUpdate,
    prepared: Option<&Prepared>,
) -> io::Result<Vec<PathBuf>> {
    let mut files: Vec<(&str, Vec<u8>)> = vec![
        ("update.json", (serde_json::to_string_pretty(update.value())? + "\n").into_bytes()),
        ("README.txt", explanation(did, update, prepared).into_bytes()),
    ];
    if let Some(Prepared { announcement, signed }) = prepared {
        files.push(("unsigned.hex", line(announcement.unsigned())));
        files.push(("unsigned.psbt", announcement.to_psbt().serialize()));
        files.extend(signed.as_ref().map(|signed| ("signed.hex", line(signed))));
    }
    fs::create_dir_all(directory)?;
    files
        .into_iter()
        .map(|(name, content)| {
            let path = directory.join(name);
            fs::write(&path, content)?;
            Ok(path)
        })
        .collect()
}

fn line(transaction: &Transaction) -> Vec<u8> {
    (serialize_hex(transaction) + "\n").into_bytes()
}

/// The version that the update leads to, where it says so.
pub fn target_version(update: &SignedUpdate) -> Option<u64> {
    update.value().get("targetVersionId").and_then(Value::as_u64)
}

fn explanation(did: &Did, update: &SignedUpdate, prepared: Option<&Prepared>) -> String {
    let mut text = format!(
        "Announcing an update without a cohort\n\n\
         DID     {did}\n\
         update  {} (update.json)\n\n",
        update.hash()
    );
    let steps = match prepared {
        None => {
            "1. Send a coin to one of these addresses, the initial beacons of the DID; 10000 satoshi are ample at usual fee\n\
             \x20  rates. Use them for announcements only.\n"
                .to_owned()
                + &initial_beacons(did).map_or_else(|error| format!("   {error}\n"), |beacons| {
                    beacons.iter().fold(String::new(), |mut list, beacon| {
                        // Writing to a String cannot fail.
                        let _ = writeln!(list, "   {:7} {}", beacon.kind().to_string(), beacon.address());
                        list
                    })
                })
                + "2. Make the transaction, with the coin's transaction id, output number and value in satoshi:\n\
                   \x20  btcr2-aggregation singleton --identity FILE --update update.json --coin TXID:VOUT:SATS \\\n\
                   \x20      --type p2wpkh --fee-rate SAT_PER_VB --sign --out .\n\
                   3. Send it: bitcoin-cli sendrawtransaction \"$(cat signed.hex)\"\n"
        }
        Some(Prepared { announcement, signed }) => {
            let spent = announcement.unsigned().input.iter().map(|input| input.previous_output.to_string());
            let sign = if signed.is_some() {
                "1. It is signed already: signed.hex.\n"
            } else {
                "1. Sign unsigned.psbt with the wallet that holds the DID's key, or make it again with --sign.\n"
            };
            format!(
                "It spends {} ({} sat) of the beacon {} ({}) and pays a fee of {} sat.\n\n{sign}\
                 2. Send it: bitcoin-cli sendrawtransaction \"$(cat signed.hex)\"\n",
                spent.collect::<Vec<_>>().join(", "),
                announcement.prevout().value.to_sat(),
                announcement.beacon().kind().service(),
                announcement.beacon().address(),
                announcement.fee().to_sat(),
            )
        }
    };
    text.push_str(&steps);
    text.push_str(
        "\nKeep update.json: a resolver asks for it (as Sidecar Data), or finds it by its hash where it is published:\n\
         btcr2-aggregation cas put update.json --cas dir=PATH\n\n\
         Announcing the same update twice is harmless, so a cohort may still announce it too. Another update of the same\n\
         version must never be announced: the DID would not resolve any more.\n",
    );
    text
}
