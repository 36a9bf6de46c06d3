//! `bus audit`

use serde_json::Value;

use super::{Failure, Output, ask_broker, table};
use crate::{client::Client, exit::Exit};

/// What `bus audit` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print every row, not only those that do not balance
    #[arg(long)]
    all: bool,
}

const COLUMNS: &[table::Column] = &[
    ("PUBLISHER", |row| table::text(&row["publisher"])),
    ("TOPIC", |row| table::text(&row["topic"])),
    ("SUBSCRIBER", |row| table::text(&row["subscriber"])),
    ("PUBLISHED", |row| table::text(&row["published"])),
    ("DELIVERED", |row| table::text(&row["delivered"])),
    ("QUEUED", |row| table::text(&row["queued"])),
    ("DENIED", |row| table::text(&row["denied"])),
    ("BALANCES", |row| if row["balances"] == Value::Bool(true) { "yes" } else { "NO" }.to_owned()),
    ("DROPPED", |row| {
        let reasons = row["dropped"].as_object().into_iter().flatten();
        let reasons: Vec<String> = reasons.map(|(reason, count)| format!("{reason} {count}")).collect();
        if reasons.is_empty() { "0".to_owned() } else { reasons.join(", ") }
    }),
];

pub(super) fn run(arguments: &Arguments, client: &Client, output: &mut Output) -> Result<Exit, Failure> {
    let rows = table::sorted_by(ask_broker(client, "ledger")?, "topic");
    let total = rows.len();
    let is_unbalanced = |row: &Value| row["balances"] != Value::Bool(true);
    let unbalanced = rows.iter().filter(|row| is_unbalanced(row)).count();
    let shown: Vec<Value> = rows.into_iter().filter(|row| arguments.all || is_unbalanced(row)).collect();
    if !shown.is_empty() {
        table::print(&shown, COLUMNS, output)?;
    }
    if unbalanced == 0 {
        output.note(&format!("all {total} rows balance"));
        return Ok(Exit::Done);
    }
    output.note(&format!("{unbalanced} of {total} rows do not balance; that is a bug, please report it"));
    Ok(Exit::Failed)
}
