//! Events of messages that were lost. Those of the bus's own topics are counted and not told: whoever follows them learns
//! of a loss by the gap in its own subscription, and an event about a lost event would be lost, too.

use serde_json::json;

use super::*;
use crate::broker::drops::Kind;

impl Hub {
    /// Notes that messages counted in `row` were dropped.
    pub(super) fn note_drop(&mut self, row: RowId, count: u64, reason: DropReason) {
        let ledger = &self.ledger;
        let is_own = || ledger.key_of(row).topic.as_ref().is_some_and(TopicName::is_reserved);
        if reason == DropReason::SlowConsumer && is_own() {
            self.events.lose(count);
        }
        let key = || ledger.key_of(row).clone();
        for (kind, count) in self.drops.note((row, reason), count, ledger.evictions(), key) {
            self.tell_drop(&kind, count);
        }
    }

    fn tell_drop(&mut self, (key, reason): &Kind, count: u64) {
        let RowKey { publisher, topic, subscriber } = key;
        if topic.as_ref().is_some_and(TopicName::is_reserved) {
            return;
        }
        let event = json!({
            "publisher": publisher, "topic": topic, "subscriber": subscriber, "reason": reason, "count": count,
        });
        self.events.later("$sys/dropped", event);
    }

    /// Tells what was dropped again.
    pub(super) fn look_at_drops(&mut self) {
        let repeated = self.drops.take(self.now_ms);
        repeated.kinds.iter().for_each(|(kind, count)| self.tell_drop(kind, *count));
        if repeated.others > 0 {
            let event = json!({
                "publisher": null, "topic": null, "subscriber": null, "reason": "(others)", "count": repeated.others,
            });
            self.events.later("$sys/dropped", event);
        }
    }

    /// Notes that a value was delivered and not retained for want of room: a drop of the last value.
    pub(super) fn note_not_retained(&mut self, topic: &TopicName, origin: u32) {
        if self.told_full_ms.is_some_and(|told_ms| self.now_ms < told_ms + 1000) {
            return;
        }
        self.told_full_ms = Some(self.now_ms);
        let event = json!({
            "publisher": self.origins.get(origin as usize),
            "topic": topic,
            "retained_bytes": self.retained_bytes,
            "limit": self.bounds.retained_bytes_max,
            "count": self.denials.retained_full_count(),
        });
        self.events.later("$sys/retained_full", event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_a_slow_subscriber_lost_are_counted_beside_the_events() {
        let mut hub = Hub::new("broker".parse().unwrap(), 1);
        let session = hub.greeted("peer");
        for (id, filter) in [(1, "$sys/#"), (2, "a")] {
            hub.record(
                session,
                Record::Subscribe(SubscribeSpec {
                    queue_messages_max: 1,
                    ..fixture::subscription(id, false, filter)
                }),
            );
        }
        (0..3).for_each(|number| hub.publish_own("$sys/auth/registry", &number));
        assert_eq!(hub.events.as_json()["lost"], 2);
        (0..3)
            .for_each(|_| hub.record(session, Record::Publish(Block::new(&"a".parse().unwrap(), b"", b"1"))));
        assert_eq!(hub.events.as_json()["lost"], 2, "what others publish is told on `$sys/dropped`");
    }
}
