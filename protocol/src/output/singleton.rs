//! Singleton beacons (did:btcr2, "Singleton Beacon"): one DID announces one update from an address of its own.
//!
//! A KEY identifier starts with three of them, [`InitialBeacon`](crate::document::InitialBeacon); any document may list
//! others, [`SingletonBeacon`]. A member uses them when no cohort can announce for it. [`select_coins`](super::select_coins) chooses what is
//! spent. [`SingletonAnnouncement`] is the transaction, for a wallet to sign ([`SingletonAnnouncement::to_psbt`]) or
//! signed with the beacon's key ([`SingletonAnnouncement::sign`]).

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{
    Amount, CompressedPublicKey, EcdsaSighashType, FeeRate, OutPoint, Psbt, Sequence, TapSighashType, Transaction,
    TxOut, Txid,
    bip32::{DerivationPath, Fingerprint},
    hashes::Hash,
    psbt,
    sighash::{Prevouts, SighashCache},
};
use rand_core::CryptoRng;

use super::{
    BuildError, Change, Coin, SingletonBeacon,
    transaction::{announce, relayed_fee, unsigned_input},
};
use crate::{document::InitialBeaconKind, hash::SignalBytes, key::SecretKey, update::SignedUpdate};

/// Why a Singleton beacon cannot announce.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SingletonError {
    /// No transaction can be built from the coins.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// There are no coins.
    #[error("there is no coin to spend")]
    NoCoin,
    /// One coin is to be spent twice.
    #[error("the coin {0} is given twice")]
    CoinTwice(OutPoint),
    /// The coins hold more than there can be.
    #[error("the coins hold more than 21 million bitcoin")]
    CoinSum,
    /// The secret key is not the beacon's.
    #[error("the secret key is not that of the beacon's address")]
    KeyMismatch,
    /// The funding transaction created none of the coins.
    #[error("the funding transaction does not have the transaction id of a coin")]
    FundingTxid,
    /// The funding transaction has no such output.
    #[error("the funding transaction has no output {0}")]
    FundingOutput(u32),
    /// The coin is on another address.
    #[error("the coin is not on the beacon's address")]
    CoinScript,
    /// The coin holds another value.
    #[error("the coin holds {found}, not {stated}")]
    CoinValue {
        /// The stated value.
        stated: Amount,
        /// The value in the funding transaction.
        found: Amount,
    },
}

impl SingletonError {
    /// The stable name of the error, for logs and messages.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Build(error) => error.code(),
            Self::NoCoin => "NO_COIN",
            Self::CoinTwice(_) => "COIN_TWICE",
            Self::CoinSum => "COIN_SUM",
            Self::KeyMismatch => "KEY_MISMATCH",
            Self::FundingTxid => "FUNDING_TXID_MISMATCH",
            Self::FundingOutput(_) => "FUNDING_OUTPUT_MISSING",
            Self::CoinScript => "COIN_SCRIPT_MISMATCH",
            Self::CoinValue { .. } => "COIN_VALUE_MISMATCH",
        }
    }
}

/// The unsigned transaction in which one beacon announces one update.
///
/// Its last output, the only `OP_RETURN`, carries the JSON Document Hash of the update. Unlike a cohort's beacon
/// transaction it may have several inputs, and may be replaced (BIP-125), because it has only one signer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SingletonAnnouncement {
    beacon: SingletonBeacon,
    coins: Vec<Coin>,
    signal: SignalBytes,
    unsigned: Transaction,
    /// The transactions that created coins, as far as they are known.
    funding: BTreeMap<Txid, Transaction>,
}

impl SingletonAnnouncement {
    /// The announcement of `update`, paid for by `coins`, all of them coins of `beacon`, at `fee_rate` or the relay minimum
    /// of 1 sat/vB. The inputs have the order of `coins`. Change below the floor of rule T-5 goes to the fee. The update is
    /// not checked here: see [`verify_update`](crate::update::verify_update).
    ///
    /// # Errors
    /// [`SingletonError::NoCoin`], [`SingletonError::CoinTwice`], [`SingletonError::CoinSum`];
    /// [`SingletonError::Build`]: the coins do not cover the fee, or the change script is an `OP_RETURN`.
    pub fn new(
        beacon: impl Into<SingletonBeacon>,
        coins: &[Coin],
        update: &SignedUpdate,
        fee_rate: FeeRate,
        change: &Change,
    ) -> Result<Self, SingletonError> {
        let signal = SignalBytes::from_bytes(*update.hash().as_bytes());
        Self::of_signal(beacon, coins, signal, fee_rate, change)
    }

