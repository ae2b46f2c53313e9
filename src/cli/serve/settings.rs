//! The settings of `serve`: flags, environment variables and keys of a configuration file.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use super::values::{
    AbsentArg, Beacon, Chain, OutputArg, PriceArg, RegistrationArg, SeatsArg, TimeoutRule, UpdatesArg,
};
use crate::{
    cas::Location,
    cli::{Events, singleton::SatPerVb},
    config::{Period, Span, settings},
    control::Listen,
    inputs,
    protocol::{id::CohortId, key::XOnlyKey, network::Network},
    serve::OnAlarm,
};

const EXAMPLES: &str = "\
Examples:
  Cohorts of 3 to 5 members over HTTP, with a coin that is made up (nothing is announced):
    btcr2-aggregation serve --identity service.id --chain offline --min-participants 3 --max-participants 5
  Real announcements through a Bitcoin Core node, with everything stored in a directory:
    btcr2-aggregation serve --identity service.id --chain 'core=http://127.0.0.1:8332?cookie=/home/me/.bitcoin/.cookie' \\
        --state service --out results
  The same without cohorts until an operator asks for some (`ctl --help`):
    btcr2-aggregation serve --identity service.id --chain ... --state service --out results --control";

/// Runs an Aggregation Service over HTTP, over Nostr relays, or both.
///
/// -h shows the settings that most services need, --help all of them. Each can also be given as an environment variable (shown with
/// it) or as a key of the same name in the file of --config; flags come before variables, variables before the file.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct ServeArgs {
    /// A TOML file of settings
    #[arg(long, value_name = "FILE", env = "BTCR2_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// Serve another service in this process too, by a TOML file of its own settings (can be repeated)
    ///
    /// Each has its own identity, network, terms, addresses and state directory, and its own control API. Flags and variables are for the
    /// first one. What each prints has its name: that of its file without the ending. One that fails ends the process.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub(super) also: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) settings: ServeSettings,
}

