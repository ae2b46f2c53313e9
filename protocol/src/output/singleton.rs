//! Singleton beacons (did:btcr2, "Singleton Beacon"): one DID announces one update from an address of its own.
//!
//! A KEY identifier starts with three of them, [`InitialBeacon`]. A member uses them when no cohort can announce for
//! it. [`SingletonAnnouncement`] is the transaction, for a wallet to sign ([`SingletonAnnouncement::to_psbt`]) or
//! signed with the identifier's key ([`SingletonAnnouncement::sign`]).

use bitcoin::{
    Amount, CompressedPublicKey, EcdsaSighashType, FeeRate, Psbt, Sequence, Transaction, TxOut, Witness,
    bip32::{DerivationPath, Fingerprint},
    hashes::Hash,
    psbt,
    script::{Builder, PushBytes},
    sighash::SighashCache,
};
use rand_core::CryptoRng;
use secp256k1::constants::SCHNORR_SIGNATURE_SIZE;

use super::{
    BuildError, Change, Coin, key_path_sighash,
    transaction::{announce, relayed_fee, unsigned_input},
};
use crate::{
    document::{InitialBeacon, InitialBeaconKind},
    hash::SignalBytes,
    key::SecretKey,
    update::SignedUpdate,
};

/// The longest ECDSA signature that nodes relay, with its sighash byte: DER with a low S, but a high R, as wallets make it.
const MAX_ECDSA_SIGNATURE: usize = 72;

impl InitialBeacon {
    /// `tx`, whose first input spends a coin of this beacon, with `signature` where its kind of address requires it.
    fn unlock(&self, mut tx: Transaction, signature: &[u8]) -> Transaction {
        let key = self.key().to_bytes();
        if let Some(input) = tx.input.first_mut() {
            match self.kind() {
                InitialBeaconKind::P2pkh => {
                    let push =
                        <&PushBytes>::try_from(signature).expect("a signature is far below the limit of 4 GB");
                    input.script_sig = Builder::new().push_slice(push).push_slice(key).into_script();
                }
                InitialBeaconKind::P2wpkh => input.witness = Witness::from_slice(&[signature, &key]),
                InitialBeaconKind::P2tr => input.witness = Witness::from_slice(&[signature]),
            }
        }
        tx
    }

    /// The largest size in vB of `tx`, which spends a coin of this beacon, once it is signed.
    fn max_signed_vsize(&self, tx: &Transaction) -> u64 {
        let signature = match self.kind() {
            InitialBeaconKind::P2pkh | InitialBeaconKind::P2wpkh => [0; MAX_ECDSA_SIGNATURE].as_slice(),
            InitialBeaconKind::P2tr => &[0; SCHNORR_SIGNATURE_SIZE],
        };
        self.unlock(tx.clone(), signature).weight().to_vbytes_ceil()
    }
}

/// Why a Singleton beacon cannot announce.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SingletonError {
    /// No transaction can be built from the coin.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The secret key is not the identifier's.
    #[error("the secret key is not that of the beacon's identifier")]
    KeyMismatch,
    /// The funding transaction did not create the coin.
    #[error("the funding transaction does not have the coin's transaction id")]
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
/// transaction it may be replaced (BIP-125), because it has only one signer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SingletonAnnouncement {
    beacon: InitialBeacon,
    coin: Coin,
    signal: SignalBytes,
    unsigned: Transaction,
    funding: Option<Transaction>,
}

impl SingletonAnnouncement {
    /// The announcement of `update`, paid for by `coin`, a coin of `beacon`, at `fee_rate` or the relay minimum of 1
    /// sat/vB. Change that would be dust goes to the fee. The update is not checked here: see
    /// [`verify_update`](crate::update::verify_update).
    ///
    /// # Errors
    /// [`SingletonError::Build`]: the coin does not cover the fee, or the change script is an `OP_RETURN`.
    pub fn new(
        beacon: InitialBeacon,
        coin: Coin,
        update: &SignedUpdate,
        fee_rate: FeeRate,
        change: &Change,
    ) -> Result<Self, SingletonError> {
        let signal = SignalBytes::from_bytes(*update.hash().as_bytes());
        let script = beacon.script_pubkey();
        let input = unsigned_input(&coin, Sequence::ENABLE_RBF_NO_LOCKTIME);
        let unsigned = announce(input, coin.value, &signal, change.script(&script), fee_rate, |tx| {
            relayed_fee(fee_rate, beacon.max_signed_vsize(tx))
        })?;
        Ok(Self { beacon, coin, signal, unsigned, funding: None })
    }

