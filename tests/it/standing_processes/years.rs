//! A cohort of five seats and forty DIDs through at least twelve announcements: with absent seats, a refusal, a chain of announcements that a
//! reorganization makes void, and another host that takes over the service. After each announcement every DID resolves by the files of its
//! seat alone.

use std::{fs, sync::Arc};

use bitcoin::{Amount, FeeRate, OutPoint, Transaction, TxOut, consensus::encode::deserialize_hex};
use btcr2_aggregation::{
    actors::runtime::Randomness,
    protocol::{
        cohort::standing::{SeatSeed, StandingBeacon, StandingTerms},
        did::Did,
        id::CohortId,
        network::Network,
        output::{BeaconOutput, Change, Coin, KeyAggregation, SingletonAnnouncement},
        update::add_beacon_service_patch,
    },
};
use serde_json::{Value, json};

use super::world::{DEPTH, Setting, World};
use crate::support::verify::text;

const SEATS: usize = 5;
const KEYS: usize = 3;
const EXTERNALS: usize = 5;

/// So many seats can sign without the others.
const K: usize = 4;

struct Life {
    world: World,
    beacon: StandingBeacon,
    /// The EXTERNAL DIDs, by seat.
    externals: Vec<Vec<usize>>,
    /// The KEY DID that has adopted the beacon after its registration.
    adopted: usize,
}

impl Life {
    async fn new(name: &str, beacon: StandingBeacon) -> Option<Self> {
        let kind = match beacon {
            StandingBeacon::Cas => "cas",
            StandingBeacon::Smt => "smt",
        };
        let k = K.to_string();
        let terms = ["--fallback-threshold", &k, "--min-interval", "1s", "--respond-time", "8s"];
        let setting = Setting { name, beacon: kind, seats: SEATS, terms: &terms };
        let world = World::formed(&setting, KEYS, 200_000).await?;
        let mut life = Self { world, beacon, externals: Vec::new(), adopted: 0 };
        life.world.stop(&[0, 1, 2, 3, 4]);
        life.externals = (0..SEATS).map(|seat| (0..EXTERNALS).map(|_| life.world.mint(seat)).collect()).collect();
        life.adopt(0).await;
        for seat in 0..SEATS {
            life.world.start(seat, &[]);
        }
        for seat in 0..SEATS {
            life.world.event(seat, "rows-acknowledged");
        }
        life.world.resolve(None).await;
        Some(life)
    }

    /// A registered KEY DID adds the beacon to its document, announced by a Singleton beacon; what resolvers need of that is in the file of its seat.
    async fn adopt(&mut self, of: usize) {
        let world = &mut self.world;
        let author = &mut world.dids[of].author;
        let update = author.update(add_beacon_service_patch(&author.did, self.beacon.as_str(), &world.address));
        let beacon = author.beacon();
        let script = beacon.script_pubkey().to_owned();
        let value = Amount::from_sat(20_000);
        let outpoint = world.faucet.pay(&world.blocks, &script, value).await;
        world.blocks.mine(1).await;
        let (coins, rate) = ([Coin { outpoint, value }], FeeRate::from_sat_per_vb_u32(2));
        let announcement = SingletonAnnouncement::new(beacon, &coins, &update, rate, &Change::Beacon).unwrap();
        let mut rng = Randomness::Seeded([9; 32]).for_actor("adoption");
        let signed = announcement.sign(&world.dids[of].author.key, &mut rng).unwrap();
        world.blocks.chain().submit(&signed).await.unwrap();
        world.blocks.mine(DEPTH).await;
        let controlled = &world.dids[of];
        let sidecar = json!({ "@context": "https://btcr2.dev/context/v1", "updates": [update.value()] });
        let file = world.seats[controlled.seat].sidecar_file(&controlled.author.did);
        fs::write(file, sidecar.to_string()).unwrap();
    }

    /// Updates of these DIDs are announced.
    async fn announce(&mut self, dids: &[usize], note: &str, away: Option<usize>) -> Vec<Value> {
        for of in dids {
            self.world.prepare(*of, &format!("{note} of {of}"));
        }
        let announced = self.world.announce(away).await;
        self.world.resolve_by_command(dids[0]).await;
        announced
    }

