//! Resolution options (rules R-2 and R-12): read once, and refused before any input or output.

use std::num::NonZeroU32;

use oxsdatatypes::DateTime;
use serde_json::Value;

use super::error::ResolutionError;
use crate::{
    jcs,
    text::shown_within,
    update::{date_time_stamp, instant},
};

/// How much of an option's text is shown, in characters.
const MOST_SHOWN: usize = 100;

/// The confirmations that a signal needs by default (rule R-2).
pub const DEFAULT_MIN_CONF: u32 = 6;

/// Why the options are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// Not a JSON object.
    #[error("the resolution options are not an object")]
    NotAnObject,
    /// An old version is asked for in two ways.
    #[error("versionId and versionTime are both given; only one of them can be (rule R-12)")]
    VersionIdAndTime,
    /// Not text of an integer.
    #[error("versionId is {0}, where the text of an integer is expected, such as \"2\" (rule R-12)")]
    VersionId(String),
    /// Not a time in UTC.
    #[error("versionTime is {0}, where a time in UTC is expected, such as \"2026-10-01T12:00:00Z\" (rule R-12)")]
    VersionTime(String),
    /// Not a number of confirmations.
    #[error("minConf is {0}, where an integer of at least 1 is expected (rule R-2)")]
    MinConf(String),
    /// Not a number of rounds.
    #[error("maxDiscoveryRounds is {0}, where an integer of at least 1 is expected")]
    MaxDiscoveryRounds(String),
}

/// What a resolution is asked for. By default the newest version, 6 confirmations and no limit of rounds.
///
/// ```
/// use btcr2_aggregation_protocol::resolution::ResolutionOptions;
///
/// let options = ResolutionOptions::default().with_version_id("2")?.with_min_conf(1)?;
/// assert_eq!(options, ResolutionOptions::from_value(&serde_json::json!({ "versionId": "2", "minConf": 1 }))?);
/// assert!(options.with_version_time("2026-10-01T12:00:00Z").is_err(), "one or the other");
/// # Ok::<(), btcr2_aggregation_protocol::resolution::ResolutionError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ResolutionOptions {
    pub(super) version: Version,
    pub(super) min_conf: u64,
    pub(super) max_discovery_rounds: Option<NonZeroU32>,
}

/// The version that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Version {
    Latest,
    /// The number, `None` where no document has it (0, negative, beyond 2^64); and its text, to be shown.
    Id(Option<u64>, String),
    /// The version in force at that time.
    Time(DateTime),
}

impl Default for ResolutionOptions {
    fn default() -> Self {
        Self { version: Version::Latest, min_conf: DEFAULT_MIN_CONF.into(), max_discovery_rounds: None }
    }
}

