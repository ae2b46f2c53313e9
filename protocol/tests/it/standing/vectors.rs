//! `standing_formats.json`: everything that two implementations must agree on, byte for byte. Written by this implementation
//! (`STANDING_VECTORS=write`), since there is no other one; what it does not compute with its own code is compared elsewhere in these
//! tests (outputs with rust-bitcoin's builder, spends by Bitcoin Core's consensus code).

use std::{env, fs, path::Path};

use btcr2_aggregation_protocol::cohort::standing::{Board, Row, RowAction, StandingBeacon, StandingTerms};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde_json::{Value, json};

use super::cohort::{Cohort, NETWORK, did, index, update};

fn case(beacon: StandingBeacon) -> Value {
    let cohort = Cohort::new(StandingTerms::new(beacon, NETWORK, 3, 5).proceeding(2), 3, 2);
    let hash = cohort.roster.hash();
    // The first seat has an update for one of its DIDs, the second none, the third is absent.
    let responses = [cohort.response(0, 7, &[0]), cohort.response(1, 7, &[])];
    let hashes: Vec<_> = responses.iter().map(|response| response.hash(cohort.roster.context())).collect();
    let board = Board::of(cohort.place(&hash, 7), responses);
    let rows: Vec<Value> = (0..6)
        .map(|number| {
            let row = cohort.roster.row(&index(number)).unwrap();
            let digest = Row::digest(cohort.roster.context(), &row.did_index, row.action, row.serial);
            json!({ "did": did(number), "row": row, "digestHex": HEXLOWER.encode(&digest) })
        })
        .collect();
    let unregister = cohort.row(0, 0, RowAction::Unregister, 2);
    let nonces: Vec<Value> = (0..2)
        .map(|number| {
            let nonce = BASE64URL_NOPAD.encode(&cohort.nonce(0, 7, number));
            json!({ "number": 7, "didIndex": index(number), "nonce": nonce })
        })
        .collect();
    let data: Vec<Value> = [(0, 0, Some(update(0))), (0, 1, None), (1, 2, None)]
        .into_iter()
        .map(|(seat, number, update)| {
            let nonce = cohort.nonce(seat, 7, number);
            let data = board.data(&index(number), Some(&nonce), update.as_ref()).unwrap();
            json!({ "did": did(number), "data": btcr2_aggregation_protocol::sidecar::plain_data(&data) })
        })
        .collect();
    json!({
        "terms": cohort.terms,
        "context": cohort.roster.context(),
        "seatKeys": cohort.keys.iter().map(|key| key.public_key()).collect::<Vec<_>>(),
        "seeds": (0..3).map(|seat| {
            let seed = btcr2_aggregation_protocol::hash::sha256(format!("seat {seat}").as_bytes());
            HEXLOWER.encode(&seed)
        }).collect::<Vec<_>>(),
        "fallbackScriptHex": HEXLOWER.encode(cohort.output.fallback().unwrap().script().as_bytes()),
        "merkleRootHex": HEXLOWER.encode(&cohort.output.merkle_root().unwrap()),
        "rows": rows,
        "unregister": unregister,
        "rosterHash": hash,
        "leafNonces": nonces,
        "responseHashes": hashes,
        "boardText": String::from_utf8(board.bytes().to_vec()).unwrap(),
        "boardHash": board.hash(),
        "signalHex": board.signal(),
        "dataOfDids": data,
    })
}

#[test]
fn the_formats_of_standing_cohorts_are_as_recorded() {
    let made = json!({
        "description": "Formats of standing cohorts (docs/standing.md). Seats are derived from the seeds by HKDF, keys sorted; updates are hashes of the text `update N`.",
        "cases": [case(StandingBeacon::Cas), case(StandingBeacon::Smt)],
    });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/standing_formats.json");
    if env::var("STANDING_VECTORS").as_deref() == Ok("write") {
        fs::write(&path, serde_json::to_string_pretty(&made).unwrap() + "\n").unwrap();
    }
    let recorded: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(recorded, made);
}
