//! What a session is sent next.

use super::*;

impl Hub {
    /// The next record to send to a session: control first, then replies, then deliveries in turn.
    pub fn next_record(&mut self, id: SessionId) -> Option<Record> {
        if let Some(record) = self.next_control(id) {
            return Some(record);
        }
        let session = self.session_mut(id)?;
        if let Some(record) = session.replies.pop_front() {
            session.reply_bytes -= record.bytes_hint();
            session.ends_waiting -= usize::from(matches!(record, Record::ReplyEnd { .. }));
            if session.info.kind == SessionKind::StockRequester {
                self.credit_for_stock(id, &record);
            }
            return Some(record);
        }
        let entry = self.next_entry(id)?;
        self.deliver(id, entry)
    }

    /// The next control record only; they may go between the fragments of another.
    pub fn next_control(&mut self, id: SessionId) -> Option<Record> {
        let session = self.session_mut(id)?;
        let record = session.control.pop_front()?;
        session.control_bytes -= record.bytes_hint();
        Some(record)
    }

    /// Whether [`Hub::next_record`] would give something.
    pub fn has_output(&self, id: SessionId) -> bool {
        self.session(id).is_some_and(|session| {
            !session.control.is_empty()
                || !session.replies.is_empty()
                || session.lanes.iter().any(|lane| lane.queue.can_pop())
        })
    }

    /// To be called when a turn has sent what it can: see [`SendQueue::detach_backlog`].
    pub fn detach_backlog(&mut self, id: SessionId) {
        if let Some(session) = self.session_mut(id) {
            session.lanes.iter_mut().for_each(|lane| lane.queue.detach_backlog());
        }
    }

    pub(super) fn next_entry(&mut self, id: SessionId) -> Option<(usize, Entry)> {
        let session = self.session_mut(id)?;
        let lanes = session.lanes.len();
        for step in 0..lanes {
            let at = (session.next_lane + step) % lanes;
            if let Some(entry) = session.lanes[at].queue.pop() {
                session.next_lane = (at + 1) % lanes;
                return Some((at, entry));
            }
        }
        None
    }

    /// Turns a queued entry into its record. Gaps and origin names that must come first are put into
    /// the control queue, with the record behind them.
    pub(super) fn deliver(&mut self, id: SessionId, (at, entry): (usize, Entry)) -> Option<Record> {
        let origin = entry.block.origin;
        let session = self.session_mut(id)?;
        let is_announced = session.last_origin.replace(origin) == Some(origin);
        let lane = &mut session.lanes[at];
        let record = match entry.request {
            None => Record::Deliver { subscriptions: entry.subscriptions, block: entry.block },
            // A request that ended meanwhile was withdrawn, or a cancel follows it.
            Some(key) => Record::Request {
                id: key.0,
                subscription: lane.id,
                window: limits::REPLY_WINDOW,
                block: entry.block,
            },
        };
        let lane_id = lane.id;
        let lost = lane.queue.take_lost();
        let is_native = matches!(session.info.kind, SessionKind::Native | SessionKind::Local);
        session.counts.delivered += 1;
        self.release_held_by(id, lane_id);
        if !is_native {
            return Some(record);
        }
        if is_announced && lost == 0 {
            return Some(record);
        }
        let peer = self.origins.get(origin as usize).cloned();
        let session = self.session_mut(id)?;
        let mut first = Vec::new();
        if lost > 0 {
            first.push(Record::Gap {
                subscription: lane_id,
                count: lost,
                reason: "slow_consumer".to_owned(),
            });
        }
        if let Some(peer) = peer.filter(|_| session.announced.insert(origin)) {
            first.push(Record::Origin { origin, peer: peer.to_string() });
        }
        if first.is_empty() {
            return Some(record);
        }
        // Control goes before replies and deliveries, so these reach the client in this order.
        session.replies.push_front(record);
        session.reply_bytes += session.replies[0].bytes_hint();
        for record in first.into_iter().rev() {
            session.control_bytes += record.bytes_hint();
            session.control.push_front(record);
        }
        self.next_control(id)
    }
}
