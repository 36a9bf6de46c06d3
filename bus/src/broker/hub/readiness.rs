//! Who receives what, told to those who wait for it; probes through receivers; reports of gates.
//!
//! A probe is a request that goes to a *subscription*: it takes its place in that send queue, behind
//! all that was published before, and the client answers it when its application has come back for
//! more. So it proves the whole path, and that everything before it was taken.

use serde_json::{Value, json};

use super::*;
use crate::broker::readiness::{Asked, GateRow, Question, Readiness, Receiver, Watch};

/// The topic of probes in send queues, so that none stands in the way of a message (`latest_only`).
const PROBE: &str = "$sys/probe";

impl Hub {
    /// Takes a question of `id`; the caller has checked the limits of requests.
    pub(super) fn on_question(
        &mut self,
        id: SessionId,
        request: u64,
        window: u32,
        question: Question,
        block: &Block,
    ) {
        let topic = String::from_utf8_lossy(block.topic()).into_owned();
        // Frames of a stock message, if there are several, are no JSON, and are refused as that.
        let asked = match Asked::read(&block.clone().into_payload()) {
            Ok(asked) => asked,
            Err(text) => {
                return self.end_for(id, request, Status::Failed, "invalid_question", &text, None);
            }
        };
        if !self.may_ask(id, &topic, &asked.topic) {
            let peer = self.info(id).map(|info| info.peer.to_string()).unwrap_or_default();
            let text = format!(
                "`{peer}` may not ask about `{}`: it may neither publish it nor request `{topic}`",
                asked.topic
            );
            return self.refuse_request(id, request, "not_permitted", &topic, &text);
        }
        let held = self.readiness.watches.len() + self.readiness.gates.len();
        if held >= limits::QUESTIONS_HELD_MAX && question != Question::Probe {
            let text = format!("{held} watches and gates are held, the limit");
            return self.end_for(id, request, Status::Busy, "", &text, None);
        }
        match question {
            Question::Receivers => self.watch(id, request, window, asked, block.deadline_ms),
            Question::Probe => self.probe(id, request, &asked, block),
            Question::Gate => self.on_gate(id, request, asked, block.deadline_ms),
        }
    }

    /// Whoever may publish a topic may know who receives it: that is part of publishing it well.
    fn may_ask(&self, id: SessionId, question: &str, topic: &TopicName) -> bool {
        let Some(info) = self.info(id) else { return false };
        let Ok(question) = question.parse::<TopicName>() else { return false };
        let rules = info.permissions.rules(Right::Request);
        let forbidden = rules.deny.iter().any(|filter| filter.matches(&question));
        !forbidden && (rules.permit(&question) || info.permissions.permit(Right::Publish, topic))
    }

    /// Holds a request of which the broker itself is the server.
    fn hold_request(
        &mut self,
        id: SessionId,
        request: u64,
        topic: TopicName,
        deadline_ms: u64,
    ) -> RequestKey {
        let default_deadline_ms = self.now_ms + limits::REQUEST_TIMEOUT.as_millis() as u64;
        let deadline_ms = if deadline_ms == 0 { default_deadline_ms } else { deadline_ms };
        let pending = PendingRequest {
            requester: id,
            requester_id: request,
            server: SessionId::nobody(),
            subscription: 0,
            topic,
            window: limits::REPLY_WINDOW,
            parts: 0,
            probed: None,
        };
        if let Some(session) = self.session_mut(id) {
            session.requests_in_flight += 1;
        }
        self.requests.add(pending, deadline_ms)
    }

    // ---- receivers ------------------------------------------------------------------------

    fn watch(&mut self, id: SessionId, request: u64, window: u32, asked: Asked, deadline_ms: u64) {
        let key = self.hold_request(id, request, asked.topic.clone(), deadline_ms);
        let mut watch = Watch::new(id, request, window, asked);
        let sessions: Vec<SessionId> = self.each_session().map(|(id, _)| id).collect();
        for session in sessions {
            if let Some(receiver) = self.receiver(session, &watch.topic) {
                watch.receivers.insert(session, receiver);
            }
        }
        for (peer, is_there) in &mut watch.peers {
            *is_there = self.each_session().any(|(_, session)| session.info.peer == *peer);
        }
        let state = watch.state();
        let first = watch.tell(state);
        self.readiness.watches.insert(key, watch);
        self.tell(key, first);
    }

    /// How a session receives a topic, if it does.
    pub(in crate::broker) fn receiver(&self, id: SessionId, topic: &TopicName) -> Option<Receiver> {
        let session = self.session(id).filter(|session| !session.is_ending)?;
        let matching = || session.lanes.iter().filter(|lane| !lane.serve && lane.matches(topic));
        // As in `build_route`: the first subscription without a group has the queue.
        let lane = matching().find(|lane| lane.group.is_none()).or_else(|| matching().next())?;
        session.info.permissions.permit(Right::Subscribe, topic).then(|| Receiver {
            peer: session.info.peer.clone(),
            session: id.to_string(),
            kind: session.info.kind,
            subscription: lane.id,
            group: lane.group.clone(),
            overflow: lane.queue.overflow(),
            probes: lane.probes,
        })
    }

