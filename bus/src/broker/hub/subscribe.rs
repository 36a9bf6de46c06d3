//! Subscriptions, served filters and their credit.

use super::*;

fn wait_not_permitted(peer: &PeerName) -> String {
    format!("`{peer}` may not hold publishers; give it `wait = true`")
}

impl Hub {
    pub(super) fn on_subscribe(&mut self, id: SessionId, spec: SubscribeSpec) {
        let (operation, right) = match spec.serve {
            true => (Operation::Serve, Right::Serve),
            false => (Operation::Subscribe, Right::Subscribe),
        };
        let reference = u64::from(spec.id);
        let Some(session) = self.session(id) else { return };
        let filter = match spec.filter.parse::<TopicFilter>() {
            Ok(filter) => filter,
            Err(error) => {
                return self.deny(
                    id,
                    operation,
                    reference,
                    "invalid_filter",
                    &spec.filter,
                    &error.to_string(),
                );
            }
        };
        if spec.id == 0 || session.lanes.iter().any(|lane| lane.id == spec.id) {
            let text = format!("subscription id {} is zero or in use", spec.id);
            return self.deny(id, operation, reference, "invalid_id", &spec.filter, &text);
        }
        if session.lanes.len() >= limits::SUBSCRIPTIONS_PER_SESSION_MAX {
            let text =
                format!("a session has at most {} subscriptions", limits::SUBSCRIPTIONS_PER_SESSION_MAX);
            return self.deny(id, operation, reference, "too_many", &spec.filter, &text);
        }
        let permissions = Arc::clone(&session.info.permissions);
        let rules = permissions.rules(right);
        let concrete = spec.filter.parse::<TopicName>().ok();
        let possible = match &concrete {
            Some(topic) => rules.permit(topic),
            None => rules.allow.iter().any(|allowed| allowed.overlaps(&filter)),
        };
        if !possible {
            let text = format!("`{}` may not {} `{}`", session.info.peer, operation.as_str(), spec.filter);
            return self.deny(id, operation, reference, "not_permitted", &spec.filter, &text);
        }
        if spec.overflow == Overflow::Wait && !permissions.wait {
            let text = wait_not_permitted(&session.info.peer);
            return self.deny(id, operation, reference, "wait_not_permitted", &spec.filter, &text);
        }
        let form = match session.info.kind {
            SessionKind::Native => Form::Wire,
            SessionKind::Local => Form::Local,
            _ => Form::Values,
        };
        let (messages_max, bytes_max) = self.bounds.of_queue(spec.queue_messages_max, spec.queue_bytes_max);
        let queue = SendQueue::new(spec.overflow, form, messages_max, bytes_max);
        let lane = Lane {
            serve: spec.serve,
            probes: spec.probes,
            group: (!spec.group.is_empty()).then_some(spec.group),
            ..Lane::new(spec.id, Matcher::Filter(filter.clone()), queue)
        };
        if let Some(session) = self.session_mut(id) {
            let reserved = lane.matcher.reserved();
            session.lanes.push(lane);
            self.reserved_matchers += reserved;
        }
        self.route_generation += 1;
        self.send_control(id, Record::Subscribed { id: spec.id, from_sequence: self.sequence + 1 });
        if spec.retained && !spec.serve {
            self.send_retained(id, spec.id, &filter);
        }
        self.receivers_changed(id);
    }

    pub(super) fn send_retained(&mut self, id: SessionId, lane: u32, filter: &TopicFilter) {
        let Some(session) = self.session(id) else { return };
        let (subscriber, permissions) = (session.info.peer.clone(), Arc::clone(&session.info.permissions));
        let mut values: Vec<(TopicName, Block)> = self
            .retained
            .iter()
            .filter(|(topic, _)| filter.matches(topic) && permissions.permit(Right::Subscribe, topic))
            .map(|(topic, block)| (topic.clone(), block.clone()))
            .collect();
        values.sort_by_key(|(_, block)| block.sequence);
        for (topic, mut block) in values {
            block.flags = (block.flags & Block::PARTS) | Block::RETAIN;
            let publisher = self.origins.get(block.origin as usize).cloned();
            let row = self.ledger.row(RowKey {
                publisher,
                topic: Some(topic),
                subscriber: Some(subscriber.clone()),
            });
            let target =
                Target { session: id, lane, subscriptions: SubscriptionIds::from_slice(&[lane]), row };
            // Nobody is held for it: it was published long ago.
            self.push(&target, block, None, SessionId::nobody());
        }
    }

