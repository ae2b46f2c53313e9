//! Byte strings in JSON: `{"__bytes": "<lower hex>"}`, an object with that one key.

use std::fmt;

use data_encoding::HEXLOWER;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor},
    ser::SerializeMap,
};
use serde_json::Value;

/// The only key of the object that represents a byte string.
pub(crate) const SENTINEL: &str = "__bytes";

/// A byte string of exactly `N` bytes. The reader parses it as a key, a nonce or a signature.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Debug for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl<const N: usize> Serialize for Bytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(SENTINEL, &HEXLOWER.encode(&self.0))?;
        map.end()
    }
}

impl<'de, const N: usize> Deserialize<'de> for Bytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SentinelVisitor<const N: usize>;

        impl<'de, const N: usize> Visitor<'de> for SentinelVisitor<N> {
            type Value = Bytes<N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{{\"{SENTINEL}\": <{N} bytes in lower-case hex>}}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (key, hex) =
                    map.next_entry::<String, String>()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
                if key != SENTINEL || map.next_key::<de::IgnoredAny>()?.is_some() {
                    return Err(de::Error::custom(format!("an object whose only key is {SENTINEL} expected")));
                }
                let bytes =
                    HEXLOWER.decode(hex.as_bytes()).map_err(|_| de::Error::custom("lower-case hex expected"))?;
                let found = bytes.len();
                bytes
                    .try_into()
                    .map(Bytes)
                    .map_err(|_| de::Error::custom(format!("{N} bytes expected, {found} found")))
            }
        }

        deserializer.deserialize_map(SentinelVisitor::<N>)
    }
}

/// Deserializes an optional field: absent is `None`, `null` is refused, as the wire format requires.
pub(crate) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Like [`present`], for fields that hold JSON of any kind except `null`.
pub(super) fn present_json<'de, D: Deserializer<'de>, T: From<Value>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Err(de::Error::custom("absent or a value expected, not null")),
        value => Ok(Some(value.into())),
    }
}

/// A whole number, at least 1, in any JSON notation (`2`, `2.0`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Positive(pub(super) u32);

impl<'de> Deserialize<'de> for Positive {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match NonNegative::deserialize(deserializer)? {
            NonNegative(0) => Err(de::Error::custom("at least 1 expected")),
            NonNegative(number) => Ok(Self(number)),
        }
    }
}

/// A whole number, at least 0, in any JSON notation (`0`, `0.0`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NonNegative(pub(super) u32);

impl<'de> Deserialize<'de> for NonNegative {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = f64::deserialize(deserializer)?;
        if number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number) {
            // In range and whole, so the conversion is exact.
            Ok(Self(number as u32))
        } else {
            Err(de::Error::custom("a whole number from 0 to 4294967295 expected"))
        }
    }
}

pub(super) fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    Positive::deserialize(deserializer).map(|number| number.0)
}

pub(super) fn some_positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    positive(deserializer).map(Some)
}

pub(super) fn some_non_negative<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    NonNegative::deserialize(deserializer).map(|number| Some(number.0))
}
