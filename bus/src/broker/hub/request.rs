//! Requests, their answers, deadlines and cancellation.

use super::*;
use crate::broker::readiness::Question;

impl Hub {
    /// Takes a request whose requester takes `window` parts before its first credit.
    pub(super) fn on_request(&mut self, id: SessionId, request: u64, window: u32, mut block: Block) {
        let text = String::from_utf8_lossy(block.topic()).into_owned();
        if self.requests.key_of(id, request).is_some() {
            // No `reply-end`, which would end the one that has the id.
            let explanation = format!("request id {request} is in use");
            return self.deny(id, Operation::Request, request, "invalid_id", &text, &explanation);
        }
        let topic = match TopicName::from_bytes(block.topic()) {
            Ok(topic) => topic,
            Err(error) => {
                return self.refuse_request(id, request, "invalid_topic", &text, &error.to_string());
            }
        };
        let Some(session) = self.session(id) else { return };
        let (requester, permissions) = (session.info.peer.clone(), Arc::clone(&session.info.permissions));
        let (in_flight, unread_bytes) = (session.requests_in_flight, session.reply_bytes);
        let payload_bytes = block.payload_bytes();
        let statistics = self.statistics.topic(&topic, self.now_ms);
        let question = Question::of(&topic);
        if question.is_none() && !permissions.permit(Right::Request, &topic) {
            self.statistics.count_denied(statistics);
            let explanation = format!("`{requester}` may not request `{topic}`");
            return self.refuse_request(id, request, "not_permitted", &text, &explanation);
        }
        if payload_bytes > limits::PAYLOAD_BYTES_MAX {
            let explanation = format!(
                "payload has {payload_bytes} bytes; the limit is {} bytes",
                limits::PAYLOAD_BYTES_MAX
            );
            return self.refuse_request(id, request, "too_large", &text, &explanation);
        }
        self.statistics.count(statistics, [payload_bytes], self.now_ms);
        self.count_delay(statistics, codec::published_at_ns(block.header()));
        self.statistics.count_request(statistics);
        let origin = self.origin_of(id);
        self.statistics.published_by(statistics, origin);
        if let Some(session) = self.session_mut(id) {
            session.counts.published += 1;
        }
        if topic.is_reserved() && unread_bytes > limits::CONTROL_QUEUE_BYTES {
            let explanation =
                format!("{unread_bytes} bytes of answers wait for this session; read them first");
            return self.end_for(id, request, Status::Busy, "", &explanation, None);
        }
        if let Some(answer) = crate::broker::control::answer(self, &topic, &block.payload()) {
            return match answer {
                Ok(part) => self.end_for(id, request, Status::Done, "", "", Some(part)),
                Err(text) => self.end_for(id, request, Status::Failed, "invalid_question", &text, None),
            };
        }
        if in_flight >= limits::REQUESTS_PER_SESSION_MAX {
            let explanation = format!("{in_flight} requests of this session are in flight, the limit");
            return self.end_for(id, request, Status::Busy, "", &explanation, None);
        }
        if let Some(question) = question {
            return self.on_question(id, request, window, question, &block);
        }
        if block.deadline_ms != 0 && block.deadline_ms <= self.now_ms {
            let row = RowKey { publisher: Some(requester), topic: Some(topic.clone()), subscriber: None };
            let row = self.ledger.row(row);
            self.ledger.dropped(row, 1, DropReason::Expired);
            self.note_drop(row, 1, DropReason::Expired);
            let explanation = format!("the deadline of this request for `{topic}` had passed when it came");
            return self.end_for(id, request, Status::TimedOut, "expired", &explanation, None);
        }
        let servers = self.servers(&topic, &requester);
        if servers.is_empty() {
            let explanation = format!("nobody serves `{topic}`");
            return self.end_for(id, request, Status::NoResponders, "", &explanation, None);
        }
        self.sequence += 1;
        block.sequence = self.sequence;
        block.origin = self.origin_of(id);
        let first = (self.sequence as usize) % servers.len();
        let order = (0..servers.len()).map(|step| &servers[(first + step) % servers.len()]);
        let load = |target: &&Target| (self.is_full_for(target, block.bytes()), self.depth(target));
        let Some(target) = order.min_by_key(load) else { return };
        let default_deadline_ms = self.now_ms + limits::REQUEST_TIMEOUT.as_millis() as u64;
        let deadline_ms = if block.deadline_ms == 0 { default_deadline_ms } else { block.deadline_ms };
        let (server, subscription) = (target.session, target.lane);
        let pending = PendingRequest {
            requester: id,
            requester_id: request,
            server,
            subscription,
            topic,
            window,
            parts: 0,
            probed: None,
        };
        let key = self.requests.add(pending, deadline_ms);
        if let Some(session) = self.session_mut(id) {
            session.requests_in_flight += 1;
        }
        if !self.push(target, block, Some(key), id) {
            self.end_request(key, Status::Busy, "", "the server's queue is full");
        }
    }

    /// Who serves a topic: session, subscription, name.
    pub(in crate::broker) fn serving(&self, topic: &TopicName) -> Vec<(SessionId, u32, PeerName)> {
        let mut found = Vec::new();
        for (session_id, session) in self.each_session() {
            let lane = session.lanes.iter().find(|lane| lane.serve && lane.matcher.matches(topic));
            if let Some(lane) =
                lane.filter(|_| !session.is_ending && session.info.permissions.permit(Right::Serve, topic))
            {
                found.push((session_id, lane.id, session.info.peer.clone()));
            }
        }
        found
    }

