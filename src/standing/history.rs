//! Fetches what a standing cohort has announced from a service over HTTP: for DIDs that have left it, and for those whose seat is gone.

use std::{collections::BTreeMap, time::Duration};

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
    pub seed: SeatSeed,
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

    /// Sends a request, signed by `signer` if there is one; `None` if it is refused for lack of a right.
    async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &str,
        signer: Option<&Identity>,
    ) -> Result<Option<T>, HistoryFailure> {
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
            StatusCode::OK => serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(error.to_string())),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(None),
            status => Err(failed(format!("it answers {status}"))),
        }
    }

    /// A request that every client may send.
    async fn public<T: DeserializeOwned>(&self, path: &str, query: &str) -> Result<T, HistoryFailure> {
        let refused =
            || HistoryFailure::Service { url: path.to_owned(), problem: "it refuses the request".to_owned() };
        self.get(path, query, None).await?.ok_or_else(refused)
    }

    /// Fetches what resolvers need of every announcement for these DIDs, and adds it to the files in a directory.
    ///
    /// # Errors
    /// [`HistoryFailure`]. What was fetched before is stored.
    pub async fn fetch(
        &self,
        dids: &[Did],
        sidecars: &Sidecars,
        seat: Option<&OwnSeat>,
    ) -> Result<Fetched, HistoryFailure> {
        let base = self.base.path().to_owned();
        let mut fetched = Fetched::default();
        let mut after = 0;
        loop {
            let query = format!("after={after}");
            let list: List = self.public(&announcements_path(&base, &self.cohort_id), &query).await?;
            for listed in &list.announcements {
                // What can never be mined needs no data; a refresh announces nothing.
                let Some(signal) = listed.signal.filter(|_| listed.state != "void") else { continue };
                if listed.kind != OpportunityKind::Announcement {
                    continue;
                }
                fetched.announcements += 1;
                match list.beacon_type {
                    StandingBeacon::Cas => {
                        self.fetch_map(&base, listed.number, signal, dids, sidecars, seat).await?
                    }
                    StandingBeacon::Smt => {
                        for did in dids {
                            let is_known =
                                self.fetch_proof(&base, &list, listed, signal, did, sidecars, seat).await?;
                            if !is_known {
                                fetched.private.push((listed.number, listed.txid, did.clone()));
                            }
                        }
                    }
                }
            }
            match list.next.filter(|next| *next > after) {
                Some(next) => after = next,
                None => return Ok(fetched),
            }
        }
    }

    async fn fetch_map(
        &self,
        base: &str,
        number: u64,
        signal: SignalBytes,
        dids: &[Did],
        sidecars: &Sidecars,
        seat: Option<&OwnSeat>,
    ) -> Result<(), HistoryFailure> {
        let map: CasAnnouncement = self.public(&map_path(base, &self.cohort_id, &signal), "").await?;
        if map.signal() != signal {
            return Err(HistoryFailure::Wrong { number, problem: "the map is not the announced one".to_owned() });
        }
        let updates: BTreeMap<_, _> =
            seat.into_iter().flat_map(|seat| &seat.updates).map(|(_, update)| (*update.hash(), update)).collect();
        let data = BeaconData::Cas(map.clone());
        for did in dids {
            let update = map.get(did.as_str()).and_then(|hash| updates.get(hash));
            let stored = sidecars.add(did, Some(&data), update.map(|update| update.value()));
            stored.map_err(HistoryFailure::Storage)?;
        }
        Ok(())
    }

    /// Returns whether the proof was fetched: that of a leaf is for its seat.
    #[expect(clippy::too_many_arguments, reason = "what an announcement, a DID and a seat are made of")]
    async fn fetch_proof(
        &self,
        base: &str,
        list: &List,
        listed: &Listed,
        signal: SignalBytes,
        did: &Did,
        sidecars: &Sidecars,
        seat: Option<&OwnSeat>,
    ) -> Result<bool, HistoryFailure> {
        let index = did_index(did);
        let number = listed.number;
        let path = proof_path(base, &self.cohort_id, number, &index);
        let signer = seat.and_then(|seat| {
            let key = seat.seed.communication_key(seat.network, &list.service, &self.cohort_id).ok()?;
            Some(Identity::from_key(key, seat.network))
        });
        let Some(Proof { proof, leaf }) = self.get::<Proof>(&path, "", signer.as_ref()).await? else {
            return Ok(false);
        };
        let wrong = |problem: &str| HistoryFailure::Wrong { number, problem: format!("{did}: {problem}") };
        if *proof.id.as_bytes() != *signal.as_bytes() {
            return Err(wrong("the proof is of another announcement"));
        }
        let found = complete(proof, leaf, seat, &list.service, &list.beacon_address, number, did, &index);
        let (proof, update) = found.map_err(|problem| wrong(&problem))?;
        proof.verify(index.as_bytes()).map_err(|error| wrong(&error.to_string()))?;
        let stored = sidecars.add(did, Some(&BeaconData::Smt(proof)), update.map(SignedUpdate::value));
        stored.map_err(HistoryFailure::Storage)?;
        Ok(true)
    }
}

/// The proof with the nonce and the update of the leaf, if there is one.
#[expect(clippy::too_many_arguments, reason = "what a nonce follows from")]
fn complete<'a>(
    mut proof: SmtProof,
    leaf: Option<SmtHash>,
    seat: Option<&'a OwnSeat>,
    service: &Did,
    beacon_address: &str,
    number: u64,
    did: &Did,
    index: &DidIndex,
) -> Result<(SmtProof, Option<&'a SignedUpdate>), String> {
    let Some(leaf) = leaf else { return Ok((proof, None)) };
    let seat = seat.ok_or("the leaf is of a seat")?;
    let nonce = seat.seed.leaf_nonce(service, beacon_address, number, index);
    let is =
        |update: Option<&SignedUpdate>| smt_leaf(Some(&nonce), update.map(SignedUpdate::hash)) == *leaf.as_bytes();
    let update = if is(None) {
        None
    } else {
        let of_did = seat.updates.iter().filter(|(of, _)| of == did).map(|(_, update)| update);
        let found = of_did.into_iter().find(|update| is(Some(*update)));
        Some(found.ok_or("the announced update is not among those in --updates, or the seat is another one")?)
    };
    proof.nonce = Some(SmtNonce::from(nonce.as_slice()));
    proof.update_id = update.map(|update| *update.hash());
    Ok((proof, update))
}
