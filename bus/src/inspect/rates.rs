//! What flowed when, put together from the broker's history.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// What flowed on the topics of a filter.
#[derive(Clone, Debug, PartialEq)]
pub struct Flow {
    /// Each second of each topic, without the present one, which is not over.
    pub series: Vec<Value>,
    /// The broker's clock, in seconds since the Unix epoch.
    pub now: u64,
    /// Older rows that did not fit into the answer.
    pub left_out: u64,
    /// From which second on everything is known.
    pub complete_from: u64,
    seconds: u64,
}

impl Flow {
    pub(super) fn nothing(seconds: u64) -> Self {
        Self { series: Vec::new(), now: 0, left_out: 0, complete_from: 0, seconds }
    }

    /// What the broker says of one filter.
    pub(super) fn add(&mut self, answer: &Value) {
        let number = |field: &str| answer[field].as_u64().unwrap_or_default();
        (self.now, self.complete_from) = (number("now"), self.complete_from.max(number("complete_from")));
        self.left_out += number("left_out");
        // The present second is not over, so it has no rate yet.
        let is_over = |row: &&Value| row["second"].as_u64().is_some_and(|second| second < self.now);
        self.series.extend(answer["rows"].as_array().into_iter().flatten().filter(is_over).cloned());
    }

    /// By second and topic. Filters may share topics.
    pub(super) fn sort(&mut self) {
        let place = |row: &Value| (row["second"].as_u64(), row["topic"].as_str().map(str::to_owned));
        self.series.sort_by_cached_key(place);
        self.series.dedup_by_key(|row| place(row));
    }

    /// Whether something of the time that was asked for is not known any more, or not yet.
    pub fn is_cut(&self) -> bool {
        self.complete_from > self.now.saturating_sub(self.seconds)
    }

    /// One row for each topic. A second without a message counts as zero.
    pub fn summary(&self) -> Vec<Value> {
        summary(&self.series, known(self.seconds, self.complete_from, self.now))
    }
}

/// Of the last `seconds`, how many are known: those before `complete_from` are neither silent nor busy.
fn known(seconds: u64, complete_from: u64, now: u64) -> u64 {
    seconds.min(now.saturating_sub(complete_from)).max(1)
}

/// One row for each topic. A second without a message counts as zero.
fn summary(rows: &[Value], seconds: u64) -> Vec<Value> {
    let mut topics: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
    let mut delays: BTreeMap<&str, Delays> = BTreeMap::new();
    for row in rows {
        let number = |field: &str| row[field].as_u64().unwrap_or_default();
        let topic = row["topic"].as_str().unwrap_or_default();
        topics.entry(topic).or_default().push((number("messages"), number("bytes")));
        if let (Some(mean_us), Some(max_us)) = (row["delay_mean_us"].as_u64(), row["delay_max_us"].as_u64()) {
            delays.entry(topic).or_default().add(number("messages"), mean_us, max_us);
        }
    }
    let summary = topics.into_iter().map(|(topic, buckets)| {
        let (messages, bytes) = buckets.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let silent = seconds.saturating_sub(buckets.len() as u64);
        let delay = delays.get(topic);
        let least = buckets.iter().map(|(messages, _)| *messages).min().filter(|_| silent == 0);
        json!({
            "topic": topic,
            "messages": messages,
            "bytes": bytes,
            "messages_per_second": messages as f64 / seconds as f64,
            "bytes_per_second": bytes as f64 / seconds as f64,
            "least": least.unwrap_or_default(),
            "most": buckets.iter().map(|(messages, _)| *messages).max(),
            "least_bytes": buckets.iter().map(|(_, bytes)| *bytes).min().filter(|_| silent == 0).unwrap_or_default(),
            "most_bytes": buckets.iter().map(|(_, bytes)| *bytes).max(),
            "mean_size": bytes as f64 / messages.max(1) as f64,
            "silent_seconds": silent,
            "delay_mean_us": delay.map(Delays::mean_us),
            "delay_max_us": delay.map(|delay| delay.max_us),
            "delay_worst_mean_us": delay.map(|delay| delay.worst_mean_us),
        })
    });
    summary.collect()
}

/// How long messages of several seconds took, in microseconds.
#[derive(Default)]
struct Delays {
    messages: u64,
    /// Each second's mean as often as it had messages.
    sum_us: u128,
    worst_mean_us: u64,
    max_us: u64,
}

impl Delays {
    fn add(&mut self, messages: u64, mean_us: u64, max_us: u64) {
        self.messages += messages;
        self.sum_us += u128::from(mean_us) * u128::from(messages);
        self.worst_mean_us = self.worst_mean_us.max(mean_us);
        self.max_us = self.max_us.max(max_us);
    }

    fn mean_us(&self) -> u64 {
        (self.sum_us / u128::from(self.messages.max(1))) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_which_nothing_is_known_counts_as_nothing() {
        assert_eq!((known(7200, 100, 130), known(10, 100, 130), known(10, 130, 130)), (30, 10, 1));
    }

    #[test]
    fn a_second_without_a_message_counts_as_zero() {
        let row = |second, messages| json!({ "topic": "a", "second": second, "messages": messages, "bytes": 10 * messages });
        let busy = summary(&[row(1, 4), row(2, 2)], 2);
        assert_eq!(
            (&busy[0]["least"], &busy[0]["most"], &busy[0]["silent_seconds"]),
            (&json!(2), &json!(4), &json!(0))
        );
        let idle = &summary(&[row(1, 4), row(2, 2)], 10)[0];
        assert_eq!(
            (&idle["least"], &idle["messages_per_second"], &idle["silent_seconds"]),
            (&json!(0), &json!(0.6), &json!(8))
        );
        assert_eq!(idle["mean_size"], 10.0);
        assert!(
            idle["delay_mean_us"].is_null() && idle["delay_max_us"].is_null(),
            "nobody said when it published"
        );
    }

    #[test]
    fn delays_of_several_seconds_count_by_their_messages_and_a_second_without_a_time_not_at_all() {
        let row = |second, messages, mean_us: Option<u64>| {
            json!({
                "topic": "a", "second": second, "messages": messages, "bytes": 0, "delay_mean_us": mean_us,
                "delay_max_us": mean_us.map(|mean_us| 10 * mean_us),
            })
        };
        let all = &summary(&[row(1, 3, Some(100)), row(2, 1, Some(500)), row(3, 1000, None)], 3)[0];
        assert_eq!(
            (&all["delay_mean_us"], &all["delay_worst_mean_us"], &all["delay_max_us"]),
            (&json!(200), &json!(500), &json!(5000))
        );
    }
}
