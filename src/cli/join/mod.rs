//! `join`: a participant as a program.

mod intent;
pub(super) mod standing;

use std::{num::NonZeroU32, path::PathBuf, process::ExitCode, sync::Arc};

use clap::{Args, ValueEnum};
use serde::Deserialize;

use self::intent::{Facts, read_json};
pub(super) use self::standing::ShareArg;
use super::{
    ChainArg, Events, fail, keys_of,
    relay::{RelaySettings, trust},
    serve::Beacon,
    singleton::{BeaconCoin, SatPerVb},
};
use crate::{
    cas::{self, Location, Publication},
    config::{self, Period, Span, settings},
    error::ProgramError,
    events::Printer,
    join::{self, ChainQuestions, Idle, Intent, JoinConfig, SingletonFallback, Terms, standing::StandingJoin},
    protocol::{
        cohort::Timing, did::Did, document::InitialBeaconKind, id::CohortId, invite::InviteToken, network::Network,
    },
    resolve::Given,
    telemetry::{Hangups, ignore_hangups},
};

const EXAMPLES: &str = "\
Examples:
  Announce an update in a cohort whose address is a beacon of the current document, and stay until resolvers return it:
    btcr2-aggregation join --service https://aggregator.example --identity alice.id --update patch.json --state alice \\
        --chain esplora=https://esplora.example/api --exit-when-done
  Take part without an update, e.g. to learn the address of the cohort before it is a beacon of the document:
    btcr2-aggregation join --service https://aggregator.example --identity alice.id --decline --state alice --exit-when-done
  Try it out, with a service of `--chain offline`; no resolver finds this update:
    btcr2-aggregation join --service http://127.0.0.1:8080 --identity alice.id --add-beacon --out alice --exit-when-done

Resolvers look for updates at the beacons of the current document, and nowhere else. In a cohort of another address the member \
takes part without its update, prints why, and exits with 1.";

/// Joins cohorts of a service, one after another, checks everything, signs, and stores what the DID needs to resolve.
///
/// -h shows the settings that most members need, --help all of them. Each can also be given as an environment variable (shown with
/// it) or as a key of the same name in the file of --config; flags come before variables, variables before the file.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct JoinArgs {
    /// A TOML file of settings
    #[arg(long, value_name = "FILE", env = "BTCR2_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: JoinSettings,
}

