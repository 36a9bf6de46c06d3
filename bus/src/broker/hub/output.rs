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
        let lane = &mut session.lanes[at];
        // As a record of its own, which does not go between the fragments of what stands in front of it.
        if let Some((subscription, count)) = lane.queue.take_loss(lane.id) {
            return Some(gap(subscription, count));
        }
        let entry = lane.queue.pop(&mut self.spare_chunks)?;
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
            session.has_answers() || session.lanes.iter().any(|lane| lane.queue.has_output())
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
        // There is no record that could tell it; the tool does.
        while lane.queue.take_loss(lane.id).is_some() {}
        if !lane.queue.pop_view(&mut self.spare_chunks, act) {
            return false;
        }
        session.counts.delivered += 1;
        let subscription = lane.id;
        self.make_use_of_room(id, subscription);
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
        while let Some((subscription, count)) = lane.queue.take_loss(subscription) {
            writer.put_control(&gap(subscription, count), out);
        }
        session.counts.delivered += lane.queue.take_records(out, &mut self.spare_chunks);
        session.next_lane = (at + 1) % session.lanes.len();
        self.make_use_of_room(id, subscription);
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
        let taken = lane.queue.take_batch(&mut self.spare_chunks, act);
        let subscription = lane.id;
        session.counts.delivered += taken;
        if taken > 0 {
            session.next_lane = (at + 1) % session.lanes.len();
            self.make_use_of_room(id, subscription);
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
        let (mut dropped, mut lanes) = (Vec::new(), Vec::new());
        for lane in session.lanes.iter_mut().filter(|lane| lane.queue.is_front_expired(now_ms)) {
            lane.queue.drop_expired(now_ms, &mut dropped);
            lanes.push(lane.id);
        }
        session.counts.dropped += dropped.len() as u64;
        for (row, _, reason) in dropped {
            self.ledger.dropped_from_queue(row, 1, reason);
            self.note_drop(row, 1, reason);
        }
        for lane in lanes {
            self.make_use_of_room(id, lane);
        }
    }

    /// Turns a queued entry into its record.
    fn deliver(&mut self, id: SessionId, at: usize, entry: Entry) -> Option<Record> {
        let session = self.session_mut(id)?;
        session.next_lane = (at + 1) % session.lanes.len();
        session.counts.delivered += 1;
        let subscription = session.lanes[at].id;
        self.make_use_of_room(id, subscription);
        Some(match entry.request {
            None => Record::Deliver { subscriptions: entry.subscriptions, block: entry.block },
            // A request that ended meanwhile was withdrawn, or a cancel follows it.
            Some(key) => {
                let window =
                    self.requests.get_mut(key).map_or(limits::REPLY_WINDOW, |request| request.window);
                Record::Request { id: key.0, subscription, window, block: entry.block }
            }
        })
    }
}

fn gap(subscription: u32, count: u64) -> Record {
    Record::Gap { subscription, count, reason: "slow_consumer".to_owned() }
}