    /// What a session receives may have changed.
    pub(super) fn receivers_changed(&mut self, id: SessionId) {
        if self.readiness.watches.is_empty() {
            return;
        }
        let keys: Vec<RequestKey> = self.readiness.watches.keys().copied().collect();
        for key in keys {
            let topic = self.readiness.watches.get(&key).map(|watch| watch.topic.clone());
            let now = topic.and_then(|topic| self.receiver(id, &topic));
            let Some(watch) = self.readiness.watches.get_mut(&key) else { continue };
            if watch.receivers.get(&id) == now.as_ref() {
                continue;
            }
            let before = match now.clone() {
                Some(receiver) => watch.receivers.insert(id, receiver),
                None => watch.receivers.remove(&id),
            };
            let list = |receiver: Option<Receiver>| receiver.into_iter().collect::<Vec<_>>();
            let part = watch.tell(json!({ "left": list(before), "joined": list(now) }));
            self.tell(key, part);
        }
    }

    /// A peer has come, or gone.
    pub(super) fn presence_changed(&mut self, peer: &PeerName) {
        if self.readiness.watches.is_empty() {
            return;
        }
        let now = self.each_session().any(|(_, session)| session.info.peer == *peer);
        let keys: Vec<RequestKey> = self.readiness.watches.keys().copied().collect();
        for key in keys {
            let Some(watch) = self.readiness.watches.get_mut(&key) else { continue };
            let Some(is_there) = watch.peers.get_mut(peer).filter(|is_there| **is_there != now) else {
                continue;
            };
            *is_there = now;
            let part = match now {
                true => watch.tell(json!({ "connected": [peer] })),
                false => watch.tell(json!({ "disconnected": [peer] })),
            };
            self.tell(key, part);
        }
    }

    /// Sends a part of a watch, and its end if there are as many receivers as were asked for.
    fn tell(&mut self, key: RequestKey, part: Option<Value>) {
        let Some(watch) = self.readiness.watches.get(&key) else { return };
        let (requester, requester_id) = (watch.requester, watch.requester_id);
        if watch.is_satisfied() {
            let part = Readiness::part(&watch.state());
            self.remove_request(key);
            return self.end_for(requester, requester_id, Status::Done, "", "", Some(part));
        }
        let Some(part) = part else { return };
        let (header, payload) = Readiness::part(&part);
        let record = Record::Reply { id: requester_id, header, payload };
        if let Some(request) = self.requests.get_mut(key) {
            request.parts += 1;
        }
        let Some(session) = self.session_mut(requester) else { return };
        session.reply_bytes += record.bytes_hint();
        session.replies.push_back(record);
        self.mark_dirty(requester);
    }

    /// A watcher has taken `parts`.
    pub(super) fn credit_watch(&mut self, key: RequestKey, parts: u64) {
        let part = self.readiness.watches.get_mut(&key).and_then(|watch| watch.credit(parts));
        if part.is_some() {
            self.tell(key, part);
        }
    }

    /// What a watch whose time is over still says: a sentence and a last part.
    pub(super) fn last_words(&self, key: RequestKey) -> Option<(String, (Bytes, Bytes))> {
        let watch = self.readiness.watches.get(&key)?;
        Some((watch.progress(), Readiness::part(&watch.state())))
    }

    /// Permissions have changed: those who may not ask any more hear so, the others what has changed.
    pub(super) fn reauthorise_watches(&mut self) {
        let watches: Vec<_> = self
            .readiness
            .watches
            .iter()
            .map(|(key, watch)| (*key, watch.requester, watch.requester_id, watch.topic.clone()))
            .collect();
        for (key, requester, requester_id, topic) in watches {
            if !self.may_ask(requester, "$sys/broker/receivers", &topic) {
                self.remove_request(key);
                let text = format!("`{topic}` may not be asked about any more");
                let asked = "$sys/broker/receivers";
                self.refuse_request(requester, requester_id, "not_permitted", asked, &text);
            }
        }
        let sessions: Vec<SessionId> = self.each_session().map(|(id, _)| id).collect();
        sessions.into_iter().for_each(|id| self.receivers_changed(id));
    }

    // ---- probes ---------------------------------------------------------------------------

