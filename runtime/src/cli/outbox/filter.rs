//! The flags that say which deliveries.

use clap::Args;
use interlock_actors::store::outbox::desk::DeliveryFilter;
use interlock_bus::{PeerName, TopicFilter};
use jiff::Timestamp;

use super::Scope;
use crate::cli::logs::moment;

/// Which deliveries. What several flags say must all hold.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Which deliveries")]
pub(super) struct Filter {
    /// Of messages on topics of this filter, for example orders/#.
    #[arg(short, long, value_name = "FILTER")]
    topic: Option<TopicFilter>,
    /// To this consumer.
    #[arg(short, long, value_name = "NAME")]
    consumer: Option<PeerName>,
    /// Of messages with this ordering key.
    #[arg(short, long, value_name = "KEY")]
    key: Option<String>,
    /// Whose last failed attempt gave a reason with this text in it.
    #[arg(short, long, value_name = "TEXT")]
    reason: Option<String>,
    /// Of messages accepted then or later: 10m ago, today, 2026-01-31, "2026-01-31 08:00", or RFC 3339.
    #[arg(long, value_name = "TIME", value_parser = moment::argument)]
    since: Option<Timestamp>,
}

impl Filter {
    /// Whether it leaves nothing out.
    pub(super) fn is_empty(&self) -> bool {
        let Self { topic, consumer, key, reason, since } = self;
        topic.is_none() && consumer.is_none() && key.is_none() && reason.is_none() && since.is_none()
    }

    /// The question to the outbox.
    pub(super) fn question(&self, scope: Scope) -> DeliveryFilter {
        DeliveryFilter {
            states: scope.states(),
            topic: self.topic.clone(),
            consumer: self.consumer.clone(),
            key: self.key.clone(),
            reason: self.reason.clone(),
            // Before 1970 nothing was accepted.
            since_ms: self.since.map(|since| u64::try_from(since.as_millisecond()).unwrap_or(0)),
            ..DeliveryFilter::default()
        }
    }
}
