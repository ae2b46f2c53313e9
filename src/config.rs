//! Configuration: what a program is told by flags, by environment variables and by a TOML file, in that order of precedence.
//!
//! Each program's settings are one struct of options, filled from the command line and the environment by clap and from the
//! file by serde, and then laid over each other.

use std::{fmt, path::Path, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de};

use crate::inputs::{self, InputError};

/// A length of time as people write it: `90s`, `15m`, `2h 30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let span = humantime::parse_duration(text.trim()).map(Self);
        span.map_err(|error| format!("a length of time expected, 90s, 15m or `2h 30m` say: {error}"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A length of time that is not nothing: what waits for no time at all fails at once, or repeats without a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period(pub Duration);

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Span(span) = text.parse()?;
        if span.is_zero() { Err("must be longer than 0s".to_owned()) } else { Ok(Self(span)) }
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct ConfigError {
    path: String,
    problem: String,
}

/// Reads a TOML file of settings. A key that is not known is an error: it would otherwise be a setting that has no effect.
///
/// # Errors
/// [`ConfigError`], naming the file and the line.
pub fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, ConfigError> {
    let refuse = |problem: String| ConfigError { path: path.display().to_string(), problem };
    let bytes = inputs::bytes(path).map_err(|error| match error {
        InputError::Io { error, .. } => refuse(error.to_string()),
        InputError::Content { problem, .. } => refuse(problem),
    })?;
    let text = inputs::text_of(&bytes).map_err(refuse)?;
    toml::from_str(text).map_err(|error| {
        // Empty is a configuration too, and what is no TOML at all has nothing but a first line to show.
        refuse(match inputs::describe(&bytes) {
            Some(found) => format!("TOML expected; it {found}"),
            None => error.to_string(),
        })
    })
}

/// A struct of options whose gaps another one fills.
macro_rules! settings {
    (
        $(#[$meta:meta])*
        $visibility:vis struct $name:ident {
            $($heading:literal { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* })*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, clap::Args, serde::Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        $visibility struct $name {
            $($(
                $(#[$field_meta])*
                #[arg(help_heading = $heading)]
                pub(crate) $field: Option<$type>,
            )*)*
        }

        impl $name {
            /// These settings, with `under`'s where there are none.
            #[must_use]
            pub(crate) fn over(self, under: Self) -> Self {
                Self { $($($field: self.$field.or(under.$field),)*)* }
            }
        }
    };
}

pub(crate) use settings;
