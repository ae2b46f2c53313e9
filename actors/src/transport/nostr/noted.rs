//! A relay's notifications other than events: the end of stored events, the end of a subscription, and texts for
//! people.

use std::fmt;

use btcr2_aggregation_protocol::text::shown_within;
use nostr_sdk::{RelayMessage, RelayStatus, pool::relay::RelayNotification};
use tokio::sync::broadcast;

use super::relay::{Assignment, Subscription};

/// The maximum length of a relay's text that is repeated.
const MOST_WORDS: usize = 200;

/// A relay's own text.
#[derive(Clone, Debug)]
pub(super) enum Words {
    /// A NOTICE, about anything.
    Notice(String),
    /// The reason for which it closed a subscription.
    Closed(String),
    /// The reason for which it refused an event.
    Refusal(String),
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Notice(words) => write!(f, "NOTICE {words}"),
            Self::Closed(words) => write!(f, "CLOSED {words}"),
            Self::Refusal(words) => write!(f, "OK false {words}"),
        }
    }
}

/// The text in a form that is safe to log and to display.
fn words(text: &str) -> String {
    shown_within(text, MOST_WORDS).into_owned()
}

/// A problem, and the relay's latest text.
pub(super) fn with_words(why: &str, text: Option<&str>) -> String {
    text.map_or_else(|| why.to_owned(), |text| format!("{why}; the relay reports: {text}"))
}

/// The meaning of a notification of the SDK for a connection.
pub(super) enum Noted {
    Nothing,
    /// Text for people.
    Text(Words),
    EndOfStored(Subscription),
    Ended(String),
}

/// Reads a notification.
pub(super) fn noted(
    notification: Result<RelayNotification, broadcast::error::RecvError>,
    assignment: &Assignment,
) -> Noted {
    match notification {
        Ok(RelayNotification::Message { message: RelayMessage::EndOfStoredEvents(id) }) => {
            Subscription::with_id(&id, assignment).map_or(Noted::Nothing, Noted::EndOfStored)
        }
        // It requests authentication first, and receives it; then the subscription is made again.
        Ok(RelayNotification::Message { message: RelayMessage::Closed { message, .. } })
            if message.starts_with("auth-required") =>
        {
            Noted::Text(Words::Closed(words(&message)))
        }
        Ok(RelayNotification::AuthenticationFailed) => {
            Noted::Ended("the relay does not accept our authentication (auth-required)".to_owned())
        }
        // Without its subscriptions a connection is useless; repeating the request at once is what the relay refused.
        Ok(RelayNotification::Message { message: RelayMessage::Closed { message, .. } }) => {
            Noted::Ended(format!("the relay closed a subscription: {message}"))
        }
        Ok(RelayNotification::Message { message: RelayMessage::Notice(notice) }) => {
            Noted::Text(Words::Notice(words(&notice)))
        }
        // A duplicate is not a failure.
        Ok(RelayNotification::Message { message: RelayMessage::Ok { status: false, message, .. } })
            if !message.starts_with("duplicate:") =>
        {
            Noted::Text(Words::Refusal(words(&message)))
        }
        Ok(RelayNotification::RelayStatus { status })
            if matches!(status, RelayStatus::Terminated | RelayStatus::Disconnected) =>
        {
            Noted::Ended(format!("the relay is {status}"))
        }
        Ok(RelayNotification::Shutdown) | Err(broadcast::error::RecvError::Closed) => {
            Noted::Ended("shut down".to_owned())
        }
        // Answers to events may be among the lost ones; those events count as unanswered.
        Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => Noted::Nothing,
    }
}
