//! Always-on statistics per topic, bounded in memory. The tool reads them; it never has to
//! subscribe in order to measure.

use std::collections::{BTreeSet, HashMap};

use super::history::{Bucket, History};
use crate::{limits, peer::PeerName, topic::TopicName};

/// Whole seconds that rates are averaged over.
pub const RATE_SECONDS: [u64; 3] = [1, 10, 60];
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
    /// The second it was last counted in; those before are in the history.
    present: Bucket,
}

/// Messages and bytes a second, averaged over each of [`RATE_SECONDS`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Messages a second.
    pub messages: [f64; RATE_SECONDS.len()],
    /// Payload bytes a second.
    pub bytes: [f64; RATE_SECONDS.len()],
}

impl Rates {
    /// Counts a bucket into the averages of the whole seconds before `second`.
    fn add(&mut self, bucket: Bucket, second: u64) {
        for (index, over) in RATE_SECONDS.into_iter().enumerate() {
            if bucket.second < second && bucket.second + over >= second {
                self.messages[index] += f64::from(bucket.messages) / over as f64;
                self.bytes[index] += bucket.bytes as f64 / over as f64;
            }
        }
    }
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
            present: Bucket::default(),
        }
    }
}

/// Statistics of all topics of one broker epoch.
#[derive(Debug, Default)]
pub struct Statistics {
    topics: Vec<TopicStatistics>,
    index: HashMap<TopicName, TopicId>,
    others: Option<TopicId>,
    history: History,
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
        if topic.present.second != second {
            let over = std::mem::replace(&mut topic.present, Bucket { second, ..Bucket::default() });
            if over.messages > 0 {
                self.history.add(id.0, over);
            }
        }
        topic.present.messages = topic.present.messages.saturating_add(sizes.messages as u32);
        topic.present.bytes += sizes.bytes;
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

    /// The rates of all topics, in the order of [`Statistics::topics`].
    pub fn rates(&self, now_ms: u64) -> Vec<Rates> {
        let second = now_ms / 1000;
        let mut rates = vec![Rates::default(); self.topics.len()];
        for (topic, bucket) in self.since(second.saturating_sub(RATE_SECONDS[RATE_SECONDS.len() - 1])) {
            rates[topic].add(bucket, second);
        }
        rates
    }

    /// What each topic did from a second on: its place in [`Statistics::topics`], and a second. Of one topic the
    /// oldest comes first; the present second, which is not over, is among them.
    pub fn since(&self, second: u64) -> impl Iterator<Item = (usize, Bucket)> {
        let present = self.topics.iter().map(|topic| topic.present).enumerate();
        let over = self.history.since(second).map(|(topic, bucket)| (topic as usize, bucket));
        over.chain(present.filter(move |(_, bucket)| bucket.messages > 0 && bucket.second >= second))
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
        let rates = statistics.rates(1_020_000)[0];
        assert_eq!(rates.messages[..2], [1000.0, 1000.0]);
        assert!((rates.messages[2] - 20_000.0 / 60.0).abs() < 1e-6, "{rates:?}");
        assert_eq!(rates.bytes[1], 10_000.0);
        assert_eq!(statistics.rates(1_100_000)[0], Rates::default());
    }

    #[test]
    fn an_hour_of_seconds_can_be_read_back_with_the_present_one() {
        let mut statistics = Statistics::default();
        let [one, other] = ["a", "b"].map(|topic| statistics.topic(&topic.parse().unwrap()));
        for second in 0..2 * limits::HISTORY_SECONDS {
            statistics.count(one, Sizes::one(second as usize), second * 1000 + 999);
        }
        statistics.count(other, Sizes::one(7), 5_000);
        let now = 2 * limits::HISTORY_SECONDS - 1;
        let kept: Vec<_> =
            statistics.since(0).filter(|(topic, _)| *topic == 0).map(|(_, bucket)| bucket).collect();
        assert_eq!(kept.len() as u64, limits::HISTORY_SECONDS + 1);
        assert!(kept.windows(2).all(|pair| pair[0].second + 1 == pair[1].second));
        assert_eq!(kept.last(), Some(&Bucket { second: now, messages: 1, bytes: now }));
        assert_eq!(statistics.since(now).count(), 1);
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
