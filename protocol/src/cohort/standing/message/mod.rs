//! The messages of standing cohorts (docs/standing.md, "Messages"). Field names are binding; byte strings and transactions are encoded as in
//! one-time cohorts.

mod board;
mod formation;
mod history;
mod moving;
mod number;
mod registration;

use serde::de::DeserializeOwned;
use serde_json::Value;

pub use self::{
    board::{BoardPart, BoardRequest, MAX_BOARD_PART, SeatProof},
    formation::{Applicant, SeatAccept, SeatOptIn, SeatRefused, StandingAdvert, StandingReady, possession_digest},
    history::{HistoryGiven, HistoryRequest, MAX_HISTORY, PastAnnouncement},
    moving::SuccessorFormed,
    number::{
        Confirmation, ConfirmationRequest, EndKind, FullUpdate, NumberEndedNotice, OpportunityOpened, Pending,
        ResponsePart,
    },
    registration::{
        AskedRow, ControlProof, RegisterRows, RowAnswer, RowsAnswered, RowsGiven, RowsRequest, RowsReturned,
    },
};
pub use super::limits::{MAX_PART_ENTRIES, MAX_PART_ROWS, MAX_PEERS};
use crate::id::CohortId;

/// Reads the JSON of a body as one type.
pub(crate) trait BodyReader {
    /// Why it is not of that type.
    type Error;

    /// Reads it.
    fn read<T: DeserializeOwned>(self) -> Result<T, Self::Error>;
}

struct Text<'a>(&'a str);

impl BodyReader for Text<'_> {
    type Error = serde_json::Error;

    fn read<T: DeserializeOwned>(self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.0)
    }
}

macro_rules! messages {
    ($($(#[$doc:meta])* $variant:ident = $kind:literal;)*) => {
        /// A message between a service and a seat.
        #[derive(Clone, Debug, PartialEq)]
        pub enum StandingMessage {
            $($(#[$doc])* $variant($variant),)*
        }

        impl StandingMessage {
            /// The names of all types, without the common prefix.
            pub const TYPES: &[&str] = &[$($kind),*];

            /// The name of the type, without the common prefix.
            pub const fn short_type(&self) -> &'static str {
                match self { $(Self::$variant(_) => $kind,)* }
            }

            /// The cohort.
            pub const fn cohort_id(&self) -> &CohortId {
                match self { $(Self::$variant(message) => &message.cohort_id,)* }
            }

            /// The body's JSON.
            pub fn to_json(&self) -> String {
                match self { $(Self::$variant(message) => serde_json::to_string(message),)* }
                    .expect("messages have text keys and numbers that JSON has")
            }

            /// Reads a body's JSON as that of the type with this name; `None` for an unknown type.
            pub fn from_json(short_type: &str, json: &str) -> Option<Result<Self, serde_json::Error>> {
                Self::read(short_type, Text(json))
            }

            /// Reads a body of the type with this name; `None` for an unknown type.
            pub(crate) fn read<R: BodyReader>(short_type: &str, reader: R) -> Option<Result<Self, R::Error>> {
                match short_type {
                    $($kind => Some(reader.read().map(Self::$variant)),)*
                    _ => None,
                }
            }
        }

        $(impl From<$variant> for StandingMessage {
            fn from(message: $variant) -> Self {
                Self::$variant(message)
            }
        })*
    };
}

messages! {
    /// The service advertises a standing cohort to every peer.
    StandingAdvert = "standing/cohort_advert";
    /// A participant asks for a seat.
    SeatOptIn = "standing/opt_in";
    /// The service gives it the seat, if the cohort forms.
    SeatAccept = "standing/opt_in_accept";
    /// The service does not give it a seat.
    SeatRefused = "standing/opt_in_refused";
    /// The cohort has formed.
    StandingReady = "standing/cohort_ready";
    /// A seat registers and unregisters indexes.
    RegisterRows = "standing/register";
    /// What became of its rows.
    RowsAnswered = "standing/registered";
    /// A seat returns rows to a service that has lost them.
    RowsReturned = "standing/rows_returned";
    /// A seat asks for rows that it has missed.
    RowsRequest = "standing/rows_request";
    /// The rows that it has asked for.
    RowsGiven = "standing/rows";
    /// A seat has updates.
    Pending = "standing/pending";
    /// The service opens a number. A seat sends it back to a service that has opened the number otherwise before.
    OpportunityOpened = "standing/opportunity";
    /// A seat's response, in parts.
    ResponsePart = "standing/response";
    /// The service asks for confirmation.
    ConfirmationRequest = "standing/confirmation_request";
    /// A seat confirms, refuses, or has lost its nonces.
    Confirmation = "standing/confirmation";
    /// A number has ended.
    NumberEndedNotice = "standing/number_ended";
    /// A seat asks for a part of a board.
    BoardRequest = "standing/board_request";
    /// The part that it has asked for.
    BoardPart = "standing/board_part";
    /// The service names the cohort to which this one moves.
    SuccessorFormed = "standing/successor";
    /// A seat asks for the announcements that it has missed.
    HistoryRequest = "standing/history_request";
    /// The announcements that it has asked for.
    HistoryGiven = "standing/history";
}

impl StandingMessage {
    /// The documents in the message that may be any JSON, with the names of their fields.
    pub(crate) fn documents(&self) -> Vec<(&'static str, Option<&Value>)> {
        match self {
            Self::RegisterRows(asked) => {
                let genesis = asked.rows.iter().map(|row| ("rows.genesisDocument", row.genesis_document.as_ref()));
                genesis.chain(asked.rows.iter().map(|row| ("rows.sidecar", row.sidecar.as_ref()))).collect()
            }
            Self::ResponsePart(part) => {
                part.updates.iter().map(|full| ("updates.update", Some(&full.update))).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether the service sends it to every peer.
    pub const fn is_advert(&self) -> bool {
        matches!(self, Self::StandingAdvert(_))
    }
}
