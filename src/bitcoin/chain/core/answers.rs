//! The answers of a node. Only the used fields are read, so that other versions of the node work too.

use std::collections::BTreeMap;

use ::bitcoin::{Amount, BlockHash, ScriptBuf, Txid};
use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct BlockInfo {
    pub(super) height: u32,
    pub(super) tx: Vec<Txid>,
    pub(super) previousblockhash: Option<BlockHash>,
}

#[derive(Deserialize)]
pub(super) struct HeaderInfo {
    pub(super) time: u32,
    pub(super) mediantime: u32,
}

#[derive(Deserialize)]
pub(super) struct Scan {
    pub(super) bestblock: BlockHash,
    pub(super) unspents: Vec<ScannedCoin>,
}

#[derive(Deserialize)]
pub(super) struct ScannedCoin {
    pub(super) txid: Txid,
    pub(super) vout: u32,
    #[serde(with = "::bitcoin::amount::serde::as_btc")]
    pub(super) amount: Amount,
    pub(super) height: u32,
    pub(super) blockhash: BlockHash,
    #[serde(default)]
    pub(super) coinbase: bool,
    #[serde(rename = "scriptPubKey")]
    pub(super) script: ScriptBuf,
}

#[derive(Deserialize)]
pub(super) struct ActivityInfo {
    pub(super) activity: Vec<Event>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct ScriptInfo {
    pub(super) hex: ScriptBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Event {
    Receive {
        #[serde(with = "::bitcoin::amount::serde::as_btc")]
        amount: Amount,
        txid: Txid,
        vout: u32,
        output_spk: Option<ScriptInfo>,
        blockhash: Option<BlockHash>,
        height: Option<u32>,
    },
    Spend {
        spend_txid: Txid,
        prevout_txid: Txid,
        prevout_vout: u32,
        prevout_spk: Option<ScriptInfo>,
        blockhash: Option<BlockHash>,
        height: Option<u32>,
    },
}

#[derive(Deserialize)]
pub(super) struct Estimate {
    #[serde(default, with = "::bitcoin::amount::serde::as_btc::opt")]
    pub(super) feerate: Option<Amount>,
}

#[derive(Deserialize)]
pub(super) struct MempoolInfo {
    #[serde(with = "::bitcoin::amount::serde::as_btc")]
    pub(super) mempoolminfee: Amount,
    #[serde(with = "::bitcoin::amount::serde::as_btc")]
    pub(super) minrelaytxfee: Amount,
    #[serde(default, with = "::bitcoin::amount::serde::as_btc::opt")]
    pub(super) incrementalrelayfee: Option<Amount>,
}

#[derive(Deserialize)]
pub(super) struct PackageInfo {
    pub(super) package_msg: String,
    #[serde(rename = "tx-results", default)]
    pub(super) results: BTreeMap<String, PackageResult>,
}

#[derive(Deserialize)]
pub(super) struct PackageResult {
    pub(super) error: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct ChainInfo {
    /// `main`, `test`, `signet`, `regtest`.
    pub(super) chain: String,
    pub(super) blocks: u32,
    pub(super) headers: u32,
    pub(super) bestblockhash: BlockHash,
    pub(super) mediantime: u32,
    /// The first block that a pruned node has.
    pub(super) pruneheight: Option<u32>,
    pub(super) initialblockdownload: bool,
    pub(super) verificationprogress: f64,
}

impl Event {
    /// The block of the event.
    pub(super) fn block(&self) -> Option<BlockHash> {
        match self {
            Self::Receive { blockhash, .. } | Self::Spend { blockhash, .. } => *blockhash,
        }
    }

    /// The script of the event.
    pub(super) fn script(&self) -> Option<&ScriptBuf> {
        match self {
            Self::Receive { output_spk: info, .. } | Self::Spend { prevout_spk: info, .. } => {
                info.as_ref().map(|info| &info.hex)
            }
        }
    }
}