settings! {
    /// The settings of `join`.
    struct JoinSettings {
        "Identity" {
            /// The identity file, see `identity new`
            #[arg(long, value_name = "FILE", env = "BTCR2_IDENTITY")]
            identity: PathBuf,
            /// Take the secret key of a KEY DID from this environment variable instead of a file
            #[arg(long, value_name = "VAR", env = "BTCR2_SECRET_ENV")]
            secret_env: String,
            /// With --secret-env: the Bitcoin network of the DID [default: regtest]
            #[arg(long, value_name = "N", env = "BTCR2_NETWORK", hide_short_help = true)]
            network: Network,
        }
        "Transport" {
            /// The service's base URL
            #[arg(long, value_name = "URL", env = "BTCR2_SERVICE")]
            service: String,
            /// Accept this service only
            ///
            /// Without it, any service that the URL or the relays lead to.
            #[arg(long, value_name = "DID", env = "BTCR2_SERVICE_DID")]
            service_did: Did,
            /// An invite of the service's operator, for a service that admits by them
            #[arg(long, value_name = "TOKEN", env = "BTCR2_INVITE", hide_env_values = true)]
            invite: InviteToken,
            /// Trust an https service and wss relays by the certificates in this PEM file only
            ///
            /// Those of an authority, or the server's own. Without it, by the system's authorities.
            #[arg(long, value_name = "FILE", env = "BTCR2_TLS_CA", hide_short_help = true)]
            tls_ca: PathBuf,
            /// Exit with 1 when no service and no relay has answered in this time [default: no limit]
            #[arg(long, value_name = "TIME", env = "BTCR2_CONNECT_TIMEOUT", hide_short_help = true)]
            connect_timeout: Period,
            /// A Nostr relay, wss://...
            ///
            /// May be given several times, or as a comma separated list.
            #[arg(long, value_name = "URL", value_delimiter = ',', env = "BTCR2_RELAY")]
            relay: Vec<String>,
            /// With --relay: read adverts that are at most this old [default: 5m]
            ///
            /// 0s reads all that the relays store.
            #[arg(long, value_name = "TIME", env = "BTCR2_LOOK_BACK", hide_short_help = true)]
            look_back: Span,
            /// With --relay: how long a relay may take to connect [default: 10s]
            #[arg(long, value_name = "TIME", env = "BTCR2_RELAY_TIMEOUT", hide_short_help = true)]
            relay_timeout: Period,
            /// With --relay: how long a relay may take to answer an event, at most 10s [default: 10s]
            #[arg(long, value_name = "TIME", env = "BTCR2_PUBLISH_TIMEOUT", hide_short_help = true)]
            publish_timeout: Period,
            /// With --relay: the pause before a second attempt to connect or to publish [default: 1s]
            ///
            /// It doubles with each further attempt.
            #[arg(long, value_name = "TIME", env = "BTCR2_RELAY_RETRY", hide_short_help = true)]
            relay_retry: Period,
        }
        "Update" {
            /// Announce this update: a JSON Patch (RFC 6902) to the current document, or a file of `update --out`
            ///
            /// The patch is signed with the key that the current document authorizes. A file of `update --out` is signed already, and
            /// is refused if it does not start from the current document.
            #[arg(long, value_name = "FILE", env = "BTCR2_UPDATE", conflicts_with_all = ["add_beacon", "decline"])]
            update: PathBuf,
            /// With --update: announce it although it looks like a mistake
            ///
            /// It leaves the DID without a key or a beacon, adds a beacon twice, or publishes a secret key.
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_ALLOW_RISKY_UPDATE", hide_short_help = true)]
            allow_risky_update: bool,
            /// For trying it out: announce the cohort's address, added to the current document as a beacon
            ///
            /// No resolver finds this update by the cohort itself: they look at the beacons that a document lists already. With --chain
            /// it needs --allow-unlisted-beacon. To have the beacon listed, see `update DID add-beacon`, or begin a DID with it
            /// (`identity new --external --beacon`).
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_ADD_BEACON", conflicts_with = "decline")]
            add_beacon: bool,
            /// Announce the update also where no resolver looks
            ///
            /// Without it the member declines in a cohort whose address is not a beacon of the current document. An update that is
            /// announced there counts only when it is announced from a listed beacon too (see `singleton`).
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_ALLOW_UNLISTED_BEACON", hide_short_help = true)]
            allow_unlisted_beacon: bool,
            /// Take part without an update
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_DECLINE")]
            decline: bool,
            /// Without --chain: the current DID document
            ///
            /// With --chain it is resolved. Without it the member only believes to know it: it is the initial document, or that of the
            /// file of `update --out`, or, with --state, that to which the announced updates in the vault lead.
            #[arg(long, value_name = "FILE", env = "BTCR2_SOURCE_DOCUMENT", hide_short_help = true)]
            source_document: PathBuf,
            /// With --source-document: its version
            #[arg(long, value_name = "N", env = "BTCR2_SOURCE_VERSION", hide_short_help = true)]
            source_version: u64,
            /// What to do in cohorts when the update is announced already [default: skip]
            ///
            /// Either no cohort is joined, or cohorts are joined without an update.
            #[arg(long, value_enum, env = "BTCR2_IDLE", hide_short_help = true)]
            idle: IdleArg,
            /// The update that was approved in this cohort will never be announced
            ///
            /// Because another confirmed transaction has spent the cohort's coin. May be given several times.
            #[arg(long, value_name = "COHORT", allow_hyphen_values = true, value_delimiter = ',', env = "BTCR2_SUPERSEDE", hide_short_help = true)]
            supersede: Vec<CohortId>,
        }
        "Cohort terms" {
            /// Join cohorts with this beacon only
            #[arg(long, value_enum, env = "BTCR2_BEACON")]
            beacon: Beacon,
            /// Refuse cohorts whose operator could recover the coin sooner than this many blocks [default: 144]
            #[arg(long, value_name = "BLOCKS", env = "BTCR2_MIN_RECOVERY_SEQUENCE")]
            min_recovery_sequence: u16,
            /// Refuse cohorts in which fewer members than this could sign by themselves [default: 1]
            #[arg(long, value_name = "K", env = "BTCR2_MIN_FALLBACK_THRESHOLD", hide_short_help = true)]
            min_fallback_threshold: u16,
            /// Refuse cohorts that ask for more than this many satoshi for joining, or for announcing [default: 0]
            #[arg(long, value_name = "SAT", env = "BTCR2_MAX_COST")]
            max_cost: f64,
            /// Do not sign a transaction that pays a higher fee rate than this, in sat/vB [default: 1000]
            ///
            /// The minimum for relay of the larger fallback is accepted in any case.
            #[arg(long, value_name = "RATE", env = "BTCR2_MAX_FEE_RATE")]
            max_fee_rate: SatPerVb,
        }
        "Standing cohorts" {
            /// Take seats in standing cohorts, and stay
            ///
            /// --identity is then the file of the seat's secret, made by `identity new` and not used for anything else. The DIDs are in --dids.
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_STANDING", conflicts_with_all = ["update", "add_beacon", "decline", "exit_when_done"])]
            standing: bool,
            /// With --standing: register the DIDs of all identity files (*.id) in this directory
            #[arg(long, value_name = "DIR", env = "BTCR2_DIDS")]
            dids: PathBuf,
            /// With --standing: announce the signed updates in this directory, files of `update DID … --out`
            ///
            /// It is read again at each opportunity. An update of the next version is announced; others wait.
            #[arg(long, value_name = "DIR", env = "BTCR2_UPDATES_DIR")]
            updates: PathBuf,
            /// With --standing: the least share of seats that can spend, and can end every DID [default: 2/3]
            #[arg(long, value_name = "K/N", env = "BTCR2_LEAST_SHARE", hide_short_help = true)]
            least_share: ShareArg,
            /// With --standing: the shortest time between announcements that is accepted [default: 1s]
            #[arg(long, value_name = "TIME", env = "BTCR2_LEAST_INTERVAL", hide_short_help = true)]
            least_interval: Period,
            /// With --standing: accept cohorts in which others may register a DID without control of it
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_ACCEPT_BLIND", hide_short_help = true)]
            accept_blind: bool,
            /// With --standing: apply for seats as the DID of --identity, for a service whose operator has a list of DIDs
            ///
            /// A seat has a DID of its own, which no list can have. The service then knows that the seats of this identity are of one
            /// participant.
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_SHOW_IDENTITY", hide_short_help = true)]
            show_identity: bool,
            /// With --standing: --state was restored from a backup, at this start
            ///
            /// What the seat may have signed since the backup is not in it: until every coin that the beacon address has now is spent at depth,
            /// it submits no other update than those that the backup shows as submitted. That is stored in --state: give this once, and each time
            /// that a backup is restored. With it at every start the wait begins anew and never ends.
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_RESTORED", hide_short_help = true)]
            restored: bool,
        }
        "Timing" {
            /// How long a phase of the service may take [default: 1h]
            ///
            /// The member waits three times as long for each phase; for the transaction as long as --cohort-ttl if that is longer.
            #[arg(long, value_name = "TIME", env = "BTCR2_PHASE_TIMEOUT", hide_short_help = true)]
            phase_timeout: Period,
            /// How long to wait for a cohort in all, from joining to the start of signing [default: 2days]
            #[arg(long, value_name = "TIME", env = "BTCR2_COHORT_TTL", hide_short_help = true)]
            cohort_ttl: Period,
            /// With --exit-when-done: how long to stay after signing at most [default: until the end is known]
            ///
            /// The end is known when the service reports it or its deadlines have passed and, with --chain, when the transaction is
            /// confirmed. A member that leaves before the service asks for the fallback may be missing in it.
            #[arg(long, value_name = "TIME", env = "BTCR2_LINGER")]
            linger: Span,
        }
        "Chain" {
            /// Where to read the chain: core=URL or esplora=URL
            ///
            /// A Bitcoin Core node is core=http://USER:PASSWORD@HOST:PORT or core=http://HOST:PORT?cookie=FILE. A cohort is then over
            /// when its transaction is confirmed, and only confirmed updates count as announced. Without it, signed ones do. The update
            /// starts from the document that is resolved when the cohort asks for it, and the result states whether resolvers return
            /// the update in the end.
            #[arg(long, value_name = "KIND=URL", env = "BTCR2_CHAIN", hide_env_values = true)]
            chain: ChainArg,
            /// With --chain: how often to query it [default: 30s]
            #[arg(long, value_name = "TIME", env = "BTCR2_CHAIN_POLL", hide_short_help = true)]
            chain_poll: Period,
            /// With --chain: how many confirmations make an announcement final [default: 6]
            #[arg(long, value_name = "N", env = "BTCR2_CONFIRMATIONS")]
            confirmations: NonZeroU32,
            /// With --chain: how many confirmations a signal needs to count in a resolution [default: those of --confirmations]
            #[arg(long, value_name = "N", env = "BTCR2_MIN_CONF", hide_short_help = true)]
            min_conf: NonZeroU32,
            /// With --chain: a file of Sidecar Data for the resolution, beside what is in --state
            ///
            /// May be given several times, or as a comma separated list.
            #[arg(long, value_name = "FILE", value_delimiter = ',', env = "BTCR2_SIDECAR", hide_short_help = true)]
            sidecar: Vec<PathBuf>,
            /// With --chain and --state: in how many blocks to look for what earlier runs have signed [default: 144]
            #[arg(long, value_name = "BLOCKS", env = "BTCR2_CHAIN_LOOK_BACK", hide_short_help = true)]
            chain_look_back: u32,
            /// When the cohort fails, write transactions that announce the update alone into this directory
            ///
            /// They announce the update of --update, signed and not sent: with --chain from the coins of the current document's Singleton
            /// beacons, or from --singleton-coin.
            #[arg(long, value_name = "DIR", env = "BTCR2_SINGLETON_FALLBACK", hide_short_help = true)]
            singleton_fallback: PathBuf,
            /// With --singleton-fallback: the coin to spend, and on which initial beacon it is
            ///
            /// The announcement is then signed.
            #[arg(long, value_name = "TYPE:TXID:VOUT:SATS", env = "BTCR2_SINGLETON_COIN", hide_short_help = true)]
            singleton_coin: BeaconCoin,
            /// With --singleton-fallback: the fee rate in sat/vB, at least 1 [default: what --chain estimates, or 2]
            #[arg(long, value_name = "RATE", env = "BTCR2_SINGLETON_FEE_RATE", hide_short_help = true)]
            singleton_fee_rate: SatPerVb,
        }
        "Storage" {
            /// Store everything that must outlive the program in this directory
            ///
            /// Started again with it, the member continues where it was, and starts the next update from the last announced one. The
            /// directory belongs to one command, DID and network.
            #[arg(long, value_name = "DIR", env = "BTCR2_STATE")]
            state: PathBuf,
            /// Write what the DID needs to resolve (sidecar and terms) into this directory, one file a cohort
            #[arg(long, value_name = "DIR", env = "BTCR2_OUT")]
            out: PathBuf,
            /// Publish the update in this store before it is submitted: dir=PATH or ipfs=URL
            ///
            /// Everyone who can read the store can then read the update. With --chain it is also a source of the resolution. May be
            /// given several times.
            #[arg(long, value_name = "STORE", value_delimiter = ',', env = "BTCR2_CAS")]
            cas: Vec<Location>,
        }
        "Output" {
            /// Print one JSON object a line on standard output instead of text for people
            #[arg(long, value_enum, env = "BTCR2_EVENTS")]
            events: Events,
            /// Begin each line of text with the time (UTC)
            ///
            /// Every JSON event has it anyway.
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_TIMES", hide_short_help = true)]
            times: bool,
            /// Exit when the first cohort is over
            ///
            /// The exit status is 0 if its signed transaction was received and verified (with --chain: is confirmed, and resolvers
            /// return the update), or the update was announced before, else 1; also if an update was to be announced and was not.
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_EXIT_WHEN_DONE")]
            exit_when_done: bool,
        }
    }
}

