//! A chain, a content store and controllers, so that a history reads in a few lines.

use std::collections::BTreeMap;

use bitcoin::{Address, Txid, hashes::Hash};
use btcr2_aggregation_protocol::{
    beacon::{AggregateBeacon, AggregatedData, BeaconData, CasBeacon, Slots, SmtBeacon},
    did::Did,
    document,
    hash::{DocumentHash, SignalBytes, sha256},
    jcs,
    key::SecretKey,
    network::Network,
    output::{InitialBeacon, InitialBeaconKind},
    resolution::{
        BeaconKind, Content, ErrorCode, Event, FailureRule, Need, Next, Resolution, ResolutionError,
        ResolutionOptions, Resolved, Resolver, SidecarData, Signal, Step,
    },
    update::{SignedUpdate, build_update, sign_update, signed_digest},
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::{Value, json};

pub(super) const NETWORK: Network = Network::Regtest;

/// The time of block 0, 2026-10-01T12:00:00Z. A block comes every ten minutes; its median time is an hour behind.
pub(super) const GENESIS_TIME: u32 = 1_790_856_000;

pub(super) fn time(height: u32) -> u32 {
    GENESIS_TIME + height * 600
}

pub(super) fn mediantime(height: u32) -> u32 {
    time(height) - 3600
}

/// A median time as `versionTime` and `updated` have it.
pub(super) fn date(seconds: u32) -> String {
    btcr2_aggregation_protocol::time::Timestamp::from_secs(seconds.into()).to_date().unwrap()
}

fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(5)
}

pub(super) fn key(seed: u8) -> SecretKey {
    SecretKey::from_bytes(&[seed; 32]).unwrap()
}

/// An address that no initial document has.
pub(super) fn address(seed: u8) -> Address {
    InitialBeacon::new(key(seed).public_key(), NETWORK, InitialBeaconKind::P2wpkh).address().clone()
}

/// A controller, with all documents that its updates have made.
#[derive(Clone)]
pub(super) struct Author {
    pub(super) did: Did,
    pub(super) genesis: Option<Value>,
    seed: u8,
    /// By version, 1 the first.
    pub(super) documents: Vec<Value>,
}

impl Author {
    pub(super) fn key(seed: u8) -> Self {
        let did = Did::from_key(key(seed).public_key(), NETWORK);
        let initial = document::initial_document(&did, None).unwrap();
        Self { did, genesis: None, seed, documents: vec![initial] }
    }

    /// An EXTERNAL DID, with the usual genesis document as `change` leaves it.
    pub(super) fn external(seed: u8, change: impl FnOnce(&mut Value)) -> Self {
        let mut genesis = document::genesis_document(&key(seed).public_key(), NETWORK);
        change(&mut genesis);
        let did = document::external_did(&genesis, NETWORK).unwrap();
        let initial = document::initial_document(&did, Some(&genesis)).unwrap();
        Self { did, genesis: Some(genesis), seed, documents: vec![initial] }
    }

    /// An EXTERNAL DID with one more beacon.
    pub(super) fn with_beacon(seed: u8, kind: BeaconKind, address: &Address) -> Self {
        Self::external(seed, |genesis| {
            let service = json!({ "id": "#cohort", "type": kind.service_type(), "serviceEndpoint": format!("bitcoin:{address}") });
            genesis["service"].as_array_mut().unwrap().push(service);
        })
    }

    /// The address of the first beacon of the initial document.
    pub(super) fn beacon(&self) -> Address {
        InitialBeacon::new(key(self.seed).public_key(), NETWORK, InitialBeaconKind::P2pkh).address().clone()
    }

    pub(super) fn document(&self) -> &Value {
        self.documents.last().unwrap()
    }

    pub(super) fn version(&self) -> u64 {
        self.documents.len() as u64
    }

