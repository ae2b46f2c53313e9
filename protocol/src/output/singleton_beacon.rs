//! The address of a Singleton beacon, as far as a transaction that spends from it depends on it.

use bitcoin::{
    Address, Script, ScriptBuf, Transaction, Witness,
    script::{Builder, PushBytes},
};
use secp256k1::constants::SCHNORR_SIGNATURE_SIZE;

use crate::{
    document::{InitialBeacon, InitialBeaconKind},
    key::PublicKey,
    network::Network,
};

/// The longest ECDSA signature that nodes relay, with its sighash byte: DER with a low S, but a high R, as wallets make it.
const MAX_ECDSA_SIGNATURE: usize = 72;

/// The bytes of a compressed public key.
const PUBLIC_KEY: usize = 33;

/// A Singleton beacon whose address is of a kind that one key can spend from: any document may list one, not only the
/// first document of a KEY identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SingletonBeacon {
    address: Address,
    kind: InitialBeaconKind,
    key: Option<PublicKey>,
}

impl SingletonBeacon {
    /// The beacon at `address`, whose key is not known. `None` for kinds of address that no single key spends from by
    /// itself, e.g. P2SH and P2WSH.
    pub fn at(address: &Address) -> Option<Self> {
        let kind = kind_of(&address.script_pubkey())?;
        Some(Self { address: address.clone(), kind, key: None })
    }

    /// The same beacon with its key, if that is one of `keys`: the address that the key has on `network` is compared.
    #[must_use]
    pub fn with_key_among(mut self, keys: impl IntoIterator<Item = PublicKey>, network: Network) -> Self {
        let own = |key: &PublicKey| *InitialBeacon::new(*key, network, self.kind).address() == self.address;
        let found = keys.into_iter().find(own);
        self.key = found.or(self.key);
        self
    }

    /// The key that spends from the address, if it is known.
    pub const fn key(&self) -> Option<&PublicKey> {
        self.key.as_ref()
    }

    /// The kind of its address.
    pub const fn kind(&self) -> InitialBeaconKind {
        self.kind
    }

    /// Its address: whatever spends from it is a signal.
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// The script of its address.
    pub fn script_pubkey(&self) -> ScriptBuf {
        self.address.script_pubkey()
    }

    /// Puts `signature` into input `index` of `tx`, which spends a coin of this beacon. While the key is unknown, a
    /// placeholder of its size is put where the kind of address needs it.
    pub(super) fn unlock(&self, tx: &mut Transaction, index: usize, signature: &[u8]) {
        let key = self.key.map_or([0; PUBLIC_KEY], PublicKey::to_bytes);
        let Some(input) = tx.input.get_mut(index) else { return };
        match self.kind {
            InitialBeaconKind::P2pkh => {
                let push = <&PushBytes>::try_from(signature).expect("a signature is far below the limit of 4 GB");
                input.script_sig = Builder::new().push_slice(push).push_slice(key).into_script();
            }
            InitialBeaconKind::P2wpkh => input.witness = Witness::from_slice(&[signature, &key]),
            InitialBeaconKind::P2tr => input.witness = Witness::from_slice(&[signature]),
        }
    }

    /// The largest size in vB of `tx`, all of whose inputs spend coins of this beacon, once it is signed.
    pub(super) fn max_signed_vsize(&self, tx: &Transaction) -> u64 {
        let signature = match self.kind {
            InitialBeaconKind::P2pkh | InitialBeaconKind::P2wpkh => [0; MAX_ECDSA_SIGNATURE].as_slice(),
            InitialBeaconKind::P2tr => &[0; SCHNORR_SIGNATURE_SIZE],
        };
        let mut tx = tx.clone();
        for index in 0..tx.input.len() {
            self.unlock(&mut tx, index, signature);
        }
        tx.weight().to_vbytes_ceil()
    }
}

impl From<InitialBeacon> for SingletonBeacon {
    fn from(beacon: InitialBeacon) -> Self {
        Self { address: beacon.address().clone(), kind: beacon.kind(), key: Some(*beacon.key()) }
    }
}

fn kind_of(script: &Script) -> Option<InitialBeaconKind> {
    if script.is_p2pkh() {
        Some(InitialBeaconKind::P2pkh)
    } else if script.is_p2wpkh() {
        Some(InitialBeaconKind::P2wpkh)
    } else if script.is_p2tr() {
        Some(InitialBeaconKind::P2tr)
    } else {
        None
    }
}
