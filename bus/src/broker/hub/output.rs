//! What a session is sent next.

use super::*;
use crate::zmtp::Draft;

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
        self.drop_expired(id);
        let at = self.session(id)?.next_lane_with_output()?;
        let session = find(&mut self.sessions, &self.generations, id)?;
        let entry = session.lanes[at].queue.pop(&mut self.spare_chunks)?;
        self.deliver(id, at, entry)
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
            session.has_answers() || session.lanes.iter().any(|lane| lane.queue.can_pop())
        })
    }

    /// Appends to a batch what a native session is sent next: one record, or all of a lane that may go
    /// out together. `false` if nothing waits.
    pub fn put_next(&mut self, id: SessionId, writer: &mut BatchWriter, out: &mut Vec<u8>) -> bool {
        if self.put_deliveries(id, writer, out) {
            return true;
        }
        let Some(record) = self.next_record(id) else { return false };
        writer.put(&record, out);
        true
    }

    /// Shows `act` the next delivery to a stock subscriber, which has no answers; `false` if none waits.
    pub fn next_stock_delivery(&mut self, id: SessionId, act: impl FnOnce(&BlockView<'_>)) -> bool {
        self.drop_expired(id);
        let Some(session) = find(&mut self.sessions, &self.generations, id) else { return false };
        let Some(lane) = session.lanes.first_mut() else { return false };
        if !lane.queue.pop_view(&mut self.spare_chunks, act) {
            return false;
        }
        lane.queue.take_losses(lane.id);
        session.counts.delivered += 1;
        let subscription = lane.id;
        self.release_held_by(id, subscription);
        true
    }

    /// Appends deliveries that wait in the form of the wire, if it is their turn.
    pub fn put_deliveries(&mut self, id: SessionId, writer: &BatchWriter, out: &mut Vec<u8>) -> bool {
        let Some(session) = find(&mut self.sessions, &self.generations, id) else { return false };
        let Some(at) = session.next_lane_with_output().filter(|_| !session.has_answers()) else {
            return false;
        };
        let lane = &mut session.lanes[at];
        if !lane.queue.has_records_next() {
            return false;
        }
        let subscription = lane.id;
        for (subscription, count) in lane.queue.take_losses(subscription) {
            writer.put_control(&gap(subscription, count), out);
        }
        session.counts.delivered += lane.queue.take_records(out, &mut self.spare_chunks);
        session.next_lane = (at + 1) % session.lanes.len();
        self.release_held_by(id, subscription);
        true
    }

    /// Lets `act` take the deliveries that are next as a batch of their own, if they fill one. `false` if it was not
    /// asked, or has left them.
    pub fn take_batch(&mut self, id: SessionId, act: impl FnOnce(&mut Draft) -> bool) -> bool {
        let Some(session) = find(&mut self.sessions, &self.generations, id) else { return false };
        let Some(at) = session.next_lane_with_output().filter(|_| !session.has_answers()) else {
            return false;
        };
        let lane = &mut session.lanes[at];
        if lane.queue.has_losses() {
            return false;
        }
        let taken = lane.queue.take_batch(&mut self.spare_chunks, act);
        let subscription = lane.id;
        session.counts.delivered += taken;
        if taken > 0 {
            session.next_lane = (at + 1) % session.lanes.len();
            self.release_held_by(id, subscription);
        }
        taken > 0
    }

    /// Drops what a session would be sent next and nobody wants any more. Of what travels as bytes nothing has a deadline,
    /// so [`Hub::put_deliveries`] need not look.
    fn drop_expired(&mut self, id: SessionId) {
        let now_ms = self.now_ms;
        let Some(session) = find(&mut self.sessions, &self.generations, id) else { return };
        if !session.lanes.iter().any(|lane| lane.queue.is_front_expired(now_ms)) {
            return;
        }
        let (mut dropped, mut unreported, mut lanes) = (Vec::new(), Vec::new(), Vec::new());
        for lane in session.lanes.iter_mut().filter(|lane| lane.queue.is_front_expired(now_ms)) {
            lane.queue.drop_expired(now_ms, &mut dropped);
            if lane.queue.is_empty() {
                unreported.extend(lane.queue.take_losses(lane.id));
            }
            lanes.push(lane.id);
        }
        session.counts.dropped += dropped.len() as u64;
        for (row, _, reason) in dropped {
            self.ledger.dropped_from_queue(row, 1, reason);
            self.note_drop(row, 1, reason);
        }
        self.report_losses(id, unreported);
        for lane in lanes {
            self.release_held_by(id, lane);
            self.push_waiting_probes(id, lane);
        }
    }

    /// Turns a queued entry into its record. A gap that must come first is put into the control queue,
    /// with the record behind it.
    fn deliver(&mut self, id: SessionId, at: usize, entry: Entry) -> Option<Record> {
        let session = self.session_mut(id)?;
        session.next_lane = (at + 1) % session.lanes.len();
        session.counts.delivered += 1;
        let lane = &mut session.lanes[at];
        let subscription = lane.id;
        let record = match entry.request {
            None => Record::Deliver { subscriptions: entry.subscriptions, block: entry.block },
            // A request that ended meanwhile was withdrawn, or a cancel follows it.
            Some(key) => {
                Record::Request { id: key.0, subscription, window: limits::REPLY_WINDOW, block: entry.block }
            }
        };
        let lost = lane.queue.take_losses(subscription);
        let is_native = matches!(session.info.kind, SessionKind::Native | SessionKind::Local);
        self.release_held_by(id, subscription);
        if lost.is_empty() || !is_native {
            return Some(record);
        }
        // Control goes before replies and deliveries, so these reach the client in this order.
        let session = self.session_mut(id)?;
        session.reply_bytes += record.bytes_hint();
        session.replies.push_front(record);
        for (subscription, count) in lost.into_iter().rev() {
            let gap = gap(subscription, count);
            session.control_bytes += gap.bytes_hint();
            session.control.push_front(gap);
        }
        self.next_control(id)
    }
}

pub(super) fn gap(subscription: u32, count: u64) -> Record {
    Record::Gap { subscription, count, reason: "slow_consumer".to_owned() }
}