    /// Adds the funding transaction of the coin, after checking that it created the coin. A wallet that signs for
    /// P2PKH needs it, since only the funding transaction proves the coin's value to it.
    ///
    /// # Errors
    /// [`SingletonError`], for the first difference between the transaction and the coin.
    pub fn with_funding(mut self, funding: Transaction) -> Result<Self, SingletonError> {
        let Coin { outpoint, value } = self.coin;
        if funding.compute_txid() != outpoint.txid {
            return Err(SingletonError::FundingTxid);
        }
        let made = usize::try_from(outpoint.vout).ok().and_then(|vout| funding.output.get(vout));
        let made = made.ok_or(SingletonError::FundingOutput(outpoint.vout))?;
        if made.script_pubkey != self.beacon.script_pubkey() {
            return Err(SingletonError::CoinScript);
        }
        if made.value != value {
            return Err(SingletonError::CoinValue { stated: value, found: made.value });
        }
        self.funding = Some(funding);
        Ok(self)
    }

    /// The beacon that announces.
    pub fn beacon(&self) -> &InitialBeacon {
        &self.beacon
    }

    /// The announced signal: the hash of the update.
    pub fn signal(&self) -> SignalBytes {
        self.signal
    }

    /// The transaction without a signature.
    pub fn unsigned(&self) -> &Transaction {
        &self.unsigned
    }

    /// The output that is spent.
    pub fn prevout(&self) -> TxOut {
        TxOut { value: self.coin.value, script_pubkey: self.beacon.script_pubkey() }
    }

    /// The fee.
    pub fn fee(&self) -> Amount {
        // The outputs were made of the coin's value, less the fee.
        self.coin.value - self.unsigned.output.iter().map(|output| output.value).sum()
    }

    /// The largest possible size in vB of the signed transaction; ECDSA signatures differ by a few bytes.
    pub fn max_vsize(&self) -> u64 {
        self.beacon.max_signed_vsize(&self.unsigned)
    }

    /// The PSBT for a wallet to sign (BIP-174, BIP-371). It names the key as one of the wallet's own, without a
    /// derivation path. Without [`Self::with_funding`] a P2PKH input lacks the funding transaction that BIP-174
    /// requires. Bitcoin Core adds it (`utxoupdatepsbt`) where the node knows the coin.
    pub fn to_psbt(&self) -> Psbt {
        let mut psbt =
            Psbt::from_unsigned_tx(self.unsigned.clone()).expect("without script and witness as it is built");
        let key = *self.beacon.key();
        let identifier = CompressedPublicKey(*key.as_inner()).pubkey_hash().to_byte_array();
        let [a, b, c, d, ..] = identifier;
        let origin = (Fingerprint::from([a, b, c, d]), DerivationPath::master());
        let ecdsa = psbt::Input {
            non_witness_utxo: self.funding.clone(),
            bip32_derivation: [(*key.as_inner(), origin.clone())].into(),
            ..psbt::Input::default()
        };
        psbt.inputs = vec![match self.beacon.kind() {
            InitialBeaconKind::P2pkh => ecdsa,
            InitialBeaconKind::P2wpkh => psbt::Input { witness_utxo: Some(self.prevout()), ..ecdsa },
            InitialBeaconKind::P2tr => psbt::Input {
                witness_utxo: Some(self.prevout()),
                tap_internal_key: Some(*key.x_only().as_inner()),
                tap_key_origins: [(*key.x_only().as_inner(), (Vec::new(), origin))].into(),
                ..psbt::Input::default()
            },
        }];
        psbt
    }

    /// The transaction, signed with the identifier's key: SIGHASH_ALL with ECDSA, SIGHASH_DEFAULT with Schnorr. `rng` gives
    /// the auxiliary randomness of the latter.
    ///
    /// # Errors
    /// [`SingletonError::KeyMismatch`].
    pub fn sign(&self, key: &SecretKey, rng: &mut dyn CryptoRng) -> Result<Transaction, SingletonError> {
        if key.public_key() != *self.beacon.key() {
            return Err(SingletonError::KeyMismatch);
        }
        let signature = match self.ecdsa_sighash() {
            Some(digest) => bitcoin::ecdsa::Signature::sighash_all(key.sign_ecdsa(&digest)).to_vec(),
            None => {
                let digest = key_path_sighash(&self.unsigned, &self.prevout()).expect("one input as it is built");
                key.tap_tweaked().sign(&digest, rng).to_bytes().to_vec()
            }
        };
        Ok(self.beacon.unlock(self.unsigned.clone(), &signature))
    }

    /// The digest that ECDSA signs, SIGHASH_ALL; `None` for taproot.
    fn ecdsa_sighash(&self) -> Option<[u8; 32]> {
        let script = self.beacon.script_pubkey();
        let mut cache = SighashCache::new(&self.unsigned);
        let known = "input 0 exists, and the script is the beacon's";
        match self.beacon.kind() {
            InitialBeaconKind::P2pkh => Some(
                cache
                    .legacy_signature_hash(0, &script, EcdsaSighashType::All.to_u32())
                    .expect(known)
                    .to_byte_array(),
            ),
            InitialBeaconKind::P2wpkh => Some(
                cache
                    .p2wpkh_signature_hash(0, &script, self.coin.value, EcdsaSighashType::All)
                    .expect(known)
                    .to_byte_array(),
            ),
            InitialBeaconKind::P2tr => None,
        }
    }
}
