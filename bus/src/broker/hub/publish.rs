//! From a publish to the send queues of its subscribers.

use super::*;

impl Hub {
    pub(super) fn on_publish(&mut self, id: SessionId, block: Block) {
        let (reference, flags) = (block.sequence, block.flags);
        // A will, which is published long after it was made, does not come here.
        let published_at_ns = codec::published_at_ns(block.header());
        let published = self.publish(id, block);
        if let Ok(published) = &published {
            self.count_delay(published.topic, published_at_ns);
        }
        match published {
            Ok(published) if flags & Block::ACKNOWLEDGE != 0 => self.send_control(
                id,
                Record::Accepted {
                    sequence: reference,
                    subscribers: published.subscribers,
                    dropped: published.dropped,
                    not_retained: published.not_retained,
                },
            ),
            Ok(_) => {}
            Err((code, topic, text)) => self.deny(id, Operation::Publish, reference, code, &topic, &text),
        }
    }

    /// Routes a message of a session. The error is code, topic and text.
    ///
    /// # Errors
    /// An invalid topic, a payload that is too large, a missing permission.
    pub fn publish(
        &mut self,
        id: SessionId,
        mut block: Block,
    ) -> Result<Published, (&'static str, String, String)> {
        let topic_text = |block: &Block| String::from_utf8_lossy(block.topic()).into_owned();
        let payload_bytes = block.payload_bytes();
        if payload_bytes > limits::PAYLOAD_BYTES_MAX {
            let text = format!(
                "payload has {payload_bytes} bytes; the limit is {} bytes",
                limits::PAYLOAD_BYTES_MAX
            );
            self.count_too_large(id, block.topic());
            return Err(("too_large", topic_text(&block), text));
        }
        let route = self
            .route(id, block.topic())
            .map_err(|error| ("invalid_topic", topic_text(&block), error.to_string()))?;
        if !route.may_publish {
            self.ledger.denied(route.nobody, 1);
            self.statistics.count_denied(route.statistics);
            let peer = self.info(id).map(|info| info.peer.to_string()).unwrap_or_default();
            return Err((
                "not_permitted",
                topic_text(&block),
                format!("`{peer}` may not publish `{}`", route.topic),
            ));
        }
        if let Some(session) = self.session_mut(id) {
            session.counts.published += 1;
            block.origin = route.origin;
        }
        Ok(self.publish_routed(&route, block, payload_bytes, id))
    }

    /// Counts a publish that is larger than any may be. What is no topic has no row.
    pub(super) fn count_too_large(&mut self, id: SessionId, topic: &[u8]) {
        let Ok(route) = self.route(id, topic) else { return };
        match route.may_publish {
            true => self.ledger.dropped(route.nobody, 1, DropReason::TooLarge),
            false => self.ledger.denied(route.nobody, 1),
        }
    }

    pub(super) fn publish_routed(
        &mut self,
        route: &Route,
        mut block: Block,
        payload_bytes: usize,
        from: SessionId,
    ) -> Published {
        self.sequence += 1;
        block.sequence = self.sequence;
        self.statistics.count(route.statistics, [payload_bytes], self.now_ms);
        let retain = block.flags & Block::RETAIN != 0;
        block.flags &= Block::PARTS;
        let not_retained = retain && !self.retain(&route.topic, &block, payload_bytes);
        route.denied.iter().for_each(|row| self.ledger.denied(*row, 1));
        let mut published = Published { topic: route.statistics, subscribers: 0, dropped: 0, not_retained };
        if block.deadline_ms != 0 && block.deadline_ms <= self.now_ms {
            self.ledger.dropped(route.nobody, 1, DropReason::Expired);
            self.note_drop(route.nobody, 1, DropReason::Expired);
            return published;
        }
        let mut tally = |was_queued: bool| match was_queued {
            true => published.subscribers += 1,
            false => published.dropped += 1,
        };
        for target in &route.targets {
            tally(self.push(target, block.clone(), None, from));
        }
        for members in &route.groups {
            // The member after the one served last goes first; one that is full is passed over.
            let first = (self.sequence as usize) % members.len();
            let order = (0..members.len()).map(|step| &members[(first + step) % members.len()]);
            let free = order.clone().find(|member| self.depth(member) == 0);
            let least = free.or_else(|| {
                order.min_by_key(|member| (self.is_full_for(member, block.bytes()), self.depth(member)))
            });
            if let Some(member) = least {
                tally(self.push(member, block.clone(), None, from));
            }
        }
        if route.targets.is_empty() && route.groups.is_empty() && route.denied.is_empty() {
            self.ledger.dropped(route.nobody, 1, DropReason::NoSubscriber);
        }
        published
    }

