//! A message's JSON text.

use btcr2_aggregation_protocol::message::Message;

/// A message that is decoded can be encoded and decoded again, both as it was received and as we would write it, and is then
/// the same message; and what we write is not out of proportion to what we read.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(message) = Message::from_json(text) else { return };
    let forwarded = message.to_json();
    assert!(forwarded.len() <= text.len() + 512, "{} bytes of {}", forwarded.len(), text.len());
    let again = Message::from_json(&forwarded).expect("what was decoded is a message");
    assert_eq!(again, message);
    assert_eq!(again.digest(), message.digest());

    let own = Message::new(message.from.clone(), message.to.clone(), (*message.body).clone());
    let written = own.to_json();
    assert!(written.len() <= 8 * text.len() + 512, "{} bytes of {}", written.len(), text.len());
    assert_eq!(Message::from_json(&written).expect("what we write is a message"), message);
}