    /// The next update, with this patch.
    pub(super) fn update(&mut self, patch: Value) -> SignedUpdate {
        let unsigned = build_update(self.document(), self.version(), patch).unwrap();
        let method = format!("{}#initialKey", self.did);
        let signed = sign_update(&unsigned, &self.did, &method, &key(self.seed), &mut rng()).unwrap();
        self.documents.push(unsigned.target_document().clone());
        signed
    }

    /// The next update, that changes nothing that matters.
    pub(super) fn note(&mut self, text: &str) -> SignedUpdate {
        self.update(json!([{ "op": "add", "path": "/note", "value": text }]))
    }

    /// The next update, that adds a beacon.
    pub(super) fn add_beacon(&mut self, kind: BeaconKind, address: &Address) -> SignedUpdate {
        let id = format!("#beacon-{}", self.version());
        let value =
            json!({ "id": id, "type": kind.service_type(), "serviceEndpoint": format!("bitcoin:{address}") });
        self.update(json!([{ "op": "add", "path": "/service/-", "value": value }]))
    }

    /// The next update, that removes the beacon at `address`.
    pub(super) fn remove_beacon(&mut self, address: &Address) -> SignedUpdate {
        let endpoint = format!("bitcoin:{address}");
        let services = self.document()["service"].as_array().unwrap();
        let index = services.iter().position(|service| service["serviceEndpoint"] == endpoint).unwrap();
        self.update(json!([{ "op": "remove", "path": format!("/service/{index}") }]))
    }

    /// An update as `change` leaves it (update without proof, proof without value), signed by the right key: `valid` in
    /// everything else.
    pub(super) fn altered(
        &self,
        valid: &SignedUpdate,
        change: impl FnOnce(&mut Value, &mut Value),
    ) -> SignedUpdate {
        let mut update = valid.value().clone();
        let mut proof = update.as_object_mut().unwrap().remove("proof").unwrap();
        proof.as_object_mut().unwrap().remove("proofValue");
        change(&mut update, &mut proof);
        let signature = key(self.seed).sign(&signed_digest(&proof, &update).unwrap(), &mut rng());
        proof["proofValue"] = json!(format!("z{}", bs58::encode(signature.to_bytes()).into_string()));
        update["proof"] = proof;
        SignedUpdate::from_value(update).unwrap()
    }
}

/// What there is beside the controllers.
#[derive(Clone)]
pub(super) struct World {
    signals: BTreeMap<Address, Vec<Signal>>,
    transactions: u32,
    /// The height of the newest block.
    pub(super) tip: u32,
    /// Announcements and updates by their hash.
    pub(super) store: BTreeMap<DocumentHash, Content>,
    /// The Sidecar Data of all DIDs; the proofs are each DID's own.
    pub(super) updates: Vec<Value>,
    pub(super) announcements: Vec<Value>,
    pub(super) proofs: BTreeMap<Did, Vec<Value>>,
}

pub(super) const CHAIN: &str = "the chain";
pub(super) const STORE: &str = "the store";

impl World {
    pub(super) fn new() -> Self {
        Self {
            signals: BTreeMap::new(),
            transactions: 0,
            tip: 1_000,
            store: BTreeMap::new(),
            updates: Vec::new(),
            announcements: Vec::new(),
            proofs: BTreeMap::new(),
        }
    }

    /// A signal with these bytes.
    pub(super) fn signal(&mut self, address: &Address, bytes: [u8; 32], height: u32) -> &mut Signal {
        self.transactions += 1;
        let signals = self.signals.entry(address.clone()).or_default();
        signals.push(Signal {
            txid: Txid::from_byte_array(sha256(&self.transactions.to_be_bytes())),
            bytes: SignalBytes::from_bytes(bytes),
            height: Some(height),
            time: Some(time(height)),
            mediantime: Some(mediantime(height)),
            // Counted when the chain is asked.
            confirmations: None,
        });
        signals.last_mut().unwrap()
    }

