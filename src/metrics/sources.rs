//! Counters of other parts, which are read whenever the text is requested.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::http::Readiness;
use crate::actors::{
    load::Load,
    transport::{
        connections::ConnectionsReport,
        http::{HttpReport, HttpServer},
        nostr::{NostrTransport, RelayReport, embedded::EmbeddedRelay},
    },
};

/// The sources. Those that a host does not have are omitted.
#[derive(Default)]
pub struct Sources(Mutex<Known>);

#[derive(Clone, Default)]
struct Known {
    readiness: Option<Readiness>,
    load: Option<Load>,
    http: Option<HttpServer>,
    nostr: Option<NostrTransport>,
    embedded: Option<EmbeddedRelay>,
}

impl Sources {
    /// Whether the process is ready, as `/readyz` answers.
    pub fn readiness(&self, readiness: Readiness) {
        self.known().readiness = Some(readiness);
    }

    /// The messages of a service, and those that wait for its actors. For one service, or for several that share one
    /// `Load`.
    pub fn load(&self, load: Load) {
        self.known().load = Some(load);
    }

    /// The connections, inboxes and refusals of an HTTP server.
    pub fn http(&self, server: HttpServer) {
        self.known().http = Some(server);
    }

    /// The relays of a Nostr transport.
    pub fn nostr(&self, transport: NostrTransport) {
        self.known().nostr = Some(transport);
    }

    /// The connections and events of a relay in this process.
    pub fn embedded_relay(&self, relay: EmbeddedRelay) {
        self.known().embedded = Some(relay);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

impl Collector for Sources {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Known { readiness, load, http, nostr, embedded } = self.known().clone();
        let mut page = Page(&mut encoder);
        if let Some(readiness) = readiness {
            page.gauges(
                "ready",
                "1 if /readyz answers that the service is ready, else 0",
                [([], usize::from(readiness.is_ready()))],
            )?;
        }
        if let Some(load) = load {
            page.load(&load)?;
        }
        if let Some(http) = &http {
            page.http(&http.report())?;
        }
        let mut servers = Vec::new();
        if let Some(http) = &http {
            servers.push(("http", http.connections().report()));
        }
        if let Some(relay) = &embedded {
            servers.push(("relay", relay.connections()));
            let events = "Events that the embedded relay holds";
            page.gauges("embedded_relay_events", events, [([], relay.events())])?;
            page.gauges("embedded_relay_bytes", "Bytes of these events", [([], relay.bytes())])?;
        }
        if !servers.is_empty() {
            page.connections(&servers)?;
        }
        match nostr {
            Some(nostr) => page.relays(&nostr.relays()),
            None => Ok(()),
        }
    }
}

/// The encoder of metric families.
struct Page<'p, 'e>(&'p mut DescriptorEncoder<'e>);

impl Page<'_, '_> {
    fn load(&mut self, load: &Load) -> fmt::Result {
        let received = load.received().into_iter().map(|(kind, count)| ([("type", kind)], count));
        self.counters("messages_received", "Messages that reached the service, by type", received)?;
        let sent = load.sent().into_iter().map(|(kind, count)| ([("type", kind)], count));
        self.counters("messages_sent", "Messages passed to the transport, by type", sent)?;
        let waiting = [("cohort", load.waiting_for_cohorts()), ("signing", load.waiting_for_sessions())];
        let waiting = waiting.map(|(actor, count)| ([("actor", actor)], count));
        self.gauges("mailbox_messages", "Messages that wait for an actor, by kind of actor", waiting)
    }

    fn http(&mut self, report: &HttpReport) -> fmt::Result {
        self.gauges("inboxes", "Inboxes", [([], report.inboxes)])?;
        self.gauges(
            "inbox_messages",
            "Messages that wait in inboxes or are not confirmed yet",
            [([], report.messages)],
        )?;
        self.gauges("inbox_bytes", "Bytes of bodies in inboxes", [([], report.bytes)])?;
        self.counters("inbox_dropped", "Messages that inboxes had no room for", [([], report.dropped)])?;
        let refusals = report.refusals.iter().map(|(refusal, count)| ([("code", refusal.code())], *count));
        self.counters("http_refusals", "Requests that were refused, by code", refusals)?;
        let limited = report.limited.iter().map(|(limit, count)| ([("limit", limit.name())], *count));
        self.counters("http_limited", "Requests that were too much, by the limit that was reached", limited)?;
        self.gauges("advert_streams", "Open streams of adverts", [([], report.advert_streams)])?;
        let closed = "Streams of adverts that were closed for a newer one of their address";
        self.counters("advert_streams_closed", closed, [([], report.advert_streams_closed)])?;
        let early = "Requests for inboxes that wait for an opt-in";
        self.gauges("early_inboxes", early, [([], report.early_inboxes)])
    }

    fn connections(&mut self, servers: &[(&str, ConnectionsReport)]) -> fmt::Result {
        let open = servers.iter().flat_map(|(server, report)| {
            let kinds = [("opening", report.opening), ("open", report.open), ("member", report.members)];
            kinds.map(|(kind, count)| ([("server", *server), ("kind", kind)], count))
        });
        self.gauges("connections", "Connections of others to this process, by kind", open)?;
        let closed = servers.iter().flat_map(|(server, report)| {
            let reasons = [
                ("evicted", report.evicted),
                ("refused", report.refused),
                ("malformed", report.malformed),
                ("late", report.late),
            ];
            reasons.map(|(reason, count)| ([("server", *server), ("reason", reason)], count))
        });
        self.counters("connections_closed", "Connections that were closed here, by reason", closed)
    }

