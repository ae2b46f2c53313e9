//! Fetches what a standing cohort has announced from a service over HTTP: for DIDs that have left it, and for those whose seat is gone.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ::bitcoin::Txid;
use reqwest::{Client, StatusCode, Url, header::AUTHORIZATION, redirect};
use serde::{Deserialize, de::DeserializeOwned};

use super::sidecars::Sidecars;
use crate::{
    actors::{
        runtime::{Clock, Randomness},
        transport::{
            http::history::{announcements_path, map_path, proof_path},
            tls::Trust,
        },
    },
    protocol::{
        beacon::{BeaconData, CasAnnouncement, SmtNonce, SmtProof, did_index, smt_leaf},
        cohort::standing::{OpportunityKind, SeatSeed, StandingBeacon},
        did::Did,
        hash::{DidIndex, SignalBytes, SmtHash},
        id::CohortId,
        identity::Identity,
        network::Network,
        request_auth::RequestAuthorization,
        update::SignedUpdate,
    },
};

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The largest answer: a map of 100,000 DIDs has 12 MB.
const MOST_BYTES: usize = 32 << 20;

/// How often a request is sent that is too much for the service, and the pause between two of them.
const TRIES: u32 = 60;
const PAUSE: Duration = Duration::from_secs(1);

/// An answer of the service.
enum Answer<T> {
    Given(T),
    NotEntitled,
    TooMany,
}

/// Why history cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum HistoryFailure {
    /// The base URL.
    #[error("{0}: an http or https URL expected")]
    Url(String),
    /// The service, or the way to it.
    #[error("{url}: {problem}")]
    Service {
        /// What was asked for.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// What the service has answered is not what was announced.
    #[error("number {number}: {problem}")]
    Wrong {
        /// The announcement.
        number: u64,
        /// What is wrong.
        problem: String,
    },
    /// The output directory.
    #[error("{0}")]
    Storage(String),
}

/// An announcement in the service's list.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    number: u64,
    txid: Txid,
    signal: Option<SignalBytes>,
    kind: OpportunityKind,
    state: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct List {
    service: Did,
    beacon_address: String,
    beacon_type: StandingBeacon,
    announcements: Vec<Listed>,
    next: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Proof {
    proof: SmtProof,
    leaf: Option<SmtHash>,
}

/// The seat that had registered the DIDs, for proofs of their leaves.
pub struct OwnSeat {
    /// The secret from which its keys and nonces follow.
    pub seed: Arc<SeatSeed>,
    /// The network.
    pub network: Network,
    /// The signed updates of its DIDs.
    pub updates: Vec<(Did, SignedUpdate)>,
}

/// What has been fetched.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// The announcements.
    pub announcements: usize,
    /// Number, transaction and DID of each leaf whose proof is for its seat only, and was not fetched.
    pub private: Vec<(u64, Txid, Did)>,
}

/// A cohort at a service.
pub struct HistoryClient {
    http: Client,
    base: Url,
    cohort_id: CohortId,
    clock: Clock,
}

impl HistoryClient {
    /// The cohort `cohort_id` at the service whose base URL is `base`.
    ///
    /// # Errors
    /// [`HistoryFailure`] if `base` is not a URL, or no client can be made on this system.
    pub fn new(base: &str, cohort_id: CohortId, trust: &Trust) -> Result<Self, HistoryFailure> {
        let url = Url::parse(base).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let url = url.ok_or_else(|| HistoryFailure::Url(base.to_owned()))?;
        let failed = |problem: String| HistoryFailure::Service { url: base.to_owned(), problem };
        let builder = trust.http_client().map_err(|error| failed(error.to_string()))?;
        let http = builder.timeout(TIMEOUT).redirect(redirect::Policy::none()).build();
        let http = http.map_err(|error| failed(error.to_string()))?;
        Ok(Self { http, base: url, cohort_id, clock: Clock::system() })
    }

