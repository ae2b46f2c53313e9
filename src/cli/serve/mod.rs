//! `serve`: an Aggregation Service as a program.

mod settings;
mod standing;
mod terms;
mod values;

use std::{path::Path, process::ExitCode, sync::Arc};

use ::bitcoin::Amount;

pub(super) use self::{settings::ServeArgs, values::Beacon};
use self::{
    settings::ServeSettings,
    terms::{Base, DraftReader},
    values::{Chain, SeatsArg},
};
use super::{
    Events, fail, identity_of,
    relay::{RelaySettings, trust},
};
use crate::{
    actors::transport::connections::{ConnectionLimits, Prefix, Proxies},
    bitcoin::payout,
    cas,
    config::{self, Period, Span},
    console,
    control::{ControlConfig, Listen},
    error::ProgramError,
    protocol::network::Network,
    serve::{self, ChainConfig, Coins, PageSettings, ServeConfig, Tls},
    systemd::Unit,
};

/// Whether a text is a file of `--config`, for the sample.
#[cfg(test)]
pub(super) fn check_file(text: &str) -> Result<(), String> {
    toml::from_str::<ServeSettings>(text).map(drop).map_err(|error| error.to_string())
}

pub(super) fn main(args: ServeArgs) -> ExitCode {
    let outcome = configs(args).and_then(|mut configs| {
        crate::telemetry::raise_open_files();
        let unit = Unit::new(configs.len());
        configs.iter_mut().for_each(|config| config.unit = Some(unit.clone()));
        super::block_on(async { serve::run_all(configs, crate::telemetry::stop_signal()).await })
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => fail(&error),
    }
}

/// The services of the process: that of the command line, and those of `--also`.
fn configs(args: ServeArgs) -> Result<Vec<ServeConfig>, ProgramError> {
    let (file, also) = (args.config.clone(), args.also.clone());
    let mut configs = vec![first(args)?];
    if also.is_empty() {
        return Ok(configs);
    }
    let name = |path: &Path| path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    configs[0].name = Some(file.as_deref().map_or_else(|| "serve".to_owned(), name));
    for path in also {
        let of_file = |problem: String| ProgramError::Usage(format!("--also {}: {problem}", path.display()));
        let settings = config::read(&path).map_err(|error| of_file(error.to_string()))?;
        let mut config = config(settings).map_err(|error| of_file(error.to_string()))?;
        config.name = Some(name(&path));
        configs.push(config);
    }
    Ok(configs)
}

/// The service of the command line.
fn first(args: ServeArgs) -> Result<ServeConfig, ProgramError> {
    let file = match &args.config {
        Some(path) => config::read(path).map_err(|error| ProgramError::Usage(error.to_string()))?,
        None => ServeSettings::default(),
    };
    let mut file: ServeSettings = file;
    if args.settings.identity.is_some() || args.settings.secret_env.is_some() {
        // One choice in two settings: a command line that sets one must override the file's other.
        (file.identity, file.secret_env) = (None, None);
    }
    config(args.settings.over(file))
}

fn config(settings: ServeSettings) -> Result<ServeConfig, ProgramError> {
    let usage = |problem: &str| ProgramError::Usage(problem.to_owned());
    // There is no default: a made-up coin announces nothing, and must be requested explicitly.
    let coins = match &settings.chain {
        Some(Chain::Offline) => Coins::Offline,
        Some(Chain::Named(named)) => {
            let source = named.source().map_err(|error| usage(&format!("--chain: offline, or {error}")))?;
            let mut chain = ChainConfig::new(source.clone());
            let span = |setting: Option<Period>, default| setting.map_or(default, |period: Period| period.0);
            chain.poll = span(settings.chain_poll, chain.poll);
            chain.funding_window = span(settings.funding_window, chain.funding_window);
            chain.funding_confirmations = settings.funding_confirmations.unwrap_or(chain.funding_confirmations);
            chain.confirmations = settings.confirmations.unwrap_or(chain.confirmations);
            chain.fee_floor = settings.fee_floor.map_or(chain.fee_floor, |rate| rate.0);
            chain.fee_ceiling = settings.fee_ceiling.map_or(chain.fee_ceiling, |rate| rate.0);
            chain.fee_rate = settings.fee_rate.map(|rate| rate.0);
            chain.fee_target = settings.fee_target.unwrap_or(chain.fee_target);
            chain.warn_blocks = settings.warn_blocks.unwrap_or(chain.warn_blocks);
            Coins::Chain(Box::new(chain))
        }
        None => {
            return Err(usage(
                "no chain: --chain core=URL or --chain esplora=URL, or `--chain offline` for a made-up coin \
                 (demonstrations and tests)",
            ));
        }
    };
    let identity = identity_of(settings.identity.as_deref(), settings.secret_env.as_deref(), settings.network)
        .map_err(|error| ProgramError::Usage(error.to_string()))?;
    let network = settings.network.unwrap_or(identity.did().network());
    let standing = standing::config(&settings, network)?;
    let funding_window = match &coins {
        Coins::Chain(chain) => Some(chain.funding_window),
        Coins::Offline => None,
    };
    let base = Base { recovery_key: identity.public_key().x_only(), funding_window };
    let of_rounds = terms::round(&settings, &base)?;
    let advertises = standing.is_none() && (settings.control.is_none() || terms::describes_rounds(&settings));
    let control = control(&settings, base, network)?;
    let tls = match (settings.tls_cert, settings.tls_key) {
        (Some(certificate), Some(key)) => Some(Tls { certificate, key }),
        (None, None) => None,
        _ => return Err(usage("--tls-cert and --tls-key go together")),
    };
    let mut config = ServeConfig::new(identity, network);
    config.advertises = advertises;
    config.standing = standing;
    config.terms = of_rounds;
    config.control = control;
    let relays = RelaySettings {
        relays: settings.relay.unwrap_or_default(),
        look_back: settings.look_back,
        timeout: settings.relay_timeout,
        publish_timeout: settings.publish_timeout,
        retry: settings.relay_retry,
        trust: trust(settings.tls_ca.as_deref()).map_err(ProgramError::Usage)?,
    };
    config.embedded_relay = settings.embedded_relay;
    config.nostr = relays.config(config.embedded_relay.is_some()).map_err(ProgramError::Usage)?;
    // With relays only, no port needs to be open.
    if config.nostr.is_none() || settings.listen.is_some() {
        config.listen = settings.listen.or(config.listen);
    } else {
        config.listen = None;
    }
    config.metrics_listen = settings.metrics_listen;
    config.on_alarm = settings.on_alarm;
    config.tls = tls;
    config.coins = coins;
    config.publication.hold_on_failure = !settings.cas_optional.unwrap_or(false);
    for location in settings.cas.unwrap_or_default() {
        let store = location.store(cas::DEFAULT_TIMEOUT).map_err(|error| ProgramError::Usage(error.to_string()))?;
        config.publication.stores.push(store);
    }
    if let (Coins::Chain(chain), Some(change)) = (&mut config.coins, &settings.change) {
        let change =
            payout::change(change, network).map_err(|problem| usage(&format!("--change {change}: {problem}")))?;
        chain.change = Some(change);
    }
    if matches!(config.coins, Coins::Chain(_)) && settings.state.is_none() {
        return Err(usage("--chain needs --state DIR: without it a killed service would lose track of real coins"));
    }
    config.cohorts = settings.cohorts;
    config.parallel = settings.parallel.unwrap_or(1).max(1);
    config.exit_when_done = settings.exit_when_done.unwrap_or(false);
    config.json = matches!(settings.events, Some(Events::Json));
    config.times = settings.times.unwrap_or(false);
    config.out = settings.out;
    config.state = settings.state;
    config.allow_list = settings.allow_list;
    config.invites = settings.invites.unwrap_or(false);
    config.admit_funded = settings.admit_funded.map(Amount::from_sat);
    config.proven_keys_only = settings.proven_keys_only.unwrap_or(false);
    config.max_live = settings.max_live_cohorts.unwrap_or(config.max_live);
    let seats = |setting: Option<SeatsArg>, default| setting.map_or(default, |SeatsArg(limit)| limit);
    config.seats.did = seats(settings.did_seats, config.seats.did);
    config.seats.address = seats(settings.address_seats, config.seats.address);
    config.seats.invite = seats(settings.invite_seats, config.seats.invite);
    config.seats.cool_down = settings.cool_down.map_or(config.seats.cool_down, |Span(time)| time);
    let http = &mut config.http;
    http.max_body = settings.max_body.unwrap_or(http.max_body);
    // The service must not promise a size that no request body can carry. Over relays, messages are never larger than the
    // default body either.
    let update_bytes = config.limits.update_bytes.min(http.max_body);
    config.limits.update_bytes = settings.max_update.unwrap_or(update_bytes);
    http.did_rate.per_second = settings.did_rate.unwrap_or(http.did_rate.per_second);
    http.did_rate.burst = settings.did_burst.unwrap_or(http.did_rate.burst);
    http.address_rate.per_second = settings.address_rate.unwrap_or(http.address_rate.per_second);
    http.address_rate.burst = settings.address_burst.unwrap_or(http.address_rate.burst);
    let proxies = settings.trusted_proxy.unwrap_or_default();
    let proxies = proxies.iter().map(|prefix| prefix.parse()).collect::<Result<Vec<Prefix>, _>>();
    let proxies = proxies.map_err(|error| ProgramError::Usage(format!("--trusted-proxy {error}")))?;
    http.proxies = match settings.trust_forwarded {
        // An operator who names proxies trusts no other peer.
        _ if !proxies.is_empty() => Proxies::At(proxies),
        Some(true) => Proxies::All,
        _ => Proxies::None,
    };
    let files = crate::telemetry::open_files();
    // The embedded relay has its own sockets.
    config.relay_limits.sockets = ConnectionLimits::of_files(files / 4);
    let files = if config.embedded_relay.is_some() { files - files / 4 } else { files };
    let limits = ConnectionLimits::of_files(files);
    // Advert streams are not counted per DID.
    http.advert_streams = http.advert_streams.min(limits.outsiders / 2);
    http.advert_streams_per_address = http.advert_streams_per_address.min(http.advert_streams / 4);
    config.connections = limits;
    let http = &mut config.http;
    http.stripped_prefixes.extend(settings.stripped_prefix);
    if let Some(origins) = settings.cors {
        http.cors = serve::cors(&origins);
    }
    let has_page = settings.public_page.unwrap_or(false);
    config.directory = has_page || settings.directory.unwrap_or(false);
    config.public_url = settings.public_url.as_deref().map(|url| plain_url("--public-url", url)).transpose()?;
    let explorer = settings.explorer.as_deref().map(|url| plain_url("--explorer", url)).transpose()?;
    if explorer.is_some() && !has_page {
        return Err(usage("--explorer needs --public-page"));
    }
    config.public_page = has_page.then_some(PageSettings { explorer });
    if config.directory && config.listen.is_none() {
        return Err(usage("--directory and --public-page are served over HTTP: --listen ADDR"));
    }
    if config.exit_when_done && config.cohorts.is_none() {
        return Err(usage("--exit-when-done needs --cohorts, or it would never be done"));
    }
    Ok(config)
}

/// The control API that the settings describe, if they describe one.
fn control(settings: &ServeSettings, base: Base, network: Network) -> Result<Option<ControlConfig>, ProgramError> {
    let usage = |problem: &str| ProgramError::Usage(problem.to_owned());
    let Some(listen) = settings.control.clone() else {
        if settings.control_remote == Some(true) || settings.control_host.is_some() {
            return Err(usage("--control-remote and --control-host need --control"));
        }
        if settings.console == Some(true) {
            return Err(usage("--console needs an address: --control ADDR, e.g. --control 127.0.0.1:8081"));
        }
        return Ok(None);
    };
    let has_console = settings.console.unwrap_or(false);
    if has_console && !matches!(listen, Listen::Address(_)) {
        return Err(usage("--console needs an address for browsers, not a socket: --control 127.0.0.1:8081"));
    }
    if !has_console && settings.console_idle.is_some() {
        return Err(usage("--console-idle needs --console"));
    }
    if settings.state.is_none() {
        return Err(usage("--control needs --state DIR, for its socket, tokens, templates and audit log"));
    }
    if settings.exit_when_done == Some(true) {
        return Err(usage("--exit-when-done: not with --control, which can always ask for another cohort"));
    }
    let reader = DraftReader { settings: settings.clone(), base, network };
    Ok(Some(ControlConfig {
        listen,
        remote: settings.control_remote.unwrap_or(false),
        hosts: settings.control_host.clone().unwrap_or_default(),
        reader: Arc::new(reader),
        console: has_console.then_some(settings.console_idle.map_or(console::IDLE, |Period(idle)| idle)),
    }))
}

/// A URL of an option, to which paths are added: without a slash at its end.
fn plain_url(option: &str, text: &str) -> Result<String, ProgramError> {
    let wrong = |problem: &str| ProgramError::Usage(format!("{option} {text}: {problem}"));
    let url =
        reqwest::Url::parse(text.trim()).map_err(|_| wrong("a URL expected, e.g. https://service.example"))?;
    let is_plain =
        url.query().is_none() && url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
    if !matches!(url.scheme(), "http" | "https") || !is_plain {
        return Err(wrong("http:// or https://, a name and at most a path expected"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}
