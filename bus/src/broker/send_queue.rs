//! The send queue towards one subscription, and what happens when it is full.
//!
//! Pure: messages go in with [`SendQueue::push`], out with [`SendQueue::pop`] as far as the credit
//! window reaches, and are settled by [`SendQueue::credit`]. Every message that leaves in another
//! way is handed back with its ledger row.

use std::collections::VecDeque;

use super::{
    ledger::{DropReason, RowId},
    requests::RequestKey,
};
use crate::{
    limits,
    native::record::{Block, Overflow, SubscriptionIds},
    topic::TopicName,
};

/// One queued message.
#[derive(Debug)]
pub struct Entry {
    /// Every subscription of the session it matches; the first one is this queue's.
    pub subscriptions: SubscriptionIds,
    /// The request it carries; `None` for a publish.
    pub request: Option<RequestKey>,
    /// The message.
    pub block: Block,
    /// Where it is counted.
    pub row: RowId,
}

/// What became of a pushed message.
#[derive(Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is in the queue.
    Queued,
    /// It is in the queue, which is now full: its publisher must be held.
    QueuedAndFull,
    /// It was not taken.
    Refused,
    /// It was not taken, and the subscriber's session must end.
    Disconnect,
}

/// A message that left the queue undelivered.
pub type Dropped = (RowId, Option<RequestKey>, DropReason);

/// A bounded queue. An empty queue takes one message of any legal size.
#[derive(Debug)]
pub struct SendQueue {
    overflow: Overflow,
    messages_max: usize,
    bytes_max: usize,
    window_bytes: u64,
    entries: VecDeque<Entry>,
    /// How many of the first entries share no read buffer any more.
    detached: usize,
    bytes: usize,
    /// Sent and not yet credited: row, messages, bytes; neighbours of one row share an item.
    in_flight: VecDeque<(RowId, u64, u64)>,
    in_flight_bytes: u64,
    credited: u64,
    sent: u64,
    /// Messages lost since the last gap was reported.
    lost: u64,
}

impl SendQueue {
    /// A queue with these bounds; zero stands for the default of [`limits`].
    pub fn new(overflow: Overflow, messages_max: u32, bytes_max: u32) -> Self {
        let or_default = |value: u32, default: usize| if value == 0 { default } else { value as usize };
        Self {
            overflow,
            messages_max: or_default(messages_max, limits::SEND_QUEUE_MESSAGES),
            bytes_max: or_default(bytes_max, limits::SEND_QUEUE_BYTES),
            window_bytes: limits::CREDIT_WINDOW_BYTES,
            entries: VecDeque::new(),
            detached: 0,
            bytes: 0,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            credited: 0,
            sent: 0,
            lost: 0,
        }
    }

    /// Takes a message or says why not; whatever had to make room is pushed onto `dropped`.
    pub fn push(&mut self, entry: Entry, dropped: &mut Vec<Dropped>) -> Pushed {
        if self.overflow == Overflow::LatestOnly && entry.request.is_none() {
            self.drop_matching(dropped, DropReason::Replaced, |queued| {
                queued.block.topic() == entry.block.topic()
            });
        }
        let full = self.is_full_for(entry.block.bytes());
        if full {
            match self.overflow {
                Overflow::DropOldest => {
                    while self.is_full_for(entry.block.bytes()) {
                        let Some(oldest) = self.entries.pop_front() else { break };
                        self.bytes -= oldest.block.bytes();
                        self.detached = self.detached.saturating_sub(1);
                        self.lost += 1;
                        dropped.push((oldest.row, oldest.request, DropReason::SlowConsumer));
                    }
                }
                // A held publisher may have messages on their way; they are taken up to twice the bound.
                Overflow::Wait
                    if self.bytes < 2 * self.bytes_max && self.entries.len() < 2 * self.messages_max => {}
                Overflow::Disconnect => return Pushed::Disconnect,
                Overflow::DropNewest | Overflow::LatestOnly | Overflow::Wait => {
                    self.lost += 1;
                    return Pushed::Refused;
                }
            }
        }
        self.bytes += entry.block.bytes();
        self.entries.push_back(entry);
        if self.overflow == Overflow::Wait && (full || self.is_full_for(0)) {
            Pushed::QueuedAndFull
        } else {
            Pushed::Queued
        }
    }

    fn is_full_for(&self, bytes: usize) -> bool {
        !self.entries.is_empty()
            && (self.entries.len() >= self.messages_max || self.bytes + bytes > self.bytes_max)
    }

    fn drop_matching(
        &mut self,
        dropped: &mut Vec<Dropped>,
        reason: DropReason,
        matches: impl Fn(&Entry) -> bool,
    ) {
        let (bytes, mut at, before) = (&mut self.bytes, 0, self.detached);
        self.entries.retain(|entry| {
            let goes = matches(entry);
            at += 1;
            if goes {
                self.detached -= usize::from(at <= before);
                *bytes -= entry.block.bytes();
                dropped.push((entry.row, entry.request, reason));
            }
            !goes
        });
    }