    /// A seat is absent from an announcement; when it has come back, its DIDs resolve.
    async fn absent(&mut self, seat: usize, dids: &[usize], note: &str) {
        self.world.stop(&[seat]);
        for signed in self.announce(dids, note, Some(seat)).await {
            assert_eq!(signed["mode"], "fallback", "{signed:#}");
            assert_eq!(signed["absent"].as_array().unwrap().len(), 1);
        }
        self.world.start(seat, &[]);
        let last = self.world.last;
        self.world.program(seat).event_where("missed", |event| event["number"] == last);
        self.world.resolve(None).await;
    }

    /// A seat cannot write what one of its DIDs needs, and refuses; the others announce without it, and it makes up for that once it can.
    async fn refused(&mut self, seat: usize, dids: &[usize]) {
        let obstructed = self.externals[seat][4];
        let file = self.world.seats[seat].sidecar_file(&self.world.dids[obstructed].author.did);
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        for of in dids {
            self.world.prepare(*of, &format!("refused of {of}"));
        }
        let last = self.world.last;
        let failed =
            self.world.service.program.event_where("number-failed", |event| event["number"].as_u64() > Some(last));
        assert_eq!(failed["refused"].as_array().unwrap().len(), 1, "{failed:#}");
        let signed = self.world.is_announced().await;
        assert_eq!(signed["mode"], "fallback", "{signed:#}");
        assert_eq!(signed["number"].as_u64(), failed["number"].as_u64().map(|failed| failed + 1));
        fs::remove_dir(&file).unwrap();
        // What the seat could not write, of the number that has failed, and of the one that others have signed.
        for number in [&failed["number"], &signed["number"]] {
            let written = format!("number {number}: what resolvers need of it is written now");
            self.world.program(seat).first("the data", |event| {
                event["event"] == "warning" && text(&event["message"]) == written
                    // Others have signed before it was asked.
                    || event["event"] == "missed" && event["number"] == *number
            });
        }
        self.world.resolve(None).await;
        if self.world.dids.iter().any(|one| one.version < one.prepared()) {
            self.world.announce(None).await;
        }
    }

    /// Two announcements, the second of which spends the change of the first, lose the coin to another transaction: both are void, and what
    /// they have announced is announced again, unchanged.
    async fn void(&mut self, first: usize, second: usize) {
        let mut updates = Vec::new();
        let mut chain = Vec::new();
        for of in [first, second] {
            updates.push(self.world.prepare(of, &format!("void of {of}")));
            let signed = self.world.signed();
            self.world.sent(&signed).await;
            chain.push(signed);
        }
        let world = &mut self.world;
        let transaction = |signed: &Value| {
            let txid = text(&signed["txid"]).to_owned();
            let node = world.blocks.node();
            async move {
                deserialize_hex::<Transaction>(node.rpc("getrawtransaction", json!([txid])).await.as_str().unwrap())
                    .unwrap()
            }
        };
        let (one, two) = (transaction(&chain[0]).await, transaction(&chain[1]).await);
        assert_eq!(two.input[0].previous_output, OutPoint::new(one.compute_txid(), 0));
        let coin = one.input[0].previous_output;
        let asked = json!([coin.txid, coin.vout, false]);
        let value = world.blocks.node().rpc("gettxout", asked).await["value"].as_f64().unwrap();
        let conflict = self.conflict(coin, Amount::from_btc(value).unwrap());
        let world = &mut self.world;
        // In a block, which is then not in the chain any more; in its place there is one with the other transaction.
        world.blocks.mine(1).await;
        world.blocks.take_back(1).await;
        world.blocks.mine_with(1, std::slice::from_ref(&conflict)).await;
        world.blocks.mine(1).await;
        assert_eq!(world.blocks.mempool().await, []);
        let void = world.service.program.event("numbers-void");
        assert_eq!(void["by"], conflict.compute_txid().to_string());
        assert_eq!(void["numbers"], json!([chain[0]["number"], chain[1]["number"]]));
        let announced = world.announce(None).await;
        assert!(announced.iter().all(|signed| chain.iter().all(|void| void["txid"] != signed["txid"])));
        for (of, update) in [first, second].into_iter().zip(updates) {
            let sidecar = world.dids[of].sidecar(&world.seats);
            assert_eq!(sidecar["updates"].as_array().unwrap().last().unwrap(), update.value());
        }
    }

