//! An opportunity as the service opens it: one try at an announcement, signed, numbered from 1 in its cohort
//! (docs/standing.md, "Opportunity").

use bitcoin::{Amount, OutPoint, Transaction, Txid, hashes::Hash};
use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};

use super::{context::CohortContext, roster::Row};
use crate::{
    hash::DocumentHash,
    key::{PublicKey, SecretKey, Signature},
    message::signed,
    names::named,
    output::Coin,
    time::Timestamp,
};

const OPPORTUNITY: &str = "btcr2-aggregation/standing/opportunity/1";

named! {
    /// What a number's transaction does.
    OpportunityKind {
        /// It announces updates.
        Announcement = "announcement",
        /// It joins coins, and announces nothing.
        Refresh = "refresh",
        /// It announces updates that replace the beacon address by that of the successor, to which it pays its change.
        Move = "move",
        /// There is none: the board shows that the seats have one roster. It spends nothing.
        Roster = "roster",
    }
}

impl OpportunityKind {
    /// Whether its transaction announces updates.
    pub const fn announces(self) -> bool {
        matches!(self, Self::Announcement | Self::Move)
    }
}

impl<'de> Deserialize<'de> for OpportunityKind {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let found = Self::ALL.iter().find(|kind| kind.as_str() == text);
        found.copied().ok_or_else(|| serde::de::Error::custom("announcement, refresh, move or roster expected"))
    }
}

/// A coin in a message: where it is, and its value in satoshi.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CoinRef {
    /// The transaction.
    pub txid: Txid,
    /// The number of the output.
    pub vout: u32,
    /// Satoshi.
    pub value: u64,
}

impl From<&Coin> for CoinRef {
    fn from(coin: &Coin) -> Self {
        Self { txid: coin.outpoint.txid, vout: coin.outpoint.vout, value: coin.value.to_sat() }
    }
}

impl From<&CoinRef> for Coin {
    fn from(coin: &CoinRef) -> Self {
        Self { outpoint: OutPoint::new(coin.txid, coin.vout), value: Amount::from_sat(coin.value) }
    }
}

/// A signed transaction in hex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TransactionHex(#[serde(with = "signed")] pub std::sync::Arc<Transaction>);

/// An opportunity, signed by the service: it cannot later deny that it has opened this number so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Opportunity {
    /// From 1 in its cohort.
    pub number: u64,
    /// What its transaction does.
    pub kind: OpportunityKind,
    /// Until when a seat may respond, in Unix seconds.
    pub respond_by: u64,
    /// The roster that it covers.
    pub roster_hash: DocumentHash,
    /// What its transaction spends; one coin, except for a refresh, and for a roster none.
    pub coins: Vec<CoinRef>,
    /// The rows since the last number, in their order.
    pub rows: Vec<Row>,
    /// How many rows have led to the roster, these included: a seat that has missed some sees it.
    pub row_count: u64,
    /// The signed transactions from the last confirmed coin to `coins`, in their order.
    pub transactions: Vec<TransactionHex>,
    /// BIP-340, of the service's key.
    pub signature: Signature,
}

impl Opportunity {
    /// The opportunity, signed.
    #[must_use]
    pub fn sign(mut self, context: &CohortContext, key: &SecretKey, rng: &mut dyn CryptoRng) -> Self {
        self.signature = key.sign(&self.digest(context), rng);
        self
    }

    /// Whether the service with this key has signed it.
    pub fn is_signed(&self, context: &CohortContext, service: &PublicKey) -> bool {
        service.x_only().verify(&self.digest(context), &self.signature)
    }

    /// The tagged hash of number, kind, `respondBy`, roster hash, number of rows, coins (txid in its internal byte order, output number, value), and the txids of
    /// the transactions. The roster hash commits to the rows.
    pub fn digest(&self, context: &CohortContext) -> [u8; 32] {
        let coins: Vec<u8> = self
            .coins
            .iter()
            .flat_map(|coin| {
                let txid = coin.txid.to_byte_array();
                txid.into_iter().chain(coin.vout.to_be_bytes()).chain(coin.value.to_be_bytes())
            })
            .collect();
        let transactions: Vec<u8> =
            self.transactions.iter().flat_map(|tx| tx.0.compute_txid().to_byte_array()).collect();
        let parts: [&[u8]; 7] = [
            &self.number.to_be_bytes(),
            self.kind.as_str().as_bytes(),
            &self.respond_by.to_be_bytes(),
            self.roster_hash.as_bytes(),
            &self.row_count.to_be_bytes(),
            &coins,
            &transactions,
        ];
        context.digest(OPPORTUNITY, &parts)
    }

    /// The coins.
    pub fn coins(&self) -> Vec<Coin> {
        self.coins.iter().map(Coin::from).collect()
    }

    /// Until when a seat may respond.
    pub fn deadline(&self) -> Timestamp {
        Timestamp::from_secs(self.respond_by)
    }
}
