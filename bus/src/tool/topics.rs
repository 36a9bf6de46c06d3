//! `bus topics`

use serde_json::Value;

use super::{Failure, Output, table};
use crate::{blocking, client::Client, exit::Exit, inspect, topic::TopicFilter};

/// What `bus topics` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  bus topics\n  bus topics 'sensors/#' --only published\n  bus topics --json"
)]
pub(super) struct Arguments {
    /// Only topics that match: `+` is one level, `#` the rest
    filter: Option<TopicFilter>,
    /// Only those with this end alone, or with both
    #[arg(long, value_name = "STATE")]
    only: Option<Only>,
}

/// Which ends a topic has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    /// Published, and nobody subscribes or serves
    Published,
    /// Subscribed or served, and nothing was ever published or asked
    Subscribed,
    /// Both
    Both,
}

impl From<Only> for inspect::Only {
    fn from(only: Only) -> Self {
        match only {
            Only::Published => Self::Published,
            Only::Subscribed => Self::Subscribed,
            Only::Both => Self::Both,
        }
    }
}

const COLUMNS: &[table::Column] = &[
    ("TOPIC", |row| table::text(&row["topic"])),
    ("MESSAGES", |row| table::text(&row["messages"])),
    ("MSG/S 1s", |row| table::rate(&row["messages_per_second"]["1s"])),
    ("10s", |row| table::rate(&row["messages_per_second"]["10s"])),
    ("60s", |row| table::rate(&row["messages_per_second"]["60s"])),
    ("BYTES", |row| table::bytes(&row["bytes"])),
    ("B/S 1s", |row| table::bytes(&row["bytes_per_second"]["1s"])),
    ("10s", |row| table::bytes(&row["bytes_per_second"]["10s"])),
    ("60s", |row| table::bytes(&row["bytes_per_second"]["60s"])),
    ("DENIED", |row| table::text(&row["denied"])),
    ("AGE", |row| table::age(&row["last_seen_ms"])),
    ("PUBLISHERS", |row| table::names(&row["publishers"])),
    ("SUBSCRIBERS", |row| table::names(&row["subscribers"])),
    ("SERVERS", |row| table::names(&row["servers"])),
    ("NOTE", note),
];

/// What is odd about a topic.
fn note(row: &Value) -> String {
    let what = match row["state"].as_str() {
        Some("published") => "nobody subscribes",
        Some("subscribed") => "nothing came",
        _ => return String::new(),
    };
    match row["did_you_mean"].as_str() {
        Some(name) => format!("{what}; did you mean {name}?"),
        None => what.to_owned(),
    }
}

pub(super) fn run(arguments: &Arguments, client: &Client, output: &mut Output) -> Result<Exit, Failure> {
    let only = arguments.only.map(inspect::Only::from);
    let rows = blocking::wait(inspect::topics(client, arguments.filter.as_ref(), only))?;
    if rows.is_empty() && (arguments.filter.is_some() || arguments.only.is_some()) {
        output.note("no topic is like that");
        return Ok(Exit::Failed);
    }
    table::print(&rows, COLUMNS, output)?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_note_says_what_a_topic_lacks_and_what_was_probably_meant() {
        let row = |state: &str, name: Option<&str>| note(&json!({ "state": state, "did_you_mean": name }));
        assert_eq!(row("published", Some("order/new")), "nobody subscribes; did you mean order/new?");
        assert_eq!((row("subscribed", None), row("both", None)), ("nothing came".to_owned(), String::new()));
    }
}
