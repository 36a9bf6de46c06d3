//! What stock sessions ask for.

use super::*;

/// A message of a stock client: no header, and its frames joined if there are several.
fn stock_block(topic: &TopicName, parts: &[Bytes]) -> Block {
    match parts {
        [] => Block::new(topic, b"", b""),
        [payload] => Block::with_payload(topic, b"", payload.clone()),
        several => {
            let mut joined = Vec::with_capacity(several.iter().map(|part| part.len() + 4).sum());
            for part in several {
                joined.extend_from_slice(&(part.len() as u32).to_le_bytes());
                joined.extend_from_slice(part);
            }
            let mut block = Block::new(topic, b"", &joined);
            block.flags = Block::PARTS;
            block
        }
    }
}

impl Hub {
    /// Changes a stock subscriber's set of prefixes. One that is longer than any topic is refused, not kept.
    pub fn stock_subscribe(&mut self, id: SessionId, prefix: &[u8], add: bool) {
        if prefix.len() > limits::TOPIC_BYTES_MAX {
            let (bytes, limit) = (prefix.len(), limits::TOPIC_BYTES_MAX);
            let text = format!("the prefix has {bytes} bytes; topics have at most {limit} bytes");
            if add {
                self.note_denial(
                    id,
                    Operation::Subscribe,
                    "invalid_filter",
                    &denials::start_of(prefix),
                    &text,
                );
            }
            return;
        }
        let Some(session) = self.session_mut(id) else { return };
        let Some(Lane { matcher: Matcher::Prefixes(prefixes), .. }) = session.lanes.first_mut() else {
            return;
        };
        let is_reserved = prefix.starts_with(b"$");
        let changed = match add {
            false => prefixes.remove(prefix),
            true if prefixes.len() < limits::SUBSCRIPTIONS_PER_SESSION_MAX => {
                prefixes.insert(prefix.to_vec())
            }
            true => {
                let text =
                    format!("a session has at most {} prefixes", limits::SUBSCRIPTIONS_PER_SESSION_MAX);
                return self.end(id, Ending { code: "too_many", text });
            }
        };
        match add {
            _ if !changed || !is_reserved => {}
            true => self.reserved_matchers += 1,
            false => self.reserved_matchers -= 1,
        }
        self.route_generation += 1;
        self.receivers_changed(id);
    }

    /// Publishes a message of a stock publisher that has one part; `owner` is the memory it lies in, if
    /// that is its own.
    pub fn stock_publish_one(&mut self, id: SessionId, topic: &[u8], payload: &[u8], owner: Option<&Bytes>) {
        if !self.publish_plain(id, topic, payload) {
            let payload = owner.cloned().unwrap_or_else(|| Bytes::copy_from_slice(payload));
            self.stock_publish(id, topic, &[payload]);
        }
    }

    /// Publishes a message of a stock publisher.
    pub fn stock_publish(&mut self, id: SessionId, topic: &[u8], parts: &[Bytes]) {
        let denied = |hub: &mut Self, code, text: String| {
            hub.note_denial(id, Operation::Publish, code, &denials::start_of(topic), &text);
        };
        let name = match TopicName::from_bytes(topic) {
            Ok(name) => name,
            Err(error) => return denied(self, "invalid_topic", error.to_string()),
        };
        if let Err((code, _, text)) = self.publish(id, stock_block(&name, parts)) {
            denied(self, code, text);
        }
    }

    /// Notes a message that its session ends for: it would have no other name. A publish is in the ledger, too.
    pub fn stock_refused(
        &mut self,
        id: SessionId,
        operation: Operation,
        code: &'static str,
        topic: &[u8],
        text: &str,
    ) {
        if operation == Operation::Publish {
            self.count_too_large(id, topic);
        }
        self.note_denial(id, operation, code, &denials::start_of(topic), text);
    }

    /// Takes a request of a stock requester; the answer comes as [`Record::Reply`] and
    /// [`Record::ReplyEnd`] with this id.
    pub fn stock_request(&mut self, id: SessionId, request: u64, topic: &[u8], parts: &[Bytes]) {
        match TopicName::from_bytes(topic) {
            Ok(name) => self.on_request(id, request, limits::REPLY_WINDOW, stock_block(&name, parts)),
            Err(error) => {
                let shown = denials::start_of(topic);
                self.refuse_request(id, request, "invalid_topic", &shown, &error.to_string());
            }
        }
    }

    /// Counts deliveries that were written to the kernel for a stock session.
    pub fn stock_delivered(&mut self, id: SessionId, messages: u64) {
        let current = self.generations.get(id.index as usize).copied();
        let Some(Some(session)) = self.sessions.get_mut(id.index as usize) else { return };
        if current != Some(id.generation) {
            return;
        }
        if let Some(lane) = session.lanes.first_mut() {
            let ledger = &mut self.ledger;
            lane.queue.credit_more(messages, |row, messages| ledger.written(row, messages));
        }
    }
}
