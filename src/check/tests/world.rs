//! A controller and its chain, with the resolver's own histories.

use std::str::FromStr;

use ::bitcoin::{Amount, OutPoint, hashes::Hash};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::json;

use super::super::*;
use crate::{
    actors::state::vault::VaultEntry,
    bitcoin::chain::{BlockId, Deposit, Place},
    protocol::{
        beacon::{AggregateBeacon, AggregatedData, BeaconType, CasBeacon, Slots},
        cohort::conditions::Conditions,
        document::{self, InitialBeacon, InitialBeaconKind},
        key::SecretKey,
        network::Network,
        output::{BeaconOutput, KeyAggregation, RecoverySequence, ScriptTree},
        resolution::{Content, Need, Next, ResolutionOptions, Resolver, SidecarData, Signal},
        sidecar::MemberRecord,
        update::{build_update, sign_update},
    },
    vault::backups::Export,
};

const TIP: u32 = 200;

/// A controller, with what its chain shows.
pub(super) struct World {
    pub(super) key: SecretKey,
    pub(super) did: Did,
    pub(super) documents: Vec<Value>,
    pub(super) updates: Vec<SignedUpdate>,
    /// Address, signal, and height of its block.
    pub(super) signals: Vec<(String, SignalBytes, u32)>,
    /// The same in the mempool.
    pub(super) mempool: Vec<(String, SignalBytes)>,
    pub(super) vault: VaultContents,
    pub(super) coins: BTreeMap<String, Activity>,
    /// The Sidecar Data of files.
    pub(super) files: Value,
    pub(super) terms: Terms,
    pub(super) backup: Backup,
    pub(super) keys: Option<Vec<PublicKey>>,
}

pub(super) fn id(name: &str) -> CohortId {
    CohortId::parse(name).unwrap()
}

pub(super) fn txid(index: usize) -> Txid {
    Txid::from_byte_array([u8::try_from(index).unwrap() + 1; 32])
}

impl World {
    pub(super) fn new() -> Self {
        let key = SecretKey::from_bytes(&[7; 32]).unwrap();
        let did = Did::from_key(key.public_key(), Network::Regtest);
        let terms = Terms {
            min_conf: 6,
            warn_blocks: 10,
            max_backup_age: None,
            superseded: Vec::new(),
            accepted: BTreeSet::new(),
        };
        Self {
            documents: vec![document::initial_document(&did, None).unwrap()],
            keys: Some(vec![key.public_key()]),
            key,
            did,
            updates: Vec::new(),
            signals: Vec::new(),
            mempool: Vec::new(),
            vault: VaultContents::default(),
            coins: BTreeMap::new(),
            files: json!({}),
            terms,
            backup: Backup::default(),
        }
    }

    pub(super) fn own(&self) -> String {
        InitialBeacon::of(&self.did, InitialBeaconKind::P2wpkh).unwrap().address().to_string()
    }

    pub(super) fn sign(&self, patch: Value) -> SignedUpdate {
        let (document, version) = (self.documents.last().unwrap(), self.documents.len() as u64);
        let unsigned = build_update(document, version, patch).unwrap();
        let method = format!("{}#initialKey", self.did);
        sign_update(&unsigned, &self.did, &method, &self.key, &mut ChaCha20Rng::from_seed([8; 32])).unwrap()
    }

    pub(super) fn note(&self, text: &str) -> SignedUpdate {
        self.sign(json!([{ "op": "add", "path": "/note", "value": text }]))
    }

    /// The update becomes the next version.
    pub(super) fn advance(&mut self, patch: Value) -> SignedUpdate {
        let update = self.sign(patch.clone());
        let unsigned = build_update(self.documents.last().unwrap(), self.documents.len() as u64, patch).unwrap();
        self.documents.push(unsigned.target_document().clone());
        self.updates.push(update.clone());
        update
    }

    pub(super) fn announce(&mut self, address: &str, signal: &DocumentHash, confirmations: u32) {
        let height = TIP + 1 - confirmations;
        self.signals.push((address.to_owned(), SignalBytes::from_bytes(*signal.as_bytes()), height));
    }

    pub(super) fn wait(&mut self, address: &str, signal: &DocumentHash) {
        self.mempool.push((address.to_owned(), SignalBytes::from_bytes(*signal.as_bytes())));
    }

    /// Announces an update from the DID's own beacon, and stores it in the vault.
    pub(super) fn singleton(&mut self, update: &SignedUpdate, confirmations: u32) {
        self.announce(&self.own(), update.hash(), confirmations);
        self.vault.prepared.push(update.clone());
    }

    pub(super) fn resolution(&self, min_conf: u32) -> Resolution {
        self.resolution_of(min_conf, TIP, &self.signals)
    }

