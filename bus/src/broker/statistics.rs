//! Always-on statistics per topic, bounded in memory. The tool reads them; it never has to
//! subscribe in order to measure. Pure.
//!
//! A message costs one look at the second, and additions to a row that its cached route names. What a topic had in a
//! second goes into `History` once, when the first message of a later second comes.

use std::collections::HashMap;

use smallvec::SmallVec;

use super::{
    delay::Delays,
    history::{Bucket, History},
};
use crate::{limits, topic::TopicName};

/// Seconds that rates are averaged over.
pub const RATE_SECONDS: [u64; 3] = [1, 10, 60];
/// Publishers named per topic; that there are more is noted.
const PUBLISHERS_NAMED: usize = 32;
/// Classes of sizes: class `n` holds payloads of `n` significant bits, that is of at most `2^n - 1` bytes.
pub const SIZE_CLASSES: usize = 28;
/// What a row takes beside itself and its name: its place in the index, which is never fuller than half.
const INDEX_BYTES: usize = 2 * (size_of::<(TopicName, TopicId)>() + 1);
/// Rows are made room for by so many at once.
const ROWS_STEP: usize = 1024;

/// A topic's place in [`Statistics`]. Valid for one number of [`Statistics::evictions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicId(pub(super) u32);

/// The row shared by topics that have none of their own.
const OTHERS: TopicId = TopicId(0);

/// What is known of one topic.
#[derive(Clone, Debug)]
pub struct TopicStatistics {
    /// The topic; `None` for the row shared by those without one of their own.
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
    /// How many payloads there were of each class of [`SIZE_CLASSES`].
    pub sizes: [u64; SIZE_CLASSES],
    /// Who published it, as numbers of origins.
    pub publishers: SmallVec<[u32; 4]>,
    /// There are more publishers than are named.
    pub has_more_publishers: bool,
    /// When somebody last had to do with it.
    touched_ms: u64,
    /// What came in the second that is not in the history yet.
    open: OpenSecond,
}

/// What came of a topic in a second that is not over.
#[derive(Clone, Copy, Debug, Default)]
struct OpenSecond {
    messages: u64,
    bytes: u64,
    delays: Delays,
}

impl OpenSecond {
    fn so_far(&self) -> Bucket {
        Bucket { messages: self.messages, bytes: self.bytes, delay: self.delays.so_far() }
    }
}

impl TopicStatistics {
    fn new(topic: Option<TopicName>, now_ms: u64) -> Self {
        Self {
            topic,
            messages: 0,
            bytes: 0,
            requests: 0,
            denied: 0,
            largest: 0,
            last_seen_ms: 0,
            sizes: [0; SIZE_CLASSES],
            publishers: SmallVec::new(),
            has_more_publishers: false,
            touched_ms: now_ms,
            open: OpenSecond::default(),
        }
    }

    /// Memory of its own, and of its place in the index.
    fn memory_bytes(&self) -> usize {
        let name = self.topic.as_ref().map_or(0, |topic| topic.as_str().len());
        size_of::<Self>() + INDEX_BYTES + 2 * name
    }

    /// Takes in the row of a topic that is forgotten.
    fn fold(&mut self, other: &Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.requests += other.requests;
        self.denied += other.denied;
        self.largest = self.largest.max(other.largest);
        self.last_seen_ms = self.last_seen_ms.max(other.last_seen_ms);
        self.sizes.iter_mut().zip(other.sizes).for_each(|(sum, count)| *sum += count);
        self.has_more_publishers |= !other.publishers.is_empty();
    }
}

/// The class of a payload's size.
fn class_of(payload_bytes: usize) -> usize {
    ((usize::BITS - payload_bytes.leading_zeros()) as usize).min(SIZE_CLASSES - 1)
}

/// Messages and bytes a second over each of [`RATE_SECONDS`].
pub type Rates = [(f64, f64); RATE_SECONDS.len()];

/// Statistics of all topics of one broker epoch. Rows are bounded by [`limits::TOPICS_TRACKED_MAX`] and
/// [`limits::STATISTICS_ROWS_BYTES_MAX`], their history by [`limits::HISTORY_BYTES`]. A topic that nobody
/// had to do with for as long as the history reaches gives way to new ones; its numbers go to the row of the others.
#[derive(Debug)]
pub struct Statistics {
    rows: Vec<TopicStatistics>,
    rows_bytes: usize,
    index: HashMap<TopicName, TopicId>,
    free: Vec<TopicId>,
    evictions: u64,
    /// Before this nobody can give way.
    reclaim_at_ms: u64,
    /// The second whose counts are open.
    second: u64,
    /// Topics with counts in it.
    active: Vec<TopicId>,
    history: History,
}

