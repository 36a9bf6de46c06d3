//! `bus audit`

use serde_json::Value;

use super::{Failure, Output, table};
use crate::{blocking, client::Client, exit::Exit, inspect};

/// What `bus audit` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bus audit\n  bus audit --all --json | jq 'select(.dropped != {})'")]
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
    ("KNOWN BY", known_by),
    ("QUEUED", |row| table::text(&row["queued"])),
    ("DENIED", |row| table::text(&row["denied"])),
    ("BALANCES", |row| if row["balances"] == Value::Bool(true) { "yes" } else { "NO" }.to_owned()),
    ("DROPPED", |row| {
        let reasons = row["dropped"].as_object().into_iter().flatten();
        let reasons: Vec<String> = reasons.map(|(reason, count)| format!("{reason} {count}")).collect();
        if reasons.is_empty() { "0".to_owned() } else { reasons.join(", ") }
    }),
];

/// How it is known that messages were delivered: subscribers have credited them, or a stock one's socket took them.
fn known_by(row: &Value) -> String {
    let count = |name: &str| row[name].as_u64().unwrap_or(0);
    match (count("delivered"), count("written")) {
        (0, _) => "-".to_owned(),
        (_, 0) => "credit".to_owned(),
        (delivered, written) if delivered == written => "socket".to_owned(),
        (delivered, written) => format!("credit {}, socket {written}", delivered - written),
    }
}

pub(super) fn run(arguments: &Arguments, client: &Client, output: &mut Output) -> Result<Exit, Failure> {
    let rows = blocking::wait(inspect::ledger(client))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_says_how_deliveries_are_known() {
        let known = |delivered: u64, written: u64| {
            known_by(&serde_json::json!({ "delivered": delivered, "written": written }))
        };
        assert_eq!(known(0, 0), "-");
        assert_eq!((known(3, 0), known(3, 3)), ("credit".to_owned(), "socket".to_owned()));
        assert_eq!(known(5, 3), "credit 2, socket 3");
    }
}
