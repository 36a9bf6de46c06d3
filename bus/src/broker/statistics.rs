//! Always-on statistics per topic, bounded in memory. The tool reads them; it never has to
//! subscribe in order to measure.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::{limits, peer::PeerName, topic::TopicName};

/// One-second buckets kept per topic: rates are averages over the last ones.
const BUCKETS_KEPT: usize = 60;
/// Seconds a rate is averaged over.
pub const RATE_SECONDS: u64 = 10;
/// Publishers named per topic; more are counted and not named.
const PUBLISHERS_NAMED: usize = 32;

/// A topic's place in [`Statistics`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicId(u32);

/// Messages to be counted: how many, and the bytes of their payloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// How many.
    pub messages: u64,
    /// Bytes of all payloads.
    pub bytes: u64,
    /// Bytes of the largest.
    pub largest: u64,
}

impl Sizes {
    /// One message.
    pub fn one(payload_bytes: usize) -> Self {
        let bytes = payload_bytes as u64;
        Self { messages: 1, bytes, largest: bytes }
    }

    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            messages: self.messages + other.messages,
            bytes: self.bytes + other.bytes,
            largest: self.largest.max(other.largest),
        }
    }
}

/// What is known of one topic.
#[derive(Debug)]
pub struct TopicStatistics {
    /// The topic; `None` for the row shared by those beyond [`limits::TOPICS_TRACKED_MAX`].
    pub topic: Option<TopicName>,
    /// Messages published and requests sent under it.
    pub messages: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Requests among the messages.
    pub requests: u64,
    /// Messages refused to their publisher.
    pub denied: u64,
    /// The largest payload.
    pub largest: u64,
    /// When the last one came, in milliseconds since the Unix epoch; zero if never.
    pub last_seen_ms: u64,
    /// Who published it.
    pub publishers: BTreeSet<PeerName>,
    /// Second, messages, bytes; sparse, oldest first.
    buckets: VecDeque<(u64, u32, u64)>,
}

impl TopicStatistics {
    fn new(topic: Option<TopicName>) -> Self {
        Self {
            topic,
            messages: 0,
            bytes: 0,
            requests: 0,
            denied: 0,
            largest: 0,
            last_seen_ms: 0,
            publishers: BTreeSet::new(),
            buckets: VecDeque::new(),
        }
    }

    /// Messages and bytes a second, averaged over the [`RATE_SECONDS`] whole seconds before `now_ms`.
    pub fn rates(&self, now_ms: u64) -> (f64, f64) {
        let second = now_ms / 1000;
        let recent = self.buckets.iter().filter(|(at, ..)| *at < second && *at + RATE_SECONDS >= second);
        let (messages, bytes) =
            recent.fold((0, 0), |sum, (_, messages, bytes)| (sum.0 + u64::from(*messages), sum.1 + bytes));
        (messages as f64 / RATE_SECONDS as f64, bytes as f64 / RATE_SECONDS as f64)
    }
}

/// Statistics of all topics of one broker epoch.
#[derive(Debug, Default)]
pub struct Statistics {
    topics: Vec<TopicStatistics>,
    index: HashMap<TopicName, TopicId>,
    others: Option<TopicId>,
}

impl Statistics {
    /// The place of a topic, made if it is new.
    pub fn topic(&mut self, topic: &TopicName) -> TopicId {
        if let Some(id) = self.index.get(topic) {
            return *id;
        }
        if self.topics.len() >= limits::TOPICS_TRACKED_MAX {
            return *self.others.get_or_insert_with(|| {
                self.topics.push(TopicStatistics::new(None));
                TopicId(self.topics.len() as u32 - 1)
            });
        }
        self.topics.push(TopicStatistics::new(Some(topic.clone())));
        let id = TopicId(self.topics.len() as u32 - 1);
        self.index.insert(topic.clone(), id);
        id
    }

    /// Counts messages.
    pub fn count(&mut self, id: TopicId, sizes: Sizes, now_ms: u64) {
        let topic = &mut self.topics[id.0 as usize];
        topic.messages += sizes.messages;
        topic.bytes += sizes.bytes;
        topic.largest = topic.largest.max(sizes.largest);
        topic.last_seen_ms = now_ms;
        let second = now_ms / 1000;
        match topic.buckets.back_mut() {
            Some((at, messages, bytes)) if *at == second => {
                *messages = messages.saturating_add(sizes.messages as u32);
                *bytes += sizes.bytes;
            }
            _ => {
                if topic.buckets.len() == BUCKETS_KEPT {
                    topic.buckets.pop_front();
                }
                topic.buckets.push_back((second, sizes.messages as u32, sizes.bytes));
            }
        }
    }

    /// Marks the message just counted as a request.
    pub fn count_request(&mut self, id: TopicId) {
        self.topics[id.0 as usize].requests += 1;
    }

    /// Counts a refused message.
    pub fn count_denied(&mut self, id: TopicId) {
        self.topics[id.0 as usize].denied += 1;
    }

    /// Names a publisher of the topic.
    pub fn published_by(&mut self, id: TopicId, publisher: &PeerName) {
        let publishers = &mut self.topics[id.0 as usize].publishers;
        if publishers.len() < PUBLISHERS_NAMED && !publishers.contains(publisher) {
            publishers.insert(publisher.clone());
        }
    }

    /// All topics.
    pub fn topics(&self) -> &[TopicStatistics] {
        &self.topics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_over_the_last_whole_seconds() {
        let mut statistics = Statistics::default();
        let id = statistics.topic(&"a".parse().unwrap());
        for millisecond in 0..20_000 {
            statistics.count(id, Sizes::one(10), 1_000_000 + millisecond);
        }
        let (messages, bytes) = statistics.topics()[0].rates(1_020_000);
        assert_eq!((messages, bytes), (1000.0, 10_000.0));
        assert_eq!(statistics.topics()[0].rates(1_100_000).0, 0.0);
    }

    #[test]
    fn topics_beyond_the_limit_share_one_row() {
        let mut statistics = Statistics::default();
        for number in 0..limits::TOPICS_TRACKED_MAX + 5 {
            let id = statistics.topic(&format!("t/{number}").parse().unwrap());
            statistics.count(id, Sizes::one(1), 0);
        }
        assert_eq!(statistics.topics().len(), limits::TOPICS_TRACKED_MAX + 1);
        assert_eq!(statistics.topics().last().unwrap().messages, 5);
    }
}
