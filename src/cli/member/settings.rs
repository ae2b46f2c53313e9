//! The file of `member --config`.

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;

use super::super::{
    ChainArg,
    join::ShareArg,
    keys_of,
    relay::{RelaySettings, trust},
    serve::Beacon,
    singleton::SatPerVb,
};
use crate::{
    actors::transport::tls::Trust,
    cas::{self, Location},
    config::{self, Key, Period, Span, table},
    error::ProgramError,
    join::ChainQuestions,
    member::{
        BackupSettings, MemberConfig, SIDECARS, SeatSettings, ServiceSettings,
        policy::{Consent, Otherwise, Policy, Signing},
    },
    passphrase,
    protocol::{
        cohort::standing::{SeatSeed, StandingBeacon, StandingPolicy},
        did::Did,
        invite::InviteToken,
        network::Network,
    },
};

/// How many backups stay in the directory unless the file states another number.
const KEEP: usize = 10;

/// Changes within this time are in one backup.
const PAUSE: Duration = Duration::from_secs(2);

table! {
    /// The file. Paths in it are relative to its directory.
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct MemberFile {
        /// The Bitcoin network: bitcoin, testnet3, testnet4, signet, mutinynet or regtest. That of the seeds
        "network" = "\"signet\"" => network: Network;
        /// Where to read the chain: core=URL or esplora=URL. --chain of the command line comes before it
        ///
        /// A Bitcoin Core node is core=http://USER:PASSWORD@HOST:PORT or core=http://HOST:PORT?cookie=FILE.
        "chain" = "\"core=http://127.0.0.1:38332?cookie=/var/lib/bitcoin/signet/.cookie\"" => chain: Option<ChainArg>;
        /// How often to query the chain
        "chain-poll" = "\"30s\"", default "30s" => chain_poll: Option<Period>;
        /// In how many blocks to look for what earlier runs have signed
        "chain-look-back" = "144", default "144" => chain_look_back: Option<u32>;
        /// How many confirmations make an announcement final
        "confirmations" = "6", default "6" => confirmations: Option<NonZeroU32>;
        /// How many confirmations a signal needs to count in a resolution
        "min-conf" = "6", default "those of confirmations" => min_conf: Option<NonZeroU32>;
        /// Stores of updates and announcements, dir=PATH or ipfs=URL, as sources of resolutions
        "cas" = "[\"dir=/var/lib/btcr2-member/cas\"]" => cas: Option<Vec<Location>>;
        /// The directory in which every DID has its Sidecar Data
        "out" = "\"/var/lib/btcr2-member/sidecars\"", default "sidecars, in the state directory" => out: Option<PathBuf>;
        /// Trust https services and wss relays by the certificates in this PEM file only. Without it, by the system's authorities
        "tls-ca" = "\"ca.pem\"" => tls_ca: Option<PathBuf>;
        sub #[serde(default)] policy: PolicyFile;
        sub backup: Option<BackupFile>;
        sub #[serde(rename = "service")] services: Vec<ServiceFile>;
        sub #[serde(rename = "seat")] seats: Vec<SeatFile>;
    }
}

table! {
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct ServiceFile {
        /// Its name in messages and in the lists of seats
        "name" = "\"one\"" => name: String;
        /// Its base URL. Without it, it is found on relays
        "url" = "\"https://service.example\"" => url: Option<String>;
        /// Accept this service only. Without it, any service that the URL or the relays lead to
        "did" = "\"did:btcr2:k1qyp3hpx92ea3yezqn9wna4d2hgzkt4c7rq6xqjqel7wp0a0f6hws0rcskdcc8\"" => did: Option<Did>;
        /// Nostr relays
        "relays" = "[\"wss://relay.example\"]" => #[serde(default)] relays: Vec<String>;
        /// With relays: read adverts that are at most this old
        "look-back" = "\"5m\"", default "5m" => look_back: Option<Span>;
        /// With relays: how long a relay may take to connect
        "relay-timeout" = "\"10s\"", default "10s" => relay_timeout: Option<Period>;
        /// With relays: how long a relay may take to answer an event, at most 10s
        "publish-timeout" = "\"10s\"", default "10s" => publish_timeout: Option<Period>;
        /// With relays: the pause before a second attempt to connect or to publish. It doubles with each further attempt
        "relay-retry" = "\"1s\"", default "1s" => relay_retry: Option<Period>;
        /// Trust this service by the certificates in this PEM file only
        "tls-ca" = "\"service.pem\"", default "tls-ca of the whole file" => tls_ca: Option<PathBuf>;
    }
}

