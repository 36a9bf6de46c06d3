//! A message of the model: as it was made, and in a queue.

use super::*;

/// A message as its publisher made it.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) topic: TopicName,
    pub(super) number: u8,
    pub(super) deadline_ms: u64,
    pub(super) retain: bool,
}

impl Message {
    pub(super) fn is_late(&self, now_ms: u64) -> bool {
        self.deadline_ms != 0 && self.deadline_ms <= now_ms
    }
}

#[derive(Clone, Debug)]
pub(super) struct Queued {
    pub(super) topic: String,
    pub(super) publisher: String,
    pub(super) subscriptions: Vec<u32>,
    pub(super) number: u8,
    pub(super) request: Option<u64>,
    pub(super) deadline_ms: u64,
    pub(super) retained: bool,
    /// Messages that were lost behind it, by subscription.
    pub(super) lost_behind: Vec<(u32, u64)>,
}

impl Queued {
    /// What the model keeps of it once it was sent.
    pub(super) fn as_sent(&self) -> (String, String, u64) {
        let beside = 4 * self.subscriptions.len().saturating_sub(1) as u64;
        (self.publisher.clone(), self.topic.clone(), bytes_of(&self.topic) + beside)
    }

    pub(super) fn is_late(&self, now_ms: u64) -> bool {
        self.request.is_none() && self.deadline_ms != 0 && self.deadline_ms <= now_ms
    }
}

impl Message {
    pub(super) fn queued(&self, publisher: &str, subscriptions: Vec<u32>) -> Queued {
        Queued {
            topic: self.topic.to_string(),
            publisher: publisher.to_owned(),
            subscriptions,
            number: self.number,
            request: None,
            deadline_ms: self.deadline_ms,
            retained: false,
            lost_behind: Vec::new(),
        }
    }

    pub(super) fn block(&self) -> Block {
        let payload: &[u8] = if self.number == 0 { b"" } else { &[self.number] };
        // Each has the same size: of neighbours in one row credit settles the average.
        let header: &[u8] = if self.number == 0 { b"-" } else { b"" };
        let mut block = Block::new(&self.topic, header, payload);
        block.deadline_ms = self.deadline_ms;
        block.flags = if self.retain { Block::RETAIN } else { 0 };
        block
    }
}

impl Queued {
    pub(super) fn sent(self) -> Sent {
        match self.request {
            None => Sent::Deliver {
                subscriptions: self.subscriptions,
                number: self.number,
                retained: self.retained,
            },
            Some(_) => Sent::Request { number: self.number },
        }
    }
}