    fn relays(&mut self, relays: &[RelayReport]) -> fmt::Result {
        let gauges = |of: fn(&RelayReport) -> u64| {
            relays.iter().map(move |relay| {
                ([("relay", relay.url.as_str())], usize::try_from(of(relay)).unwrap_or(usize::MAX))
            })
        };
        let counters = |of: fn(&RelayReport) -> u64| {
            relays.iter().map(move |relay| ([("relay", relay.url.as_str())], of(relay)))
        };
        self.gauges("relay_connected", "Open connections to a relay", gauges(|relay| relay.connected))?;
        let help = "Connections on which a relay has sent all that it had stored";
        self.gauges("relay_subscribed", help, gauges(|relay| relay.subscribed))?;
        self.counters(
            "relay_connections",
            "Connections that were made to a relay",
            counters(|relay| relay.connections),
        )?;
        let help = "Connections to a relay that ended or could not be made";
        self.counters("relay_failures", help, counters(|relay| relay.failures))?;
        let published = relays.iter().flat_map(|relay| {
            let outcomes =
                [("accepted", relay.accepted), ("refused", relay.refused), ("unanswered", relay.unanswered)];
            outcomes.map(|(outcome, count)| ([("relay", relay.url.as_str()), ("outcome", outcome)], count))
        });
        self.counters("relay_published", "Events for a relay, by outcome", published)?;
        self.counters("relay_received", "Events of others that a relay sent", counters(|relay| relay.received))?;
        let help = "Events of others that had been there before";
        self.counters("relay_duplicates", help, counters(|relay| relay.duplicates))
    }

    fn counters<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ([(&'l str, &'l str); N], u64)>,
    ) -> fmt::Result {
        let series = series.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.family(name, help, MetricType::Counter, series)
    }

    fn gauges<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ([(&'l str, &'l str); N], usize)>,
    ) -> fmt::Result {
        let whole = |value| i64::try_from(value).unwrap_or(i64::MAX);
        let series = series.into_iter().map(|(labels, value)| (labels, ConstGauge::new(whole(value))));
        self.family(name, help, MetricType::Gauge, series)
    }

    fn family<'l, const N: usize, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        series: impl Iterator<Item = ([(&'l str, &'l str); N], M)>,
    ) -> fmt::Result {
        // With a full stop, as the registry writes its own help texts.
        let mut family = self.0.encode_descriptor(name, &format!("{help}."), None, kind)?;
        for (labels, metric) in series {
            // A metric without labels does not need a member of the family.
            if N == 0 {
                return metric.encode(family);
            }
            metric.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        actors::{
            runtime::{Clock, Randomness},
            transport::{
                http::{HttpConfig, server::HttpServerParts},
                nostr::NostrConfig,
            },
        },
        metrics::Metrics,
    };

    #[test]
    fn nothing_is_told_of_what_a_host_does_not_have() {
        let text = Metrics::new(Clock::system()).to_text();
        for family in ["btcr2_mailbox", "btcr2_inbox", "btcr2_relay"] {
            assert!(!text.contains(family), "{text}");
        }
    }

    #[test]
    fn a_relay_is_told_without_the_password_to_it() {
        let config = NostrConfig::new(["wss://me:hidden@relay.example/path?token=hidden".to_owned()]);
        let nostr = NostrTransport::new(config, Clock::system(), Randomness::System).unwrap();
        let metrics = Metrics::new(Clock::system());
        metrics.sources().nostr(nostr);
        let text = metrics.to_text();
        for line in [
            "# TYPE btcr2_relay_connected gauge",
            "btcr2_relay_connected{relay=\"wss://relay.example/path\"} 0",
            "btcr2_relay_subscribed{relay=\"wss://relay.example/path\"} 0",
            "# TYPE btcr2_relay_published counter",
            "btcr2_relay_published_total{relay=\"wss://relay.example/path\",outcome=\"refused\"} 0",
            "btcr2_relay_failures_total{relay=\"wss://relay.example/path\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
        assert!(!text.contains("hidden"), "{text}");
    }

    #[test]
    fn every_refusal_has_its_series_from_the_start() {
        actix_rt::System::new().block_on(async {
            let parts = HttpServerParts::new(HttpConfig::default(), Clock::system());
            let metrics = Metrics::new(Clock::system());
            metrics.sources().http(HttpServer::start(parts));
            let text = metrics.to_text();
            for line in [
                "btcr2_inboxes 0",
                "btcr2_inbox_dropped_total 0",
                "btcr2_http_refusals_total{code=\"replay\"} 0",
                "btcr2_http_limited_total{limit=\"strangers\"} 0",
                "btcr2_http_limited_total{limit=\"advert_streams\"} 0",
                "btcr2_connections{server=\"http\",kind=\"member\"} 0",
                "btcr2_connections_closed_total{server=\"http\",reason=\"late\"} 0",
                "btcr2_advert_streams 0",
                "btcr2_advert_streams_closed_total 0",
                "btcr2_early_inboxes 0",
            ] {
                assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
            }
        });
    }
}
