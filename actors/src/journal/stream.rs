//! The names of streams.

use std::fmt;

use btcr2_aggregation_protocol::{
    did::Did,
    id::{CohortId, SessionId},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What the display of a stream's name escapes.
const UNSAFE: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b':').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Names a stream: `cohort/<id>`, `signing/<id>`, `participant/<did>/<service>/<cohort id>`, `membership/<did>`,
/// `announcement/<id>`, `standing/<id>`, `number/<number>/<id>`, `seat/<did>`, `watch/<owner>`, `acknowledged/<stream>`. Peers choose
/// parts of it: it is a key, never a path, and is displayed [escaped](Self::escaped).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(String);

/// The subject of a stream, parsed from its name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamKind {
    /// A cohort of a service.
    Cohort(CohortId),
    /// A signing session.
    Signing(SessionId),
    /// A member's side of a cohort.
    Participant {
        /// The member.
        did: Did,
        /// The service.
        service: Did,
        /// The cohort.
        cohort_id: CohortId,
    },
    /// A member's cohorts.
    Membership(Did),
    /// Following a cohort's transaction into the chain, which a host does.
    Announcement(CohortId),
    /// A standing cohort of a service.
    Standing(CohortId),
    /// A number of a standing cohort.
    Number {
        /// The number.
        number: u64,
        /// The cohort.
        cohort_id: CohortId,
    },
    /// A seat in a standing cohort.
    Seat(Did),
    /// What the host has acknowledged of another stream.
    Acknowledged(StreamId),
    /// Anything else.
    Other,
}

impl StreamId {
    /// The stream of a service's cohort.
    pub fn of_cohort(cohort_id: &CohortId) -> Self {
        Self::new(format!("cohort/{cohort_id}"))
    }

    /// The stream of a cohort's announcement.
    pub fn of_announcement(cohort_id: &CohortId) -> Self {
        Self::new(format!("announcement/{cohort_id}"))
    }

    /// The stream of a participant's memberships.
    pub fn of_memberships(did: &Did) -> Self {
        Self::new(format!("membership/{did}"))
    }

    /// The stream of a participant's session in a cohort of `service`.
    pub fn of_session(did: &Did, service: &Did, cohort_id: &CohortId) -> Self {
        Self::new(format!("participant/{did}/{service}/{cohort_id}"))
    }

    /// The stream of a standing cohort.
    pub fn of_standing(cohort_id: &CohortId) -> Self {
        Self::new(format!("standing/{cohort_id}"))
    }

    /// The stream of a number of a standing cohort.
    pub fn of_number(cohort_id: &CohortId, number: u64) -> Self {
        Self::new(format!("number/{number}/{cohort_id}"))
    }

    /// The stream of a seat.
    pub fn of_seat(did: &Did) -> Self {
        Self::new(format!("seat/{did}"))
    }

    /// The stream in which it is stored how far the chain was read for a cohort or a seat.
    pub(crate) fn of_watch(owner: &str) -> Self {
        Self::new(format!("watch/{owner}"))
    }

    /// The stream of what the host has acknowledged of `stream`.
    pub fn of_acknowledgements(stream: &Self) -> Self {
        Self::new(format!("acknowledged/{stream}"))
    }

    /// The stream in which it is stored how far a seat has read the history of its cohort.
    pub(crate) fn of_history(owner: &str) -> Self {
        Self::new(format!("history/{owner}"))
    }

    /// A stream of the given name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The subject of the stream.
    pub fn kind(&self) -> StreamKind {
        self.parse_kind().unwrap_or(StreamKind::Other)
    }

    fn parse_kind(&self) -> Option<StreamKind> {
        let (role, rest) = self.0.split_once('/')?;
        match role {
            "cohort" => CohortId::parse(rest).ok().map(StreamKind::Cohort),
            "announcement" => CohortId::parse(rest).ok().map(StreamKind::Announcement),
            "standing" => CohortId::parse(rest).ok().map(StreamKind::Standing),
            "number" => {
                let (number, rest) = rest.split_once('/')?;
                let cohort_id = CohortId::parse(rest).ok()?;
                Some(StreamKind::Number { number: number.parse().ok()?, cohort_id })
            }
            "acknowledged" => Some(StreamKind::Acknowledged(Self::new(rest))),
            "seat" => Did::parse(rest).ok().map(StreamKind::Seat),
            "membership" => Did::parse(rest).ok().map(StreamKind::Membership),
            "signing" => SessionId::parse(rest).ok().map(StreamKind::Signing),
            "participant" => {
                // A cohort's id may contain slashes, DIDs contain none.
                let (did, rest) = rest.split_once('/')?;
                let (service, cohort_id) = rest.split_once('/')?;
                let did = Did::parse(did).ok()?;
                let service = Did::parse(service).ok()?;
                let cohort_id = CohortId::parse(cohort_id).ok()?;
                Some(StreamKind::Participant { did, service, cohort_id })
            }
            _ => None,
        }
    }

    /// The name for display: every character other than ASCII letters, digits and `/:-._~` becomes `%` and two hex
    /// digits, so that the name is safe in a terminal, a shell command and a log.
    pub fn escaped(&self) -> impl fmt::Display + '_ {
        utf8_percent_encode(&self.0, UNSAFE)
    }

    /// The stream whose [escaped](Self::escaped) name is `text`; `None` if there is none.
    pub fn from_escaped(text: &str) -> Option<Self> {
        let stream = Self(percent_decode_str(text).decode_utf8().ok()?.into_owned());
        // Each name has exactly one spelling.
        let spelled = stream.escaped().to_string();
        (spelled == text).then_some(stream)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
