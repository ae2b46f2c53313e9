//! The setters that the builders of services and participants share.

/// The methods of a builder with the fields `settings` and `events`, whose notices are `$notice`.
macro_rules! shared_setters {
    ($notice:ty) => {
        /// The beacon types that it supports.
        #[must_use]
        pub fn beacons(mut self, beacons: ::btcr2_aggregation_protocol::beacon::BeaconRegistry) -> Self {
            self.settings.beacons = beacons;
            self
        }

        /// The key aggregation: direct, or through a cache shared with others in the process.
        #[must_use]
        pub fn aggregator(
            mut self,
            aggregator: ::std::sync::Arc<dyn ::btcr2_aggregation_protocol::output::KeyAggregator>,
        ) -> Self {
            self.settings.aggregator = aggregator;
            self
        }

        /// A journal that outlives the process. The journal of what has ended remains until the host acknowledges its last
        /// event.
        #[must_use]
        pub fn journal(mut self, journal: ::std::sync::Arc<dyn $crate::journal::Journal>) -> Self {
            self.settings.journal = journal;
            self.settings.retention = $crate::journal::Retention::UntilArchived;
            self
        }

        /// A journal that does not outlive the process: the journal of what has ended is removed. The default is one of its
        /// own, in memory.
        #[must_use]
        pub fn transient_journal(mut self, journal: ::std::sync::Arc<dyn $crate::journal::Journal>) -> Self {
            self.settings.journal = journal;
            self.settings.retention = $crate::journal::Retention::Forget;
            self
        }

        /// The time.
        #[must_use]
        pub fn clock(mut self, clock: $crate::runtime::Clock) -> Self {
            self.settings.clock = clock;
            self
        }

        /// The randomness.
        #[must_use]
        pub fn randomness(mut self, randomness: $crate::runtime::Randomness) -> Self {
            self.settings.randomness = randomness;
            self
        }

        /// Publishes the notices on this channel too, for measurements. Others may share it.
        #[must_use]
        pub fn notices(mut self, notices: $crate::notice::Notices<$notice>) -> Self {
            self.settings.notices = notices;
            self
        }

        /// How often an actor that panics is restarted.
        #[must_use]
        pub fn restarts(mut self, restarts: $crate::supervision::RestartIntensity) -> Self {
            self.settings.restarts = restarts;
            self
        }

        /// How many transient events wait for the host before they are dropped and reported as a gap.
        #[must_use]
        pub fn waiting_events(mut self, most: usize) -> Self {
            self.events = most;
            self
        }
    };
}

pub(super) use shared_setters;
