//! Waiting messages of a queue that keeps the last one of each topic: each is found by its topic or its request, however
//! many others wait.

use std::collections::{BTreeMap, HashMap};

use super::{Entry, losses::Losses};
use crate::broker::requests::RequestKey;

/// The messages, in order.
///
/// Invariants:
/// - a topic has one message at most, requests aside;
/// - losses stand at places: one loss place is behind a message that waits, or in front of all.
#[derive(Debug, Default)]
pub(super) struct Latest {
    /// By place, a number that rises with each message. What is taken out leaves its place empty.
    entries: BTreeMap<u64, Entry>,
    topics: HashMap<Box<[u8]>, u64>,
    requests: HashMap<RequestKey, u64>,
    /// The place of the next message.
    end: u64,
}

impl Latest {
    /// Adds a message behind all others. The one before it of its topic was [taken out](Latest::take_topic).
    pub(super) fn push(&mut self, entry: Entry) {
        match entry.request {
            Some(request) => self.requests.insert(request, self.end),
            None => self.topics.insert(entry.block.topic().into(), self.end),
        };
        self.entries.insert(self.end, entry);
        self.end += 1;
    }

    /// The message whose turn it is.
    pub(super) fn front(&self) -> Option<&Entry> {
        self.entries.first_key_value().map(|(_, entry)| entry)
    }

    /// Takes the message whose turn it is.
    pub(super) fn pop_front(&mut self, losses: &mut Losses) -> Option<Entry> {
        let place = *self.entries.first_key_value()?.0;
        self.take(place, losses).map(|(entry, _)| entry)
    }

    /// Takes out the message of a topic, with the place for losses that it leaves.
    pub(super) fn take_topic(&mut self, topic: &[u8], losses: &mut Losses) -> Option<(Entry, usize)> {
        let place = *self.topics.get(topic)?;
        self.take(place, losses)
    }

    /// Takes out a request.
    pub(super) fn take_request(&mut self, request: RequestKey, losses: &mut Losses) -> Option<Entry> {
        let place = *self.requests.get(&request)?;
        self.take(place, losses).map(|(entry, _)| entry)
    }

    /// Takes out what `goes` says yes to.
    pub(super) fn take_out(&mut self, losses: &mut Losses, goes: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let places: Vec<u64> =
            self.entries.iter().filter(|(_, entry)| goes(entry)).map(|(place, _)| *place).collect();
        places.into_iter().filter_map(|place| self.take(place, losses)).map(|(entry, _)| entry).collect()
    }

    /// Takes out all.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Entry> {
        self.topics.clear();
        self.requests.clear();
        std::mem::take(&mut self.entries).into_values()
    }

    /// The place for losses behind the last message, counted from the front.
    pub(super) fn behind_last(&self) -> usize {
        self.entries.last_key_value().map_or(0, |(last, _)| last + 1 - self.front_place()) as usize
    }

    /// Where the message is whose turn it is, or will be.
    fn front_place(&self) -> u64 {
        self.entries.first_key_value().map_or(self.end, |(first, _)| *first)
    }

    /// Takes out what is in a place. What was lost behind it was lost behind the one before it: gives the place for
    /// that, counted from the front.
    fn take(&mut self, place: u64, losses: &mut Losses) -> Option<(Entry, usize)> {
        let front = self.front_place();
        let entry = self.entries.remove(&place)?;
        match entry.request {
            Some(request) => self.requests.remove(&request),
            None => self.topics.remove(entry.block.topic()),
        };
        if place == front {
            losses.pass(self.front_place() - front);
            return Some((entry, 0));
        }
        let before = self.entries.range(..place).next_back().map_or(front, |(before, _)| *before);
        let left = (before + 1 - front) as usize;
        losses.close_up((place + 1 - front) as usize, left);
        Some((entry, left))
    }
}