    /// Sends a request, signed by `signer` if there is one, again after a pause if there were too many; `None` if it is refused for lack of a
    /// right.
    async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &str,
        signer: Option<&Identity>,
    ) -> Result<Option<T>, HistoryFailure> {
        for _ in 0..TRIES {
            match self.get_once(path, query, signer).await? {
                Answer::Given(value) => return Ok(Some(value)),
                Answer::NotEntitled => return Ok(None),
                Answer::TooMany => tokio::time::sleep(PAUSE).await,
            }
        }
        let problem = "too many requests (429), even after pauses".to_owned();
        Err(HistoryFailure::Service { url: self.base.to_string(), problem })
    }

    async fn get_once<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &str,
        signer: Option<&Identity>,
    ) -> Result<Answer<T>, HistoryFailure> {
        let mut url = self.base.clone();
        url.set_path(path);
        url.set_query(Some(query).filter(|query| !query.is_empty()));
        let failed = |problem: String| HistoryFailure::Service { url: url.to_string(), problem };
        let mut request = self.http.get(url.clone());
        if let Some(signer) = signer {
            let mut rng = Randomness::System.for_actor("history");
            let (did, key) = (signer.did(), signer.secret_key());
            let signed = RequestAuthorization::sign(did, key, url.path(), self.clock.now(), &mut rng);
            request = request.header(AUTHORIZATION, signed.to_string());
        }
        let mut answer = request.send().await.map_err(|error| failed(error.to_string()))?;
        let status = answer.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| failed(error.to_string()))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MOST_BYTES {
                return Err(failed(format!("an answer of more than {MOST_BYTES} bytes")));
            }
        }
        match status {
            StatusCode::OK => {
                serde_json::from_slice(&bytes).map(Answer::Given).map_err(|error| failed(error.to_string()))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(Answer::NotEntitled),
            StatusCode::TOO_MANY_REQUESTS => Ok(Answer::TooMany),
            status => Err(failed(format!("it answers {status}"))),
        }
    }

    /// A request that every client may send.
    async fn public<T: DeserializeOwned>(&self, path: &str, query: &str) -> Result<T, HistoryFailure> {
        let refused =
            || HistoryFailure::Service { url: path.to_owned(), problem: "it refuses the request".to_owned() };
        self.get(path, query, None).await?.ok_or_else(refused)
    }

    /// Fetches what resolvers need of every announcement for these DIDs, as far as the files in a directory do not have it, and adds it to them.
    ///
    /// # Errors
    /// [`HistoryFailure`]. What was fetched before is stored, but for the last page of 256 announcements.
    pub async fn fetch(
        &self,
        dids: &[Did],
        sidecars: &Sidecars,
        seat: Option<&OwnSeat>,
    ) -> Result<Fetched, HistoryFailure> {
        let known: BTreeMap<&Did, _> = dids.iter().map(|did| (did, sidecars.signals(did))).collect();
        let mut fetched = Fetched::default();
        let mut after = 0;
        loop {
            let path = announcements_path(self.base.path(), &self.cohort_id);
            let list: List = self.public(&path, &format!("after={after}")).await?;
            let page = Page { client: self, list: &list, sidecars, seat };
            for listed in &list.announcements {
                // What can never be mined needs no data; a refresh announces nothing.
                let Some(signal) = listed.signal.filter(|_| listed.state != "void") else { continue };
                if !listed.kind.announces() {
                    continue;
                }
                fetched.announcements += 1;
                let is_missing = |did: &&Did| known.get(did).is_none_or(|known| !known.contains(&signal));
                let dids: Vec<&Did> = dids.iter().filter(is_missing).collect();
                match list.beacon_type {
                    StandingBeacon::Cas if dids.is_empty() => {}
                    StandingBeacon::Cas => page.map(listed.number, signal, &dids).await?,
                    StandingBeacon::Smt => {
                        for did in dids {
                            if !page.proof(listed.number, signal, did).await? {
                                fetched.private.push((listed.number, listed.txid, did.clone()));
                            }
                        }
                    }
                }
            }
            for did in dids {
                sidecars.write(did).map_err(HistoryFailure::Storage)?;
            }
            match list.next.filter(|next| *next > after) {
                Some(next) => after = next,
                None => return Ok(fetched),
            }
        }
    }
}

