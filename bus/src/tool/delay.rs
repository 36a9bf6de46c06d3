//! `bus delay`: how long messages take from their publisher to a subscriber, measured by being one.
//!
//! The broker does not look into headers, and only they say when a message was published. So this subscribes, and
//! compares that time with the clock when the message is here: publisher, broker and both ways are in it, and the
//! difference of the clocks if the publisher is on another machine. The subscription is one that may lose messages, so
//! that nobody waits for it; what it lost is told.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Failure, Output, histogram::Histogram, signals::Signals, subscribe::next_event, table};
use crate::{
    blocking,
    client::{Client, Event, SubscribeOptions},
    envelope::{Message, now_ns},
    exit::Exit,
    native::Overflow,
    topic::TopicFilter,
};

/// Topics that are told apart. What comes on further ones is counted as one more.
const TOPICS_MAX: usize = 1024;
/// The row of further topics.
const OTHERS: &str = "(others)";

/// What `bus delay` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Measured by a subscription of its own, from the time that the publisher wrote into the header to \
    the arrival here; clocks of other machines are in it.\n\nExamples:\n  bus delay 'conversation/#'\n  \
    bus delay a/b --count 1000 --json"
)]
pub(super) struct Arguments {
    /// Topics: `+` is one level, `#` the rest
    #[arg(required = true)]
    filters: Vec<TopicFilter>,
    /// How long to measure, for example 10s, 5m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = super::duration)]
    duration: Duration,
    /// End after this many messages
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// What came on one topic.
#[derive(Default)]
struct Delays {
    times: Histogram,
    /// Published later than they came: the clocks differ.
    ahead: u64,
    /// Without a time: a stock socket's, or one of long ago that is told again.
    untimed: u64,
}

const COLUMNS: &[table::Column] = &[
    ("TOPIC", |row| table::text(&row["topic"])),
    ("MESSAGES", |row| table::text(&row["messages"])),
    ("MEAN MS", |row| cell(&row["mean_ms"])),
    ("MIN", |row| cell(&row["min_ms"])),
    ("P50", |row| cell(&row["p50_ms"])),
    ("P90", |row| cell(&row["p90_ms"])),
    ("P99", |row| cell(&row["p99_ms"])),
    ("MAX", |row| cell(&row["max_ms"])),
    ("STD DEV", |row| cell(&row["deviation_ms"])),
    ("UNTIMED", |row| table::text(&row["untimed"])),
    ("AHEAD", |row| table::text(&row["ahead"])),
];

fn cell(milliseconds: &Value) -> String {
    milliseconds.as_f64().map_or_else(|| "-".to_owned(), |milliseconds| format!("{milliseconds:.3}"))
}

pub(super) fn run(
    arguments: &Arguments,
    client: &Client,
    signals: &mut Signals,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let options = SubscribeOptions::default().overflow(Overflow::DropOldest);
    let mut subscriptions = Vec::new();
    for filter in &arguments.filters {
        subscriptions.push(blocking::wait(client.subscribe(filter, options.clone()))?);
    }
    let until = Instant::now() + arguments.duration;
    let mut topics: BTreeMap<String, Delays> = BTreeMap::new();
    let (mut seen, mut lost) = (0, 0);
    while arguments.count.is_none_or(|count| seen < count) {
        let next = async {
            tokio::select! {
                event = next_event(&mut subscriptions) => Some(event),
                () = signals.next() => None,
            }
        };
        // The time is over, or somebody has seen enough.
        let Some(Some(event)) = blocking::wait_until(next, until) else { break };
        match event {
            Some((at, Event::Message(message)))
                if arguments.filters[..at].iter().any(|filter| filter.matches(&message.topic)) => {}
            Some((_, Event::Message(message))) => {
                seen += 1;
                add(&mut topics, &message);
            }
            Some((_, Event::Gap { count, .. })) => lost += count.unwrap_or(1),
            None => {
                let reason = client.closed_reason().unwrap_or_default();
                return Err(Failure::new(Exit::Denied, format!("the subscription has ended: {reason}")));
            }
        }
    }
    if lost > 0 {
        output.note(&format!(
            "at least {lost} messages were lost here because this program was too slow, and are not measured"
        ));
    }
    if topics.is_empty() {
        output.note(&format!("nothing came within {:?}", arguments.duration));
        return Ok(Exit::Failed);
    }
    let ahead: u64 = topics.values().map(|delays| delays.ahead).sum();
    if ahead > 0 {
        output.note(&format!(
            "{ahead} messages were published later than they came: the publisher's clock is ahead of this one"
        ));
    }
    let rows: Vec<Value> = topics.iter().map(|(topic, delays)| row(topic, delays)).collect();
    table::print(&rows, COLUMNS, output)?;
    Ok(Exit::Done)
}

fn add(topics: &mut BTreeMap<String, Delays>, message: &Message) {
    let topic = message.topic.as_str();
    let known = topics.contains_key(topic) || topics.len() < TOPICS_MAX;
    let delays = topics.entry(if known { topic } else { OTHERS }.to_owned()).or_default();
    // What a stock socket sends has no header.
    match (
        message.header.id.is_nil() || message.retained,
        now_ns().checked_sub(message.header.published_at_ns),
    ) {
        (true, _) => delays.untimed += 1,
        (false, Some(nanoseconds)) => delays.times.add(Duration::from_nanos(nanoseconds)),
        (false, None) => delays.ahead += 1,
    }
}

fn row(topic: &str, delays: &Delays) -> Value {
    let times = &delays.times;
    let milliseconds = |time: Duration| (times.count() > 0).then(|| (time.as_secs_f64() * 1e6).round() / 1e3);
    let percentile = |share| milliseconds(times.percentile(share));
    json!({
        "topic": topic, "measured_by": "subscription", "messages": times.count() + delays.untimed + delays.ahead,
        "mean_ms": milliseconds(times.mean()), "min_ms": milliseconds(times.shortest()),
        "p50_ms": percentile(0.5), "p90_ms": percentile(0.9), "p99_ms": percentile(0.99), "p999_ms": percentile(0.999),
        "max_ms": percentile(1.0), "deviation_ms": milliseconds(times.deviation()),
        "untimed": delays.untimed, "ahead": delays.ahead,
    })
}
