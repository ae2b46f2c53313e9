//! The checks of a request, in the wire format's order. Pure, except for the state of the stores.

use std::{net::IpAddr, sync::Arc, time::Duration};

use btcr2_aggregation_protocol::{
    did::Did,
    envelope::{Expected, ParsedEnvelope},
    key::PublicKey,
    message::{DecodeError, Message},
    request_auth::{RequestAuthorization, inbox_path},
    time::Timestamp,
};

use crate::transport::external::key_in_opt_in;

use super::{
    Refusal,
    config::HttpConfig,
    directory::{Directory, Local},
    report::{Counts, Limit},
    store::{NonceStore, NonceVerdict, Rate, RateLimitStore},
};
use crate::transport::connections::Network;

/// The keys of one DID that are tried.
const MOST_KEYS: usize = 16;

/// The resolutions of DIDs for one address.
const RESOLUTIONS: Rate = Rate { per_second: 1, burst: 10 };

/// A message that passed the checks.
pub(super) struct Admitted {
    pub(super) from: Did,
    pub(super) to: Arc<Local>,
    pub(super) message: Result<Message, DecodeError>,
}

/// A request for an inbox, before its owner's signature is verified.
pub(super) struct InboxRequest {
    pub(super) did: Did,
    authorization: RequestAuthorization,
}

/// The keys by which a client's requests are counted.
pub(super) struct Client {
    /// Its address.
    pub(super) address: Option<IpAddr>,
    /// Its network, if it has an address.
    pub(super) network: Option<Network>,
    /// Its address; for IPv6 its network, because a peer with one address has 2^64 of them.
    pub(super) requests: String,
    /// For IPv6 also the site, which has 65,536 networks.
    pub(super) site: Option<String>,
}

impl Client {
    /// Clients without an address are counted as one.
    pub(super) fn of(address: Option<IpAddr>) -> Self {
        let site = address.map(Network::of_connection).filter(Network::is_ipv6).map(|site| site.to_string());
        let network = address.map(Network::of_requests);
        Self { address, network, requests: network.map(|network| network.to_string()).unwrap_or_default(), site }
    }
}

/// The gate and its stores.
pub(super) struct Gate {
    pub(super) config: HttpConfig,
    pub(super) directory: Directory,
    pub(super) nonces: Arc<dyn NonceStore>,
    pub(super) rates: Arc<dyn RateLimitStore>,
    pub(super) counts: Arc<Counts>,
}

impl Gate {
    /// The first check, which costs little: the rate of one address.
    pub(super) async fn admit_address(&self, address: &Client, now: Timestamp) -> Result<(), Refusal> {
        let key = format!("address {}", address.requests);
        if !self.rates.take(&key, self.config.address_rate, now).await {
            return Err(self.counts.limited(Limit::Address));
        }
        let Some(site) = &address.site else { return Ok(()) };
        let granted = self.rates.take(&format!("site {site}"), self.config.site_rate(), now).await;
        if granted { Ok(()) } else { Err(self.counts.limited(Limit::Site)) }
    }

    /// Before a signature is checked: DIDs cost nothing, so those that are not members share a part of their address's
    /// rate.
    async fn admit_outsider(&self, from: &Did, address: &Client, now: Timestamp) -> Result<(), Refusal> {
        if self.directory.is_member(from) || self.directory.local(from.as_str()).is_some() {
            return Ok(());
        }
        let key = format!("outsiders {}", address.requests);
        let granted = self.rates.take(&key, self.config.outsiders_rate(), now).await;
        if granted { Ok(()) } else { Err(self.counts.limited(Limit::Outsiders)) }
    }