    fn resolution_of(&self, min_conf: u32, tip: u32, known: &[(String, SignalBytes, u32)]) -> Resolution {
        let options = ResolutionOptions::default().with_min_conf(min_conf.into()).unwrap();
        let mut data = SidecarData::from_value(self.files.clone()).unwrap();
        data.merge(SidecarData::from_value(self.vault.sidecar(&self.did).data).unwrap());
        let mut resolver = Resolver::new(self.did.clone(), options, data);
        loop {
            resolver = match resolver.into_resolution() {
                Ok(resolution) => return resolution,
                Err(resolver) => resolver,
            };
            let Next::Needs(needs) = resolver.next() else { unreachable!() };
            for need in needs {
                match need {
                    Need::Signals { beacon, .. } => {
                        let address = beacon.address.to_string();
                        let of = known.iter().enumerate().filter(|(_, (at, ..))| *at == address);
                        let signals = of.map(|(index, (_, bytes, height))| Signal {
                            txid: txid(index),
                            bytes: *bytes,
                            height: Some(*height),
                            time: Some(1_800_000_000 + height),
                            mediantime: Some(1_800_000_000 + height),
                            confirmations: Some(tip + 1 - height),
                        });
                        resolver.provide_signals(&beacon.address, signals.collect(), "chain").unwrap();
                    }
                    Need::Content { hash, .. } => {
                        resolver.provide_content(&hash, Content::Absent, "store").unwrap();
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    pub(super) fn report(&self) -> Report {
        let (settled, young) = (self.resolution(self.terms.min_conf), self.resolution(1));
        let updates = self.updates.iter().map(|update| (*update.hash(), update.clone())).collect();
        let coins = Ok(self.coins.clone());
        // As they are in the next block.
        let waiting = self.mempool.iter().map(|(address, bytes)| (address.clone(), *bytes, TIP + 1));
        let next: Vec<_> = self.signals.iter().cloned().chain(waiting).collect();
        let unconfirmed = |(index, (address, bytes)): (usize, &(String, SignalBytes))| UnconfirmedSignal {
            address: Address::from_str(address).unwrap().assume_checked(),
            kind: BeaconKind::Singleton,
            txid: txid(self.signals.len() + index),
            bytes: *bytes,
        };
        let chain = ChainView {
            tip: Some(tip()),
            settled,
            young,
            updates,
            coins,
            unconfirmed: self.mempool.iter().enumerate().map(unconfirmed).collect(),
            next: (!self.mempool.is_empty()).then(|| self.resolution_of(1, TIP + 1, &next)),
            problems: Vec::new(),
        };
        evaluate(&self.view(Ok(&chain)))
    }

    pub(super) fn view<'a>(&'a self, chain: Result<&'a ChainView, &'a str>) -> View<'a> {
        View {
            did: &self.did,
            now: Timestamp::from_secs(2_000_000_000),
            terms: &self.terms,
            chain,
            vault: Some(&self.vault),
            backup: Some(&self.backup),
            keys: self.keys.as_deref(),
            member: None,
        }
    }

    /// A verified export of the vault as it is.
    pub(super) fn export(&mut self, secs: u64) {
        let (at, hash) = (Timestamp::from_secs(secs), DocumentHash::from_bytes([0; 32]));
        self.backup.export = Some(Export { at, hash, items: self.vault.items() });
    }

    /// The beacon of a cohort, a round in it, and the vault's entry.
    pub(super) fn round(&mut self, cohort: &str, update: Option<&SignedUpdate>) -> (BeaconOutput, SignalBytes) {
        let output = output();
        let other = Did::from_key(SecretKey::from_bytes(&[9; 32]).unwrap().public_key(), Network::Regtest);
        let slots: Slots = [
            (self.did.clone(), update.map(|update| *update.hash())),
            (other, Some(DocumentHash::from_bytes([5; 32]))),
        ]
        .into();
        let aggregation = CasBeacon.aggregate(&slots, &mut ChaCha20Rng::from_seed([1; 32])).unwrap();
        let AggregatedData::Shared(data) = aggregation.data else { unreachable!() };
        let record = MemberRecord {
            did: self.did.clone(),
            service: self.did.clone(),
            cohort_id: id(cohort),
            conditions: Conditions::new(BeaconType::cas(), 2, output.script_tree().clone()),
            output: output.clone(),
            signal: aggregation.signal,
            update: update.cloned(),
            data: (*data).clone(),
        };
        let entry =
            VaultEntry { record, genesis_document: None, transcript: None, txid: None, confirmed_height: None };
        self.vault.entries.push(entry);
        (output, aggregation.signal)
    }
}

fn tip() -> Tip {
    Tip { block: block(TIP), median_time: 1_900_000_000 }
}

fn block(height: u32) -> BlockId {
    BlockId { height, hash: ::bitcoin::BlockHash::from_byte_array([3; 32]) }
}

pub(super) fn output() -> BeaconOutput {
    let keys = [11, 12].map(|byte| SecretKey::from_bytes(&[byte; 32]).unwrap().public_key());
    let tree = ScriptTree::FallbackAndRecovery {
        recovery_key: SecretKey::from_bytes(&[13; 32]).unwrap().public_key().x_only(),
        recovery_sequence: RecoverySequence::try_from(50).unwrap(),
        fallback_threshold: None,
    };
    BeaconOutput::new(std::sync::Arc::new(KeyAggregation::new(keys.to_vec()).unwrap()), Network::Regtest, &tree)
        .unwrap()
}

/// The coins of an address, by the heights of their blocks.
pub(super) fn coins(heights: &[u32]) -> Activity {
    let deposit = |(index, height): (usize, &u32)| {
        let outpoint = OutPoint { txid: txid(100 + index), vout: 0 };
        Deposit::new(outpoint, Amount::from_sat(1_000), Place::Block(block(*height)))
    };
    Activity { tip: tip(), deposits: heights.iter().enumerate().map(deposit).collect(), spends: Vec::new() }
}
