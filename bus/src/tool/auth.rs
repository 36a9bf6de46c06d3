//! `bus auth`

use super::{Failure, Output, ask_broker, table};
use crate::{blocking, client::Client, exit::Exit, inspect};

const COLUMNS: &[table::Column] = &[
    ("TIME", |row| table::time(&row["at_ms"])),
    ("CODE", |row| table::text(&row["code"])),
    ("PEER", |row| table::text(&row["peer"])),
    ("ADDRESS", |row| table::text(&row["address"])),
    ("KEY", |row| table::text(&row["key"])),
    ("REASON", |row| table::text(&row["text"])),
];

/// Of operations of connected peers.
const DENIED_COLUMNS: &[table::Column] = &[
    ("LAST", |row| table::time(&row["last_ms"])),
    ("CODE", |row| table::text(&row["code"])),
    ("PEER", |row| table::text(&row["peer"])),
    ("OPERATION", |row| table::text(&row["operation"])),
    ("TOPIC", |row| table::text(&row["topic"])),
    ("COUNT", |row| table::text(&row["count"])),
    ("REASON", |row| table::text(&row["text"])),
];

pub(super) fn run(client: &Client, output: &mut Output) -> Result<Exit, Failure> {
    let info = ask_broker(client, "info")?;
    if let Some(problem) = info["registry_problem"]["error"].as_str() {
        output.note(&format!("the last edit of the registry is not in force: {problem}"));
    }
    for old in info["old_broker_keys"].as_array().into_iter().flatten() {
        let (key, until) = (table::text(&old["key"]), table::time(&old["until_ms"]));
        output.note(&format!("the broker's old key `{key}` is accepted until {until}"));
    }
    let refused = blocking::wait(inspect::refused(client))?;
    if refused.connections.is_empty() {
        output.note("no connection was refused since the broker started");
    } else {
        table::print(&refused.connections, COLUMNS, output)?;
    }
    if let Some(counts) = refused.counts.as_object().filter(|counts| !counts.is_empty()) {
        let counts: Vec<String> = counts.iter().map(|(code, count)| format!("{code} {count}")).collect();
        output.note(&format!("since the broker started: {}", counts.join(", ")));
    }
    if !refused.operations.is_empty() {
        table::print(&refused.operations, DENIED_COLUMNS, output)?;
    }
    Ok(Exit::Done)
}
