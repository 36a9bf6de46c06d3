//! What a session of the model is sent next.

use super::*;

impl Model {
    /// Drops what is next in a queue and nobody wants any more.
    pub(super) fn drop_late(&mut self, at: usize) {
        let now_ms = self.now_ms;
        let Some(session) = self.sessions[at].as_mut() else { return };
        let (mut late, mut lanes) = (Vec::new(), Vec::new());
        for lane in &mut session.lanes {
            let before = late.len();
            while lane.queue.front().is_some_and(|queued| queued.is_late(now_ms)) {
                late.push(lane.remove(0));
            }
            if late.len() > before {
                lanes.push(lane.id);
            }
        }
        let subscriber = session.peer.clone();
        for old in late {
            let row = self.row(&old.publisher, &old.topic, Some(&subscriber));
            row.queued -= 1;
            row.dropped[DropReason::Expired as usize] += 1;
        }
        lanes.into_iter().for_each(|lane| self.make_use_of_room(at, lane));
    }

    /// The next `count` deliveries of the lane whose turn it is, in one batch: what they cause comes after it.
    pub(super) fn next_batch(&mut self, at: usize, count: usize) -> Vec<Sent> {
        let session = self.sessions[at].as_mut().unwrap();
        assert!(session.control.is_empty() && session.replies.is_empty(), "answers go first");
        let lanes = session.lanes.len();
        let turn = (0..lanes).map(|step| (session.next_lane + step) % lanes);
        let position = turn.into_iter().find(|at| session.lanes[*at].has_output()).unwrap();
        session.next_lane = (position + 1) % lanes;
        let lane = &mut session.lanes[position];
        let mut sent: Vec<Sent> = std::iter::from_fn(|| lane.take_loss()).collect();
        for _ in 0..count {
            assert_eq!(lane.take_loss(), None, "a loss was passed over");
            assert!(lane.can_send(), "the window was closed");
            let queued = lane.remove(0);
            lane.sent.push(queued.as_sent());
            sent.push(queued.sent());
        }
        let id = lane.id;
        self.make_use_of_room(at, id);
        sent
    }

    /// Whether what goes out next goes out together with what is behind it.
    pub(super) fn is_batch_next(&self, at: usize) -> bool {
        let Some(session) = &self.sessions[at] else { return false };
        let lanes = session.lanes.len();
        let mut turn = (0..lanes).map(|step| &session.lanes[(session.next_lane + step) % lanes]);
        let lane = turn.find(|lane| lane.has_output());
        let is_plain = |queued: &Queued| queued.request.is_none() && queued.deadline_ms == 0;
        session.control.is_empty()
            && session.replies.is_empty()
            && lane.is_some_and(|lane| {
                lane.overflow != Overflow::LatestOnly && lane.queue.front().is_some_and(is_plain)
            })
    }

    pub(super) fn next(&mut self, at: usize) -> Option<Sent> {
        let session = self.sessions[at].as_mut()?;
        if let Some(sent) = session.control.pop_front().or_else(|| session.replies.pop_front()) {
            return Some(sent);
        }
        self.drop_late(at);
        let session = self.sessions[at].as_mut()?;
        let lanes = session.lanes.len();
        for step in 0..lanes {
            let position = (session.next_lane + step) % lanes;
            let lane = &mut session.lanes[position];
            if !lane.has_output() {
                continue;
            }
            // A gap stands where the messages are missing.
            if let Some(gap) = lane.take_loss() {
                return Some(gap);
            }
            let queued = lane.remove(0);
            session.next_lane = (position + 1) % lanes;
            lane.sent.push(queued.as_sent());
            let id = lane.id;
            self.make_use_of_room(at, id);
            return Some(queued.sent());
        }
        None
    }
}
