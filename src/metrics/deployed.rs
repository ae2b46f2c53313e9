//! The dashboard and the alerts of `deploy/` name metrics that exist, and every metric is in one of them.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use super::{Metrics, http::Readiness};
use crate::actors::{
    load::Load,
    runtime::{Clock, Randomness},
    transport::{
        http::{HttpConfig, HttpServer, server::HttpServerParts},
        nostr::{NostrConfig, NostrTransport, embedded::EmbeddedRelay},
    },
};

fn in_tree(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The metrics of a service that has everything, with at least one series of each.
fn all() -> String {
    actix_rt::System::new().block_on(async {
        let metrics = Metrics::new(Clock::system());
        let sources = metrics.sources();
        sources.readiness(Readiness::default());
        sources.load(Load::default());
        sources.http(HttpServer::start(HttpServerParts::new(HttpConfig::default(), Clock::system())));
        sources.embedded_relay(EmbeddedRelay::start(([127, 0, 0, 1], 0).into()).await.unwrap());
        let relays = NostrConfig::new(["wss://relay.example".to_owned()]);
        sources.nostr(NostrTransport::new(relays, Clock::system(), Randomness::System).unwrap());
        metrics.expect_alarms(&["not-ready"]);
        let label = |name: &'static str| [(name, "x".to_owned())];
        metrics.0.phase_seconds.get_or_create(&label("phase")).observe(1.0);
        metrics.0.ended.get_or_create(&label("outcome")).inc();
        metrics.0.rejections.get_or_create(&label("code")).inc();
        metrics.0.announcements.get_or_create(&label("event")).inc();
        metrics.0.journal_seconds.get_or_create(&label("operation")).observe(Duration::from_secs(1).as_secs_f64());
        metrics.message("x", "y");
        metrics.to_text()
    })
}

/// The names in a text that begin as metrics do.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("btcr2_")).map(str::to_owned).collect()
}

/// The names of series and of families.
fn existing(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in text.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            match kind {
                "counter" => drop(names.insert(format!("{name}_total"))),
                "histogram" => ["bucket", "sum", "count"].iter().for_each(|part| {
                    names.insert(format!("{name}_{part}"));
                }),
                _ => drop(names.insert(name.to_owned())),
            }
        }
    }
    names
}

#[test]
fn dashboard_and_alerts_name_metrics_that_exist() {
    let existing = existing(&all());
    assert!(existing.len() > 30, "{existing:?}");
    let mut shown = BTreeSet::new();
    for file in ["deploy/grafana.json", "deploy/alerts.yaml"] {
        let names = named(&in_tree(file));
        assert!(names.len() > 5, "{file}: {names:?}");
        for name in &names {
            assert!(existing.contains(name), "{file}: there is no metric {name}");
        }
        shown.extend(names);
    }
    // What an operator cannot look at is not worth being measured.
    let unseen: Vec<_> = existing
        .iter()
        .filter(|name| !name.ends_with("_sum") && !name.ends_with("_count") && !shown.contains(*name))
        .collect();
    assert!(unseen.is_empty(), "in no panel and no alert: {unseen:?}");
}

#[test]
fn the_dashboard_is_json_with_a_query_in_every_panel() {
    let dashboard: serde_json::Value = serde_json::from_str(&in_tree("deploy/grafana.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 15, "{}", panels.len());
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().unwrap();
        assert!(targets.iter().all(|target| named(target["expr"].as_str().unwrap()).len() == 1), "{panel}");
    }
}