    /// A Singleton beacon's signal of `update`, whose data no source has.
    pub(super) fn announce(&mut self, address: &Address, update: &SignedUpdate, height: u32) {
        self.signal(address, *update.hash().as_bytes(), height);
    }

    /// The same, with the update in the Sidecar Data.
    pub(super) fn singleton(&mut self, address: &Address, update: &SignedUpdate, height: u32) {
        self.announce(address, update, height);
        self.updates.push(update.value().clone());
    }

    /// A CAS beacon's signal of the updates of all DIDs; a DID without one declines.
    pub(super) fn cas(
        &mut self,
        address: &Address,
        members: &[(&Did, Option<&SignedUpdate>)],
        height: u32,
    ) -> Value {
        let (signal, data) = self.aggregate(&CasBeacon, members);
        let AggregatedData::Shared(data) = data else { panic!("CAS data is shared") };
        let BeaconData::Cas(announcement) = &*data else { panic!("CAS data") };
        let announcement = json!(announcement);
        self.announcements.push(announcement.clone());
        self.signal(address, *signal.as_bytes(), height);
        announcement
    }

    /// An SMT beacon's.
    pub(super) fn smt(&mut self, address: &Address, members: &[(&Did, Option<&SignedUpdate>)], height: u32) {
        let (signal, data) = self.aggregate(&SmtBeacon, members);
        for (did, _) in members {
            let data = data.for_member(did).unwrap();
            let BeaconData::Smt(proof) = &**data else { panic!("an SMT proof") };
            self.proofs.entry((*did).clone()).or_default().push(json!(proof));
        }
        self.signal(address, *signal.as_bytes(), height);
    }

    fn aggregate(
        &mut self,
        beacon: &dyn AggregateBeacon,
        members: &[(&Did, Option<&SignedUpdate>)],
    ) -> (SignalBytes, AggregatedData) {
        let slots: Slots =
            members.iter().map(|(did, update)| ((*did).clone(), update.map(|update| *update.hash()))).collect();
        self.updates.extend(members.iter().filter_map(|(_, update)| update.map(|update| update.value().clone())));
        let mut rng = ChaCha20Rng::seed_from_u64(self.transactions.into());
        let aggregation = beacon.aggregate(&slots, &mut rng).unwrap();
        (aggregation.signal, aggregation.data)
    }

    /// Puts JSON into the content store, under its hash.
    pub(super) fn stored(&mut self, value: &Value) {
        self.store.insert(jcs::document_hash(value).unwrap(), Content::Bytes(jcs::canonicalize(value).unwrap()));
    }

    /// Moves updates, announcements and the genesis document from the Sidecar Data to the content store.
    pub(super) fn all_in_store(mut self, author: &Author) -> Self {
        let values: Vec<Value> =
            self.updates.drain(..).chain(self.announcements.drain(..)).chain(author.genesis.clone()).collect();
        values.iter().for_each(|value| self.stored(value));
        self
    }

    pub(super) fn sidecar(&self, author: &Author) -> Value {
        let mut sidecar = json!({
            "@context": "https://btcr2.dev/context/v1",
            "updates": self.updates,
            "casUpdates": self.announcements,
            "smtProofs": self.proofs.get(&author.did).cloned().unwrap_or_default(),
        });
        if let Some(genesis) = &author.genesis
            && !self.store.contains_key(&jcs::document_hash(genesis).unwrap())
        {
            sidecar["genesisDocument"] = genesis.clone();
        }
        sidecar
    }

    pub(super) fn resolver(&self, author: &Author, options: &Value) -> Resolver {
        let sidecar = SidecarData::from_value(self.sidecar(author)).unwrap();
        let options = ResolutionOptions::from_value(options).unwrap();
        Resolver::new(author.did.clone(), options, sidecar)
    }

