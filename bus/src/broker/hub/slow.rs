//! Subscribers that lose messages because they are slow: said at the first one, then once a second with the number,
//! and when they have caught up.

use super::*;

/// How often it is said that a subscriber goes on losing messages.
const REPEAT_MS: u64 = 1000;

/// A lane that loses messages.
#[derive(Debug)]
pub(in crate::broker) struct Slow {
    since_ms: u64,
    said_ms: u64,
    lost: u64,
    /// Of them, those that were not said yet.
    unsaid: u64,
}

impl Lane {
    /// Notes that `count` messages were lost at its queue; whether they are the first.
    pub(super) fn lose(&mut self, count: u64, now_ms: u64) -> bool {
        if let Some(slow) = &mut self.slow {
            slow.lost += count;
            slow.unsaid += count;
            return false;
        }
        // In the past, so that the first loss is said at the next occasion.
        self.slow = Some(Slow { since_ms: now_ms, said_ms: 0, lost: count, unsaid: count });
        true
    }
}

impl Hub {
    /// Says what there is to say of slow lanes, and forgets those that have caught up.
    pub(super) fn look_at_slow_lanes(&mut self) {
        let now_ms = self.now_ms;
        let mut slow = std::mem::take(&mut self.slow);
        slow.retain(|(id, subscription)| {
            let Some(session) = find(&mut self.sessions, &self.generations, *id) else { return false };
            let peer = session.info.peer.clone();
            let lane = session.lanes.iter_mut().find(|lane| lane.id == *subscription);
            let Some(lane) = lane else { return false };
            let has_room = lane.queue.has_room();
            let Some(state) = &mut lane.slow else { return false };
            if state.unsaid > 0 && (has_room || now_ms >= state.said_ms + REPEAT_MS) {
                let event = serde_json::json!({
                    "state": "slow",
                    "peer": peer,
                    "filter": lane.matcher.describe(),
                    "overflow": lane.queue.overflow(),
                    "queued": lane.queue.depth(),
                    "queued_bytes": lane.queue.depth_bytes(),
                    "lost": state.unsaid,
                    "since_ms": state.since_ms,
                });
                if state.said_ms == 0 {
                    tracing::warn!(%peer, filter = lane.matcher.describe(), "a subscriber is slow and loses messages");
                }
                self.events.later("$sys/slow", event);
                (state.said_ms, state.unsaid) = (now_ms, 0);
            }
            if has_room {
                let event = serde_json::json!({
                    "state": "recovered",
                    "peer": peer,
                    "filter": lane.matcher.describe(),
                    "lost": state.lost,
                    "since_ms": state.since_ms,
                });
                self.events.later("$sys/slow", event);
                lane.slow = None;
            }
            !has_room
        });
        // Lanes that became slow meanwhile: none, as nothing was published.
        self.slow.append(&mut slow);
        self.publish_pending();
    }

    /// Publishes the events that waited.
    pub(super) fn publish_pending(&mut self) {
        for (topic, event) in self.events.take_pending() {
            self.publish_own(topic, &event);
        }
    }
}
