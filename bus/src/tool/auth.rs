//! `bus auth`

use serde_json::Value;

use super::{Failure, Output, ask_broker, table};
use crate::{client::Client, exit::Exit};

const COLUMNS: &[table::Column] = &[
    ("TIME", |row| table::time(&row["at_ms"])),
    ("CODE", |row| table::text(&row["code"])),
    ("PEER", |row| table::text(&row["peer"])),
    ("ADDRESS", |row| table::text(&row["address"])),
    ("KEY", |row| table::text(&row["key"])),
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
    let mut answer = ask_broker(client, "refusals")?;
    let rows = match answer["last"].take() {
        Value::Array(rows) => rows,
        _ => Vec::new(),
    };
    if rows.is_empty() {
        output.note("no connection was refused since the broker started");
        return Ok(Exit::Done);
    }
    table::print(&rows, COLUMNS, output)?;
    if let Some(counts) = answer["counts"].as_object() {
        let counts: Vec<String> = counts.iter().map(|(code, count)| format!("{code} {count}")).collect();
        output.note(&format!("since the broker started: {}", counts.join(", ")));
    }
    Ok(Exit::Done)
}
