//! Requests in flight: who asked, who answers, until when. Pure.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

use super::hub::SessionId;
use crate::topic::TopicName;

/// The broker's number of a request, as its server sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestKey(pub u64);

/// One request in flight.
#[derive(Debug)]
pub struct PendingRequest {
    /// Who asked.
    pub requester: SessionId,
    /// The requester's own number.
    pub requester_id: u64,
    /// Who answers.
    pub server: SessionId,
    /// The server's subscription it went through.
    pub subscription: u32,
    /// What it asked for.
    pub topic: TopicName,
    /// Parts that its server may send before the first credit.
    pub window: u32,
    /// Parts of the answer that a stock requester has been sent.
    pub parts: u64,
    /// It is a probe of a subscription to this topic, and the broker words the answer.
    pub probed: Option<TopicName>,
}

/// All requests in flight, and their deadlines.
#[derive(Debug, Default)]
pub struct Requests {
    pending: HashMap<RequestKey, PendingRequest>,
    by_requester: HashMap<(SessionId, u64), RequestKey>,
    deadlines: BinaryHeap<Reverse<(u64, RequestKey)>>,
    next: u64,
}

impl Requests {
    /// Adds a request that ends at `deadline_ms` at the latest.
    pub fn add(&mut self, request: PendingRequest, deadline_ms: u64) -> RequestKey {
        self.next += 1;
        let key = RequestKey(self.next);
        self.by_requester.insert((request.requester, request.requester_id), key);
        self.pending.insert(key, request);
        self.deadlines.push(Reverse((deadline_ms, key)));
        key
    }

    /// A request by the broker's number.
    pub fn get_mut(&mut self, key: RequestKey) -> Option<&mut PendingRequest> {
        self.pending.get_mut(&key)
    }

    /// The topic that a probe in flight is about; `None` if it is none.
    pub fn probed(&self, key: RequestKey) -> Option<&TopicName> {
        self.pending.get(&key)?.probed.as_ref()
    }

    /// Whether the request is still in flight.
    pub fn contains(&self, key: RequestKey) -> bool {
        self.pending.contains_key(&key)
    }

    /// The broker's number of a requester's request.
    pub fn key_of(&self, requester: SessionId, requester_id: u64) -> Option<RequestKey> {
        self.by_requester.get(&(requester, requester_id)).copied()
    }

    /// Ends a request.
    pub fn remove(&mut self, key: RequestKey) -> Option<PendingRequest> {
        let request = self.pending.remove(&key)?;
        self.by_requester.remove(&(request.requester, request.requester_id));
        if self.deadlines.len() > 2 * self.pending.len() + 1024 {
            let pending = &self.pending;
            self.deadlines.retain(|Reverse((_, key))| pending.contains_key(key));
        }
        Some(request)
    }

    /// A request whose deadline has passed, if any.
    pub fn pop_expired(&mut self, now_ms: u64) -> Option<RequestKey> {
        while let Some(Reverse((deadline_ms, key))) = self.deadlines.peek().copied() {
            if self.pending.contains_key(&key) && deadline_ms > now_ms {
                return None;
            }
            self.deadlines.pop();
            if self.pending.contains_key(&key) {
                return Some(key);
            }
        }
        None
    }

    /// Requests that `matches` says yes to, in order of their numbers.
    pub fn matching(&self, matches: impl Fn(&PendingRequest) -> bool) -> Vec<RequestKey> {
        let mut keys: Vec<_> =
            self.pending.iter().filter(|(_, request)| matches(request)).map(|(key, _)| *key).collect();
        keys.sort_unstable();
        keys
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }
}
