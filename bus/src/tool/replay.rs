//! `bus replay`

use std::{
    collections::BTreeMap,
    path::PathBuf,
    str::FromStr,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{Failure, Output, signals::Signals, table};
use crate::{
    blocking,
    client::{Client, PublishOptions},
    envelope::{Header, Payload},
    error::PublishError,
    exit::Exit,
    native::Operation,
    recording::{Entry, Recording},
    topic::{TopicFilter, TopicName},
};

/// What `bus replay` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bus replay day.mcap --list\n  bus replay day.mcap")]
pub(super) struct Arguments {
    /// A recording of `bus record`, or any other MCAP file
    file: PathBuf,
    /// Only topics that match: `+` is one level, `#` the rest
    filters: Vec<TopicFilter>,
    /// How fast: 1 is as it was, 2 twice as fast, `max` without waiting
    #[arg(long, default_value = "1")]
    rate: Rate,
    /// Begin this long after the first message, for example 90s
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    from: Option<Duration>,
    /// End this long after the first message
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    until: Option<Duration>,
    /// Put this in front of each topic, so that the replay stands beside what is live
    #[arg(long, value_name = "TOPIC")]
    prefix: Option<TopicName>,
    /// Wait until this many subscribers are there for each topic, as long as --timeout says
    #[arg(long, value_name = "SUBSCRIBERS")]
    wait: Option<usize>,
    /// Publish nothing; print what is in the file
    #[arg(long, conflicts_with_all = ["rate", "prefix", "wait"])]
    list: bool,
}

/// How fast a recording is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rate {
    Times(f64),
    Max,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        let times = text.parse().ok().filter(|times: &f64| (0.001..=1e6).contains(times));
        times
            .map(Self::Times)
            .ok_or_else(|| format!("`{text}` is no rate; write `max`, or a number from 0.001 to 1000000"))
    }
}

impl Arguments {
    /// Whether it is answered without a broker.
    pub(super) fn is_offline(&self) -> bool {
        self.list
    }

    fn wants(&self, topic: &str) -> bool {
        let matches = |filter: &TopicFilter| topic.parse().is_ok_and(|topic| filter.matches(&topic));
        self.filters.is_empty() || self.filters.iter().any(matches)
    }

    /// Of messages at these times, which are wanted; both in nanoseconds, the first message's and this one's.
    fn is_due(&self, first_ns: u64, at_ns: u64) -> Due {
        let after = Duration::from_nanos(at_ns.saturating_sub(first_ns));
        match (self.from, self.until) {
            (_, Some(until)) if after > until => Due::Over,
            (Some(from), _) if after < from => Due::NotYet,
            (from, _) => Due::After(after - from.unwrap_or_default()),
        }
    }
}

enum Due {
    NotYet,
    After(Duration),
    Over,
}

/// What became of the messages.
#[derive(Default)]
struct Counts {
    published: u64,
    bytes: u64,
    /// Messages of topics that cannot be published, by topic.
    skipped: BTreeMap<String, u64>,
    gaps: Gaps,
}

/// What is missing in the recording itself.
#[derive(Default)]
struct Gaps {
    places: u64,
    known: u64,
}

impl Gaps {
    fn add(&mut self, count: Option<u64>) {
        self.places += 1;
        self.known += count.unwrap_or_default();
    }

    fn tell(&self, output: &mut Output) {
        let Self { places, known } = self;
        if *places > 0 {
            output.note(&format!(
                "messages are missing at {places} places, {known} as far as is known: they were lost when it was recorded"
            ));
        }
    }
}