    pub(super) fn on_unsubscribe(&mut self, id: SessionId, subscription: u32) {
        let Some(session) = self.session_mut(id) else { return };
        let Some(at) = session.lanes.iter().position(|lane| lane.id == subscription) else { return };
        let mut lane = session.lanes.remove(at);
        session.next_lane = 0;
        for (other, count) in lane.queue.take_lost_beside() {
            if let Some(other) = session.lanes.iter_mut().find(|lane| lane.id == other) {
                other.queue.lose_elsewhere(count);
            }
        }
        self.route_generation += 1;
        self.mark_dirty(id);
        let shared = lane.queue.take_shared(&mut self.spare_chunks);
        self.settle_lane(id, &mut lane, DropReason::Unsubscribed);
        shared.into_iter().for_each(|entry| self.hand_over(id, entry));
        for key in
            self.requests.matching(|request| request.server == id && request.subscription == subscription)
        {
            self.end_request(key, Status::ServerGone, "", "the server stopped serving the topic");
        }
        self.receivers_changed(id);
    }

    /// A message whose subscription has ended goes to the next one of the session that it matches.
    fn hand_over(&mut self, id: SessionId, mut entry: Entry) {
        let Some(session) = find(&mut self.sessions, &self.generations, id) else { return };
        entry.subscriptions.retain(|subscription| session.lanes.iter().any(|lane| lane.id == *subscription));
        let row = entry.row;
        let heir = entry.subscriptions.first().copied();
        let Some(lane) = session.lanes.iter_mut().find(|lane| Some(lane.id) == heir) else {
            return self.ledger.dropped_from_queue(row, 1, DropReason::Unsubscribed);
        };
        let mut dropped: Vec<Dropped> = Vec::new();
        let outcome = lane.queue.push(entry, &mut self.spare_chunks, &mut dropped);
        // Its publisher is held, if need be, by its next message.
        if matches!(outcome, Pushed::Refused | Pushed::Disconnect) {
            dropped.push((row, None, DropReason::SlowConsumer));
        }
        session.counts.dropped += dropped.len() as u64;
        for (row, _, reason) in dropped {
            self.ledger.dropped_from_queue(row, 1, reason);
        }
        if outcome == Pushed::Disconnect {
            let text = "its send queue was full and its policy is `disconnect`".to_owned();
            self.end(id, Ending { code: "slow_consumer", text });
        }
        self.mark_dirty(id);
    }

    /// After an edit of a session's rights: what waits and may not be received any more is not sent.
    pub(super) fn withhold(&mut self, id: SessionId) {
        let Some(session) = find(&mut self.sessions, &self.generations, id) else { return };
        let permissions = Arc::clone(&session.info.permissions);
        let (mut withheld, mut lanes) = (Vec::new(), Vec::new());
        for lane in &mut session.lanes {
            let right = if lane.serve { Right::Serve } else { Right::Subscribe };
            withheld.extend(lane.queue.take_out(&mut self.spare_chunks, |entry| {
                // A probe may go where messages of the topic it is about may.
                match entry.request.and_then(|key| self.requests.probed(key)) {
                    Some(topic) => !permissions.permit(right, topic),
                    None => TopicName::from_bytes(entry.block.topic())
                        .is_ok_and(|topic| !permissions.permit(right, &topic)),
                }
            }));
            lanes.push((lane.id, lane.queue.overflow() == Overflow::Wait && !permissions.wait));
        }
        // What was lost behind them may be due now.
        self.mark_dirty(id);
        for entry in withheld {
            self.ledger.denied_from_queue(entry.row, 1);
            if let Some(key) = entry.request {
                self.end_request(key, Status::ServerGone, "", "the server may not serve the topic any more");
            }
        }
        for (lane, may_not_wait) in lanes {
            if may_not_wait {
                self.deny_wait(id, lane);
                self.on_unsubscribe(id, lane);
            } else {
                self.make_use_of_room(id, lane);
            }
        }
    }