    /// Takes back a request that was not sent yet, as if it had been dropped.
    pub fn withdraw(&mut self, request: RequestKey) -> Option<RowId> {
        let at = self.entries.iter().position(|entry| entry.request == Some(request))?;
        let entry = self.entries.remove(at)?;
        self.detached -= usize::from(at < self.detached);
        self.bytes -= entry.block.bytes();
        Some(entry.row)
    }

    /// The next message to send, if there is one and the window has room for it.
    pub fn pop(&mut self) -> Option<Entry> {
        if !self.can_pop() {
            return None;
        }
        let entry = self.entries.pop_front()?;
        self.detached = self.detached.saturating_sub(1);
        let bytes = entry.block.bytes();
        self.bytes -= bytes;
        self.sent += 1;
        self.in_flight_bytes += bytes as u64;
        match self.in_flight.back_mut() {
            Some((row, messages, total)) if *row == entry.row => {
                *messages += 1;
                *total += bytes as u64;
            }
            _ => self.in_flight.push_back((entry.row, 1, bytes as u64)),
        }
        Some(entry)
    }

    /// Whether [`SendQueue::pop`] would give something.
    pub fn can_pop(&self) -> bool {
        !self.entries.is_empty() && (self.in_flight_bytes < self.window_bytes)
    }

    /// Settles messages up to `total`, counted since the queue began; a total beyond what was sent
    /// counts as what was sent. Calls `settle` for each row.
    pub fn credit(&mut self, total: u64, mut settle: impl FnMut(RowId, u64)) {
        let mut newly = total.min(self.sent).saturating_sub(self.credited);
        self.credited += newly;
        while newly > 0 {
            let Some((row, messages, bytes)) = self.in_flight.front_mut() else { break };
            let settled = newly.min(*messages);
            // Within one item sizes are averaged; the last message of an item takes what is left.
            let settled_bytes = if settled == *messages { *bytes } else { *bytes / *messages * settled };
            settle(*row, settled);
            *messages -= settled;
            *bytes -= settled_bytes;
            self.in_flight_bytes -= settled_bytes;
            newly -= settled;
            if *messages == 0 {
                self.in_flight.pop_front();
            }
        }
    }

    /// Settles `messages` more, for sessions whose deliveries the broker itself sees end.
    pub fn credit_more(&mut self, messages: u64, settle: impl FnMut(RowId, u64)) {
        self.credit(self.credited + messages, settle);
    }

    /// Gives back everything that was not delivered.
    pub fn abandon(&mut self, mut settle: impl FnMut(RowId, u64)) {
        for (row, messages, _) in self.in_flight.drain(..) {
            settle(row, messages);
        }
        for entry in self.entries.drain(..) {
            settle(entry.row, 1);
        }
        (self.bytes, self.in_flight_bytes, self.detached) = (0, 0, 0);
    }

    /// The topic of the message pushed last, if it was taken.
    pub fn newest_topic(&self) -> Option<TopicName> {
        TopicName::from_bytes(self.entries.back()?.block.topic()).ok()
    }

    /// Copies what waits out of its publishers' read buffers: a slow subscriber of a few topics would
    /// otherwise keep all the traffic around its messages in memory. Called when a turn has sent what
    /// it can, so that a subscriber that keeps up costs no copy.
    pub fn detach_backlog(&mut self) {
        let own = std::mem::replace(&mut self.detached, self.entries.len());
        self.entries.range_mut(own..).for_each(|entry| entry.block.detach());
    }

    /// How many messages were lost since the last call.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Whether messages were lost that nobody was told of.
    pub fn has_lost(&self) -> bool {
        self.lost > 0
    }

    /// Whether a queue that was full has room again: half of it is free.
    pub fn has_room(&self) -> bool {
        self.entries.len() <= self.messages_max / 2 && self.bytes <= self.bytes_max / 2
    }

    /// What is lost when it is full.
    pub fn overflow(&self) -> Overflow {
        self.overflow
    }

    /// Messages waiting, and sent but not credited.
    pub fn depth(&self) -> u64 {
        self.entries.len() as u64 + self.sent - self.credited
    }