    pub(super) fn depth(&self, target: &Target) -> u64 {
        self.queue_of(target).map_or(u64::MAX, SendQueue::depth)
    }

    pub(super) fn is_full_for(&self, target: &Target, bytes: usize) -> bool {
        self.queue_of(target).is_none_or(|queue| queue.is_full_for(bytes))
    }

    fn queue_of(&self, target: &Target) -> Option<&SendQueue> {
        let lanes = &self.session(target.session)?.lanes;
        lanes.iter().find(|lane| lane.id == target.lane).map(|lane| &lane.queue)
    }

    /// Publishes a message of the broker itself.
    pub fn publish_own(&mut self, topic: &str, value: &impl serde::Serialize) {
        self.publish_own_with(topic, value, 0);
    }

    /// Publishes a message of the broker itself that is its topic's last value, or that ends it.
    pub(super) fn publish_own_last(&mut self, topic: &str, value: &impl serde::Serialize, is_last: bool) {
        self.publish_own_with(topic, value, if is_last { Block::RETAIN } else { 0 });
        if !is_last
            && let Some(old) = topic.parse::<TopicName>().ok().and_then(|topic| self.retained.remove(&topic))
        {
            self.retained_bytes -= retained_bytes(&old);
        }
    }

    fn publish_own_with(&mut self, topic: &str, value: &impl serde::Serialize, flags: u8) {
        let (Ok(topic), Ok(payload)) = (topic.parse::<TopicName>(), Payload::json(value)) else {
            debug_assert!(false, "the broker's own topics are legal and its events are plain JSON");
            return;
        };
        self.events.add(&topic, &payload.bytes, self.now_ms);
        let route = self.build_route(None, topic);
        let mut header = Vec::new();
        codec::put_header(&Header::for_payload(&payload), &mut header);
        let mut block = Block::new(&route.topic, &header, &payload.bytes);
        block.flags = flags;
        self.publish_routed(&route, block, payload.bytes.len(), SessionId::nobody());
    }

    /// Makes a message its topic's last value; `false` if there is no room for it.
    fn retain(&mut self, topic: &TopicName, block: &Block, payload_bytes: usize) -> bool {
        let (old_bytes, bytes) = (self.retained.get(topic).map_or(0, retained_bytes), retained_bytes(block));
        if payload_bytes == 0 {
            self.retained.remove(topic);
            self.retained_bytes -= old_bytes;
        } else if self.retained_bytes - old_bytes + bytes <= self.bounds.retained_bytes_max {
            self.retained.insert(topic.clone(), block.clone());
            self.retained_bytes = self.retained_bytes - old_bytes + bytes;
        } else {
            // No last value is better than one that is not the last.
            self.retained.remove(topic);
            self.retained_bytes -= old_bytes;
            self.denials.retained_full();
            self.note_not_retained(topic, block.origin);
            return false;
        }
        true
    }

    /// Queues a message for one subscriber; `false` if it was dropped instead.
    pub(super) fn push(
        &mut self,
        target: &Target,
        block: Block,
        request: Option<RequestKey>,
        from: SessionId,
    ) -> bool {
        let origin = block.origin;
        let topic = self.may_wait(target).then(|| TopicName::from_bytes(block.topic()).ok()).flatten();
        // Nobody publishes on those of the broker, which probes and events have.
        let topic = topic.filter(|topic| !topic.is_reserved());
        let entry = Entry { subscriptions: target.subscriptions.clone(), request, block, row: target.row };
        let pushed = self.push_with(target, |lane, spare, dropped| {
            let outcome = lane.queue.push(entry, spare, dropped);
            let queued = matches!(outcome, Pushed::Queued | Pushed::QueuedAndFull);
            PushedRun {
                queued: queued.into(),
                refused: (!queued).into(),
                full: lane.queue.must_hold(),
                disconnect: outcome == Pushed::Disconnect,
            }
        });
        self.settle_push(target, &pushed, origin, topic.as_ref(), from);
        pushed.queued > 0
    }

    /// Whether the target's policy can hold publishers.
    fn may_wait(&self, target: &Target) -> bool {
        self.session(target.session)
            .and_then(|session| session.lanes.iter().find(|lane| lane.id == target.lane))
            .is_some_and(|lane| lane.queue.overflow() == Overflow::Wait)
    }