impl Default for Statistics {
    fn default() -> Self {
        Self {
            rows: vec![TopicStatistics::new(None, 0)],
            rows_bytes: 0,
            index: HashMap::new(),
            free: Vec::new(),
            evictions: 0,
            reclaim_at_ms: 0,
            second: 0,
            active: Vec::new(),
            history: History::default(),
        }
    }
}

impl Statistics {
    /// The place of a topic, made if it is new.
    pub fn topic(&mut self, topic: &TopicName, now_ms: u64) -> TopicId {
        if let Some(id) = self.index.get(topic) {
            self.rows[id.0 as usize].touched_ms = now_ms;
            return *id;
        }
        let row = TopicStatistics::new(Some(topic.clone()), now_ms);
        if !self.has_room_for(&row) {
            self.reclaim(now_ms);
        }
        if !self.has_room_for(&row) {
            return OTHERS;
        }
        self.rows_bytes += row.memory_bytes();
        let id = match self.free.pop() {
            Some(id) => {
                self.rows[id.0 as usize] = row;
                id
            }
            None => {
                if self.rows.len() == self.rows.capacity() {
                    self.rows.reserve_exact(ROWS_STEP);
                }
                self.rows.push(row);
                TopicId(self.rows.len() as u32 - 1)
            }
        };
        self.index.insert(topic.clone(), id);
        id
    }

    fn has_room_for(&self, row: &TopicStatistics) -> bool {
        self.index.len() + 1 < limits::TOPICS_TRACKED_MAX
            && self.rows_bytes + row.memory_bytes() <= limits::STATISTICS_ROWS_BYTES_MAX
    }

    /// Folds the rows of topics that were left alone for so long that the history knows nothing of them.
    fn reclaim(&mut self, now_ms: u64) {
        const IDLE_MS: u64 = 1000 * limits::HISTORY_SECONDS;
        if now_ms < self.reclaim_at_ms {
            return;
        }
        let mut oldest_ms = now_ms;
        for at in 1..self.rows.len() {
            let row = &self.rows[at];
            let Some(topic) = row.topic.clone() else { continue };
            if row.touched_ms + IDLE_MS >= now_ms || row.open.messages > 0 {
                oldest_ms = oldest_ms.min(row.touched_ms);
                continue;
            }
            self.rows_bytes -= row.memory_bytes();
            let row = std::mem::replace(&mut self.rows[at], TopicStatistics::new(None, now_ms));
            self.rows[OTHERS.0 as usize].fold(&row);
            self.index.remove(&topic);
            self.free.push(TopicId(at as u32));
            self.evictions += 1;
        }
        self.reclaim_at_ms = oldest_ms + IDLE_MS + 1;
    }

    /// How often a row was taken from a topic. Whoever keeps [`TopicId`]s must look them up again when this changes.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Counts messages with payloads of these sizes.
    pub fn count(&mut self, id: TopicId, payload_bytes: impl IntoIterator<Item = usize>, now_ms: u64) {
        self.begin_second(now_ms / 1000);
        let row = &mut self.rows[id.0 as usize];
        let (mut messages, mut bytes, mut largest) = (0, 0, 0);
        // Messages of a run are mostly of one class.
        let (mut class, mut of_class) = (0, 0);
        for size in payload_bytes {
            messages += 1;
            bytes += size as u64;
            largest = largest.max(size);
            let its_class = class_of(size);
            if its_class != class {
                row.sizes[class] += of_class;
                (class, of_class) = (its_class, 0);
            }
            of_class += 1;
        }
        row.sizes[class] += of_class;
        row.messages += messages;
        row.bytes += bytes;
        row.largest = row.largest.max(largest as u64);
        (row.last_seen_ms, row.touched_ms) = (now_ms, now_ms);
        if row.open.messages == 0 && messages > 0 {
            self.active.push(id);
        }
        row.open.messages += messages;
        row.open.bytes += bytes;
    }

    /// Puts the counts of the open second into the history if another one has begun. A clock that was set back
    /// goes on in the open one.
    fn begin_second(&mut self, second: u64) {
        if second <= self.second {
            return;
        }
        let rows = &mut self.rows;
        let counts =
            self.active.drain(..).map(|id| (id.0, std::mem::take(&mut rows[id.0 as usize].open).so_far()));
        self.history.add(self.second, counts);
        self.second = second;
    }