    /// The signals of an address, as an Esplora server lists them: newest first.
    pub(super) fn signals(&self, address: &Address) -> Vec<Signal> {
        let mut signals = self.signals.get(address).cloned().unwrap_or_default();
        for signal in &mut signals {
            if let (Some(height), None) = (signal.height, signal.confirmations) {
                signal.confirmations = (self.tip + 1).checked_sub(height);
            }
        }
        signals.reverse();
        signals
    }

    pub(super) fn content(&self, hash: &DocumentHash) -> Content {
        self.store.get(hash).cloned().unwrap_or(Content::Absent)
    }

    pub(super) fn answer(&self, resolver: &mut Resolver, need: &Need) {
        match need {
            Need::Signals { beacon, .. } => {
                resolver.provide_signals(&beacon.address, self.signals(&beacon.address), CHAIN).unwrap();
            }
            // Two kinds of one hash are answered together.
            Need::Content { hash, .. } => {
                let _ = resolver.provide_content(hash, self.content(hash), STORE);
            }
            need => panic!("{need:?}"),
        }
    }

    /// Answers in the order that `order` makes of the needs.
    pub(super) fn drive(&self, mut resolver: Resolver, order: impl Fn(&mut Vec<Need>)) -> Resolution {
        loop {
            let mut needs = match resolver.next() {
                Next::Done(resolution) => return resolution.clone(),
                Next::Needs(needs) => needs,
            };
            assert!(!needs.is_empty(), "waits for nothing");
            order(&mut needs);
            needs.iter().for_each(|need| self.answer(&mut resolver, need));
        }
    }

    pub(super) fn resolve(&self, author: &Author, options: &Value) -> Resolution {
        self.drive(self.resolver(author, options), |_| {})
    }

    /// That `author`'s document is that of `version`.
    #[track_caller]
    pub(super) fn resolves(&self, author: &Author, version: u64) -> Resolved {
        self.resolves_with(author, &json!({}), version)
    }

    #[track_caller]
    pub(super) fn resolves_with(&self, author: &Author, options: &Value, version: u64) -> Resolved {
        let resolution = self.resolve(author, options);
        let resolved = resolution.outcome.unwrap_or_else(|error| panic!("{}: {error}", error.code()));
        assert_eq!(resolved.metadata.version_id, version);
        assert_eq!(resolved.document, author.documents[usize::try_from(version).unwrap() - 1]);
        resolved
    }

    /// That the resolution fails so.
    #[track_caller]
    pub(super) fn fails(
        &self,
        author: &Author,
        code: ErrorCode,
        rule: impl Into<Option<FailureRule>>,
    ) -> ResolutionError {
        fails(&self.resolve(author, &json!({})), code, rule)
    }
}

#[track_caller]
pub(super) fn fails(
    resolution: &Resolution,
    code: ErrorCode,
    rule: impl Into<Option<FailureRule>>,
) -> ResolutionError {
    let error = match &resolution.outcome {
        Ok(resolved) => panic!("resolves to version {}", resolved.metadata.version_id),
        Err(error) => error.clone(),
    };
    assert_eq!((error.code(), error.rule()), (code, rule.into()), "{error}");
    error
}

/// What happened in the loop, in a word and the version each.
pub(super) fn steps(resolution: &Resolution) -> Vec<(&'static str, u64)> {
    let step = |event: &Event| {
        let (word, Step { version, .. }) = match event {
            Event::Applied(step) => ("applied", step),
            Event::Duplicate(step) => ("duplicate", step),
            Event::Dropped(step) => ("dropped", step),
            Event::NotExamined(step) => ("not examined", step),
            _ => return None,
        };
        Some((word, *version))
    };
    resolution.history.iter().filter_map(step).collect()
}

/// The addresses that were scanned, by round.
pub(super) fn scanned(resolution: &Resolution) -> Vec<(u32, Address)> {
    let scan = |event: &Event| match event {
        Event::Scanned { round, beacon, .. } => Some((*round, beacon.address.clone())),
        _ => None,
    };
    resolution.history.iter().filter_map(scan).collect()
}
