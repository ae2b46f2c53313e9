//! An envelope's JSON in one pass: all fields as values, and the text of the message's body.
//!
//! serde's derived types refuse a field that occurs twice; a [`Value`] holds the last one. Parsers differ in which one
//! they take, so here every field is recorded that occurs twice where a derived type would read it.

use std::fmt;

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value, value::RawValue};

use super::Body;
use crate::work;

/// An envelope's fields.
#[derive(Default)]
pub(super) struct Fields<'a> {
    /// All of them, with those of the message and its body.
    pub(super) all: Map<String, Value>,
    /// The text of the message's body, as it was received.
    pub(super) body: Option<&'a str>,
    /// A field of the message that occurs twice.
    pub(super) twice_in_message: Option<String>,
    /// A field of the message's body, or of a value in it, that occurs twice. Not of its documents: they may be any
    /// JSON, of which the last field counts.
    pub(super) twice_in_body: Option<String>,
}

impl<'a> Fields<'a> {
    /// Parses an object.
    pub(super) fn parse(text: &'a str) -> Result<Self, serde_json::Error> {
        work::parsed();
        let mut fields = Self::default();
        let mut parser = serde_json::Deserializer::from_str(text);
        parser.deserialize_map(Envelope(&mut fields))?;
        parser.end()?;
        Ok(fields)
    }
}

/// The fields of an envelope and of a message that have a meaning.
const IN_ENVELOPE: [&str; 7] = ["v", "from", "to", "timestamp", "nonce", "message", "sig"];
const IN_MESSAGE: [&str; 5] = ["type", "version", "from", "to", "body"];

struct Envelope<'f, 'a>(&'f mut Fields<'a>);

impl<'a> Visitor<'a> for Envelope<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let value = if key == "message" {
                map.next_value_seed(Message(self.0))?
            } else {
                map.next_value_seed(Node::new(&mut None))?
            };
            if IN_ENVELOPE.contains(&&*key) && self.0.all.contains_key(&key) {
                return Err(A::Error::custom(format!("duplicate field `{key}`")));
            }
            self.0.all.insert(key, value);
        }
        Ok(())
    }
}

/// The message, of which the body's text is needed too.
struct Message<'f, 'a>(&'f mut Fields<'a>);

impl<'a> DeserializeSeed<'a> for Message<'_, 'a> {
    type Value = Value;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for Message<'_, 'a> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object as message")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut message = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = if key == "body" {
                // The parser skips it, and then it is parsed: it is the only part whose text is needed.
                let text: &'a RawValue = map.next_value()?;
                self.0.body = Some(text.get());
                let body = Node { twice: &mut self.0.twice_in_body, is_body: true };
                body.deserialize(&mut serde_json::Deserializer::from_str(text.get())).map_err(A::Error::custom)?
            } else {
                map.next_value_seed(Node::new(&mut None))?
            };
            if IN_MESSAGE.contains(&&*key) && message.contains_key(&key) {
                self.0.twice_in_message = Some(key.clone());
            }
            message.insert(key, value);
        }
        Ok(Value::Object(message))
    }
}

/// Any value. The last key that occurs twice in one of its objects is written into `twice`.
struct Node<'t> {
    twice: &'t mut Option<String>,
    /// Whether it is a message's body: its documents are not watched.
    is_body: bool,
}

impl<'t> Node<'t> {
    const fn new(twice: &'t mut Option<String>) -> Self {
        Self { twice, is_body: false }
    }
}

impl<'a> DeserializeSeed<'a> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(Node::new(self.twice))? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'a>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            let mut unwatched = None;
            let is_document = self.is_body && Body::DOCUMENTS.contains(&&*key);
            let twice = if is_document { &mut unwatched } else { &mut *self.twice };
            let value = fields.next_value_seed(Node::new(twice))?;
            if object.contains_key(&key) {
                *self.twice = Some(key.clone());
            }
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}
