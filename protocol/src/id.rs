//! Identifiers of cohorts and signing sessions.

use std::{fmt, str::FromStr, sync::Arc};

use rand_core::CryptoRng;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest identifier that is accepted, in bytes. UUIDs, which this and the TypeScript implementation generate,
/// take 36.
const MAX_LEN: usize = 64;

/// A text that cannot be an identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an identifier is 1 to {MAX_LEN} visible ASCII characters")]
pub struct IdError;

macro_rules! id_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses an identifier that a peer chose.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
                if visible && (1..=MAX_LEN).contains(&text.len()) { Ok(Self(text.into())) } else { Err(IdError) }
            }

            /// A new random UUID (version 4) from the caller's randomness.
            pub fn generate(rng: &mut dyn CryptoRng) -> Self {
                let mut bytes = [0; 16];
                rng.fill_bytes(&mut bytes);
                Self(uuid::Builder::from_random_bytes(bytes).into_uuid().to_string().into())
            }

            /// The identifier's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
            }
        }
    };
}

id_newtype!(
    /// The identifier of a cohort, chosen by its Aggregation Service.
    CohortId
);
id_newtype!(
    /// The identifier of a signing session of a cohort.
    SessionId
);
