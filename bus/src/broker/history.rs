//! What flowed in each second of the last hour, for every topic: sparse, and bounded in bytes.

use std::collections::VecDeque;

use crate::limits;

/// What one topic did in one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// The second, since the Unix epoch.
    pub second: u64,
    /// Messages and requests.
    pub messages: u32,
    /// Their payload bytes.
    pub bytes: u64,
}

#[derive(Debug)]
struct Row {
    topic: u32,
    messages: u32,
    bytes: u64,
}

#[derive(Debug)]
struct Second {
    at: u64,
    rows: Vec<Row>,
}

/// Seconds that are over. At most [`limits::HISTORY_SECONDS`] of them in at most [`limits::HISTORY_BYTES`]; the oldest
/// give way, for all topics alike.
#[derive(Debug, Default)]
pub struct History {
    seconds: VecDeque<Second>,
    /// Bytes of all rows, also of those that are allocated and not used.
    bytes: usize,
}

impl History {
    /// Adds what topic number `topic` did in a second that is over. One that is too old is forgotten at once.
    pub fn add(&mut self, topic: u32, bucket: Bucket) {
        let newest = self.seconds.back().map_or(bucket.second, |last| last.at.max(bucket.second));
        if bucket.second + limits::HISTORY_SECONDS <= newest {
            return;
        }
        let at = self.seconds.partition_point(|second| second.at < bucket.second);
        if self.seconds.get(at).is_none_or(|second| second.at != bucket.second) {
            self.seconds.insert(at, Second { at: bucket.second, rows: Vec::new() });
        }
        let second = &mut self.seconds[at];
        let before = second.rows.capacity();
        second.rows.push(Row { topic, messages: bucket.messages, bytes: bucket.bytes });
        self.bytes += (second.rows.capacity() - before) * size_of::<Row>();
        while self.bytes > limits::HISTORY_BYTES
            || self.seconds.front().is_some_and(|oldest| oldest.at + limits::HISTORY_SECONDS <= newest)
        {
            let Some(oldest) = self.seconds.pop_front() else { return };
            self.bytes -= oldest.rows.capacity() * size_of::<Row>();
        }
    }

    /// All that is kept from a second on, oldest first: topic and bucket.
    pub fn since(&self, second: u64) -> impl Iterator<Item = (u32, Bucket)> {
        let from = self.seconds.partition_point(|kept| kept.at < second);
        self.seconds.range(from..).flat_map(|kept| {
            kept.rows
                .iter()
                .map(|row| (row.topic, Bucket { second: kept.at, messages: row.messages, bytes: row.bytes }))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever comes in whatever order within the hour is there once, and nothing else.
        #[test]
        fn it_is_what_a_naive_table_is(adds in prop::collection::vec((0u32..5, 0u64..8000, 1u32..9), 0..300)) {
            let mut history = History::default();
            let mut naive: BTreeMap<(u64, u32), u64> = BTreeMap::new();
            let mut newest = 0;
            for (topic, second, messages) in adds {
                history.add(topic, Bucket { second, messages, bytes: 1 });
                newest = newest.max(second);
                naive.retain(|(at, _), _| at + limits::HISTORY_SECONDS > newest);
                if second + limits::HISTORY_SECONDS > newest {
                    *naive.entry((second, topic)).or_default() += u64::from(messages);
                }
            }
            let mut kept: BTreeMap<(u64, u32), u64> = BTreeMap::new();
            for (topic, bucket) in history.since(0) {
                *kept.entry((bucket.second, topic)).or_default() += u64::from(bucket.messages);
            }
            prop_assert_eq!(kept, naive);
        }
    }

    #[test]
    fn many_topics_for_a_long_time_stay_within_the_budget_and_the_oldest_seconds_go() {
        let mut history = History::default();
        let topics = 2_000;
        for second in 0..1_000 {
            for topic in 0..topics {
                history.add(topic, Bucket { second, messages: 1, bytes: 1 });
            }
            assert!(history.bytes <= limits::HISTORY_BYTES);
        }
        let allocated: usize =
            history.seconds.iter().map(|second| second.rows.capacity() * size_of::<Row>()).sum();
        assert_eq!(history.bytes, allocated);
        let kept: Vec<u64> = history.seconds.iter().map(|second| second.at).collect();
        assert_eq!(*kept.last().unwrap(), 999);
        assert!(kept.len() > 200 && kept.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{kept:?}");
    }
}
