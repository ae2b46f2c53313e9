//! The data of rounds that a service still has for a member: the messages that wait in its inbox (docs/http.md). A service keeps
//! them for a day, unless the member has confirmed them.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::digest;
use crate::{
    actors::{
        runtime::{Clock, Randomness},
        transport::{
            Delivery, Inbox, Receipt, Transport,
            contact::Contacts,
            http::client::{BaseUrlError, HttpClient},
            tls::Trust,
        },
    },
    protocol::{beacon::BeaconData, identity::Identity, message::Body, sidecar::plain_data},
};

/// The most messages that are read: an inbox has a few hundred.
const MOST_MESSAGES: usize = 2_000;

/// The most data that is used, in bytes of JSON.
const MOST_BYTES: usize = 256 << 20;

/// The room of the inbox.
const CAPACITY: usize = 64;

/// How long to wait for another message, when some have come.
const QUIET: Duration = Duration::from_secs(3);

/// What a service had.
#[derive(Debug, Default)]
pub struct Found {
    /// CAS Announcements and SMT proofs, as Sidecar Data. Nothing is verified: a resolver looks them up by their hashes.
    pub sidecar: Value,
    /// How many of them there are.
    pub count: usize,
    /// Why the service could not be read, as far as known.
    pub problem: Option<String>,
}

/// Reads the inbox of `identity` at the service with that URL for at most `limit`, and confirms nothing.
///
/// # Errors
/// The URL is not one, or the trusted certificates cannot be used.
pub async fn read(
    service: &str,
    trust: &Trust,
    identity: &Identity,
    limit: Duration,
) -> Result<Found, BaseUrlError> {
    let contacts = Contacts::default();
    let client = HttpClient::new(service, None, Clock::system(), Randomness::System)?
        .trusting(trust)?
        .with_contacts(contacts.clone());
    let (inbox, mut deliveries) = Inbox::channel(CAPACITY);
    let connection = match client.connect(identity, inbox).await {
        Ok(connection) => connection,
        Err(error) => return Ok(Found { problem: Some(error.to_string()), ..Found::default() }),
    };
    let mut found = Found { sidecar: json!({ "casUpdates": [], "smtProofs": [] }), ..Found::default() };
    let end = Instant::now() + limit;
    let (mut until, mut seen, mut bytes) = (end, BTreeSet::new(), 0);
    // Not confirmed, so that the service goes on storing the messages; not dropped, so that they are not delivered again.
    let mut receipts: Vec<Receipt> = Vec::new();
    while let Ok(Some(delivery)) = timeout_at(until, deliveries.recv()).await {
        let (Delivery::Message(received) | Delivery::Stored { message: received, .. }) = delivery else { continue };
        if let Body::DistributeAggregatedData(body) = &*received.message.body
            && let Some(data) = body.data()
        {
            let list = match data {
                BeaconData::Cas(_) => "casUpdates",
                BeaconData::Smt(_) => "smtProofs",
                BeaconData::Other(_) => continue, // No resolver reads it.
            };
            let plain = plain_data(&data);
            bytes += plain.to_string().len();
            if bytes > MOST_BYTES {
                break;
            }
            if seen.insert(digest(&plain)) {
                found.sidecar[list].as_array_mut().into_iter().for_each(|list| list.push(plain.clone()));
                found.count += 1;
            }
            until = end.min(Instant::now() + QUIET);
        }
        receipts.push(received.receipt);
        if receipts.len() >= MOST_MESSAGES {
            break;
        }
    }
    found.problem = contacts.problem();
    drop(connection);
    Ok(found)
}
