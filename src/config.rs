//! Configuration: settings from flags, environment variables and a TOML file, in this order of precedence.
//!
//! The settings of each program are one struct of options. clap fills it from the command line and the environment,
//! serde fills it from the file, and the two are merged.

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
        span.map_err(|error| format!("a length of time expected, e.g. 90s, 15m or `2h 30m`: {error}"))
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

/// A length of time that is not zero. A wait of zero would fail at once, or repeat without a pause.
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

/// Reads a TOML file of settings. An unknown key is an error: the setting would have no effect.
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
        // An empty file is a valid configuration. A file that is not TOML at all gives no better error than its first
        // line.
        refuse(match inputs::describe(&bytes) {
            Some(found) => format!("TOML expected; it {found}"),
            None => error.to_string(),
        })
    })
}

/// A struct of options whose `None`s another one fills.
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
            /// These settings, with `under`'s where they are `None`.
            #[must_use]
            pub(crate) fn over(self, under: Self) -> Self {
                Self { $($($field: self.$field.or(under.$field),)*)* }
            }
        }
    };
}

pub(crate) use settings;

/// A key of a table of a configuration file, for the page of all settings and for the sample.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// The key.
    pub(crate) name: &'static str,
    /// What it means, as lines.
    pub(crate) help: &'static [&'static str],
    /// What it is without being set; nothing if it must be set, or is not set.
    pub(crate) default: &'static str,
    /// A value in TOML.
    pub(crate) sample: &'static str,
}

/// A struct that serde reads from a table of a configuration file, with [`Key`]s that describe it. Each field is written as
/// `/// help`, `"key" = "a value in TOML", default "text" => field: Type`.
macro_rules! table {
    (
        $(#[$meta:meta])*
        struct $name:ident {
            $(
                $(#[doc = $help:literal])+
                $key:literal = $sample:literal $(, default $default:literal)? => $(#[$field_meta:meta])* $field:ident: $type:ty;
            )*
            $(sub $(#[$sub_meta:meta])* $sub:ident: $sub_type:ty;)*
        }
    ) => {
        $(#[$meta])*
        struct $name {
            $(
                $(#[doc = $help])+
                #[serde(rename = $key)]
                $(#[$field_meta])*
                $field: $type,
            )*
            $($(#[$sub_meta])* $sub: $sub_type,)*
        }

        impl $name {
            const KEYS: &[$crate::config::Key] = &[$($crate::config::Key {
                name: $key,
                help: &[$($help),+],
                default: concat!($($default)?),
                sample: $sample,
            }),*];
        }
    };
}

pub(crate) use table;