    /// Finds a target's lane, lets `act` push into its queue, counts what is queued, and settles what
    /// had to make room.
    pub(super) fn push_with(
        &mut self,
        target: &Target,
        act: impl FnOnce(&mut Lane, &mut SpareChunks, &mut Vec<Dropped>) -> PushedRun,
    ) -> PushedRun {
        let mut dropped: Vec<Dropped> = Vec::new();
        let session = find(&mut self.sessions, &self.generations, target.session);
        let Some(session) = session else { return PushedRun::default() };
        let Some(lane) = session.lanes.iter_mut().find(|lane| lane.id == target.lane) else {
            return PushedRun::default();
        };
        let pushed = act(lane, &mut self.spare_chunks, &mut dropped);
        session.counts.dropped += dropped.len() as u64 + pushed.refused;
        let lost = dropped.iter().filter(|(.., reason)| *reason == DropReason::SlowConsumer).count() as u64;
        if lost + pushed.refused > 0 && lane.lose(lost + pushed.refused, self.now_ms) {
            self.slow.push((target.session, target.lane));
            self.slow_is_new = true;
        }
        // First, because messages of a run can make room for later ones of the same run.
        if pushed.queued > 0 {
            self.ledger.queued(target.row, pushed.queued);
        }
        for (row, request, reason) in dropped {
            self.ledger.dropped_from_queue(row, 1, reason);
            if reason == DropReason::SlowConsumer {
                self.note_drop(row, 1, reason);
            }
            if let Some(key) = request {
                self.end_request(key, Status::Busy, "", "the server's queue was full");
            }
        }
        pushed
    }

    /// Counts what was refused, and does what the queue asks for.
    pub(super) fn settle_push(
        &mut self,
        target: &Target,
        pushed: &PushedRun,
        origin: u32,
        topic: Option<&TopicName>,
        from: SessionId,
    ) {
        if pushed.refused > 0 {
            self.ledger.dropped(target.row, pushed.refused, DropReason::SlowConsumer);
            self.note_drop(target.row, pushed.refused, DropReason::SlowConsumer);
        }
        if pushed.disconnect {
            let text = "its send queue was full and its policy is `disconnect`".to_owned();
            self.end(target.session, Ending { code: "slow_consumer", text });
        }
        // Also when nothing was taken: the publisher may have come when others were held already.
        if let Some(topic) = topic.filter(|_| pushed.full) {
            self.hold(topic.clone(), target, from);
        }
        if pushed.queued == 0 {
            return;
        }
        self.announce(target.session, origin);
        self.mark_dirty(target.session);
    }

    /// Names an origin to a session before its first message goes out: control records go first.
    fn announce(&mut self, id: SessionId, origin: u32) {
        let Some(session) = self.session_mut(id) else { return };
        if session.last_origin.replace(origin) == Some(origin)
            || !matches!(session.info.kind, SessionKind::Native | SessionKind::Local)
            || !session.announced.insert(origin)
        {
            return;
        }
        if let Some(peer) = self.origins.get(origin as usize).map(PeerName::to_string) {
            self.send_control(id, Record::Origin { origin, peer });
        }
    }
}

/// What a retained value counts for.
fn retained_bytes(block: &Block) -> usize {
    block.bytes() + limits::RETAINED_VALUE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_without_room_is_passed_over_as_long_as_another_one_has_some() {
        let mut hub = Hub::new("broker".parse().unwrap(), 1);
        let (publisher, members) =
            (hub.greeted("publisher"), ["tiny", "roomy"].map(|peer| hub.greeted(peer)));
        for (serve, (member, messages)) in [false, true].into_iter().flat_map(|serve| {
            let bounds = members.into_iter().zip([1, 9]);
            bounds.map(move |bounds| (serve, bounds))
        }) {
            hub.record(
                member,
                Record::Subscribe(SubscribeSpec {
                    queue_messages_max: messages,
                    group: "workers".to_owned(),
                    ..fixture::subscription(1 + u32::from(serve), serve, if serve { "q" } else { "a" })
                }),
            );
        }
        let block = |topic: &str| Block::new(&topic.parse().unwrap(), b"", b"1");
        let published = (0..12).map(|_| hub.publish(publisher, block("a")).unwrap());
        let subscribers: Vec<u32> = published.map(|published| published.subscribers).collect();
        assert_eq!(subscribers, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
        for id in 1..=12 {
            hub.record(publisher, Record::Request { id, subscription: 0, window: 1, block: block("q") });
        }
        assert_eq!(hub.requests_in_flight(), 10);
    }

    #[test]
    fn the_default_bounds_retain_a_payload_of_the_largest_size_and_its_publisher_learns_when_they_do_not() {
        let mut hub = Hub::new("broker".parse().unwrap(), 1);
        let session = hub.greeted("peer");
        let mut not_retained = |topic: &str| {
            let payload = vec![0; limits::PAYLOAD_BYTES_MAX];
            let mut block = Block::new(&topic.parse().unwrap(), &[0; 1000], &payload);
            block.flags = Block::RETAIN;
            hub.publish(session, block).unwrap().not_retained
        };
        assert_eq!(["a/1", "a/1", "a/2"].map(&mut not_retained), [false, false, true]);
    }
}