    /// The same for an update that is known by its signal only, e.g. to announce it again at a higher fee.
    ///
    /// # Errors
    /// Those of [`Self::new`].
    pub fn of_signal(
        beacon: impl Into<SingletonBeacon>,
        coins: &[Coin],
        signal: SignalBytes,
        fee_rate: FeeRate,
        change: &Change,
    ) -> Result<Self, SingletonError> {
        let beacon = beacon.into();
        if coins.is_empty() {
            return Err(SingletonError::NoCoin);
        }
        let mut known = BTreeSet::new();
        if let Some(coin) = coins.iter().find(|coin| !known.insert(coin.outpoint)) {
            return Err(SingletonError::CoinTwice(coin.outpoint));
        }
        let value = coins.iter().try_fold(Amount::ZERO, |sum, coin| sum.checked_add(coin.value));
        let value = value.filter(|value| *value <= Amount::MAX_MONEY).ok_or(SingletonError::CoinSum)?;
        let script = beacon.script_pubkey();
        let inputs = coins.iter().map(|coin| unsigned_input(coin, Sequence::ENABLE_RBF_NO_LOCKTIME)).collect();
        let unsigned = announce(inputs, value, &signal, change.script(&script), fee_rate, |tx| {
            relayed_fee(fee_rate, beacon.max_signed_vsize(tx))
        })?;
        Ok(Self { beacon, coins: coins.to_vec(), signal, unsigned, funding: BTreeMap::new() })
    }

    /// Adds a funding transaction, after checking that it created one or several of the coins as they are stated. A wallet
    /// that signs for P2PKH needs it, since only the funding transaction proves a coin's value to it.
    ///
    /// # Errors
    /// [`SingletonError`], for the first difference between the transaction and a coin.
    pub fn with_funding(mut self, funding: Transaction) -> Result<Self, SingletonError> {
        let txid = funding.compute_txid();
        let mut made = self.coins.iter().filter(|coin| coin.outpoint.txid == txid).peekable();
        if made.peek().is_none() {
            return Err(SingletonError::FundingTxid);
        }
        for Coin { outpoint, value } in made {
            let output = usize::try_from(outpoint.vout).ok().and_then(|vout| funding.output.get(vout));
            let output = output.ok_or(SingletonError::FundingOutput(outpoint.vout))?;
            if output.script_pubkey != self.beacon.script_pubkey() {
                return Err(SingletonError::CoinScript);
            }
            if output.value != *value {
                return Err(SingletonError::CoinValue { stated: *value, found: output.value });
            }
        }
        self.funding.insert(txid, funding);
        Ok(self)
    }

    /// The first coin whose stated value nothing proves: a signature for P2PKH does not commit to it (unlike BIP-143 and
    /// BIP-341), and what the coin holds beyond it would be paid as fee. [`Self::with_funding`] proves it.
    pub fn unproven(&self) -> Option<&Coin> {
        let is_proven = |coin: &&Coin| self.funding.contains_key(&coin.outpoint.txid);
        self.coins.iter().filter(|_| self.beacon.kind() == InitialBeaconKind::P2pkh).find(|coin| !is_proven(coin))
    }

    /// The beacon that announces.
    pub const fn beacon(&self) -> &SingletonBeacon {
        &self.beacon
    }

    /// The coins that are spent, in the order of the inputs.
    pub fn coins(&self) -> &[Coin] {
        &self.coins
    }

    /// The announced signal: the hash of the update.
    pub const fn signal(&self) -> SignalBytes {
        self.signal
    }

    /// The transaction without a signature.
    pub const fn unsigned(&self) -> &Transaction {
        &self.unsigned
    }

    /// The outputs that are spent, in the order of the inputs.
    pub fn prevouts(&self) -> Vec<TxOut> {
        let script_pubkey = self.beacon.script_pubkey();
        self.coins.iter().map(|coin| TxOut { value: coin.value, script_pubkey: script_pubkey.clone() }).collect()
    }

    /// The fee.
    pub fn fee(&self) -> Amount {
        // The outputs were made of the coins' value, less the fee.
        let value: Amount = self.coins.iter().map(|coin| coin.value).sum();
        value - self.unsigned.output.iter().map(|output| output.value).sum()
    }

    /// The largest possible size in vB of the signed transaction; ECDSA signatures differ by a few bytes.
    pub fn max_vsize(&self) -> u64 {
        self.beacon.max_signed_vsize(&self.unsigned)
    }