table! {
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct SeatFile {
        /// Its name in messages and commands
        "name" = "\"home\"" => name: String;
        /// The file of the seat's secret, made by `identity new` and not used for anything else
        "seed" = "\"/var/lib/btcr2-member/seat.id\"" => seed: PathBuf;
        /// Identity files of the DIDs that it registers, and directories of them (*.id)
        "dids" = "[\"/var/lib/btcr2-member/dids\"]" => #[serde(default)] dids: Vec<PathBuf>;
        /// An invite of the operator of a service
        "invite" = "\"btcr2-invite-5e0d6f1f9f4d0d0e8a3c9a9b1c2d3e4f\"" => invite: Option<InviteToken>;
        /// The identity file of the DID as which it applies for seats, for a service whose operator has a list of DIDs
        "applies-as" = "\"/var/lib/btcr2-member/alice.id\"" => applies_as: Option<PathBuf>;
        /// The names of the services where it takes seats
        "services" = "[\"one\"]", default "all" => services: Option<Vec<String>>;
    }
}

table! {
    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct PolicyFile {
        /// The DIDs of the services whose cohorts are joined
        "services" = "[\"did:btcr2:k1qyp3hpx92ea3yezqn9wna4d2hgzkt4c7rq6xqjqel7wp0a0f6hws0rcskdcc8\"]", default "all that are reached"
            => services: Vec<Did>;
        /// Join cohorts with this beacon only: cas or smt
        "beacon" = "\"cas\"", default "both" => beacon: Option<Beacon>;
        /// The least number of seats that a cohort may have
        "least-seats" = "3" => least_seats: Option<u16>;
        /// The greatest number of seats that a cohort may have
        "most-seats" = "50" => most_seats: Option<u16>;
        /// In how many cohorts of one service a seed takes a seat
        "most-cohorts" = "1", default "1" => most_cohorts: Option<u32>;
        /// The least share of seats that can spend, and can end every DID
        "least-share" = "\"2/3\"", default "2/3" => least_share: Option<ShareArg>;
        /// The greatest number of seats in a cohort where all have to sign
        "most-seats-to-wait-for" = "25", default "25" => most_seats_to_wait_for: Option<u16>;
        /// The shortest time between announcements that is accepted
        "least-interval" = "\"1s\"", default "1s" => least_interval: Option<Period>;
        /// The shortest time to answer that is accepted
        "least-answer-time" = "\"10s\"", default "10s" => least_answer_time: Option<Period>;
        /// The highest fee rate that an announcement may pay, in sat/vB
        "max-fee-rate" = "1000", default "1000" => max_fee_rate: Option<SatPerVb>;
        /// The greatest output of the operator in an announcement, in satoshi
        "max-operator-output" = "50000", default "50000" => max_operator_output: Option<u32>;
        /// The highest price of joining, or of an announcement, in satoshi
        "max-cost" = "0", default "0" => max_cost: Option<f64>;
        /// Accept cohorts whose service receives hashes of updates only
        "accept-hashes" = "true", default "true" => accept_hashes: Option<bool>;
        /// Accept cohorts in which others may register a DID without control of it
        "accept-blind" = "false", default "false" => accept_blind: Option<bool>;
        /// What happens to offers that this policy does not accept: decline, or hold until you approve
        "otherwise" = "\"decline\"", default "decline" => otherwise: Otherwise;
        /// Whether cohorts are joined: auto, ask or never
        "join" = "\"auto\"", default "auto" => join: Consent;
        /// Whether its cohorts are followed to their successors: auto, ask or never
        "move" = "\"auto\"", default "auto" => moving: Consent;
        /// How announcements are signed: auto, ask, or ask-own where an update of yours is in it
        "sign" = "\"auto\"", default "auto" => sign: Signing;
        /// How long a decision may take; then it is a rejection
        "timeout" = "\"5m\"", default "5m" => timeout: Option<Period>;
        /// How many announcements of one cohort are signed in 24 hours
        "announcements-per-day" = "24", default "no limit" => announcements_per_day: Option<u32>;
        /// How many updates of one DID are submitted in 24 hours
        "updates-per-did-per-day" = "4", default "no limit" => updates_per_did_per_day: Option<u32>;
        /// After which time a service that cannot be reached is reported
        "silence" = "\"1d\"", default "1d" => silence: Option<Period>;
        /// A command with its arguments that decides instead of a person: exit status 0 approves
        "hook" = "[\"/usr/local/bin/decide\"]", default "none" => hook: Vec<String>;
    }
}