pub(super) fn run(
    arguments: &Arguments,
    client: &Client,
    timeout: Duration,
    signals: &mut Signals,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let mut recording = Recording::open(&arguments.file)?;
    let mut counts = Counts::default();
    let replayed = replay(arguments, client, timeout, signals, &mut recording, &mut counts);
    // Behind everything that was published: what was denied is known then.
    let confirmed = blocking::wait(client.ping());
    tell(&counts, arguments, output)?;
    let is_complete = replayed?;
    confirmed?;
    if is_complete && !recording.is_whole() {
        note_cut(output);
    }
    let denials = client.denials();
    let denied: Vec<_> = denials.iter().filter(|denial| denial.operation == Operation::Publish).collect();
    for denial in &denied {
        output.note(&format!("{} messages on `{}` were denied: {}", denial.count, denial.topic, denial.text));
    }
    Ok(match (denied.is_empty(), counts.published) {
        (false, _) => Exit::Denied,
        (true, 0) => Exit::Failed,
        (true, _) => Exit::Done,
    })
}

/// Gives whether it came to the end of what was wanted.
fn replay(
    arguments: &Arguments,
    client: &Client,
    timeout: Duration,
    signals: &mut Signals,
    recording: &mut Recording,
    counts: &mut Counts,
) -> Result<bool, Failure> {
    let (mut first_ns, mut started) = (None, None);
    let mut waited_for = std::collections::HashSet::new();
    for entry in recording {
        let (topic, received_ns, retained, header, payload) = match entry? {
            Entry::Message { topic, received_ns, retained, header, payload, .. } => {
                (topic, received_ns, retained, header, payload)
            }
            Entry::Schema(schema) => {
                client.register_schema(&schema);
                continue;
            }
            Entry::Gap { count, .. } => {
                counts.gaps.add(count);
                continue;
            }
        };
        let first_ns = *first_ns.get_or_insert(received_ns);
        let after = match arguments.is_due(first_ns, received_ns) {
            Due::NotYet => continue,
            Due::After(after) => after,
            Due::Over => return Ok(true),
        };
        if !arguments.wants(&topic) {
            continue;
        }
        let Some(topic) = arguments.topic_of(&topic) else {
            *counts.skipped.entry(topic.to_string()).or_default() += 1;
            continue;
        };
        if let Some(subscribers) = arguments.wait.filter(|_| waited_for.insert(topic.clone())) {
            let waited = Instant::now();
            blocking::wait(client.wait_for_subscribers(&topic, subscribers, timeout))?;
            // The rest is as far apart as before.
            started = started.map(|started: Instant| started + waited.elapsed());
        }
        let now = Instant::now();
        let started = *started.get_or_insert(now);
        let due_at = match arguments.rate {
            Rate::Times(times) => started + after.div_f64(times),
            Rate::Max => now,
        };
        if blocking::wait_until(signals.next(), due_at).is_some() {
            return Ok(false);
        }
        counts.bytes += payload.bytes.len() as u64;
        publish(client, &topic, payload, *header, retained)?;
        counts.published += 1;
    }
    Ok(true)
}

/// It is published anew: with an id and a time of its own, and everything else as it was.
fn publish(
    client: &Client,
    topic: &TopicName,
    payload: Payload,
    recorded: Header,
    retain: bool,
) -> Result<(), PublishError> {
    let fresh = Header::for_payload(&payload);
    let header = Header { id: fresh.id, published_at_ns: fresh.published_at_ns, ..recorded };
    let options = PublishOptions { retain, header: Some(header), ..PublishOptions::default() };
    blocking::wait(client.publish_waiting(topic, payload, &options))
}

impl Arguments {
    /// Where it is published; `None` if that is not possible: the broker's own topics, and what is no topic of ours.
    fn topic_of(&self, topic: &str) -> Option<TopicName> {
        let topic = match &self.prefix {
            Some(prefix) => format!("{prefix}/{}", topic.trim_start_matches(['/', '$'])),
            None => topic.trim_start_matches('/').to_owned(),
        };
        topic.parse().ok().filter(|_| !topic.starts_with('$'))
    }
}