    /// Another spend of a coin of the cohort, signed by as many seats as can.
    fn conflict(&self, outpoint: OutPoint, value: Amount) -> Transaction {
        let world = &self.world;
        let service: Did = Did::parse(&world.service.did).unwrap();
        let cohort_id = CohortId::parse(&world.cohort_id).unwrap();
        let secrets: Vec<_> = world
            .seats
            .iter()
            .map(|seat| SeatSeed::from_secret(&seat.key).seat_key(Network::Regtest, &service, &cohort_id).unwrap())
            .collect();
        let (n, k) = (u16::try_from(SEATS).unwrap(), u16::try_from(K).unwrap());
        let terms = StandingTerms::new(self.beacon, Network::Regtest, n, n).proceeding(k);
        let keys =
            KeyAggregation::new(secrets.iter().map(|secret| secret.public_key()).collect::<Vec<_>>()).unwrap();
        let output = BeaconOutput::new(Arc::new(keys), Network::Regtest, &terms.script_tree()).unwrap();
        assert_eq!(output.address(), world.address);
        let prevout = TxOut { value, script_pubkey: output.script_pubkey().to_owned() };
        let back = TxOut { value: value - Amount::from_sat(2_000), ..prevout.clone() };
        let transaction = Transaction {
            version: bitcoin::transaction::Version::TWO,
            lock_time: bitcoin::absolute::LockTime::ZERO,
            input: vec![bitcoin::TxIn { previous_output: outpoint, ..Default::default() }],
            output: vec![back],
        };
        let leaf = output.fallback().unwrap();
        let digest = leaf.sighash(&transaction, &prevout).unwrap();
        let mut rng = Randomness::Seeded([6; 32]).for_actor("conflict");
        let signatures = secrets[..K]
            .iter()
            .map(|secret| (secret.public_key().x_only(), secret.sign(&digest, &mut rng)))
            .collect();
        leaf.assemble(&transaction, &prevout, &signatures).unwrap()
    }

    /// The service dies while a number is open, and another host goes on with it.
    async fn taken_over(&mut self, of: usize) {
        let last = self.world.last;
        self.world.prepare(of, "taken over");
        self.world.service.program.event_where("number-opened", |event| event["number"].as_u64() > Some(last));
        self.world.take_over();
        self.world.announce(None).await;
        self.world.resolve_by_command(of).await;
    }
}

/// All of it, or each event once.
async fn announces_for_years(name: &str, beacon: StandingBeacon, is_long: bool) {
    let Some(mut life) = Life::new(name, beacon).await else { return };
    let started = std::time::Instant::now();
    let own = life.externals.clone();
    // By key path: EXTERNAL DIDs, and a KEY DID that has adopted the beacon.
    life.world.prepare_by_command(own[0][0], "first").await;
    life.announce(&[own[1][0], life.adopted], "first", None).await;
    life.announce(&[own[2][0], own[3][0], own[4][0]], "second", None).await;
    life.absent(4, &[own[0][0], own[0][1]], "third").await;
    life.announce(&[own[4][0]], "fourth", None).await;
    if is_long {
        life.absent(1, &[own[3][0]], "fifth").await;
        life.announce(&[own[1][0], own[1][1]], "sixth", None).await;
    }
    life.refused(3, &[own[2][2], own[3][1]]).await;
    life.void(own[0][1], own[1][2]).await;
    life.taken_over(own[4][1]).await;
    life.announce(&[life.adopted, own[3][2]], "seventh", None).await;
    if is_long {
        for round in 8.. {
            let seat = round % SEATS;
            life.announce(&[own[seat][3]], &format!("round {round}"), None).await;
            if life.world.announced >= 12 {
                break;
            }
        }
        assert!(life.world.announced >= 12);
    }
    assert_eq!(life.world.dids.len(), 40);
    println!("{name}: {} announcements in {:?}", life.world.announced, started.elapsed());
}

#[actix_rt::test]
async fn a_cas_cohort_announces_for_years() {
    announces_for_years("standing-cas", StandingBeacon::Cas, true).await;
}

/// `STANDING=long`: as many announcements as with CAS.
#[actix_rt::test]
async fn an_smt_cohort_announces_for_years() {
    let is_long = std::env::var("STANDING").is_ok_and(|form| form == "long");
    announces_for_years("standing-smt", StandingBeacon::Smt, is_long).await;
}
