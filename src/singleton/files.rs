//! The files of an announcement that its controller sends.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ::bitcoin::{Transaction, consensus::encode::serialize_hex};

use super::{Prepared, places::Place};
use crate::{
    files::write_whole,
    protocol::{did::Did, update::SignedUpdate},
};

/// Writes the files that the controller of `did` needs to announce `update` itself into `directory`, and returns their
/// paths: `update.json`, `README.txt`, and if a coin is known `unsigned.hex`, `unsigned.psbt` (BIP-174, binary) and
/// `signed.hex`. `places` are the beacons that can announce it. Existing
/// files of these names are replaced, and those that would not match the others removed.
///
/// # Errors
/// Those of the file system.
pub fn write_fallback(
    directory: &Path,
    did: &Did,
    update: &SignedUpdate,
    places: &[Place],
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
        ("README.txt", Some(explanation(did, update, places, prepared).into_bytes())),
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

fn explanation(did: &Did, update: &SignedUpdate, places: &[Place], prepared: Option<&Prepared>) -> String {
    let steps = match prepared {
        Some(prepared) => how_to_send(prepared),
        None => how_to_fund(places),
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

fn how_to_fund(places: &[Place]) -> String {
    let line = |place: &Place| format!("   {:16}{}\n", place.name(), place.address);
    let addresses: String = places.iter().map(line).collect();
    format!(
        "1. Send a coin to one of these addresses, the Singleton beacons of the DID; 10000 satoshi are ample at usual fee\n   \
            rates. Use them for announcements only.\n\
         {addresses}\
         2. When it is confirmed, announce with a chain, which finds the coin, checks everything, and sends:\n   \
            btcr2-aggregation singleton --identity FILE --update update.json --chain KIND=URL --send --wait\n\
         Or without a chain, with the coin's transaction id, output number and value in satoshi:\n   \
            btcr2-aggregation singleton --identity FILE --update update.json --coin TXID:VOUT:SATS \\\n       \
            --type p2wpkh --fee-rate SAT_PER_VB --sign --out .\n   \
            bitcoin-cli sendrawtransaction \"$(cat signed.hex)\"\n"
    )
}

fn how_to_send(Prepared { announcement, signed }: &Prepared) -> String {
    let steps = if signed.is_some() {
        "It is signed already. Send it: bitcoin-cli sendrawtransaction \"$(cat signed.hex)\""
    } else {
        "1. Sign unsigned.psbt with the wallet that holds the beacon's key, or make it again with --sign.\n\
         2. Send what that gives: bitcoin-cli sendrawtransaction HEX"
    };
    let coins = announcement.coins();
    let value: ::bitcoin::Amount = coins.iter().map(|coin| coin.value).sum();
    let what = match coins.len() {
        1 => "a coin".to_owned(),
        count => format!("{count} coins"),
    };
    format!(
        "It spends {what} of {} sat at the beacon address {} ({}), and pays a fee of {} sat.\n\n{steps}\n",
        value.to_sat(),
        announcement.beacon().address(),
        announcement.beacon().kind(),
        announcement.fee().to_sat(),
    )
}