settings! {
    /// The settings of `serve`.
    pub(super) struct ServeSettings {
        "Identity" {
            /// The service's identity file (a KEY DID), see `identity new`
            #[arg(long, value_name = "FILE", env = "BTCR2_IDENTITY")]
            identity: PathBuf,
            /// Take the service's secret key from this environment variable instead of a file
            #[arg(long, value_name = "VAR", env = "BTCR2_SECRET_ENV")]
            secret_env: String,
            /// The Bitcoin network [default: the identity's]
            #[arg(long, value_name = "N", env = "BTCR2_NETWORK")]
            network: Network,
        }
        "Transport" {
            /// The address to serve HTTP on [default: 127.0.0.1:8080]
            ///
            /// Port 0 takes a free one and prints it. With --relay, HTTP is served only if this is given.
            #[arg(long, value_name = "ADDR", env = "BTCR2_LISTEN")]
            listen: String,
            /// The PEM file of the TLS certificate chain; without it, plain HTTP
            #[arg(long, value_name = "FILE", env = "BTCR2_TLS_CERT")]
            tls_cert: PathBuf,
            /// The PEM file of the TLS private key
            #[arg(long, value_name = "FILE", env = "BTCR2_TLS_KEY")]
            tls_key: PathBuf,
            /// Web origins that may use the service, comma separated [default: *]
            ///
            /// `*` stands for all; an empty list admits pages of the service itself only.
            #[arg(long, value_name = "ORIGINS", env = "BTCR2_CORS", hide_short_help = true)]
            cors: String,
            /// Trust the client addresses that any proxy forwards
            ///
            /// Only where nothing but the proxy can connect. Otherwise use --trusted-proxy.
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_TRUST_FORWARDED", hide_short_help = true)]
            trust_forwarded: bool,
            /// Trust the client addresses that a proxy at this address or prefix forwards
            ///
            /// For example 127.0.0.1 or 10.0.0.0/8. May be given several times.
            #[arg(long, value_name = "PREFIX", value_delimiter = ',', env = "BTCR2_TRUSTED_PROXY", hide_short_help = true)]
            trusted_proxy: Vec<String>,
            /// A path prefix that a proxy strips before it passes requests on
            #[arg(long, value_name = "PATH", env = "BTCR2_STRIPPED_PREFIX", hide_short_help = true)]
            stripped_prefix: String,
            /// A Nostr relay, wss://...
            ///
            /// May be given several times, or as a comma separated list.
            #[arg(long, value_name = "URL", value_delimiter = ',', env = "BTCR2_RELAY")]
            relay: Vec<String>,
            /// Run a relay in this process too, at this address, and serve over it
            ///
            /// Port 0 takes a free one and prints it.
            #[arg(long, value_name = "ADDR", env = "BTCR2_EMBEDDED_RELAY", value_parser = inputs::socket_address, hide_short_help = true)]
            embedded_relay: SocketAddr,
            /// With --relay: trust wss relays by the certificates in this PEM file only
            ///
            /// Without it, by the system's authorities.
            #[arg(long, value_name = "FILE", env = "BTCR2_TLS_CA", hide_short_help = true)]
            tls_ca: PathBuf,
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
        "Cohort terms" {
            /// How updates are aggregated [default: cas]
            #[arg(long, value_enum, env = "BTCR2_BEACON")]
            beacon: Beacon,
            /// Fewest members of a cohort [default: 2]
            #[arg(long, value_name = "N", env = "BTCR2_MIN_PARTICIPANTS")]
            min_participants: u32,
            /// Most members of a cohort, which forms it at once [default: a quarter more than --min-participants]
            ///
            /// The default is at least one more, so that the cohort can do without one; with --settle 0s it is
            /// --min-participants.
            #[arg(long, value_name = "N", env = "BTCR2_MAX_PARTICIPANTS")]
            max_participants: u32,
            /// How many signatures the fallback path takes [default: all members but one]
            #[arg(long, value_name = "K", env = "BTCR2_FALLBACK_THRESHOLD")]
            fallback_threshold: u16,
            /// The x-only key that can recover the coin after the timelock [default: the identity's key]
            ///
            /// 64 hex characters.
            #[arg(long, value_name = "KEY", env = "BTCR2_RECOVERY_KEY", value_parser = inputs::x_only_key, hide_short_help = true)]
            recovery_key: XOnlyKey,
            /// The timelock of the recovery, in blocks, 1 to 65535 [default: 4320, about 30 days]
            #[arg(long, value_name = "BLOCKS", env = "BTCR2_RECOVERY_SEQUENCE")]
            recovery_sequence: u16,
            /// How many cohorts to run in all [default: the next is advertised whenever one has formed]
            ///
            /// With --state they are counted over restarts, until all are done.
            #[arg(long, value_name = "N", env = "BTCR2_COHORTS")]
            cohorts: u32,
            /// How many cohorts are advertised at once [default: 1]
            #[arg(long, value_name = "M", env = "BTCR2_PARALLEL", hide_short_help = true)]
            parallel: u32,
            /// Ask all members to confirm that they are present before signing starts
            ///
            /// An absent member is then found before signing starts. Members that run another implementation do not
            /// answer.
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_PRESENCE_CHECK", hide_short_help = true)]
            presence_check: bool,
            /// What to do when a phase cannot be completed: PHASE=ANSWER[,extend=N][,after=TIME]
            ///
            /// May be given several times. Phases: enrollment, updates, validation, transaction, presence, nonces, partial-signatures, fallback. Answers: fail;
            /// reform (a new cohort without those who were missing); fall-back (from presence, nonces and partial signatures);
            /// proceed (from presence). First the phase is given N times more time, TIME instead of its usual one
            /// [default: reform for updates, validation and fallback; fall-back for nonces and partial-signatures; proceed for
            /// presence; else fail]
            #[arg(long, value_name = "RULE", env = "BTCR2_ON_TIMEOUT", value_delimiter = ';', verbatim_doc_comment, hide_short_help = true)]
            on_timeout: Vec<TimeoutRule>,
            /// How many times in a row a cohort is formed again [default: 3]
            #[arg(long, value_name = "N", env = "BTCR2_REFORMATIONS", hide_short_help = true)]
            reformations: u32,
        }
        "Admission" {
            /// Admit the DIDs in this file, one a line
            ///
            /// # begins a comment. The file is read again when it changes, and on SIGHUP. Without --allow-list, --invites and
            /// --admit-funded every DID is admitted.
            #[arg(long, value_name = "FILE", env = "BTCR2_ALLOW_LIST")]
            allow_list: PathBuf,
            /// Admit DIDs that have an invite, see `invites new`
            ///
            /// The invites are those in --state. With --allow-list, the listed DIDs are admitted too.
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_INVITES")]
            invites: bool,
            /// With a chain: admit KEY DIDs whose initial beacon addresses hold at least this much, confirmed
            ///
            /// With --allow-list and --invites, listed and invited DIDs are admitted too.
            #[arg(long, value_name = "SAT", env = "BTCR2_ADMIT_FUNDED", value_parser = clap::value_parser!(u64).range(1..), hide_short_help = true)]
            admit_funded: u64,
            /// Admit only DIDs that sign with the key by which they authenticate
            ///
            /// The opt-in then proves possession of the signing key. Members that run `join` always do so; the wire format allows
            /// another key, of which nothing is proven before it signs.
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_PROVEN_KEYS_ONLY", hide_short_help = true)]
            proven_keys_only: bool,
        }
        "Standing cohorts" {
            /// Serve a standing cohort: one address that announces for years, with many DIDs of each seat
            ///
            /// --beacon, --min-participants, --max-participants and --fallback-threshold are its terms too; it has no recovery leaf. Its terms
            /// are fixed when it is advertised. See docs/standing.md.
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_STANDING")]
            standing: bool,
            /// With --standing: the shortest time between announcements [default: 1h]
            #[arg(long, value_name = "TIME", env = "BTCR2_MIN_INTERVAL")]
            min_interval: Period,
            /// With --standing: the longest time between update opportunities [default: none]
            #[arg(long, value_name = "TIME", env = "BTCR2_MAX_INTERVAL", hide_short_help = true)]
            max_interval: Period,
            /// With --standing: how many seats with updates open an opportunity [default: 1]
            #[arg(long, value_name = "N", env = "BTCR2_PENDING_TRIGGER", hide_short_help = true)]
            pending_trigger: u16,
            /// With --standing: fewest DIDs of a seat, from the first opportunity on [default: 1]
            #[arg(long, value_name = "N", env = "BTCR2_MIN_DIDS", hide_short_help = true)]
            min_dids: u32,
            /// With --standing: most DIDs of a seat [default: 1000]
            #[arg(long, value_name = "N", env = "BTCR2_MAX_DIDS")]
            max_dids: u32,
            /// With --standing: whether the service receives updates and verifies them, or hashes only [default: full]
            #[arg(long, value_enum, env = "BTCR2_UPDATES", hide_short_help = true)]
            updates: UpdatesArg,
            /// With --standing: who may register a DID [default: proven]
            #[arg(long, value_enum, env = "BTCR2_REGISTRATION", hide_short_help = true)]
            registration: RegistrationArg,
            /// With --standing: whether the others wait for an absent seat [default: proceed]
            #[arg(long, value_enum, env = "BTCR2_ABSENT")]
            absent: AbsentArg,
            /// With --standing: how long a seat may take to respond to an opportunity [default: 10m]
            #[arg(long, value_name = "TIME", env = "BTCR2_RESPOND_TIME", hide_short_help = true)]
            respond_time: Period,
            /// With --standing: how long a seat may take to confirm [default: 10m]
            #[arg(long, value_name = "TIME", env = "BTCR2_CONFIRM_TIME", hide_short_help = true)]
            confirm_time: Period,
            /// With --standing: most announcements that are unconfirmed at once, 1 to 20 [default: 4]
            #[arg(long, value_name = "N", env = "BTCR2_MAX_UNCONFIRMED", hide_short_help = true)]
            max_unconfirmed: u8,
            /// With --standing: an output of your own in every announcement, which can pay for bumps
            ///
            /// Its value comes out of the shared coin; at most 10000 sat.
            #[arg(long, value_name = "ADDRESS:SAT", env = "BTCR2_OPERATOR_OUTPUT", hide_short_help = true)]
            operator_output: OutputArg,
            /// With --standing: the advertised price of joining, of each seat, or with /did of each DID [default: none]
            ///
            /// How it is paid is between you and the members. `cost ledger` has what is due.
            #[arg(long, value_name = "PRICE", env = "BTCR2_ENROLLMENT_PRICE", hide_short_help = true)]
            enrollment_price: PriceArg,
            /// With --standing: the advertised price of each announcement, of each seat, or with /did of each registered DID [default: none]
            #[arg(long, value_name = "PRICE", env = "BTCR2_ANNOUNCEMENT_PRICE", hide_short_help = true)]
            announcement_price: PriceArg,
            /// With --standing: the cohort of this service that the new one succeeds, by its identifier
            ///
            /// The new cohort has the terms of this call. When it has formed and every DID is registered there, the old one moves: its last
            /// announcement lists the new address, and pays its change there. See docs/standing.md, "Migration and exit".
            #[arg(long, value_name = "COHORT", env = "BTCR2_SUCCEEDS", allow_hyphen_values = true)]
            succeeds: CohortId,
        }
        "Timing" {
            /// How long a cohort that has --min-participants waits for more [default: 30s]
            ///
            /// It waits for up to --max-participants; 0s forms it at once.
            #[arg(long, value_name = "TIME", env = "BTCR2_SETTLE")]
            settle: Span,
            /// How long a cohort may take from its advert to the start of signing [default: 1day]
            #[arg(long, value_name = "TIME", env = "BTCR2_COHORT_TTL", hide_short_help = true)]
            cohort_ttl: Period,
            /// How long members may take in each phase before signing [default: 1h]
            #[arg(long, value_name = "TIME", env = "BTCR2_PHASE_TIMEOUT")]
            phase_timeout: Period,
            /// How long members may take in each phase of signing [default: 10m]
            ///
            /// The phases are nonces, partial signatures and fallback signatures.
            #[arg(long, value_name = "TIME", env = "BTCR2_SIGNING_TIMEOUT", hide_short_help = true)]
            signing_timeout: Period,
            /// How often an advert is repeated [default: 1m]
            ///
            /// 0s sends it once.
            #[arg(long, value_name = "TIME", env = "BTCR2_ADVERT_REPEAT", hide_short_help = true)]
            advert_repeat: Span,
        }
        "Chain" {
            /// Where coins come from: core=URL, esplora=URL or offline
            ///
            /// A Bitcoin Core node is core=http://USER:PASSWORD@HOST:PORT or core=http://HOST:PORT?cookie=FILE. With `offline` the coin is
            /// made up: for demonstrations and tests, never on bitcoin.
            #[arg(long, value_name = "CHAIN", env = "BTCR2_CHAIN", hide_env_values = true)]
            chain: Chain,
            /// With a chain: how often to query it [default: 30s]
            #[arg(long, value_name = "TIME", env = "BTCR2_CHAIN_POLL", hide_short_help = true)]
            chain_poll: Period,
            /// With a chain: how long a beacon address is watched for a deposit [default: 1day]
            #[arg(long, value_name = "TIME", env = "BTCR2_FUNDING_WINDOW", hide_short_help = true)]
            funding_window: Period,
            /// With a chain: how many confirmations a deposit needs before members sign [default: 1]
            #[arg(long, value_name = "N", env = "BTCR2_FUNDING_CONFIRMATIONS", hide_short_help = true)]
            funding_confirmations: u32,
            /// With a chain: how many confirmations make an announcement final [default: 6]
            #[arg(long, value_name = "N", env = "BTCR2_CONFIRMATIONS")]
            confirmations: u32,
            /// With a chain: the lowest fee rate, in sat/vB, at least 1 [default: 1]
            #[arg(long, value_name = "RATE", env = "BTCR2_FEE_FLOOR", hide_short_help = true)]
            fee_floor: SatPerVb,
            /// With a chain: the highest fee rate, bumps included, in sat/vB [default: 100]
            #[arg(long, value_name = "RATE", env = "BTCR2_FEE_CEILING")]
            fee_ceiling: SatPerVb,
            /// With a chain: the fee rate to begin with, in sat/vB, whatever the chain estimates
            ///
            /// Bumps start from it.
            #[arg(long, value_name = "RATE", env = "BTCR2_FEE_RATE", hide_short_help = true)]
            fee_rate: SatPerVb,
            /// With a chain: in how many blocks an announcement is to be confirmed [default: 6]
            #[arg(long, value_name = "BLOCKS", env = "BTCR2_FEE_TARGET", hide_short_help = true)]
            fee_target: u16,
            /// With a chain: how many blocks before a coin can be recovered to warn of it [default: 144]
            #[arg(long, value_name = "BLOCKS", env = "BTCR2_WARN_BLOCKS", hide_short_help = true)]
            warn_blocks: u32,
            /// With a chain: where the change of announcements goes [default: the identity's key, tr(KEY)]
            ///
            /// An address, a descriptor of one key (wpkh(KEY), tr(KEY), addr(...)), or `beacon`, for the next cohort of the same
            /// members. Only change to its own key lets the service bump a fee.
            #[arg(long, value_name = "ADDRESS|DESCRIPTOR|beacon", env = "BTCR2_CHANGE", hide_short_help = true)]
            change: String,
        }
        "Storage" {
            /// Store everything that must outlive the program in this directory
            ///
            /// Started again with it, the service continues all its cohorts. The directory belongs to one command, DID and network.
            #[arg(long, value_name = "DIR", env = "BTCR2_STATE")]
            state: PathBuf,
            /// Write each cohort's transaction, announcement and proofs into this directory
            #[arg(long, value_name = "DIR", env = "BTCR2_OUT")]
            out: PathBuf,
            /// Publish announcement maps in this store before they are signed: dir=PATH or ipfs=URL
            ///
            /// May be given several times.
            #[arg(long, value_name = "STORE", value_delimiter = ',', env = "BTCR2_CAS")]
            cas: Vec<Location>,
            /// With --cas: sign although a store failed
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_CAS_OPTIONAL", hide_short_help = true)]
            cas_optional: bool,
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
            /// Exit when --cohorts cohorts have ended
            ///
            /// The exit status is 0 if all were signed, and with a chain announced, else 1.
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_EXIT_WHEN_DONE")]
            exit_when_done: bool,
            /// Serve GET /metrics (Prometheus), /healthz and /readyz on this address
            ///
            /// It should not be reachable from the internet.
            #[arg(long, value_name = "ADDR", env = "BTCR2_METRICS_LISTEN")]
            metrics_listen: String,
            /// For each alarm, run this command or post to this URL
            ///
            /// The shell runs the command with the alarm as a line of JSON on its standard input, its kind in $BTCR2_ALARM and its text in
            /// $BTCR2_ALARM_TEXT. docs/operating.md lists the alarms.
            #[arg(long, value_name = "COMMAND|URL", env = "BTCR2_ON_ALARM", hide_env_values = true, hide_short_help = true)]
            on_alarm: OnAlarm,
        }
        "Public" {
            /// Serve the directory: GET /v1/directory has the open cohorts with their terms, standing cohorts, and announcements
            ///
            /// Programs and people find out by it what is offered, and how to join. Without it adverts show what is offered, but not which
            /// transactions have announced what: that is why it is an option. docs/http.md describes each field.
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_DIRECTORY")]
            directory: bool,
            /// Serve a page for people at / too: what the directory has, in words, with commands for copying
            ///
            /// With --directory. It works without JavaScript, and loads nothing from elsewhere.
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_PUBLIC_PAGE")]
            public_page: bool,
            /// With --public-page: a block explorer, to which transactions and addresses are links, e.g. https://mempool.space/signet
            ///
            /// Links are URL/tx/TXID and URL/address/ADDRESS. Without it there are no links: who follows one shows the explorer what it
            /// looks for.
            #[arg(long, value_name = "URL", env = "BTCR2_EXPLORER", hide_short_help = true)]
            explorer: String,
            /// The URL by which others reach the service, e.g. https://service.example/aggregation [default: that of --listen]
            ///
            /// Behind a proxy it is the proxy's, with the path prefix. The directory's commands have it.
            #[arg(long, value_name = "URL", env = "BTCR2_PUBLIC_URL", hide_short_help = true)]
            public_url: String,
        }
        "Control" {
            /// Serve the control API: on a socket in the state directory, and at this address if one is given
            ///
            /// A loopback address, e.g. 127.0.0.1:8081, or the path of another socket. `ctl` uses it. Without terms of cohorts the service
            /// waits until some are asked for. See docs/control.md.
            #[arg(long, value_name = "ADDR|SOCKET", num_args = 0..=1, default_missing_value = "socket", env = "BTCR2_CONTROL")]
            control: Listen,
            /// Allow an address of --control that other machines reach; with --tls-cert and --tls-key only
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_CONTROL_REMOTE", hide_short_help = true)]
            control_remote: bool,
            /// A name by which the control API may be called, beside localhost and addresses
            ///
            /// May be given several times.
            #[arg(long, value_name = "NAME", value_delimiter = ',', env = "BTCR2_CONTROL_HOST", hide_short_help = true)]
            control_host: Vec<String>,
            /// Serve the console, pages for a browser, at the address of --control
            ///
            /// One logs in with a token: `control token new`. See docs/operating.md.
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_CONSOLE")]
            console: bool,
            /// With --console: how long a session may be idle [default: 30m]
            #[arg(long, value_name = "TIME", env = "BTCR2_CONSOLE_IDLE", hide_short_help = true)]
            console_idle: Period,
        }
        "Limits" {
            /// Most cohorts that run at once, formed or not [default: 256]
            ///
            /// The next one is advertised when one of them has ended.
            #[arg(long, value_name = "N", env = "BTCR2_MAX_LIVE_COHORTS", value_parser = clap::value_parser!(u32).range(1..))]
            max_live_cohorts: u32,
            /// Most cohorts that one DID is in at a time, and with /M in how many that have not formed [default: 64/16]
            #[arg(long, value_name = "N[/M]", env = "BTCR2_DID_SEATS", hide_short_help = true)]
            did_seats: SeatsArg,
            /// The same for one network address, over HTTP [default: 1024/256]
            ///
            /// Of an IPv6 address, its /64 counts. This machine's own addresses are not counted: behind a proxy, use --trust-forwarded.
            #[arg(long, value_name = "N[/M]", env = "BTCR2_ADDRESS_SEATS", hide_short_help = true)]
            address_seats: SeatsArg,
            /// The same for all DIDs of one invite [default: as many as it admits]
            #[arg(long, value_name = "N[/M]", env = "BTCR2_INVITE_SEATS", hide_short_help = true)]
            invite_seats: SeatsArg,
            /// How long a DID that opted in and then fetched nothing over HTTP is not admitted again [default: 10m]
            ///
            /// The DID at once, its network address and its invite after three such members. 0s admits them.
            #[arg(long, value_name = "TIME", env = "BTCR2_COOL_DOWN", hide_short_help = true)]
            cool_down: Span,
            /// Most bytes in a request body [default: 65536]
            #[arg(long, value_name = "BYTES", env = "BTCR2_MAX_BODY", hide_short_help = true)]
            max_body: usize,
            /// Most bytes of canonical JSON in an update [default: as many as in a body, 262144 at most]
            #[arg(long, value_name = "BYTES", env = "BTCR2_MAX_UPDATE", hide_short_help = true)]
            max_update: usize,
            /// Requests a second that one verified DID may make in the long run [default: 10]
            #[arg(long, value_name = "N", env = "BTCR2_DID_RATE", hide_short_help = true)]
            did_rate: u32,
            /// Requests that one verified DID may make at once [default: 30]
            #[arg(long, value_name = "N", env = "BTCR2_DID_BURST", hide_short_help = true)]
            did_burst: u32,
            /// Requests a second from one address in the long run [default: 200]
            ///
            /// Counted before any signature is checked.
            #[arg(long, value_name = "N", env = "BTCR2_ADDRESS_RATE", hide_short_help = true)]
            address_rate: u32,
            /// Requests from one address at once [default: 2000]
            #[arg(long, value_name = "N", env = "BTCR2_ADDRESS_BURST", hide_short_help = true)]
            address_burst: u32,
        }
    }
}
