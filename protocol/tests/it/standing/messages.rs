//! Messages as they travel. `World` sends each of its messages as text; here are those that only hosts send.

use btcr2_aggregation_protocol::{
    cohort::standing::{
        Row, RowAction, StandingBeacon, StandingTerms,
        message::{BoardPart, BoardRequest, RowsGiven, RowsRequest, SeatRefused, StandingMessage},
    },
    hash::{DocumentHash, sha256},
    id::CohortId,
    message::{Body, Message},
};

use super::cohort::{Cohort, NETWORK, did};

#[test]
fn messages_of_hosts_are_read_as_they_were_sent() {
    let cohort = Cohort::new(StandingTerms::new(StandingBeacon::Smt, NETWORK, 3, 5).proceeding(2), 3, 2);
    let cohort_id = CohortId::parse("standing-cohort").unwrap();
    let rows: Vec<Row> = (0..2).map(|serial| cohort.row(0, 0, RowAction::Register, serial + 1)).collect();
    let bytes = vec![7; 40_000];
    let board_hash = DocumentHash::from_bytes(sha256(&bytes));
    let messages: [StandingMessage; 7] = [
        RowsRequest { cohort_id: cohort_id.clone(), after: 7 }.into(),
        RowsGiven { cohort_id: cohort_id.clone(), after: 7, rows }.into(),
        BoardRequest { cohort_id: cohort_id.clone(), board_hash, part: 1 }.into(),
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
