//! Bounded memory of past keys.

pub(crate) use btcr2_aggregation_protocol::remembered::Remembered;
