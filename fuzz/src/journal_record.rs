//! An event as it comes from a journal, as JSON.

use std::fmt::Debug;

use btcr2_aggregation_protocol::{
    cohort::event::{ParticipantEvent, ServiceEvent},
    signing::session::SessionEvent,
};
use serde::{Serialize, de::DeserializeOwned};

/// An event of a role that is read is written and read as the same event.
pub fn check(data: &[u8]) {
    check_as::<ServiceEvent>(data);
    check_as::<ParticipantEvent>(data);
    check_as::<SessionEvent>(data);
}

fn check_as<E: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) {
    let Ok(event) = serde_json::from_slice::<E>(data) else { return };
    let written = serde_json::to_vec(&event).expect("an event serializes");
    let read: E = serde_json::from_slice(&written).expect("what we write is an event");
    assert_eq!(read, event);
    // And byte for byte: the copy of a journal is equal to it.
    assert_eq!(serde_json::to_vec(&read).expect("an event serializes"), written);
}