    /// Bytes waiting, and sent but not credited.
    pub fn depth_bytes(&self) -> u64 {
        self.bytes as u64 + self.in_flight_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::ledger::{Ledger, RowKey};

    fn row() -> RowId {
        Ledger::default().row(RowKey { publisher: None, topic: None, subscriber: None })
    }

    fn entry(topic: &str, number: u8) -> Entry {
        let block = Block::new(&topic.parse().unwrap(), b"", &[number]);
        Entry { subscriptions: SubscriptionIds::from_slice(&[1]), request: None, block, row: row() }
    }

    fn numbers(queue: &mut SendQueue) -> Vec<u8> {
        std::iter::from_fn(|| queue.pop()).map(|entry| entry.block.payload()[0]).collect()
    }

    fn pushed(overflow: Overflow, topics: &[&str]) -> (SendQueue, Vec<Pushed>, usize) {
        let mut queue = SendQueue::new(overflow, 2, 0);
        let mut dropped = Vec::new();
        let outcomes = topics
            .iter()
            .enumerate()
            .map(|(number, topic)| queue.push(entry(topic, number as u8), &mut dropped))
            .collect();
        (queue, outcomes, dropped.len())
    }

    #[test]
    fn each_overflow_policy_loses_what_its_name_says() {
        let topics = ["a", "b", "a", "b"];
        let table = [
            (Overflow::DropNewest, vec![0, 1], 0, 2),
            (Overflow::DropOldest, vec![2, 3], 2, 2),
            (Overflow::LatestOnly, vec![2, 3], 2, 0),
            (Overflow::Wait, vec![0, 1, 2, 3], 0, 0),
        ];
        for (overflow, kept, made_room, lost) in table {
            let (mut queue, _, dropped) = pushed(overflow, &topics);
            assert_eq!(
                (numbers(&mut queue), dropped, queue.take_lost()),
                (kept, made_room, lost),
                "{overflow:?}"
            );
        }
        let (_, outcomes, _) = pushed(Overflow::Disconnect, &topics);
        assert_eq!(outcomes[2], Pushed::Disconnect);
    }

    #[test]
    fn wait_says_when_the_publisher_must_be_held_and_gives_up_at_twice_the_bound() {
        let (_, outcomes, _) = pushed(Overflow::Wait, &["a", "a", "a", "a", "a"]);
        use Pushed::{Queued, QueuedAndFull, Refused};
        assert_eq!(outcomes, [Queued, QueuedAndFull, QueuedAndFull, QueuedAndFull, Refused]);
    }

    #[test]
    fn an_empty_queue_takes_one_message_of_any_size() {
        let mut queue = SendQueue::new(Overflow::DropNewest, 10, 10);
        assert_eq!(queue.push(entry("a", 0), &mut Vec::new()), Pushed::Queued);
        assert_eq!(queue.push(entry("a", 1), &mut Vec::new()), Pushed::Refused);
    }

    #[test]
    fn credit_settles_in_order_and_never_more_than_was_sent() {
        let (mut queue, _, _) = pushed(Overflow::DropNewest, &["a", "b"]);
        queue.pop();
        let mut settled = 0;
        queue.credit(100, |_, messages| settled += messages);
        assert_eq!((settled, queue.depth()), (1, 1));
        queue.credit(50, |_, messages| settled += messages);
        assert_eq!(settled, 1, "a total that falls settles nothing");
        queue.pop();
        queue.abandon(|_, messages| settled += messages);
        assert_eq!((settled, queue.depth_bytes()), (2, 0));
    }

    #[test]
    fn a_backlog_keeps_its_own_messages_and_not_the_buffers_they_came_in() {
        let mut queue = SendQueue::new(Overflow::DropNewest, 0, 0);
        let mut shared_after = 0;
        for _ in 0..400 {
            let mut read_buffer = bytes::BytesMut::zeroed(4096);
            let payload = read_buffer.split_to(1024).freeze();
            let block = Block::with_payload(&"a".parse().unwrap(), b"", payload.clone());
            let entry =
                Entry { subscriptions: SubscriptionIds::from_slice(&[1]), request: None, block, row: row() };
            queue.push(entry, &mut Vec::new());
            queue.detach_backlog();
            shared_after = queue
                .entries
                .iter()
                .filter(|entry| entry.block.payload().as_ptr() == payload.as_ptr())
                .count();
        }
        assert_eq!(shared_after, 0, "the last message was copied out");
        let first = queue.entries.front().unwrap().block.payload();
        assert_eq!(first.len(), 1024);
    }

    #[test]
    fn nothing_is_sent_beyond_the_credit_window() {
        let mut queue = SendQueue::new(Overflow::DropNewest, 0, u32::MAX);
        let payload = vec![0; 1 << 20];
        for _ in 0..8 {
            let block = Block::new(&"a".parse().unwrap(), b"", &payload);
            let entry =
                Entry { subscriptions: SubscriptionIds::from_slice(&[1]), request: None, block, row: row() };
            queue.push(entry, &mut Vec::new());
        }
        let sent = std::iter::from_fn(|| queue.pop()).count();
        assert_eq!(sent, 4);
        queue.credit(1, |_, _| {});
        assert!(queue.pop().is_some() && queue.pop().is_none());
    }
}
