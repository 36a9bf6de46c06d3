//! The overflow policy `wait`: holding publishers of a topic while a subscriber is full.

use super::*;

/// How often it is said whether a topic is held. Under load it is held and released many times a second.
const REPEAT_MS: u64 = 1000;

/// What was said of a topic that is held now and then.
#[derive(Debug)]
pub(super) struct Holds {
    said_ms: u64,
    waits_for: Option<PeerName>,
    /// How often it was held since.
    unsaid: u64,
}

impl Hub {
    fn note_hold(&mut self, topic: &TopicName, target: &Target) {
        if let Some(holds) = self.holds.get_mut(topic) {
            holds.unsaid += 1;
            return;
        }
        let waits_for = self.session(target.session).map(|session| session.info.peer.clone());
        let event =
            serde_json::json!({ "state": "held", "topic": topic, "waits_for": waits_for, "holds": 1 });
        self.events.later("$sys/held", event);
        self.holds.insert(topic.clone(), Holds { said_ms: self.now_ms, waits_for, unsaid: 0 });
    }

    /// Says whether the topics that were held still are, a second after it was said last.
    pub(super) fn look_at_holds(&mut self) {
        let (held, events, now_ms) = (&self.held, &mut self.events, self.now_ms);
        self.holds.retain(|topic, holds| {
            if now_ms < holds.said_ms + REPEAT_MS {
                return true;
            }
            let is_held = held.contains_key(topic);
            if !is_held || holds.unsaid > 0 {
                let state = if is_held { "held" } else { "released" };
                let (waits_for, unsaid) = (&holds.waits_for, holds.unsaid);
                let event = serde_json::json!({
                    "state": state, "topic": topic, "waits_for": waits_for, "holds": unsaid,
                });
                events.later("$sys/held", event);
            }
            (holds.said_ms, holds.unsaid) = (now_ms, 0);
            is_held
        });
    }

    pub(super) fn hold(&mut self, topic: TopicName, target: &Target, publisher: SessionId) {
        if !self.held.contains_key(&topic) {
            self.note_hold(&topic, target);
        }
        self.held.entry(topic.clone()).or_default().insert((target.session, target.lane));
        if let Some(session) = self.session_mut(publisher)
            && session.held.insert(topic.clone())
        {
            let is_first = session.held.len() == 1;
            let scope = CreditScope::Topic { topic: topic.to_string(), granted: false };
            self.send_control(publisher, Record::Credit { scope });
            if is_first && let Some(lane) = self.lane_mut(target.session, target.lane) {
                lane.queue.expect_overrun();
            }
        }
    }

    fn lane_mut(&mut self, id: SessionId, lane: u32) -> Option<&mut Lane> {
        self.session_mut(id)?.lanes.iter_mut().find(|candidate| candidate.id == lane)
    }

    /// Whether publishers of a topic are held.
    pub(in crate::broker) fn is_topic_held(&self, topic: &TopicName) -> bool {
        self.held.contains_key(topic)
    }

    /// Whether a session is held on any topic. Stock publishers know no credit: their socket is
    /// not read while this is so.
    pub fn is_held(&self, id: SessionId) -> bool {
        self.session(id).is_some_and(|session| !session.held.is_empty())
    }

    /// A queue may have room: for publishers that are held, and for probes that wait.
    pub(super) fn make_use_of_room(&mut self, id: SessionId, lane: u32) {
        self.release_held_by(id, lane);
        self.push_waiting_probes(id, lane);
    }

    fn release_held_by(&mut self, id: SessionId, lane: u32) {
        if self.held.is_empty() {
            return;
        }
        let lanes = self.session(id).map(|session| &session.lanes);
        let has_room = lanes
            .and_then(|lanes| lanes.iter().find(|candidate| candidate.id == lane))
            .is_none_or(|lane| lane.queue.has_room());
        if has_room {
            self.release_held(id, lane);
        }
    }

    pub(super) fn release_held(&mut self, id: SessionId, lane: u32) {
        if let Some(lane) = self.lane_mut(id, lane) {
            lane.queue.forget_overruns();
        }
        let mut released = Vec::new();
        self.held.retain(|topic, waiting_for| {
            waiting_for.remove(&(id, lane));
            if waiting_for.is_empty() {
                released.push(topic.clone());
            }
            !waiting_for.is_empty()
        });
        // In one order for everybody.
        released.sort_unstable();
        for topic in released {
            let ids: Vec<SessionId> = self.each_session().map(|(id, _)| id).collect();
            for id in ids {
                if let Some(session) = self.session_mut(id)
                    && session.held.remove(&topic)
                {
                    let scope = CreditScope::Topic { topic: topic.to_string(), granted: true };
                    self.send_control(id, Record::Credit { scope });
                }
            }
        }
    }
}