    /// Notes how long one of the messages just counted took to the broker.
    pub(super) fn delayed(&mut self, id: TopicId, delay_ns: u64) {
        self.rows[id.0 as usize].open.delays.add(delay_ns);
    }

    /// Marks the message just counted as a request.
    pub fn count_request(&mut self, id: TopicId) {
        self.rows[id.0 as usize].requests += 1;
    }

    /// Counts a refused message.
    pub fn count_denied(&mut self, id: TopicId) {
        self.rows[id.0 as usize].denied += 1;
    }

    /// Names a publisher of the topic.
    pub fn published_by(&mut self, id: TopicId, origin: u32) {
        let row = &mut self.rows[id.0 as usize];
        if row.publishers.contains(&origin) {
            return;
        }
        // The others have many, and their names would say nothing.
        if id == OTHERS || row.publishers.len() >= PUBLISHERS_NAMED {
            row.has_more_publishers = true;
        } else {
            row.publishers.push(origin);
        }
    }

    /// All topics, and the row of the others if anything is counted there.
    pub fn topics(&self) -> impl Iterator<Item = (TopicId, &TopicStatistics)> {
        self.rows.iter().enumerate().filter_map(|(at, row)| {
            let is_shown = row.topic.is_some() || (at == 0 && row.messages + row.denied > 0);
            is_shown.then_some((TopicId(at as u32), row))
        })
    }

    /// The row of a topic that has one.
    pub fn find(&self, topic: &TopicName) -> Option<(TopicId, &TopicStatistics)> {
        let id = *self.index.get(topic)?;
        Some((id, &self.rows[id.0 as usize]))
    }

    /// The rates of all topics, by place.
    pub fn rates(&self, now_ms: u64) -> Vec<Rates> {
        let now = now_ms / 1000;
        let mut sums = vec![[Bucket::default(); RATE_SECONDS.len()]; self.rows.len()];
        let longest = RATE_SECONDS[RATE_SECONDS.len() - 1];
        self.each_bucket(now.saturating_sub(longest), now, |second, topic, bucket| {
            for (sum, seconds) in sums[topic as usize].iter_mut().zip(RATE_SECONDS) {
                if second + seconds >= now {
                    sum.messages += bucket.messages;
                    sum.bytes += bucket.bytes;
                }
            }
        });
        let rate = |sum: Bucket, seconds: u64| {
            (sum.messages as f64 / seconds as f64, sum.bytes as f64 / seconds as f64)
        };
        sums.into_iter().map(|sums| std::array::from_fn(|at| rate(sums[at], RATE_SECONDS[at]))).collect()
    }

    /// What each topic had in each second from `from` on and before `until`, in order of time.
    pub fn each_bucket(&self, from: u64, until: u64, mut act: impl FnMut(u64, u32, Bucket)) {
        self.history.each(from, until, &mut act);
        if (from..until).contains(&self.second) {
            for id in &self.active {
                act(self.second, id.0, self.rows[id.0 as usize].open.so_far());
            }
        }
    }

    /// The second from which on the history is complete, given when counting began.
    pub fn complete_from(&self, started_ms: u64, now_ms: u64) -> u64 {
        self.history
            .complete_from()
            .max(started_ms / 1000)
            .max((now_ms / 1000).saturating_sub(limits::HISTORY_SECONDS))
    }