/// A page of the list.
struct Page<'a> {
    client: &'a HistoryClient,
    list: &'a List,
    sidecars: &'a Sidecars,
    seat: Option<&'a OwnSeat>,
}

impl<'a> Page<'a> {
    async fn map(&self, number: u64, signal: SignalBytes, dids: &[&Did]) -> Result<(), HistoryFailure> {
        let client = self.client;
        let path = map_path(client.base.path(), &client.cohort_id, &signal);
        let map: CasAnnouncement = client.public(&path, "").await?;
        if map.signal() != signal {
            return Err(HistoryFailure::Wrong { number, problem: "the map is not the announced one".to_owned() });
        }
        let data = BeaconData::Cas(map.clone());
        let updates = self.seat.map_or(&[][..], |seat| &seat.updates);
        for did in dids {
            let announced = map.get(did.as_str());
            let update = updates.iter().map(|(_, update)| update).find(|update| Some(update.hash()) == announced);
            self.sidecars.note(did, Some(&data), update.map(SignedUpdate::value));
        }
        Ok(())
    }

    /// Returns whether the proof was fetched: that of a leaf is for its seat.
    async fn proof(&self, number: u64, signal: SignalBytes, did: &Did) -> Result<bool, HistoryFailure> {
        let (client, index) = (self.client, did_index(did));
        let path = proof_path(client.base.path(), &client.cohort_id, number, &index);
        let signer = self.seat.and_then(|seat| {
            let key = seat.seed.communication_key(seat.network, &self.list.service, &client.cohort_id).ok()?;
            Some(Identity::from_key(key, seat.network))
        });
        let Some(Proof { proof, leaf }) = client.get::<Proof>(&path, "", signer.as_ref()).await? else {
            return Ok(false);
        };
        let wrong = |problem: &str| HistoryFailure::Wrong { number, problem: format!("{did}: {problem}") };
        if *proof.id.as_bytes() != *signal.as_bytes() {
            return Err(wrong("the proof is of another announcement"));
        }
        let completed = match leaf {
            Some(leaf) => self.with_leaf(proof, leaf, number, did, &index),
            None => Ok((proof, None)),
        };
        let (proof, update) = completed.map_err(&wrong)?;
        proof.verify(index.as_bytes()).map_err(|error| wrong(&error.to_string()))?;
        self.sidecars.note(did, Some(&BeaconData::Smt(proof)), update.map(SignedUpdate::value));
        Ok(true)
    }

    /// The proof with the nonce of the leaf, and the update in it, if there is one.
    fn with_leaf(
        &self,
        mut proof: SmtProof,
        leaf: SmtHash,
        number: u64,
        did: &Did,
        index: &DidIndex,
    ) -> Result<(SmtProof, Option<&'a SignedUpdate>), &'static str> {
        let seat = self.seat.ok_or("the leaf is of a seat")?;
        let nonce = seat.seed.leaf_nonce(&self.list.service, &self.list.beacon_address, number, index);
        let is = |update: Option<&SignedUpdate>| {
            smt_leaf(Some(&nonce), update.map(SignedUpdate::hash)) == *leaf.as_bytes()
        };
        let update = if is(None) {
            None
        } else {
            let mut of_did = seat.updates.iter().filter(|(of, _)| of == did).map(|(_, update)| update);
            let found = of_did.find(|update| is(Some(*update)));
            Some(found.ok_or("the announced update is not among those in --updates, or the seat is another one")?)
        };
        proof.nonce = Some(SmtNonce::from(nonce.as_slice()));
        proof.update_id = update.map(|update| *update.hash());
        Ok((proof, update))
    }
}
