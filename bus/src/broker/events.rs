//! The last events of the broker, for whoever comes after they were published.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::{limits, topic::TopicName};

/// What the broker published on topics of its own, the newest [`limits::EVENTS_KEPT`].
#[derive(Debug, Default)]
pub struct Events {
    last: VecDeque<(u64, TopicName, Bytes)>,
    /// Events that wait until nothing else is going on.
    pending: Vec<(&'static str, Value)>,
    /// How many were published in all.
    count: u64,
    /// How many copies were lost because their subscriber was slow.
    lost: u64,
}

impl Events {
    /// Keeps an event. The oldest gives way.
    pub fn add(&mut self, topic: &TopicName, payload: &Bytes, now_ms: u64) {
        if self.last.len() == limits::EVENTS_KEPT {
            self.last.pop_front();
        }
        self.count += 1;
        self.last.push_back((now_ms, topic.clone(), payload.clone()));
    }

    /// Counts copies that a slow subscriber has lost. No event tells of them, which would be lost, too.
    pub fn lose(&mut self, copies: u64) {
        self.lost += copies;
    }

    /// To be published once what causes it has been dealt with: an event may itself meet a full queue.
    pub fn later(&mut self, topic: &'static str, event: Value) {
        self.pending.push((topic, event));
    }

    /// What waits to be published.
    pub fn take_pending(&mut self) -> Vec<(&'static str, Value)> {
        std::mem::take(&mut self.pending)
    }

    /// The last events, oldest first, and how many there were in all.
    pub fn as_json(&self) -> Value {
        let rows = self.last.iter().map(|(at_ms, topic, payload)| {
            let event: Value = serde_json::from_slice(payload).unwrap_or_default();
            json!({ "at_ms": at_ms, "topic": topic, "event": event })
        });
        json!({ "count": self.count, "lost": self.lost, "last": rows.collect::<Vec<_>>() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_events_are_kept_and_all_are_counted() {
        let mut events = Events::default();
        let topic: TopicName = "$sys/denied".parse().unwrap();
        let total = limits::EVENTS_KEPT as u64 + 5;
        for number in 0..total {
            events.add(&topic, &Bytes::from(number.to_string()), number);
        }
        let kept = events.as_json();
        assert_eq!(kept["count"], total);
        let last = kept["last"].as_array().unwrap();
        assert_eq!((last.len(), &last[0]["event"]), (limits::EVENTS_KEPT, &json!(5)));
    }
}
