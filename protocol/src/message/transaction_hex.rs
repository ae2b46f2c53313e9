//! Transactions in lower-case hex, as serde's `with`.

/// A transaction without witness, in the legacy serialization.
pub(crate) mod unsigned {
    use bitcoin::{Transaction, consensus};
    use data_encoding::HEXLOWER;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(tx: &Transaction, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&consensus::encode::serialize_hex(tx))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Transaction, D::Error> {
        let hex = String::deserialize(deserializer)?;
        let bytes = HEXLOWER.decode(hex.as_bytes()).map_err(|_| de::Error::custom("lower-case hex expected"))?;
        let tx: Transaction = consensus::deserialize(&bytes).map_err(de::Error::custom)?;
        if tx.input.iter().any(|input| !input.witness.is_empty()) {
            return Err(de::Error::custom("a transaction without witness expected"));
        }
        // Refuses the segwit marker before empty witnesses, which parses but is not the legacy serialization.
        if consensus::serialize(&tx) != bytes {
            return Err(de::Error::custom("a transaction in the legacy serialization expected"));
        }
        Ok(tx)
    }
}

/// A transaction with its witness, in the serialization of BIP-144.
pub(crate) mod signed {
    use std::sync::Arc;

    use bitcoin::{Transaction, consensus};
    use data_encoding::HEXLOWER;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(tx: &Transaction, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER.encode(&consensus::serialize(tx)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Transaction>, D::Error> {
        let hex = String::deserialize(deserializer)?;
        let bytes = HEXLOWER.decode(hex.as_bytes()).map_err(|_| de::Error::custom("lower-case hex expected"))?;
        consensus::deserialize(&bytes).map(Arc::new).map_err(|_| de::Error::custom("a transaction expected"))
    }
}