table! {
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct BackupFile {
        /// The directory
        "directory" = "\"/var/backups/btcr2-member\"" => directory: PathBuf;
        /// How many files stay there
        "keep" = "10", default "10" => keep: Option<usize>;
        /// Changes within this time are in one backup
        "pause" = "\"2s\"", default "2s" => pause: Option<Period>;
    }
}

/// A table of the file, with its keys.
pub(in crate::cli) struct Section {
    /// The table's head; nothing for the keys before the first table.
    pub(in crate::cli) head: &'static str,
    /// What it is for.
    pub(in crate::cli) help: &'static str,
    /// The keys that are set in the sample. A table of which none is set is not in it either.
    pub(in crate::cli) set: &'static [&'static str],
    /// Without these keys the table is not read.
    pub(in crate::cli) needed: &'static [&'static str],
    /// All keys.
    pub(in crate::cli) keys: &'static [Key],
}

/// The tables of the file, in the order of the sample.
pub(in crate::cli) const SECTIONS: [Section; 5] = [
    Section {
        head: "",
        help: "The network, the chain and the files. Paths are relative to the directory of this file",
        set: &["network", "chain"],
        needed: &["network"],
        keys: MemberFile::KEYS,
    },
    Section {
        head: "[[service]]",
        help: "A service at which seats are taken. Several: repeat the table",
        set: &["name", "url"],
        needed: &["name"],
        keys: ServiceFile::KEYS,
    },
    Section {
        head: "[[seat]]",
        help: "A seed of seats, and the DIDs that its seats register. Several: repeat the table",
        set: &["name", "seed"],
        needed: &["name", "seed"],
        keys: SeatFile::KEYS,
    },
    Section {
        head: "[policy]",
        help: "What the agent does by itself, what it asks for, and what it declines: see docs/member.md",
        set: &["timeout"],
        needed: &[],
        keys: PolicyFile::KEYS,
    },
    Section {
        head: "[backup]",
        help: "Encrypted backups after each change. The passphrase is in the variable BTCR2_PASSPHRASE",
        set: &[],
        needed: &["directory"],
        keys: BackupFile::KEYS,
    },
];