    #[cfg(test)]
    fn memory_bytes(&self) -> usize {
        let names: usize = self.index.keys().map(|topic| 2 * topic.as_str().len()).sum();
        let spilled: usize = self
            .rows
            .iter()
            .filter(|row| row.publishers.spilled())
            .map(|row| 4 * row.publishers.capacity())
            .sum();
        // A table of n entries has a power of two of places, each with a byte of its own, at most 7/8 full.
        let places = (self.index.capacity() * 8 / 7).next_power_of_two();
        self.rows.capacity() * size_of::<TopicStatistics>()
            + names
            + spilled
            + places * (size_of::<(TopicName, TopicId)>() + 1)
            + 4 * (self.free.capacity() + self.active.capacity())
            + self.history.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::{super::delay::Delay, *};

    fn topic(text: &str) -> TopicName {
        text.parse().unwrap()
    }

    #[test]
    fn rates_are_over_the_last_whole_seconds() {
        let mut statistics = Statistics::default();
        let id = statistics.topic(&topic("a"), 1_000_000);
        for millisecond in 0..20_000 {
            statistics.count(id, [10], 1_000_000 + millisecond);
        }
        let rates = |now_ms| statistics.rates(now_ms)[id.0 as usize];
        assert_eq!(
            rates(1_020_000),
            [(1000.0, 10_000.0), (1000.0, 10_000.0), (20_000.0 / 60.0, 200_000.0 / 60.0)]
        );
        assert_eq!(rates(1_022_500), [(0.0, 0.0), (800.0, 8000.0), (20_000.0 / 60.0, 200_000.0 / 60.0)]);
        assert_eq!(rates(1_100_000), [(0.0, 0.0); 3]);
    }

    #[test]
    fn a_second_has_its_own_delays_while_it_is_open_and_afterwards() {
        let mut statistics = Statistics::default();
        let id = statistics.topic(&topic("a"), 1_000_000);
        let mut came = |second: u64, delays_us: &[u64]| {
            statistics.count(id, [1, 1, 1], second * 1000);
            delays_us.iter().for_each(|delay_us| statistics.delayed(id, delay_us * 1000));
        };
        came(1000, &[100, 300]);
        came(1001, &[]);
        came(1002, &[7]);
        let mut found = Vec::new();
        statistics.each_bucket(0, 2000, |second, _, bucket| found.push((second, bucket.delay)));
        let delay = |mean_us, max_us| Some(Delay { mean_us, max_us });
        assert_eq!(found, [(1000, delay(200, 300)), (1001, None), (1002, delay(7, 7))]);
    }

    /// A message: which topic, how large, how many milliseconds after the one before.
    fn messages() -> impl Strategy<Value = Vec<(usize, usize, u64)>> {
        let size = prop_oneof![0..2usize, 0..5000usize, Just(limits::PAYLOAD_BYTES_MAX)];
        let pause = prop_oneof![6 => 0..50u64, 3 => 0..3000u64, 1 => 0..2_000_000u64];
        prop::collection::vec((0..4usize, size, pause), 1..200)
    }

    proptest! {
        #[test]
        fn the_numbers_are_those_of_a_naive_recount(messages in messages(), run in 1..8usize) {
            let mut statistics = Statistics::default();
            let start_ms = 1_000_000_000;
            let topics: Vec<TopicName> = (0..4).map(|number| topic(&format!("t/{number}"))).collect();
            let ids: Vec<TopicId> = topics.iter().map(|topic| statistics.topic(topic, start_ms)).collect();
            let mut now_ms = start_ms;
            let mut counted: Vec<(usize, usize, u64)> = Vec::new();
            for chunk in messages.chunks(run) {
                now_ms += chunk[0].2;
                // A run is of one topic and of one moment.
                statistics.count(ids[chunk[0].0], chunk.iter().map(|(_, size, _)| *size), now_ms);
                counted.extend(chunk.iter().map(|(_, size, _)| (chunk[0].0, *size, now_ms)));
            }
            let now = now_ms / 1000 + 1;
            let mut seconds: BTreeMap<(u64, u32), (u64, u64)> = BTreeMap::new();
            for (of, size, at_ms) in counted.iter().filter(|(.., at_ms)| at_ms / 1000 + limits::HISTORY_SECONDS >= now_ms / 1000) {
                let sum = seconds.entry((at_ms / 1000, ids[*of].0)).or_default();
                *sum = (sum.0 + 1, sum.1 + *size as u64);
            }
            let mut found = BTreeMap::new();
            let first = (now_ms / 1000).saturating_sub(limits::HISTORY_SECONDS);
            statistics.each_bucket(first, now, |second, topic, bucket| {
                prop_assert_no_double(found.insert((second, topic), (bucket.messages, bucket.bytes)));
            });
            prop_assert_eq!(found, seconds);
            let rates = statistics.rates(now * 1000);
            for (of, id) in ids.iter().enumerate() {
                let row = &statistics.rows[id.0 as usize];
                let its = || counted.iter().filter(|(topic, ..)| *topic == of);
                prop_assert_eq!(row.messages, its().count() as u64);
                prop_assert_eq!(row.bytes, its().map(|(_, size, _)| *size as u64).sum::<u64>());
                prop_assert_eq!(row.largest, its().map(|(_, size, _)| *size as u64).max().unwrap_or(0));
                prop_assert_eq!(row.last_seen_ms, its().map(|(.., at)| *at).max().unwrap_or(0));
                for (class, count) in row.sizes.iter().enumerate() {
                    let (least, most) = ((1 << class) >> 1, (1usize << class) - 1);
                    let is_in = |size: usize| size >= least && size <= most;
                    prop_assert_eq!(*count, its().filter(|(_, size, _)| is_in(*size)).count() as u64);
                }
                for (seconds, rate) in RATE_SECONDS.into_iter().zip(rates[id.0 as usize]) {
                    let recent = its().filter(|(.., at)| at / 1000 + seconds >= now).count();
                    prop_assert_eq!(rate.0, recent as f64 / seconds as f64);
                }
            }
        }
    }

    fn prop_assert_no_double(before: Option<(u64, u64)>) {
        assert!(before.is_none(), "a second of a topic stands twice in the history");
    }

    #[test]
    fn a_million_topics_take_no_more_than_the_budget_and_nothing_is_left_uncounted() {
        for long in [false, true] {
            let mut statistics = Statistics::default();
            // Rows are all taken long before the end of either.
            let total = if long { 100_000 } else { 1_000_000 };
            for number in 0..total {
                let name = match long {
                    false => format!("t/{number}"),
                    true => format!("{}/{number}", "x".repeat(240)),
                };
                // A million seconds of history would be a million buckets.
                let now_ms = 1_000_000_000 + number * 3;
                let id = statistics.topic(&topic(&name), now_ms);
                statistics.count(id, [100], now_ms);
                if number < limits::TOPICS_TRACKED_MAX as u64 {
                    (0..40).for_each(|origin| statistics.published_by(id, origin));
                }
            }
            assert!(
                statistics.memory_bytes() <= limits::STATISTICS_BYTES_MAX,
                "{} bytes",
                statistics.memory_bytes()
            );
            assert_eq!(statistics.topics().map(|(_, row)| row.messages).sum::<u64>(), total);
            assert!(statistics.topics().any(|(_, row)| row.topic.is_none()), "the others have a row");
        }
    }

    #[test]
    fn a_full_history_forgets_its_oldest_seconds_and_says_from_when_on_it_is_complete() {
        let mut statistics = Statistics::default();
        let start_ms = 1_000_000_000;
        let ids: Vec<TopicId> =
            (0..1000).map(|number| statistics.topic(&topic(&format!("t/{number}")), start_ms)).collect();
        for second in 0..1000 {
            ids.iter().for_each(|id| statistics.count(*id, [1], start_ms + second * 1000));
        }
        assert!(statistics.memory_bytes() <= limits::STATISTICS_BYTES_MAX);
        let (now_ms, mut messages) = (start_ms + 1_000_000, 0);
        let complete_from = statistics.complete_from(start_ms, now_ms);
        assert!(complete_from > start_ms / 1000 + 400, "{complete_from}");
        statistics.each_bucket(complete_from, now_ms / 1000, |_, _, bucket| messages += bucket.messages);
        assert_eq!(messages, 1000 * (now_ms / 1000 - complete_from));
    }

    #[test]
    fn topics_that_were_left_alone_for_an_hour_give_way_and_their_numbers_stay() {
        let mut statistics = Statistics::default();
        let mut number = 0;
        let mut fill = |statistics: &mut Statistics, count: usize, now_ms| {
            for _ in 0..count {
                number += 1;
                let id = statistics.topic(&topic(&format!("t/{number}")), now_ms);
                statistics.count(id, [1], now_ms);
            }
        };
        let start_ms = 1_000_000_000;
        fill(&mut statistics, limits::TOPICS_TRACKED_MAX + 10, start_ms);
        assert_eq!(
            statistics.topics().next().map(|(_, row)| row.messages),
            Some(11),
            "the row of the others"
        );
        fill(&mut statistics, 5, start_ms + 1000);
        let kept = topic("t/7");
        statistics.topic(&kept, start_ms + 2000);
        assert_eq!(statistics.evictions(), 0);
        fill(&mut statistics, 20, start_ms + 1500 + 1000 * limits::HISTORY_SECONDS);
        assert!(statistics.evictions() > 0 && statistics.find(&kept).is_some());
        assert_eq!(statistics.topics().map(|(_, row)| row.messages).sum::<u64>(), number as u64);
        assert!(statistics.find(&topic(&format!("t/{number}"))).is_some(), "new topics have rows again");
    }
}
