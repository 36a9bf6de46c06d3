//! `bus delay --end-to-end`: how long messages take from their publisher to a subscriber, measured by being one.
//!
//! The time that the header has is compared with the clock when the message is here: publisher, broker and both ways are
//! in it, and the difference of the clocks if the publisher is on another machine. The subscription is one that may lose
//! messages, so that nobody waits for it; what it lost is told.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    super::{Failure, Output, histogram::Histogram, signals::Signals, subscribe::next_event, table},
    milliseconds,
};
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
    ("MEAN MS", |row| milliseconds(&row["mean_ms"])),
    ("MIN", |row| milliseconds(&row["min_ms"])),
    ("P50", |row| milliseconds(&row["p50_ms"])),
    ("P90", |row| milliseconds(&row["p90_ms"])),
    ("P99", |row| milliseconds(&row["p99_ms"])),
    ("MAX", |row| milliseconds(&row["max_ms"])),
    ("STD DEV", |row| milliseconds(&row["deviation_ms"])),
    ("UNTIMED", |row| table::text(&row["untimed"])),
    ("AHEAD", |row| table::text(&row["ahead"])),
];

pub(super) fn run(
    filters: &[TopicFilter],
    (duration, most): (Duration, Option<u64>),
    client: &Client,
    signals: &mut Signals,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let options = SubscribeOptions::default().overflow(Overflow::DropOldest);
    let mut subscriptions = Vec::new();
    for filter in filters {
        subscriptions.push(blocking::wait(client.subscribe(filter, options.clone()))?);
    }
    let until = Instant::now() + duration;
    let mut topics: BTreeMap<String, Delays> = BTreeMap::new();
    let (mut seen, mut lost) = (0, 0);
    while most.is_none_or(|most| seen < most) {
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
                if filters[..at].iter().any(|filter| filter.matches(&message.topic)) => {}
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
        output.note(&format!("nothing came within {:?}", duration));
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
    let in_ms = |time: Duration| (times.count() > 0).then(|| (time.as_secs_f64() * 1e6).round() / 1e3);
    let percentile = |share| in_ms(times.percentile(share));
    json!({
        "topic": topic, "measured_by": "subscription", "messages": times.count() + delays.untimed + delays.ahead,
        "mean_ms": in_ms(times.mean()), "min_ms": in_ms(times.shortest()),
        "p50_ms": percentile(0.5), "p90_ms": percentile(0.9), "p99_ms": percentile(0.99), "p999_ms": percentile(0.999),
        "max_ms": percentile(1.0), "deviation_ms": in_ms(times.deviation()),
        "untimed": delays.untimed, "ahead": delays.ahead,
    })
}
