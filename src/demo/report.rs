//! The result of a demo, verified with the members' stored data and by the network's rules.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use ::bitcoin::{TxOut, consensus::encode::serialize_hex};
use serde::Serialize;
use serde_json::{Value, json};

use super::DemoConfig;
use crate::{
    actors::notice::CohortResult,
    bitcoin::verify::{bip340_accepts, consensus_accepts},
    files::write_whole,
    protocol::{
        beacon::{BeaconRegistry, BeaconType},
        cohort::event::SpendPath,
        hash::SignalBytes,
        id::CohortId,
        output::{BeaconOutput, check_beacon_transaction},
        sidecar::MemberRecord,
        signing::Signed,
        update::SignedUpdate,
    },
};

/// The stored data of one member.
#[derive(Clone, Debug)]
pub struct MemberReport {
    /// Its record of the round.
    pub record: Arc<MemberRecord>,
    /// The genesis document of an EXTERNAL DID.
    pub genesis_document: Option<Arc<Value>>,
}

/// Which checks a demo passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The signatures are valid by BIP-340.
    pub bip340: bool,
    /// Bitcoin Core's consensus code accepts the transaction.
    pub consensus: bool,
    /// Every member's sidecar gives the signal that the transaction carries, and holds an update that resolvers accept.
    pub sidecars: bool,
}

/// The result of a demo.
#[derive(Clone, Debug)]
pub struct Report {
    /// The cohort.
    pub cohort_id: CohortId,
    /// How updates were aggregated.
    pub beacon_type: BeaconType,
    /// The cohort's output.
    pub output: BeaconOutput,
    /// The coin that was spent.
    pub prevout: TxOut,
    /// The signed transaction.
    pub signed: Arc<Signed>,
    /// The signal that it carries.
    pub signal: SignalBytes,
    /// The number of messages in the signed transcript.
    pub transcript_size: u64,
    /// The stored data of each member, in the order of their numbers.
    pub members: Vec<MemberReport>,
    /// The results of the checks.
    pub verified: Verified,
    /// The duration from start to end.
    pub elapsed: Duration,
}

impl Report {
    pub(super) fn new(
        config: &DemoConfig,
        cohort_id: CohortId,
        result: &CohortResult,
        members: Vec<MemberReport>,
        beacons: &BeaconRegistry,
        elapsed: Duration,
    ) -> Self {
        let output = result.output.clone();
        let signed = Arc::clone(&result.signed);
        let prevout = TxOut { value: signed.value, script_pubkey: output.script_pubkey().to_owned() };
        let verified = Verified {
            bip340: bip340_accepts(&signed, &output, &prevout),
            consensus: consensus_accepts(&signed.transaction, &prevout),
            sidecars: members.len() == config.participants
                && members.iter().all(|member| sidecar_holds(member, &signed, &output, beacons)),
        };
        Self {
            cohort_id,
            beacon_type: config.beacon.clone(),
            output,
            prevout,
            signed,
            signal: result.aggregation.signal,
            transcript_size: result.transcript.head.size,
            members,
            verified,
            elapsed,
        }
    }

    /// Whether everything was verified, and the path is the requested one.
    pub fn ok(&self, path: SpendPath) -> bool {
        let Verified { bip340, consensus, sidecars } = self.verified;
        bip340 && consensus && sidecars && self.signed.path == path
    }

    /// The number of members that declined.
    pub fn declined(&self) -> usize {
        self.members.iter().filter(|member| !member.record.included()).count()
    }

    /// The report as one JSON object.
    pub fn to_json(&self, path: SpendPath) -> Value {
        let transaction = &self.signed.transaction;
        json!({
            "ok": self.ok(path),
            "cohortId": self.cohort_id,
            "beaconType": self.beacon_type,
            "participants": self.members.len(),
            "declined": self.declined(),
            "beaconAddress": self.output.address(),
            "path": self.signed.path,
            // The fallback path has no single signature; the witness has all of them.
            "signature": self.signed.signature.map(|signature| signature.to_string()).unwrap_or_default(),
            "txid": transaction.compute_txid().to_string(),
            "txHex": serialize_hex(transaction),
            "prevout": {
                "scriptHex": self.prevout.script_pubkey.to_hex_string(),
                "value": self.prevout.value.to_sat(),
            },
            "signalHex": self.signal,
            "verified": self.verified,
            "elapsedMs": u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Writes `tx.hex` and one `participant-<i>.json` per member, from 0, into `directory`, which is created if
    /// necessary.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_to(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        write_whole(&directory.join("tx.hex"), (serialize_hex(&self.signed.transaction) + "\n").as_bytes())?;
        for (index, member) in self.members.iter().enumerate() {
            let file = member.record.to_file(member.genesis_document.as_deref());
            let text = serde_json::to_string_pretty(&file)? + "\n";
            write_whole(&directory.join(format!("participant-{index}.json")), text.as_bytes())?;
        }
        Ok(())
    }
}

/// Whether a member's record alone proves its slot in the signal that the transaction announces.
fn sidecar_holds(
    MemberReport { record, genesis_document }: &MemberReport,
    signed: &Signed,
    output: &BeaconOutput,
    beacons: &BeaconRegistry,
) -> bool {
    let slot = record.update.as_ref().map(SignedUpdate::hash);
    let signal = beacons
        .get(&record.conditions.beacon_type)
        .and_then(|beacon| beacon.verify(&record.did, slot, &record.data).ok());
    let mut unsigned = signed.transaction.clone();
    for input in &mut unsigned.input {
        input.witness.clear();
    }
    signal.is_some_and(|signal| {
        record.output == *output
            && check_beacon_transaction(&unsigned, output, output.script_pubkey(), signed.value, &signal).is_ok()
            // And a current resolver would accept it.
            && record.problems(genesis_document.as_deref()).is_empty()
    })
}
