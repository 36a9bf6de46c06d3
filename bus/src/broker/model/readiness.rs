//! Who receives a topic, told to those who wait for it, and probes through receivers, as the model has them.

use serde_json::json;

use super::*;

/// The topic of probes in a queue.
pub(super) const PROBE: &str = "$sys/probe";

/// Parts of a watch that may be sent and not yet taken: so few that windows close.
pub(super) const WATCH_PARTS: u64 = 3;

/// The server of a request that the broker itself answers.
const BROKER: usize = usize::MAX;

/// One who wants to know who receives a topic, and what it has been told.
#[derive(Clone, Debug)]
pub(super) struct ModelWatch {
    pub(super) key: u64,
    requester: usize,
    id: u64,
    topic: TopicName,
    at_least: Option<usize>,
    receivers: BTreeMap<usize, Value>,
    peers: BTreeMap<usize, bool>,
    parts: u64,
    credited: u64,
    is_behind: bool,
}

impl ModelWatch {
    pub(super) fn state(&self) -> Value {
        let connected = self.peers.iter().filter(|(_, is_there)| **is_there);
        let connected: Vec<String> = connected.map(|(peer, _)| format!("peer{peer}")).collect();
        let subscribers: Vec<&Value> = self.receivers.values().collect();
        json!({ "topic": self.topic, "subscribers": subscribers, "connected": connected })
    }

    fn has_window(&self) -> bool {
        self.parts - self.credited < WATCH_PARTS
    }
}

impl Model {
    /// How a session gets what is published on a topic: through the first subscription without a group, else the first.
    fn receiver(&self, at: usize, topic: &TopicName) -> Option<Value> {
        let session = self.sessions[at].as_ref().filter(|_| !self.ending.contains(&at))?;
        let mut lanes: Vec<&ModelLane> = session.lanes.iter().collect();
        lanes.retain(|lane| !lane.serve && lane.filter.matches(topic));
        lanes.sort_by_key(|lane| lane.group.is_some());
        let lane = lanes.first().filter(|_| session.permissions.permit(Right::Subscribe, topic))?;
        Some(json!({
            "peer": session.peer,
            "subscription": lane.id,
            "group": lane.group,
            "overflow": lane.overflow,
            "probes": lane.probes,
        }))
    }

    /// Whether the broker takes a question about `topic`; if not, the answer is given.
    fn takes_question(&mut self, at: usize, id: u64, topic: &TopicName) -> bool {
        let is_known = self.requests.iter().any(|request| request.requester == at && request.id == id);
        let session = self.sessions[at].as_mut().unwrap();
        if is_known {
            session.control.push_back(Sent::Denied { operation: Operation::Request });
            return false;
        }
        let may = session.permissions.permit(Right::Publish, topic);
        if !may {
            session.replies.push_back(Sent::End { id, status: Status::Denied, says: Value::Null });
        }
        may
    }

    fn hold_question(&mut self, at: usize, id: u64, deadline_ms: u64) -> u64 {
        self.next_key += 1;
        let deadline_ms = if deadline_ms == 0 { u64::MAX } else { deadline_ms };
        let (key, server, lane) = (self.next_key, BROKER, 0);
        self.requests.push(ModelRequest { key, requester: at, id, server, lane, deadline_ms, probed: None });
        key
    }

    // ---- watches --------------------------------------------------------------------------

    pub(super) fn watch(
        &mut self,
        at: usize,
        id: u64,
        (topic, deadline_ms): (&TopicName, u64),
        at_least: Option<usize>,
        peers: &[usize],
    ) {
        if !self.takes_question(at, id, topic) {
            return;
        }
        let key = self.hold_question(at, id, deadline_ms);
        let receivers = (0..self.sessions.len()).filter_map(|at| Some((at, self.receiver(at, topic)?)));
        let watch = ModelWatch {
            key,
            requester: at,
            id,
            topic: topic.clone(),
            at_least,
            receivers: receivers.collect(),
            peers: peers.iter().map(|peer| (*peer, self.sessions[*peer].is_some())).collect(),
            parts: 0,
            credited: 0,
            is_behind: false,
        };
        let state = watch.state();
        self.watches.push(watch);
        self.tell(key, state);
    }

    fn tell(&mut self, key: u64, change: Value) {
        let watch = self.watches.iter_mut().find(|watch| watch.key == key).unwrap();
        if let Some(count) = watch.at_least {
            // One answer, once there are so many.
            if watch.receivers.len() >= count {
                let state = watch.state();
                self.end_saying(key, Status::Done, state);
            }
        } else if watch.has_window() {
            watch.parts += 1;
            let (requester, id) = (watch.requester, watch.id);
            let session = self.sessions[requester].as_mut().unwrap();
            session.replies.push_back(Sent::Reply { id, says: change });
        } else {
            watch.is_behind = true;
        }
    }