    /// The PSBT for a wallet to sign (BIP-174, BIP-371). It names the key as one of the wallet's own, without a
    /// derivation path, if the key is known. Without [`Self::with_funding`] a P2PKH input lacks the funding transaction
    /// that BIP-174 requires. Bitcoin Core adds it (`utxoupdatepsbt`) where the node knows the coin.
    pub fn to_psbt(&self) -> Psbt {
        let mut psbt =
            Psbt::from_unsigned_tx(self.unsigned.clone()).expect("without script and witness as it is built");
        psbt.inputs =
            self.coins.iter().zip(self.prevouts()).map(|(coin, prevout)| self.psbt_input(coin, prevout)).collect();
        psbt
    }

    fn psbt_input(&self, coin: &Coin, prevout: TxOut) -> psbt::Input {
        let known = self.beacon.key().map(|key| {
            let [a, b, c, d, ..] = CompressedPublicKey(*key.as_inner()).pubkey_hash().to_byte_array();
            (*key, (Fingerprint::from([a, b, c, d]), DerivationPath::master()))
        });
        let mut input = psbt::Input::default();
        match self.beacon.kind() {
            InitialBeaconKind::P2pkh | InitialBeaconKind::P2wpkh => {
                input.non_witness_utxo = self.funding.get(&coin.outpoint.txid).cloned();
                input.bip32_derivation = known.into_iter().map(|(key, origin)| (*key.as_inner(), origin)).collect();
                if self.beacon.kind() == InitialBeaconKind::P2wpkh {
                    input.witness_utxo = Some(prevout);
                }
            }
            InitialBeaconKind::P2tr => {
                input.witness_utxo = Some(prevout);
                if let Some((key, origin)) = known {
                    let key = *key.x_only().as_inner();
                    input.tap_internal_key = Some(key);
                    input.tap_key_origins = [(key, (Vec::new(), origin))].into();
                }
            }
        }
        input
    }

    /// The transaction, all inputs signed with the beacon's key: SIGHASH_ALL with ECDSA, SIGHASH_DEFAULT with Schnorr.
    /// `rng` gives the auxiliary randomness of the latter.
    ///
    /// # Errors
    /// [`SingletonError::KeyMismatch`], also while the beacon's key is not known.
    pub fn sign(&self, key: &SecretKey, rng: &mut dyn CryptoRng) -> Result<Transaction, SingletonError> {
        if self.beacon.key() != Some(&key.public_key()) {
            return Err(SingletonError::KeyMismatch);
        }
        let mut signed = self.unsigned.clone();
        let prevouts = self.prevouts();
        for (index, coin) in self.coins.iter().enumerate() {
            let signature = match self.ecdsa_sighash(index, coin) {
                Some(digest) => bitcoin::ecdsa::Signature::sighash_all(key.sign_ecdsa(&digest)).to_vec(),
                None => key.tap_tweaked().sign(&self.key_path_sighash(index, &prevouts), rng).to_bytes().to_vec(),
            };
            self.beacon.unlock(&mut signed, index, &signature);
        }
        Ok(signed)
    }

    /// The digest that ECDSA signs for input `index`, SIGHASH_ALL; `None` for taproot.
    fn ecdsa_sighash(&self, index: usize, coin: &Coin) -> Option<[u8; 32]> {
        let script = self.beacon.script_pubkey();
        let mut cache = SighashCache::new(&self.unsigned);
        let known = "the input exists, and the script is the beacon's";
        match self.beacon.kind() {
            InitialBeaconKind::P2pkh => Some(
                cache
                    .legacy_signature_hash(index, &script, EcdsaSighashType::All.to_u32())
                    .expect(known)
                    .to_byte_array(),
            ),
            InitialBeaconKind::P2wpkh => Some(
                cache
                    .p2wpkh_signature_hash(index, &script, coin.value, EcdsaSighashType::All)
                    .expect(known)
                    .to_byte_array(),
            ),
            InitialBeaconKind::P2tr => None,
        }
    }

    /// The digest for the key path of input `index` (BIP-341, SIGHASH_DEFAULT).
    fn key_path_sighash(&self, index: usize, prevouts: &[TxOut]) -> [u8; 32] {
        SighashCache::new(&self.unsigned)
            .taproot_key_spend_signature_hash(index, &Prevouts::All(prevouts), TapSighashType::Default)
            .expect("the input exists, and there is one spent output for each")
            .to_byte_array()
    }
}
