//! `bus peers`

use super::{Failure, Output, table};
use crate::{blocking, client::Client, exit::Exit, inspect};

const COLUMNS: &[table::Column] = &[
    ("PEER", |row| table::text(&row["peer"])),
    ("KIND", |row| table::text(&row["kind"])),
    ("ADDRESS", |row| table::text(&row["address"])),
    ("SUBS", |row| table::text(&row["subscriptions"])),
    ("PUBLISHED", |row| table::text(&row["published"])),
    ("DELIVERED", |row| table::text(&row["delivered"])),
    ("DROPPED", |row| table::text(&row["dropped"])),
    ("DENIED", |row| table::text(&row["denied"])),
    ("QUEUED", |row| table::text(&row["queued"])),
    ("AGE", |row| table::age(&row["connected_ms"])),
    ("PROGRAM", |row| table::text(&row["program"])),
];

pub(super) fn run(client: &Client, output: &mut Output) -> Result<Exit, Failure> {
    let rows = blocking::wait(inspect::peers(client))?;
    table::print(&rows, COLUMNS, output)?;
    let old = rows.iter().filter(|row| row["broker_key"] == "old").map(|row| table::text(&row["peer"]));
    let old: std::collections::BTreeSet<String> = old.collect();
    if !old.is_empty() {
        let names = old.into_iter().collect::<Vec<_>>().join(", ");
        output.note(&format!("sessions that began with an old key of the broker: {names}"));
    }
    Ok(Exit::Done)
}
