//! The configuration of `serve`.

use std::{net::SocketAddr, path::PathBuf};

use ::bitcoin::Amount;

use super::{
    alarm::OnAlarm,
    operator::Coins,
    public::PageSettings,
    switches::Values,
    terms::{RoundTerms, StandingConfig, Terms},
    tls::Tls,
};
use crate::{
    actors::{
        seats::SeatLimits,
        transport::{
            connections::ConnectionLimits,
            http::HttpConfig,
            nostr::{NostrConfig, embedded::RelayLimits},
        },
    },
    cas::Publication,
    control::ControlConfig,
    protocol::{cohort::service::Limits, identity::Identity, network::Network},
    systemd::Unit,
};

/// The configuration of a service.
pub struct ServeConfig {
    /// Its name among the services of one process, which is in all that it prints.
    pub name: Option<String>,
    /// The identity of the service.
    pub identity: Identity,
    /// The network of its cohorts.
    pub network: Network,
    /// The address to serve HTTP on; `None` for a service that is reached over relays only.
    pub listen: Option<String>,
    /// The address of the metrics and health server, if any. Not to be exposed to the public.
    pub metrics_listen: Option<String>,
    /// What to do with alarms.
    pub on_alarm: Option<OnAlarm>,
    /// The relays to serve over, if any.
    pub nostr: Option<NostrConfig>,
    /// The address of the embedded relay, which is one of the relays to serve over.
    pub embedded_relay: Option<SocketAddr>,
    /// The limits of that relay.
    pub relay_limits: RelayLimits,
    /// Certificate and key, for https.
    pub tls: Option<Tls>,
    /// The source of coins.
    pub coins: Coins,
    /// Where announcements are published before they are signed.
    pub publication: Publication,
    /// The terms of one-time cohorts.
    pub terms: RoundTerms,
    /// Whether one-time cohorts on these terms are advertised. Otherwise only those that the operator asks for.
    pub advertises: bool,
    /// The limits on messages and members.
    pub limits: Limits,
    /// The limits of the web server.
    pub http: HttpConfig,
    /// The limits on connections.
    pub connections: ConnectionLimits,
    /// The total number of cohorts.
    pub cohorts: Option<u32>,
    /// The number of cohorts that are advertised at once.
    pub parallel: u32,
    /// Whether to exit when all cohorts have ended.
    pub exit_when_done: bool,
    /// Whether to print JSON.
    pub json: bool,
    /// Whether lines for people start with the time.
    pub times: bool,
    /// Where to write results.
    pub out: Option<PathBuf>,
    /// The directory for all state that must survive a restart.
    pub state: Option<PathBuf>,
    /// A file of admitted DIDs. Without it, and without `invites`, every DID is admitted.
    pub allow_list: Option<PathBuf>,
    /// Whether invites admit.
    pub invites: bool,
    /// The amount that a KEY DID needs at its initial beacon addresses to be admitted without a list entry or an
    /// invite.
    pub admit_funded: Option<Amount>,
    /// Whether a participant is admitted only if its opt-in proves possession of its signing key.
    pub proven_keys_only: bool,
    /// The number of seats of one DID, address or invite.
    pub seats: SeatLimits,
    /// The number of cohorts that may run at once. Above it no cohort is opened.
    pub max_live: u32,
    /// A standing cohort in place of one-time ones.
    pub standing: Option<StandingConfig>,
    /// The control API, if there is one.
    pub control: Option<ControlConfig>,
    /// Whether the directory of cohorts and announcements is served to everyone.
    pub directory: bool,
    /// The page of the directory for people, if there is one.
    pub public_page: Option<PageSettings>,
    /// The URL by which everyone reaches the service, without a slash at its end. Without it, that of the socket.
    pub public_url: Option<String>,
    /// What systemd is to know of this process. A host that embeds the service reports itself.
    pub unit: Option<Unit>,
}

impl ServeConfig {
    /// A service of `identity` on `network` with defaults for everything else.
    pub fn new(identity: Identity, network: Network) -> Self {
        let recovery_key = identity.public_key().x_only();
        Self {
            name: None,
            identity,
            network,
            listen: Some("127.0.0.1:8080".to_owned()),
            metrics_listen: None,
            on_alarm: None,
            nostr: None,
            embedded_relay: None,
            relay_limits: RelayLimits::default(),
            tls: None,
            coins: Coins::Offline,
            publication: Publication::default(),
            terms: RoundTerms::new(recovery_key),
            advertises: true,
            limits: Limits::default(),
            http: HttpConfig::default(),
            connections: ConnectionLimits::default(),
            cohorts: None,
            parallel: 1,
            exit_when_done: false,
            json: false,
            times: false,
            out: None,
            state: None,
            allow_list: None,
            invites: false,
            admit_funded: None,
            proven_keys_only: false,
            seats: SeatLimits::default(),
            max_live: 256,
            standing: None,
            control: None,
            directory: false,
            public_page: None,
            public_url: None,
            unit: None,
        }
    }

    /// What the command line describes: the terms of its cohorts, if it has some.
    pub(super) fn described(&self) -> Option<Terms> {
        let standing = self.standing.clone().map(|standing| Terms::Standing(Box::new(standing)));
        standing.or_else(|| self.advertises.then(|| Terms::Round(Box::new(self.terms.clone()))))
    }

    /// The settings that the operator can change later.
    pub(super) fn values(&self) -> Values {
        Values {
            invites: self.invites,
            allow_list: false,
            proven_keys_only: self.proven_keys_only,
            manual_admission: false,
            adverts: true,
            max_live_cohorts: self.max_live,
        }
    }
}