fn tell(counts: &Counts, arguments: &Arguments, output: &mut Output) -> Result<(), Failure> {
    let Counts { published, bytes, skipped, gaps } = counts;
    let skipped_messages: u64 = skipped.values().sum();
    if output.is_json() {
        output.json(&json!({
            "file": arguments.file, "published": published, "payload_bytes": bytes,
            "skipped": skipped_messages, "gaps": gaps.places, "missing": gaps.known,
        }))?;
    } else {
        output.line(&format!("{published} messages ({}) published", table::bytes(&json!(bytes))))?;
    }
    for (topic, messages) in skipped {
        output.note(&format!(
            "{messages} messages of `{topic}` were skipped: nobody can publish there; `--prefix replay` puts them elsewhere"
        ));
    }
    gaps.tell(output);
    Ok(())
}

fn note_cut(output: &mut Output) {
    output.note("the recording was not ended in good order; at most its last second is missing");
}

const LIST: &[table::Column] = &[
    ("TOPIC", |row| table::text(&row["topic"])),
    ("FROM", |row| table::text(&row["origin"])),
    ("CONTENT", |row| table::text(&row["content_type"])),
    ("MESSAGES", |row| table::text(&row["messages"])),
    ("BYTES", |row| table::bytes(&row["payload_bytes"])),
    ("FIRST", |row| table::time(&json!(row["first_ns"].as_u64().unwrap_or_default() / 1_000_000))),
    ("LAST", |row| table::time(&json!(row["last_ns"].as_u64().unwrap_or_default() / 1_000_000))),
    ("MSG/S", |row| table::rate(&row["messages_per_second"])),
];

/// Messages of one kind in a recording.
struct Row {
    messages: u64,
    bytes: u64,
    first_ns: u64,
    last_ns: u64,
}

/// Prints what is in the file.
pub(super) fn list(arguments: &Arguments, output: &mut Output) -> Result<Exit, Failure> {
    let mut recording = Recording::open(&arguments.file)?;
    let mut rows: BTreeMap<(String, String, String), Row> = BTreeMap::new();
    let (mut first_ns, mut missing) = (None, Gaps::default());
    for entry in &mut recording {
        match entry? {
            Entry::Message { topic, origin, received_ns, payload, .. } => {
                let first_ns = *first_ns.get_or_insert(received_ns);
                match arguments.is_due(first_ns, received_ns) {
                    Due::After(_) if arguments.wants(&topic) => {}
                    _ => continue,
                }
                let origin = origin.map_or_else(|| "-".to_owned(), |origin| origin.to_string());
                let key = (topic.to_string(), origin, payload.content_type.as_str().to_owned());
                let row = Row { messages: 0, bytes: 0, first_ns: received_ns, last_ns: received_ns };
                let row = rows.entry(key).or_insert(row);
                row.messages += 1;
                row.bytes += payload.bytes.len() as u64;
                (row.first_ns, row.last_ns) = (row.first_ns.min(received_ns), row.last_ns.max(received_ns));
            }
            Entry::Gap { count, .. } => missing.add(count),
            Entry::Schema(_) => {}
        }
    }
    let rows = rows.into_iter().map(|((topic, origin, content_type), row)| {
        let seconds = (row.last_ns - row.first_ns) as f64 / 1e9;
        let rate = (row.messages > 1 && seconds > 0.0).then(|| (row.messages - 1) as f64 / seconds);
        let content_type = if content_type.is_empty() { "bytes".to_owned() } else { content_type };
        json!({
            "topic": topic, "origin": origin, "content_type": content_type, "messages": row.messages,
            "payload_bytes": row.bytes, "first_ns": row.first_ns, "last_ns": row.last_ns, "messages_per_second": rate,
        })
    });
    let rows: Vec<_> = rows.collect();
    table::print(&rows, LIST, output)?;
    missing.tell(output);
    if !recording.is_whole() {
        note_cut(output);
    }
    Ok(if rows.is_empty() { Exit::Failed } else { Exit::Done })
}
