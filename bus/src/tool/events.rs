//! `bus events`

use std::time::Instant;

use serde_json::{Value, json};

use super::{Failure, Output, table};
use crate::{
    blocking,
    client::{Client, Event, SubscribeOptions},
    exit::Exit,
    inspect,
    topic::TopicFilter,
};

/// What `bus events` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  bus events\n  bus events '$sys/slow' --follow\n  bus events '$peers/#' --last 5 --json"
)]
pub(super) struct Arguments {
    /// Go on with those that come
    #[arg(long, short)]
    follow: bool,
    /// Print at most this many of those that were
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    last: usize,
    /// Only those whose topic matches, for example '$sys/slow' or '$peers/#'
    #[arg(value_name = "FILTER")]
    filter: Option<TopicFilter>,
    /// End when nothing has come for this long, for example 500ms, 5s
    #[arg(long, value_name = "TIME", value_parser = super::duration, requires = "follow")]
    wait: Option<std::time::Duration>,
}

/// Where the broker publishes its events.
const TOPICS: [&str; 2] = ["$sys/#", "$peers/#"];

pub(super) fn run(arguments: &Arguments, client: &Client, output: &mut Output) -> Result<Exit, Failure> {
    let is_wanted = |topic: &str| match (&arguments.filter, topic.parse()) {
        (Some(filter), Ok(topic)) => filter.matches(&topic),
        (None, _) => true,
        (Some(_), Err(_)) => false,
    };
    // Subscribed before asking, so that none falls between.
    let mut subscriptions = Vec::new();
    for filter in TOPICS.into_iter().filter(|_| arguments.follow) {
        subscriptions.push(blocking::wait(client.subscribe(&filter.parse()?, SubscribeOptions::default()))?);
    }
    let inspect::Noticed { events: past, forgotten, lost } = blocking::wait(inspect::events(client))?;
    let wanted: Vec<&Value> =
        past.iter().filter(|row| is_wanted(row["topic"].as_str().unwrap_or_default())).collect();
    if forgotten > 0 {
        output.note(&format!("{forgotten} older events are forgotten"));
    }
    if lost > 0 {
        output.note(&format!(
            "{lost} copies were lost by subscribers that were slow; `bus peers` shows who drops"
        ));
    }
    for row in wanted.iter().skip(wanted.len().saturating_sub(arguments.last)) {
        print(row, output)?;
    }
    // What came between the subscription and the answer stands in both.
    let known_until = past.last().and_then(|row| row["at_ms"].as_u64()).unwrap_or_default();
    if !arguments.follow {
        return Ok(Exit::Done);
    }
    loop {
        let next = super::subscribe::next_event(&mut subscriptions);
        let event = match arguments.wait {
            None => blocking::wait(next),
            Some(wait) => match blocking::wait_until(next, Instant::now() + wait) {
                Some(event) => event,
                None => return Ok(Exit::Done),
            },
        };
        match event {
            Some((_, Event::Message(message))) => {
                let at_ms = message.header.published_at_ns / 1_000_000;
                let event: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
                let row = json!({ "at_ms": at_ms, "topic": message.topic, "event": event });
                let is_known = at_ms <= known_until
                    && past.iter().any(|past| past["topic"] == row["topic"] && past["event"] == row["event"]);
                if is_wanted(message.topic.as_str()) && !is_known {
                    print(&row, output)?;
                }
            }
            Some((_, Event::Gap { count, .. })) => {
                let count =
                    count.map_or_else(|| "an unknown number of".to_owned(), |count| count.to_string());
                output.note(&format!("{count} events were lost on the way here"));
            }
            None => return Err(Failure::new(Exit::Denied, client.closed_reason().unwrap_or_default())),
        }
    }
}

fn print(row: &Value, output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(row);
    }
    let fields = row["event"].as_object().into_iter().flatten();
    let fields: Vec<String> = fields.map(|(name, value)| format!("{name}={}", table::text(value))).collect();
    let line =
        format!("{}  {}  {}", table::time(&row["at_ms"]), table::text(&row["topic"]), fields.join(" "));
    let line = output.harmless(&line);
    output.line(&line)
}