    fn deny_wait(&mut self, id: SessionId, lane: u32) {
        let Some(session) = self.session(id) else { return };
        let Some(found) = session.lanes.iter().find(|candidate| candidate.id == lane) else { return };
        let operation = if found.serve { Operation::Serve } else { Operation::Subscribe };
        let (filter, text) = (found.matcher.describe(), wait_not_permitted(&session.info.peer));
        self.deny(id, operation, u64::from(lane), "wait_not_permitted", &filter, &text);
    }

    pub(super) fn settle_lane(&mut self, id: SessionId, lane: &mut Lane, reason: DropReason) {
        self.reserved_matchers -= lane.matcher.reserved();
        let mut lost: Vec<(RowId, u64)> = Vec::new();
        lane.queue.abandon(|row, messages| match lost.last_mut() {
            Some((last, count)) if *last == row => *count += messages,
            _ => lost.push((row, messages)),
        });
        for (row, messages) in lost {
            self.ledger.dropped_from_queue(row, messages, reason);
            // Leaving is a choice; being lost is not.
            if reason == DropReason::Disconnected {
                self.note_drop(row, messages, reason);
            }
        }
        self.release_held(id, lane.id);
    }

    /// Gives every subscription of a session this window.
    #[cfg(test)]
    pub(in crate::broker) fn set_windows(&mut self, id: SessionId, bytes: u64) {
        let lanes = self.session_mut(id).into_iter().flat_map(|session| &mut session.lanes);
        lanes.for_each(|lane| lane.queue.set_window(bytes));
    }

    pub(super) fn on_credit(&mut self, id: SessionId, subscription: u32, messages: u64) {
        let current = self.generations.get(id.index as usize).copied();
        let Some(Some(session)) = self.sessions.get_mut(id.index as usize) else { return };
        if current != Some(id.generation) {
            return;
        }
        let Some(lane) = session.lanes.iter_mut().find(|lane| lane.id == subscription) else { return };
        let ledger = &mut self.ledger;
        lane.queue.credit(messages, |row, messages| ledger.delivered(row, messages));
        if lane.queue.can_pop() {
            self.mark_dirty(id);
        }
        self.make_use_of_room(id, subscription);
    }

    pub(super) fn on_schema(
        &mut self,
        id: SessionId,
        fingerprint: u64,
        name: String,
        format: String,
        body: Bytes,
    ) {
        const SCHEMAS_MAX: usize = 1024;
        const SCHEMA_BYTES_MAX: usize = 64 << 10;
        if body.len() > SCHEMA_BYTES_MAX
            || (self.schemas.len() >= SCHEMAS_MAX && !self.schemas.contains_key(&fingerprint))
        {
            let text = format!(
                "schema `{name}` is refused: {SCHEMAS_MAX} schemas of {SCHEMA_BYTES_MAX} bytes at most"
            );
            return self.deny(id, Operation::Publish, fingerprint, "schema_limit", "", &text);
        }
        // The name and the fields make the fingerprint, so what fits it is right, whoever brings it. Of what cannot be
        // judged the first one stays: nobody changes how the messages of another are shown.
        let fits = |name: &str, format: &str, body: &Bytes| {
            let text = std::str::from_utf8(body).ok().filter(|_| format == "fields");
            let schema = text.and_then(|text| Schema::parse(name, text).ok());
            schema.is_some_and(|schema| schema.fingerprint() == fingerprint)
        };
        if let Some((known_name, known_format, known)) = self.schemas.get(&fingerprint)
            && (known_name, known_format, known) != (&name, &format, &body)
            && (fits(known_name, known_format, known) || !fits(&name, &format, &body))
        {
            let text =
                format!("schema `{name}` is refused: another one, `{known_name}`, has its fingerprint");
            return self.deny(id, Operation::Publish, fingerprint, "schema_taken", "", &text);
        }
        self.schemas.insert(fingerprint, (name, format, body));
    }
}
