//! One subscription of the model and what waits in it.

use super::*;

#[derive(Clone, Debug)]
pub(super) struct ModelLane {
    pub(super) id: u32,
    pub(super) filter: TopicFilter,
    pub(super) serve: bool,
    pub(super) probes: bool,
    pub(super) group: Option<String>,
    pub(super) overflow: Overflow,
    pub(super) messages_max: usize,
    pub(super) queue: VecDeque<Queued>,
    /// Publisher and topic of what was sent, and what it counts for.
    pub(super) sent: Vec<(String, String, u64)>,
    pub(super) credited: usize,
    /// Lost in front of what waits.
    pub(super) lost: u64,
    /// The same for other subscriptions that were to share the message.
    pub(super) lost_beside: Vec<(u32, u64)>,
}

impl ModelLane {
    /// Counts messages of a subscription that were lost behind the first `waiting` ones in the queue.
    pub(super) fn lose(&mut self, waiting: usize, id: u32, count: u64) {
        match waiting.checked_sub(1) {
            Some(before) => add(&mut self.queue[before].lost_behind, id, count),
            None if id == self.id => self.lost += count,
            None => add(&mut self.lost_beside, id, count),
        }
    }

    pub(super) fn lose_beside(&mut self, waiting: usize, queued: &Queued) {
        queued.subscriptions.iter().skip(1).for_each(|other| self.lose(waiting, *other, 1));
    }

    /// Takes a message out of the queue. What was lost behind it was then lost behind the one before.
    pub(super) fn remove(&mut self, at: usize) -> Queued {
        let mut queued = self.queue.remove(at).unwrap();
        for (id, count) in std::mem::take(&mut queued.lost_behind) {
            self.lose(at, id, count);
        }
        queued
    }

    pub(super) fn remove_all(&mut self, goes: impl Fn(&Queued) -> bool) -> Vec<Queued> {
        let mut gone = Vec::new();
        while let Some(at) = self.queue.iter().position(&goes) {
            gone.push(self.remove(at));
        }
        gone
    }

    /// What others have lost, wherever.
    pub(super) fn take_all_beside(&mut self) -> Vec<(u32, u64)> {
        let mut lost = std::mem::take(&mut self.lost_beside);
        for (id, count) in self.queue.iter_mut().flat_map(|queued| std::mem::take(&mut queued.lost_behind)) {
            if id != self.id {
                add(&mut lost, id, count);
            }
        }
        lost
    }

    pub(super) fn take_loss(&mut self) -> Option<Sent> {
        let own = (self.id, self.lost);
        let (subscription, count) = self.lost_beside.pop().or_else(|| {
            self.lost = 0;
            Some(own).filter(|(_, count)| *count > 0)
        })?;
        Some(Sent::Gap { subscription, count })
    }

    /// Whether a message may be sent: what is not credited has to leave room in the window.
    pub(super) fn can_send(&self) -> bool {
        let in_flight: u64 = self.sent[self.credited..].iter().map(|(.., bytes)| bytes).sum();
        !self.queue.is_empty() && in_flight < WINDOW_BYTES
    }

    pub(super) fn has_output(&self) -> bool {
        self.can_send() || (self.queue.is_empty() && (self.lost > 0 || !self.lost_beside.is_empty()))
    }

    /// What a message does that is not queued: whether it is, and what leaves the queue for it.
    pub(super) fn take(&mut self, queued: &Queued) -> (bool, Vec<(Queued, DropReason)>) {
        let mut gone: Vec<(Queued, DropReason)> = Vec::new();
        if self.overflow == Overflow::LatestOnly && queued.request.is_none() {
            while let Some(at) = self.queue.iter().position(|old| old.topic == queued.topic) {
                let old = self.remove(at);
                self.lose_beside(at, &old);
                gone.push((old, DropReason::Replaced));
            }
        }
        let is_full = self.is_full();
        // Publishers are held, and what they have on its way is taken.
        if is_full && self.overflow != Overflow::Wait {
            if self.overflow == Overflow::Disconnect {
                return (false, gone);
            }
            if self.overflow != Overflow::DropOldest {
                let waiting = self.queue.len();
                queued.subscriptions.iter().for_each(|id| self.lose(waiting, *id, 1));
                return (false, gone);
            }
            let oldest = self.remove(0);
            // A probe is no message.
            self.lost += u64::from(!oldest.subscriptions.is_empty());
            self.lose_beside(0, &oldest);
            gone.push((oldest, DropReason::SlowConsumer));
        }
        self.queue.push_back(queued.clone());
        (true, gone)
    }
}

/// Bytes of any message on a topic, or of a probe.
pub(super) fn bytes_of(topic: &str) -> u64 {
    let payload: &[u8] = if topic == readiness::PROBE { b"" } else { &[1] };
    Block::new(&topic.parse().unwrap(), b"", payload).bytes() as u64
}

pub(super) fn add(lost: &mut Vec<(u32, u64)>, id: u32, count: u64) {
    match lost.iter_mut().find(|(known, _)| *known == id) {
        Some((_, known)) => *known += count,
        None => lost.push((id, count)),
    }
}

impl ModelLane {
    pub(super) fn has_room(&self) -> bool {
        self.queue.len() <= self.messages_max / 2
    }

    pub(super) fn must_hold(&self) -> bool {
        self.overflow == Overflow::Wait && self.queue.len() >= self.messages_max
    }

    pub(super) fn is_full(&self) -> bool {
        !self.queue.is_empty() && self.queue.len() >= self.messages_max
    }

    pub(super) fn depth(&self) -> usize {
        self.queue.len() + self.sent.len() - self.credited
    }

    /// The less the sooner it is its turn: whoever has no room comes after all others.
    pub(super) fn load(&self) -> (bool, usize) {
        (self.is_full(), self.depth())
    }
}
