//! `bus topics`

use super::{Failure, Output, ask_broker, table};
use crate::{client::Client, exit::Exit};

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
];

pub(super) fn run(client: &Client, output: &mut Output) -> Result<Exit, Failure> {
    let rows = table::sorted_by(ask_broker(client, "topics")?, "topic");
    table::print(&rows, COLUMNS, output)?;
    Ok(Exit::Done)
}