    fn probe(&mut self, id: SessionId, request: u64, asked: &Asked, block: &Block) {
        let is_meant = |session: SessionId, peer: &PeerName| {
            asked.peer.as_ref().is_none_or(|wanted| wanted == peer)
                && asked.session.as_ref().is_none_or(|wanted| *wanted == session.to_string())
        };
        let sessions = self.each_session().filter(|(id, session)| is_meant(*id, &session.info.peer));
        let sessions: Vec<SessionId> = sessions.map(|(id, _)| id).collect();
        let found =
            sessions.into_iter().find_map(|session| Some((session, self.receiver(session, &asked.topic)?)));
        let Some((server, receiver)) = found else {
            let whom = asked.peer.as_ref().map(PeerName::as_str).or(asked.session.as_deref());
            let text = format!("`{}` is not subscribed to `{}`", whom.unwrap_or("nobody"), asked.topic);
            return self.end_for(id, request, Status::NoResponders, "absent", &text, None);
        };
        if !receiver.probes {
            let part = self.proof(id, &asked.topic, server, "subscribed");
            return self.end_for(id, request, Status::Done, "", "", Some(part));
        }
        let key = self.hold_request(id, request, asked.topic.clone(), block.deadline_ms);
        if let Some(pending) = self.requests.get_mut(key) {
            (pending.server, pending.subscription) = (server, receiver.subscription);
            pending.probed = Some(asked.topic.clone());
        }
        // Behind those that wait already: requests stand in a queue in the order of their keys.
        self.readiness.waiting.push(key);
        self.push_waiting_probes(server, receiver.subscription);
    }

    /// Puts a probe into its queue; `false` if that is too full now.
    fn push_probe(&mut self, key: RequestKey) -> bool {
        let Some(pending) = self.requests.get_mut(key) else { return true };
        let (requester, server, subscription) = (pending.requester, pending.server, pending.subscription);
        let Some(session) = self.session(server) else { return true };
        let subscriber = Some(session.info.peer.clone());
        let lane = session.lanes.iter().find(|lane| lane.id == subscription);
        if lane.is_some_and(|lane| !lane.queue.has_room()) {
            return false;
        }
        let publisher = self.info(requester).map(|info| info.peer.clone());
        let topic: TopicName = PROBE.parse().expect("the constant is a topic name");
        let row = self.ledger.row(RowKey { publisher, topic: Some(topic.clone()), subscriber });
        self.sequence += 1;
        let mut block = Block::new(&topic, b"", b"");
        (block.sequence, block.origin) = (self.sequence, self.origin_of(requester));
        // It is no message of any subscription: if it is lost, there is no gap.
        let subscriptions = SubscriptionIds::new();
        let target = Target { session: server, lane: subscription, subscriptions, row };
        if !self.push(&target, block, Some(key), requester) {
            self.end_request(key, Status::Busy, "", "the subscriber's queue is full");
        }
        true
    }

    /// A queue may have room for the probes that wait for it.
    pub(super) fn push_waiting_probes(&mut self, id: SessionId, subscription: u32) {
        if self.readiness.waiting.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.readiness.waiting);
        for key in waiting {
            let is_its = self
                .requests
                .get_mut(key)
                .is_some_and(|pending| pending.server == id && pending.subscription == subscription);
            if !is_its || !self.push_probe(key) {
                self.readiness.waiting.push(key);
            }
        }
    }

    /// What the broker answers for a subscription whose client has answered a probe.
    pub(super) fn proof(
        &mut self,
        requester: SessionId,
        topic: &TopicName,
        server: SessionId,
        proof: &str,
    ) -> (Bytes, Bytes) {
        let receiver = self.receiver(server, topic);
        let publisher = self.info(requester).map(|info| info.peer.clone());
        let subscriber = receiver.as_ref().map(|receiver| receiver.peer.clone());
        let row = RowKey { publisher, topic: Some(topic.clone()), subscriber };
        Readiness::part(&json!({
            "topic": topic,
            "subscriber": receiver,
            "proof": proof,
            "dropped": self.ledger.counts_of(&row).map_or(0, |counts| counts.dropped.iter().sum::<u64>()),
        }))
    }

    // ---- gates ----------------------------------------------------------------------------

    fn on_gate(&mut self, id: SessionId, request: u64, asked: Asked, deadline_ms: u64) {
        let place = (id, asked.gate);
        let before = self.readiness.gates.get(&place).map(|gate| gate.report["state"].clone());
        let mut report = asked.value;
        if let (Some(row), Some(peer)) = (report.as_object_mut(), self.info(id).map(|info| &info.peer)) {
            row.insert("peer".to_owned(), json!(peer));
        }
        if before.as_ref() != Some(&report["state"]) {
            self.publish_own("$sys/gates", &report);
        }
        if asked.is_last {
            self.readiness.gates.remove(&place);
            return self.end_for(id, request, Status::Done, "", "", None);
        }
        let key = Some(self.hold_request(id, request, asked.topic, deadline_ms));
        if let Some(GateRow { key: Some(earlier), .. }) =
            self.readiness.gates.insert(place, GateRow { report, key })
        {
            self.end_request(earlier, Status::Done, "", "");
        }
    }

    /// Gates that have told something may tell more: so often, and not with every message.
    pub(super) fn answer_gates(&mut self) {
        for key in self.readiness.take_told() {
            self.end_request(key, Status::Done, "", "");
        }
    }

    /// What gates say of themselves, for the tool.
    pub(in crate::broker) fn gates(&self) -> Value {
        Value::Array(self.readiness.gates.values().map(|gate| gate.report.clone()).collect())
    }
}
