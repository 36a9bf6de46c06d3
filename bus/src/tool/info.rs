//! `bus info`

use serde_json::Value;

use super::{Failure, Output, table};
use crate::{blocking, client::Client, exit::Exit, inspect, topic::TopicName};

/// What `bus info` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bus info conversation/turn/delta\n  bus info a/b --json")]
pub(super) struct Arguments {
    /// The topic
    topic: TopicName,
}

const COLUMNS: &[table::Column] = &[
    ("ROLE", |row| table::text(&row["role"])),
    ("PEER", |row| table::text(&row["peer"])),
    ("MAY", |row| match row["permitted"].as_bool() {
        Some(true) => "yes".to_owned(),
        Some(false) => "NO".to_owned(),
        None => "-".to_owned(),
    }),
    ("FILTER", |row| table::text(&row["filter"])),
    ("GROUP", |row| table::text(&row["group"])),
    ("OVERFLOW", |row| table::text(&row["overflow"])),
    ("PUBLISHED", |row| table::text(&row["of_topic"]["published"])),
    ("DELIVERED", |row| table::text(&row["of_topic"]["delivered"])),
    ("QUEUED", |row| table::text(&row["queued"])),
    ("BYTES", |row| table::bytes(&row["queued_bytes"])),
    ("DROPPED", |row| table::text(&row["of_topic"]["dropped"])),
    ("DENIED", |row| table::text(&row["of_topic"]["denied"])),
    ("LEAVES OUT", |row| table::names(&row["leaves_out"])),
    ("RULE", |row| rule(&row["rule"])),
];

/// What decided, and where it stands.
pub(super) fn rule(rule: &Value) -> String {
    let file = rule["file"].as_str().and_then(|file| std::path::Path::new(file).file_name());
    let place = file.map(|file| match rule["line"].as_u64() {
        Some(line) => format!(" ({}:{line})", file.to_string_lossy()),
        None => format!(" ({})", file.to_string_lossy()),
    });
    match (rule["decision"].as_str(), rule["filter"].as_str()) {
        (Some(decision), Some(filter)) => format!("{decision} {filter}{}", place.unwrap_or_default()),
        (Some(_), None) => format!("deny by default{}", place.unwrap_or_default()),
        _ => "-".to_owned(),
    }
}

pub(super) fn run(arguments: &Arguments, client: &Client, output: &mut Output) -> Result<Exit, Failure> {
    let parts = blocking::wait(inspect::topic(client, &arguments.topic))?;
    let Some((facts, rows)) = parts.split_first() else {
        output.note(&format!("nobody has to do with `{}` since the broker started", arguments.topic));
        return Ok(Exit::Failed);
    };
    if output.is_json() {
        output.json(facts)?;
    } else {
        summary(&arguments.topic, facts, output)?;
    }
    if !rows.is_empty() {
        table::print(rows, COLUMNS, output)?;
    }
    Ok(Exit::Done)
}

fn summary(topic: &TopicName, answer: &Value, output: &mut Output) -> Result<(), Failure> {
    let statistics = &answer["statistics"];
    let number = |field: &str| table::text(&statistics[field]);
    let rates = |field: &str, print: fn(&Value) -> String| {
        let rates = ["1s", "10s", "60s"].map(|seconds| print(&statistics[field][seconds]));
        rates.join(" / ")
    };
    output.line(&format!("topic      {topic}"))?;
    if !statistics.is_null() {
        output.line(&format!(
            "messages   {}, {}, last {} ago, {} denied",
            number("messages"),
            table::bytes(&statistics["bytes"]),
            table::age(&statistics["last_seen_ms"]),
            number("denied"),
        ))?;
        output.line(&format!(
            "rates      {} msg/s, {} a second (over 1 / 10 / 60 s)",
            rates("messages_per_second", table::rate),
            rates("bytes_per_second", table::bytes),
        ))?;
        let sizes = statistics["sizes"].as_array().into_iter().flatten();
        let sizes: Vec<String> =
            sizes.map(|class| format!("<={} {}", table::bytes(&class[0]), table::text(&class[1]))).collect();
        output.line(&format!("sizes      {}", sizes.join(", ")))?;
    }
    if !answer["retained"].is_null() {
        let (bytes, publisher) = (
            table::bytes(&answer["retained"]["payload_bytes"]),
            table::text(&answer["retained"]["publisher"]),
        );
        output.line(&format!("last value {bytes} of {publisher}"))?;
    }
    if answer["held"] == true {
        output.line("held       publishers wait for a full subscriber with the policy `wait`")?;
    }
    Ok(())
}