    /// `POST /v1/messages`.
    pub(super) async fn admit_message(
        &self,
        body: &[u8],
        address: &Client,
        now: Timestamp,
    ) -> Result<Admitted, Refusal> {
        let envelope = self.parse(body)?;
        let (from, new_key) = self.authenticate(&envelope, address, now).await?;
        let to = envelope.to().ok_or(Refusal::MissingRecipient)?;
        let to = self.directory.local(to).ok_or(Refusal::UnknownRecipient)?;
        check_inner(&envelope)?;
        // Not earlier: a key of a request that was refused must not be stored.
        if let Some(key) = new_key {
            self.directory.remember_outsider(&from, key);
        }
        let message = envelope.into_message_among(&[&from, to.identity.did()]);
        Ok(Admitted { from, to, message })
    }

    /// `POST /v1/adverts`: only identities of this server advertise here.
    pub(super) async fn admit_advert(
        &self,
        body: &[u8],
        address: &Client,
        now: Timestamp,
    ) -> Result<(Arc<Local>, Result<Message, DecodeError>), Refusal> {
        let envelope = self.parse(body)?;
        let (from, _) = self.authenticate(&envelope, address, now).await?;
        let local = self.directory.local(from.as_str()).ok_or(Refusal::NotAnActor)?;
        check_inner(&envelope)?;
        Ok((local, envelope.into_message_among(&[&from])))
    }

    /// Parses `GET /v1/actors/{did}/inbox`; [`Self::admit_inbox`] verifies that its owner sent it.
    pub(super) fn parse_inbox(owner: &str, authorization: Option<&str>) -> Result<InboxRequest, Refusal> {
        let authorization = authorization.and_then(|header| RequestAuthorization::parse(header).ok());
        let authorization = authorization.filter(|authorization| authorization.did() == owner);
        let authorization = authorization.ok_or(Refusal::Unauthorized)?;
        let did = Did::parse(owner).map_err(|_| Refusal::Unauthorized)?;
        Ok(InboxRequest { did, authorization })
    }

    /// Whether an opt-in could make `request` valid: its owner's key is not known, and no other check has failed yet.
    pub(super) fn awaits_opt_in(&self, InboxRequest { did, authorization }: &InboxRequest, now: Timestamp) -> bool {
        self.directory.key_of(did).is_none()
            && authorization.is_well_formed()
            && authorization.timestamp().agrees_with(now, self.config.clock_skew)
    }

    /// `GET /v1/actors/{did}/inbox`: only its owner opens an inbox.
    pub(super) async fn admit_inbox(
        &self,
        request: &InboxRequest,
        path: &str,
        address: &Client,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let InboxRequest { did, authorization } = request;
        let key = self.directory.key_of(did).ok_or(Refusal::Unauthorized)?.x_only();
        self.admit_outsider(did, address, now).await?;
        let skew = self.config.clock_skew;
        let verified =
            self.signed_paths(path, did).any(|path| authorization.verify(&key, &path, now, skew).is_ok());
        if !verified {
            return Err(Refusal::Unauthorized);
        }
        self.not_again(did, authorization.nonce(), authorization.timestamp(), now).await?;
        self.not_too_often(did, now).await
    }

    /// The paths that the client may have signed if `path` arrives: `path` itself and, because proxies decode what they
    /// forward, the same route with the DID encoded as clients write it; each also with the prefixes that a proxy
    /// strips.
    fn signed_paths(&self, path: &str, did: &Did) -> impl Iterator<Item = String> {
        let base = path.rsplit_once("/v1/actors/").map(|(base, _)| base);
        let rebuilt = base.map(|base| inbox_path(base, did)).filter(|rebuilt| rebuilt != path);
        self.with_prefixes(std::iter::once(path.to_owned()).chain(rebuilt).collect())
    }

    fn with_prefixes(&self, paths: Vec<String>) -> impl Iterator<Item = String> {
        let prefixes = std::iter::once("").chain(self.config.stripped_prefixes.iter().map(String::as_str));
        prefixes.flat_map(move |prefix| {
            let prefix = prefix.trim_end_matches('/');
            paths.iter().map(|path| format!("{prefix}{path}")).collect::<Vec<_>>()
        })
    }

