//! The terms of `serve --standing`.

use std::time::Duration;

use ::bitcoin::{Amount, TxOut};

use super::{
    settings::ServeSettings,
    values::{AbsentArg, Beacon, PriceArg, RegistrationArg, UpdatesArg},
};
use crate::{
    config::Period,
    error::ProgramError,
    inputs,
    protocol::{
        cohort::standing::{Registration, StandingBeacon, StandingTerms, Updates},
        network::Network,
    },
    serve::StandingConfig,
};

/// Most seats by default: every seat waits for the slowest of them, and pays for its absence.
const SEATS: u32 = 25;

/// The standing cohort that the settings describe, if they describe one.
pub(super) fn config(settings: &ServeSettings, network: Network) -> Result<Option<StandingConfig>, ProgramError> {
    let usage = |problem: String| ProgramError::Usage(problem);
    let others = [
        settings.min_interval.is_some(),
        settings.max_interval.is_some(),
        settings.pending_trigger.is_some(),
        settings.min_dids.is_some(),
        settings.max_dids.is_some(),
        settings.updates.is_some(),
        settings.registration.is_some(),
        settings.absent.is_some(),
        settings.respond_time.is_some(),
        settings.confirm_time.is_some(),
        settings.max_unconfirmed.is_some(),
        settings.operator_output.is_some(),
        settings.enrollment_price.is_some(),
        settings.announcement_price.is_some(),
        settings.succeeds.is_some(),
    ];
    if settings.standing != Some(true) {
        return match others.contains(&true) {
            true => Err(usage("the settings of standing cohorts need --standing".to_owned())),
            false => Ok(None),
        };
    }
    let refused = [
        (
            settings.recovery_key.is_some() || settings.recovery_sequence.is_some(),
            "--recovery-key, --recovery-sequence",
        ),
        (settings.cohorts.is_some() || settings.parallel.is_some(), "--cohorts, --parallel"),
        (settings.exit_when_done == Some(true), "--exit-when-done"),
        (settings.change.is_some(), "--change"),
    ];
    if let Some((_, names)) = refused.iter().find(|(given, _)| *given) {
        return Err(usage(format!("{names}: not with --standing, see docs/standing.md")));
    }
    let minimum = settings.min_participants.unwrap_or(2);
    let maximum = settings.max_participants.unwrap_or(SEATS.max(minimum));
    let number =
        |value: u32| u16::try_from(value).map_err(|_| usage(format!("{value} seats: at most 65535 expected")));
    let beacon = match settings.beacon.unwrap_or(Beacon::Cas) {
        Beacon::Cas => StandingBeacon::Cas,
        Beacon::Smt => StandingBeacon::Smt,
    };
    let mut terms = StandingTerms::new(beacon, network, number(minimum)?, number(maximum)?);
    let seconds =
        |period: Period| u32::try_from(period.0.max(Duration::from_secs(1)).as_secs()).unwrap_or(u32::MAX);
    if let Some(period) = settings.min_interval {
        terms.min_seconds_between_announcements = seconds(period);
    }
    terms.max_seconds_between_announcements = settings.max_interval.map(seconds);
    terms.pending_update_trigger = settings.pending_trigger;
    terms.min_dids_per_participant = settings.min_dids.unwrap_or(terms.min_dids_per_participant);
    terms.max_dids_per_participant = settings.max_dids.unwrap_or(terms.max_dids_per_participant);
    if let Some(UpdatesArg::Hash) = settings.updates {
        terms.updates = Updates::Hash;
    }
    if let Some(RegistrationArg::Blind) = settings.registration {
        terms.registration = Registration::Blind;
    }
    if let Some(period) = settings.respond_time {
        terms.respond_seconds = seconds(period);
    }
    if let Some(period) = settings.confirm_time {
        terms.confirm_seconds = seconds(period);
    }
    if let Some(rate) = &settings.fee_ceiling {
        terms.max_fee_rate = u32::try_from(rate.0.to_sat_per_vb_ceil()).unwrap_or(u32::MAX);
    }
    terms.cost_of_enrollment = settings.enrollment_price.clone().map(|PriceArg(cost)| cost);
    terms.cost_per_announcement = settings.announcement_price.clone().map(|PriceArg(cost)| cost);
    terms.max_unconfirmed = settings.max_unconfirmed.unwrap_or(terms.max_unconfirmed);
    if !matches!(settings.absent, Some(AbsentArg::Wait)) {
        // Two thirds of the most seats, which is what members ask for by default, and fewer than the least.
        let threshold = (2 * maximum).div_ceil(3).min(minimum.saturating_sub(1)).max(1);
        terms = terms.proceeding(settings.fallback_threshold.map_or(number(threshold), Ok)?);
    } else if settings.fallback_threshold.is_some() {
        return Err(usage(
            "--fallback-threshold: not with --absent wait, where only all seats together sign".to_owned(),
        ));
    }
    let problems: Vec<String> = terms.problems().iter().map(ToString::to_string).collect();
    if !problems.is_empty() {
        return Err(usage(format!("the terms of the standing cohort: {}", problems.join("; "))));
    }
    let output = match &settings.operator_output {
        None => None,
        Some(output) => {
            let address = inputs::address(&output.address, network);
            let address =
                address.map_err(|problem| usage(format!("--operator-output {}: {problem}", output.address)))?;
            if output.satoshi > u64::from(terms.max_operator_output) {
                return Err(usage(format!(
                    "--operator-output: at most {} sat expected",
                    terms.max_operator_output
                )));
            }
            Some(TxOut { value: Amount::from_sat(output.satoshi), script_pubkey: address.script_pubkey() })
        }
    };
    Ok(Some(StandingConfig { terms, output, succeeds: settings.succeeds.clone() }))
}