    pub(super) fn servers(&mut self, topic: &TopicName, requester: &PeerName) -> Vec<Target> {
        let found = self.serving(topic);
        let target = |(session, lane, server)| {
            let (publisher, topic) = (Some(requester.clone()), Some(topic.clone()));
            let row = self.ledger.row(RowKey { publisher, topic, subscriber: Some(server) });
            Target { session, lane, subscriptions: SubscriptionIds::from_slice(&[lane]), row }
        };
        found.into_iter().map(target).collect()
    }

    pub(super) fn on_reply(&mut self, server: SessionId, key: RequestKey, header: Bytes, payload: Bytes) {
        let Some(request) = self.requests.get_mut(key).filter(|request| request.server == server) else {
            return;
        };
        let (requester, requester_id) = (request.requester, request.requester_id);
        let record = Record::Reply { id: requester_id, header, payload };
        let bytes = record.bytes_hint();
        let Some(session) = self.session_mut(requester) else { return };
        if session.reply_bytes + bytes > limits::REPLY_QUEUE_BYTES && session.reply_bytes > 0 {
            let text = format!("{} bytes of replies wait and are not read", session.reply_bytes);
            self.send_control(server, Record::Cancel { id: key.0 });
            return self.end_request(key, Status::Failed, "slow_consumer", &text);
        }
        session.reply_bytes += bytes;
        session.replies.push_back(record);
        self.mark_dirty(requester);
    }

    pub(super) fn on_reply_end(
        &mut self,
        server: SessionId,
        key: RequestKey,
        status: Status,
        (code, text): (String, String),
        part: (Bytes, Bytes),
    ) {
        if self.requests.get_mut(key).is_none_or(|request| request.server != server) {
            return;
        }
        // A server may end with done or failed; every other status is the broker's to say.
        let status = if status == Status::Done { Status::Done } else { Status::Failed };
        let Some(request) = self.remove_request(key) else { return };
        let part = match &request.probed {
            Some(topic) => self.proof(request.requester, topic, server, "proven"),
            None => part,
        };
        self.end_for(request.requester, request.requester_id, status, &code, &text, Some(part));
    }

    /// Ends a request on the broker's word.
    pub(super) fn end_request(&mut self, key: RequestKey, status: Status, code: &str, text: &str) {
        if let Some(request) = self.remove_request(key) {
            self.end_for(request.requester, request.requester_id, status, code, text, None);
        }
    }

    pub(super) fn remove_request(&mut self, key: RequestKey) -> Option<PendingRequest> {
        let request = self.requests.remove(key)?;
        self.readiness.forget(key);
        if let Some(session) = self.session_mut(request.requester) {
            session.requests_in_flight = session.requests_in_flight.saturating_sub(1);
        }
        Some(request)
    }

    /// Sends a request's end, behind its parts.
    pub(super) fn end_for(
        &mut self,
        id: SessionId,
        request: u64,
        status: Status,
        code: &str,
        text: &str,
        part: Option<(Bytes, Bytes)>,
    ) {
        let (header, payload) = part.unwrap_or_default();
        let record = Record::ReplyEnd {
            id: request,
            status,
            code: code.to_owned(),
            text: text.to_owned(),
            header,
            payload,
        };
        let Some(session) = self.session_mut(id) else { return };
        session.reply_bytes += record.bytes_hint();
        session.replies.push_back(record);
        session.ends_waiting += 1;
        let ends_waiting = session.ends_waiting;
        self.mark_dirty(id);
        if ends_waiting > limits::ENDS_WAITING_MAX {
            let text = format!("{ends_waiting} answers wait and are not read");
            self.end(id, Ending { code: "control_queue_full", text });
        }
    }

    pub(super) fn refuse_request(
        &mut self,
        id: SessionId,
        request: u64,
        code: &'static str,
        topic: &str,
        text: &str,
    ) {
        self.note_denial(id, Operation::Request, code, topic, text);
        self.end_for(id, request, Status::Denied, code, text, None);
    }

    /// The requester wants no more: the server is told, unless it never got the request.
    pub(super) fn cancel(&mut self, key: RequestKey) {
        let Some(request) = self.remove_request(key) else { return };
        self.end_for(
            request.requester,
            request.requester_id,
            Status::Cancelled,
            "",
            "the requester cancelled it",
            None,
        );
        self.recall(key, &request);
    }

    pub(super) fn recall(&mut self, key: RequestKey, request: &PendingRequest) {
        let Some(server) = self.session_mut(request.server) else { return };
        let lane = server.lanes.iter_mut().find(|lane| lane.id == request.subscription);
        match lane.and_then(|lane| lane.queue.withdraw(key)) {
            Some(row) => {
                self.ledger.dropped_from_queue(row, 1, DropReason::Expired);
                // What was lost behind it may be due now, and somebody may have waited for its place.
                self.mark_dirty(request.server);
                self.make_use_of_room(request.server, request.subscription);
            }
            None => self.send_control(request.server, Record::Cancel { id: key.0 }),
        }
    }

    pub(super) fn on_request_credit(&mut self, id: SessionId, request: u64, parts: u64) {
        let Some(key) = self.requests.key_of(id, request) else { return };
        let Some(server) = self.requests.get_mut(key).map(|request| request.server) else { return };
        if server == SessionId::nobody() {
            return self.credit_watch(key, parts);
        }
        self.send_control(server, Record::Credit { scope: CreditScope::Request { id: key.0, parts } });
    }

    /// Stock requesters know no credit: the broker grants it as their parts leave.
    pub(super) fn credit_for_stock(&mut self, id: SessionId, record: &Record) {
        if let Record::Reply { id: request, .. } = record
            && let Some(key) = self.requests.key_of(id, *request)
            && let Some(pending) = self.requests.get_mut(key)
        {
            pending.parts += 1;
            let parts = pending.parts;
            self.on_request_credit(id, *request, parts);
        }
    }
}
