//! Requests of the model, from the question to the end.

use super::*;

impl Model {
    pub(super) fn request(&mut self, at: usize, id: u64, message: &Message) {
        let (topic, number) = (&message.topic, message.number);
        let Some(session) = &mut self.sessions[at] else { return };
        if self.requests.iter().any(|request| request.requester == at && request.id == id) {
            return session.control.push_back(Sent::Denied { operation: Operation::Request });
        }
        if !session.permissions.permit(Right::Request, topic) {
            return session.replies.push_back(Sent::End { id, status: Status::Denied, says: Value::Null });
        }
        let publisher = session.peer.clone();
        if message.is_late(self.now_ms) {
            session.replies.push_back(Sent::End { id, status: Status::TimedOut, says: Value::Null });
            let row = self.row(&publisher, topic.as_str(), None);
            row.published += 1;
            row.dropped[DropReason::Expired as usize] += 1;
            return;
        }
        let serves = |session: &ModelSession| {
            let lane = session.lanes.iter().find(|lane| lane.serve && lane.filter.matches(topic))?;
            session.permissions.permit(Right::Serve, topic).then_some(lane.id)
        };
        // One server at a time in this model, so that the choice among several is not repeated here.
        let server =
            (0..self.sessions.len()).find_map(|other| Some((other, serves(self.sessions[other].as_ref()?)?)));
        let Some((server, lane)) = server else {
            let session = self.sessions[at].as_mut().unwrap();
            return session.replies.push_back(Sent::End {
                id,
                status: Status::NoResponders,
                says: Value::Null,
            });
        };
        self.next_key += 1;
        let key = self.next_key;
        let deadline_ms = if message.deadline_ms == 0 { u64::MAX } else { message.deadline_ms };
        self.requests.push(ModelRequest { key, requester: at, id, server, lane, deadline_ms, probed: None });
        let queued = Queued {
            topic: topic.to_string(),
            publisher,
            subscriptions: vec![lane],
            number,
            request: Some(key),
            deadline_ms: message.deadline_ms,
            retained: false,
            lost_behind: Vec::new(),
        };
        if !self.push(server, lane, queued, Some(at)) {
            self.end(key, Status::Busy);
        }
    }

    pub(super) fn end(&mut self, key: u64, status: Status) -> Option<ModelRequest> {
        self.end_saying(key, status, Value::Null)
    }

    pub(super) fn end_saying(&mut self, key: u64, status: Status, says: Value) -> Option<ModelRequest> {
        let position = self.requests.iter().position(|request| request.key == key)?;
        let request = self.requests.remove(position);
        self.watches.retain(|watch| watch.key != key);
        self.waiting.retain(|waiting| *waiting != key);
        if let Some(requester) = &mut self.sessions[request.requester] {
            requester.replies.push_back(Sent::End { id: request.id, status, says });
        }
        Some(request)
    }

    /// Time passes: requests end at their deadlines.
    pub(super) fn tick(&mut self, ms: u64) {
        self.now_ms += ms;
        let mut late: Vec<(u64, u64)> =
            self.requests.iter().map(|request| (request.deadline_ms, request.key)).collect();
        late.retain(|(deadline_ms, _)| *deadline_ms <= self.now_ms);
        late.sort_unstable();
        late.into_iter().for_each(|(_, key)| self.cancel(key, Status::TimedOut));
    }

    pub(super) fn cancel(&mut self, key: u64, status: Status) {
        // A watch whose time is over says how things stand.
        let watch = self.watches.iter().find(|watch| watch.key == key && status == Status::TimedOut);
        let says = watch.map_or(Value::Null, ModelWatch::state);
        let Some(request) = self.end_saying(key, status, says) else { return };
        let Some(Some(server)) = self.sessions.get_mut(request.server) else { return };
        let subscriber = server.peer.clone();
        let lane = server.lanes.iter_mut().find(|lane| lane.id == request.lane);
        let waiting = lane.and_then(|lane| {
            let at = lane.queue.iter().position(|queued| queued.request == Some(key))?;
            Some(lane.remove(at))
        });
        match waiting {
            None => server.control.push_back(Sent::Cancel),
            Some(queued) => {
                let row = self.row(&queued.publisher, &queued.topic, Some(&subscriber));
                row.queued -= 1;
                row.dropped[DropReason::Expired as usize] += 1;
                self.make_use_of_room(request.server, request.lane);
            }
        }
    }
}
