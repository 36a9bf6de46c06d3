//! The overflow policy `wait`: holding publishers of a topic while a subscriber is full.

use super::*;

impl Hub {
    pub(super) fn hold(&mut self, topic: TopicName, target: &Target, publisher: SessionId) {
        self.held.entry(topic.clone()).or_default().insert((target.session, target.lane));
        if let Some(session) = self.session_mut(publisher)
            && session.held.insert(topic.clone())
        {
            let scope = CreditScope::Topic { topic: topic.to_string(), granted: false };
            self.send_control(publisher, Record::Credit { scope });
        }
    }

    /// Whether a session is held on any topic. Stock publishers know no credit: their socket is
    /// not read while this is so.
    pub fn is_held(&self, id: SessionId) -> bool {
        self.session(id).is_some_and(|session| !session.held.is_empty())
    }

    pub(super) fn release_held_by(&mut self, id: SessionId, lane: u32) {
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
        let mut released = Vec::new();
        self.held.retain(|topic, waiting_for| {
            waiting_for.remove(&(id, lane));
            if waiting_for.is_empty() {
                released.push(topic.clone());
            }
            !waiting_for.is_empty()
        });
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