/// What to do when nothing is left to announce.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum IdleArg {
    /// Do not join
    Skip,
    /// Take part without an update
    Decline,
}

pub(super) fn main(args: JoinArgs) -> ExitCode {
    let outcome = config(args).and_then(|(config, standing)| {
        let printer = Printer::new(config.json).with_times(config.times);
        super::block_on(async {
            let hangups = Hangups::new();
            let stop = crate::telemetry::stop_signal();
            let running = async {
                match standing {
                    Some(standing) => join::standing::run(&config, standing, stop).await,
                    None => join::run(config, stop).await,
                }
            };
            tokio::select! {
                outcome = running => outcome,
                never = ignore_hangups(hangups, printer) => match never {},
            }
        })
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => fail(&error),
    }
}

fn config(args: JoinArgs) -> Result<(JoinConfig, Option<StandingJoin>), ProgramError> {
    let usage = |problem: String| ProgramError::Usage(problem);
    let file = match &args.config {
        Some(path) => config::read(path).map_err(|error| usage(error.to_string()))?,
        None => JoinSettings::default(),
    };
    let mut file: JoinSettings = file;
    // One choice in several settings: who chooses one has not chosen the file's others.
    if args.settings.identity.is_some() || args.settings.secret_env.is_some() {
        (file.identity, file.secret_env) = (None, None);
    }
    if args.settings.update.is_some() || args.settings.add_beacon.is_some() || args.settings.decline.is_some() {
        (file.update, file.add_beacon, file.decline) = (None, None, None);
    }
    let settings = args.settings.over(file);
    let (identity, keys) = keys_of(settings.identity.as_deref(), settings.secret_env.as_deref(), settings.network)
        .map_err(|error| usage(error.to_string()))?;
    let standing = standing::config(&settings, &identity)?;
    let trust = trust(settings.tls_ca.as_deref()).map_err(usage)?;
    let relays = RelaySettings {
        relays: settings.relay.unwrap_or_default(),
        look_back: settings.look_back,
        timeout: settings.relay_timeout,
        publish_timeout: settings.publish_timeout,
        retry: settings.relay_retry,
        trust: trust.clone(),
    };
    let nostr = relays.config(false).map_err(usage)?;
    if settings.service.is_none() && nostr.is_none() {
        let problem =
            "--service is missing: the base URL of a service; or --relay URL for those that are found on relays";
        return Err(usage(problem.to_owned()));
    }
    let source = match (&settings.source_document, settings.source_version) {
        (Some(path), Some(version)) => Some((read_json(path)?, version)),
        (None, None) => None,
        _ => return Err(usage("--source-document and --source-version go together".to_owned())),
    };
    let intents = [
        standing.is_some(),
        settings.update.is_some(),
        settings.add_beacon == Some(true),
        settings.decline == Some(true),
    ];
    if intents.iter().filter(|given| **given).count() != 1 {
        let problem = "one of --update FILE, --add-beacon, --decline and --standing is required";
        return Err(usage(problem.to_owned()));
    }
    let mut given = Given::default();
    for path in settings.sidecar.iter().flatten() {
        let problem = |error: &dyn std::fmt::Display| usage(format!("--sidecar {}: {error}", path.display()));
        given.add(read_json(path)?, &path.display().to_string()).map_err(|error| problem(&error))?;
    }
    if settings.chain.is_some() && source.is_some() {
        return Err(usage(
            "--source-document is for a member without a chain: with --chain the current document is resolved"
                .to_owned(),
        ));
    }
    let allow_unlisted = settings.allow_unlisted_beacon.unwrap_or(false);
    let facts = Facts {
        identity: &identity,
        keys: &keys,
        has_chain: settings.chain.is_some(),
        has_state: settings.state.is_some(),
        allow_unlisted,
        allow_risky: settings.allow_risky_update.unwrap_or(false),
    };
    let intent = match &settings.update {
        Some(path) => facts.update(path, source, &mut given)?,
        None if settings.decline == Some(true) || standing.is_some() => Intent::Decline,
        None => facts.beacon(source)?,
    };
    if let Some(BeaconCoin(InitialBeaconKind::P2pkh, _)) = settings.singleton_coin {
        return Err(usage(
            "--singleton-coin p2pkh: a signature for a P2PKH coin does not commit to its value, so that a wrong one would be paid as \
             fee. Use a coin of p2wpkh or p2tr, or leave it out and give --chain, which finds the coin and proves its value"
                .to_owned(),
        ));
    }
    let singleton_fallback = match settings.singleton_fallback {
        Some(directory) => Some(SingletonFallback {
            directory,
            coin: settings.singleton_coin.map(|BeaconCoin(kind, coin)| (kind, coin)),
            fee_rate: settings.singleton_fee_rate.map(|rate| rate.0),
        }),
        None if settings.singleton_coin.is_some() => {
            return Err(usage("--singleton-coin needs --singleton-fallback DIR".to_owned()));
        }
        None => None,
    };
    let mut publication = Publication { stores: Vec::new(), hold_on_failure: true };
    for location in settings.cas.unwrap_or_default() {
        publication.stores.push(location.store(cas::DEFAULT_TIMEOUT).map_err(|error| usage(error.to_string()))?);
    }
    let chain = match &settings.chain {
        Some(chain) => Some(ChainQuestions {
            source: chain.source().map_err(|error| usage(format!("--chain: {error}")))?.clone(),
            poll: settings.chain_poll.map_or(ChainQuestions::POLL, |period| period.0),
            confirmations: settings.confirmations.map_or(ChainQuestions::CONFIRMATIONS, NonZeroU32::get),
            look_back: settings.chain_look_back.unwrap_or(ChainQuestions::LOOK_BACK),
        }),
        None if settings.confirmations.is_some() || settings.min_conf.is_some() || settings.sidecar.is_some() => {
            return Err(usage("--confirmations, --min-conf and --sidecar need --chain KIND=URL".to_owned()));
        }
        None => None,
    };
    let default = Terms::default();
    let timing = Timing::default();
    let config = JoinConfig {
        identity,
        keys: Arc::new(keys),
        service: settings.service,
        trust,
        nostr,
        service_did: settings.service_did,
        invite: settings.invite,
        intent,
        terms: Terms {
            beacon: settings.beacon.map(Beacon::beacon_type),
            min_recovery_sequence: settings.min_recovery_sequence.unwrap_or(default.min_recovery_sequence),
            min_fallback_threshold: settings.min_fallback_threshold.unwrap_or(default.min_fallback_threshold),
            max_cost: settings.max_cost.unwrap_or(default.max_cost),
            max_fee_rate: settings.max_fee_rate.map_or(default.max_fee_rate, |SatPerVb(rate)| rate),
        },
        timing: Timing {
            cohort_ttl: settings.cohort_ttl.map_or(2 * timing.cohort_ttl, |period| period.0),
            phase_timeout: settings.phase_timeout.map_or(timing.phase_timeout, |span| span.0),
            ..timing
        },
        out: settings.out,
        json: matches!(settings.events, Some(Events::Json)),
        times: settings.times.unwrap_or(false),
        exit_when_done: settings.exit_when_done.unwrap_or(false),
        linger: settings.linger.map(|span| span.0),
        connect_timeout: settings.connect_timeout.map(|span| span.0),
        idle: match settings.idle {
            Some(IdleArg::Decline) => Idle::Decline,
            Some(IdleArg::Skip) | None => Idle::Skip,
        },
        allow_risky: settings.allow_risky_update.unwrap_or(false),
        allow_unlisted,
        given,
        min_conf: settings.min_conf.map(NonZeroU32::get),
        superseded: settings.supersede.unwrap_or_default(),
        state: settings.state,
        chain,
        publication,
        singleton_fallback,
    };
    Ok((config, standing))
}
