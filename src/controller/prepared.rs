//! A file with an update: a JSON Patch to be signed, or an update that is signed already.

use serde_json::Value;

use crate::protocol::update::SignedUpdate;

/// What such a file holds.
#[derive(Clone, Debug)]
pub enum UpdateFile {
    /// A JSON Patch (RFC 6902).
    Patch(Value),
    /// A signed update.
    Signed {
        /// The update.
        update: SignedUpdate,
        /// The document that it starts from, if the file has it.
        source: Option<Value>,
        /// Sidecar Data, if the file has some.
        sidecar: Option<Value>,
    },
}

impl UpdateFile {
    /// Reads a JSON Patch, a file of `update --out`, or a signed update.
    ///
    /// # Errors
    /// What was expected, in words.
    pub fn from_value(mut value: Value) -> Result<Self, String> {
        if value.is_array() {
            return Ok(Self::Patch(value));
        }
        let (mut source, mut sidecar) = (None, None);
        if let Some(update) = value.get_mut("update").map(Value::take) {
            source = value.get_mut("sourceDocument").map(Value::take);
            sidecar = value.get_mut("sidecar").map(Value::take);
            value = update;
        }
        if value.get("patch").is_none() || value.get("proof").is_none() {
            return Err("a JSON Patch (an array), a file of `update --out`, or a signed update expected".to_owned());
        }
        let update = SignedUpdate::from_value(value).map_err(|error| error.to_string())?;
        Ok(Self::Signed { update, source, sidecar })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_form_of_an_update_is_read() {
        assert!(matches!(UpdateFile::from_value(json!([])), Ok(UpdateFile::Patch(_))));
        let update = json!({ "patch": [], "proof": {} });
        let alone = UpdateFile::from_value(update.clone()).unwrap();
        assert!(matches!(alone, UpdateFile::Signed { source: None, sidecar: None, .. }));
        let file = json!({ "update": update, "sourceDocument": { "id": 1 }, "sidecar": {} });
        let UpdateFile::Signed { source, sidecar, .. } = UpdateFile::from_value(file).unwrap() else { panic!() };
        assert_eq!((source, sidecar), (Some(json!({ "id": 1 })), Some(json!({}))));
        for wrong in [json!({}), json!(1), json!({ "patch": [] }), json!({ "update": [] })] {
            assert!(UpdateFile::from_value(wrong.clone()).unwrap_err().contains("expected"), "{wrong}");
        }
    }
}