    /// A request that `did` has signed, with one of `keys`.
    pub(super) async fn admit_signed(
        &self,
        did: &Did,
        authorization: &RequestAuthorization,
        path: &str,
        keys: &[PublicKey],
        address: &Client,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        self.admit_outsider(did, address, now).await?;
        let skew = self.config.clock_skew;
        let mut paths = self.with_prefixes(vec![path.to_owned()]);
        let is_by = |path: &str, key: &PublicKey| authorization.verify(&key.x_only(), path, now, skew).is_ok();
        if !paths.any(|path| keys.iter().take(MOST_KEYS).any(|key| is_by(&path, key))) {
            return Err(Refusal::Unauthorized);
        }
        self.not_again(did, authorization.nonce(), authorization.timestamp(), now).await?;
        self.not_too_often(did, now).await
    }

    /// Before a DID is resolved: that costs requests to the chain.
    pub(super) async fn admit_resolution(
        &self,
        authorization: &RequestAuthorization,
        address: &Client,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        if !authorization.timestamp().agrees_with(now, self.config.clock_skew) {
            return Err(Refusal::Unauthorized);
        }
        let granted = self.rates.take(&format!("control {}", address.requests), RESOLUTIONS, now).await;
        if granted { Ok(()) } else { Err(self.counts.limited(Limit::Control)) }
    }

    fn parse<'a>(&self, body: &'a [u8]) -> Result<ParsedEnvelope<'a>, Refusal> {
        if body.len() > self.config.max_body {
            return Err(Refusal::PayloadTooLarge);
        }
        let text = std::str::from_utf8(body).map_err(|_| Refusal::InvalidJson)?;
        ParsedEnvelope::parse(text).map_err(|_| Refusal::InvalidJson)
    }

    /// The sender of the envelope, and its key if it was not known before.
    async fn authenticate(
        &self,
        envelope: &ParsedEnvelope<'_>,
        address: &Client,
        now: Timestamp,
    ) -> Result<(Did, Option<PublicKey>), Refusal> {
        let from = self.directory.parse(envelope.from()).map_err(|_| Refusal::UnknownSender)?;
        let known = self.directory.key_of(&from);
        let new = match known {
            Some(_) => None,
            None => envelope.message().ok().and_then(|message| key_in_opt_in(&from, &message)),
        };
        let key = known.or(new).ok_or(Refusal::UnknownSender)?;
        self.admit_outsider(&from, address, now).await?;
        let expected = Expected { skew: self.config.clock_skew, ..Expected::default() };
        let verified = envelope.verify(&key.x_only(), now, &expected).map_err(|_| Refusal::InvalidEnvelope)?;
        self.not_again(&from, verified.nonce, verified.timestamp, now).await?;
        self.not_too_often(&from, now).await?;
        Ok((from, new))
    }

    async fn not_again(
        &self,
        from: &Did,
        nonce: [u8; 16],
        timestamp: Timestamp,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        // Clocks are compared in whole seconds, so a timestamp is accepted until the end of its last second.
        let until = timestamp + self.config.clock_skew + Duration::from_secs(1);
        match self.nonces.remember(from, nonce, now, until).await {
            NonceVerdict::Fresh => Ok(()),
            NonceVerdict::Replayed => Err(Refusal::Replay),
            NonceVerdict::Full => Err(self.counts.limited(Limit::Nonces)),
        }
    }

    async fn not_too_often(&self, from: &Did, now: Timestamp) -> Result<(), Refusal> {
        if self.rates.take(from.as_str(), self.config.did_rate, now).await {
            Ok(())
        } else {
            Err(self.counts.limited(Limit::Did))
        }
    }
}

fn check_inner(envelope: &ParsedEnvelope<'_>) -> Result<(), Refusal> {
    if !envelope.sender_matches() {
        return Err(Refusal::SenderMismatch);
    }
    envelope.inner_type().map(|_| ()).ok_or(Refusal::MissingMessageType)
}
