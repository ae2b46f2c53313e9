//! A transaction that a seat is asked to sign, in parts that a person can check.

use ::bitcoin::Address;
use serde::{Deserialize, Serialize};

use crate::{
    actors::standing::policy::BoardToSign,
    bitcoin::chain::signal_of,
    protocol::{cohort::standing::OpportunityKind, hash::SignalBytes, network::Network},
};

/// What an output is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// It goes back to the beacon of the cohort, or of its successor.
    Change,
    /// It is the signal, which announces.
    Signal,
    /// It is the operator's.
    Operator,
}

/// A coin that is spent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// The transaction and the number of the output.
    pub outpoint: String,
    /// Satoshi.
    pub value: u64,
}

/// An output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// What it is for.
    pub purpose: Purpose,
    /// Satoshi.
    pub value: u64,
    /// To which address it pays; none for the signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// A transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// What it does: it announces, or moves coins together.
    pub kind: OpportunityKind,
    /// What it announces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<SignalBytes>,
    /// What it spends.
    pub inputs: Vec<Input>,
    /// What it pays.
    pub outputs: Vec<Output>,
    /// The fee, in satoshi.
    pub fee: u64,
    /// Its size when it is signed, in vB.
    pub vsize: u64,
}

impl Explained {
    /// The transaction of a board, whose change goes to the address `change`.
    pub(super) fn of(board: &BoardToSign, change: &str, network: Network) -> Self {
        let spent: u64 = board.coins.iter().map(|coin| coin.value).sum();
        let mut paid = 0;
        let output = |output: &::bitcoin::TxOut| {
            let address = Address::from_script(&output.script_pubkey, network.to_bitcoin()).ok();
            let address = address.map(|address| address.to_string());
            let purpose = match () {
                () if output.script_pubkey.is_op_return() => Purpose::Signal,
                () if address.as_deref() == Some(change) => Purpose::Change,
                () => Purpose::Operator,
            };
            paid += output.value.to_sat();
            Output { purpose, value: output.value.to_sat(), address }
        };
        let outputs = board.transaction.output.iter().map(output).collect();
        let input = |coin: &crate::protocol::cohort::standing::CoinRef| Input {
            outpoint: format!("{}:{}", coin.txid, coin.vout),
            value: coin.value,
        };
        Self {
            kind: board.kind,
            signal: signal_of(&board.transaction),
            inputs: board.coins.iter().map(input).collect(),
            outputs,
            fee: spent.saturating_sub(paid),
            vsize: board.vsize,
        }
    }
}