impl PolicyFile {
    fn policy(self) -> Policy {
        let default = StandingPolicy::default();
        let seconds = |period: Option<Period>, default: u32| {
            period.map_or(default, |period| u32::try_from(period.0.as_secs()).unwrap_or(u32::MAX).max(1))
        };
        let rate = |rate: SatPerVb| u32::try_from(rate.0.to_sat_per_vb_ceil()).unwrap_or(u32::MAX);
        let terms = StandingPolicy {
            least_threshold: self.least_share.map_or(default.least_threshold, |ShareArg(share)| share),
            most_seats_to_wait_for: self.most_seats_to_wait_for.unwrap_or(default.most_seats_to_wait_for),
            max_fee_rate: self.max_fee_rate.map_or(default.max_fee_rate, rate),
            max_operator_output: self.max_operator_output.unwrap_or(default.max_operator_output),
            least_seconds_between_announcements: seconds(
                self.least_interval,
                default.least_seconds_between_announcements,
            ),
            least_seconds_to_answer: seconds(self.least_answer_time, default.least_seconds_to_answer),
            accepts_hashes: self.accept_hashes.unwrap_or(default.accepts_hashes),
            accepts_blind: self.accept_blind.unwrap_or(default.accepts_blind),
            max_cost: self.max_cost.unwrap_or(default.max_cost),
        };
        let usual = Policy::default();
        Policy {
            terms,
            services: self.services,
            beacon: self.beacon.map(|beacon| match beacon {
                Beacon::Cas => StandingBeacon::Cas,
                Beacon::Smt => StandingBeacon::Smt,
            }),
            least_seats: self.least_seats,
            most_seats: self.most_seats,
            most_cohorts: self.most_cohorts.unwrap_or(usual.most_cohorts),
            otherwise: self.otherwise,
            join: self.join,
            moving: self.moving,
            sign: self.sign,
            timeout: self.timeout.map_or(usual.timeout, |period| period.0),
            most_announcements_per_day: self.announcements_per_day,
            most_updates_per_day: self.updates_per_did_per_day,
            silence: self.silence.map_or(usual.silence, |period| period.0),
            hook: self.hook,
        }
    }
}

fn usage(problem: impl std::fmt::Display) -> ProgramError {
    ProgramError::Usage(problem.to_string())
}

/// The policy of a file, for a dry run.
pub(super) fn policy(path: &Path) -> Result<Policy, ProgramError> {
    let file: MemberFile = config::read(path).map_err(usage)?;
    Ok(file.policy.policy())
}

/// Whether a text is such a file, for the sample.
#[cfg(test)]
pub(in crate::cli) fn check_file(text: &str) -> Result<(), String> {
    toml::from_str::<MemberFile>(text).map(drop).map_err(|error| error.to_string())
}

/// The policy of a `[policy]` with this text, for the defaults that are shown.
#[cfg(test)]
pub(in crate::cli) fn policy_of(text: &str) -> Result<Policy, String> {
    toml::from_str::<PolicyFile>(text).map(PolicyFile::policy).map_err(|error| error.to_string())
}

/// What the command line has of it.
pub(super) struct Given<'a> {
    pub(super) config: &'a Path,
    pub(super) state: &'a Path,
    pub(super) chain: Option<&'a ChainArg>,
    pub(super) console: Option<String>,
    pub(super) json: bool,
    pub(super) times: bool,
}

