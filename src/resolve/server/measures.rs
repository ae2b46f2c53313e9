//! The metrics of a resolver. Labels are codes of this program, never what a client has written.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use super::{Shared, answer::Refusal};
use crate::metrics::http::Exposition;

type Counters = Family<[(&'static str, &'static str); 1], Counter>;

/// What is counted.
pub(super) struct Measures {
    registry: Registry,
    answers: Counters,
    refusals: Counters,
    cache: Counters,
    seconds: Histogram,
    requests: Gauge,
    entries: Gauge,
    bytes: Gauge,
}

impl Measures {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("btcr2_resolver");
        let (answers, refusals, cache) = (Counters::default(), Counters::default(), Counters::default());
        let (requests, entries, bytes) = (Gauge::default(), Gauge::default(), Gauge::default());
        // From a millisecond to more than a minute.
        let seconds = Histogram::new(exponential_buckets(0.001, 4.0, 9));
        registry.register("answers", "Resolutions by outcome: OK, DEACTIVATED or the error code", answers.clone());
        registry.register("refusals", "Requests that were not resolved, by reason", refusals.clone());
        registry.register("cache_lookups", "Lookups in the cache of results, by outcome", cache.clone());
        registry.register_with_unit(
            "resolution",
            "Time of resolutions, without those from the cache",
            Unit::Seconds,
            seconds.clone(),
        );
        registry.register("requests_in_progress", "Requests that are being answered", requests.clone());
        registry.register("cached_results", "Results in the cache", entries.clone());
        registry.register_with_unit("cached", "Size of the results in the cache", Unit::Bytes, bytes.clone());
        Self { registry, answers, refusals, cache, seconds, requests, entries, bytes }
    }

    pub(super) fn answered(&self, outcome: &'static str) {
        self.answers.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        self.refusals.get_or_create(&[("reason", refusal.into())]).inc();
    }

    pub(super) fn looked_up(&self, hit: bool) {
        self.cache.get_or_create(&[("outcome", if hit { "hit" } else { "miss" })]).inc();
    }

    pub(super) fn resolved_in(&self, time: Duration) {
        self.seconds.observe(time.as_secs_f64());
    }
}

/// The metrics, as `/metrics` shows them.
#[derive(Clone)]
pub(super) struct Shown(pub(super) Arc<Shared>);

impl Exposition for Shown {
    fn to_text(&self) -> String {
        let Shared { measures, requests, chains, .. } = &*self.0;
        let sizes = chains.connected().map(|chain| chain.cache().size());
        let (entries, bytes) = sizes.fold((0, 0), |all, size| (all.0 + size.0, all.1 + size.1));
        let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        measures.requests.set(number(requests.in_use()));
        measures.entries.set(number(entries));
        measures.bytes.set(number(bytes));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &measures.registry);
        text
    }
}
