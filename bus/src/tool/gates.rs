//! `bus gates`

use super::{Failure, Output, table};
use crate::{blocking, client::Client, exit::Exit, inspect};

const COLUMNS: &[table::Column] = &[
    ("PEER", |row| table::text(&row["peer"])),
    ("TOPIC", |row| table::text(&row["topic"])),
    ("STATE", |row| table::text(&row["state"])),
    ("NEEDS", |row| {
        let needs = row["needs"].as_array().into_iter().flatten();
        let needs: Vec<String> = needs
            .map(|need| format!("{} {}", table::text(&need["peer"]), table::text(&need["state"])))
            .collect();
        if needs.is_empty() { "-".to_owned() } else { needs.join(", ") }
    }),
    ("ACCEPTED", |row| table::text(&row["accepted"])),
    ("BUFFERED", |row| table::text(&row["buffered"])),
    ("BYTES", |row| table::bytes(&row["buffered_bytes"])),
    ("CURSOR", |row| table::text(&row["cursor"])),
    ("FLUSHED", |row| table::text(&row["flushed"])),
    ("DROPPED", |row| table::text(&row["dropped"])),
    ("REFUSED", |row| table::text(&row["refused"])),
    ("AGAIN", |row| table::text(&row["again"])),
    ("OPENINGS", |row| table::text(&row["openings"])),
];

pub(super) fn run(client: &Client, output: &mut Output) -> Result<Exit, Failure> {
    let rows = blocking::wait(inspect::gates(client))?;
    if rows.is_empty() {
        output.note("no gated publisher is connected");
        return Ok(Exit::Done);
    }
    table::print(&rows, COLUMNS, output)?;
    Ok(Exit::Done)
}
