//! The results of a cohort that the operator stores: the transaction, and the data that members and resolvers request.

use std::{fs, io, path::Path, sync::Arc};

use ::bitcoin::{TxOut, consensus::encode::serialize_hex};
use serde_json::{Value, json};

use crate::{
    actors::notice::CohortResult,
    bitcoin::verify::{bip340_accepts, consensus_accepts},
    files::{file_name, write_whole},
    protocol::{beacon::AggregatedData, cohort::event::SpendPath, id::CohortId, sidecar::plain_data},
};

/// A cohort that ended with a transaction.
pub(super) struct CohortReport {
    cohort_id: CohortId,
    result: Arc<CohortResult>,
    prevout: TxOut,
    bip340: bool,
    consensus: bool,
}

impl CohortReport {
    /// Verifies a result, by Bitcoin Core's consensus code too. Not on an arbiter: a fallback of 1000 members takes some
    /// milliseconds.
    pub(super) fn new(cohort_id: CohortId, result: Arc<CohortResult>) -> Self {
        let CohortResult { output, signed, .. } = &*result;
        let prevout = TxOut { value: signed.value, script_pubkey: output.script_pubkey().to_owned() };
        let (bip340, consensus) =
            (bip340_accepts(signed, output, &prevout), consensus_accepts(&signed.transaction, &prevout));
        Self { cohort_id, result, prevout, bip340, consensus }
    }

    /// Whether the network would accept the transaction.
    pub(super) fn verified(&self) -> bool {
        self.bip340 && self.consensus
    }

    pub(super) fn to_json(&self) -> Value {
        let CohortResult { output, signed, aggregation, transcript, .. } = &*self.result;
        let unreached = [&signed.unreached.not_carried[..], &signed.unreached.not_fetched].concat();
        json!({
            "event": "result",
            "ok": self.verified(),
            "cohortId": self.cohort_id,
            "beaconAddress": output.address(),
            "path": signed.path,
            "signature": signed.signature.map(|signature| signature.to_string()).unwrap_or_default(),
            "txid": signed.transaction.compute_txid().to_string(),
            "txHex": serialize_hex(&signed.transaction),
            "prevout": {
                "scriptHex": self.prevout.script_pubkey.to_hex_string(),
                "value": self.prevout.value.to_sat(),
            },
            "signalHex": aggregation.signal,
            "verified": { "bip340": self.bip340, "consensus": self.consensus },
            "signers": signed.signers.len(),
            "holdouts": signed.holdouts,
            "unreached": unreached,
            "culprits": signed.culprits,
            "transcript": transcript,
        })
    }

    /// How the cohort ended, for the operator.
    pub(super) fn end(&self) -> Value {
        let CohortResult { output, signed, .. } = &*self.result;
        json!({
            "phase": "completed",
            "beaconAddress": output.address(),
            "txid": signed.transaction.compute_txid(),
            "path": signed.path,
            "members": output.keys().len(),
            "signers": signed.signers.len(),
            "holdouts": signed.holdouts,
        })
    }

    pub(super) fn to_text(&self) -> String {
        let CohortResult { output, signed, aggregation, .. } = &*self.result;
        let members = output.keys().len();
        let signers = match signed.path {
            SpendPath::KeyPath => format!("all {members} members (key path)"),
            SpendPath::ScriptPath => format!("{} of {members} members (script path)", signed.signers.len()),
        };
        let valid = if self.verified() { "valid" } else { "NOT VALID" };
        format!(
            "cohort {} is signed by {signers}\n  transaction  {} ({valid})\n  address      {}\n  signal       {}",
            self.cohort_id,
            signed.transaction.compute_txid(),
            output.address(),
            aggregation.signal,
        )
    }

    /// Writes `<cohort>/tx.hex`, `<cohort>/result.json`, and the data of the announcement: `announcement.json` where all
    /// members share it, `proofs/<did>.json` where each has its own. Not on an arbiter: every file is synced to the disk.
    pub(super) fn write_to(&self, directory: &Path) -> io::Result<()> {
        let directory = directory.join(file_name(&self.cohort_id));
        fs::create_dir_all(&directory)?;
        write_whole(&directory.join("tx.hex"), (serialize_hex(&self.result.signed.transaction) + "\n").as_bytes())?;
        write_whole(&directory.join("result.json"), pretty(&self.to_json())?.as_bytes())?;
        match &self.result.aggregation.data {
            AggregatedData::Shared(data) => {
                write_whole(&directory.join("announcement.json"), pretty(&plain_data(data))?.as_bytes())
            }
            AggregatedData::PerMember(data) => {
                let proofs = directory.join("proofs");
                fs::create_dir_all(&proofs)?;
                data.iter().try_for_each(|(did, data)| {
                    // Some file systems do not allow a colon in a file name.
                    let name = did.as_str().replace(':', "_");
                    write_whole(&proofs.join(format!("{name}.json")), pretty(&plain_data(data))?.as_bytes())
                })
            }
        }
    }
}

fn pretty(value: &Value) -> io::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}
