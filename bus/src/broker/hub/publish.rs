//! From a publish to the send queues of its subscribers.

use super::*;

impl Hub {
    pub(super) fn on_publish(&mut self, id: SessionId, block: Block) {
        let (reference, flags) = (block.sequence, block.flags);
        match self.publish(id, block) {
            Ok(published) if flags & Block::ACKNOWLEDGE != 0 => self.send_control(
                id,
                Record::Accepted {
                    sequence: reference,
                    subscribers: published.subscribers,
                    dropped: published.dropped,
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
            return Err(("too_large", topic_text(&block), text));
        }
        let route = self
            .route(id, &block)
            .map_err(|error| ("invalid_topic", topic_text(&block), error.to_string()))?;
        if !route.may_publish {
            self.ledger.denied(route.nobody);
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

    pub(super) fn publish_routed(
        &mut self,
        route: &Route,
        mut block: Block,
        payload_bytes: usize,
        from: SessionId,
    ) -> Published {
        self.sequence += 1;
        block.sequence = self.sequence;
        self.statistics.count(route.statistics, payload_bytes, self.now_ms);
        let retain = block.flags & Block::RETAIN != 0;
        block.flags &= Block::PARTS;
        if retain {
            self.retain(&route.topic, &block, payload_bytes);
        }
        route.denied.iter().for_each(|row| self.ledger.denied(*row));
        let mut published = Published::default();
        if block.deadline_ms != 0 && block.deadline_ms <= self.now_ms {
            self.ledger.dropped(route.nobody, DropReason::Expired);
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
            let least = free.or_else(|| order.min_by_key(|member| self.depth(member)));
            if let Some(member) = least {
                tally(self.push(member, block.clone(), None, from));
            }
        }
        if route.targets.is_empty() && route.groups.is_empty() && route.denied.is_empty() {
            self.ledger.dropped(route.nobody, DropReason::NoSubscriber);
        }
        published
    }

    pub(super) fn depth(&self, target: &Target) -> u64 {
        let lanes = self.session(target.session).map(|session| &session.lanes);
        let lane = lanes.and_then(|lanes| lanes.iter().find(|lane| lane.id == target.lane));
        lane.map_or(u64::MAX, |lane| lane.queue.depth())
    }

    /// Publishes a message of the broker itself.
    pub fn publish_own(&mut self, topic: &str, value: &impl serde::Serialize) {
        let (Ok(topic), Ok(payload)) = (topic.parse::<TopicName>(), Payload::json(value)) else {
            debug_assert!(false, "the broker's own topics are legal and its events are plain JSON");
            return;
        };
        let route = self.build_route(None, topic);
        let mut header = Vec::new();
        codec::put_header(&Header::for_payload(&payload), &mut header);
        let block = Block::new(&route.topic, &header, &payload.bytes);
        let nobody = SessionId { index: u32::MAX, generation: 0 };
        self.publish_routed(&route, block, payload.bytes.len(), nobody);
    }

    pub(super) fn retain(&mut self, topic: &TopicName, block: &Block, payload_bytes: usize) {
        let old_bytes = self.retained.get(topic).map_or(0, Block::bytes);
        if payload_bytes == 0 {
            self.retained.remove(topic);
            self.retained_bytes -= old_bytes;
        } else if self.retained_bytes - old_bytes + block.bytes() <= limits::RETAINED_BYTES_MAX {
            let mut kept = block.clone();
            kept.detach();
            self.retained.insert(topic.clone(), kept);
            self.retained_bytes = self.retained_bytes - old_bytes + block.bytes();
        } else {
            self.denials.retained_full();
        }
    }

    /// Queues a message for one subscriber; `false` if it was dropped instead.
    pub(super) fn push(
        &mut self,
        target: &Target,
        block: Block,
        request: Option<RequestKey>,
        from: SessionId,
    ) -> bool {
        let current = self.generations.get(target.session.index as usize).copied();
        let Some(Some(session)) = self.sessions.get_mut(target.session.index as usize) else { return false };
        if current != Some(target.session.generation) {
            return false;
        }
        let Some(lane) = session.lanes.iter_mut().find(|lane| lane.id == target.lane) else { return false };
        let entry = Entry { subscriptions: target.subscriptions.clone(), request, block, row: target.row };
        let mut dropped: Vec<Dropped> = Vec::new();
        let outcome = lane.queue.push(entry, &mut dropped);
        let held_topic = match outcome {
            Pushed::QueuedAndFull => lane.queue.newest_topic(),
            _ => None,
        };
        session.counts.dropped += dropped.len() as u64;
        for (row, request, reason) in dropped {
            self.ledger.dropped_from_queue(row, 1, reason);
            if let Some(key) = request {
                self.end_request(key, Status::Busy, "", "the server's queue was full");
            }
        }
        match outcome {
            Pushed::Queued => self.ledger.queued(target.row),
            Pushed::QueuedAndFull => {
                self.ledger.queued(target.row);
                if let Some(topic) = held_topic {
                    self.hold(topic, target, from);
                }
            }
            Pushed::Refused | Pushed::Disconnect => {
                self.ledger.dropped(target.row, DropReason::SlowConsumer);
                if let Some(session) = self.session_mut(target.session) {
                    session.counts.dropped += 1;
                }
                if outcome == Pushed::Disconnect {
                    let text = "its send queue was full and its policy is `disconnect`".to_owned();
                    self.end(target.session, Ending { code: "slow_consumer", text });
                }
                return false;
            }
        }
        self.mark_dirty(target.session);
        true
    }
}
