//! `bus hz`: how much flowed when, from the broker's own statistics. It subscribes to nothing.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::{Failure, Output, ask_broker_about, table};
use crate::{client::Client, exit::Exit, topic::TopicFilter};

/// What `bus hz` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  bus hz\n  bus hz 'logs/#' a/b --since 10m\n  bus hz a/b --series --json"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    span: Span,
    /// Print each second of each topic instead of one line for each
    #[arg(long)]
    series: bool,
}

/// Which topics, and how far back.
#[derive(Debug, clap::Args)]
pub(super) struct Span {
    /// Topics: `+` is one level, `#` the rest
    #[arg(default_value = "#")]
    filters: Vec<TopicFilter>,
    /// How far back, up to an hour, for example 30s, 10m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = super::duration)]
    since: Duration,
}

const SERIES: &[table::Column] = &[
    ("SECOND", |row| table::time(&json!(row["second"].as_u64().unwrap_or_default() * 1000))),
    ("TOPIC", |row| table::text(&row["topic"])),
    ("MSG/S", |row| table::text(&row["messages"])),
    ("B/S", |row| table::bytes(&row["bytes"])),
];

const SUMMARY: &[table::Column] = &[
    ("TOPIC", |row| table::text(&row["topic"])),
    ("MESSAGES", |row| table::text(&row["messages"])),
    ("MSG/S", |row| table::rate(&row["messages_per_second"])),
    ("MIN", |row| table::text(&row["least"])),
    ("MAX", |row| table::text(&row["most"])),
    ("BYTES", |row| table::bytes(&row["bytes"])),
    ("B/S", |row| table::bytes(&row["bytes_per_second"])),
    ("SIZE", |row| table::bytes(&row["mean_size"])),
    ("SILENT", |row| format!("{}s", table::text(&row["silent_seconds"]))),
];

pub(super) fn run(arguments: &Arguments, client: &Client, output: &mut Output) -> Result<Exit, Failure> {
    let past = arguments.span.past(client, output)?;
    match arguments.series {
        true => table::print(&past.rows, SERIES, output)?,
        false => table::print(&past.summary(), SUMMARY, output)?,
    }
    Ok(if past.rows.is_empty() { Exit::Failed } else { Exit::Done })
}

/// What flowed, by topic and second.
pub(super) struct Past {
    rows: Vec<Value>,
    /// How many seconds are known.
    seconds: u64,
}

impl Span {
    /// Asks the broker, and says what it does not know, or that nothing flowed.
    pub(super) fn past(&self, client: &Client, output: &mut Output) -> Result<Past, Failure> {
        let seconds = self.since.as_secs().max(1);
        let mut rows: BTreeMap<(u64, String), Value> = BTreeMap::new();
        let (mut left_out, mut complete_from, mut now) = (0, 0, 0);
        for filter in &self.filters {
            let answer =
                ask_broker_about(client, "history", &json!({ "topic": filter, "seconds": seconds }))?;
            let number = |field: &str| answer[field].as_u64().unwrap_or_default();
            (now, complete_from) = (number("now"), complete_from.max(number("complete_from")));
            left_out += number("left_out");
            for row in answer["rows"].as_array().into_iter().flatten() {
                let second = row["second"].as_u64().unwrap_or_default();
                // The present second is not over, so it has no rate yet. Filters may share topics.
                if second < now {
                    rows.insert((second, table::text(&row["topic"])), row.clone());
                }
            }
        }
        if left_out > 0 {
            output.note(&format!("{left_out} older rows are left out; name fewer topics or a shorter time"));
        }
        if complete_from > now.saturating_sub(seconds) {
            let from = table::time(&json!(complete_from * 1000));
            output.note(&format!(
                "what is known begins at {from}; before that nothing was counted, or it is forgotten"
            ));
        }
        if rows.is_empty() {
            let filters: Vec<String> = self.filters.iter().map(|filter| format!("`{filter}`")).collect();
            output.note(&format!("nothing flowed on {} within {seconds} s", filters.join(", ")));
        }
        let rows = rows.into_values().collect();
        Ok(Past { rows, seconds: known(seconds, complete_from, now) })
    }
}

impl Past {
    /// One row for each topic.
    pub(super) fn summary(&self) -> Vec<Value> {
        summary(&self.rows, self.seconds)
    }
}

/// Of the last `seconds`, how many are known: those before `complete_from` are neither silent nor busy.
fn known(seconds: u64, complete_from: u64, now: u64) -> u64 {
    seconds.min(now.saturating_sub(complete_from)).max(1)
}

/// One row for each topic. A second without a message counts as zero.
fn summary(rows: &[Value], seconds: u64) -> Vec<Value> {
    let mut topics: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
    for row in rows {
        let number = |field: &str| row[field].as_u64().unwrap_or_default();
        let topic = row["topic"].as_str().unwrap_or_default();
        topics.entry(topic).or_default().push((number("messages"), number("bytes")));
    }
    let summary = topics.into_iter().map(|(topic, buckets)| {
        let (messages, bytes) = buckets.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let silent = seconds.saturating_sub(buckets.len() as u64);
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
        })
    });
    summary.collect()
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
    }
}