/// The configuration.
pub(super) fn config(given: &Given<'_>) -> Result<MemberConfig, ProgramError> {
    let file: MemberFile = config::read(given.config).map_err(usage)?;
    let home = given.config.parent().unwrap_or(Path::new("")).to_owned();
    let at = |path: &Path| home.join(path);
    let wrong = |problem: String| usage(format!("{}: {problem}", given.config.display()));
    let trusts = |path: Option<&PathBuf>| trust(path.map(|path| at(path)).as_deref()).map_err(&wrong);
    let common = trusts(file.tls_ca.as_ref())?;
    let mut services = Vec::new();
    for service in file.services {
        let trust = match &service.tls_ca {
            Some(path) => trusts(Some(path))?,
            None => common.clone(),
        };
        let name = service.name.clone();
        services.push(one_service(service, trust).map_err(|problem| wrong(format!("service {name}: {problem}")))?);
    }
    let network = file.network;
    let (mut seats, mut files) = (Vec::new(), vec![given.config.to_owned()]);
    for seat in file.seats {
        let here = |problem: String| wrong(format!("seat {}: {problem}", seat.name));
        if seats.iter().any(|other: &SeatSettings| other.name == seat.name) {
            return Err(here("another seat has the same name".to_owned()));
        }
        let seed = at(&seat.seed);
        let (identity, _) = keys_of(Some(&seed), None, None).map_err(|error| here(error.to_string()))?;
        if identity.did().network() != network {
            return Err(here(format!("its seed is of another network than {network}")));
        }
        let chosen = match &seat.services {
            None => services.clone(),
            Some(names) => {
                let find = |name: &String| {
                    let found = services.iter().find(|service: &&ServiceSettings| service.name == *name);
                    found.cloned().ok_or_else(|| here(format!("there is no service {name}")))
                };
                names.iter().map(find).collect::<Result<_, _>>()?
            }
        };
        let applies_as = match &seat.applies_as {
            Some(path) => Some(keys_of(Some(&at(path)), None, None).map_err(|error| here(error.to_string()))?.0),
            None => None,
        };
        files.extend(seat.applies_as.as_ref().map(|path| at(path)));
        seats.push(SeatSettings {
            name: seat.name,
            invite: seat.invite,
            applies_as,
            seed: Arc::new(SeatSeed::from_secret(identity.secret_key())),
            dids: seat.dids.iter().map(|path| at(path)).collect(),
            services: chosen,
        });
        files.push(seed);
    }
    if seats.is_empty() || services.is_empty() {
        return Err(wrong("at least one [[seat]] and one [[service]] expected".to_owned()));
    }
    let chain = given.chain.or(file.chain.as_ref());
    let chain = chain.ok_or_else(|| wrong("chain = \"KIND=URL\" is missing (or --chain)".to_owned()))?;
    let source = chain.source().map_err(|error| usage(format!("chain: {error}")))?.clone();
    let confirmations = file.confirmations.map_or(ChainQuestions::CONFIRMATIONS, NonZeroU32::get);
    let mut stores = Vec::new();
    for location in file.cas.unwrap_or_default() {
        stores.push(location.store(cas::DEFAULT_TIMEOUT).map_err(usage)?);
    }
    let backup = match file.backup {
        None => None,
        Some(backup) => Some(BackupSettings {
            directory: at(&backup.directory),
            keep: backup.keep.unwrap_or(KEEP),
            passphrase: passphrase::passphrase("Passphrase of the backups: ")
                .ok_or_else(|| wrong("[backup] needs a passphrase in BTCR2_PASSPHRASE".to_owned()))?,
            pause: backup.pause.map_or(PAUSE, |period| period.0),
        }),
    };
    Ok(MemberConfig {
        network,
        seats,
        chain: ChainQuestions {
            source,
            poll: file.chain_poll.map_or(ChainQuestions::POLL, |period| period.0),
            confirmations,
            look_back: file.chain_look_back.unwrap_or(ChainQuestions::LOOK_BACK),
        },
        min_conf: file.min_conf.map_or(confirmations, NonZeroU32::get).max(1),
        stores,
        policy: Arc::new(file.policy.policy()),
        state: given.state.to_owned(),
        out: file.out.map_or_else(|| given.state.join(SIDECARS), |out| at(&out)),
        backup,
        files,
        console: given.console.clone(),
        json: given.json,
        times: given.times,
    })
}

fn one_service(service: ServiceFile, trust: Trust) -> Result<ServiceSettings, String> {
    let relays = RelaySettings {
        relays: service.relays,
        look_back: service.look_back,
        timeout: service.relay_timeout,
        publish_timeout: service.publish_timeout,
        retry: service.relay_retry,
        trust: trust.clone(),
    };
    let nostr = relays.config(false)?;
    if service.url.is_none() && nostr.is_none() {
        return Err("url = \"…\" or relays = [\"…\"] expected".to_owned());
    }
    let (name, url, did) = (service.name, service.url, service.did);
    Ok(ServiceSettings { name, url, did, trust, nostr })
}
