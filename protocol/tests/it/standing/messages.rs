//! Messages as they travel. `World` sends each of its messages as text; here are those that only hosts send.

use bitcoin::hashes::Hash;
use btcr2_aggregation_protocol::{
    cohort::standing::{
        Row, RowAction, StandingBeacon, StandingTerms,
        message::{
            BoardPart, BoardRequest, HistoryGiven, HistoryRequest, PastAnnouncement, RowsGiven, RowsRequest,
            SeatProof, SeatRefused, StandingMessage,
        },
    },
    hash::{DocumentHash, SignalBytes, sha256},
    id::CohortId,
    message::{Body, Message},
};

use super::cohort::{Cohort, NETWORK, did, rng};

#[test]
fn messages_of_hosts_are_read_as_they_were_sent() {
    let cohort = Cohort::new(StandingTerms::new(StandingBeacon::Smt, NETWORK, 3, 5).proceeding(2), 3, 2);
    let cohort_id = CohortId::parse("standing-cohort").unwrap();
    let rows: Vec<Row> = (0..2).map(|serial| cohort.row(0, 0, RowAction::Register, serial + 1)).collect();
    let bytes = vec![7; 40_000];
    let board_hash = DocumentHash::from_bytes(sha256(&bytes));
    let (from, context) = (did(1), cohort.roster.context());
    let proof = SeatProof::sign(context, &from, &board_hash, &cohort.keys[0], &mut rng());
    assert!(proof.is_of(context, &from, &board_hash));
    assert!(!proof.is_of(context, &did(2), &board_hash), "of another sender");
    assert!(!proof.is_of(context, &from, &DocumentHash::from_bytes([1; 32])), "of another board");
    let past = PastAnnouncement {
        number: 8,
        txid: bitcoin::Txid::from_byte_array([1; 32]),
        signal: SignalBytes::from_bytes([2; 32]),
        board_hash,
    };
    let messages: [StandingMessage; 10] = [
        RowsRequest { cohort_id: cohort_id.clone(), after: 7 }.into(),
        RowsGiven { cohort_id: cohort_id.clone(), after: 7, rows }.into(),
        BoardRequest { cohort_id: cohort_id.clone(), board_hash, part: 1, seat: None }.into(),
        BoardRequest { cohort_id: cohort_id.clone(), board_hash, part: 1, seat: Some(proof) }.into(),
        HistoryRequest { cohort_id: cohort_id.clone(), after: 7 }.into(),
        HistoryGiven { cohort_id: cohort_id.clone(), after: 7, announcements: vec![past] }.into(),
        BoardPart::of(&cohort_id, board_hash, &bytes, 0).unwrap().into(),
        BoardPart::of(&cohort_id, board_hash, &bytes, 1).unwrap().into(),
        BoardPart::missing(&cohort_id, board_hash).into(),
        SeatRefused { cohort_id: cohort_id.clone(), reason: "no".to_owned() }.into(),
    ];
    for message in messages {
        let sent = Message::new(did(1), Some(did(2)), Body::Standing(Box::new(message.clone())));
        let read = Message::from_json(&sent.to_json()).unwrap_or_else(|error| panic!("{message:?}: {error}"));
        assert_eq!(*read.body, Body::Standing(Box::new(message)));
    }
    assert_eq!(BoardPart::of(&cohort_id, board_hash, &bytes, 2), None);
}
