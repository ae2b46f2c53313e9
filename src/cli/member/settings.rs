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
    config::{self, Period, Span},
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

/// The file. Paths in it are relative to its directory.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct MemberFile {
    network: Network,
    chain: Option<ChainArg>,
    chain_poll: Option<Period>,
    chain_look_back: Option<u32>,
    confirmations: Option<NonZeroU32>,
    min_conf: Option<NonZeroU32>,
    cas: Option<Vec<Location>>,
    out: Option<PathBuf>,
    tls_ca: Option<PathBuf>,
    #[serde(default)]
    policy: PolicyFile,
    backup: Option<BackupFile>,
    #[serde(rename = "service")]
    services: Vec<ServiceFile>,
    #[serde(rename = "seat")]
    seats: Vec<SeatFile>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ServiceFile {
    name: String,
    url: Option<String>,
    did: Option<Did>,
    #[serde(default)]
    relays: Vec<String>,
    look_back: Option<Span>,
    relay_timeout: Option<Period>,
    publish_timeout: Option<Period>,
    relay_retry: Option<Period>,
    tls_ca: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct SeatFile {
    name: String,
    seed: PathBuf,
    #[serde(default)]
    dids: Vec<PathBuf>,
    invite: Option<InviteToken>,
    /// An identity file.
    applies_as: Option<PathBuf>,
    /// All of them, without a list.
    services: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct PolicyFile {
    services: Vec<Did>,
    beacon: Option<Beacon>,
    least_seats: Option<u16>,
    most_seats: Option<u16>,
    most_cohorts: Option<u32>,
    least_share: Option<ShareArg>,
    most_seats_to_wait_for: Option<u16>,
    least_interval: Option<Period>,
    least_answer_time: Option<Period>,
    max_fee_rate: Option<SatPerVb>,
    max_operator_output: Option<u32>,
    max_cost: Option<f64>,
    accept_hashes: Option<bool>,
    accept_blind: Option<bool>,
    otherwise: Otherwise,
    join: Consent,
    #[serde(rename = "move")]
    moving: Consent,
    sign: Signing,
    timeout: Option<Period>,
    announcements_per_day: Option<u32>,
    updates_per_did_per_day: Option<u32>,
    silence: Option<Period>,
    hook: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct BackupFile {
    directory: PathBuf,
    keep: Option<usize>,
    pause: Option<Period>,
}

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