    /// Tells every watch what has changed for a session.
    pub(super) fn receivers_changed(&mut self, at: usize) {
        for mut watch in self.watches.clone() {
            let now = self.receiver(at, &watch.topic);
            let before = watch.receivers.remove(&at);
            if before == now {
                continue;
            }
            watch.receivers.extend(now.clone().map(|now| (at, now)));
            let key = watch.key;
            *self.watches.iter_mut().find(|known| known.key == key).unwrap() = watch;
            let (left, joined): (Vec<Value>, Vec<Value>) =
                (before.into_iter().collect(), now.into_iter().collect());
            self.tell(key, json!({ "left": left, "joined": joined }));
        }
    }

    pub(super) fn presence_changed(&mut self, at: usize) {
        let is_there = self.sessions[at].is_some();
        let word = if is_there { "connected" } else { "disconnected" };
        for watch in self.watches.clone() {
            if watch.peers.get(&at).is_some_and(|was_there| *was_there != is_there) {
                let known = self.watches.iter_mut().find(|known| known.key == watch.key).unwrap();
                known.peers.insert(at, is_there);
                self.tell(watch.key, json!({ word: [format!("peer{at}")] }));
            }
        }
    }

    /// A requester has taken parts: its own business of a watch, else the server's.
    pub(super) fn grant(&mut self, at: usize, id: u64, parts: u64) {
        let is_it = |request: &&ModelRequest| request.requester == at && request.id == id;
        let Some(request) = self.requests.iter().find(is_it) else { return };
        if let Some(Some(server)) = self.sessions.get_mut(request.server) {
            return server.control.push_back(Sent::Grant { key: request.key, parts });
        }
        let watch = self.watches.iter_mut().find(|watch| watch.key == request.key).unwrap();
        watch.credited = watch.credited.max(parts.min(watch.parts));
        if watch.is_behind && watch.has_window() {
            watch.is_behind = false;
            let (key, state) = (watch.key, watch.state());
            self.tell(key, state);
        }
    }

    /// Rights have changed.
    pub(super) fn reauthorise_watches(&mut self) {
        for watch in self.watches.clone() {
            let requester = self.sessions[watch.requester].as_ref().unwrap();
            if !requester.permissions.permit(Right::Publish, &watch.topic) {
                self.end(watch.key, Status::Denied);
            }
        }
        (0..self.sessions.len()).for_each(|at| self.receivers_changed(at));
    }

    // ---- probes ---------------------------------------------------------------------------

    pub(super) fn probe(
        &mut self,
        at: usize,
        id: u64,
        (topic, deadline_ms): (&TopicName, u64),
        peer: Option<usize>,
    ) {
        if !self.takes_question(at, id, topic) {
            return;
        }
        let mut meant = (0..self.sessions.len()).filter(|at| peer.is_none_or(|peer| peer == *at));
        let found = meant.find_map(|at| Some((at, self.receiver(at, topic)?)));
        let (status, says) = match &found {
            None => (Status::NoResponders, Value::Null),
            Some((server, receiver)) if receiver["probes"] == false => {
                (Status::Done, self.proof(at, topic, *server, "subscribed"))
            }
            Some((server, receiver)) => {
                let key = self.hold_question(at, id, deadline_ms);
                let request = self.requests.last_mut().unwrap();
                (request.server, request.probed) = (*server, Some(topic.clone()));
                request.lane = receiver["subscription"].as_u64().unwrap() as u32;
                if !self.push_probe(key) {
                    self.waiting.push(key);
                }
                return;
            }
        };
        self.sessions[at].as_mut().unwrap().replies.push_back(Sent::End { id, status, says });
    }

    /// What is said of a subscription that a probe was for.
    pub(super) fn proof(&self, requester: usize, topic: &TopicName, server: usize, proof: &str) -> Value {
        let name = |at: usize| format!("peer{at}");
        let receiver = self.receiver(server, topic);
        let subscriber = receiver.as_ref().map(|_| name(server));
        let row = self.ledger.get(&(name(requester), topic.to_string(), subscriber));
        let dropped = row.map_or(0, |counts| counts.dropped.iter().sum::<u64>());
        json!({ "topic": topic, "subscriber": receiver, "proof": proof, "dropped": dropped })
    }

    /// A probe takes its place behind what was published before, as soon as its queue is at most half full.
    fn push_probe(&mut self, key: u64) -> bool {
        let request = self.requests.iter().find(|request| request.key == key).unwrap().clone();
        if !self.lane(request.server, request.lane).has_room() {
            return false;
        }
        let publisher = self.sessions[request.requester].as_ref().unwrap().peer.clone();
        let queued = Queued {
            topic: PROBE.to_owned(),
            publisher,
            subscriptions: Vec::new(),
            number: 0,
            request: Some(key),
            deadline_ms: 0,
            retained: false,
            lost_behind: Vec::new(),
        };
        self.probes += 1;
        assert!(self.push(request.server, request.lane, queued, None), "there was room");
        true
    }

    pub(super) fn push_waiting_probes(&mut self, at: usize, lane: u32) {
        for key in std::mem::take(&mut self.waiting) {
            let request = self.requests.iter().find(|request| request.key == key).unwrap();
            if (request.server, request.lane) != (at, lane) || !self.push_probe(key) {
                self.waiting.push(key);
            }
        }
    }
}