impl ResolutionOptions {
    /// Asks for version `text`, an integer in ASCII. One that no document has, `"0"` or a negative one, is not an error
    /// here: the resolution ends in `NOT_FOUND`.
    ///
    /// # Errors
    /// `INVALID_OPTIONS`: not an integer, or `versionTime` is given already (rule R-12).
    pub fn with_version_id(self, text: &str) -> Result<Self, ResolutionError> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(OptionsError::VersionId(quoted(text)).into());
        }
        // What does not parse is negative or too large.
        let number = text.parse().ok().filter(|number| *number >= 1);
        self.with_version(Version::Id(number, shown_within(text, MOST_SHOWN).into_owned()))
    }

    /// Asks for the version that was in force at `text`, in the form `YYYY-MM-DDThh:mm:ssZ`.
    ///
    /// # Errors
    /// `INVALID_OPTIONS`: another form or no such time, or `versionId` is given already (rule R-12).
    pub fn with_version_time(self, text: &str) -> Result<Self, ResolutionError> {
        const FORM: &[u8] = b"dddd-dd-ddTdd:dd:ddZ";
        let in_form = text.len() == FORM.len()
            && text.bytes().zip(FORM).all(|(byte, form)| match form {
                b'd' => byte.is_ascii_digit(),
                form => byte == *form,
            });
        match Some(text).filter(|_| in_form).and_then(date_time_stamp) {
            Some(time) => self.with_version(Version::Time(time)),
            None => Err(OptionsError::VersionTime(quoted(text)).into()),
        }
    }

    /// Asks for so many confirmations of every signal (rule R-2).
    ///
    /// # Errors
    /// `INVALID_OPTIONS`: 0.
    pub fn with_min_conf(mut self, confirmations: u64) -> Result<Self, ResolutionError> {
        if confirmations == 0 {
            return Err(OptionsError::MinConf(confirmations.to_string()).into());
        }
        self.min_conf = confirmations;
        Ok(self)
    }

    /// Limits how often addresses are scanned: a document that goes on naming new ones ends in `INTERNAL_ERROR`.
    ///
    /// # Errors
    /// `INVALID_OPTIONS`: 0.
    pub fn with_max_discovery_rounds(mut self, rounds: u32) -> Result<Self, ResolutionError> {
        let error = || OptionsError::MaxDiscoveryRounds(rounds.to_string());
        self.max_discovery_rounds = Some(NonZeroU32::new(rounds).ok_or_else(error)?);
        Ok(self)
    }

    /// Reads the JSON form: `versionId` and `versionTime` (text), `minConf` and `maxDiscoveryRounds` (integers). Other
    /// members are not looked at; `sidecar` is [`SidecarData`](super::SidecarData)'s.
    ///
    /// # Errors
    /// `INVALID_OPTIONS`, with what was found and what was expected.
    pub fn from_value(options: &Value) -> Result<Self, ResolutionError> {
        let fields = options.as_object().ok_or(OptionsError::NotAnObject)?;
        let mut read = Self::default();
        if let Some(value) = fields.get("versionId") {
            let text = value.as_str().ok_or_else(|| OptionsError::VersionId(show(value)))?;
            read = read.with_version_id(text)?;
        }
        if let Some(value) = fields.get("versionTime") {
            let text = value.as_str().ok_or_else(|| OptionsError::VersionTime(show(value)))?;
            read = read.with_version_time(text)?;
        }
        if let Some(value) = fields.get("minConf") {
            let confirmations = integer(value).ok_or_else(|| OptionsError::MinConf(show(value)))?;
            read = read.with_min_conf(confirmations)?;
        }
        if let Some(value) = fields.get("maxDiscoveryRounds") {
            let rounds = integer(value).and_then(|rounds| u32::try_from(rounds).ok());
            read = read
                .with_max_discovery_rounds(rounds.ok_or_else(|| OptionsError::MaxDiscoveryRounds(show(value)))?)?;
        }
        Ok(read)
    }

    /// The confirmations that a signal needs.
    pub const fn min_conf(&self) -> u64 {
        self.min_conf
    }

    fn with_version(mut self, version: Version) -> Result<Self, ResolutionError> {
        match (&self.version, &version) {
            (Version::Id(..), Version::Time(_)) | (Version::Time(_), Version::Id(..)) => {
                Err(OptionsError::VersionIdAndTime.into())
            }
            _ => {
                self.version = version;
                Ok(self)
            }
        }
    }
}

impl Version {
    /// Whether the version in force at `mediantime` is after the one that is asked for. Equal counts as before (rule
    /// R-10).
    pub(super) fn is_before(&self, mediantime: u32) -> bool {
        matches!(self, Self::Time(time) if instant(mediantime) > *time)
    }
}

/// An integer, also where it is spelled with a fraction of zero.
fn integer(value: &Value) -> Option<u64> {
    let mut value = value.clone();
    jcs::unify_numbers(&mut value);
    value.as_u64()
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", shown_within(text, MOST_SHOWN))
}

fn show(value: &Value) -> String {
    shown_within(&value.to_string(), MOST_SHOWN).into_owned()
}
